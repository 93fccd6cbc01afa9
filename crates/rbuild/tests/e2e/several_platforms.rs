//! Builds for several platforms: their steps are one schedule.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, contents, is_bare};

const PLATFORMS: [&str; 2] = ["--platform", "linux/amd64,linux/arm64"];

/// Waits until the cache mount contains this file.
fn wait_for(file: &str) -> String {
    format!("i=0; until [ -e /c/{file} ] || [ $i = 150 ]; do sleep 0.1; i=$((i+1)); done; [ -e /c/{file} ]")
}

/// Steps of both platforms wait for each other, and so do two steps that both platforms need: with
/// two workers, none of them may wait for equal work.
#[test]
fn independent_steps_run_side_by_side_and_shared_ones_once() {
    let lab = Lab::new();
    if is_bare() {
        return;
    }
    let shared = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/c touch /c/{own}; {}; head -c 9 /dev/urandom | md5sum > /{own}",
            wait_for(other)
        )
    };
    let file = format!(
        "FROM --platform=$BUILDPLATFORM busybox AS one\n{}\n\
         FROM --platform=$BUILDPLATFORM busybox AS two\n{}\n\
         FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n\
         RUN --mount=type=cache,target=/c --mount=from=one,target=/o --mount=from=two,target=/t \
         touch /c/$TARGETARCH; {} && {} && cat /o/x /t/y > /xy\n\
         FROM scratch\nCOPY --from=made /xy /\n",
        shared("x", "y"),
        shared("y", "x"),
        wait_for("amd64"),
        wait_for("arm64"),
    );
    let out = format!("type=local,dest={}", lab.path("out").display());
    let ran = lab.build(&file, &[&PLATFORMS[..], &["--jobs", "2", "-o", &out]].concat()).ok();
    assert_eq!(lab.read("out/linux_amd64/xy"), lab.read("out/linux_arm64/xy"));
    // Of each shared step, one is executed, whichever platform it is of, and so is one of the two
    // copies, which are of equal files.
    assert_eq!(ran.steps(), (5, 3), "{}", ran.stderr);
    for label in ["[linux/amd64 made 2/2]", "[linux/arm64 made 2/2]", "[linux/amd64 one 2/2]", "[linux/arm64 one 2/2]"]
    {
        assert!(ran.stderr.contains(label), "{label}\n{}", ran.stderr);
    }
}

