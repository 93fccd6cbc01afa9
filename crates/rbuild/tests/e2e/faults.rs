//! Machine failures: processes killed at any of their system calls, disks that are full, broken or
//! turn read-only, and power cuts. strace injects the faults. For an ordinary user, strace would
//! disable the set-uid bit of `newuidmap`, so these tests run as root only.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::lab::{Lab, Ran, rbuild_path};
use crate::processes::{all_gone, locks_free};

/// System calls that change the store, a mount or another process.
const CHANGES: &str = "write,pwrite64,openat,openat2,mkdirat,renameat,renameat2,linkat,symlinkat,unlinkat,mknodat,fchownat,\
fchmod,utimensat,ftruncate,fsetxattr,flock,fcntl,clone,clone3,fork,vfork,execve,unshare,fsopen,fsconfig,fsmount,move_mount,mount,\
umount2,pivot_root,copy_file_range,sendfile,syncfs,fsync,close_range";

/// System calls that a disk can fail.
const DISK: &str = "write,pwrite64,mkdirat,renameat,renameat2,linkat,symlinkat,fchownat,fchmod,ftruncate,fsetxattr,\
copy_file_range,sendfile,syncfs,fsync";

/// Runs rbuild with a fault injected at the nth call of each thread. The boolean is true if any
/// fault was injected.
fn with_fault(lab: &Lab, calls: &str, fault: &str, nth: usize, args: &[&str]) -> (Ran, bool) {
    let trace = lab.path("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-o"]).arg(&trace).args(["-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:{fault}:when={nth}")]).arg(rbuild_path()).args(args);
    let ran = lab.run(command);
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    (ran, text.contains("INJECTED") || text.contains("killed by SIGKILL"))
}

/// Returns every number up to `dense`, then numbers at increasing distances.
fn spread(dense: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), move |n| Some(if *n < dense { n + 1 } else { n + n / 6 }))
}

/// Checks that the store is consistent and contains nothing incomplete, and that a build in it has
/// the expected result.
#[track_caller]
fn sound(lab: &Lab, marker: &str, context: &str) {
    let out = lab.build_local(FILE, &["-t", "x"]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), format!("made of {marker}\n"), "{context}");
    assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), marker, "{context}");
    let checked = lab.rbuild(["fsck"]);
    assert_eq!(checked.code, Some(0), "{context}: {}{}", checked.stdout, checked.stderr);
    let left: Vec<_> = std::fs::read_dir(lab.store().join("tmp")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{context}: left in the store: {left:?}");
}

const FILE: &str =
    "FROM busybox\nCOPY f /f\nRUN echo made of $(cat /f) > /o && ln /o /p && mkdir -p /d/e && rm /bin/yes\n";

#[test]
fn root_a_build_killed_at_any_call_loses_nothing() {
    let lab = Lab::new();
    lab.write("Dockerfile", FILE);
    let mut faults = 0;
    for nth in spread(40) {
        let marker = format!("kill {nth}");
        lab.write("f", &marker);
        let (ran, put_in) = with_fault(&lab, CHANGES, "signal=SIGKILL", nth, &["build", "-t", "x"]);
        if !put_in {
            ran.ok();
            break;
        }
        faults += 1;
        sound(&lab, &marker, &format!("killed at call {nth}"));
    }
    assert!(faults > 40, "only {faults} faults were put in");
}

#[test]
fn root_a_killed_load_is_all_or_nothing() {
    let lab = Lab::new();
    lab.write("f", "one");
    lab.build(FILE, &["-t", "x"]).ok();
    let archive = lab.path("x.tar");
    let archive = archive.to_str().unwrap();
    lab.rbuild(["save", "-o", archive, "x"]).ok();
    for nth in spread(20) {
        lab.rbuild(["rmi", "x"]);
        lab.rbuild(["prune"]).ok();
        let (ran, put_in) = with_fault(&lab, CHANGES, "signal=SIGKILL", nth, &["load", "-i", archive]);
        if !put_in {
            ran.ok();
            break;
        }
        lab.rbuild(["fsck"]).ok();
        if lab.rbuild(["inspect", "x"]).code == Some(0) {
            lab.rbuild(["inspect", "--verify", "x"]).ok();
        }
        lab.rbuild(["load", "-i", archive]).ok();
        lab.rbuild(["inspect", "--verify", "x"]).ok();
        sound(&lab, "one", &format!("load killed at call {nth}"));
    }
}

/// The next process deletes what a prune has moved away before it was killed.
#[test]
fn root_a_killed_prune_leaves_a_sound_store() {
    let lab = Lab::new();
    lab.write("Dockerfile", FILE);
    let mut faults = 0;
    for nth in spread(30) {
        let marker = format!("prune {nth}");
        lab.write("f", &marker);
        lab.build(FILE, &["-t", "x"]).ok();
        lab.rbuild(["rmi", "x"]).ok();
        let (ran, put_in) = with_fault(&lab, CHANGES, "signal=SIGKILL", nth, &["prune", "-a"]);
        sound(&lab, &marker, &format!("prune killed at call {nth}"));
        lab.rbuild(["inspect", "--verify", "busybox"]).ok();
        if !put_in {
            ran.ok();
            break;
        }
        faults += 1;
    }
    assert!(faults > 30, "only {faults} faults were put in");
}

