//! A result that contains a secret is refused, regardless of its place, and is not used in later
//! builds.

use crate::lab::Lab;

/// Writes the content of the secret to `/o`.
const LEAK: &str = "RUN --mount=type=secret,id=token cat /run/secrets/token > /o 2>/dev/null || echo none > /o\n";
const TOKEN: [&str; 2] = ["--secret", "id=token,src=token"];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("token", "hunter2-and-more\n").write("other", "another-value\n").write(".dockerignore", "token\nother\n");
    lab
}

fn local(lab: &Lab) -> String {
    format!("type=local,dest={}", lab.path("out").display())
}

#[test]
fn a_refused_result_is_in_no_later_build() {
    let lab = lab();
    let out = local(&lab);
    let file = format!("FROM busybox\n{LEAK}RUN cp /o /copy\n");
    for _ in 0..2 {
        lab.build(&file, &[&TOKEN[..], &["-t", "x"]].concat())
            .fails(1, &["the secret `token`: this step wrote it to /o", "Dockerfile:2:1"]);
    }
    // Without the secret the command runs, and so do the steps based on its result.
    assert_eq!(lab.build(&file, &["-o", &out]).ok().steps(), (2, 0));
    assert_eq!((lab.read("out/o"), lab.read("out/copy")), ("none\n".into(), "none\n".into()));
    assert_eq!(lab.build(&file, &["-t", "x"]).ok().steps(), (0, 2));
}

#[test]
fn an_entitlement_applies_to_one_build_only() {
    let lab = lab();
    let out = local(&lab);
    let file = format!("FROM busybox\n{LEAK}RUN cp /o /copy\n");
    lab.build(&file, &[&TOKEN[..], &["--allow", "secret-in-image", "-t", "x"]].concat()).ok();
    assert_eq!(lab.build(&file, &[&TOKEN[..], &["--allow", "secret-in-image"]].concat()).ok().steps(), (0, 2));
    lab.build(&file, &TOKEN).fails(1, &["the secret `token`: this step wrote it to /o"]);
    lab.build(&file, &["--secret", "id=token,src=other"]).fails(1, &["the secret `token`: this step wrote it to /o"]);
    // Even with the entitlement, another value or no value yields another result.
    let allowed = ["--allow", "secret-in-image", "-o", &out];
    let other = std::fs::read_to_string(lab.ctx().join("other")).unwrap();
    assert_eq!(lab.build(&file, &[&["--secret", "id=token,src=other"], &allowed[..]].concat()).ok().steps(), (2, 0));
    assert_eq!(lab.read("out/copy"), other);
    assert_eq!(lab.build(&file, &allowed).ok().steps(), (2, 0));
    assert_eq!(lab.build(&file, &["-o", &out]).ok().steps(), (0, 2));
    assert_eq!((lab.read("out/o"), lab.read("out/copy")), ("none\n".into(), "none\n".into()));
}

#[test]
fn results_with_a_secret_are_cached_only_for_builds_with_it() {
    let lab = lab();
    let out = local(&lab);
    let copied = "FROM busybox AS between\nCOPY --from=first /o /between/o\n";
    let mounted = "FROM busybox AS mounted\nRUN --mount=from=first,target=/m cp /m/o /o\n";
    let last = "FROM busybox\nRUN --mount=from=between,target=/b --mount=from=mounted,target=/m test -s /b/between/o && test -s /m/o\n";
    let file = format!("FROM busybox AS first\n{LEAK}{copied}{mounted}{last}");
    lab.build(&file, &TOKEN).ok();
    assert_eq!(lab.build(&file, &TOKEN).ok().steps(), (0, 4));
    for target in ["first", "between", "mounted"] {
        lab.build(&file, &[&TOKEN[..], &["--target", target]].concat())
            .fails(1, &["the secret `token`: this step wrote it to /"]);
    }
    for (target, path) in [("first", "out/o"), ("between", "out/between/o"), ("mounted", "out/o")] {
        lab.build(&file, &["--target", target, "-o", &out]).ok();
        assert_eq!(lab.read(path), "none\n", "{target}");
        let _ = std::fs::remove_dir_all(lab.path("out"));
    }
}

