//! Pulls and pushes, with a registry on a loopback address.

use rbuild_image::BlobDigest;
use serde_json::{Value, json};

use crate::lab::{Lab, Ran};

#[allow(dead_code)]
#[path = "../../../rbuild-registry/tests/client/registry/mod.rs"]
pub mod server;

use server::{Access, Fault, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A lab with a home directory, and a registry that has `busybox:1`.
pub struct Scene {
    pub lab: Lab,
    pub registry: Registry,
}

impl Scene {
    pub fn new(access: Access) -> Scene {
        let scene = Scene { lab: Lab::bare(), registry: Registry::start(access) };
        std::fs::create_dir_all(scene.lab.path("home")).unwrap();
        scene
    }

    /// A scene whose registry has the image `busybox:1`, and whose store is empty.
    pub fn with_image() -> Scene {
        let scene = Scene::new(Access::Open);
        let name = scene.name("busybox:1");
        let base = crate::lab::base("busybox.tar");
        scene.rbuild(&["import", base.to_str().unwrap(), &name]).ok();
        scene.rbuild(&["push", &name]).ok();
        scene.forget(&name);
        scene
    }

    pub fn forget(&self, name: &str) {
        self.rbuild(&["container", "prune", "-f"]).ok();
        self.rbuild(&["rmi", "-f", name]).ok();
        self.rbuild(&["prune", "-a"]).ok();
        self.registry.requests();
    }

    pub fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.registry.address)
    }

    pub fn rbuild(&self, args: &[&str]) -> Ran {
        let mut command = self.lab.command(args.iter().copied());
        let home = self.lab.path("home");
        let home = home.to_str().unwrap();
        self.lab.run_with(&mut command, &[("RBUILD_PULL", "missing"), ("HOME", home), ("XDG_RUNTIME_DIR", home)])
    }

    pub fn build(&self, dockerfile: &str, args: &[&str]) -> Ran {
        self.lab.write("Dockerfile", dockerfile);
        self.rbuild(&[&["build"], args].concat())
    }

    pub fn document(&self, repository: &str, reference: &str) -> Value {
        let state = self.registry.state();
        serde_json::from_slice(&state.manifests[&(repository.to_string(), reference.to_string())].1).unwrap()
    }
}

