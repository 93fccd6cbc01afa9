//! Pushes that end early cancel their uploads at the registry.

use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::pushes::noise;
use crate::registries::Scene;
use crate::registries::server::{Access, Fault};

/// A registry with a login, and an image with several layers.
fn scene() -> Scene {
    let scene = Scene::new(Access::Token("joe", "hunter2", 50));
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    for seed in 1..4 {
        scene.lab.write(&format!("small{seed}"), noise(seed, 20_000));
    }
    scene.build("FROM scratch\nCOPY small1 /\nCOPY small2 /\nCOPY small3 /\n", &["-t", "image", "."]).ok();
    scene.lab.write("big", noise(4, 10 << 20));
    scene
}

/// A command that is interrupted.
struct Transfer<'a> {
    scene: &'a Scene,
    child: Child,
}

impl Transfer<'_> {
    fn start<'a>(scene: &'a Scene, args: &[&str]) -> Transfer<'a> {
        scene.registry.requests();
        let mut command = scene.lab.signaled_command(args.iter().copied());
        command.env("HOME", scene.lab.path("home")).env("RBUILD_CREDS", "joe:hunter2").process_group(0);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(scene.lab.path("stderr")).unwrap());
        Transfer { scene, child: command.spawn().unwrap() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.scene.lab.path("stderr")).unwrap()
    }

    /// Waits for so many requests of a method for uploads.
    fn reach(&self, method: &str, count: usize) {
        let start = Instant::now();
        while self.requests(method) < count {
            assert!(start.elapsed().as_secs() < 30, "{}", self.stderr());
            sleep(Duration::from_millis(10));
        }
        sleep(Duration::from_millis(100));
    }

    /// Returns the number of requests of a method for uploads that have a login.
    fn requests(&self, method: &str) -> usize {
        let state = self.scene.registry.state();
        let is_one =
            |line: &&String| line.starts_with(method) && line.contains("/blobs/uploads/") && line.ends_with('+');
        state.log.iter().filter(is_one).count()
    }

    /// Waits for the end, less than 2 s after `since`. No process may be left.
    fn ends(&mut self, since: Instant, code: i32) {
        let ended = self.child.wait().unwrap();
        assert!(since.elapsed().as_millis() < 2000, "{:?}: {}", since.elapsed(), self.stderr());
        // A push ends by the signal itself, as shells expect it.
        let by_signal = ended.signal().map(|signal| 128 + signal);
        assert_eq!(ended.code().or(by_signal), Some(code), "{}", self.stderr());
        assert_eq!(killpg(self.pid(), None), Err(Errno::ESRCH), "a process is left");
    }
}

const STALLED: Fault = Fault::Stall(Duration::from_secs(4));

#[test]
fn an_interrupted_push_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        scene.registry.fault("PUT", "/blobs/uploads/", STALLED, 99);
        let mut push = Transfer::start(&scene, &["push", "image", &name]);
        push.reach("PUT", 4);
        assert!(scene.registry.open_uploads() >= 4);
        let since = Instant::now();
        kill(push.pid(), signal).unwrap();
        push.ends(since, 128 + signal as i32);
        assert!(push.stderr().ends_with("error: interrupted\n"), "{}", push.stderr());
        assert_eq!(scene.registry.open_uploads(), 0, "{signal}");
        assert!(push.requests("DELETE") >= 4);
        assert!(scene.registry.state().manifests.is_empty());
        scene.registry.behave();
    }
    // The registry does not answer. A second signal ends the push at once.
    for is_repeated in [false, true] {
        scene.registry.fault("PUT", "/blobs/uploads/", STALLED, 99);
        scene.registry.fault("DELETE", "/blobs/uploads/", STALLED, 99);
        let mut push = Transfer::start(&scene, &["push", "image", &name]);
        push.reach("PUT", 4);
        let since = Instant::now();
        kill(push.pid(), Signal::SIGINT).unwrap();
        if is_repeated {
            sleep(Duration::from_millis(300));
            kill(push.pid(), Signal::SIGINT).unwrap();
        }
        push.ends(since, 130);
        assert_eq!(since.elapsed().as_millis() < 1000, is_repeated, "{:?}", since.elapsed());
        scene.registry.behave();
        // Its uploads end after all.
        sleep(Duration::from_secs(4));
        scene.registry.forget_blobs();
    }
    assert!(scene.rbuild(&["push", "--creds", "joe:hunter2", "image", &name]).ok().stdout.contains("app@"));
}

/// The push after the build, and the one beside it; a signal for the launcher, and one for all of
/// its process group, as from a terminal.
#[test]
fn an_interrupted_build_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    let late = "FROM image\nCOPY small1 /again\n";
    let early = "FROM busybox\nCOPY big /\nRUN sleep 60\n";
    for (file, method, count, group) in
        [(late, "PUT", 5, false), (late, "PUT", 5, true), (early, "PATCH", 1, false), (early, "PATCH", 1, true)]
    {
        for answers in [true, false] {
            scene.registry.fault(method, "/blobs/uploads/", STALLED, 99);
            scene.lab.write("Dockerfile", file);
            let mut build = Transfer::start(&scene, &["build", "--no-cache", "-t", &name, "--push", "."]);
            build.reach(method, count);
            if !answers {
                scene.registry.fault("DELETE", "/blobs/uploads/", STALLED, 99);
            }
            let (since, checked) = (Instant::now(), build.requests("DELETE"));
            if group { killpg(build.pid(), Signal::SIGINT) } else { kill(build.pid(), Signal::SIGINT) }.unwrap();
            build.ends(since, 130);
            assert!(build.stderr().ends_with("error: interrupted\n"), "{}", build.stderr());
            assert!(build.requests("DELETE") >= checked + count, "{file}");
            if answers {
                assert_eq!(scene.registry.open_uploads(), 0, "{file}");
            } else {
                sleep(Duration::from_secs(4));
                scene.registry.forget_blobs();
            }
            assert!(scene.registry.state().manifests.is_empty());
            scene.registry.behave();
        }
    }
}

#[test]
fn a_failed_build_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    for answers in [true, false] {
        scene.registry.fault("PATCH", "/blobs/uploads/", Fault::Stall(Duration::from_secs(9)), 99);
        scene.lab.write("Dockerfile", "FROM busybox\nCOPY big /\nRUN sleep 12; false\n");
        let mut build = Transfer::start(&scene, &["build", "--no-cache", "-t", &name, "--push", "."]);
        build.reach("PATCH", 1);
        if !answers {
            scene.registry.fault("DELETE", "/blobs/uploads/", STALLED, 99);
        }
        while !build.stderr().contains("error: ") && build.child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(5));
        }
        build.ends(Instant::now(), 1);
        assert!(build.requests("DELETE") >= 2, "that of the check, and that of the upload");
        assert!(!answers || scene.registry.open_uploads() == 0);
        scene.registry.behave();
    }
}
