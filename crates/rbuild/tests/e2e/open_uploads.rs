//! Pushes that end early cancel their uploads at the registry. As Docker's, it knows an upload only
//! by the location in its last answer.

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
    scene.lab.write("huge", noise(5, 12 << 20));
    scene.build("FROM scratch\nCOPY big /\nCOPY huge /\n", &["-t", "large", "."]).ok();
    scene
}

/// A command that is interrupted.
struct Transfer<'a> {
    scene: &'a Scene,
    child: Child,
}

impl Transfer<'_> {
    fn start<'a>(scene: &'a Scene, args: &[&str]) -> Transfer<'a> {
        Transfer::start_with(scene, args, &[("RBUILD_CREDS", "joe:hunter2")])
    }

    fn start_with<'a>(scene: &'a Scene, args: &[&str], variables: &[(&str, &str)]) -> Transfer<'a> {
        scene.registry.requests();
        let mut command = scene.lab.signaled_command(args.iter().copied());
        command.env("HOME", scene.lab.path("home")).envs(variables.iter().copied()).process_group(0);
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

    /// Waits for the end, while the registry reads what has been sent. It comes less than 2 s after
    /// `since`, and later on a busy machine. No process may be left.
    fn ends(&mut self, since: Instant, code: i32) {
        self.scene.registry.state().pause = Duration::ZERO;
        let ended = self.child.wait().unwrap();
        assert!(since.elapsed().as_millis() < 4000, "{:?}: {}", since.elapsed(), self.stderr());
        // A push ends by the signal itself, as shells expect it.
        let by_signal = ended.signal().map(|signal| 128 + signal);
        assert_eq!(ended.code().or(by_signal), Some(code), "{}", self.stderr());
        let start = Instant::now();
        while killpg(self.pid(), None) != Err(Errno::ESRCH) {
            assert!(start.elapsed().as_secs() < 2, "a process is left");
            sleep(Duration::from_millis(10));
        }
    }
}

const STALLED: Fault = Fault::Stall(Duration::from_secs(4));
/// Pause of the registry before each 16 KiB: it reads a large layer for more than 12 s.
const SLOW: Duration = Duration::from_millis(20);

#[test]
fn an_interrupted_push_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        scene.registry.state().pause = SLOW;
        let mut push = Transfer::start(&scene, &["push", "large", &name]);
        push.reach("PATCH", 2);
        assert!(scene.registry.open_uploads() >= 2);
        let since = Instant::now();
        kill(push.pid(), signal).unwrap();
        push.ends(since, 128 + signal as i32);
        assert!(push.stderr().ends_with("error: interrupted\n"), "{}", push.stderr());
        assert_eq!(scene.registry.open_uploads(), 0, "{signal}");
        assert!(push.requests("DELETE") >= 2);
        assert!(scene.registry.state().manifests.is_empty());
        scene.registry.behave();
    }
    // The registry does not answer. A second signal ends the push at once.
    for is_repeated in [false, true] {
        scene.registry.state().pause = SLOW;
        scene.registry.fault("DELETE", "/blobs/uploads/", STALLED, 99);
        let mut push = Transfer::start(&scene, &["push", "large", &name]);
        push.reach("PATCH", 2);
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
    assert!(scene.rbuild(&["push", "--creds", "joe:hunter2", "large", &name]).ok().stdout.contains("app@"));
}

/// An upload is not canceled while the registry works on a request for it.
#[test]
fn a_registry_is_not_told_to_cancel_uploads_that_it_completes() {
    let scene = scene();
    let name = scene.name("app:1");
    scene.registry.fault("PUT", "/blobs/uploads/", STALLED, 99);
    let mut push = Transfer::start(&scene, &["push", "image", &name]);
    push.reach("PUT", 4);
    let since = Instant::now();
    kill(push.pid(), Signal::SIGINT).unwrap();
    push.ends(since, 130);
    assert_eq!(push.requests("DELETE"), 0);
    sleep(Duration::from_secs(4));
    assert_eq!(scene.registry.open_uploads(), 0);
}

/// The push after the build, and the one beside it; a signal for the launcher, and one for all of
/// its process group, as from a terminal.
#[test]
fn an_interrupted_build_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    let late = "FROM large\nCOPY small1 /again\n";
    let early = "FROM busybox\nCOPY big /\nRUN sleep 60\n";
    for (file, count, group) in [(late, 2, false), (late, 2, true), (early, 1, false), (early, 1, true)] {
        for answers in [true, false] {
            let interrupt = || {
                scene.registry.state().pause = SLOW;
                scene.lab.write("Dockerfile", file);
                let mut build = Transfer::start(&scene, &["build", "--no-cache", "-t", &name, "--push", "."]);
                build.reach("PATCH", count);
                if !answers {
                    scene.registry.fault("DELETE", "/blobs/uploads/", STALLED, 99);
                }
                let (since, checked) = (Instant::now(), build.requests("DELETE"));
                if group { killpg(build.pid(), Signal::SIGINT) } else { kill(build.pid(), Signal::SIGINT) }.unwrap();
                build.ends(since, 130);
                assert!(build.stderr().ends_with("error: interrupted\n"), "{}", build.stderr());
                assert!(scene.registry.state().manifests.is_empty());
                let is_canceled = build.requests("DELETE") >= checked + count;
                if !answers {
                    sleep(Duration::from_secs(4));
                    scene.registry.forget_blobs();
                }
                let is_clean = scene.registry.open_uploads() == 0;
                scene.registry.forget_blobs();
                scene.registry.behave();
                is_canceled && is_clean
            };
            // On a busy machine, the time for it may not suffice.
            assert!((0..3).any(|_| interrupt()), "{file}: {answers}");
        }
    }
}

#[test]
fn a_failed_build_cancels_its_uploads() {
    let scene = scene();
    let name = scene.name("app:1");
    for answers in [true, false] {
        scene.registry.state().pause = SLOW;
        scene.lab.write("Dockerfile", "FROM busybox\nCOPY big /\nRUN sleep 4; false\n");
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

/// A program for credentials receives Ctrl-C, too. Its end is not the error of the push; and it
/// does not outlive the push.
#[test]
fn an_interrupted_push_ends_credential_helpers() {
    use std::os::unix::fs::PermissionsExt;
    let scene = scene();
    let (name, home) = (scene.name("app:1"), scene.lab.path("home"));
    std::fs::create_dir_all(home.join(".docker")).unwrap();
    std::fs::write(home.join(".docker/config.json"), "{\"credsStore\": \"slow\"}").unwrap();
    let (helper, called) = (home.join("docker-credential-slow"), home.join("called"));
    std::fs::write(&helper, format!("#!/bin/sh\n: >{}\nexec sleep 20\n", called.display())).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
    for turn in 0..12 {
        let _ = std::fs::remove_file(&called);
        let mut push = Transfer::start_with(&scene, &["push", "image", &name], &[("PATH", &path)]);
        let start = Instant::now();
        while !called.exists() {
            assert!(start.elapsed().as_secs() < 20, "{}", push.stderr());
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(50));
        let since = Instant::now();
        if turn % 3 == 0 { kill(push.pid(), Signal::SIGINT) } else { killpg(push.pid(), Signal::SIGINT) }.unwrap();
        push.ends(since, 130);
        assert!(push.stderr().ends_with("error: interrupted\n"), "{turn}: {}", push.stderr());
    }
}
