use crate::lab::Lab;

#[test]
fn an_unset_variable_is_reported_once_at_its_use() {
    let lab = Lab::new();
    let count = |file: &str, code| {
        let ran = lab.build(file, &[]);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        ran.stderr.matches("variable `").count()
    };
    assert_eq!(count("FROM busybox\nENV A=${U1:-d} B=${U2:+x} C=${U3-z} D=${U4+y}\nWORKDIR /${U5:-w}\n", 0), 0);
    assert_eq!(count("FROM busybox\nENV A=$UNSET\n", 0), 1);
    assert_eq!(count("# check=skip=UndefinedVar\nFROM busybox\nENV A=$UNSET\n", 0), 0);
    assert_eq!(count("FROM busybox\nENV A=$UNSET\nRUN false\n", 1), 1);
    assert_eq!(count("FROM busybox\nARG DECLARED\nENV A=$DECLARED\n", 0), 0);
    // Like the build, the rule evaluates the declarations of one ARG in order.
    assert_eq!(count("# check=error=true\nFROM busybox\nARG A=1 B=$A\nRUN test $B = 1\n", 0), 0);
}

/// The rules use the base image of the platform that is built, including its environment.
#[test]
fn rules_use_the_base_image_of_the_platform() {
    let lab = Lab::new();
    let tar = crate::lab::base("busybox.tar");
    for arch in ["arm64", "riscv64"] {
        let (env, platform, name) = (format!("ENV ON_{arch}=1"), format!("linux/{arch}"), format!("base-{arch}"));
        lab.rbuild(["import", "-c", &env, "--platform", &platform, tar.to_str().unwrap(), &name]).ok();
    }
    lab.write("Dockerfile", "ARG TARGETARCH\nFROM base-$TARGETARCH\nLABEL a=$ON_arm64 b=$ON_riscv64\n");
    for (platform, undefined) in [("linux/arm64", "ON_riscv64"), ("linux/riscv64", "ON_arm64")] {
        let ran = lab.rbuild(["build", "--check", "--platform", platform]);
        let warnings: Vec<&str> =
            ran.stderr.lines().chain(ran.stdout.lines()).filter(|l| l.contains("variable `")).collect();
        assert!(
            warnings.len() == 1 && warnings[0].contains(&format!("variable `{undefined}` ")),
            "{platform}: {warnings:?}"
        );
    }
}

/// The rules use the base image of `FROM --platform`, whose value may contain variables.
#[test]
fn rules_use_the_base_image_of_the_stages_platform() {
    let lab = Lab::new();
    let tar = crate::lab::base("busybox.tar");
    for (arch, name) in [("amd64", "tools"), ("arm64", "other")] {
        let (env, platform) = (format!("ENV ON_{arch}=1"), format!("linux/{arch}"));
        lab.rbuild(["import", "-c", &env, "--platform", &platform, tar.to_str().unwrap(), name]).ok();
    }
    let check = |dockerfile: &str| {
        lab.write("Dockerfile", dockerfile);
        lab.rbuild(["build", "--check", "--platform", "linux/arm64"])
    };
    check("ARG NATIVE=amd64\nFROM --platform=linux/$NATIVE tools\nLABEL a=$ON_amd64\n").ok();
    let ran = check("ARG NAME=tools\nFROM $NAME\n");
    assert!(ran.stdout.contains("InvalidBaseImagePlatform"), "{}", ran.stdout);
    let ran = check("ARG NATIVE=amd64\nFROM --platform=linux/$NATIVE other\n");
    assert!(ran.stdout.contains("base image `other` is for linux/arm64"), "{}", ran.stdout);
}

/// A mistake that fails the build fails --check as well, in any stage.
#[test]
fn check_reports_the_mistakes_of_a_build() {
    let lab = Lab::new();
    lab.write("Dockerfile", "ARG P\nFROM --platform=$P busybox AS other\nFROM busybox\nRUN --network=host true\n");
    lab.rbuild(["build", "--check", "."]).fails(2, &["platform `$P` is empty after expansion"]);
    lab.rbuild(["build", "--check", "--target", "1", "."]).ok();
    lab.rbuild(["build", "--check", "--build-arg", "P=linux/a/b/c/d", "."]).fails(2, &["linux/a/b/c/d"]);
    // All platforms are checked.
    let tar = crate::lab::base("busybox.tar");
    lab.rbuild(["import", "--platform", "linux/amd64", tar.to_str().unwrap(), "amd"]).ok();
    lab.write("Dockerfile", "FROM amd\n");
    for platforms in ["linux/amd64,linux/arm64", "linux/arm64,linux/amd64"] {
        let ran = lab.rbuild(["build", "--check", "--platform", platforms, "."]);
        assert_eq!(ran.stdout.matches("warning: Invalid").count(), 1, "{platforms}: {}", ran.stdout);
    }
}

