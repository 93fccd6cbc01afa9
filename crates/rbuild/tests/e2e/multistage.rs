use crate::lab::{Lab, exists};

const TWO_STAGES: &str = "FROM busybox AS builder\nCOPY src /src\nRUN cat /src/* > /app && echo built >> /app\n\
                          FROM scratch\nCOPY --from=builder /app /app\nENTRYPOINT [\"/app\"]\n";

#[test]
fn only_the_last_stage_is_in_the_result() {
    let lab = Lab::new();
    lab.write("src/a", "one\n").write("src/b", "two\n");
    let out = lab.build_local(TWO_STAGES, &[]);
    assert_eq!(std::fs::read_to_string(out.join("app")).unwrap(), "one\ntwo\nbuilt\n");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn an_unchanged_build_runs_nothing_and_a_change_only_dependent_steps() {
    let lab = Lab::new();
    lab.write("src/a", "one\n").write("other", "x");
    let file = format!("{TWO_STAGES}COPY other /other\n");
    assert_eq!(lab.build(&file, &["-t", "x"]).ok().steps(), (4, 0));
    let again = lab.build(&file, &["-t", "x"]).ok();
    assert_eq!(again.steps(), (0, 4));
    assert!(!again.stderr.contains("isolation:"), "a namespace was entered\n{}", again.stderr);
    lab.write("other", "y");
    assert_eq!(lab.build(&file, &["-t", "x"]).ok().steps(), (1, 3));
    lab.write("src/a", "uno\n");
    assert_eq!(lab.build(&file, &["-t", "x"]).ok().steps(), (4, 0));
    assert_eq!(lab.build(&file, &["-t", "x", "--no-cache"]).ok().steps(), (4, 0));
}

#[test]
fn a_stage_rebuilt_to_equal_content_hits_downstream() {
    let lab = Lab::new();
    let file = |comment: &str| {
        format!(
            "FROM busybox AS a\nRUN echo {comment} > /noise && echo same > /app\n\
             FROM busybox\nCOPY --from=a /app /app\nRUN cat /app > /copy\n"
        )
    };
    assert_eq!(lab.build(&file("1"), &["-t", "x"]).ok().steps(), (3, 0));
    assert_eq!(lab.build(&file("2"), &["-t", "x"]).ok().steps(), (1, 2));
}

#[test]
fn stages_are_selected_by_name_number_and_target() {
    let lab = Lab::new();
    let file = "ARG BASE=busybox\nFROM $BASE AS One\nRUN echo 1 > /f\nFROM busybox\nRUN echo 2 > /f\n\
                FROM one\nCOPY --from=1 /f /g\nCOPY --from=ONE /f /h\n";
    let out = lab.build_local(file, &[]);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!((read("f"), read("g"), read("h")), ("1\n".into(), "2\n".into(), "1\n".into()));
    let out = lab.build_local(file, &["--target", "one"]);
    assert!(exists(out.join("f")) && !exists(out.join("g")));
    lab.build(file, &["--build-arg", "BASE=nothing"]).fails(1, &["image `nothing` not found"]);
}

/// The name of a later stage refers to an image, if there is one.
#[test]
fn the_name_of_a_later_stage_refers_to_an_image() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN echo image > /o\n", &["-t", "later"]).ok();
    for (with, message) in [
        ("COPY --from=later /o /o", ""),
        ("RUN --mount=from=later,target=/m cat /m/o > /o", ""),
        ("RUN --mount=type=cache,id=l,from=later,target=/m cat /m/o > /o", ""),
        ("COPY --from=absent /o /o", "stage `absent` is defined after its use, and no image"),
        ("COPY --from=2 /o /o", "stage `2` is defined after its use"),
    ] {
        let file = format!(
            "FROM busybox AS x\n{with}\nFROM busybox AS later\nRUN echo stage > /o\nFROM busybox AS absent\nFROM x\n"
        );
        if message.is_empty() {
            assert_eq!(std::fs::read_to_string(lab.build_local(&file, &[]).join("o")).unwrap(), "image\n", "{with}");
        } else {
            let failed = lab.build(&file, &[]);
            assert!(failed.code != Some(0) && failed.stderr.contains(message), "{with}: {}", failed.stderr);
        }
    }
}

