//! The ends of containers: by themselves, by signals, and with their supervisors.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::containers::{FOREVER, Host, wait_until};
use crate::lab::is_bare;

#[test]
fn containers_end_by_themselves_with_their_code_and_output() {
    let host = Host::new();
    let id = host.start("--name a -e WORD=hi -w /etc", "echo $WORD; pwd; sleep 0.1; echo wrong >&2; exit 3");
    assert_eq!(host.rbuild(["wait", &id[..12]]).ok().stdout, "3\n");
    let logs = host.line("logs a").ok();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("hi\n/etc\n", "wrong\n"));
    assert_eq!(host.line("logs --tail 1 a").ok().stdout.lines().count(), 0, "the last line is of standard error");
    let times = host.line("logs -t a").ok().stdout;
    assert!(times.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "{times}");
    let status = host.line("ps -a --format {{.Status}} --filter exited=3").ok().stdout;
    assert!(status.starts_with("Exited (3) "), "{status}");
    assert_eq!(host.line("ps -aq --filter status=running").ok().stdout, "");
    let count = |filters: &str| host.line(&format!("ps -aq {filters}")).ok().stdout.lines().count();
    assert_eq!(["name=a", "name=b", "label=x"].map(|filter| count(&format!("--filter {filter}"))), [1, 0, 0]);
    assert_eq!(count("--filter name=a --filter label=x"), 0);
    host.line("kill a").fails(1, &["container `a` is not running", "rbuild logs a"]);
    host.line("exec a true").fails(1, &["container `a` is not running"]);
    // Containers that are removed at their end can be awaited, too.
    let id = host.start("--rm", "sleep 0.3; exit 4");
    let mut wait = host.0.command(["wait", &id]);
    assert_eq!(host.0.run_with(&mut wait, &[]).ok().stdout, "4\n");
    wait_until("the container is removed", || host.rbuild(["inspect", "--type=container", &id]).code == Some(1));
}

#[test]
fn a_first_process_forwards_signals_and_reaps_processes() {
    let host = Host::new();
    if is_bare() {
        host.line("run --rm --init busybox true").ok();
        return;
    }
    host.start("--name a --init -u 7:8", &format!("(sleep 0.1 &); sh -c 'sleep 0.1 & exec true'; {FOREVER}"));
    wait_until("output", || host.line("logs a").stdout == "up\n");
    let script = "sleep 0.2; cat /proc/1/comm; grep -l 'State:.Z' /proc/[0-9]*/status; id -u";
    assert_eq!(host.rbuild(["exec", "a", "sh", "-c", script]).stdout, "rbuild-init\n7\n");
    host.line("stop a").ok();
    assert_eq!(host.state("a", "{{.State.ExitCode}} {{.HostConfig.Init}}"), "7 true");
    for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("[ $$ != 1 ]", 0)] {
        let ran = host.rbuild(["run", "--rm", "--init", "busybox", "sh", "-c", script]);
        assert_eq!(ran.code, Some(code), "{script}: {}", ran.stderr);
    }
}

