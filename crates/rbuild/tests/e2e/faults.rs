//! A machine that fails: processes killed at any of their system calls, disks that are full or broken or turn
//! read-only, power that is cut. strace puts the faults in; as an ordinary user it would take the set-id bit from
//! `newuidmap`, so these tests belong to root.

use std::process::Command;

use crate::lab::{Lab, Ran, rbuild_path};

/// What changes the store, a mount or another process.
const CHANGES: &str = "write,pwrite64,openat,openat2,mkdirat,renameat,renameat2,linkat,symlinkat,unlinkat,mknodat,fchownat,\
fchmod,utimensat,ftruncate,fsetxattr,flock,fcntl,clone,clone3,fork,vfork,execve,unshare,fsopen,fsconfig,fsmount,move_mount,mount,\
umount2,pivot_root,copy_file_range,sendfile,syncfs,fsync,close_range";

/// What a disk can refuse.
const DISK: &str = "write,pwrite64,mkdirat,renameat,renameat2,linkat,symlinkat,fchownat,fchmod,ftruncate,fsetxattr,\
copy_file_range,sendfile,syncfs,fsync";

/// Runs rbuild with a fault at the nth call of each thread; whether any was put in.
fn with_fault(lab: &Lab, calls: &str, fault: &str, nth: usize, args: &[&str]) -> (Ran, bool) {
    let trace = lab.path("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-o"]).arg(&trace).args(["-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:{fault}:when={nth}")]).arg(rbuild_path()).args(args);
    let ran = lab.run(command);
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    (ran, text.contains("INJECTED") || text.contains("killed by SIGKILL"))
}

/// Every number up to `dense`, then further and further apart.
fn spread(dense: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), move |n| Some(if *n < dense { n + 1 } else { n + n / 6 }))
}

/// The store is whole and holds nothing half-made, and a build in it gives what it should.
#[track_caller]
fn sound(lab: &Lab, marker: &str, what: &str) {
    let out = lab.build_local(FILE, &["-t", "x"]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), format!("made of {marker}\n"), "{what}");
    assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), marker, "{what}");
    let checked = lab.rbuild(["fsck"]);
    assert_eq!(checked.code, Some(0), "{what}: {}{}", checked.stdout, checked.stderr);
    for entry in std::fs::read_dir(lab.store().join("tmp")).unwrap().flatten() {
        panic!("{what}: {} is left in the store", entry.path().display());
    }
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
fn root_images_that_were_coming_in_when_the_process_was_killed_are_there_or_not() {
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

#[test]
fn root_a_disk_that_is_full_or_broken_ends_in_an_error_that_says_so() {
    let lab = Lab::new();
    lab.write("Dockerfile", FILE);
    for (error, says) in
        [("ENOSPC", "No space left"), ("EIO", "Input/output error"), ("EROFS", "Read-only file system")]
    {
        let mut told = 0;
        for nth in spread(12) {
            let marker = format!("{error} {nth}");
            lab.write("f", &marker);
            let fault = format!("error={error}");
            let (ran, put_in) = with_fault(&lab, DISK, &fault, nth, &["build", "-t", "x", "-o", "type=image"]);
            let what = format!("{error} at call {nth}: {:?}\n{}", ran.code, ran.stderr);
            assert!(matches!(ran.code, Some(0..=3)), "{what}");
            assert!(!ran.stderr.contains("panicked"), "{what}");
            if ran.code != Some(0) {
                assert!(ran.stderr.contains("error"), "{what}");
                told += usize::from(ran.stderr.contains(says));
            }
            sound(&lab, &marker, &what);
            if !put_in {
                break;
            }
        }
        assert!(told > 3, "{error} was named {told} times");
    }
}