#[test]
fn a_base_is_pulled_and_the_result_is_pushed() {
    let scene = Scene::with_image();
    let file = format!("FROM {}\nRUN echo one > /one\n", scene.name("busybox:1"));
    let app = scene.name("team/app:2");
    scene.build(&file, &["-t", &app, "--push"]).ok();
    let manifest = scene.document("team/app", "2");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert!(
        layers.iter().all(|layer| layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"),
        "{manifest}"
    );
    let requests = scene.registry.requests();
    assert!(
        requests.iter().any(|r| r.starts_with("DELETE /v2/team/app/blobs/uploads/")),
        "checked before: {requests:?}"
    );
    // Blobs that the registry has already are reported as such, not as pushed.
    let again = scene.rbuild(&["push", &app]).ok().stderr;
    assert_eq!(again.matches(": already exists\n").count(), 3, "{again}");
    let digest = BlobDigest::of(&scene.registry.state().manifests[&("team/app".into(), "2".into())].1);
    let two = [format!("HEAD /v2/team/app/manifests/{digest}"), "PUT /v2/team/app/manifests/2".into()];
    assert_eq!(scene.registry.requests(), two);
    // An image that is in the store for another reason is not downloaded either.
    scene.rbuild(&["pull", &app]).ok();
    assert_eq!(scene.registry.requests(), ["GET /v2/team/app/manifests/2"]);
    // The next build does not contact the registry, except on request.
    scene.build(&file, &[]).ok();
    assert!(scene.registry.requests().is_empty());
    scene.build(&file, &["--pull"]).ok();
    assert_eq!(scene.registry.requests(), ["HEAD /v2/busybox/manifests/1"]);
    // The image that was pushed is the one that is pulled elsewhere.
    scene.forget(&app);
    scene.rbuild(&["pull", &app]).ok();
    let out = scene.lab.path("one");
    scene.rbuild(&["cp", &format!("{app}:/one"), out.to_str().unwrap()]).ok();
    assert_eq!(scene.lab.read("one"), "one\n");
}

#[test]
fn an_unchanged_image_costs_one_request_and_a_changed_one_only_new_blobs() {
    let scene = Scene::with_image();
    let name = scene.name("busybox:1");
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!(scene.registry.requests().len(), 3, "manifest, configuration, layer");
    let again = scene.rbuild(&["pull", &name]).ok();
    assert!(again.stderr.contains("Image is up to date"), "{}", again.stderr);
    assert_eq!(scene.registry.requests(), ["HEAD /v2/busybox/manifests/1"]);
    let file = format!("FROM {name}\nRUN echo two > /two\n");
    scene.build(&file, &["-o", &format!("type=image,push=true,name={name}")]).ok();
    scene.rbuild(&["rmi", "-f", &name]).ok();
    scene.registry.requests();
    scene.rbuild(&["pull", &name]).ok();
    let blobs = scene.registry.requests().iter().filter(|r| r.contains("/blobs/")).count();
    assert!(blobs <= 2, "the base's layer is there: {blobs}");
}

/// Another name keeps the image, but not the name that was removed.
#[test]
fn a_removed_name_is_pulled_again_even_if_its_image_is_kept() {
    let scene = Scene::with_image();
    let (name, other) = (scene.name("busybox:1"), scene.name("busybox:2"));
    let has_new_file = || {
        let out = scene.lab.path("out");
        scene.build(&format!("FROM {name}\n"), &["--no-cache", "-o", out.to_str().unwrap(), "."]).ok();
        let has_it = out.join("new").exists();
        std::fs::remove_dir_all(out).unwrap();
        has_it
    };
    scene.build(&format!("FROM {name}\nCOPY Dockerfile /new\n"), &["-t", &other, "--push", "."]).ok();
    scene.rbuild(&["rmi", "-f", &other]).ok();
    scene.rbuild(&["pull", &name]).ok();
    scene.rbuild(&["tag", &name, "keep"]).ok();
    assert!(!has_new_file());
    let key = |tag: &str| ("busybox".to_string(), tag.to_string());
    let new = scene.registry.state().manifests[&key("2")].clone();
    scene.registry.state().manifests.insert(key("1"), new);
    assert!(!has_new_file(), "the store has the name");
    scene.rbuild(&["rmi", &name]).ok();
    scene.registry.requests();
    assert!(has_new_file());
    assert!(scene.registry.requests().contains(&"GET /v2/busybox/manifests/1".to_string()));
    scene.rbuild(&["inspect", "keep"]).ok();
}

#[test]
fn a_registry_that_lost_a_blob_of_an_image_gets_it_again() {
    let scene = Scene::new(Access::Open);
    let name = scene.name("a:1");
    scene.lab.write("x", "x".repeat(10_000));
    scene.build("FROM scratch\nCOPY x /\n", &["-t", &name, "--push", "."]).ok();
    let blobs = scene.registry.state().blobs.clone();
    scene.registry.state().blobs.clear();
    scene.registry.fault("PUT", "/manifests/1", Fault::Status(404, None), 1);
    scene.rbuild(&["push", &name]).ok();
    assert!(scene.registry.state().blobs == blobs);
}

#[test]
fn every_instruction_that_names_an_image_pulls_it() {
    let scene = Scene::with_image();
    let name = scene.name("busybox:1");
    for (file, args) in [
        (format!("FROM scratch\nCOPY --from={name} /bin/busybox /b\n"), vec![]),
        (format!("FROM scratch\nADD --link --from={name} /bin/busybox /b\n").replace("ADD", "COPY"), vec![]),
        ("FROM base\nRUN true\n".to_string(), vec![format!("--build-context=base=docker-image://{name}")]),
        (format!("FROM {name}\nRUN --mount=from={name},target=/m test -e /m/bin\n"), vec![]),
        (format!("ARG BASE={name}\nFROM $BASE\nRUN true\n"), vec![]),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        scene.build(&file, &args).ok();
        assert!(scene.registry.requests().contains(&"GET /v2/busybox/manifests/1".to_string()), "{file}");
        scene.forget(&name);
    }
}

/// Rules about the base image give the same result in the build that pulls it.
#[test]
fn rules_use_the_image_that_the_build_pulls() {
    let scene = Scene::with_image();
    let name = scene.name("busybox:1");
    let file = format!("# check=error=true\nFROM {name}\nLABEL a=$UNKNOWN\n");
    for _ in 0..2 {
        scene.build(&file, &["."]).fails(1, &["variable `UNKNOWN` is not declared here"]);
    }
    scene.forget(&name);
    let ran = scene.build(&file.replace("error=true", "error=false"), &["."]).ok();
    assert!(ran.stderr.contains("1 warning found"), "{}", ran.stderr);
}

/// Each pull moves a name to the image of one platform; the rules use that of their stage.
#[test]
fn rules_use_the_pulled_image_of_each_platform() {
    let scene = Scene::with_image();
    let name = scene.name("multi:1");
    let file = "FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n";
    for arch in ["amd64", "arm64", "s390x"] {
        scene.lab.write(&format!("f-{arch}"), arch);
    }
    let all = "linux/amd64,linux/arm64,linux/s390x";
    scene.build(file, &["--platform", all, "-t", &name, "--push", "."]).ok();
    scene.forget(&name);
    let cross = format!(
        "# check=error=true\nFROM --platform=$BUILDPLATFORM {name} AS build\nFROM {name}\nCOPY --from=build /f /g\n"
    );
    for _ in 0..2 {
        scene.build(&cross, &["--platform", "linux/s390x", "."]).ok();
        scene.build(&format!("# check=error=true\nFROM {name}\n"), &["--platform", all, "."]).ok();
    }
    scene.rbuild(&["build", "--check", "--platform", all, "."]).ok();
}

/// In the store, a name may refer to an image that was pulled for another platform.
#[test]
fn a_build_uses_the_image_of_its_platform_regardless_of_earlier_pulls() {
    let scene = Scene::new(Access::Open);
    let name = scene.name("various:1");
    let file = "FROM scratch\nARG TARGETARCH\nCOPY f /$TARGETARCH\n";
    scene.lab.write("f", "");
    let all = "linux/arm/v6,linux/arm64,linux/s390x,linux/amd64";
    scene.build(file, &["--platform", all, "-t", &name, "--push", "."]).ok();
    scene.rbuild(&["rmi", "-f", &name]).ok();
    let from = format!("FROM {name}\n");
    let built = |platforms: &str, dir: &str| {
        let out = scene.lab.path(&format!("out-{}", platforms.replace(['/', ','], "-")));
        scene.build(&from, &["--platform", platforms, "-o", out.to_str().unwrap(), "."]).ok();
        let names = std::fs::read_dir(out.join(dir)).unwrap().map(|e| e.unwrap().file_name());
        let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        std::fs::remove_dir_all(&out).unwrap();
        names
    };
    // `prune -a` keeps the records of pulled images: without them, the image for arm64 would be
    // used for all platforms.
    scene.rbuild(&["pull", "--platform", "linux/arm64", &name]).ok();
    scene.rbuild(&["prune", "-a"]).ok();
    assert_eq!(built("linux/s390x", ""), ["s390x"]);
    // An image that was pulled in place of another variant is not used for other platforms either.
    scene.rbuild(&["rmi", "-f", &name]).ok();
    assert_eq!(built("linux/arm/v7,linux/arm64", "linux_arm64"), ["arm64"]);
    assert_eq!(built("linux/arm/v7", ""), ["arm"]);
    assert_eq!(built("linux/s390x", ""), ["s390x"]);
    scene.build(&from, &["--platform", "linux/ppc64le", "."]).fails(
        1,
        &["in the local store is for linux/", "pulling it for linux/ppc64le failed", "select an available platform"],
    );
}

/// As in BuildKit, the result has the platform of `--platform`, regardless of the platforms of its
/// stages.
#[test]
fn the_result_is_of_the_requested_platform() {
    let scene = Scene::with_image();
    let name = scene.name("cross:1");
    let file = format!("FROM --platform=$BUILDPLATFORM {}\nLABEL a=b\n", scene.name("busybox:1"));
    scene.build(&file, &["--platform", "linux/amd64,linux/s390x", "-t", &name, "--push", "."]).ok();
    let index = scene.document("cross", "1");
    let manifests = index["manifests"].as_array().unwrap();
    assert_ne!(manifests[0]["digest"], manifests[1]["digest"]);
    scene.rbuild(&["pull", "--platform", "linux/s390x", &name]).ok();
    let found = scene.rbuild(&["inspect", "-f", "{{.Architecture}}", &name]).ok().stdout;
    assert_eq!(found.trim(), "s390x");
}

#[test]
fn images_pulled_by_digest_are_found_again() {
    let scene = Scene::with_image();
    let digest = BlobDigest::of(&scene.registry.state().manifests[&("busybox".into(), "1".into())].1);
    let file = format!("FROM {}@{digest}\nRUN true\n", scene.name("busybox"));
    scene.build(&file, &[]).ok();
    assert!(!scene.registry.requests().iter().any(|r| r.starts_with("HEAD")), "a digest needs no resolving");
    scene.build(&file, &[]).ok();
    assert!(scene.registry.requests().is_empty());
}

#[test]
fn digests_of_registries_are_those_of_pulls_and_pushes() {
    let scene = Scene::with_image();
    let (name, copy) = (scene.name("busybox:1"), scene.name("team/copy:2"));
    let digest = |repository: &str, tag: &str| {
        let state = scene.registry.state();
        BlobDigest::of(&state.manifests[&(repository.to_string(), tag.to_string())].1).to_string()
    };
    let out = |args: &[&str]| scene.rbuild(args).ok().stdout;
    let repo_digests = |image: &str| out(&["inspect", "-f", "{{range .RepoDigests}}{{println .}}{{end}}", image]);
    let listed = |image: &str| out(&["images", "--format", "{{.Digest}}", image]);
    out(&["pull", &name]);
    let pulled = digest("busybox", "1");
    assert_eq!(repo_digests(&name).trim(), format!("{}@{pulled}", scene.name("busybox")));
    assert_eq!(listed(&name).trim(), pulled);
    // The digest belongs to the repository: another name of the image has none.
    out(&["tag", &name, &copy]);
    assert_eq!(listed(&copy), "<none>\n");
    // An image whose layers are compressed for the push has another manifest in the registry.
    scene
        .build(&format!("FROM {name}\nRUN echo x > /x\n"), &["-t", "own", "-o", "type=image,compression=uncompressed"])
        .ok();
    assert_eq!((repo_digests("own").trim(), listed("own").as_str()), ("", "<none>\n"));
    let own = scene.name("team/own:1");
    out(&["tag", "own", &own]);
    out(&["push", &own]);
    let pushed = digest("team/own", "1");
    assert_eq!(listed(&own).trim(), pushed);
    assert_eq!(listed("own"), "<none>\n");
    let expected = format!("{}@{pushed}", scene.name("team/own"));
    assert_eq!(repo_digests("own").trim(), expected);
    assert!(out(&["images", "--digests"]).contains(&pushed));
    // A push of another form is the current one of the name; both are known.
    out(&["push", "--as-is", &own]);
    let as_is = digest("team/own", "1");
    assert_ne!(as_is, pushed);
    assert_eq!(listed(&own).trim(), as_is);
    let both = repo_digests("own");
    assert!(both.contains(&as_is) && both.contains(&pushed), "{both}");
    out(&["push", &own]);
    assert_eq!(listed(&own).trim(), pushed);
    out(&["rmi", &own]);
    out(&["tag", "own", &own]);
    out(&["push", &own]);
    // The digest can be pulled.
    scene.forget(&own);
    out(&["rmi", "-f", "own"]);
    out(&["pull", &expected]);
    assert_eq!(repo_digests(&expected).trim(), expected);
    // A build that pushes its result does the same.
    let built = scene.name("team/built:3");
    scene.build(&format!("FROM {name}\nLABEL a=b\n"), &["-t", &built, "--push"]).ok();
    assert_eq!(listed(&built).trim(), digest("team/built", "3"));
}

#[test]
fn pull_selects_the_platform_of_an_index() {
    let scene = Scene::with_image();
    let manifest = scene.document("busybox", "1");
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let (host, size) = (scene.registry.add_manifest("multi", "host", MANIFEST, &bytes), bytes.len());
    let copies: Vec<_> = {
        let state = scene.registry.state();
        state.blobs.values().cloned().collect()
    };
    copies.iter().for_each(|bytes| {
        scene.registry.add_blob("multi", bytes);
    });
    let config = manifest["config"]["digest"].as_str().unwrap().parse::<BlobDigest>().unwrap();
    let config = scene.registry.state().blobs[&("busybox".to_string(), config)].clone();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let arch = config["architecture"].as_str().unwrap().to_string();
    config["architecture"] = json!("s390x");
    let config = serde_json::to_vec(&config).unwrap();
    let mut foreign = manifest.clone();
    foreign["config"]["digest"] = json!(scene.registry.add_blob("multi", &config).to_string());
    foreign["config"]["size"] = json!(config.len());
    let foreign = serde_json::to_vec(&foreign).unwrap();
    let other = scene.registry.add_manifest("multi", "other", MANIFEST, &foreign);
    let entry = |digest: &BlobDigest, size: usize, arch: &str| {
        let platform = json!({"os": "linux", "architecture": arch});
        json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": size, "platform": platform})
    };
    let list = json!([entry(&other, foreign.len(), "s390x"), entry(&host, size, &arch)]);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list});
    let index = scene.registry.add_manifest("multi", "1", INDEX, &serde_json::to_vec(&index).unwrap());
    let name = scene.name("multi:1");
    let arch_of =
        |image: &str| scene.rbuild(&["inspect", "-f", "{{.Architecture}}", image]).ok().stdout.trim().to_string();
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!(arch_of(&name), arch);
    scene.rbuild(&["pull", &name]).ok();
    scene.registry.requests();
    scene.build(&format!("FROM --platform=linux/s390x {name}\nLABEL a=b\n"), &["-t", "foreign"]).ok();
    assert_eq!(arch_of("foreign"), "s390x");
    scene.build(&format!("FROM {name}\nLABEL a=c\n"), &["-t", "own"]).ok();
    assert_eq!(arch_of("own"), arch);
    scene.registry.requests();
    scene.build(&format!("FROM {}@{index}\nLABEL a=d\n", scene.name("multi")), &["-t", "pinned"]).ok();
    assert_eq!(arch_of("pinned"), arch);
    scene.registry.requests();
    scene.build(&format!("FROM {}@{index}\nLABEL a=d\n", scene.name("multi")), &["-t", "pinned"]).ok();
    assert!(scene.registry.requests().is_empty());
    scene.rbuild(&["pull", "--platform", "linux/riscv64", &name]).fails(1, &["no image for linux/riscv64, only for"]);
}

