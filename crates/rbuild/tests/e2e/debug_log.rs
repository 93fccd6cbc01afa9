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
    for name in ["prepare", "key", "vertex", "once", "runner", "pack", "export"] {
        assert!(spans.contains(name), "no span {name} in {spans:?}\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
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
    build(&lab, &[("RBUILD_LOG", "engin=debug")], &[]).fails(2, &["unknown part `engin`", "engine, store"]);
    build(&lab, &[], &["--debug-log", "/no/such/log"]).fails(1, &["/no/such/log", "No such file"]);
}
