//! Verbs on running containers that concern their processes, their names and all of their files.

use crate::containers::{FOREVER, Host, wait_until};
use crate::lab::{contents, is_bare};

#[test]
fn processes_are_listed_measured_paused_and_continued() {
    let host = Host::new();
    host.start("--name a", "while :; do date +%N >> /beats; sleep 0.02; done");
    wait_until("output", || host.line("exec a cat /beats").stdout.lines().count() > 2);
    let rows = host.line("top a").ok().stdout;
    assert!(rows.starts_with("UID   PID "), "{rows}");
    assert!(rows.lines().nth(1).is_some_and(|row| row.starts_with("0 ") && row.contains("sh -c while :")), "{rows}");
    let stats = host.line("stats --no-stream a").ok().stdout;
    assert!(stats.starts_with("CONTAINER ID   NAME   CPU %") && stats.contains("%"), "{stats}");
    assert_eq!(host.line("stats --format {{.Name}}").ok().stdout, "a\n");
    assert_eq!(host.line("pause a").ok().stdout, "a\n");
    let beats = || host.line("cp a:/beats -").ok().stdout.len();
    let paused = beats();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(beats(), paused);
    assert!(host.line("ps --format {{.Status}}").ok().stdout.ends_with(" (Paused)\n"));
    assert_eq!(host.line("ps -q -f status=running").ok().stdout, "");
    assert_eq!(host.state("a", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}"), "paused true true");
    host.line("exec a true").fails(1, &["container `a` is paused", "rbuild unpause a"]);
    host.line("pause a").fails(1, &["container `a` is paused"]);
    assert_eq!(host.line("unpause a").ok().stdout, "a\n");
    wait_until("it goes on", || beats() > paused);
    host.line("unpause a").fails(1, &["container `a` is not paused"]);
    host.line("exec a true").ok();
    // A paused container reacts to the request for its end.
    host.start("--name b", FOREVER);
    wait_until("output", || host.line("logs b").ok().stdout == "up\n");
    host.line("pause b").ok();
    host.line("stop b").ok();
    assert_eq!(host.state("b", "{{.State.ExitCode}}"), "7");
    host.line("top b").fails(1, &["container `b` is not running"]);
    host.line("stats b").fails(1, &["container `b` is not running"]);
    host.line("pause b").fails(1, &["container `b` is not running"]);
}

#[test]
fn a_command_goes_on_in_the_background() {
    let host = Host::new();
    host.start("--name a", FOREVER);
    let script = "echo unseen; sleep 0.2; id -u > /who";
    assert_eq!(host.rbuild(["exec", "-d", "-u", "33", "-w", "/", "a", "sh", "-c", script]).ok().stdout, "");
    host.line("exec -d a nosuch").fails(127, &["the image has no program `nosuch`"]);
    host.line("exec -d -u nosuch a true").fails(1, &["the image has no user `nosuch`"]);
    host.rbuild(["exec", "-d", "a", "sh", "-c", "sleep 0.2; echo done > /done"]).ok();
    wait_until("the command has ended", || host.line("exec a cat /done").stdout == "done\n");
    assert_eq!(host.line("logs a").ok().stdout, "up\n");
}

#[test]
fn a_container_gets_another_name() {
    let host = Host::new();
    host.start("--name a", FOREVER);
    host.line("create --name b busybox").ok();
    host.line("rename a b").fails(1, &["`b`", "rbuild rm b"]);
    host.line("rename a x/y").fails(2, &["`x/y` is not a valid name"]);
    host.line("rename c d").fails(1, &["container `c` not found"]);
    assert_eq!(host.line("rename a c").ok().stdout, "");
    assert_eq!(host.line("exec c echo x").ok().stdout, "x\n");
    host.line("exec a true").fails(1, &["container `a` not found"]);
    assert_eq!(host.line("container rename b a").ok().stdout, "");
    assert_eq!(host.line("ps -a --format {{.Names}}").ok().stdout, "a\nc\n");
}

#[test]
fn the_files_of_a_container_are_exported_without_mounts() {
    let host = Host::new();
    let mounts = if is_bare() { "" } else { "--tmpfs /t -v data:/d" };
    host.start(&format!("--name a {mounts}"), &format!("echo new > /new; rm /etc/group; touch /t/x /d/x; {FOREVER}"));
    wait_until("output", || host.line("logs a").ok().stdout.ends_with("up\n"));
    let file = host.0.path("a.tar");
    host.rbuild(["export", "-o", file.to_str().unwrap(), "a"]).ok();
    let found = contents(&std::fs::read(&file).unwrap());
    let text = |path: &str| found.get(path).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!((text("new").as_deref(), text("etc/group")), (Some("new\n"), None));
    assert!(found.contains_key("bin/busybox") && found.contains_key("etc/passwd"));
    if !is_bare() {
        let inside = |dir: &str| found.keys().filter(|name| name.starts_with(dir) && *name != dir).count();
        assert_eq!(["proc/", "sys/", "t/", "d/"].map(inside), [0; 4]);
    }
    // `cp` of all files writes the same archive.
    let copied = host.0.path("copied.tar");
    let mut command = host.0.command(["cp", "a:/", "-"]);
    command.stdout(std::fs::File::create(&copied).unwrap());
    assert!(command.status().unwrap().success());
    assert_eq!(contents(&std::fs::read(&copied).unwrap()), found);
    // A container that was never started has the files of its image.
    host.line("create --name b busybox").ok();
    host.rbuild(["export", "--output", file.to_str().unwrap(), "b"]).ok();
    let of_image = contents(&std::fs::read(&file).unwrap());
    assert!(of_image.contains_key("etc/group") && !of_image.contains_key("new"));
    host.line("kill a").ok();
    host.line("wait a").ok();
    host.line("export a").fails(1, &["the files of container `a` were removed at its end"]);
    host.line("export nosuch").fails(1, &["container `nosuch` not found"]);
}