#[test]
fn equal_steps_have_one_execution_whatever_secrets_other_builds_had() {
    let lab = lab();
    let leak = "cat /run/secrets/token > /s; head -c 8 /dev/urandom > /r";
    let step = |name: &str| {
        format!(
            "FROM busybox AS of-{name}\nRUN echo {name} > /{name}; echo same > /f\n\
             FROM busybox AS {name}\nRUN --mount=type=secret,id=token --mount=from=of-{name},source=/f,target=/m {leak}\n"
        )
    };
    let file = format!("{}{}FROM scratch\nCOPY --from=a /r /a\nCOPY --from=b /r /b\n", step("a"), step("b"));
    let build = |secret: &str, more: &[&str]| {
        let secret = format!("id=token,src={secret}");
        lab.build(&file, &[&["--secret", &secret, "--allow", "secret-in-image"], more].concat()).ok();
    };
    let out = local(&lab);
    let both = |secret: &str| {
        build(secret, &["-o", &out]);
        let read = |name: &str| std::fs::read(lab.path("out").join(name)).unwrap();
        assert_eq!(read("a"), read("b"), "{secret}");
        read("a")
    };
    let first = both("token");
    // Replaces the result that both steps have, but the record of one of them only.
    build("other", &["--target", "a"]);
    assert_ne!(both("token"), first);
    both("other");
    build("token", &["--target", "b"]);
    both("other");
}

#[test]
fn a_cached_image_is_searched_for_the_current_secrets() {
    let lab = lab();
    let file = "FROM busybox\nARG V\nRUN echo $V > /o\n";
    let value = ["--build-arg", "V=hunter2-and-more", "-t", "x"];
    lab.build(file, &value).ok();
    for _ in 0..2 {
        lab.build(file, &[&value[..], &TOKEN].concat()).fails(1, &["contains the secret `token` in"]);
    }
    let copied = "FROM busybox\nCOPY token /o\n";
    lab.write(".dockerignore", "");
    lab.build(copied, &["-t", "x"]).ok();
    for _ in 0..2 {
        lab.build(copied, &[&TOKEN[..], &["-t", "x"]].concat())
            .fails(1, &["the secret `token`: this step wrote it to /o", "Dockerfile:2:1"]);
    }
    // The result does not contain the other secret. It is scanned for it only once.
    for _ in 0..2 {
        let ran = lab.build(copied, &["--secret", "id=t,src=other", "-t", "x"]).ok();
        assert_eq!(ran.steps(), (0, 1));
    }
}

#[test]
fn labels_annotations_names_and_attributes_are_searched() {
    let lab = lab();
    lab.write("key", "-----BEGIN KEY-----\n\"quoted\" \\ and more\n-----END KEY-----\n");
    let key = ["--secret", "id=key,src=key"];
    let label = "FROM busybox\nLABEL k=\"-----BEGIN KEY-----\\n\\\"quoted\\\" \\\\ and more\\n-----END KEY-----\"\n";
    let env = "FROM busybox\nENV K=hunter2-and-more\n";
    let name = "FROM busybox\nLABEL hunter2-and-more=x\n";
    for (file, secret) in [(env, TOKEN), (name, TOKEN)] {
        lab.build(file, &secret).fails(1, &["contains the secret `token` in"]);
    }
    lab.sh("printf 'FROM busybox\\nARG K\\nLABEL k=$K\\n' > Dockerfile").ok();
    let arg = format!("K={}", lab.read("ctx/key").trim_end());
    lab.rbuild(["build", "--build-arg", &arg, key[0], key[1]]).fails(1, &["contains the secret `key` in"]);
    lab.build(label, &TOKEN).ok();
    let annotated = ["--annotation", "a=hunter2-and-more"];
    lab.build("FROM busybox\n", &[&TOKEN[..], &annotated].concat()).fails(1, &["annotations", "`token`"]);
    lab.build("FROM busybox\n", &annotated).ok();
    lab.build("FROM busybox\n", &[&TOKEN[..], &annotated].concat()).fails(1, &["annotations", "`token`"]);
    let run = "FROM busybox\nRUN --mount=type=secret,id=token";
    let named = format!("{run} mkdir /d && touch \"/d/x-$(cat /run/secrets/token)-x\"\n");
    let linked = format!("{run} ln -s \"/x-$(cat /run/secrets/token)\" /l\n");
    lab.build(&named, &TOKEN).fails(1, &["the secret `token`: this step wrote it to /d/x-"]);
    lab.build(&linked, &TOKEN).fails(1, &["the secret `token`: this step wrote it to /l"]);
    lab.write("f", "x").write("d/in/f", "x");
    lab.sh("python3 -c \"import os; os.setxattr('f', 'user.a', b'<hunter2-and-more>'); os.setxattr('d/in', 'user.b', b'hunter2-and-more')\"")
        .ok();
    lab.build("FROM busybox\nCOPY f /f\n", &TOKEN).fails(1, &["the attribute user.a of /f"]);
    lab.build("FROM busybox\nCOPY d /d\n", &TOKEN).fails(1, &["the attribute user.b of /d/in"]);
}