/// A missing path is reported for the stage that the instruction names, not for its base.
#[test]
fn missing_mount_sources_are_reported_for_the_named_stage() {
    let lab = Lab::new();
    lab.write("other/f", "1");
    for (from, kinds) in [
        ("x", ["", "type=cache,"]),
        ("y", ["", "type=cache,"]),
        ("nc", ["", "type=cache,"]),
        ("busybox", ["", "type=cache,"]),
    ] {
        for kind in kinds {
            let file = format!(
                "FROM busybox AS x\nFROM x AS y\nFROM busybox\nRUN --mount={kind}from={from},source=/nope,target=/m true\n"
            );
            lab.build(&file, &["--build-context", "nc=other"]).fails(
                1,
                &["nope", &format!(" in `{from}`"), &format!("relative to the root of `{from}`"), "Dockerfile:4"],
            );
        }
    }
    lab.build("FROM busybox\nRUN --mount=source=/nope,target=/m true\n", &[])
        .fails(1, &["relative to the root of the build context"]);
}

/// Files of a stage that the destination shares with it are replaced like others.
#[test]
fn a_copy_can_overwrite_its_own_source_files() {
    let lab = Lab::new();
    lab.write("q", "1");
    for (before, copy) in [
        ("", "COPY --from=busybox /etc /etc"),
        ("", "COPY --from=busybox /etc/passwd /etc/passwd"),
        ("", "COPY --from=busybox /etc/* /etc/"),
        ("", "COPY --from=busybox --parents /etc/passwd /"),
        ("", "COPY --from=busybox --chown=7 --chmod=600 /etc /etc"),
        ("", "COPY --from=busybox --exclude=group /etc /etc"),
        ("FROM busybox AS s\nRUN echo new > /etc/new\n", "COPY --from=s /etc /etc"),
        ("FROM busybox AS s\nCOPY q /q\n", "COPY --from=s / /"),
    ] {
        let out = lab.build_local(&format!("{before}FROM busybox\n{copy}\n"), &["--no-cache"]);
        assert!(std::fs::read_to_string(out.join("etc/passwd")).unwrap().starts_with("root:"), "{copy}");
        assert!(before.is_empty() || exists(out.join("etc/new")) || exists(out.join("q")), "{copy}");
    }
}

/// A mount of an empty stage is an empty directory, read-only or not.
#[test]
fn a_mount_of_an_empty_stage_is_empty() {
    let lab = Lab::new();
    for (stage, from) in [("", "scratch"), ("FROM scratch AS e\n", "e")] {
        for option in ["", ",rw"] {
            let file = format!(
                "{stage}FROM busybox\nRUN --mount=from={from},target=/m{option} test -d /m && test -z \"$(ls -A /m)\"\n"
            );
            lab.build(&file, &["--no-cache"]).ok();
        }
    }
}

/// An empty build argument that configures the builder counts as unset: CI systems pass unset
/// variables as empty ones.
#[test]
fn empty_predefined_arguments_count_as_unset() {
    let lab = Lab::new();
    let cached = "FROM busybox\nARG X\nRUN --mount=type=cache,target=/kk touch /kk/$X; ls /kk | tr '\\n' ' ' > /o\n";
    lab.build(cached, &["--build-arg", "X=a"]).ok();
    let out = lab.build_local(cached, &["--build-arg", "X=b", "--build-arg", "BUILDKIT_CACHE_MOUNT_NS="]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "a b ");
    let names = "FROM busybox\nRUN hostname > /o; env | grep -ic proxy >> /o; true\n";
    let empty = ["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=", "--build-arg", "http_proxy="];
    let of = |args: &[&str]| std::fs::read_to_string(lab.build_local(names, args).join("o")).unwrap();
    assert_eq!(of(&[&["--no-cache"], &empty[..]].concat()), of(&["--no-cache"]));
}

