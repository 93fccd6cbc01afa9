//! The layers of base images that a build downloads: only those that it needs.

use crate::lab::Ran;
use crate::pulls::{copy_all, digest_of_layer, scene};
use crate::registries::Scene;
use crate::registries::server::{Access, Fault, Registry};

#[test]
fn a_cached_build_downloads_no_layer() {
    let (scene, name) = scene();
    let out = format!("type=local,dest={}", scene.lab.path("out").display());
    let build = || -> Ran { scene.build(&copy_all(&name), &["-o", &out, "."]).ok() };
    build();
    scene.rbuild(&["rmi", "-f", &name]).ok();
    scene.registry.requests();
    build();
    let requests = scene.registry.requests();
    let blobs: Vec<&String> = requests.iter().filter(|r| r.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 1, "the configuration: {requests:?}");
    assert_eq!(scene.lab.read("out/first"), "f");
}

/// Only images whose files a step or an output reads, or whose layers the result must contain, are
/// downloaded.
#[test]
fn a_build_downloads_only_the_images_that_it_needs() {
    let (scene, name) = scene();
    let blobs = || -> usize { scene.registry.requests().iter().filter(|r| is_layer_download(&scene, r)).count() };
    let out = format!("type=local,dest={}", scene.lab.path("out").display());
    let (app, other) = (scene.name("team/app:1"), scene.name("base:2"));
    // A stage of which everything is cached. Only the last step runs.
    let staged = |text: &str| {
        scene.lab.write("x", text);
        scene.build(
            &format!("FROM {name} AS a\nCOPY small /y\nFROM scratch\nCOPY --from=a /y /\nCOPY x /\n"),
            &["-o", &out, "."],
        )
    };
    staged("1").ok();
    scene.rbuild(&["rmi", "-f", &name]).ok();
    scene.rbuild(&["image-prune", "-f"]).ok();
    blobs();
    assert_eq!(staged("2").ok().steps(), (1, 2));
    assert_eq!((blobs(), scene.lab.read("out/x"), scene.lab.read("out/y")), (0, "2".into(), "s".into()));
    // The layers of a base whose files nothing reads stay in the registry of an image that is only
    // pushed.
    let linked = format!("FROM {name}\nCOPY --link x /\nENV A=b\n");
    for (file, to, layers) in [(&linked, &app, 3), (&linked, &other, 3), (&format!("FROM {name}\nENV A=c\n"), &app, 2)]
    {
        scene.forget(&name);
        let ran = scene.build(file, &["-t", to, "--push", "."]).ok();
        assert!(ran.stderr.contains("is in the registry only"), "{}", ran.stderr);
        assert_eq!(blobs(), 0, "{file}");
        let (path, tag) = to.strip_prefix(&scene.name("")).unwrap().split_once(':').unwrap();
        assert_eq!(scene.document(path, tag)["layers"].as_array().unwrap().len(), layers);
        assert_eq!(scene.rbuild(&["images", "-q"]).ok().stdout, "");
        scene.rbuild(&["fsck"]).ok();
        scene.rbuild(&["pull", to]).ok();
        assert_eq!(blobs(), 2);
        scene.rbuild(&["rmi", "-f", to]).ok();
    }
    // A name that an earlier image has here refers to the new one, in the registry.
    scene.forget(&name);
    scene.build("FROM scratch\nCOPY x /\n", &["-q", "-t", &app, "."]).ok();
    assert!(scene.build(&linked, &["-t", &app, "--push", "."]).ok().stderr.contains("is in the registry only"));
    assert_eq!(scene.rbuild(&["images", "-q", &app]).ok().stdout, "");
    let pulled = scene.build(&format!("FROM {app}\nENV C=d\n"), &["-q", "-t", "on", "."]).ok();
    assert_eq!(pulled.code, Some(0));
    assert!(scene.rbuild(&["inspect", "-f", "{{.Config.Env}}", "on"]).ok().stdout.contains("A=b C=d"));
    scene.rbuild(&["rmi", "-f", &app, "on"]).ok();
    scene.rbuild(&["image-prune", "-f"]).ok();
    blobs();
    // Other outputs, and steps that read the files, need them.
    for (file, options) in [
        (linked.clone(), vec!["-o", &out]),
        (linked.clone(), vec!["-t", "kept"]),
        (format!("FROM {name}\nCOPY --link x /\nWORKDIR /w\n"), vec!["-t", &app, "--push"]),
    ] {
        scene.forget(&name);
        scene.build(&file, &[&options[..], &["."]].concat()).ok();
        assert_eq!(blobs(), 2, "{options:?}");
        scene.rbuild(&["fsck"]).ok();
        scene.rbuild(&["rmi", "-f", "kept", &app]);
    }
    assert_eq!(scene.lab.read("out/first"), "f");
    // Another registry is sent the layers. If that fails, they are downloaded first.
    let elsewhere = Registry::start(Access::Open);
    let (there, digest) = (format!("{}/app:1", elsewhere.address), digest_of_layer(&scene, 1));
    for fails in [false, true] {
        scene.forget(&name);
        elsewhere.state().blobs.clear();
        elsewhere.state().manifests.clear();
        if fails {
            scene.registry.fault("GET", &digest, Fault::Status(404, None), 1);
        }
        let ran = scene.build(&linked, &["-t", &there, "--push", "."]).ok();
        let note = "note: the layers in registries are downloaded, because the push failed";
        assert_eq!(
            (ran.stderr.contains(note), ran.stderr.contains("registry only")),
            (fails, !fails),
            "{}",
            ran.stderr
        );
        assert_eq!(elsewhere.state().blobs.len(), 4, "three layers and the configuration");
        scene.rbuild(&["rmi", "-f", &there]);
    }
}

fn is_layer_download(scene: &Scene, request: &str) -> bool {
    request.starts_with("GET") && [0, 1].iter().any(|at| request.contains(&digest_of_layer(scene, *at)))
}

#[test]
fn images_of_one_build_download_a_shared_layer_once() {
    let (scene, name) = scene();
    let other = scene.name("other:1");
    scene.build(&format!("FROM {name}\nCOPY small /more\n"), &["-t", &other, "--push", "."]).ok();
    scene.forget(&other);
    scene.forget(&name);
    scene.registry.state().log.clear();
    let file = format!("FROM {name} AS base\nFROM {other}\nCOPY --from=base /small /again\n");
    scene.build(&file, &["-o", &format!("type=local,dest={}", scene.lab.path("out").display()), "."]).ok();
    for layer in [0, 1] {
        let digest = digest_of_layer(&scene, layer);
        let is_download = |r: &&String| r.starts_with("GET") && r.contains(&digest);
        assert_eq!(scene.registry.state().log.iter().filter(is_download).count(), 1, "layer {layer}");
    }
}

/// The result of such a build contains the layers of its base.
#[test]
fn an_image_is_never_made_without_the_layers_of_its_base() {
    let (scene, name) = scene();
    for removal in ["rmi", "image-prune"] {
        let build = || scene.build(&format!("FROM {name}\nLABEL a=b\n"), &["-t", "app", "."]).ok();
        build();
        scene.rbuild(&["rmi", "-f", &name, "app"]).ok();
        if removal == "image-prune" {
            scene.rbuild(&["image-prune", "-f"]).ok();
        }
        build();
        scene.rbuild(&["fsck"]).ok();
        let archive = scene.lab.path(&format!("{removal}.tar"));
        scene.rbuild(&["save", "-o", archive.to_str().unwrap(), "app"]).ok();
        scene.rbuild(&["rmi", "-f", "app"]).ok();
    }
}