/// No value is in the output of a command, in rbuild's messages about it, or in the stored copies
/// of either.
#[test]
fn no_output_or_record_contains_a_secret_value() {
    let lab = lab();
    lab.write("token", "  hunter2-and-more\n");
    let mount = "RUN --mount=type=secret,id=token";
    let arg = ["--build-arg", "T=hunter2-and-more"];
    let printed =
        format!("FROM busybox\n{mount} echo \"<$(cat /run/secrets/token)>\"; echo $(cat /run/secrets/token)\n");
    let cache = "--mount=type=cache,target=/c";
    let cached =
        format!("FROM busybox\n{mount} {cache} cp /run/secrets/token /c/t\nRUN {cache} cat /c/t; cat /c/t >&2\n");
    let named = format!("FROM busybox\n{mount} touch /x$(cat /run/secrets/token)\n");
    // As `grep --color` prints it.
    let colored = format!("FROM busybox\n{mount} printf 'key: hunter2\\033[01;31m\\033[K-and\\033[m\\033[K-more\\n'\n");
    for (file, code, expected) in [
        (&*printed, 0, "<  ****>"),
        (&*cached, 0, "****"),
        (&*named, 1, "wrote it to /****"),
        (&*colored, 0, "key: ****"),
        ("FROM busybox\nARG T\nWORKDIR /a/$T\n", 1, "wrote it to /a/****"),
        ("FROM busybox\nARG T\nLABEL x=$T\n", 1, "the secret `token`"),
        ("FROM busybox\nARG T\nRUN test -z $T\n", 1, "exited with code 1"),
        ("FROM busybox\nARG T\nCOPY no-$T /\n", 1, "no-****"),
        ("FROM busybox\nARG T\nRUN echo hunter2-and-more; false\n", 1, "exited with code 1"),
        ("FROM busybox\nARG T\nRUN <<A\ncat hunter2-and-more\nA\n", 1, "exited with code 1"),
    ] {
        for progress in ["plain", "rawjson", "github"] {
            let ran = lab.build(
                file,
                &[&TOKEN[..], &arg, &["--progress", progress, "--no-cache", "--timings", "t.html"]].concat(),
            );
            let all = format!("{}{}", ran.stdout, ran.stderr);
            assert_eq!(ran.code, Some(code), "{file}: {all}");
            assert!(!all.contains("hunter2-and"), "{file}: {all}");
            assert!(all.contains(expected) || progress == "rawjson", "{file}: {all}");
        }
    }
    let logs = lab.rbuild(["logs"]).ok().stdout;
    assert!(logs.contains("failed") && !logs.contains("stopped"), "{logs}");
    let kept =
        "grep -rl hunter2-and $LAB/store $LAB/ctx/t.html --exclude-dir=mounts; find $LAB/store -name '*hunter2-and*'";
    assert_eq!(lab.sh(kept).stdout, "");
}

