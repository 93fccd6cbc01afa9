//! Commands that are executed in running containers (`exec`).

use crate::containers::{FOREVER, Host, wait_until};
use crate::lab::{Ran, is_bare};

#[test]
fn commands_are_executed_in_a_running_container() {
    let host = Host::new();
    host.start("--name a -e FIRST=1 -w /etc -h inner", "echo made > /tmp/file; echo up; while :; do sleep 0.1; done");
    wait_until("the container is up", || host.line("logs a").ok().stdout == "up\n");
    let script = "cat /tmp/file; echo $FIRST $SECOND; pwd; hostname; id -u; echo failed >&2; exit 9";
    let ran = host.rbuild(["exec", "-e", "SECOND=2", "a", "sh", "-c", script]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(9), "failed\n"), "{}", ran.stdout);
    // The `chroot` mode has no host names.
    let name = if is_bare() { host.line("exec a hostname").ok().stdout } else { "inner\n".into() };
    assert_eq!(ran.stdout, format!("made\n1 2\n/etc\n{name}0\n"));
    let out = host.line("exec -u web -w / a sh -c id;pwd").ok().stdout;
    assert_eq!(out, "uid=33(web) gid=33(web) groups=33(web),50(extra)\n/\n");
    host.line("exec a --help").fails(127, &["write the flags of `rbuild exec` before the container"]);
    host.line("exec a nosuch").fails(127, &["cannot start the command", "`nosuch`"]);
    host.line("exec -w /nowhere a true").fails(126, &["the working directory `/nowhere` does not exist"]);
    host.line("exec -u nobody-here a true").fails(1, &["no user `nobody-here`"]);
    host.line("exec a").fails(2, &["rbuild exec"]);
    // The command shares the processes of the container, which cannot see the others.
    if !is_bare() {
        let first = host.line("exec a cat /proc/1/cmdline").ok().stdout;
        assert!(first.starts_with("sh\0-c\0echo made"), "{first:?}");
        let seen = host.rbuild(["exec", "a", "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null; true"]).ok().stdout;
        assert!(!seen.contains("rbuild"), "{seen}");
    }
    host.start("--name limited --ulimit nofile=77:88", FOREVER);
    let limits = host.rbuild(["exec", "limited", "sh", "-c", "ulimit -Sn; ulimit -Hn"]).ok().stdout;
    assert_eq!(limits, "77\n88\n");
    // Files have the owners that the command set.
    let script = "touch /f && chown 33:50 /f && stat -c '%u %g' /f";
    assert_eq!(host.rbuild(["exec", "a", "sh", "-c", script]).ok().stdout, "33 50\n");
    assert_eq!(host.line("exec a stat -c %u /f").ok().stdout, "33\n");
    // Files are copied out of and into the container.
    let (file, out) = (host.0.ctx().join("in"), host.0.path("out"));
    host.0.write("in", "sent\n").write("sub/deep", "deep\n");
    let copy = |from: &str, to: &str| host.rbuild(["cp", from, to]);
    copy(&file.to_string_lossy(), "a:/g").ok();
    copy(&file.to_string_lossy(), "a:/dev/nosuch/g").fails(1, &["the directory `/dev/nosuch` does not exist"]);
    copy(&format!("{}/", host.0.ctx().join("sub").display()), "a:/sub").ok();
    let script = "cat /g /sub/deep; stat -c '%u %g' /g; chown 33 /g; echo changed >> /g";
    assert_eq!(host.rbuild(["exec", "a", "sh", "-c", script]).ok().stdout, "sent\ndeep\n0 0\n");
    copy("a:/g", &out.to_string_lossy()).ok();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "sent\nchanged\n");
    copy("/nosuch", "a:/g").fails(1, &["`/nosuch` does not exist"]);
    copy("a:/h", &out.to_string_lossy()).fails(1, &["`/h` does not exist"]);
    host.line("create --name waiting busybox true").ok();
    let hint = "hint: start it first with `rbuild start waiting`, or mount the files with -v";
    copy("/etc/hostname", "waiting:/h").fails(1, &["container `waiting` has not been started", hint]);
    host.line("rm waiting").ok();
    host.line("exec a nosuch").fails(127, &["hint: correct its name, or use an image that contains the program"]);
    copy("-", "a:/").fails(2, &["rbuild exec -i CONTAINER tar -x -C DIR"]);
    changes_are_listed_and_committed(&host);
    let piped = host.0.sh("echo through | $RB exec -i a cat");
    assert_eq!(piped.ok().stdout, "through\n");
    host.line("exec -it a sh").fails(2, &["-it: standard input is not a terminal"]);
    // Capabilities are those of the container.
    let caps = |of: Ran| of.ok().stdout.split_whitespace().last().map(str::to_string);
    if !is_bare() {
        let inner = caps(host.line("exec a grep CapEff /proc/self/status"));
        assert_eq!(inner.as_deref(), Some("00000000a80425fb"));
        let user = caps(host.line("exec -u 33 a grep CapEff /proc/self/status"));
        assert_eq!(user.as_deref(), Some(if is_single_id() { "00000000a80425fb" } else { "0000000000000000" }));
        let filter = |ran: Ran| ran.ok().stdout;
        assert_eq!(filter(host.line("exec a grep Seccomp: /proc/self/status")), "Seccomp:\t2\n");
    }
}

/// The process of `exec` must not offer what it has of the machine to root of the container, in the
/// moment between dropping its privileges and executing the command (CVE-2016-9962).
#[test]
fn exec_shows_the_container_nothing_of_the_machine() {
    if is_bare() {
        return;
    }
    let host = Host::new();
    let file = host.0.path("file-of-the-machine");
    std::fs::write(&file, "content-of-the-machine\n").unwrap();
    let spy = "while :; do for p in /proc/[2-9]* /proc/1?*; do grep -q VALUE_OF_THE_MACHINE $p/environ && echo variable
        for n in 3 4 5 6 7 8 9 10 11 12; do
            read -r x <$p/fd/$n/..FILE && echo \"$x\"
        done
    done; done 2>/dev/null";
    host.start("--name spy", &spy.replace("FILE", file.to_str().unwrap()));
    let ran = host.0.sh("for n in $(seq 40); do NAME=VALUE_OF_THE_MACHINE $RB exec spy true || exit 1; done");
    ran.ok();
    assert_eq!(host.line("logs spy").ok().stdout, "");
}

/// Checks `diff` and `commit` of a container with files that `cp` has created.
fn changes_are_listed_and_committed(host: &Host) {
    if is_bare() {
        host.line("diff a").fails(1, &["the changes of container `a` are not known", "while it runs"]);
        return;
    }
    host.rbuild(["exec", "a", "sh", "-c", "rm /bin/true; mkdir -p /new/dir"]).ok();
    let changes = host.line("diff a").ok().stdout;
    for line in ["C /bin", "D /bin/true", "A /new", "A /new/dir", "A /g"] {
        assert!(changes.lines().any(|found| found == line), "{line}\n{changes}");
    }
    assert!(!changes.contains(" /proc"), "{changes}");
    let id = host.line("commit -m words a kept:1").ok().stdout;
    assert!(id.starts_with("sha256:"), "{id}");
    let script = "cat /g; stat -c %u /g; ls -d /new/dir; ls /bin/true || echo gone";
    let kept = host.rbuild(["run", "--rm", "--entrypoint", "", "kept:1", "sh", "-c", script]).stdout;
    assert_eq!(kept, "sent\nchanged\n33\n/new/dir\ngone\n");
    assert!(host.line("history kept:1").ok().stdout.contains("words"));
}

fn is_single_id() -> bool {
    std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "single-id")
}
