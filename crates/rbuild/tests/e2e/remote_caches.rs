//! Caches in registries: requests, several machines, damage.

use std::time::{Duration, Instant};

use rbuild_image::BlobDigest;

use crate::lab::{Lab, Ran, is_bare};
use crate::registries::Scene;
use crate::registries::server::{Access, Registry};

pub const FILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool; echo unused > /unused\n\
    FROM busybox\nWORKDIR /w\nCOPY src /w/\nRUN cat /w/a > /w/made; ln -s made /w/link\n\
    COPY --from=tools /tool /tool\n";

/// A machine with an empty store, and a home directory.
pub struct Machine {
    pub lab: Lab,
    pub home: String,
}

impl Machine {
    pub fn new() -> Machine {
        Machine::with(Lab::new())
    }

    /// A machine whose store has no base images.
    pub fn bare() -> Machine {
        Machine::with(Lab::bare())
    }

    fn with(lab: Lab) -> Machine {
        let home = lab.path("home");
        std::fs::create_dir(&home).unwrap();
        lab.write(".dockerignore", "Dockerfile\n").write("src/a", "source\n");
        Machine { lab, home: home.to_str().unwrap().to_string() }
    }

    pub fn build(&self, file: &str, args: &[&str]) -> Ran {
        self.build_as("runner", file, args)
    }

    /// Builds on a machine with that name.
    pub fn build_as(&self, name: &str, file: &str, args: &[&str]) -> Ran {
        self.lab.write("Dockerfile", file);
        let mut command = self.lab.command(["build"].into_iter().chain(args.iter().copied()));
        self.lab.run_with(&mut command, &self.variables(name))
    }

    /// Returns the variables of a build on a machine with that name.
    pub fn variables<'a>(&'a self, name: &'a str) -> [(&'static str, &'a str); 4] {
        let home = self.home.as_str();
        [("HOME", home), ("XDG_RUNTIME_DIR", home), ("RBUILD_RUNNER", name), ("RBUILD_PULL", "missing")]
    }

    /// Builds the result and returns its files, as `find` would print them.
    pub fn files(&self, args: &[&str]) -> (Ran, Vec<String>) {
        let tar = self.lab.path("files.tar");
        let output = format!("type=tar,dest={}", tar.display());
        let ran = self.build(FILE, &[&["-o", &output], args].concat()).ok();
        let mut files = crate::lab::listing(&std::fs::read(tar).unwrap());
        files.retain(|line| line.contains(" w") || line.contains("tool"));
        (ran, files)
    }
}

pub fn paths(requests: &[String], method: &str, part: &str) -> usize {
    requests.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
}

/// Returns the number of requests with that line.
fn exactly(requests: &[String], wanted: &str) -> usize {
    requests.iter().filter(|line| *line == wanted).count()
}