#[test]
fn pull_errors_mark_the_name_in_the_dockerfile() {
    let scene = Scene::with_image();
    let file = format!("FROM {} AS builder\nFROM {}\n", scene.name("none:1"), scene.name("busybox:1"));
    scene.build(&file, &[]).ok();
    scene
        .build(&file, &["--target", "builder"])
        .fails(1, &["not found in the local store", "has no manifest 1", "Dockerfile:1:6"]);
    scene.forget(&scene.name("busybox:1"));
    scene.build(&file, &["--pull=never"]).fails(1, &["is neither a stage nor an image", "rbuild pull"]);
    assert!(scene.registry.requests().is_empty());
    scene.build(&file, &["--pull=often"]).fails(2, &["use always, missing or never"]);
    scene.registry.fault("GET", "/blobs/", Fault::Flip, 9);
    scene.build(&file, &[]).fails(1, &["with the wrong digest"]);
    scene.registry.behave();
    let blobs = scene.lab.sh(r#"ls "$LAB/store/blobs/sha256""#).stdout;
    assert_eq!(blobs, "", "nothing of it is kept");
    scene.build(&file, &[]).ok();
}

#[test]
fn artifacts_are_rejected() {
    let scene = Scene::new(Access::Open);
    let config = scene.registry.add_blob("chart", b"{}");
    let media_type = "application/vnd.cncf.helm.config.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": media_type, "digest": config.to_string(), "size": 2}});
    scene.registry.add_manifest("chart", "1", MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    scene.rbuild(&["pull", &scene.name("chart:1")]).fails(1, &["artifact of type application/vnd.cncf.helm"]);
}

