//! Settings of registries: mirrors, headers and proxies of docker's configuration; and the URLs of
//! layers that must not be distributed.

use rbuild_image::BlobDigest;
use serde_json::{Value, json};

use crate::registries::Scene;
use crate::registries::server::{Access, Fault, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

/// Writes a file below the home directory.
fn write_home(scene: &Scene, path: &str, text: &str) {
    let path = scene.lab.path("home").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Starts another registry with the same content.
fn copy_of_registry(scene: &Scene) -> Registry {
    let mirror = Registry::start(Access::Open);
    let (blobs, manifests) = {
        let state = scene.registry.state();
        (state.blobs.clone(), state.manifests.clone())
    };
    {
        let mut state = mirror.state();
        (state.blobs, state.manifests) = (blobs, manifests);
    }
    mirror
}

/// Starts a mirror of the registry in `registries.conf`.
fn mirror(scene: &Scene) -> Registry {
    let mirror = copy_of_registry(scene);
    let (own, other) = (&scene.registry.address, &mirror.address);
    let conf = format!("[[registry]]\nlocation = \"{own}\"\n[[registry.mirror]]\nlocation = \"{other}\"\n");
    write_home(scene, ".config/containers/registries.conf", &conf);
    mirror
}

fn blob_requests(registry: &Registry) -> usize {
    registry.requests().iter().filter(|request| request.contains("/blobs/")).count()
}

#[test]
fn a_mirror_that_sends_wrong_blobs_is_replaced_by_the_registry() {
    let scene = Scene::with_image();
    let (name, mirror) = (scene.name("busybox:1"), mirror(&scene));
    mirror.fault("GET", "/blobs/", Fault::Flip, 99);
    scene.rbuild(&["pull", &name]).ok();
    // The configuration and the layer, each twice from the mirror.
    assert_eq!((blob_requests(&mirror), blob_requests(&scene.registry)), (4, 2));
    scene.forget(&name);
    scene.build(&format!("FROM {name}\nRUN test -x /bin/busybox\n"), &[]).ok();
    assert_eq!((blob_requests(&mirror), blob_requests(&scene.registry)), (4, 2));
    // If the registry does the same, it is the one that is reported.
    scene.forget(&name);
    scene.registry.fault("GET", "/blobs/", Fault::Flip, 99);
    let wrong = format!("{} sent the blob", scene.registry.address);
    scene.rbuild(&["pull", &name]).fails(1, &[&wrong, "with the wrong digest"]);
    // A mirror without the blob does not hide that.
    mirror.state().blobs.clear();
    scene.rbuild(&["pull", &name]).fails(1, &[&wrong, "with the wrong digest"]);
}

#[test]
fn the_configuration_file_has_settings_of_registries() {
    let scene = Scene::with_image();
    let (name, unused, mirror) = (scene.name("busybox:1"), mirror(&scene), copy_of_registry(&scene));
    let (own, other) = (&scene.registry.address, &mirror.address);
    let configure = |text: &str| write_home(&scene, ".config/rbuild/config.toml", text);
    let settings =
        format!("[registry.\"{own}\"]\nmirrors = [\"{other}\"]\n[registry.\"{other}\"]\nplain-http = true\n");
    configure(&settings);
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!([&mirror, &scene.registry, &unused].map(blob_requests), [2, 0, 0]);
    scene.forget(&name);
    scene.build(&format!("FROM {name}\nRUN test -x /bin/busybox\n"), &[]).ok();
    assert_eq!([&mirror, &scene.registry, &unused].map(blob_requests), [2, 0, 0]);
    // An empty list replaces the mirrors of other files, too.
    scene.forget(&name);
    mirror.requests();
    configure(&format!("[registry.\"{own}\"]\nmirrors = []\n"));
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!([&mirror, &scene.registry, &unused].map(blob_requests), [0, 2, 0]);
    configure(&settings);
    // Mirrors are for pulls. A base image on another registry does not change that.
    scene.build(&format!("FROM {name}\nLABEL a=b\n"), &["-t", &scene.name("app:1"), "--push"]).ok();
    assert!(mirror.requests().iter().all(|request| !request.contains("app")));
    configure("[registry.\"a.io\"]\ninsecure = 1\n");
    let wrong = ["config.toml`: registry.\"a.io\".insecure = 1: neither true nor false", "write true or false"];
    scene.rbuild(&["pull", &name]).fails(2, &wrong);
    // The check of the machine does not depend on it.
    let doctor = scene.rbuild(&["doctor"]).ok();
    assert!(wrong.iter().all(|text| doctor.stderr.contains(text)), "{}", doctor.stderr);
    assert!(doctor.stdout.contains("kernel:"), "{}", doctor.stdout);
}

#[test]
fn the_number_of_connections_is_a_setting() {
    let scene = Scene::new(Access::Open);
    let file = "FROM scratch\nCOPY a /\nCOPY b /\nCOPY c /\nCOPY d /\n";
    for name in ["a", "b", "c", "d"] {
        scene.lab.write(name, name);
    }
    let most = |tag: &str| {
        let name = scene.name(&format!("x:{tag}"));
        scene.build(file, &["-t", &name]).ok();
        scene.registry.state().most_open = 0;
        scene.registry.fault("POST", "/uploads/", Fault::Stall(std::time::Duration::from_millis(300)), 9);
        scene.rbuild(&["push", &name]).ok();
        scene.registry.behave();
        scene.registry.state().most_open
    };
    assert!(most("1") > 1);
    let text = format!("[registry.\"{}\"]\nconnections = 1\n", scene.registry.address);
    write_home(&scene, ".config/rbuild/config.toml", &text);
    scene.registry.state().manifests.clear();
    scene.registry.state().blobs.clear();
    assert_eq!(most("2"), 1);
}

#[test]
fn layers_that_must_not_be_distributed_come_from_their_urls() {
    let scene = Scene::with_image();
    let (name, other) = (scene.name("busybox:1"), Registry::start(Access::Open));
    let mut manifest = scene.document("busybox", "1");
    let digest: BlobDigest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let key = ("busybox".to_string(), digest);
    let bytes = scene.registry.state().blobs[&key].clone();
    other.add_blob("layers", &bytes);
    let url = |repository: &str| format!("http://{}/v2/{repository}/blobs/{digest}?sig=hunter2", other.address);
    let login = url("layers").replace("http://", "http://joe:hunter2@");
    manifest["layers"][0]["urls"] = json!([login, url("nosuch"), url("layers")]);
    let publish = |manifest: &Value| {
        scene.registry.add_manifest("busybox", "1", MANIFEST, &serde_json::to_vec(manifest).unwrap());
        scene.registry.requests();
        other.requests();
    };
    // Those of other layers are ignored.
    publish(&manifest);
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!(other.requests(), Vec::<String>::new());
    scene.forget(&name);
    manifest["layers"][0]["mediaType"] = json!(FOREIGN);
    publish(&manifest);
    let pulled = scene.rbuild(&["-D", "pull", &name]).ok();
    assert!(!pulled.stderr.contains("hunter2"), "{}", pulled.stderr);
    assert_eq!(other.requests(), ["nosuch", "layers"].map(|r| format!("GET /v2/{r}/blobs/{digest}")));
    assert_eq!(blob_requests(&scene.registry), 1, "the configuration");
    scene.build(&format!("FROM {name}\nRUN test -x /bin/busybox\n"), &[]).ok();
    // Other registries get them on request only.
    let (has_layer, copy) =
        (|| scene.registry.state().blobs.contains_key(&("copy".into(), digest)), scene.name("copy:1"));
    for flags in [&[][..], &["--allow-nondistributable-artifacts"]] {
        scene.registry.state().manifests.retain(|(repository, _), _| repository != "copy");
        scene.rbuild(&[&["push", &name, &copy], flags].concat()).ok();
        assert_eq!((scene.document("copy", "1"), has_layer()), (manifest.clone(), !flags.is_empty()), "{flags:?}");
    }
    let built = scene.name("built:1");
    scene.build(&format!("FROM {name}\nLABEL a=b\n"), &["-t", &built, "--push"]).ok();
    assert!(!scene.registry.state().blobs.contains_key(&("built".into(), digest)), "a build does not push it");
    for (value, is_pushed) in [("true", false), ("false", true)] {
        let output = format!("type=registry,name={built},prefer-nondist-layers={value}");
        scene.build(&format!("FROM {name}\nLABEL a=b\n"), &["-o", &output]).ok();
        let layer = &scene.document("built", "1")["layers"][0];
        let foreign = (layer["mediaType"] == FOREIGN, layer.get("urls").is_some());
        assert_eq!(foreign, (!is_pushed, !is_pushed), "{layer}");
        assert_eq!(scene.registry.state().blobs.contains_key(&("built".into(), digest)), is_pushed);
    }
    scene.forget(&built);
    // The registry is asked if the others fail, or send other bytes.
    for fault in [Fault::Flip, Fault::Cut(10), Fault::Status(503, None)] {
        scene.forget(&name);
        other.fault("GET", "/blobs/", fault.clone(), 99);
        scene.rbuild(&["pull", &name]).ok();
        assert_eq!((blob_requests(&other), blob_requests(&scene.registry)), (2, 2), "{fault:?}");
        other.behave();
    }
}

#[test]
fn headers_of_docker_are_sent_to_the_registry_and_not_to_its_mirror() {
    let scene = Scene::with_image();
    let (name, mirror) = (scene.name("busybox:1"), mirror(&scene));
    let config = r#"{"HttpHeaders": {"X-Meta-Test": "hunter2", "Authorization": "Basic am9lOmh1bnRlcjI="}}"#;
    write_home(&scene, ".docker/config.json", config);
    mirror.fault("GET", "/blobs/", Fault::Status(404, None), 99);
    let mut command = scene.lab.command(["-D", "pull", &name]);
    let home = scene.lab.path("home");
    let env = [("HOME", home.to_str().unwrap()), ("RBUILD_LOG", "trace"), ("RBUILD_DEBUG_LOG", "log.json")];
    let ran = scene.lab.run_with(&mut command, &env).ok();
    let log = std::fs::read_to_string(scene.lab.ctx().join("log.json")).unwrap();
    assert!(!(log + &ran.stderr).contains("hunter2"), "the value may be a credential");
    assert_eq!(
        (&scene.registry.state().meta[..], mirror.state().meta.len()),
        (&["hunter2"; 2].map(String::from)[..], 0)
    );
    assert!(scene.registry.requests().iter().all(|request| !request.ends_with('+')), "no login");
    write_home(&scene, ".docker/config.json", r#"{"HttpHeaders": {"X-Meta-Test": 1}}"#);
    scene.rbuild(&["pull", &name]).fails(1, &["config.json`: line 1: the file has invalid settings"]);
}

#[test]
fn proxies_of_docker_are_build_arguments() {
    let scene = Scene::new(Access::Open);
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let config = r#"{"proxies": {"default": {"httpProxy": "http://joe:hunter2@p:1", "noProxy": "a.io"}}}"#;
    write_home(&scene, ".docker/config.json", config);
    let shown = |args: &[&str]| {
        let run = "RUN echo \"[$HTTP_PROXY $http_proxy $NO_PROXY $https_proxy]\" > /proxies";
        let out = scene.lab.path("out");
        let args = [args, &["--no-cache", "-o", out.to_str().unwrap(), "."]].concat();
        scene.build(&format!("FROM busybox\n{run}\n"), &args).ok();
        std::fs::read_to_string(out.join("proxies")).unwrap()
    };
    assert_eq!(shown(&[]), "[http://joe:hunter2@p:1 http://joe:hunter2@p:1 a.io ]\n");
    assert_eq!(shown(&["--build-arg", "HTTP_PROXY=http://q:1"]), "[http://q:1 http://q:1 a.io ]\n");
    // They are neither in the image nor in the key of a step.
    let file = "FROM busybox\nRUN echo x > /x\n";
    let built = scene.build(file, &["-t", "a"]).ok();
    assert!(!built.stderr.contains("hunter2"), "{}", built.stderr);
    let documents =
        scene.rbuild(&["inspect", "a"]).ok().stdout + &scene.rbuild(&["history", "--no-trunc", "a"]).ok().stdout;
    assert!(!documents.contains("hunter2") && !documents.contains("a.io"), "{documents}");
    write_home(&scene, ".docker/config.json", "{}");
    assert_eq!(scene.build(file, &["-t", "a"]).ok().steps(), (0, 1));
}

/// Commands of containers get them as well. They are not recorded, because they may contain logins.
#[test]
fn proxies_of_docker_are_variables_of_containers() {
    let scene = Scene::new(Access::Open);
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let config = r#"{"proxies": {"default": {"httpProxy": "http://joe:hunter2@p:1", "noProxy": "a.io"}}}"#;
    write_home(&scene, ".docker/config.json", config);
    let shown = ["sh", "-c", "echo \"[$HTTP_PROXY $http_proxy $NO_PROXY $https_proxy]\""];
    let ran = |args: &[&str]| scene.rbuild(&[args, &shown].concat()).ok().stdout;
    // The output of a command is kept, like that of others, until the container is removed.
    assert_eq!(ran(&["run", "--rm", "busybox"]), "[http://joe:hunter2@p:1 http://joe:hunter2@p:1 a.io ]\n");
    assert_eq!(ran(&["run", "-e", "http_proxy=q", "busybox"]), "[ q a.io ]\n");
    scene.rbuild(&["run", "-d", "--name", "c", "busybox", "sleep", "60"]).ok();
    assert_eq!(ran(&["exec", "c"]), "[http://joe:hunter2@p:1 http://joe:hunter2@p:1 a.io ]\n");
    let inspected = scene.rbuild(&["inspect", "c"]).ok().stdout;
    assert!(!inspected.contains("hunter2"), "{inspected}");
    assert_eq!(scene.lab.sh(r#"grep -rl hunter2 "$LAB/store""#).stdout, "", "files of the store");
    scene.rbuild(&["rm", "-f", "c"]).ok();
}

#[test]
fn short_names_have_the_meaning_of_podman_on_request() {
    let scene = Scene::with_image();
    let full = scene.name("busybox");
    let conf = format!("unqualified-search-registries = [\"a.example\", \"b.example\"]\n[aliases]\nbox = \"{full}\"\n");
    write_home(&scene, ".config/containers/registries.conf", &conf);
    let home = scene.lab.path("home");
    let rbuild = |args: &[&str], mode: &str| {
        let mut command = scene.lab.command(args.iter().copied());
        let env = [("RBUILD_PULL", "missing"), ("HOME", home.to_str().unwrap()), ("RBUILD_SHORT_NAMES", mode)];
        scene.lab.run_with(&mut command, &env)
    };
    scene.lab.write("Dockerfile", "FROM box:1\nRUN test -x /bin/busybox\n");
    rbuild(&["build", "."], "podman").ok();
    let listed = scene.rbuild(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().stdout;
    assert!(listed.contains(&format!("{full}:1\n")), "{listed}");
    scene.registry.requests();
    rbuild(&["build", "--no-cache", "."], "podman").ok();
    assert!(scene.registry.requests().is_empty(), "the store has the image");
    scene.forget(&format!("{full}:1"));
    assert_eq!(rbuild(&["pull", "-q", "box:1"], "podman").ok().stdout, format!("{full}:1\n"));
    // Other commands find the image by the same short name.
    for (args, code) in [
        (&["inspect", "box:1"][..], 1),
        (&["create", "--pull=never", "box:1"], 1),
        (&["run", "--pull=never", "box:1", "true"], 125),
        (&["tag", "box:1", "x"], 1),
    ] {
        rbuild(args, "podman").ok();
        rbuild(args, "docker").fails(code, &["box:1"]);
    }
    rbuild(&["push", "-q", "box:1"], "podman").ok();
    scene.rbuild(&["container", "prune", "-f"]).ok();
    rbuild(&["rmi", "box:1"], "podman").ok();
    rbuild(&["rmi", "box:1"], "podman").fails(1, &["box:1"]);
    rbuild(&["pull", "-q", "box:1"], "podman").ok();
    // An image of the store comes first.
    scene.rbuild(&["tag", &format!("{full}:1"), "other"]).ok();
    scene.lab.write("Dockerfile", "FROM other\n");
    rbuild(&["build", "."], "podman").ok();
    let ambiguous = [
        "the short name `nosuch` is ambiguous: a.example/nosuch, b.example/nosuch",
        "write the name with its registry",
    ];
    rbuild(&["pull", "nosuch"], "podman").fails(1, &ambiguous);
    scene.lab.write("Dockerfile", "FROM nosuch\n");
    rbuild(&["build", "."], "podman").fails(1, &ambiguous);
    let unknown = ["RBUILD_SHORT_NAMES: `other` is neither docker nor podman", "hint: use docker or podman"];
    for args in [&["build", "."][..], &["pull", "nosuch"]] {
        rbuild(args, "other").fails(2, &unknown);
    }
}

#[test]
fn a_login_is_used_where_the_settings_lead() {
    let scene = Scene::new(Access::Basic("joe", "hunter2"));
    let location = format!("[[registry]]\nprefix = \"reg.example\"\nlocation = \"{}\"\n", scene.registry.address);
    write_home(&scene, ".config/containers/registries.conf", &location);
    let name = "reg.example/busybox:1";
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), name]).ok();
    scene.rbuild(&["push", name]).fails(1, &["no login for", "rbuild login reg.example"]);
    let log_in = || scene.rbuild(&["login", "-u", "joe", "-p", "hunter2", "reg.example"]).ok();
    assert!(!log_in().stderr.contains("takes precedence"));
    scene.rbuild(&["push", name]).ok();
    // A file that is read earlier than the one that logins are written to.
    let other = format!(r#"{{"auths":{{"{}":{{"username":"joe","password":"old"}}}}}}"#, scene.registry.address);
    write_home(&scene, "containers/auth.json", &other);
    let warning = log_in().stderr;
    assert!(warning.contains("containers/auth.json, which takes precedence"), "{warning}");
    scene.rbuild(&["push", name]).fails(1, &["as joe, with the login of", "containers/auth.json"]);
    scene.rbuild(&["logout", "reg.example"]).ok();
    scene.rbuild(&["push", name]).fails(1, &["no login for"]);
}
