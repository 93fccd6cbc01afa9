//! The debug log: `RBUILD_LOG`, `-D` and `--debug-log`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lab::Lab;

const DOCKERFILE: &str = "FROM busybox\nRUN --mount=type=secret,id=token test -s /run/secrets/token\nCOPY f /f\n";

fn lab() -> Lab {
    let lab = Lab::new();
    std::fs::write(lab.path("token"), "hunter2-hunter2").unwrap();
    lab.write("f", "1").write("Dockerfile", DOCKERFILE);
    lab
}

fn build(lab: &Lab, env: &[(&str, &str)], args: &[&str]) -> crate::lab::Ran {
    let secret = format!("id=token,src={}", lab.path("token").display());
    let ctx = lab.ctx();
    let args = [args, &["-o", "type=oci,dest=out.tar", "--secret", &secret, ctx.to_str().unwrap()]].concat();
    lab.run_with(&mut lab.command(args), env)
}

#[test]
fn the_debug_log_contains_json_lines_and_no_secret() {
    let lab = lab();
    let log = lab.path("log.json");
    build(&lab, &[], &["--debug-log", log.to_str().unwrap()]).ok();
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let spans: BTreeSet<&str> = lines.iter().filter_map(|line| line["span"]["name"].as_str()).collect();
    for name in ["prepare", "lookup", "key", "vertex", "once", "runner", "pack", "export"] {
        assert!(spans.contains(name), "no span {name} in {spans:?}\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

/// Returns the events of a message in a log, as their other fields.
fn events(log: &std::path::Path, message: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["fields"]["message"] == message).collect()
}

#[test]
fn the_debug_log_contains_decisions_and_their_reasons() {
    let lab = lab();
    let log = |name: &str| {
        let log = lab.path(name);
        build(&lab, &[], &["--debug-log", log.to_str().unwrap()]).ok();
        log
    };
    let reasons = |log: &std::path::Path| -> BTreeSet<String> {
        events(log, "cache miss").iter().map(|e| e["fields"]["reason"].as_str().unwrap().to_string()).collect()
    };
    let first = log("first");
    let expected = [
        "an input must be built first",
        "no earlier build of this step is recorded",
        "nothing is recorded under this key",
    ];
    assert_eq!(reasons(&first), expected.map(String::from).into());
    // The span of an event identifies the step.
    let second = log("second");
    let hits = events(&second, "cache hit");
    let labels: BTreeSet<&str> = hits.iter().map(|e| e["span"]["label"].as_str().unwrap()).collect();
    assert_eq!((labels.len(), reasons(&second).len()), (2, 0), "{hits:?}");
    assert!(hits.iter().all(|e| e["fields"]["key"].as_str().is_some_and(|key| key.len() >= 8)), "{hits:?}");
    lab.write("f", "2");
    let third = log("third");
    assert!(reasons(&third).iter().any(|reason| reason == "`f` changed"), "{:?}", reasons(&third));
    let prune = lab.path("prune");
    lab.rbuild(["--debug-log", prune.to_str().unwrap(), "prune", "-a", "-f"]).ok();
    let removed = events(&prune, "removed");
    assert!(removed.iter().any(|e| e["fields"]["kind"] == "trees" && e["fields"]["bytes"].is_u64()), "{removed:?}");
}

#[test]
fn evictions_and_waits_are_in_the_debug_log() {
    let lab = lab();
    build(&lab, &[], &[]).ok();
    let log = lab.path("log.json");
    let limit = [("RBUILD_CACHE_LIMIT", "1")];
    lab.write("f", "2");
    build(&lab, &limit, &["--debug-log", log.to_str().unwrap()]).ok();
    let evicted = events(&log, "removed");
    assert!(evicted.iter().any(|e| e["fields"]["reason"] == "the cache is over its limit"), "{evicted:?}");
    let waits = lab.path("waits.json");
    let held = format!(
        "flock -x {}/lock sleep 1 & sleep 0.3; $RB --debug-log {} images; wait",
        lab.store().display(),
        waits.display()
    );
    lab.sh(&held).ok();
    for message in ["waiting for a lock", "the wait for a lock ended"] {
        assert_eq!(
            events(&waits, message).first().map(|e| e["fields"]["lock"].clone()),
            Some("lock".into()),
            "{message}"
        );
    }
}

#[test]
fn rbuild_log_selects_the_parts_on_standard_error() {
    let lab = lab();
    let ran = build(&lab, &[("RBUILD_LOG", "engine=debug")], &["--no-cache"]).ok();
    assert!(ran.stderr.contains("DEBUG vertex") && ran.stderr.contains(" engine: "), "{}", ran.stderr);
    assert!(!ran.stderr.contains(" store: ") && !ran.stderr.contains("hunter2"), "{}", ran.stderr);
    let ran = build(&lab, &[], &["-D", "--no-cache"]).ok();
    assert!(ran.stderr.contains(" store: "), "{}", ran.stderr);
    let ran = build(&lab, &[], &["--no-cache"]).ok();
    assert!(!ran.stderr.contains("DEBUG"), "{}", ran.stderr);
}

#[test]
fn invalid_filters_and_unwritable_files_are_rejected() {
    let lab = lab();
    build(&lab, &[("RBUILD_LOG", "loud")], &[]).fails(2, &["`loud` is not a level", "error, warn, info, debug"]);
    build(&lab, &[("RBUILD_LOG", "engin=debug")], &[])
        .fails(2, &["unknown part `engin`", "hint: did you mean `engine`?"]);
    build(&lab, &[("RBUILD_LOG", "x=debug")], &[]).fails(2, &["unknown part `x`", "hint: use engine, store"]);
    build(&lab, &[], &["--debug-log", "/no/such/log"]).fails(1, &["/no/such/log", "no such file"]);
}