#[test]
fn an_image_of_several_platforms_is_pushed_as_an_index() {
    let scene = Scene::new(Access::Open);
    scene.lab.write("file", "content");
    let name = scene.name("multi:1");
    let file = "FROM scratch\nCOPY file /\n";
    scene.build(file, &["--platform", "linux/amd64,linux/s390x", "-t", &name, "--push"]).ok();
    let index = scene.document("multi", "1");
    let platforms: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!((index["mediaType"].as_str(), platforms), (Some(INDEX), vec!["amd64", "s390x"]));
    for arch in ["s390x", "amd64"] {
        scene.rbuild(&["rmi", "-f", &name]);
        scene.rbuild(&["pull", "--platform", &format!("linux/{arch}"), &name]).ok();
        let found = scene.rbuild(&["inspect", "-f", "{{.Architecture}}", &name]).ok().stdout;
        assert_eq!(found.trim(), arch);
    }
}

#[test]
fn two_concurrent_pulls_download_an_image_once() {
    let scene = Scene::with_image();
    let name = scene.name("busybox:1");
    scene.registry.fault("GET", "/blobs/", Fault::Stall(std::time::Duration::from_millis(500)), 9);
    std::thread::scope(|scope| {
        let pulls = [(), ()].map(|()| scope.spawn(|| scene.rbuild(&["pull", &name])));
        pulls.into_iter().for_each(|pull| drop(pull.join().unwrap().ok()));
    });
    let blobs = scene.registry.requests().iter().filter(|r| r.contains("/blobs/")).count();
    assert_eq!(blobs, 2, "the configuration and the layer");
}

