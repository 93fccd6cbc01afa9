//! Builds that fail, are stopped, or lose one of their processes at a random moment. Each must end
//! at once, report the real cause, and leave nothing behind. `RBUILD_STORM_SECONDS` sets the
//! duration of each test (30 by default), `RBUILD_STORM_SEED` the seed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::processes::{Process, all_gone, locks_free, processes};

/// The time within which a failed build must end.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The maximum number of failing builds; more do not provide new information.
const FAILING_BUILDS: usize = 200;

/// A small pseudo-random number generator (xorshift64*).
struct Dice(u64);

impl Dice {
    /// Writes the seed directly to standard error, because the test harness captures printed output
    /// until the test fails.
    fn new(storm: &str) -> Dice {
        let given = std::env::var("RBUILD_STORM_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(now) | 1;
        let _ = std::io::stderr().write_all(format!("storm of {storm}: RBUILD_STORM_SEED={seed}\n").as_bytes());
        Dice(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

fn end_of_storm() -> Instant {
    let seconds = std::env::var("RBUILD_STORM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(30);
    Instant::now() + Duration::from_secs(seconds)
}

/// Returns the process itself and its descendants.
fn family(root: u32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = all.iter().filter(|p| p.pid == root).cloned().collect();
    let mut at = 0;
    while let Some(parent) = found.get(at).map(|p| p.pid) {
        found.extend(all.iter().filter(|p| p.parent == parent && p.pid != parent).cloned());
        at += 1;
    }
    found
}

/// A build whose processes all have the marker in their command lines.
struct Build {
    child: Child,
    log: std::path::PathBuf,
}

impl Build {
    fn start(lab: &Lab, marker: &str, dockerfile: &str) -> Build {
        let context = lab.path(marker);
        std::fs::create_dir_all(&context).unwrap();
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        std::fs::write(context.join("file"), marker).unwrap();
        let log = lab.path(&format!("{marker}.log"));
        // All stages run concurrently, whatever the number of processors, and some run until they
        // are stopped.
        let options = ["build", "--progress", "plain", "--jobs", "8", "-t", marker, context.to_str().unwrap()];
        let mut command = lab.command(options);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        Build { child: command.spawn().unwrap(), log }
    }

    /// Waits for the build to end, which must happen before the deadline.
    #[track_caller]
    fn ends(&mut self, deadline: Instant, description: &str) -> (ExitStatus, String) {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, std::fs::read_to_string(&self.log).unwrap());
            }
            if Instant::now() > deadline {
                let family = family(self.child.id());
                let log = std::fs::read_to_string(&self.log).unwrap();
                panic!("{description}: it does not end: {family:?}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[track_caller]
fn nothing_in(dir: &Path, description: &str) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{description}: left in {}: {left:?}", dir.display());
}

#[track_caller]
fn no_mounts(lab: &Lab, description: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(lab.path("").to_str().unwrap()), "{description}: {mounts}");
}

/// Returns a Dockerfile with six stages, one of which fails, and the expected error. The others
/// succeed or would run for long.
fn failing_stages(dice: &mut Dice, marker: &str) -> (String, String) {
    let failing = dice.below(6);
    let mut file = String::new();
    let mut reason = String::new();
    for stage in 0..6 {
        file.push_str(&format!("FROM busybox AS s{stage}\n"));
        if stage == failing {
            let code = 2 + dice.below(100);
            let pause = dice.below(300);
            let (step, cause) = match dice.below(5) {
                0 => (format!("RUN : {marker}; false"), "exited with code 1".to_string()),
                1 => (format!("RUN : {marker}; usleep {pause}000; exit {code}"), format!("exited with code {code}\n")),
                // PID 1 of a container ignores signals that it sends to itself.
                2 => (
                    format!("RUN : {marker}; usleep {pause}000; sh -c 'kill -9 $$' || exit 137"),
                    "exited with code 137\n".to_string(),
                ),
                3 => (format!("COPY --from=base /{marker} /x"), format!("/{marker}")),
                _ => (
                    format!("RUN : {marker}; echo words; (usleep {pause}000; exit {code})"),
                    format!("exited with code {code}\n"),
                ),
            };
            file.push_str(&format!("{step}\n"));
            reason = cause;
            continue;
        }
        let step = match dice.below(5) {
            0 => format!("RUN echo {stage} {marker}"),
            1 => format!("RUN sleep 100 {marker} || sleep 100"),
            2 => format!("RUN : {marker}; usleep {}000; echo {stage}", dice.below(200)),
            3 => format!("COPY file /f{stage}\nRUN : {marker} {stage}"),
            _ => format!("RUN (setsid sleep 100 & : {marker}); yes {stage} | head -c 300000"),
        };
        file.push_str(&format!("{step}\n"));
    }
    let copies: String = (0..6).map(|i| format!("COPY --from=s{i} /bin/busybox /{i}\n")).collect();
    (format!("FROM busybox AS base\n{file}FROM scratch\n{copies}"), reason)
}

#[test]
fn a_failing_step_ends_the_build_with_its_own_error() {
    let lab = Lab::new();
    let mut dice = Dice::new("failures");
    let end = end_of_storm();
    for i in 0..FAILING_BUILDS {
        let marker = format!("fail{}x{i}", std::process::id());
        let (dockerfile, reason) = failing_stages(&mut dice, &marker);
        let mut build = Build::start(&lab, &marker, &dockerfile);
        // The failing steps take at most 0.3 seconds.
        let (status, log) = build.ends(Instant::now() + AT_ONCE + Duration::from_millis(300), &dockerfile);
        assert_eq!(status.code(), Some(1), "{dockerfile}\n{log}");
        let error = log.find("error: ").map_or("", |at| &log[at..]);
        assert!(error.contains(&reason), "{reason:?} is not the failure:\n{dockerfile}\n{log}");
        all_gone(&marker, &dockerfile);
        nothing_in(&lab.store().join("tmp"), &dockerfile);
        if Instant::now() > end {
            break;
        }
    }
    no_mounts(&lab, "after the storm");
    lab.rbuild(["fsck"]).ok();
    lab.build("FROM busybox\nRUN echo fine > /o\n", &["-t", "x"]).ok();
}

/// Returns two builds that share a step and a cache mount. Each takes a second or less if
/// undisturbed.
fn sharing_builds(dice: &mut Dice, marker: &str) -> String {
    let common =
        format!("RUN --mount=type=cache,id={marker},sharing=locked,target=/c echo {marker} >> /c/log; usleep 100000");
    format!(
        "FROM busybox AS a\n{common}\nCOPY file /f\n\
         FROM busybox AS b\nRUN : {marker} {}; usleep {}000; echo b\n\
         FROM a\nCOPY --from=b /bin/busybox /b\nRUN : {marker}; (setsid sleep 100 &); usleep {}000\n",
        dice.below(1 << 30),
        dice.below(200),
        dice.below(100)
    )
}

/// Sends a signal to a build or one of its processes; returns a description.
fn strike(dice: &mut Dice, build: &Build) -> (String, Option<Signal>) {
    let send = |pid: u32, signal| kill(Pid::from_raw(pid as i32), signal);
    let launcher = build.child.id();
    let signal = *dice.one_of(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL]);
    if dice.below(3) == 0 {
        let _ = send(launcher, signal);
        return (format!("{signal} for the launcher"), Some(signal));
    }
    let family = family(launcher);
    let below = family.get(1..).unwrap_or_default();
    if below.is_empty() {
        return ("nothing".into(), None);
    }
    let victim = dice.one_of(below);
    let killed = send(victim.pid, Signal::SIGKILL);
    (format!("SIGKILL for {victim:?}: {killed:?}, of {family:#?}"), None)
}

#[track_caller]
fn ended_for_a_reason(status: ExitStatus, signal: Option<Signal>, log: &str, description: &str) {
    let reasons = ["killed", "exited with code 137", "exited with code 143"];
    let error = log.find("error: ").map(|at| &log[at..]);
    match (status.code(), signal) {
        // The signal came too late, or hit a process that the build does not wait for.
        (Some(0), _) => {}
        // SIGKILL cannot be caught, and the other signals are not handled before the builder
        // exists.
        (None, Some(signal)) if status.signal() == Some(signal as i32) => {
            assert!(signal == Signal::SIGKILL || !log.contains("isolation: "), "{description}\n{log}");
        }
        (Some(code), Some(signal)) if code == 128 + signal as i32 => {
            assert!(error.is_some_and(|e| e.contains("interrupted")), "{description}\n{log}")
        }
        // With 3 if newuidmap was killed.
        (Some(1 | 3), None) => {
            assert!(error.is_some_and(|e| reasons.iter().any(|r| e.contains(r))), "{description}\n{log}")
        }
        (code, _) => panic!("{description}: ended with {code:?}\n{log}"),
    }
}

#[test]
fn killing_any_process_leaves_nothing_and_affects_no_other_build() {
    let lab = Lab::new();
    let mut dice = Dice::new("kills");
    let end = end_of_storm();
    for i in 0.. {
        let marker = format!("kill{}x{i}", std::process::id());
        let dockerfile = sharing_builds(&mut dice, &marker);
        let mut builds = ["a", "b"].map(|which| Build::start(&lab, &format!("{marker}{which}"), &dockerfile));
        std::thread::sleep(Duration::from_millis(dice.below(500)));
        let (description, signal) = strike(&mut dice, &builds[0]);
        let deadline = Instant::now() + AT_ONCE;
        let (status, log) = builds[0].ends(deadline, &description);
        ended_for_a_reason(status, signal, &log, &description);
        // The other build still has its own work to do.
        let (status, log) = builds[1].ends(deadline + Duration::from_secs(2), &description);
        assert!(status.success(), "the other build: {description}\n{log}");
        all_gone(&marker, &description);
        locks_free(&lab.store().join("tmp"), &description);
        let after =
            format!("FROM busybox\nRUN --mount=type=cache,id={marker},sharing=locked,target=/c echo {marker} fine\n");
        let (status, log) =
            Build::start(&lab, &format!("{marker}c"), &after).ends(Instant::now() + AT_ONCE, &description);
        assert!(status.success(), "the next build: {description}\n{log}");
        nothing_in(&lab.store().join("tmp"), &description);
        if i % 8 == 0 {
            lab.rbuild(["fsck"]).ok();
        }
        if Instant::now() > end {
            break;
        }
    }
    no_mounts(&lab, "after the storm");
    lab.rbuild(["fsck"]).ok();
}

/// Waits for a progress line that contains `begins` and ends with `ends`, calls `then`, and returns
/// the time that the build took to end afterwards.
fn time_to_end(mut build: Child, (begins, ends): (&str, &str), then: impl FnOnce(&Child)) -> Duration {
    let mut lines = BufReader::new(build.stderr.take().unwrap()).lines().map_while(Result::ok);
    let found = lines.by_ref().find(|line| line.starts_with('#') && line.contains(begins) && line.ends_with(ends));
    let rest = std::thread::spawn(move || lines.count());
    then(&build);
    let since = Instant::now();
    build.wait().unwrap();
    let took = since.elapsed();
    rest.join().unwrap();
    assert!(found.is_some(), "no line contains {begins:?} and {ends:?}");
    took
}

/// Copies and unpacking that take seconds are aborted with the build, both when a concurrent
/// command fails and when the user stops it. One of three attempts must be fast enough, because the
/// machine may be shared.
#[test]
fn large_copies_and_layers_stop_with_their_build() {
    const LIMIT: Duration = Duration::from_millis(600);
    let lab = Lab::new();
    for n in 0..20_000 {
        lab.write(&format!("many/{}/{n}", n / 500), format!("{n}"));
    }
    lab.sh("fallocate -l 1G large && tar -cf many.tar many").ok();
    lab.build("FROM busybox\nCOPY many /m/\n", &["-q", "-t", "big"]).ok();
    let forget = "$RB rmi big; $RB prune -a; $RB load -q -i $LAB/big.tar";
    lab.sh(&format!("$RB save big -o $LAB/big.tar && {forget}")).ok();
    let take = |command: &str, long: &str| {
        let last = "FROM busybox\nCOPY --from=a /etc /a\nCOPY --from=b /etc /b\n";
        lab.write("Dockerfile", format!("FROM busybox AS a\nRUN {command}\n{long}\n{last}"));
        let mut build = lab.command(["build", "--progress=plain", "-t", "x", "."]);
        let build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if command == "sleep 30" {
            return time_to_end(build, ("RUN sleep 30", ""), |build| {
                std::thread::sleep(Duration::from_millis(200));
                kill(Pid::from_raw(build.id() as i32), Signal::SIGINT).unwrap();
            });
        }
        time_to_end(build, ("", " ERROR"), |_| ())
    };
    for (long, commands) in [
        ("FROM busybox AS b\nCOPY many /m/", &["sleep 0.3; exit 3", "sleep 30"][..]),
        ("FROM busybox AS b\nCOPY many many.tar /m/", &["sleep 0.3; exit 3"]),
        ("FROM busybox AS b\nCOPY large /", &["sleep 0.3; exit 3"]),
        ("FROM busybox AS b\nADD many.tar /m/", &["sleep 0.3; exit 3", "sleep 30"]),
        ("FROM busybox AS b\nRUN --mount=source=many,target=/m true", &["sleep 0.3; exit 3"]),
        ("FROM big AS b\nWORKDIR /made", &["sleep 0.3; exit 3", "sleep 30"]),
    ] {
        for command in commands {
            let mut took = take(command, long);
            // The best of several tries: another process may keep the disk busy.
            for _ in 0..5 {
                if took >= LIMIT {
                    lab.sh(forget).ok();
                    took = took.min(take(command, long));
                }
            }
            assert!(took < LIMIT, "{long} beside {command}: {took:?}");
        }
    }
}