#[test]
fn independent_stages_run_in_parallel_and_unused_ones_do_not_run() {
    let lab = Lab::new();
    // Each of the two commands waits for the other through a cache mount, so they never finish
    // unless they run concurrently.
    let meet = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/meet touch /meet/{own}; n=0; while [ ! -e /meet/{other} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || exit 1; done\n"
        )
    };
    let file = format!(
        "FROM busybox AS a\n{}FROM busybox AS b\n{}FROM busybox AS unused\nRUN false\n\
         FROM scratch\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n",
        meet("a", "b"),
        meet("b", "a")
    );
    lab.build(&file, &["-t", "x", "--jobs", "2"]).ok();
}

#[test]
fn arguments_and_environment_reach_the_commands() {
    let lab = Lab::new();
    let file = "ARG V=1\nFROM busybox\nARG V\nARG W=w\nENV E=$V-$W\nRUN echo $V $W $E > /f\nRUN env | sort > /env\n";
    let out = lab.build_local(file, &["--build-arg", "V=2"]);
    assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), "2 w 2-w\n");
    let env = std::fs::read_to_string(out.join("env")).unwrap();
    let names: Vec<&str> = env.lines().filter_map(|l| l.split_once('=')).map(|(k, _)| k).collect();
    assert_eq!(names, ["E", "HOME", "PATH", "PWD", "SHLVL", "V", "W"], "{env}");
}