#[test]
fn an_unreachable_registry_is_named_and_the_local_image_is_mentioned() {
    let scene = Scene::with_image();
    scene.lab.rbuild(["import", crate::lab::base("busybox.tar").to_str().unwrap(), "127.0.0.1:1/x:1"]).ok();
    let file = "FROM scratch\nCOPY --from=127.0.0.1:1/x:1 /bin /b\n";
    let ran = scene.build(file, &["--pull=always"]);
    let ran = ran.fails(1, &["could not check the registry for a newer `127.0.0.1:1/x:1`", "127.0.0.1:1", "refused"]);
    assert!(ran.stderr.contains("check the port") && ran.stderr.contains("--pull=missing"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("not found in the local store"), "{}", ran.stderr);
    scene.build(file, &[]).ok();
    // The name may be wrong, or the network.
    scene.build("FROM 127.0.0.1:1/x\n", &[]).fails(1, &["pulling it failed", "did you mean `127.0.0.1:1/x:1`?"]);
    let ran = scene.build("FROM 127.0.0.1:1/another\n", &[]).fails(1, &["pulling it failed", "check the port"]);
    assert!(!ran.stderr.contains("did you mean"), "{}", ran.stderr);
    let waits = |ran: &Ran| ran.stderr.matches("connection refused; trying again in ").count();
    assert_eq!(waits(&ran), 1, "{}", ran.stderr);
    let ran = scene.rbuild(&["login", "-u", "joe", "-p", "hunter2", "127.0.0.1:1"]);
    let ran = ran.fails(1, &["connection refused", "check the port"]);
    assert_eq!(waits(&ran), 0, "{}", ran.stderr);
    scene.build(&format!("FROM {}\n", scene.name("busybox:1")), &[]).ok();
    scene.build(&format!("FROM {}\n", scene.name("busybox:2")), &[]).fails(1, &["has no manifest 2", "did you mean"]);
}

#[test]
fn registry_messages_cannot_control_the_terminal() {
    let scene = Scene::new(Access::Open);
    let config = scene.registry.add_blob("x", b"{}");
    let kind = "application/\u{1b}[2Jodd\r";
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": kind, "digest": config.to_string(), "size": 2}});
    scene.registry.add_manifest("x", "1", MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    scene.registry.add_manifest("x", "2", MANIFEST, &serde_json::to_vec(&json!({"mediaType": kind})).unwrap());
    let platform = json!({"mediaType": MANIFEST, "digest": config.to_string(), "size": 2,
        "platform": {"os": "linux", "architecture": "\u{1b}]0;x\u{7}"}});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [platform]});
    scene.registry.add_manifest("x", "3", INDEX, &serde_json::to_vec(&index).unwrap());
    for tag in ["1", "2", "3"] {
        let name = scene.name(&format!("x:{tag}"));
        let ran = [scene.rbuild(&["pull", &name]), scene.build(&format!("FROM {name}\n"), &[])];
        for ran in ran {
            assert!(!ran.stderr.contains(['\u{1b}', '\r', '\u{7}']) && ran.code != Some(0), "{:?}", ran.stderr);
        }
    }
}