#[test]
fn a_cold_machine_downloads_records_and_only_the_layers_it_needs() {
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={},shards=1", scene.name("app:cache"));
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
    assert_eq!((requests.len(), paths(&requests, "GET", "/blobs/")), (2, 0), "{requests:?}");
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

/// The registry has the layers, or mounts them from the repository of the cache. A layer that is
/// lost is a miss.
#[test]
fn a_cold_machine_pushes_an_image_without_downloading_its_layers() {
    let (scene, one, two, three) = (Scene::new(Access::Open), Machine::new(), Machine::new(), Machine::new());
    let cache = format!("type=registry,ref={},shards=1", scene.name("app:cache"));
    let (app, other) = (scene.name("app:1"), scene.name("team/other:1"));
    one.build(FILE, &["-t", &app, "--push", "--cache-to", &format!("{cache},mode=max")]).ok();
    let expected = scene.document("app", "1");
    for (name, path, uploads) in [(&app, "app", 0), (&other, "team/other", 1)] {
        scene.registry.requests();
        let ran = two.build(FILE, &["-t", name, "--push", "--cache-from", &cache]).ok();
        assert_eq!(ran.steps(), (0, 5), "{}", ran.stderr);
        assert!(ran.stderr.contains("is in the registry only"), "{}", ran.stderr);
        let requests = scene.registry.requests();
        assert_eq!(paths(&requests, "GET", "/blobs/"), 0, "{requests:?}");
        // The configuration and the layer of the base, which is in the store.
        assert_eq!(paths(&requests, "PUT", "/blobs/"), 2 * uploads, "{requests:?}");
        assert!(requests.len() <= 6 || uploads > 0, "{requests:?}");
        assert_eq!(scene.document(path, "1"), expected);
    }
    assert!(!two.lab.rbuild(["images"]).ok().stdout.contains("app"));
    two.lab.rbuild(["fsck"]).ok();
    // The store gets the layers as soon as another output needs them.
    two.build(FILE, &["-t", "x", "--cache-from", &cache]).ok();
    let again = two.build(FILE, &["-t", &app, "--push", "--cache-from", &cache]).ok();
    assert!(again.stderr.contains("\nBuilt ") && !again.stderr.contains("registry only"), "{}", again.stderr);
    assert_eq!(scene.document("app", "1"), expected);
    let lost: BlobDigest = expected["layers"][3]["digest"].as_str().unwrap().parse().unwrap();
    scene.registry.state().blobs.retain(|(_, blob), _| *blob != lost);
    let ran = three.build(FILE, &["-t", &scene.name("new:1"), "--push", "--cache-from", &cache]).ok();
    assert_eq!(ran.stderr.matches("so its step runs").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("the layers in registries are downloaded").count(), 1, "{}", ran.stderr);
    assert_eq!(scene.document("new", "1")["layers"].as_array().unwrap().len(), 5);
}

/// An image that only the registry has leaves no inputs of keys in the store.
#[test]
fn a_miss_after_a_push_from_a_cache_is_explained_by_the_cache() {
    let (scene, one, two) = (Scene::new(Access::Open), Machine::new(), Machine::new());
    let cache = format!("type=registry,ref={},shards=1", scene.name("app:cache"));
    let app = scene.name("app:1");
    one.build(FILE, &["-t", &app, "--push", "--cache-to", &format!("{cache},mode=max")]).ok();
    let args = ["-t", &app, "--push", "--explain", "--cache-from", &cache];
    let ran = two.build(FILE, &args).ok();
    assert!(ran.stderr.contains("is in the registry only"), "{}", ran.stderr);
    two.lab.write("src/a", "changed\n");
    let ran = two.build(FILE, &args).ok();
    assert!(
        ran.stderr.contains("context files or their modes changed (compared with a build in the cache"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("no longer recorded"), "{}", ran.stderr);
}

/// A stage that is built again and has equal files continues the hits of the cache.
#[test]
fn steps_are_found_by_the_content_of_a_stage_that_was_built_again() {
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={},shards=1", scene.name("app:cache"));
    let file = |tool: &str| {
        format!(
            "FROM busybox AS tools\nRUN echo tool > /tool; {tool}\nFROM busybox\n\
            COPY --from=tools /tool /tool\nRUN head -c 16 /dev/urandom > /r\n"
        )
    };
    let (one, two) = (Machine::new(), Machine::new());
    one.build(&file("true"), &["-t", "x", "--cache-to", &format!("{cache},mode=max")]).ok();
    let local = format!("type=local,dest={},mode=max", two.lab.path("cache").display());
    one.build(&file("true"), &["-t", "x", "--cache-to", &local]).ok();
    let expected = one.lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout;
    scene.registry.requests();
    let ran = two.build(&file(": changed"), &["-t", "x", "--cache-from", &cache]).ok();
    assert_eq!(ran.steps(), (1, 2), "{}", ran.stderr);
    let requests = scene.registry.requests();
    assert_eq!(paths(&requests, "GET", "/blobs/"), 2, "{requests:?}");
    assert_eq!(two.lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout, expected);
    let three = Machine::new();
    let local = format!("type=local,src={}", two.lab.path("cache").display());
    assert_eq!(three.build(&file(": other"), &["-t", "x", "--cache-from", &local]).ok().steps(), (1, 2));
    assert_eq!(three.lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout, expected);
    two.lab.rbuild(["fsck"]).ok();
}

#[test]
fn machines_add_to_one_cache_and_upload_what_is_missing() {
    let scene = Scene::new(Access::Open);
    let cache = scene.name("app:cache");
    let (one, two, three) = (Machine::new(), Machine::new(), Machine::new());
    let from = format!("type=registry,ref={cache},shards=1");
    let both =
        ["-t", "x", "--cache-from", &from, "--cache-to", &format!("type=registry,ref={cache},shards=1,mode=max")];
    let file = |name: &str| format!("FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN echo {name} > /n\n");
    assert_eq!(one.build(&file("one"), &both).ok().steps(), (2, 0));
    scene.registry.requests();
    assert_eq!(two.build(&file("two"), &both).ok().steps(), (1, 1));
    let requests = scene.registry.requests();
    // The new layer, the configuration, the records and the manifest.
    let manifests = exactly(&requests, "PUT /v2/app/manifests/cache");
    assert_eq!((paths(&requests, "PUT", "/blobs/"), manifests), (3, 1), "{requests:?}");
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
        let max = format!("type=registry,ref={cache},shards=1,mode=max");
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

/// Registries refuse manifests that name a missing layer. A build that does not need that layer
/// drops it, and every other layer stays.
#[test]
fn a_lost_layer_that_a_build_does_not_need_is_dropped() {
    let (scene, one, two) = (Scene::new(Access::Open), Machine::new(), Machine::new());
    scene.registry.state().checks_manifests = true;
    let cache = scene.name("app:cache");
    let max = format!("type=registry,ref={cache},shards=1,mode=max");
    one.build(FILE, &["-t", "x", "--cache-to", &max]).ok();
    let manifest = scene.document("app", "cache");
    let digest: BlobDigest = manifest["layers"][2]["digest"].as_str().unwrap().parse().unwrap();
    scene.registry.state().blobs.remove(&("app".to_string(), digest));
    let wrote = two.build("FROM busybox\nRUN echo other > /other\n", &["-t", "y", "--cache-to", &max]).ok();
    assert!(wrote.stderr.contains(": 5 steps, 1 new layer of "), "{}", wrote.stderr);
    assert_eq!(scene.document("app", "cache")["layers"].as_array().unwrap().len(), 6);
}

/// A digest is that of one state of the cache. Nothing can be written to it.
#[test]
fn a_digest_in_the_name_applies() {
    let (scene, one, two) = (Scene::new(Access::Open), Machine::new(), Machine::new());
    let file = |name: &str| format!("FROM busybox\nRUN echo {name} > /n\n");
    let cache = scene.name("app:cache");
    let to = format!("type=registry,ref={cache},shards=1");
    one.build(&file("one"), &["-t", "x", "--cache-to", &to]).ok();
    let bytes = scene.registry.state().manifests[&("app".to_string(), "cache".to_string())].1.clone();
    let first = format!("{cache}@{}", BlobDigest::of(&bytes));
    one.build(&file("two"), &["-t", "x", "--cache-to", &to]).ok();
    for (from, name, steps) in [(&first, "one", (0, 1)), (&first, "two", (1, 0)), (&cache, "two", (0, 1))] {
        let two = Machine::new();
        assert_eq!(two.build(&file(name), &["-t", "x", "--cache-from", from]).ok().steps(), steps, "{from} {name}");
    }
    let none = format!("type=registry,ref={cache}@{},required", BlobDigest::of(b"none"));
    two.build(&file("one"), &["--cache-from", &none]).fails(1, &["there is no cache"]);
    two.build(&file("one"), &["--cache-to", &first]).fails(2, &["a cache cannot be written to a digest"]);
}

/// The results of `--no-cache` are those that other machines continue with.
#[test]
fn a_build_without_cache_replaces_the_steps_of_a_cache() {
    let (scene, one, two) = (Scene::new(Access::Open), Machine::new(), Machine::new());
    let to = format!("type=registry,ref={},shards=1", scene.name("app:cache"));
    let file = "FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN cp /r /s\n";
    one.build(file, &["-t", "x", "--cache-to", &to]).ok();
    let wrote = one.build(file, &["-t", "x", "--no-cache", "--cache-to", &to]).ok();
    // The second step of the first build follows from a result that is gone.
    assert!(wrote.stderr.contains(": 3 steps, 2 new layers of "), "{}", wrote.stderr);
    let expected = one.lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout;
    assert_eq!(two.build(file, &["-t", "x", "--cache-from", &to]).ok().steps(), (0, 2));
    assert_eq!(two.lab.rbuild(["inspect", "x", "--format", "{{json .RootFS}}"]).ok().stdout, expected);
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
    build(&["--cache-to", dead]).fails(1, &["cannot update the cache"]);
    build(&["--cache-to", &format!("{dead},ignore-error=true")]).ok();
    // The tag of an image is not replaced.
    let name = scene.name("app:1");
    build(&["-t", &name, "--push"]).ok();
    let image = scene.document("app", "1");
    let ran = build(&["--cache-to", &format!("type=registry,ref={name},shards=1")]);
    ran.fails(1, &["it is an image, not a cache", "hint: use another tag for the cache"]);
    assert_eq!(scene.document("app", "1"), image);
    let ran = build(&["--cache-from", &name]).ok();
    assert!(ran.stderr.contains("the image has no cache") && !ran.stderr.contains("warning"), "{}", ran.stderr);
}

#[test]
fn a_cache_is_read_from_a_mirror_and_written_to_its_registry() {
    let (scene, mirror) = (Scene::new(Access::Open), Registry::start(Access::Open));
    let cache = format!("type=registry,ref={},shards=1,mode=max", scene.name("app:cache"));
    Machine::new().build(FILE, &["-t", "x", "--cache-to", &cache]).ok();
    {
        let (state, mut copy) = (scene.registry.state(), mirror.state());
        (copy.blobs, copy.manifests) = (state.blobs.clone(), state.manifests.clone());
    }
    let (own, other) = (&scene.registry.address, &mirror.address);
    let from = ["--cache-from", &format!("type=registry,ref={},shards=1,required", scene.name("app:cache"))];
    let machine = || {
        let machine = Machine::new();
        let config = machine.lab.path("home/.config/rbuild/config.toml");
        std::fs::create_dir_all(config.parent().unwrap()).unwrap();
        std::fs::write(config, format!("[registry.\"{own}\"]\nmirrors = [\"{other}\"]\n")).unwrap();
        machine
    };
    let two = machine();
    scene.registry.requests();
    assert_eq!(two.files(&from).0.steps(), (0, 5));
    assert_eq!(paths(&mirror.requests(), "GET", "/blobs/"), 4, "the layers");
    assert_eq!(scene.registry.requests(), [""; 0]);
    let changed = FILE.replace("WORKDIR /w", "WORKDIR /v");
    two.build(&changed, &[&["-t", "x", "--cache-to", &cache][..], &from].concat()).ok();
    assert_eq!(paths(&mirror.requests(), "P", ""), 0, "nothing is written to the mirror");
    assert_eq!(exactly(&scene.registry.requests(), "PUT /v2/app/manifests/cache"), 1);
    // The registry has what the mirror lacks.
    mirror.state().blobs.clear();
    assert_eq!(machine().files(&from).0.steps(), (0, 5));
    assert_eq!(paths(&scene.registry.requests(), "GET", "/blobs/"), 4);
}

/// The records are part of the configuration of an image, and its layers are those of the steps.
#[test]
fn an_image_has_the_records_of_its_own_steps() {
    let (scene, one) = (Scene::new(Access::Open), Machine::new());
    let name = scene.name("app:1");
    one.build(FILE, &["-t", &name, "--push", "--cache-to", "type=inline"]).ok();
    let config = scene.document("app", "1")["config"]["digest"].as_str().unwrap().parse::<BlobDigest>().unwrap();
    let config = scene.registry.state().blobs[&("app".to_string(), config)].clone();
    assert!(String::from_utf8_lossy(&config).contains("rbuild.cache.v1"));
    let two = Machine::new();
    scene.registry.requests();
    let (ran, files) = two.files(&["--cache-from", &name]);
    // The stage runs again, because only the steps of the result have records.
    assert_eq!(ran.steps(), (1, 4), "{}", ran.stderr);
    let requests = scene.registry.requests();
    assert_eq!(paths(&requests, "GET", "/blobs/"), 5, "the configuration and four layers: {requests:?}");
    assert_eq!(files, one.files(&[]).1);
    // An image on top of it does not inherit the records.
    one.build(&format!("FROM {name}\nRUN true\n"), &["-t", "above"]).ok();
    let above = one.lab.rbuild(["save", "above"]).stdout;
    assert!(!above.contains("rbuild.cache.v1"));
    // A layout, too.
    let layout = two.lab.path("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    one.build(FILE, &["-o", &output, "--cache-to", "type=inline"]).ok();
    let from = format!("type=local,src={}", layout.display());
    assert_eq!(Machine::new().build(FILE, &["-t", "x", "--cache-from", &from]).ok().steps(), (1, 4));
}

/// Machines that write at the same moment do not lose steps. Scopes are separate.
#[test]
fn each_machine_writes_its_own_shard_and_all_are_read() {
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={}", scene.name("app"));
    let to = format!("{cache},scope=feature/a,mode=max");
    let file = |name: &str| format!("FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN echo {name} > /n\n");
    let names = ["a", "b", "c", "d", "e", "f"];
    Machine::new().build_as("first", &file("a"), &["-t", "x", "--cache-to", &to]).ok();
    std::thread::scope(|scope| {
        for name in names {
            let (to, file) = (&to, file(name));
            scope.spawn(move || {
                let machine = Machine::new();
                let ran = machine.build_as(name, &file, &["-t", "x", "--cache-from", to_source(to), "--cache-to", to]);
                assert_eq!(ran.ok().steps(), if name == "a" { (0, 2) } else { (1, 1) });
            });
        }
    });
    let from = format!("{cache},scope=none;feature/a,required");
    scene.registry.requests();
    for name in names {
        let machine = Machine::new();
        let ran = machine.build_as("reader", &file(name), &["-o", "type=cacheonly", "--cache-from", &from]).ok();
        assert_eq!(ran.steps(), (0, 2), "{name}: {}", ran.stderr);
    }
    // The tags of two scopes, and at most the shards that one of them names.
    let requests = scene.registry.requests();
    assert_eq!(paths(&requests, "GET", "/manifests/cache-"), 6 * 2, "{requests:?}");
    let tags = scene.registry.state().manifests.keys().map(|(_, tag)| tag.clone()).collect::<Vec<_>>();
    let shards = tags.iter().filter(|tag| tag.starts_with("cache-feature-a-") && tag.contains("-s")).count();
    assert!((2..=7).contains(&shards), "{tags:?}");
    assert!(tags.iter().all(|tag| !tag.starts_with("cache-none")), "{tags:?}");
    let none = format!("{cache},scope=other,required");
    Machine::new().build(&file("a"), &["--cache-from", &none]).fails(1, &["there is no cache with the tag"]);
    // What was read is recent, so nothing is requested to write it.
    let machine = Machine::new();
    machine.build_as("again", &file("a"), &["-t", "x", "--cache-from", to_source(&to)]).ok();
    scene.registry.requests();
    let ran = machine.build_as("again", &file("a"), &["-t", "x", "--cache-from", to_source(&to), "--cache-to", &to]);
    assert!(ran.ok().stderr.contains("is unchanged: 2 steps"));
    let requests = scene.registry.requests();
    assert!((1..=7).contains(&requests.len()), "{requests:?}");
}

/// Returns the value of `--cache-from` for one of `--cache-to`.
fn to_source(to: &str) -> &str {
    to.strip_suffix(",mode=max").unwrap_or(to)
}

/// Machines that begin at the same time wait for the one that has a claim, which it releases.
#[test]
fn machines_wait_for_steps_that_another_one_builds() {
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={},scope=main", scene.name("app"));
    let to = format!("{cache},mode=max");
    let file = "FROM busybox\nRUN head -c 16 /dev/urandom > /r; sleep 0.3\nRUN cp /r /s\n";
    let args = ["-o", "type=cacheonly", "--cache-claim", "--cache-from", &cache, "--cache-to", &to];
    let ran = std::thread::scope(|scope| {
        let machines = ["a", "b", "c", "d"].map(|name| scope.spawn(move || Machine::new().build_as(name, file, &args)));
        machines.map(|machine| machine.join().unwrap().ok())
    });
    let done: usize = ran.iter().map(|ran| ran.steps().0).sum();
    let output: String = ran.iter().map(|ran| ran.stderr.as_str()).collect();
    assert!((2..=4).contains(&done), "each step runs once or twice: {output}");
    assert!(output.contains("note: waiting for steps that `"), "{output}");
    let other = Machine::new().build_as("e", &file.replace("0.3", "0"), &args).ok();
    assert!(!other.stderr.contains("waiting") && other.steps() == (2, 0), "{}", other.stderr);
    // Others would not find the steps.
    let args = [&args[..5], &["--cache-to", &cache]].concat();
    let min = Machine::new().build_as("f", &file.replace("0.3", "0.1"), &args).ok();
    assert!(min.stderr.contains("warning: --cache-claim has no effect"), "{}", min.stderr);
    let tags: Vec<String> = scene.registry.state().manifests.keys().map(|(_, tag)| tag.clone()).collect();
    assert!(tags.iter().any(|tag| tag.starts_with("cache-main-c")), "{tags:?}");
}

/// Either the images of all platforms are made without their layers, or none.
#[test]
fn a_cold_machine_pushes_several_platforms_without_downloading_their_layers() {
    let file = "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\nARG CHANGED\n\
        RUN echo $TARGETARCH > /f; [ $TARGETARCH = amd64 ] || echo \"$CHANGED\" > /g; touch /g\n\
        FROM scratch\nCOPY --from=made /f /g /\n";
    let scene = Scene::new(Access::Open);
    let cache = format!("type=registry,ref={}", scene.name("app:cache"));
    let to = format!("{cache},mode=max");
    let push = |machine: &Machine, name: &str, more: &[&str]| {
        let name = scene.name(name);
        let args = ["-t", &name, "--push", "--platform", "linux/amd64,linux/arm64", "--cache-from", &cache];
        scene.registry.requests();
        let ran = machine.build(file, &[&args[..], more].concat()).ok();
        let requests = scene.registry.requests();
        (ran, paths(&requests, "GET", "/blobs/"))
    };
    push(&Machine::new(), "app:1", &["--cache-to", &to]);
    let expected = scene.document("app", "1");
    let two = Machine::new();
    let (ran, downloads) = push(&two, "app:2", &["--cache-to", &to]);
    assert_eq!((ran.steps().0, downloads), (0, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("Built 2 images (they are in the registry only"), "{}", ran.stderr);
    assert_eq!(scene.document("app", "2"), expected);
    two.lab.rbuild(["fsck"]).ok();
    // The steps of one platform run.
    let changed = ["--build-arg", "CHANGED=1"];
    let (ran, _) = push(&two, "app:3", &changed);
    assert!(ran.steps().0 > 0 && !ran.stderr.contains("registry only"), "{}", ran.stderr);
    let (whole, _) = push(&Machine::new(), "app:4", &[&changed[..], &["--no-cache"]].concat());
    assert!(whole.steps().0 > ran.steps().0, "{}", whole.stderr);
    let [made, whole] = ["3", "4"].map(|tag| scene.document("app", tag)["manifests"].as_array().unwrap().len());
    assert_eq!((made, whole), (2, 2));
}

/// Reading a cache must not take longer than building.
#[test]
fn a_registry_that_never_answers_delays_a_build_for_half_a_minute_at_most() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cache = format!("type=registry,ref={}/app", silent.local_addr().unwrap());
    let lab = Lab::new();
    let start = Instant::now();
    let ran = lab.build("FROM busybox\nRUN echo 1 > /one\n", &["--cache-from", &cache]).ok();
    assert!(ran.stderr.contains("cannot read the cache, so it is not used"), "{}", ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}
