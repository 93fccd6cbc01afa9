//! The command line from end to end, as the user who runs `cargo test`, on an image that the tests
//! make themselves. Each function is tested once here; `tests/e2e` contains the detailed cases.

use rbuild_testkit::{Lab, Requirement, exists, requires, skip};

const DOCKERFILE: &str = r#"
FROM tiny AS builder
COPY input /src/
RUN ["/bin/tool", "copy", "/src/input", "/made", "env", "HOME"]

FROM tiny
ENV GREETING=hello
WORKDIR /srv
COPY --from=builder --chown=web /made made
RUN ["/bin/tool", "write", "log", "ran"]
ENTRYPOINT ["/bin/tool", "show", "made", "env", "GREETING"]
"#;

#[test]
fn a_build_runs_caches_and_exports() {
    requires!(Requirement::Program, Requirement::Commands);
    let lab = match Lab::tiny() {
        Ok(lab) => lab,
        Err(reason) => return skip(&reason),
    };
    lab.write("input", "one\n");
    let first = lab.build(DOCKERFILE, &["-t", "made", "--progress", "plain"]).ok();
    assert_eq!(first.steps(), (5, 0), "{}", first.stderr);
    let ran = lab.rbuild(["run", "made"]).ok();
    assert_eq!(ran.stdout, "one\nhello\n");

    let again = lab.build(DOCKERFILE, &["-t", "made", "--progress", "plain"]).ok();
    assert_eq!(again.steps(), (0, 5), "{}", again.stderr);

    lab.write("input", "two\n");
    let out = lab.build_local(DOCKERFILE, &[]);
    assert_eq!(std::fs::read_to_string(out.join("srv/made")).unwrap(), "two\n");
    assert_eq!(std::fs::read_to_string(out.join("srv/log")).unwrap(), "ran\n");
    assert!(!exists(out.join("made")), "only the last stage is exported");

    let listing = lab.build_listing(DOCKERFILE);
    assert!(listing.contains(&"644 33:33 srv/made".to_string()), "{listing:?}");
    let failed = lab.build("FROM tiny\nRUN [\"/bin/tool\", \"print\", \"said\", \"exit\", \"3\"]\n", &[]);
    assert!(failed.code == Some(1) && failed.stderr.contains("said"), "{:?} {}", failed.code, failed.stderr);
}