/// Returns the processes that descend from one, which is the first.
pub fn family(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
        at += 1;
    }
    found
}

#[test]
fn a_name_with_several_platforms_is_stored_listed_and_pushed() {
    let scene = Scene::new(Access::Open);
    scene.lab.write("file", "content");
    let (name, file) = (scene.name("multi:1"), "FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n");
    scene.build(file, &["--platform", "linux/s390x,linux/amd64", "-t", &name]).ok();
    let tree = scene.rbuild(&["images", "--tree"]).ok().stdout;
    let lines: Vec<&str> = tree.lines().collect();
    let begins = |at: usize, text: &str| lines[at].starts_with(text);
    assert!(
        lines.len() == 4 && begins(1, &name) && begins(2, "├─ linux/s390x") && begins(3, "└─ linux/amd64"),
        "{tree}"
    );
    // None of its images is removed, not even under another name.
    let copy = scene.name("team/copy:2");
    scene.rbuild(&["tag", &name, &copy]).ok();
    scene.rbuild(&["rmi", &name]).ok();
    scene.rbuild(&["prune", "-a"]).ok();
    scene.rbuild(&["fsck"]).ok();
    scene.rbuild(&["push", &copy]).ok();
    let index = scene.document("team/copy", "2");
    let arch = |m: &Value| m["platform"]["architecture"].as_str().unwrap().to_string();
    let platforms: Vec<String> = index["manifests"].as_array().unwrap().iter().map(arch).collect();
    assert_eq!(
        (index["mediaType"].as_str(), &platforms[..]),
        (Some(INDEX), &["s390x".to_string(), "amd64".into()][..])
    );
    // Each platform is found where it is required.
    for (platform, arch) in [("linux/s390x", "s390x"), ("linux/amd64", "amd64")] {
        let out = scene.lab.path(arch);
        let dest = format!("type=local,dest={}", out.display());
        scene.build(&format!("FROM --platform={platform} {copy}\nLABEL a=b\n"), &["-o", &dest]).ok();
        assert!(out.join(arch).exists(), "{platform}");
    }
    // An archive has all of them.
    let archive = scene.lab.path("layout");
    scene.rbuild(&["save", "--format", "oci", "-o", archive.to_str().unwrap(), &copy]).ok();
    let saved: Value = serde_json::from_slice(&std::fs::read(archive.join("index.json")).unwrap()).unwrap();
    assert_eq!(saved["manifests"][0]["mediaType"], INDEX);
    // An image that is named by its ID is pushed alone.
    let tree = scene.rbuild(&["images", "--tree"]).ok().stdout;
    let id = tree.lines().nth(2).unwrap().split_whitespace().nth(2).unwrap().to_string();
    scene.rbuild(&["push", &id, &scene.name("one:1")]).ok();
    assert_eq!(scene.document("one", "1")["mediaType"], MANIFEST);
    // A load or a pull of one platform takes the name from the others, and reports that once.
    let other = scene.name("team/other:1");
    scene.rbuild(&["tag", &copy, &other]).ok();
    let loaded = scene.rbuild(&["load", "--platform", "linux/s390x", "-i", archive.to_str().unwrap()]).ok();
    assert_eq!(loaded.stderr, format!("note: {copy} no longer has linux/amd64\n"));
    scene.rbuild(&["tag", &other, &copy]).ok();
    scene.rbuild(&["image-prune", "-f"]).ok();
    scene.rbuild(&["push", &other]).ok();
    let pulled = || scene.rbuild(&["pull", "--platform", "linux/s390x", &other]).ok().stderr;
    let note = format!("note: {other} no longer has linux/amd64\n");
    assert_eq!([pulled(), pulled()].map(|text| text.matches(&note).count()), [1, 0]);
    scene.rbuild(&["rmi", "-f", &other]).ok();
    // All of its images are removed with the last name.
    scene.rbuild(&["rmi", "-f", &copy]).ok();
    assert_eq!(scene.rbuild(&["images", "-q", "-a"]).ok().stdout, "");
}

