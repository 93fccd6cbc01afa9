//! Files of running containers: `diff`, `commit` and `cp`.

use std::process::Stdio;

use crate::containers::Host;
use crate::lab::is_bare;

#[test]
fn hidden_replaced_and_short_lived_files_are_listed_as_they_are() {
    let host = Host::new();
    let script = "mkdir -p /lib2/x /d/sub && touch /lib2/foo /d/one && ln -s lib2 /link";
    host.0.build(&format!("FROM busybox\nRUN {script}\nEXPOSE 80\nSTOPSIGNAL SIGQUIT\n"), &["-t", "made"]).ok();
    host.line("run -d --name a --expose 81 --stop-signal USR1 made sleep 1000").ok();
    let script = "rm /link; mkdir /link; touch /link/foo; rm -r /d; mkdir /d; touch /d/new '/d/a\nD b'";
    host.rbuild(["exec", "a", "sh", "-c", script]).ok();
    if !is_bare() {
        let changes = host.line("diff a").ok().stdout;
        let want = ["A /d/a\\nD b", "A /d/new", "A /link/foo", "C /d", "C /link", "D /d/one", "D /d/sub"];
        let mut found: Vec<&str> = changes.lines().collect();
        found.sort_unstable();
        assert_eq!(found, want);
        let script = "mkdir /busy; (while :; do touch /busy/a /busy/b; rm -f /busy/a /busy/b; done) & sleep 3";
        let exec = ["exec", "a", "sh", "-c", script];
        let mut busy = host.0.command(exec).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for _ in 0..20 {
            host.line("diff a").ok();
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        host.line("commit -a somebody a kept").ok();
        host.line("create --name new made").ok();
        host.line("diff new").fails(1, &["container `new` has not been started", "rbuild start new"]);
        host.line("run --name over busybox true").ok();
        for verb in ["diff over", "commit over image"] {
            host.line(verb).fails(1, &["the files of container `over` were removed at its end"]);
        }
        let shown = "{{.Author}} {{.Config.StopSignal}} {{json .Config.ExposedPorts}}";
        assert_eq!(host.state("kept", shown), r#"somebody SIGUSR1 {"80/tcp":{},"81/tcp":{}}"#);
    }
}

#[test]
fn copied_directories_keep_their_modes() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    host.0.build("FROM busybox\nRUN mkdir -m 700 /p && touch /p/f\n", &["-t", "made"]).ok();
    host.line("run -d --name a made sleep 1000").ok();
    let (new, parent) = (host.0.path("new"), host.0.path("parent"));
    std::fs::create_dir(&parent).unwrap();
    for from in ["made:/p", "a:/p"] {
        host.rbuild(["cp", from, new.to_str().unwrap()]).ok();
        host.rbuild(["cp", from, parent.to_str().unwrap()]).ok();
        assert_eq!((mode(&new), mode(&parent.join("p"))), (0o700, 0o700), "{from}");
        assert!(new.join("f").exists() && parent.join("p/f").exists());
        std::fs::remove_dir_all(&new).unwrap();
        std::fs::remove_dir_all(parent.join("p")).unwrap();
    }
    let private = host.0.path("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o2750)).unwrap();
    for to in ["a:/", "a:/other"] {
        host.rbuild(["cp", private.to_str().unwrap(), to]).ok();
    }
    let shown = host.rbuild(["exec", "a", "stat", "-c", "%a", "/private", "/other"]).ok().stdout;
    assert_eq!(shown, "2750\n2750\n");
}
