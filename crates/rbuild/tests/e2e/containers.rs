//! Containers that run in the background.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Ran, is_bare};

/// A lab whose containers are killed at the end of the test.
pub struct Host(pub Lab);

impl Host {
    pub fn new() -> Host {
        Host(Lab::new())
    }

    pub fn rbuild<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        self.0.rbuild(args)
    }

    /// Runs rbuild with the words of a line.
    pub fn line(&self, line: &str) -> Ran {
        self.rbuild(line.split_whitespace())
    }

    /// Starts a container with a shell script.
    pub fn start(&self, flags: &str, script: &str) -> String {
        let flags = flags.split_whitespace();
        let words = ["run", "-d"].into_iter().chain(flags).chain(["busybox", "sh", "-c", script]);
        self.rbuild(words).ok().stdout.trim().to_string()
    }

    pub fn state(&self, name: &str, field: &str) -> String {
        self.rbuild(["inspect", "-f", field, name]).ok().stdout.trim().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let names = self.line("ps -aq").stdout;
        for name in names.lines() {
            self.rbuild(["rm", "-f", name]);
        }
    }
}

pub fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_met() {
        assert!(Instant::now() < end, "not within 30 seconds: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A script that runs until it is killed, even as the first process of a PID namespace.
pub const FOREVER: &str = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done";

#[test]
fn commands_are_started_again_on_their_files_as_the_policy_states() {
    let host = Host::new();
    let script = format!("echo x >> /n; [ $(wc -l < /n) -lt 3 ] && exit 5; {FOREVER}");
    host.start("--name a --restart on-failure:5", &script);
    let shown = "{{.RestartCount}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";
    wait_until("the third start", || host.state("a", shown) == "2 running on-failure");
    wait_until("output", || host.line("logs a").stdout == "up\n");
    assert_eq!(host.line("restart a").ok().stdout, "a\n");
    wait_until("output", || host.line("logs a").stdout == "up\nup\n");
    assert_eq!(host.line("exec a wc -l /n").ok().stdout, "4 /n\n");
    host.line("stop a").ok();
    assert_eq!(host.state("a", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}"), "3 exited 7");
    host.line("restart a").fails(1, &["started before"]);
    // Restarts on request are no attempts of the policy.
    host.start("--name d --restart on-failure:1", &format!("echo $$ > /pid; {FOREVER}"));
    for outputs in 1..=2 {
        wait_until("output", || host.line("logs d").stdout == "up\n".repeat(outputs));
        host.line("restart d").ok();
    }
    wait_until("output", || host.line("logs d").stdout == "up\n".repeat(3));
    host.rbuild(["exec", "d", "sh", "-c", "kill -TERM $(cat /pid)"]).ok();
    wait_until("a restart by the policy", || host.state("d", shown) == "3 running on-failure");
    // A signal that the command ignores, and a stop that is interrupted, do not forbid a restart.
    host.start("--name h", "trap '' TERM; echo up; while :; do sleep 0.1; done");
    wait_until("output", || host.line("logs h").stdout == "up\n");
    host.line("kill -s TERM h").ok();
    let mut stop = host.0.command(["stop", "-t", "100", "h"]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stop.kill().unwrap();
    stop.wait().unwrap();
    host.line("restart -t 0 h").ok();
    assert_eq!(host.state("h", "{{.RestartCount}} {{.State.Status}}"), "1 running");
    // A container that is stopped and restarted at the same time is stopped.
    for name in ["e", "f", "g"] {
        host.start(&format!("--name {name} --restart always"), "exit 1");
        let mut restart =
            host.0.command(["restart", name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        host.line(&format!("stop -t 2 {name}")).ok();
        assert!(began.elapsed() < Duration::from_secs(9), "{name}");
        assert!(host.state(name, "{{.State.Status}}").starts_with("exited"), "{name}");
        restart.wait().unwrap();
    }
    // A number of restarts, and a container that is stopped between two of them.
    host.start("--name b --restart on-failure:1", "exit 3");
    assert_eq!(host.line("wait b").ok().stdout, "3\n");
    assert_eq!(host.state("b", "{{.RestartCount}}"), "1");
    host.start("--name c --restart always", "exit 0");
    wait_until("restarts", || host.state("c", shown).starts_with("3 restarting"));
    assert!(host.line("ps -f name=c").ok().stdout.contains("Restarting (0)"));
    host.line("stop c").ok();
    assert_eq!(host.state("c", "{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
    host.line("run -d --rm --restart always busybox true").fails(125, &["--rm and --restart"]);
    assert!(host.line("run --restart always busybox true").ok().stderr.contains("no effect in the foreground"));
}

#[test]
fn volumes_outlive_their_containers() {
    let host = Host::new();
    if is_bare() {
        host.line("run --rm -v data:/etc busybox true").fails(125, &["a volume cannot be writable"]);
        return;
    }
    assert_eq!(host.line("volume create --label a=b data").ok().stdout, "data\n");
    // A new volume has the files of the image, with their owners.
    host.0.build("FROM busybox\nRUN mkdir -m 750 /d && echo one > /d/f && chown -R 7:8 /d\n", &["-t", "made"]).ok();
    let run = |flags: &str, script: &str| {
        let words = ["run", "--rm"].into_iter().chain(flags.split_whitespace()).chain(["made", "sh", "-c", script]);
        host.rbuild(words)
    };
    let shown = run("-v data:/d", "cat /d/f; stat -c '%u:%g %a' /d /d/f; echo two > /d/f; chown 9 /d/f").ok().stdout;
    assert_eq!(shown, "one\n7:8 750\n7:8 644\n");
    assert_eq!(
        run("--mount source=data,target=/e,readonly", "cat /e/f; stat -c %u /e/f; touch /e/g || echo no").stdout,
        "two\n9\nno\n"
    );
    host.line("run -d --name a -v data:/e -v /anon busybox sleep 1000").ok();
    // In the order of the names, of which one is random.
    let volumes = host.line("volume ls -q").ok().stdout;
    assert!(volumes.lines().is_sorted() && volumes.lines().any(|name| name == "data"), "{volumes}");
    assert!(volumes.lines().count() == 2 && volumes.lines().any(|name| name.len() == 64), "{volumes}");
    assert_eq!(host.state("a", "{{(index .Mounts 0).Name}} {{(index .Mounts 0).Type}}"), "data volume");
    assert_eq!(host.line("volume ls -q -f dangling=true").ok().stdout, "");
    host.line("volume rm data").fails(1, &["volume `data` is in use", "rbuild ps -a"]);
    assert!(host.line("volume prune -a").ok().stdout.contains("space: 0B"));
    host.line("rm -fv a").ok();
    assert_eq!(host.line("volume ls -q").ok().stdout, "data\n");
    run("-v /anon", "touch /anon/x").ok();
    assert_eq!(host.line("volume ls -q").ok().stdout, "data\n");
    assert!(host.line("volume inspect data").ok().stdout.contains("\"a\": \"b\""));
    host.line("volume rm dta").fails(1, &["volume `dta` not found", "did you mean `data`"]);
    assert_eq!(host.line("volume rm data").ok().stdout, "data\n");
    host.line("run -d --name b -v /anon busybox true").ok();
    host.line("wait b").ok();
    host.line("rm b").ok();
    assert!(host.line("volume prune").ok().stdout.starts_with("Deleted Volumes:\n"));
    assert_eq!(host.line("volume ls").ok().stdout, "DRIVER   VOLUME NAME\n");
}

#[test]
fn containers_are_listed_by_their_age_name_image_and_labels() {
    let host = Host::new();
    host.0.build("FROM busybox\nENV E=1 F=1\nLABEL a=1 b=1\n", &["-q", "-t", "app"]).ok();
    for name in ["a1", "a12", "b1"] {
        host.rbuild(["run", "-d", "--name", name, "busybox", "true"]).ok();
    }
    host.line("run -d --name c -l a=2 -e E=2 -e E=3 app true").ok();
    let listed = |flags: &str| {
        let names = host.line(&format!("ps -a --format {{{{.Names}}}} {flags}")).ok().stdout;
        names.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (flags, names) in [
        ("", "c b1 a12 a1"),
        ("-l", "c"),
        ("-n 2", "c b1"),
        ("-n 1 -f name=a1", "a12"),
        ("-f name=^a1$", "a1"),
        ("-f name=^/a1$ -f name=c", "c a1"),
        ("-f ancestor=busybox", "b1 a12 a1"),
        ("-f ancestor=busybox:latest", "b1 a12 a1"),
        ("-f ancestor=app", "c"),
        ("-f label=a=1", ""),
        ("-f label=a=2 -f label=b=1", "c"),
    ] {
        assert_eq!(listed(flags), names, "{flags}");
    }
    assert_eq!(host.line("ps -a -f name=c --format {{.Labels}}").ok().stdout, "a=2,b=1\n");
    let env = host.state("c", "{{json .Config.Env}}");
    assert!(env.contains("\"E=3\"") && env.contains("\"F=1\"") && !env.contains("E=1"), "{env}");
    host.line("ps -f name=a*").fails(2, &["--filter name=a*: not a supported pattern of names"]);
}

#[test]
fn the_caller_does_not_wait_for_the_streams_of_a_container() {
    let host = Host::new();
    // The output and an inherited descriptor are a pipe, which the container must not hold open.
    let out = host.0.sh("$RB run -d --name web busybox sleep 1000 2>&1 3>&1 | timeout 20 wc -l").ok();
    assert_eq!(out.stdout.trim(), "1");
    assert_eq!(host.state("web", "{{.State.Status}}"), "running");
}

#[test]
fn output_is_followed_until_the_end() {
    let host = Host::new();
    host.start("--name a", "for i in 1 2 3; do echo $i; sleep 0.2; done");
    assert_eq!(host.line("logs -f a").ok().stdout, "1\n2\n3\n");
    assert_eq!(host.line("logs -n 2 a").ok().stdout, "2\n3\n");
    assert_eq!(host.line("logs --since 1h a").ok().stdout, "1\n2\n3\n");
    assert_eq!(host.line("logs --until 1h a").ok().stdout, "");
    let times = host.line("logs -t a").ok().stdout;
    let second = times.lines().nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(host.line(&format!("logs --since {second} a")).ok().stdout, "2\n3\n");
    assert_eq!(host.line(&format!("logs -f --until {second} -n 1 a")).ok().stdout, "2\n");
    assert_eq!(host.line("logs --until 1h").ok().stdout.lines().count(), 1);
    host.line("logs --since soon a").fails(2, &["--since soon: not a duration or a time"]);
    host.start("--name b", FOREVER);
    let mut follow = host.0.command(["logs", "-f", "b"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(follow.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    host.line("stop b").ok();
    assert!(follow.wait().unwrap().success());
}

/// On a full disk, output is lost, but neither that before and after it nor the end.
#[test]
fn output_that_cannot_be_kept_does_not_destroy_the_rest() {
    let host = Host::new();
    let script = "echo first; head -c 12000000 /dev/zero | tr '\\0' x; sleep 0.3; echo; echo last; exit 3";
    // The limit, of a few MiB in units of the shell, stands for the size of the disk.
    host.0.sh(&format!("trap '' XFSZ; ulimit -f 8000; $RB run -d --name a busybox sh -c \"{script}\"")).ok();
    assert_eq!(host.line("wait a").ok().stdout, "3\n");
    let logs = host.line("logs a").ok().stdout;
    assert!(logs.starts_with("first\nxx") && logs.len() < 12_000_000, "{}", logs.len());
    // The pieces of the output may fill the disk to the last byte.
    let size = host.0.sh("cat $RBUILD_ROOT/runs/*/output | wc -c").ok().stdout;
    let left = 8000 * 512 - size.trim().parse::<i64>().unwrap();
    let has_end = logs.ends_with("\nlast\n");
    assert!(has_end || left < 19, "{left}");
    assert_eq!(host.line("logs -n 1 a").ok().stdout == "last\n", has_end);
}

#[test]
fn names_are_unique_and_checked() {
    let host = Host::new();
    host.start("--name web", FOREVER);
    host.line("run -d --name web busybox true").fails(125, &["container name `web` is already in use"]);
    host.line("run --name web busybox true").fails(125, &["container name `web` is already in use"]);
    host.line("run -d --name ../x busybox true").fails(125, &["--name ../x: not a valid name", "use letters"]);
    host.line("rm web").fails(1, &["container `web` is running", "rbuild stop web"]);
    host.line("stop wbe").fails(1, &["container `wbe` not found", "did you mean `web`?"]);
    assert_eq!(host.line("rm -f web nosuch").ok().stdout, "web\n");
    host.line("run -d --name web busybox true").ok();
    host.line("create --name made busybox").ok();
    host.line("wait made").fails(1, &["container `made` was never started"]);
}

#[test]
fn a_command_that_cannot_start_leaves_no_container() {
    let host = Host::new();
    host.line("run -d --name a busybox nosuch").fails(127, &["the image has no program `nosuch`"]);
    host.line("run -d --name a -u nobody-here busybox true").fails(125, &["no user `nobody-here`"]);
    host.line("run --name a -u nobody-here busybox true").fails(125, &["no user `nobody-here`"]);
    host.line("run --name a busybox nosuch").fails(127, &["the image has no program `nosuch`"]);
    assert_eq!(host.line("ps -aq").ok().stdout, "");
    assert_eq!(std::fs::read_dir(host.0.store().join("runs")).unwrap().count(), 0);
}

/// The command may be interrupted before it knows about the start: nobody would remove the
/// container.
#[test]
fn an_interrupted_start_leaves_no_container() {
    let host = Host::new();
    for delay in (4..24).map(|step| step * 5) {
        let signal = if delay % 10 == 0 { "INT" } else { "KILL" };
        let run = format!("timeout -s {signal} 0.{delay:03} $RB run -d --name a busybox sleep 1000");
        host.0.sh(&run);
        // It may also have been interrupted after the start.
        let is_settled = |states: &str| states.is_empty() || states == "running\n";
        wait_until("the container runs or is gone", || is_settled(&host.line("ps -a --format {{.State}}").ok().stdout));
        host.line("rm -f a").ok();
    }
    assert_eq!(std::fs::read_dir(host.0.store().join("runs")).unwrap().count(), 0);
}

#[test]
fn a_container_in_the_foreground_is_a_container_like_others() {
    let host = Host::new();
    let file = host.0.path("cid");
    let flag = format!("--cidfile={}", file.display());
    let mut run = host.0.command(["run", "--name", "web", &flag, "-l", "a=1", "busybox", "sh", "-c", FOREVER]);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    wait_until("the container writes", || host.line("logs web").stdout == "up\n");
    // The output of the command may precede the record of its start.
    let listed = || host.line("ps --format {{.Names}}|{{.State}}|{{.Labels}}").ok().stdout;
    wait_until("the start is recorded", || listed() == "web|running|a=1\n");
    let id = std::fs::read_to_string(&file).unwrap();
    assert_eq!(host.state("web", "{{.Id}}"), id);
    host.rbuild(["run", "--rm", &flag, "busybox", "true"]).fails(125, &["the file exists", "remove it"]);
    // The `chroot` mode has no host names.
    if !is_bare() {
        assert_eq!(host.line("exec web hostname").ok().stdout.trim(), &id[..12]);
    }
    host.line("rmi busybox").fails(1, &["container `web`"]);
    // Ctrl-Z must not stop the supervisor alone.
    let send = |signal: &str, to: u32| std::process::Command::new("kill").args([signal, &to.to_string()]).status();
    send("-TSTP", run.id()).unwrap();
    assert_eq!(host.line("stop web").ok().stdout, "web\n");
    let mut shown = String::new();
    run.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!((run.wait().unwrap().code(), shown.as_str()), (Some(7), "up\n"));
    assert_eq!(host.state("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
    assert_eq!(host.line("logs web").ok().stdout, "up\n");
    host.line("start web").fails(1, &["container `web` has been started before"]);
    host.line("rm web").ok();
    // Commands that end at once, and those that are killed.
    assert_eq!(host.line("run --name short busybox echo out").ok().stdout, "out\n");
    assert_eq!(host.state("short", "{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
    assert_eq!(host.line("logs short").ok().stdout, "out\n");
    host.line("run --rm busybox sh -c exit").ok();
    assert_eq!(host.line("run -d -q --rm busybox true").ok().stdout.lines().count(), 1);
    let mut run = host.0.command(["run", "--name", "k", "busybox", "sleep", "1000"]);
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    wait_until("the container runs", || host.line("ps --format {{.Names}}|{{.State}}").ok().stdout == "k|running\n");
    send("-STOP", run.id()).unwrap();
    host.line("rm -f k").fails(1, &["is stopped", "kill -CONT"]);
    send("-CONT", run.id()).unwrap();
    host.line("rm -f k").ok();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    wait_until("others are removed", || host.line("ps -aq").ok().stdout.lines().count() == 1);
}

#[test]
fn created_containers_are_started_once() {
    let host = Host::new();
    let create = ["create", "--name", "a", "-e", "A=1", "-w", "/etc", "busybox", "sh", "-c", "echo $A; pwd; exit 3"];
    let id = host.rbuild(create).ok().stdout;
    assert_eq!(host.state("a", "{{.Id}} {{.State.Status}}"), format!("{} created", id.trim()));
    let ran = host.line("start -a a");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), "1\n/etc\n"), "{}", ran.stderr);
    host.line("start a").fails(1, &["container `a` has been started before, and its files are removed"]);
    // A command that is not started leaves it as it was.
    host.line("create --name b busybox nosuch").ok();
    host.line("start b").fails(127, &["the image has no program `nosuch`"]);
    assert_eq!(host.state("b", "{{.State.Status}}"), "created");
    assert_eq!(host.line("logs b").ok().stdout, "");
    let file = host.0.path("cid");
    let file = file.to_str().unwrap();
    host.rbuild(["run", "--cidfile", file, "busybox", "nosuch"]).fails(127, &["no program `nosuch`"]);
    assert_eq!(std::fs::read_to_string(file).unwrap().len(), 64);
    host.rbuild(["create", "--name", "c", "busybox", "sh", "-c", FOREVER]).ok();
    assert_eq!(host.line("start c").ok().stdout, "c\n");
    assert_eq!(host.line("start c").ok().stdout, "c\n");
    wait_until("the container writes", || host.line("logs c").ok().stdout == "up\n");
    host.line("stop c").ok();
    assert_eq!(host.state("c", "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
}

/// Privileges, mounts, groups and name resolution.
#[test]
fn flags_of_run_have_the_effects_that_docker_gives_them() {
    let host = Host::new();
    host.0.write("labels", "# of a file\na=1\nb\n");
    let labels = host.0.ctx().join("labels");
    let labels = labels.to_str().unwrap();
    let flags = "--tmpfs /t:mode=0700 --mount type=tmpfs,target=/m/n --group-add extra --group-add 77 \
                 --dns 10.9.9.9 --dns-search example.com --label-file";
    let script = "stat -c %a /t; touch /m/n/x; id -G; grep -c -e 10.9.9.9 -e example.com /etc/resolv.conf; exit 9";
    let words = ["run", "-d", "--name", "a"].into_iter().chain(flags.split_whitespace());
    host.rbuild(words.chain([labels, "busybox", "sh", "-c", script])).ok();
    assert_eq!(host.line("wait a").ok().stdout, "9\n");
    assert_eq!(host.line("logs a").ok().stdout, "700\n0 50 77\n2\n");
    let format = "{{json .Config.Labels}} {{len .Mounts}} {{.HostConfig.GroupAdd}} {{index .HostConfig.Tmpfs \"/t\"}}";
    let shown = host.state("a", format);
    assert_eq!(shown, "{\"a\":\"1\",\"b\":\"\"} 2 [extra 77] mode=700");
    assert_eq!(host.state("a", "{{.Config.StopSignal}}"), "SIGTERM");
    let read_only = ["run", "--rm", "--read-only", "--tmpfs", "/t", "busybox", "sh", "-c"];
    let script = "touch /x 2>/dev/null || echo refused; touch /t/x /dev/shm/x && cp /bin/busybox /t/ && /t/busybox true 2>/dev/null || echo noexec";
    let read_only = host.rbuild(read_only.into_iter().chain([script]));
    if is_bare() {
        read_only.fails(126, &["a read-only root file system requires mounts"]);
        return;
    }
    assert_eq!(read_only.ok().stdout, "refused\nnoexec\n");
    let caps = "grep -e CapEff -e NoNewPrivs /proc/self/status";
    for (flags, expected) in [
        ("--cap-drop chown --cap-add CAP_NET_ADMIN", "CapEff:\t00000000a80435fa\nNoNewPrivs:\t0\n"),
        ("--cap-drop ALL -u 33", "CapEff:\t0000000000000000\nNoNewPrivs:\t0\n"),
        ("--cap-drop ALL --security-opt no-new-privileges", "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n"),
    ] {
        let words = ["run", "--rm"].into_iter().chain(flags.split_whitespace()).chain(["busybox", "sh", "-c", caps]);
        assert_eq!(host.rbuild(words).ok().stdout, expected, "{flags}");
    }
    // Emulated IDs follow the capabilities as well.
    let ids =
        "touch /x; chown 5 /x 2>/dev/null || echo refused; stat -c %u /x; su web -c 'id -u' 2>/dev/null || echo none";
    for (flags, expected) in [
        ("--cap-drop chown", "refused\n0\n33\n"),
        ("--cap-add all --cap-drop setuid", "5\nnone\n"),
        ("--cap-drop all --cap-add chown", "5\nnone\n"),
    ] {
        let words = ["run", "--rm"].into_iter().chain(flags.split_whitespace()).chain(["busybox", "sh", "-c", ids]);
        assert_eq!(host.rbuild(words).ok().stdout, expected, "{flags}");
    }
    // A command of `exec` has the capabilities of the container, too.
    host.start("--name dropped --cap-drop ALL --cap-add kill", FOREVER);
    let inner = host.line("exec dropped grep CapEff /proc/self/status").ok().stdout;
    assert_eq!(inner, "CapEff:\t0000000000000020\n");
    host.rbuild(["exec", "dropped", "sh", "-c", "touch /y; chown 5 /y"]).fails(1, &["chown"]);
    assert_eq!(host.state("dropped", "{{.HostConfig.CapAdd}} {{len .HostConfig.CapDrop}}"), "[] 13");
}

#[test]
fn the_store_is_pruned_and_checked_while_a_container_runs() {
    let host = Host::new();
    host.0.build("FROM busybox\nRUN echo x > /x && mkdir /d && touch /d/y\n", &["-q", "-t", "app"]).ok();
    host.rbuild(["run", "-d", "--name", "a", "app", "sh", "-c", FOREVER]).ok();
    host.line("rmi app").fails(1, &["container `a`"]);
    host.line("prune -a").ok();
    host.line("prune --keep-storage 1k").ok();
    host.line("fsck").ok();
    host.line("fsck --repair").ok();
    assert_eq!(host.line("exec a ls /x /d").ok().stdout, "/x\n\n/d:\ny\n");
    // The same image is built and unpacked again beside it.
    host.0.build("FROM busybox\nRUN echo x > /x && mkdir /d && touch /d/y\n", &["-q", "-t", "app"]).ok();
    assert_eq!(host.line("run app cat /x").ok().stdout, "x\n");
    host.0.build("FROM app\nRUN cat /x\n", &["--no-cache"]).ok();
    assert_eq!(host.line("exec a cat /x").ok().stdout, "x\n");
    host.line("container prune -f").ok();
    assert_eq!(host.state("a", "{{.State.Status}}"), "running");
    host.line("rm -f a").ok();
    host.line("rmi -f app").ok();
    host.line("prune -a").ok();
    assert_eq!(std::fs::read_dir(host.0.store().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_shell_in_the_background_keeps_its_terminal() {
    let host = Host::new();
    host.line("run -dit --name a busybox sh").ok();
    host.line("run -di --name b busybox cat").ok();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(host.line("ps -q").ok().stdout.lines().count(), 2);
    // script(1) provides a terminal.
    let typed = "script -qec \"$RB exec -it a sh -c 'tty; echo in; exit 3'\" /dev/null; echo code $?";
    let out = host.0.sh(typed).stdout.replace('\r', "");
    assert!(out.contains("in\n") && out.contains("code 3"), "{out}");
}

#[test]
fn containers_and_images_with_one_name_are_told_apart() {
    let host = Host::new();
    host.start("--name busybox -l team=a --label alone", FOREVER);
    assert_eq!(host.state("busybox", "{{.Name}}"), "/busybox");
    let labels = host.rbuild(["inspect", "-f", "{{json .Config.Labels}}", "busybox"]).ok().stdout;
    assert_eq!(labels.trim(), "{\"team\":\"a\",\"alone\":\"\"}");
    let of_image = host.rbuild(["image", "inspect", "-f", "{{.RepoTags}}", "busybox"]).ok().stdout;
    assert_eq!(of_image.trim(), "[busybox:latest]");
    host.line("container inspect nosuch").fails(1, &["container `nosuch` not found"]);
    assert_eq!(host.line("ps -q --filter label=team=a").ok().stdout.lines().count(), 1);
    assert_eq!(host.line("ps -q --filter ancestor=busybox").ok().stdout.lines().count(), 1);
    // A build has the name as well.
    host.0.build("FROM busybox\nRUN echo built\n", &["--no-cache", "--progress", "plain"]).ok();
    let build = host.line("logs").ok().stdout.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_string();
    host.start(&format!("--name {}", &build[..6]), "echo container");
    host.rbuild(["wait", &build[..6]]).ok();
    let shown = host.rbuild(["logs", &build[..6]]).ok();
    assert_eq!(shown.stdout, "container\n");
    assert!(shown.stderr.contains("is a container and a build"), "{}", shown.stderr);
    assert!(host.rbuild(["logs", &build]).ok().stdout.contains("built"));
}

/// The limits apply where control groups are delegated. Elsewhere, one warning states the reason.
#[test]
fn limits_apply_or_are_reported() {
    let host = Host::new();
    let script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done 2>/dev/null; echo over";
    let many = host.rbuild(["run", "--pids-limit", "20", "busybox", "sh", "-c", script]);
    let filler = "x=x; while :; do x=$x$x; done";
    let large = host.rbuild(["run", "-m", "20m", "--cpus", "1.5", "busybox", "sh", "-c", "true"]).ok();
    if many.stderr.contains("warning: ") {
        let reasons = ["the machine has no `pids` controller", "no control group is delegated to this user"];
        assert!(reasons.iter().any(|reason| many.stderr.contains(reason)), "{}", many.stderr);
        assert_eq!((many.stdout.as_str(), many.stderr.matches("warning: ").count()), ("over\n", 1));
        assert!(large.stderr.starts_with("warning: --memory, --cpus have no effect: "), "{}", large.stderr);
        host.start("-d -m 20m --name a", FOREVER);
        assert_eq!(host.state("a", "{{.HostConfig.Memory}}"), "0");
        return;
    }
    assert!(many.code != Some(0) || many.stdout.is_empty(), "{} {}", many.stdout, many.stderr);
    let large = host.rbuild(["run", "-m", "20m", "busybox", "sh", "-c", filler]);
    large.fails(137, &["the container exceeded its limit on memory", "raise the limit: --memory SIZE"]);
    host.start("--name a -m 20m --cpus 0.5 --pids-limit 30", filler);
    assert_eq!(host.line("wait a").ok().stdout, "137\n");
    assert_eq!(host.state("a", "{{.State.OOMKilled}} {{.HostConfig.Memory}}"), "true 20971520");
}