#[test]
fn a_container_goes_on_after_its_command_and_ends_by_stop() {
    let host = Host::new();
    let id = host.start("--name web", FOREVER);
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    wait_until("the container writes", || host.line("logs web").ok().stdout == "up\n");
    let row = host.line("ps --format {{.ID}}|{{.Image}}|{{.Names}}|{{.State}}|{{.Status}}").ok().stdout;
    assert!(row.starts_with(&format!("{}|busybox|web|running|Up ", &id[..12])), "{row}");
    assert_eq!(host.line("ps -q --no-trunc").ok().stdout.trim(), id);
    let pid: u32 = host.state("web", "{{.State.Pid}}").parse().unwrap();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.starts_with("sh\0-c\0trap"), "{command:?}");
    assert_eq!(host.line("stop web").ok().stdout, "web\n");
    assert_eq!(host.state("web", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"), "exited 7 0");
    assert_eq!(host.line("ps -q").ok().stdout, "");
    assert_eq!(host.line("wait web").ok().stdout, "7\n");
    assert_eq!(host.line("logs web").ok().stdout, "up\n");
    host.line("rm web").ok();
    assert_eq!(host.line("ps -aq").ok().stdout, "");
    assert_eq!(std::fs::read_dir(host.0.store().join("runs")).unwrap().count(), 0);
}

#[test]
fn signals_reach_the_command_and_a_deaf_one_is_killed() {
    let host = Host::new();
    host.start("--name a", "trap 'echo hup' HUP; trap 'exit 5' USR1; echo up; while :; do sleep 0.1; done");
    wait_until("the container is up", || host.line("logs a").ok().stdout == "up\n");
    host.line("kill -s HUP a").ok();
    wait_until("the signal arrives", || host.line("logs a").ok().stdout == "up\nhup\n");
    host.line("kill -s SIGUSR1 a").ok();
    assert_eq!(host.line("wait a").ok().stdout, "5\n");
    host.start("--name b", "trap '' TERM; echo up; while :; do sleep 0.1; done");
    wait_until("the container is up", || host.line("logs b").ok().stdout == "up\n");
    let began = Instant::now();
    host.line("stop -t 1 b").ok();
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(host.state("b", "{{.State.ExitCode}}"), "137");
    host.line("kill -s FOO b").fails(2, &["unknown signal", "TERM or 15"]);
    let stopped_by = host.0.build("FROM busybox\nSTOPSIGNAL SIGUSR1\n", &["-q", "-t", "usr1"]).ok();
    drop(stopped_by);
    let script = "trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done";
    host.rbuild(["run", "-d", "--name", "c", "usr1", "sh", "-c", script]).ok();
    wait_until("the container is up", || host.line("logs c").ok().stdout == "up\n");
    host.line("stop c").ok();
    assert_eq!(host.state("c", "{{.State.ExitCode}}"), "6");
}

#[test]
fn signals_without_names_are_sent_as_well() {
    let host = Host::new();
    host.0.build("FROM busybox\nSTOPSIGNAL SIGRTMIN+3\n", &["-q", "-t", "rt"]).ok();
    let script = "trap 'echo 40' 40; trap 'exit 6' 37; echo up; while :; do sleep 0.1; done";
    host.rbuild(["run", "-d", "--name", "a", "rt", "sh", "-c", script]).ok();
    wait_until("the container is up", || host.line("logs a").ok().stdout == "up\n");
    host.line("kill -s RTMIN+6 a").ok();
    wait_until("the signal arrives", || host.line("logs a").ok().stdout == "up\n40\n");
    // A time beyond the range of the clock is no limit.
    host.line("stop -t 18446744073709551615 a").ok();
    assert_eq!(host.state("a", "{{.State.ExitCode}}"), "6");
}

/// Builds and other commands do not wait for `stop`, which waits for the container.
#[test]
fn the_store_is_not_locked_while_a_container_stops() {
    let host = Host::new();
    let script = "trap 'echo asked; sleep 8; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    host.start("--name a", script);
    wait_until("the container is up", || host.line("logs a").ok().stdout == "up\n");
    let mut stop = host.0.command(["stop", "-t", "30", "a"]);
    let mut stop = stop.stdout(Stdio::null()).spawn().unwrap();
    wait_until("the signal arrives", || host.line("logs a").ok().stdout == "up\nasked\n");
    host.line("--lock-timeout 1 prune").ok();
    assert_eq!(stop.try_wait().unwrap(), None, "it has been pruned before the end");
    assert!(stop.wait().unwrap().success());
}

#[test]
fn killed_supervisors_leave_dead_containers_and_no_processes() {
    let host = Host::new();
    host.start("--name a", FOREVER);
    // Before that, the process has the name of a thread of rbuild.
    wait_until("the command is executed", || host.line("logs a").ok().stdout == "up\n");
    let pid: u32 = host.state("a", "{{.State.Pid}}").parse().unwrap();
    let ancestors = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    // The supervisor is the highest ancestor that executes rbuild.
    let supervisor = std::iter::successors(Some(pid), |pid| ancestors(*pid).filter(|pid| *pid > 1));
    let supervisor = supervisor
        .take_while(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["sh\n", "rbuild\n"].contains(&name.as_str())
        })
        .last()
        .unwrap();
    assert_ne!(supervisor, pid);
    std::process::Command::new("kill").args(["-9", &supervisor.to_string()]).status().unwrap();
    // In a PID namespace of tests, nothing waits for adopted processes.
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    wait_until("the command ends", || state().rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z')));
    wait_until("the container is dead", || host.state("a", "{{.State.Status}}") == "dead");
    assert_eq!(host.line("ps -a --format {{.Status}}").ok().stdout, "Dead\n");
    assert_eq!(host.line("wait a").ok().stdout, "137\n");
    host.line("stop a").ok();
    host.line("prune").ok();
    assert_eq!(std::fs::read_dir(host.0.store().join("tmp")).unwrap().count(), 0);
    host.line("rm a").ok();
    // One that was to be removed blocks neither its name nor its image.
    let volume = if is_bare() { &[][..] } else { &["-v", "/anonymous"] };
    for after in [
        &["run", "--rm", "--name", "k", "busybox", "true"][..],
        &["create", "--rm", "--name", "k", "busybox"],
        &["prune"],
        &["rmi", "busybox"],
    ] {
        let args = [&["run", "--rm", "--name", "k"], volume, &["busybox", "sleep", "1000"]].concat();
        let mut run = host.0.command(args);
        let mut run = run.stdout(Stdio::null()).spawn().unwrap();
        wait_until("the container runs", || host.line("ps --format {{.State}}").ok().stdout == "running\n");
        run.kill().unwrap();
        run.wait().unwrap();
        wait_until("the container is dead", || host.state("k", "{{.State.Status}}") == "dead");
        host.rbuild(after.iter().copied()).ok();
        if after[0] == "create" {
            host.line("rm k").ok();
        }
        assert_eq!(host.line("ps -aq").ok().stdout, "");
        assert_eq!(host.line("volume ls -q").ok().stdout, "", "{after:?}");
    }
}