#[test]
fn a_failure_of_one_platform_stops_the_others() {
    let lab = Lab::new();
    let file = "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n\
                RUN if [ $TARGETARCH = arm64 ]; then sleep 1; exit 7; else sleep 60; fi\n\
                FROM scratch\nCOPY --from=made /etc /\n";
    let started = Instant::now();
    let ran = lab.build(file, &[&PLATFORMS[..], &["--jobs", "2", "-t", "x"]].concat());
    let ran = ran.fails(1, &["exited with code 7", "linux/arm64 made 2/2"]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    lab.rbuild(["inspect", "x"]).fails(1, &["image `x` not found"]);
}

/// The images do not depend on the number of workers, nor on the other platforms.
#[test]
fn images_are_those_of_builds_for_one_platform() {
    let file = "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n\
                RUN echo for $TARGETARCH > /o && mkdir /d && echo x > /d/x\n\
                FROM scratch\nARG TARGETARCH\nCOPY --from=made /o /\nCOPY --from=made /d /d/\nLABEL arch=$TARGETARCH\n";
    let built = |platforms: &str, jobs: &str| {
        let lab = Lab::new();
        lab.write("Dockerfile", file);
        let output = format!("type=oci,dest={}", lab.path("x.tar").display());
        let mut command = lab.command(["build", "--platform", platforms, "--jobs", jobs, "-o", &output]);
        lab.run_with(&mut command, &[("SOURCE_DATE_EPOCH", "1000")]).ok();
        let files = contents(&std::fs::read(lab.path("x.tar")).unwrap());
        let digests = |document: &str| -> Vec<String> {
            let index: Value = serde_json::from_slice(&files[document]).unwrap();
            let entries = index["manifests"].as_array().unwrap().iter();
            entries.map(|entry| entry["digest"].as_str().unwrap().to_string()).collect()
        };
        let found = digests("index.json");
        if platforms.contains(',') { digests(&format!("blobs/sha256/{}", &found[0][7..])) } else { found }
    };
    let both = built(PLATFORMS[1], "4");
    assert_eq!(both, built(PLATFORMS[1], "1"));
    let alone = PLATFORMS[1].split(',').map(|platform| built(platform, "2").remove(0));
    assert_eq!(both, alone.collect::<Vec<_>>());
}

/// A difference is found in the image of any platform, not only in that of the machine.
#[test]
fn verify_compares_the_images_of_all_platforms() {
    let lab = Lab::new();
    if is_bare() {
        return;
    }
    let file = |random: &str| {
        format!(
            "FROM --platform=$BUILDPLATFORM busybox AS gen\nARG TARGETARCH\nRUN echo a > /f; \
             if [ $TARGETARCH = {random} ]; then cat /proc/sys/kernel/random/uuid > /f; fi\n\
             FROM scratch\nCOPY --from=gen /f /f\n"
        )
    };
    let verify = |random: &str| lab.build(&file(random), &[&PLATFORMS[..], &["--verify", "-t", "x"]].concat());
    for platform in ["arm64", "amd64"] {
        let words = format!("two builds produced different files for linux/{platform}: /f in layer 1 of 1");
        let ran = verify(platform).fails(1, &[&words]);
        assert!(!ran.stderr.contains("verified:"), "{}", ran.stderr);
        assert_eq!(lab.rbuild(["logs", "-n", "2", "--format", "{{.Status}}"]).ok().stdout, "failed\ndone\n");
        lab.rbuild(["inspect", "x"]).fails(1, &["image `x` not found"]);
    }
    let ran = verify("none").ok();
    assert!(ran.stderr.contains("verified: two builds without cache"), "{}", ran.stderr);
    lab.rbuild(["inspect", "x"]).ok();
}

/// The platforms have their instructions in common: errors, hints and annotations name the
/// platform, and the suggested command prints the output of the step that failed.
#[test]
fn errors_of_steps_name_the_platform() {
    let lab = Lab::new();
    if is_bare() {
        return;
    }
    lab.write("token", "a-secret-value\n");
    let file = |run: &str| {
        format!(
            "FROM --platform=$BUILDPLATFORM busybox AS a\nARG TARGETARCH\nRUN {run}\n\
             FROM scratch\nCOPY --from=a /f /f\n"
        )
    };
    let fails = "seq 100; echo of $TARGETARCH; if [ $TARGETARCH = arm64 ]; then sleep 2; exit 7; fi; touch /f";
    let build = |file: &str, more: &[&str]| lab.build(file, &[&PLATFORMS[..], more].concat());
    let label = "[linux/arm64 a 2/2]";
    let ran = build(&file(fails), &[]).fails(
        1,
        &[
            &format!("error: {label} the command exited with code 7"),
            "\"linux/arm64 a 2/2\"\n",
            "> output of [linux/arm64",
        ],
    );
    assert!(!ran.stderr.contains("\"a 2/2\""), "{}", ran.stderr);
    let shown = lab.rbuild(["logs", "latest", "linux/arm64 a 2/2"]).ok().stdout;
    assert!(shown.contains("\nof arm64\n") && !shown.contains("of amd64"), "{shown}");
    let matches = "use linux/amd64 a 2/2 or linux/arm64 a 2/2";
    lab.rbuild(["logs", "latest", "a 2/2"]).fails(1, &["several steps `a 2/2`", matches]);
    let ran = build(&file(fails), &["--progress", "github"]).fails(1, &[]);
    let text = format!("{}{}", ran.stdout, ran.stderr);
    assert!(
        text.lines().any(|line| line.starts_with("::error ") && line.contains(&format!("::{label} RUN"))),
        "{text}"
    );
    // A secret in the files of one platform.
    let leaks = "--mount=type=secret,id=t if [ $TARGETARCH = arm64 ]; then cp /run/secrets/t /f; else touch /f; fi";
    let secret = ["--secret", "id=t,src=token", "-t", "x"];
    let ran = build(&file(leaks), &secret).fails(1, &["the result contains the secret `t`"]);
    let line = ran.stderr.lines().find(|line| line.contains("the result contains")).unwrap();
    assert!(line.starts_with("error: [linux/arm64 stage-1 2/2] the result"), "{line}");
    // A secret in the configurations of both.
    let label = format!("{}LABEL a=a-secret-value\n", file("touch /f"));
    build(&label, &secret).fails(1, &["error: [linux/a", "64] the result contains the secret `t` in the image's"]);
}
