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