#[test]
fn a_full_disk_fails_a_pull_and_the_next_one_succeeds() {
    let scene = Scene::new(Access::Open);
    let noise = (0..6u32 << 20).scan(1u32, |x, _| {
        *x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        Some((*x >> 24) as u8)
    });
    scene.lab.write("big", noise.collect::<Vec<u8>>());
    let name = scene.name("big:1");
    scene.build("FROM scratch\nCOPY big /\n", &["-t", &name, "--push"]).ok();
    scene.forget(&name);
    let script = format!(
        "mount -t tmpfs -o size=24m x $RBUILD_ROOT; fill=$RBUILD_ROOT/fill; export RBUILD_ROOT=$RBUILD_ROOT/store; \
         dd if=/dev/zero of=$fill bs=1M count=21 2>/dev/null; c=0; $RB pull {name} || c=$?; \
         ls -A $RBUILD_ROOT/tmp $RBUILD_ROOT/blobs/sha256; rm $fill; \
         $RB pull -q {name} && $RB fsck >/dev/null && echo whole; exit $c"
    );
    let ran = crate::errors::in_namespace(&scene.lab, &script);
    let ran = ran.fails(1, &["no space left on device", "rbuild prune"]);
    let lines: Vec<&str> = ran.stdout.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert_eq!(lines, [name.as_str(), "whole"], "left: {}", ran.stdout);
}
