//! Caches in registries: requests, several machines, damage.

use rbuild_image::BlobDigest;

use crate::lab::{Lab, Ran, is_bare};
use crate::registries::Scene;
use crate::registries::server::Access;

const FILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool; echo unused > /unused\n\
    FROM busybox\nWORKDIR /w\nCOPY src /w/\nRUN cat /w/a > /w/made; ln -s made /w/link\n\
    COPY --from=tools /tool /tool\n";

/// A machine with an empty store, and a home directory.
struct Machine {
    lab: Lab,
    home: String,
}

impl Machine {
    fn new() -> Machine {
        let lab = Lab::new();
        let home = lab.path("home");
        std::fs::create_dir(&home).unwrap();
        lab.write(".dockerignore", "Dockerfile\n").write("src/a", "source\n");
        Machine { lab, home: home.to_str().unwrap().to_string() }
    }

    fn build(&self, file: &str, args: &[&str]) -> Ran {
        self.lab.write("Dockerfile", file);
        let mut command = self.lab.command(["build"].into_iter().chain(args.iter().copied()));
        self.lab.run_with(&mut command, &[("HOME", &self.home), ("XDG_RUNTIME_DIR", &self.home)])
    }

    /// Builds the result and returns its files, as `find` would print them.
    fn files(&self, args: &[&str]) -> (Ran, Vec<String>) {
        let tar = self.lab.path("files.tar");
        let output = format!("type=tar,dest={}", tar.display());
        let ran = self.build(FILE, &[&["-o", &output], args].concat()).ok();
        let mut files = crate::lab::listing(&std::fs::read(tar).unwrap());
        files.retain(|line| line.contains(" w") || line.contains("tool"));
        (ran, files)
    }
}

fn paths(requests: &[String], method: &str, part: &str) -> usize {
    requests.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
}

#[test]
fn a_cold_machine_downloads_records_and_only_the_layers_it_needs() {
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={}", scene.name("app:cache"));
    let (one, two) = (Machine::new(), Machine::new());
    let wrote = one.build(FILE, &["-t", "x", "--cache-to", &format!("{cache},mode=max")]).ok();
    assert!(wrote.stderr.contains("5 steps, 5 new layers"), "{}", wrote.stderr);
    let manifest = scene.document("app", "cache");
    assert_eq!(manifest["artifactType"], "application/vnd.rbuild.cache.v1+json");
    // Nothing is new: one request.
    scene.registry.requests();
    let again = one.build(FILE, &["-t", "x", "--cache-to", &format!("{cache},mode=max")]).ok();
    assert!(again.stderr.contains("is unchanged: 5 steps"), "{}", again.stderr);
    assert_eq!(scene.registry.requests(), ["HEAD /v2/app/manifests/cache"]);
    // The records are read with few requests, whatever the number of steps.
    let filled = two.build(FILE, &["-o", "type=cacheonly", "--cache-from", &cache]).ok();
    assert_eq!(filled.steps(), (0, 5), "{}", filled.stderr);
    let requests = scene.registry.requests();
    assert_eq!((requests.len(), paths(&requests, "GET", "/blobs/")), (4, 2), "{requests:?}");
    let filled = two.build(FILE, &["-o", "type=cacheonly", "--cache-from", &cache]).ok();
    assert_eq!(filled.steps(), (0, 5));
    assert_eq!(scene.registry.requests(), ["HEAD /v2/app/manifests/cache"]);
    // Files of the result need its four layers, and not that of the stage.
    let (ran, files) = two.files(&["--cache-from", &cache]);
    assert_eq!(ran.steps(), (0, 5), "{}", ran.stderr);
    let requests = scene.registry.requests();
    assert_eq!((requests.len(), paths(&requests, "GET", "/blobs/")), (5, 4), "{requests:?}");
    assert_eq!(files, one.files(&[]).1);
    two.lab.rbuild(["fsck"]).ok();
}