/// The warning may explain the mistake.
#[test]
fn check_reports_warnings_together_with_mistakes() {
    let lab = Lab::new();
    lab.write("Dockerfile", "ARG VERSION=1\nFROM busybox:$VERSON\n");
    let (error, warning) = ("the tag is empty", "UndefinedArgInFrom");
    let built = lab.rbuild(["build", "."]).fails(2, &[error]);
    assert!(built.stderr.contains(warning), "{}", built.stderr);
    let ran = lab.rbuild(["build", "--check", "."]).fails(2, &[error]);
    assert!(ran.stdout.contains(warning) && ran.stdout.contains("did you mean `VERSION`"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("Check complete"), "{}", ran.stdout);
    let json = lab.rbuild(["build", "--call=check,format=json", "."]).fails(2, &[error]);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value["warnings"][0]["ruleName"], warning);
    assert!(value["buildError"]["message"].as_str().unwrap().contains(error), "{value}");
    assert_eq!(value["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
}

/// A build warns of the stages that it builds; `--check` without a target checks all.
#[test]
fn stages_that_are_not_built_do_not_fail_a_build() {
    let lab = Lab::new();
    lab.write("Dockerfile", "# check=error=true\nFROM busybox AS other\nLABEL a=$UNKNOWN\nFROM busybox AS last\n");
    lab.rbuild(["build", "."]).ok();
    lab.rbuild(["build", "--target", "other", "."]).fails(1, &["variable `UNKNOWN` is not declared here"]);
    lab.rbuild(["build", "--check", "--target", "last", "."]).ok();
    assert!(lab.rbuild(["build", "--check", "."]).stdout.contains("UNKNOWN"));
    // The instructions of a stage that a context replaces do not fail a build either; the
    // environment of the context applies to other stages.
    lab.rbuild(["import", "-c", "ENV KNOWN=1", crate::lab::base("busybox.tar").to_str().unwrap(), "context"]).ok();
    lab.write("Dockerfile", "# check=error=true\nFROM busybox AS base\nLABEL a=$UNKNOWN\nFROM base\nLABEL b=$KNOWN\n");
    lab.rbuild(["build", "--build-context", "base=docker-image://context", "."]).ok();
    // A default that cannot be expanded fails both.
    lab.write("Dockerfile", "ARG X=${Q\nFROM busybox\n");
    lab.rbuild(["build", "."]).fails(2, &["ARG X=${Q"]);
    lab.rbuild(["build", "--check", "."]).fails(2, &["ARG X=${Q"]);
}

#[test]
fn check_names_rules_and_builds_nothing() {
    let lab = Lab::new();
    lab.write(
        "Dockerfile",
        "FROM busybox AS Build\nMAINTAINER me\nRUN false\nCOPY hidden /x\nENV A=$UNKNOWN B=$PATH\n",
    );
    lab.write(".dockerignore", "hidden\n");
    let ran = lab.rbuild(["build", "--check"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    for rule in ["StageNameCasing", "MaintainerDeprecated", "CopyIgnoredFile", "UndefinedVar"] {
        assert!(ran.stdout.contains(rule), "{rule}: {}", ran.stdout);
    }
    assert!(ran.stdout.ends_with("Check complete, 4 warnings have been found!\n"), "{}", ran.stdout);
    let json = lab.rbuild(["build", "--call=check,format=json"]);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let fields: Vec<&String> = value["warnings"][0].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["ruleName", "description", "detail", "location"]);
    assert_eq!(value["warnings"][0]["ruleName"], "StageNameCasing");
    assert_eq!(value["warnings"][0]["location"]["ranges"][0]["start"]["line"], 1);
    lab.write("Dockerfile", "# check=skip=all\nFROM busybox AS Build\nMAINTAINER me\n");
    assert_eq!(lab.rbuild(["build", "--check"]).ok().stdout, "Check complete, no warnings found.\n");
}

#[test]
fn warnings_are_printed_after_a_build_or_fail_it() {
    let lab = Lab::new();
    let ran = lab.build("FROM busybox\nMAINTAINER me\n", &["-t", "x"]).ok();
    assert!(ran.stderr.contains("1 warning found:\n - MaintainerDeprecated"), "{}", ran.stderr);
    lab.build("# check=error=true\nFROM busybox\nMAINTAINER me\n", &["-t", "x"])
        .fails(1, &["MaintainerDeprecated", "check=error=true"]);
    lab.build("# check=error=true\nFROM busybox\n", &["-t", "x"]).ok();
    let file = "# check=error=true\nFROM busybox\nMAINTAINER me\nRUN --device=gpu true\n";
    let ran = lab.build(file, &[]).fails(1, &["device `gpu` is not available"]);
    assert!(ran.stderr.trim_end().ends_with("(check=error=true)"), "{}", ran.stderr);
}

#[test]
fn the_stage_to_check_is_that_of_the_build() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM scratch AS base-x\nFROM base-$TARGETSTAGE AS x\nLABEL a=$NOPE\nFROM scratch\n");
    let of_x = lab.rbuild(["build", "--check", "--target", "X", "."]);
    assert!(of_x.code == Some(1) && of_x.stdout.contains("variable `NOPE` is not declared"), "{}", of_x.stdout);
    lab.rbuild(["build", "--check", "."]).ok();
    lab.rbuild(["build", "--check", "--target", "base-y", "."])
        .fails(2, &["target stage `base-y` does not exist", "hint: did you mean `base-x`?"]);
}

#[test]
fn outline_and_targets_list_arguments_and_stages() {
    let lab = Lab::new();
    lab.write(
        "Dockerfile",
        "# VERSION is what to build\nARG VERSION=1\n# build compiles\nFROM busybox AS build\nARG VERSION\n\
         RUN --mount=type=secret,id=tok,required=true true\nFROM build\n",
    );
    let outline = lab.rbuild(["build", "--call=outline", "--build-arg", "VERSION=7"]).ok().stdout;
    assert!(outline.contains("VERSION     7       is what to build"), "{outline}");
    assert!(outline.contains("tok      true"), "{outline}");
    lab.write("Dockerfile", "FROM busybox\nARG A=1 B=x$A C=$A-$UNKNOWN\n");
    let outline = lab.rbuild(["build", "--call=outline", "--build-arg", "A=7"]).ok().stdout;
    assert!(outline.contains("x7"), "{outline}");
    assert!(outline.contains("$A-$UNKNOWN"), "{outline}");
    // Variables have the values that the planner uses: those of the platform, of ENV, and of the
    // stage itself.
    let file = "ARG G=$TARGETSTAGE-$NONE\nFROM scratch AS base\nENV V=1\nARG W=$V\nFROM base AS last\nARG G\n\
        ARG X=$W-$TARGETSTAGE TARGETARCH\nARG Y=$G-$TARGETARCH\n";
    lab.write("Dockerfile", file);
    let args = ["build", "--call=outline", "--platform", "linux/s390x"];
    let words = |text: String| text.split_whitespace().map(str::to_string).collect::<Vec<_>>().join(" ");
    let outline = words(lab.rbuild(args).ok().stdout);
    assert!(outline.ends_with("G last- W 1 X $W-$TARGETSTAGE TARGETARCH s390x Y last--s390x"), "{outline}");
    let file = "FROM busybox\nARG K=secret M=0400\nRUN --mount=type=$K,id=tok-$M,mode=$M,required=true true\n";
    lab.write("Dockerfile", file);
    let outline = words(lab.rbuild(["build", "--call=outline"]).ok().stdout);
    assert!(outline.contains("tok-0400 true"), "{outline}");
    // Stages that the target copies from are checked as well; stages it does not use are not.
    lab.write(
        "Dockerfile",
        "FROM busybox AS far\nARG FAR=1\nRUN --mount=type=cache,id=pkg,target=/p --mount=type=ssh true\n\
         FROM busybox AS unused\nARG NEVER=1\nFROM scratch\nARG OWN=2\nCOPY --from=far / /\n",
    );
    let outline = lab.rbuild(["build", "--call=outline"]).ok().stdout;
    assert!(["FAR", "OWN", "pkg", "SSH"].iter().all(|w| outline.contains(w)), "{outline}");
    assert!(!outline.contains("NEVER"), "{outline}");
    lab.write("Dockerfile", "# build compiles\nFROM busybox AS build\nFROM build\n");
    let targets = lab.rbuild(["build", "--call=targets"]).ok().stdout;
    assert_eq!(targets, "TARGET        DESCRIPTION\nbuild         compiles\n1 (default)\n");
}

#[test]
fn debug_commands_print_one_line_per_result() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM a AS b\nCOPY --from=x --chown=1 a b\nONBUILD RUN make\n")
        .write("bad", "FROM a\nRUM b\n");
    assert_eq!(lab.rbuild(["debug", "parse", "Dockerfile"]).ok().stdout, "");
    lab.rbuild(["debug", "parse", "bad"]).fails(2, &["did you mean `RUN`"]);
    assert_eq!(
        lab.rbuild(["debug", "ast", "Dockerfile"]).ok().stdout,
        "(from \"a\" \"AS\" \"b\")\n(copy [\"--from=x\" \"--chown=1\"] \"a\" \"b\")\n(onbuild (run \"make\"))\n"
    );
    let expand =
        lab.sh(r#"printf '%s\n' '{"op":"word","input":"$a${b:-c}","env":{"a":"1"}}' 'no json' | $RB debug expand"#);
    let lines: Vec<String> = expand.ok().stdout.lines().map(str::to_string).collect();
    assert_eq!(lines[0], r#"{"result":"1c","matched":["a"],"unmatched":["b"]}"#);
    assert!(lines[1].starts_with(r#"{"error":"#));
    let ignore = lab.sh(r##"printf '%s\n' '{"op":"match","patterns":["*","!a"],"path":"b"}' '{"op":"read","content":"#x\n a/../b\n"}' | $RB debug ignore"##);
    assert_eq!(ignore.ok().stdout, "{\"match\":true}\n{\"result\":[\"b\"]}\n");
}

#[test]
fn shells_complete_the_command() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let script = lab.rbuild(["completion", shell]).ok().stdout;
        std::fs::write(lab.path(shell), script).unwrap();
    }
    lab.sh("bash -n $LAB/bash").ok();
    lab.rbuild(["tag", "busybox", "busybox:other"]).ok();
    lab.build("FROM busybox\nRUN true\n", &["--no-cache"]).ok();
    lab.write("Dockerfile", "ARG BASE\nFROM busybox AS first\nARG BUILD\nFROM busybox AS second\n");
    // As bash calls the function of the script.
    let complete = "compopt() { :; }; source $LAB/bash; PATH=$(dirname $RB):$PATH\n\
                    COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDBREAKS=' =:'\n\
                    _rbuild; printf '%s\\n' \"${COMPREPLY[@]}\"\n";
    lab.write("complete", complete);
    for (line, expected) in [
        ("rbuild --target ", "first\nsecond\n"),
        ("rbuild build . --target=f", "first\n"),
        ("rbuild --build-arg B", "BASE=\nBUILD=\n"),
        ("rbuild run busybox:o", "other\n"),
        ("rbuild image rm busybox:l", "latest\n"),
        ("rbuild run --network ", "host\nisolated\nnone\n"),
        ("rbuild logs la", "latest\n"),
    ] {
        let shown = lab.sh(&format!("bash complete '{line}'")).ok();
        assert_eq!(shown.stdout, expected, "{line}: {}", shown.stderr);
    }
    for (shell, words, expected) in [
        ("zsh", "_CLAP_COMPLETE_INDEX=2 RBUILD_COMPLETE=zsh $RB -- rbuild --target ''", "first"),
        ("fish", "RBUILD_COMPLETE=fish $RB -- rbuild --target ''", "second"),
    ] {
        assert!(lab.sh(words).ok().stdout.contains(expected), "{shell}");
    }
}

#[test]
fn manual_pages_are_written() {
    let lab = Lab::bare();
    assert!(lab.rbuild(["man"]).ok().stdout.contains(".TH RBUILD 1"));
    assert!(lab.rbuild(["man", "build"]).ok().stdout.contains(".TH RBUILD-BUILD 1"));
    lab.rbuild(["man", "nosuch"]).fails(2, &["no manual page for `nosuch`", "rbuild --help"]);
    let dir = lab.path("man1");
    lab.rbuild(["man", "--output", dir.to_str().unwrap()]).ok();
    assert!(std::fs::read_dir(dir).unwrap().count() > 25);
}
