//! Pulls of `run` and `create`.

use crate::registries::Scene;
use crate::registries::server::Access;

#[test]
fn run_and_create_pull_missing_images() {
    let scene = Scene::with_image();
    let name = scene.name("busybox:1");
    let ran = scene.rbuild(&["run", &name, "echo", "--creds", "a:b"]).ok();
    assert_eq!(ran.stdout, "--creds a:b\n");
    assert!(ran.stderr.contains(&format!("pulling {name}\n")), "{}", ran.stderr);
    assert_eq!(scene.registry.requests().len(), 3, "manifest, configuration, layer");
    // The image is in the store.
    scene.rbuild(&["run", &name, "true"]).ok();
    scene.rbuild(&["run", "--pull", "never", &name, "true"]).ok();
    assert!(scene.registry.requests().is_empty());
    let again = scene.rbuild(&["run", "--pull=always", "-q", &name, "true"]).ok();
    assert_eq!(
        (again.stderr.as_str(), &scene.registry.requests()[..]),
        ("", &["HEAD /v2/busybox/manifests/1".into()][..])
    );
    scene.forget(&name);
    // As in docker, the failures of `run` have another code than its command.
    let verbs = [("run", 125), ("create", 1)];
    for (verb, code) in verbs {
        let never = ["not found in the local store", &format!("rbuild pull {name}")];
        scene.rbuild(&[verb, "--pull=never", &name, "true"]).fails(code, &never);
    }
    assert!(scene.registry.requests().is_empty());
    let created = scene.rbuild(&["create", "-q", &name]).ok();
    assert_eq!((created.stdout.len(), created.stderr.as_str()), (65, ""), "the ID and nothing else");
    let absent = scene.name("busybox:2");
    let failed = format!("image `{absent}` not found in the local store, and pulling it failed");
    for (verb, code) in verbs {
        scene.rbuild(&[verb, &absent, "true"]).fails(code, &[&failed, "did you mean"]);
    }
}

#[test]
fn run_logs_in_for_a_pull_and_the_command_gets_no_login() {
    let scene = Scene::new(Access::Basic("joe", "hunter2"));
    let name = scene.name("busybox:1");
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), &name]).ok();
    scene.rbuild(&["push", "--creds", "joe:hunter2", &name]).ok();
    scene.forget(&name);
    scene.rbuild(&["run", &name, "true"]).fails(125, &["pulling it failed", "rbuild login"]);
    let command = ["sh", "-c", "echo \"$1\"; cat /proc/self/environ", "x", "--creds=a:b"];
    let ran = scene.rbuild(&[&["run", "--creds", "joe:hunter2", &name][..], &command].concat()).ok();
    assert!(ran.stdout.starts_with("--creds=a:b\n") && !ran.stdout.contains("hunter2"), "{}", ran.stdout);
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
}
