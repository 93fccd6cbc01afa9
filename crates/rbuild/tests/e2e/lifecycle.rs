//! Builds that are stopped, killed, or run concurrently: nothing is left behind, and the store
//! still works.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containers::{Host, wait_until};
use crate::lab::{Lab, is_bare};
use crate::processes::{all_gone, locks_free, processes_with};

fn no_mounts(lab: &Lab) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(lab.store().to_str().unwrap()), "{mounts}");
}

fn start(lab: &Lab, marker: &str) -> Child {
    lab.write("f", marker);
    let sleep = format!("FROM busybox\nCOPY f /f\nRUN echo started; sleep 300 {marker} || sleep 300\n");
    lab.write("Dockerfile", sleep);
    // All processes of the build have the store's path in their command lines.
    let mut command = lab.signaled_command(["--root", lab.store().to_str().unwrap(), "build", "-t", "x"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait_for(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "rbuild does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn still_works(lab: &Lab) {
    let tmp = lab.store().join("tmp");
    locks_free(&tmp, "before the next build");
    lab.build("FROM busybox\nRUN echo fine > /o\n", &["-t", "x", "--no-cache"]).ok();
    let left: Vec<_> = std::fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left in the store: {left:?}");
    no_mounts(lab);
}

#[test]
fn ctrl_c_ends_everything_within_two_seconds() {
    for (i, signal) in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().enumerate() {
        let lab = Lab::new();
        let marker = format!("{}00{i}", std::process::id());
        let mut child = start(&lab, &marker);
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes_with(&format!("sleep 300 {marker}")).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let asked = Instant::now();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(wait_for(&mut child), Some(128 + signal as i32));
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        all_gone(lab.store().to_str().unwrap(), signal.as_str());
        all_gone(&format!("sleep 300 {marker}"), signal.as_str());
        still_works(&lab);
    }
}

#[test]
fn sigkill_at_any_moment_leaves_nothing() {
    let lab = Lab::new();
    let marker = format!("{}9", std::process::id());
    for delay in [0, 2, 5, 8, 12, 16, 20, 30, 50, 100, 250] {
        let mut child = start(&lab, &marker);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        all_gone(lab.store().to_str().unwrap(), "after SIGKILL");
        all_gone(&format!("sleep 300 {marker}"), "after SIGKILL");
        still_works(&lab);
    }
}

#[test]
fn two_concurrent_builds_run_a_step_once_and_both_succeed() {
    let lab = Lab::new();
    // Each run of the step adds a line to the cache mount.
    lab.write("Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c echo run >> /c/log; sleep 1\n");
    let children: Vec<Child> = (0..3)
        .map(|i| {
            let name = format!("x{i}");
            lab.command(["build", "-t", &name]).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let out = lab.build_local("FROM busybox\nRUN --mount=type=cache,target=/c cp /c/log /o\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "run\n");
    assert_eq!(lab.rbuild(["images", "-q"]).ok().stdout.lines().count(), 4);
}

#[test]
fn a_failing_stage_stops_the_others_at_once() {
    let lab = Lab::new();
    let started = Instant::now();
    lab.build(
        "FROM busybox AS a\nRUN sleep 100\nFROM busybox AS b\nRUN sleep 1; exit 3\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /x /\n",
        &["--root", lab.store().to_str().unwrap()],
    )
    .fails(1, &["exited with code 3"]);
    assert!(started.elapsed() < Duration::from_secs(10));
    all_gone(lab.store().to_str().unwrap(), "after a failed build");
}

#[test]
fn a_command_that_leaves_processes_running_does_not_hang() {
    let lab = Lab::new();
    let started = Instant::now();
    lab.build("FROM busybox\nRUN (sleep 200 &) ; sleep 0.2; echo done\n", &["-t", "x"]).ok();
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_command_that_mounts_a_cache_twice_does_not_deadlock() {
    let lab = Lab::new();
    for (i, (one, two)) in [("shared", "locked"), ("private", "locked"), ("locked", "shared"), ("shared", "private")]
        .into_iter()
        .enumerate()
    {
        let mount =
            |target: &str, sharing: &str| format!("--mount=type=cache,id=c{i},target={target},sharing={sharing}");
        // Where nothing can be mounted, each mount shows the content as of the start of the
        // command.
        let file = format!(
            "FROM busybox\nRUN {} echo {one} > /z/f\nRUN {} {} cat /a/f /b/f > /o\nFROM scratch\nCOPY --from=0 /o /\n",
            mount("/z", "shared"),
            mount("/a", one),
            mount("/b", two)
        );
        let started = Instant::now();
        let out = lab.build_local(&file, &[]);
        assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), format!("{one}\n{one}\n"));
        assert!(started.elapsed() < Duration::from_secs(10), "{one} and {two}: {:?}", started.elapsed());
    }
}

#[test]
fn caches_locked_in_opposite_order_do_not_deadlock() {
    let lab = Lab::new();
    let mount = |id: &str| format!("--mount=type=cache,id={id},target=/{id},sharing=locked");
    let (x, y) = (mount("x"), mount("y"));
    for i in 0..5 {
        let file = format!(
            "FROM busybox AS a\nRUN {x} {y} usleep 20000; echo {i} > /o\nFROM busybox AS b\nRUN {y} {x} usleep 20000; echo {i} > /p\n\
             FROM scratch\nCOPY --from=a /o /\nCOPY --from=b /p /\n"
        );
        let started = Instant::now();
        lab.build(&file, &[]).ok();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn a_waiting_build_ends_when_it_fails_or_is_stopped() {
    let lab = Lab::new();
    let locked = "--mount=type=cache,id=busy,target=/c,sharing=locked";
    let sleep = format!("sleep 30.{}", std::process::id());
    lab.write("long/Dockerfile", format!("FROM busybox\nRUN {locked} {sleep} || :\n"));
    let mut long = lab.command(["build", "long"]).stderr(Stdio::null()).spawn().unwrap();
    while !processes_with(&sleep).iter().any(|process| process.command_line.starts_with(&sleep)) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let started = Instant::now();
    let waiting = format!("FROM busybox AS a\nRUN {locked} echo late\n");
    lab.build(
        &format!(
            "{waiting}FROM busybox AS b\nRUN sleep 0.5; exit 3\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /x /\n"
        ),
        &[],
    )
    .fails(1, &["exited with code 3"]);
    lab.write("Dockerfile", &waiting);
    let mut stopped = lab.command(["build"]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(stopped.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for(&mut stopped), Some(143));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    kill(Pid::from_raw(long.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for(&mut long), Some(143));
}

/// Only content that a power cut cannot damage may get a name.
#[test]
fn an_image_of_a_build_that_failed_later_is_synced_before_it_is_named() {
    let lab = Lab::new();
    let made = "FROM --platform=$BUILDPLATFORM busybox AS made\nRUN echo x > /x\n\
                FROM scratch\nARG TARGETARCH\nCOPY --from=made /x /\nLABEL a=made-for-$TARGETARCH\n";
    lab.write("secret", "made-for-riscv64");
    // The image of the first platform is complete although the second one is refused.
    let platforms = ["-t", "x", "--platform", "local,linux/riscv64", "--secret", "id=s,src=secret"];
    lab.build(made, &platforms).fails(1, &["contains the secret `s`"]);
    let marks = || std::fs::read_dir(lab.store().join("builds")).unwrap().count();
    let unsynced = || {
        let results = std::fs::read_dir(lab.store().join("results")).unwrap();
        let built_by = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["build"].clone();
        let builds = results.map(|entry| built_by(std::fs::read_to_string(entry.unwrap().path()).unwrap()));
        builds.filter(|id| !lab.store().join(format!("builds/{}.synced", id.as_str().unwrap())).exists()).count()
    };
    let before = marks();
    assert_eq!(unsynced(), 1);
    assert_eq!(lab.rbuild(["build", "-t", "x"]).ok().steps(), (0, 2));
    assert_eq!((marks(), unsynced()), (before + 1, 0));
    // Once is enough.
    assert_eq!(lab.rbuild(["build", "-t", "y"]).ok().steps(), (0, 2));
    assert_eq!((marks(), unsynced()), (before + 1, 0));
}

/// Such a volume is removed by another process, which takes the signal.
#[test]
fn a_signal_during_the_removal_of_abandoned_volumes_ends_the_start() {
    let host = Host::new();
    if is_bare() {
        return;
    }
    for background in [&[][..], &["-d"]] {
        let mut killed = host.0.command(["run", "--rm", "--name", "old", "-v", "/v", "busybox", "sleep", "1000"]);
        let mut killed = killed.stdout(Stdio::null()).spawn().unwrap();
        wait_until("the container runs", || host.line("ps --format {{.State}}").ok().stdout == "running\n");
        killed.kill().unwrap();
        killed.wait().unwrap();
        wait_until("the container is dead", || host.state("old", "{{.State.Status}}") == "dead");
        let lock = std::fs::File::create(host.0.store().join("volumes.lock")).unwrap();
        lock.lock().unwrap();
        let args = [&["run", "--name", "new"], background, &["busybox", "sleep", "1000"]].concat();
        let mut start = host.0.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let names = || host.line("ps -a --format {{.Names}}").ok().stdout;
        wait_until("the container is created", || names().contains("new"));
        // It waits for the lock then.
        std::thread::sleep(Duration::from_millis(300));
        kill(Pid::from_raw(start.id() as i32), Signal::SIGTERM).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        drop(lock);
        assert_eq!(start.wait().unwrap().code(), Some(128 + 15), "{background:?}");
        assert_eq!(names(), "", "{background:?}");
        host.line("volume prune -f").ok();
    }
}