/// Values may span the name and the value of a variable, overlap, and be in records of builds that
/// were not given them as secrets.
#[test]
fn explanations_show_no_secret_that_spans_names_or_overlaps_another() {
    let lab = lab();
    let long = format!("sesame-{}", "0123456789".repeat(8));
    lab.write("file", "TOKEN\nTOKEN=hunter2-prod-abc\n").write("line", "TOKEN=hunter2-prod-abc\n");
    lab.write("word", "hunter2").write("tail", "ter2-prod-abc").write("long", &long);
    let file = "FROM busybox\nARG TOKEN\nRUN true\n";
    let build = |value: &str, secrets: &[&str]| {
        let allow = ["--explain", "--allow", "secret-in-image", "--build-arg"].map(String::from);
        let mut args = [&allow[..], &[format!("TOKEN={value}")]].concat();
        secrets.iter().for_each(|name| args.extend(["--secret".into(), format!("id={name},src={name}")]));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = lab.build(file, &args).ok();
        format!("{}{}", ran.stdout, ran.stderr)
    };
    for secrets in [&["file"][..], &["word", "line"], &["word", "tail"]] {
        let _ = build("x", &[]);
        let output = build("hunter2-prod-abc", secrets);
        assert!(output.contains("****") && !output.contains("-prod"), "{secrets:?}: {output}");
        lab.sh("! grep -rl -e -prod $LAB/store/accounts $LAB/store/logs").ok();
        lab.rbuild(["prune", "--all"]).ok();
    }
    let _ = build(&long, &[]);
    let output = build("y", &["long"]);
    assert!(output.contains("changed from `****` to `y`"), "{output}");
}

/// The arguments are those of the caller, who passes the value as a secret as well.
#[test]
fn messages_about_arguments_do_not_show_a_value() {
    let lab = lab();
    lab.write("token", "hunter2-and-more\n");
    for (args, expected) in [
        (["--allow", "hunter2-and-more"], "--allow ****: unknown entitlement"),
        (["--output", "type=hunter2-and-more"], "unknown type `****`"),
        (["--file", "hunter2-and-more"], "`****` does not exist"),
        (["--platform", "hunter2-and-more"], "****"),
        (["--tag", "hunter2-and-more:/"], "****"),
        (["--call", "hunter2-and-more"], "****"),
        (["--jobs", "hunter2-and-more"], "****"),
        (["--limit", "hunter2-and-more"], "****"),
        (["--progress", "hunter2-and-more"], "****"),
        (["--isolation", "hunter2-and-more"], "****"),
        (["--lock-timeout", "hunter2-and-more"], "****"),
        (["--hunter2-and-more", "x"], "****"),
    ] {
        let ran = lab.build("FROM busybox\n", &[&TOKEN[..], &args].concat());
        assert!(ran.code != Some(0) && ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("hunter2-and"), "{args:?}: {}", ran.stderr);
    }
}

/// A layer that includes the files of a base image is treated as one of the build's own.
#[test]
fn squash_all_searches_the_files_of_the_base() {
    let lab = lab();
    lab.write("f", "hunter2-and-more");
    lab.build("FROM busybox\nCOPY f /f\n", &["-t", "base"]).ok();
    let file = "FROM base\nWORKDIR /a\n";
    let tar = format!("type=docker,dest={}", lab.path("x.tar").display());
    lab.build(file, &["--squash=all", "-t", "x"]).ok();
    for _ in 0..2 {
        lab.build(file, &[&TOKEN[..], &["-t", "x"]].concat()).ok();
        for more in [&["-t", "x"][..], &["-o", &tar]] {
            let ran = lab.build(file, &[&TOKEN[..], &["--squash=all"], more].concat());
            ran.fails(
                1,
                &["the secret `token` in /f, which comes from the squashed base image", "--allow secret-in-image"],
            );
        }
    }
    assert!(!lab.path("x.tar").exists());
    lab.build(file, &[&TOKEN[..], &["--squash=all", "--allow", "secret-in-image"]].concat()).ok();
    lab.build("FROM base\nRUN rm /f\n", &[&TOKEN[..], &["--squash=all", "-t", "x"]].concat()).ok();
    lab.build(file, &["--squash=all", "--secret", "id=t,src=other"]).ok();
}