#[test]
fn root_disk_errors_are_reported() {
    let lab = Lab::new();
    lab.write("Dockerfile", FILE);
    for (error, expected) in
        [("ENOSPC", "no space left"), ("EIO", "input/output error"), ("EROFS", "read-only file system")]
    {
        let mut reported = 0;
        for nth in spread(12) {
            let marker = format!("{error} {nth}");
            lab.write("f", &marker);
            let fault = format!("error={error}");
            let (ran, put_in) = with_fault(&lab, DISK, &fault, nth, &["build", "-t", "x", "-o", "type=image"]);
            let context = format!("{error} at call {nth}: {:?}\n{}", ran.code, ran.stderr);
            assert!(matches!(ran.code, Some(0..=3)), "{context}");
            assert!(!ran.stderr.contains("panicked"), "{context}");
            if ran.code != Some(0) {
                // The failed nth call may be the write of the error message itself.
                let trace = std::fs::read_to_string(lab.path("trace")).unwrap();
                let lost = |line: &str| line.contains("write(2, \"error") && line.contains("INJECTED");
                assert!(ran.stderr.contains("error") || trace.lines().any(lost), "{context}");
                reported += usize::from(ran.stderr.contains(expected));
            }
            sound(&lab, &marker, &context);
            if !put_in {
                break;
            }
        }
        assert!(reported > 3, "{error} was named {reported} times");
    }
}

/// Pseudo-random numbers with a fixed sequence (Knuth's multiplier, high bits).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Simulates the effect of a power cut on files written since the last sync: each is intact,
/// truncated, empty or missing. Files that were put in place durably by rename(2) are spared,
/// because they were synced before the rename.
fn cut_power(store: &Path, since: SystemTime, dice: &mut Dice) -> usize {
    let mut hit = 0;
    let mut stack = vec![store.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            let meta = path.symlink_metadata().unwrap();
            let changed = SystemTime::UNIX_EPOCH + Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
            if meta.is_dir() {
                stack.push(path);
            } else if changed > since && meta.is_file() && !path.ends_with("index.json") {
                let file = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                match dice.throw(4) {
                    0 => continue,
                    1 => file().set_len(0).unwrap(),
                    2 => file().set_len(meta.len() / 2).unwrap(),
                    _ => std::fs::remove_file(&path).unwrap(),
                }
                hit += 1;
            }
        }
    }
    hit
}

/// Changes everything in the store as if it had been written before the machine booted.
fn reboot(store: &Path) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for dir in ["records", "results", "layers"] {
        for entry in std::fs::read_dir(store.join(dir)).unwrap().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            std::fs::write(entry.path(), text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000")).unwrap();
        }
    }
}

#[test]
fn root_the_store_opens_and_builds_correctly_after_a_power_cut() {
    let lab = Lab::new();
    // Enough steps to kill most rounds in the middle of them.
    let file: String =
        std::iter::once(FILE.to_string()).chain((0..8).map(|i| format!("RUN cat /f > /f{i}\n"))).collect();
    lab.write("f", "zero");
    lab.build(&file, &["-t", "kept"]).ok();
    let mut dice = Dice(42);
    let mut hits = 0;
    // On a fast machine, more builds finish before they are killed.
    for round in 1..=120 {
        if round > 25 && hits > 50 {
            break;
        }
        // The file system's clock is coarser than the system clock.
        std::thread::sleep(Duration::from_millis(20));
        let since = SystemTime::now();
        let marker = format!("round {round}");
        lab.write("f", &marker);
        // All processes of the build have the store's path in their command lines.
        let store = lab.store();
        let options = ["--root", store.to_str().unwrap()];
        let arguments = options.into_iter().chain(["build", "-t", "x", "-o", "type=image,compression=zstd"]);
        let mut child = lab.command(arguments);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30 + dice.throw(150)));
        child.kill().unwrap();
        child.wait().unwrap();
        let context = format!("round {round}");
        // The other processes of the build take a moment to exit.
        all_gone(lab.store().to_str().unwrap(), &context);
        locks_free(&lab.store().join("tmp"), &context);
        // A build that reported success has synced its results.
        if lab.store().join("builds").read_dir().unwrap().flatten().all(|e| newer(&e.path(), since).is_none()) {
            hits += cut_power(&lab.store(), since, &mut dice);
        }
        let dest = format!("type=local,dest={}", lab.path("out").display());
        let _ = std::fs::remove_dir_all(lab.path("out"));
        reboot(&lab.store());
        let ran = lab.rbuild(["build", "-t", "x", "-o", &dest]);
        assert_eq!(ran.code, Some(0), "{context}: {}", ran.stderr);
        assert_eq!(lab.read("out/f"), marker, "{context}");
        assert_eq!(lab.read("out/o"), format!("made of {marker}\n"), "{context}");
        lab.rbuild(["inspect", "--verify", "kept", "x", "busybox"]).ok();
        assert_eq!(std::fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0, "{context}");
        lab.rbuild(["fsck", "--repair"]);
        lab.rbuild(["fsck"]).ok();
    }
    assert!(hits > 50, "only {hits} files were hit");
}

fn newer(path: &Path, than: SystemTime) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok().filter(|t| *t > than)
}

#[test]
fn root_a_store_turned_read_only_is_reported() {
    let lab = Lab::new();
    lab.write("Dockerfile", FILE).write("f", "one");
    lab.build(FILE, &["-t", "x"]).ok();
    lab.write("f", "two");
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let read_only = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(lab.store()).arg(rbuild_path()).args(args);
        lab.run(command)
    };
    read_only(&["build", "-t", "x"]).fails(1, &["read-only file system", "--root"]);
    sound(&lab, "two", "after a read-only mount");
}