#[test]
fn machines_add_to_one_cache_and_upload_what_is_missing() {
    let scene = Scene::new(Access::Open);
    let cache = scene.name("app:cache");
    let (one, two, three) = (Machine::new(), Machine::new(), Machine::new());
    let both = ["-t", "x", "--cache-from", &cache, "--cache-to", &format!("type=registry,ref={cache},mode=max")];
    let file = |name: &str| format!("FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN echo {name} > /n\n");
    assert_eq!(one.build(&file("one"), &both).ok().steps(), (2, 0));
    scene.registry.requests();
    assert_eq!(two.build(&file("two"), &both).ok().steps(), (1, 1));
    let requests = scene.registry.requests();
    // The new layer, the configuration, the records and the manifest.
    assert_eq!((paths(&requests, "PUT", "/blobs/"), paths(&requests, "PUT", "/manifests/")), (3, 1), "{requests:?}");
    for name in ["one", "two"] {
        assert_eq!(three.build(&file(name), &both).ok().steps(), (0, 2), "{name}");
    }
}

#[test]
fn a_lost_layer_is_a_miss_and_the_next_build_repairs_the_cache() {
    let (scene, one) = (Scene::new(Access::Open), Machine::new());
    one.build(FILE, &["-t", "x"]).ok();
    let expected = one.files(&[]).1;
    for layer in 1..6 {
        let path = format!("app{layer}");
        let cache = scene.name(&format!("{path}:cache"));
        let max = format!("type=registry,ref={cache},mode=max");
        one.build(FILE, &["-t", "x", "--cache-to", &max]).ok();
        let manifest = scene.document(&path, "cache");
        let digest: BlobDigest = manifest["layers"][layer]["digest"].as_str().unwrap().parse().unwrap();
        scene.registry.state().blobs.remove(&(path, digest));
        let two = Machine::new();
        let (ran, files) = two.files(&["--cache-from", &cache, "--cache-to", &max]);
        assert_eq!(files, expected, "{layer}");
        let warnings = ran.stderr.matches("so its step runs").count();
        assert!(warnings == 1 || (warnings == 0 && ran.steps() == (0, 5)), "{}", ran.stderr);
        let three = Machine::new();
        let (ran, files) = three.files(&["--cache-from", &cache]);
        assert_eq!((files, ran.stderr.contains("warning")), (expected.clone(), false), "{}", ran.stderr);
    }
}

#[test]
fn a_registry_that_fails_is_no_obstacle_unless_the_cache_is_required() {
    let scene = Scene::new(Access::Open);
    let machine = Machine::new();
    let build = |args: &[&str]| machine.build("FROM busybox\nRUN true\n", args);
    let missing = format!("type=registry,ref={}", scene.name("none:cache"));
    let ran = build(&["--cache-from", &missing]).ok();
    // The `chroot` mode has a warning of its own.
    assert_eq!(ran.stderr.matches("warning").count(), usize::from(is_bare()), "{}", ran.stderr);
    build(&["--cache-from", &format!("{missing},required")]).fails(1, &["there is no cache with the tag"]);
    let dead = "type=registry,ref=127.0.0.1:9/none:cache";
    let ran = build(&["--cache-from", dead]).ok();
    assert!(ran.stderr.contains("cannot read the cache, so it is not used"), "{}", ran.stderr);
    build(&["--cache-to", dead]).fails(1, &["cannot write the cache"]);
    build(&["--cache-to", &format!("{dead},ignore-error=true")]).ok();
    // The tag of an image is not replaced.
    let name = scene.name("app:1");
    build(&["-t", &name, "--push"]).ok();
    let image = scene.document("app", "1");
    build(&["--cache-to", &name]).fails(1, &["it is not a cache of rbuild"]);
    assert_eq!(scene.document("app", "1"), image);
    let ran = build(&["--cache-from", &name]).ok();
    assert!(ran.stderr.contains("it is not a cache of rbuild"), "{}", ran.stderr);
}