#[test]
fn a_failing_command_lists_secrets_that_were_not_provided() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN --mount=type=secret,id=tok --mount=type=ssh cat /run/secrets/tok\n";
    let missing = "hint: pass the missing secrets and agents: secret `tok` (--secret id=tok,src=FILE)";
    lab.build(file, &[]).fails(1, &[missing, "SSH agent `default` (--ssh default)"]);
    lab.write("t", "x");
    let given = lab.build("FROM busybox\nRUN --mount=type=secret,id=tok false\n", &["--secret", "id=tok,src=t"]);
    let given = given.fails(1, &["exited with code 1"]);
    assert!(!given.stderr.contains("--secret"), "{}", given.stderr);
    let one = "hint: pass the secret `tok` (--secret id=tok,src=FILE)";
    lab.build("FROM busybox\nRUN --mount=type=secret,id=tok false\n", &[]).fails(1, &["exited with code 1", one]);
}

#[test]
fn a_missing_program_that_is_a_secret_is_reported_as_the_secret() {
    let lab = Lab::new();
    let one = "hint: pass the secret `tok` (--secret id=tok,src=FILE)";
    let run = |rest: &str| format!("FROM busybox\nRUN --mount=type=secret,id=tok{rest}\n");
    for rest in [
        ",mode=0755 /run/secrets/tok",
        ",env=TOOL $TOOL x",
        ",env=TOOL cd / && \"$TOOL\" x",
        ",mode=0755,target=/tool [\"/tool\"]",
    ] {
        lab.build(&run(rest), &[]).fails(1, &[one]);
    }
    // Neither the secret nor the agent is the cause.
    for rest in [" no-such-program", ",env=TOOL no-such-program $TOOL", " --mount=type=ssh no-such-program"] {
        let other = lab.build(&run(rest), &[]).fails(1, &["exited with code 127"]);
        assert!(!other.stderr.contains("hint: pass"), "{rest}: {}", other.stderr);
    }
    lab.write("tool", "#!/bin/sh\n");
    lab.build(&run(",mode=0755 /run/secrets/tok"), &["--secret", "id=tok,src=tool"]).ok();
}

#[test]
fn a_secret_that_is_too_short_to_be_searched_for_causes_a_warning() {
    let lab = lab();
    let file = format!("FROM busybox\n{LEAK}");
    for (value, text) in [
        ("1234567\n", Some("warning: the secret `token` has fewer than 8 bytes: results are not searched for it\n")),
        ("123", Some("results are not searched for it, nor is it masked in output\n")),
        ("", None),
    ] {
        lab.write("token", value);
        let ran = lab.build(&file, &TOKEN).ok();
        assert_eq!(ran.stderr.contains("has fewer than"), text.is_some(), "{}", ran.stderr);
        assert!(text.is_none_or(|text| ran.stderr.contains(text)), "{}", ran.stderr);
        // Only secrets that a command mounts matter.
        let unused = lab.build("FROM busybox\n", &TOKEN).ok();
        assert!(!unused.stderr.contains("has fewer than"), "{}", unused.stderr);
    }
}

#[test]
fn a_secret_in_a_file_of_the_context_can_be_excluded() {
    let lab = lab();
    lab.write(".dockerignore", "other\n");
    let hint = "hint: exclude the file in .dockerignore, or pass --allow secret-in-image";
    lab.build("FROM busybox\nCOPY . /src/\n", &TOKEN).fails(1, &["this step wrote it to /src/token", hint]);
    lab.build("FROM busybox\nONBUILD COPY . /src/\n", &["-t", "trap"]).ok();
    let trigger = "the trigger `ONBUILD COPY . /src/` of the base image wrote it to /src/token";
    lab.build("FROM trap\n", &TOKEN).fails(1, &[trigger, hint]);
}
