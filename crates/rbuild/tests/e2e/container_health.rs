//! Health checks of containers.

use crate::containers::{FOREVER, Host, wait_until};

const HEALTH: &str = "{{.State.Health.Status}}";

#[test]
fn a_container_is_as_healthy_as_the_check_of_its_image_reports() {
    let host = Host::new();
    let file = "FROM busybox\nHEALTHCHECK --interval=100ms --timeout=20s --retries=2 CMD cat /ok\n";
    host.0.build(file, &["-t", "checked"]).ok();
    host.rbuild(["run", "-d", "--name", "a", "--health-start-period", "1s", "checked", "sh", "-c", FOREVER]).ok();
    let status = || host.line("ps --format {{.Status}}").ok().stdout;
    assert!(status().ends_with(" (health: starting)\n"), "{}", status());
    wait_until("two failures", || host.state("a", HEALTH) == "unhealthy");
    assert!(status().ends_with(" (unhealthy)\n"), "{}", status());
    let last =
        "{{len .State.Health.Log}} {{(index .State.Health.Log 1).ExitCode}} {{(index .State.Health.Log 1).Output}}";
    let shown = host.state("a", last);
    assert!(shown.ends_with(" 1 cat: can't open '/ok': No such file or directory"), "{shown}");
    assert_eq!(host.line("ps -q -f health=healthy").ok().stdout, "");
    host.line("exec a touch /ok").ok();
    wait_until("a success", || host.state("a", HEALTH) == "healthy");
    assert!(status().ends_with(" (healthy)\n"), "{}", status());
    assert_eq!(host.state("a", "{{.State.Health.FailingStreak}} {{.Config.Healthcheck.Retries}}"), "0 2");
    assert_eq!(host.line("ps --format {{.Names}} -f health=healthy").ok().stdout, "a\n");
    host.line("ps -f health=well").fails(2, &["unknown state of health", "starting, healthy, unhealthy or none"]);
    // A restart begins again.
    host.line("exec a rm /ok").ok();
    host.line("restart a").ok();
    wait_until("a new start", || host.state("a", HEALTH) != "healthy");
    host.line("stop a").ok();
    assert_eq!(host.state("a", &format!("{{{{.State.Status}}}} {HEALTH}")), "exited unhealthy");
    let status = host.line("ps -a --format {{.Status}}").ok().stdout;
    assert!(status.starts_with("Exited (7)") && !status.contains("health"), "{status}");
}

#[test]
fn flags_replace_the_check_of_the_image() {
    let host = Host::new();
    host.0.build("FROM busybox\nHEALTHCHECK CMD false\nUSER web\n", &["-t", "checked"]).ok();
    let run = |name: &str, flags: &[&str]| {
        let words = ["run", "-d", "--name", name].into_iter().chain(flags.iter().copied());
        host.rbuild(words.chain(["checked", "sh", "-c", FOREVER])).ok();
    };
    run("none", &["--no-healthcheck"]);
    assert!(host.rbuild(["inspect", "none"]).ok().stdout.contains("\"Running\": true"));
    assert!(!host.rbuild(["inspect", "none"]).ok().stdout.contains("Health"));
    let fast = ["--health-interval", "100ms"];
    // The user, the variables and the directory are those of the container.
    let script = "id -u; echo $A; pwd";
    run("same", &[&fast[..], &["-e", "A=b", "-w", "/tmp", "--health-cmd", script]].concat());
    wait_until("a success", || host.state("same", HEALTH) == "healthy");
    assert_eq!(host.state("same", "{{(index .State.Health.Log 0).Output}}"), "33\nb\n/tmp");
    // A check that takes too long is ended with all that it started.
    let slow = ["--health-cmd", "echo begun; sleep 1000", "--health-timeout", "1s", "--health-retries", "1"];
    run("slow", &[&fast[..], &slow].concat());
    wait_until("a check that takes too long", || host.state("slow", HEALTH) == "unhealthy");
    let log = host.state("slow", "{{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}{{end}}");
    assert_eq!(log, "-1 Health check exceeded timeout (1s): begun");
    let missing = ["--health-cmd", "", "--health-retries", "1"];
    run("inherited", &[&fast[..], &missing].concat());
    wait_until("a failure", || host.state("inherited", HEALTH) == "unhealthy");
    host.line("run --health-interval 5 checked true").fails(125, &["--health-interval 5: not a time", "such as 30s"]);
    host.line("run --health-retries x checked true").fails(125, &["--health-retries x: not a number of checks"]);
    host.line("run --no-healthcheck --health-cmd x checked true").fails(125, &["exclude each other"]);
    let warned = host.line("run --rm --health-retries 1 busybox true").ok().stderr;
    assert!(warned.contains("have no effect without --health-cmd"), "{warned}");
}

#[test]
fn containers_in_the_foreground_are_checked_and_leave_no_process() {
    let host = Host::new();
    let script = "while [ ! -e /checked ]; do sleep 0.05; done; echo checked";
    let words = ["run", "--rm", "--health-interval", "50ms", "--health-cmd", "touch /checked", "busybox", "sh", "-c"];
    assert_eq!(host.rbuild(words.into_iter().chain([script])).ok().stdout, "checked\n");
    // The process that checks ends with the supervisor.
    host.start("--name a --health-interval 50ms --health-cmd true", FOREVER);
    wait_until("a success", || host.state("a", HEALTH) == "healthy");
    // Forks of the command have its variables, and so the path of the store.
    let processes = processes_with(host.0.store().to_str().unwrap());
    let is_child = |process: &&u32| processes.iter().any(|other| Some(*other) == parent_of(**process));
    let supervisor = processes.iter().find(|process| !is_child(process)).unwrap();
    std::process::Command::new("kill").args(["-9", &supervisor.to_string()]).status().unwrap();
    wait_until("its processes end", || processes.iter().all(|process| parent_of(*process).is_none()));
    assert_eq!(host.state("a", "{{.State.Status}}"), "dead");
}

/// Returns the processes that have a text in their environment.
fn processes_with(text: &str) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_text = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(text.len()).any(|part| part == text.as_bytes())
    };
    ids.filter(|pid| *pid != std::process::id() && has_text(pid)).collect()
}

/// Returns the parent of a process that runs.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // Nothing may wait for a process that has ended.
    if fields.next()? == "Z" { None } else { fields.next()?.parse().ok() }
}
