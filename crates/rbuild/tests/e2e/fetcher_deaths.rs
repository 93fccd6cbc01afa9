//! Builds whose fetcher is killed, as by the kernel when memory is short.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::registries::server::{Access, Fault};
use crate::registries::{Scene, family};

/// Builds with a cache whose registry is slow, and kills the fetcher that reads it. Returns the
/// exit code and the messages.
fn build_without_fetcher(scene: &Scene, from: &[&str]) -> (Option<i32>, String) {
    scene.registry.requests();
    let slow = Fault::Stall(Duration::from_secs(3));
    scene.registry.fault("GET", "/v2/app/manifests/", slow.clone(), 9);
    scene.registry.fault("HEAD", "/v2/app/manifests/", slow, 9);
    let errors = scene.lab.path("stderr");
    let flags = from.iter().flat_map(|cache| ["--cache-from", cache]);
    let mut command = scene.lab.command(["build", "-t", "x"].into_iter().chain(flags).chain(["."]));
    command.env("HOME", scene.lab.path("home")).stdout(Stdio::null());
    let mut launcher = command.stderr(std::fs::File::create(&errors).unwrap()).spawn().unwrap();
    let start = Instant::now();
    while scene.registry.state().log.is_empty() {
        assert!(start.elapsed().as_secs() < 30, "no request");
        sleep(Duration::from_millis(10));
    }
    let [_, fetcher] = family(launcher.id())[..] else { panic!("one fetcher") };
    kill(Pid::from_raw(fetcher as i32), Signal::SIGKILL).unwrap();
    let ended = launcher.wait().unwrap();
    scene.registry.behave();
    (ended.code(), std::fs::read_to_string(errors).unwrap())
}

#[test]
fn a_cache_that_a_killed_fetcher_read_is_missed() {
    let scene = Scene::new(Access::Open);
    scene.lab.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let cache = format!("type=registry,scope=a;b,ref={}", scene.name("app"));
    let (code, text) = build_without_fetcher(&scene, &[&cache]);
    assert_eq!(code, Some(0), "{text}");
    let cause = "the fetcher ended without an answer: it was killed (signal 9)";
    assert_eq!(text.matches("warning: --cache-from").count(), 1, "{text}");
    assert!(
        text.contains(&format!("--cache-from {cache}: cannot read the cache, so it is not used: {cause}")),
        "{text}"
    );
    let (code, text) = build_without_fetcher(&scene, &[&cache, &format!("{cache},required")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("error: --cache-from {cache},required: cannot read the cache: {cause}")), "{text}");
}
