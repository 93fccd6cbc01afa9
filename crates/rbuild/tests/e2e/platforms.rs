//! The platform of an image that is pulled, run or copied from.

use rbuild_image::Platform;

use crate::registries::Scene;

/// The name has a manifest, and no index.
#[test]
fn a_pull_of_a_single_image_for_another_platform_is_refused_each_time() {
    let scene = Scene::with_image();
    let (name, host) = (scene.name("busybox:1"), Platform::host());
    let wrong = format!("is for {host}, not for the requested linux/s390x");
    let refuse = || scene.rbuild(&["pull", "--platform", "linux/s390x", &name]).fails(1, &[&wrong]);
    let stored = || scene.rbuild(&["images", "-q", "-a"]).ok().stdout;
    for _ in 0..2 {
        refuse();
        assert_eq!(stored(), "");
    }
    // A build with FROM --platform pulls it, with a warning.
    let built = scene.build(&format!("FROM --platform=linux/s390x {name}\nLABEL a=b\n"), &["-o", "out"]).ok();
    assert!(built.stderr.contains(&wrong), "{}", built.stderr);
    refuse();
    scene.rbuild(&["pull", "--platform", &host.to_string(), &name]).ok();
    scene.rbuild(&["pull", &name]).ok();
    let before = stored();
    refuse();
    assert_eq!(stored(), before);
}

#[test]
fn the_default_platform_of_docker_replaces_a_missing_flag() {
    let scene = Scene::with_image();
    let host = Platform::host();
    let rbuild = |args: &[&str]| {
        let mut command = scene.lab.command(args.iter().copied());
        scene.lab.run_with(&mut command, &[("RBUILD_PULL", "missing"), ("DOCKER_DEFAULT_PLATFORM", "linux/s390x")])
    };
    scene.lab.write(&host.arch, "host");
    scene.lab.write("s390x", "foreign");
    let file = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n";
    scene.build(file, &["--platform", &format!("{host},linux/s390x"), "-t", "multi"]).ok();
    rbuild(&["build", "-t", "default"]).ok();
    rbuild(&["build", "--platform", &host.to_string(), "-t", "given"]).ok();
    rbuild(&["create", "--name", "of-default", "multi"]).ok();
    rbuild(&["create", "--name", "of-given", "--platform", &host.to_string(), "multi"]).ok();
    scene.rbuild(&["create", "--name", "of-host", "multi"]).ok();
    for (image, want) in [
        ("default", "foreign"),
        ("given", "host"),
        ("of-default", "foreign"),
        ("of-given", "host"),
        ("of-host", "host"),
    ] {
        let copied = scene.lab.path("copied");
        scene.rbuild(&["cp", &format!("{image}:/arch"), copied.to_str().unwrap()]).ok();
        assert_eq!(std::fs::read_to_string(copied).unwrap(), want, "{image}");
    }
    rbuild(&["run", "multi", "/arch"]).fails(126, &["the image is for linux/s390x"]);
    rbuild(&["run", "given"]).fails(125, &[&format!("`given` has no image for linux/s390x, only for {host}")]);
    let name = scene.name("busybox:1");
    rbuild(&["pull", &name]).fails(1, &[&format!("is for {host}, not for the requested linux/s390x")]);
    rbuild(&["pull", "--platform", &host.to_string(), &name]).ok();
}