#[test]
fn onbuild_triggers_of_a_base_run_in_the_child() {
    let lab = Lab::new();
    lab.write("f", "content");
    lab.build("FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\n", &["-t", "base"]).ok();
    let out = lab.build_local("FROM base\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("g")).unwrap(), "content");
    let ran = lab.build("FROM base\nRUN true\n", &["-t", "child"]).ok();
    for title in ["[2/4] ONBUILD COPY f /f", "[3/4] ONBUILD RUN cat /f > /g", "[4/4] RUN true"] {
        assert!(ran.stderr.contains(title), "{title}: {}", ran.stderr);
    }
}

#[test]
fn configuration_and_history_reach_the_image() {
    let lab = Lab::new();
    let file = "FROM busybox\nLABEL a=b\nENV K=V\nEXPOSE 80\nVOLUME /v\nUSER 5\nWORKDIR /w\nSTOPSIGNAL SIGINT\n\
                HEALTHCHECK --interval=5s CMD true\nSHELL [\"/bin/sh\", \"-ec\"]\nRUN id -u > /w/../tmp/u\nCMD run\n";
    lab.build(file, &["-t", "x", "--label", "c=d"]).ok();
    let json: serde_json::Value = serde_json::from_str(&lab.rbuild(["inspect", "x"]).ok().stdout).unwrap();
    let c = &json[0]["Config"];
    assert_eq!(c["Labels"], serde_json::json!({"a": "b", "c": "d"}));
    assert_eq!(c["Cmd"], serde_json::json!(["/bin/sh", "-ec", "run"]));
    assert_eq!(
        (c["User"].as_str(), c["WorkingDir"].as_str(), c["StopSignal"].as_str()),
        (Some("5"), Some("/w"), Some("SIGINT"))
    );
    assert_eq!(c["Healthcheck"]["Interval"], 5_000_000_000i64);
    assert!(c["ExposedPorts"]["80/tcp"].is_object() && c["Volumes"]["/v"].is_object());
    let history = lab.rbuild(["history", "--no-trunc", "x"]).ok().stdout;
    assert!(history.contains("RUN /bin/sh -ec id -u > /w/../tmp/u # buildkit"), "{history}");
    assert!(history.contains("Imported from"), "{history}");
}

/// Returns the trees of image layers in the store.
fn layer_trees(lab: &Lab) -> usize {
    let trees = std::fs::read_dir(lab.store().join("trees")).unwrap();
    trees.filter(|tree| tree.as_ref().unwrap().file_name().to_string_lossy().starts_with(['l', 'r'])).count()
}

/// Creates an image of three layers with all kinds of references from one path to another.
fn image_of_many_parts() -> Lab {
    let lab = Lab::new();
    let file = "FROM busybox\n\
                RUN mkdir -p /opt/tool/bin /usr/real && echo one > /opt/tool/bin/one && echo big > /opt/tool/big && \
                    ln -s /usr/real /opt/by-link && echo deep > /usr/real/deep && ln /opt/tool/big /opt/tool/hard && \
                    chown 5:6 /opt/tool/bin/one && chmod 4755 /opt/tool/bin/one\n\
                RUN rm /opt/tool/big && ln -s tool/bin/one /opt/short && ln -s nowhere /opt/dangling && mkdir /opt/d && \
                    ln -s ../short /opt/d/twice\n\
                RUN echo changed > /usr/real/deep && rm -r /opt/d && mkdir /opt/d && ln -s ../short /opt/d/twice\n";
    lab.build(file, &["-t", "many"]).ok();
    lab.rbuild(["prune", "-a"]).ok();
    lab
}

#[test]
fn copying_a_few_paths_does_not_unpack_the_image() {
    for (copied, all) in [
        ("/opt/tool/bin/one", false),
        ("opt/tool /opt/short", false),
        ("/opt/by-link/deep", false),
        ("/opt/by-link", false),
        ("/opt/tool/hard", false),
        ("/opt/d/twice /opt/tool/hard", false),
        // Patterns can be resolved only with the whole image.
        ("/opt/tool/b*", true),
        ("/", true),
    ] {
        let (lab, whole) = (image_of_many_parts(), image_of_many_parts());
        let file = format!("FROM scratch\nCOPY --from=many {copied} /o/\n");
        let ours = lab.build_listing(&file);
        assert_eq!(layer_trees(&lab) > 0, all, "{copied}");
        // The image is unpacked if a stage is based on it.
        whole.build("FROM many\nRUN true\n", &["-t", "x"]).ok();
        let theirs = whole.build_listing(&file);
        assert_eq!(layer_trees(&whole), 4);
        assert_eq!(ours, theirs, "{copied}");
        // Files extracted once are available to later steps, whatever their base.
        let again = format!("FROM busybox\nRUN echo other\nCOPY --from=many {copied} /p/\n");
        lab.build(&again, &["-t", "y"]).ok();
        lab.rbuild(["prune"]).ok();
        lab.rbuild(["fsck"]).ok();
        lab.build(&again, &["-t", "y", "--no-cache"]).ok();
    }
}

#[test]
fn missing_platforms_are_reported_with_the_available_ones() {
    let lab = image_of_many_parts();
    lab.build("FROM scratch\nCOPY --from=many /opt/tool/bin/onee /\n", &[])
        .fails(1, &["onee", "did you mean `/opt/tool/bin/one`?"]);
}

#[test]
fn platforms_share_an_execution_even_if_its_record_is_replaced() {
    let lab = Lab::new();
    lab.write(
        "Dockerfile",
        "FROM --platform=$BUILDPLATFORM busybox AS a\nRUN head -c 8 /dev/urandom | md5sum > /a\n\
         FROM --platform=$BUILDPLATFORM a AS b\nRUN sleep 3; cp /a /b\nFROM scratch\nCOPY --from=b /a /b /\n",
    );
    lab.sh(
        "$RB build --no-cache --progress plain --platform linux/amd64,linux/arm64 -o type=local,dest=../out . 2> ../log & \
         until grep -q 'RUN sleep' ../log; do sleep 0.1; done; \
         $RB build -q --no-cache --target a . && wait $!",
    )
    .ok();
    let files = ["amd64/a", "amd64/b", "arm64/a", "arm64/b"].map(|file| lab.read(&format!("out/linux_{file}")));
    assert_eq!(files.each_ref().map(|file| file == &files[0]), [true; 4], "{files:?}");
}
