//! Corner cases of the Dockerfile language that affect the result. The expected results are those
//! of the reference implementation.

use crate::lab::{Lab, exists};

#[test]
fn a_heredoc_stays_in_the_image_whatever_its_name() {
    let lab = Lab::new();
    let outside = lab.path("outside");
    let names = ["/context/planted", "../../planted", "/store/planted", "a/planted", outside.to_str().unwrap()];
    for name in names {
        for copy in ["COPY", "COPY --link --chmod=755", "ADD"] {
            let file = format!("FROM busybox\nWORKDIR /w\n{copy} <<{name} /x/\nx\n{name}\n");
            lab.build(&file, &[]).fails(2, &["is not a file name", "Dockerfile:3"]);
        }
        lab.build(&format!("FROM busybox\nONBUILD COPY <<{name} /x/\nx\n{name}\n"), &["-t", "trap"]).ok();
        lab.build("FROM trap\n", &[]).fails(2, &["ONBUILD", "is not a file name"]);
        lab.build(&format!("FROM busybox\nRUN <<{name}\n#!/bin/sh\n{name}\n"), &[]).fails(2, &["is not a file name"]);
    }
    assert!(!exists(&outside) && !exists(lab.ctx().join("planted")) && !exists(lab.store().join("planted")));
    let out = lab.build_local("FROM scratch\nCOPY <<f /x/\ntext\nf\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("x/f")).unwrap(), "text\n");
}

#[test]
fn workdirs_and_commands_have_the_same_users_as_in_buildkit() {
    let lab = Lab::new();
    let listing = lab.build_listing(
        "FROM busybox\nRUN printf 'root:x:0:\\nwheel:x:10:root\\nweb:x:33:\\n' > /etc/group && id -G > /groups\n\
         RUN id -G > /groups2\nUSER 9999\nWORKDIR /by-number\nUSER 9999:7\nWORKDIR /both\nUSER web\nWORKDIR /by-name\n\
         USER nobody-here\nWORKDIR /by-name\n",
    );
    for want in ["755 9999:9999 by-number/", "755 9999:7 both/", "755 33:33 by-name/"] {
        assert!(listing.iter().any(|entry| entry == want), "{want}: {listing:#?}");
    }
    let out = lab.build_local(
        "FROM busybox\nRUN printf 'root:x:0:\\nwheel:x:10:root\\n' > /etc/group\nRUN id -G > /o\nFROM scratch\nCOPY --from=0 /o /\n",
        &[],
    );
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "0 10\n");
    lab.write("f", "x");
    lab.build("FROM scratch\nUSER root\nWORKDIR /w\nCOPY --chown=root f /a\nCOPY --link --chown=root:root f /b\n", &[])
        .ok();
    lab.build("FROM busybox\nCOPY --chown=:web f /a\nCOPY --chown=web: f /b\n", &[]).ok();
}

#[test]
fn cache_mounts_are_keyed_by_owner() {
    let lab = Lab::new();
    let run = |options: &str, command: &str| {
        let out = lab.build_local(
            &format!(
                "FROM busybox\nRUN --mount=type=cache,target=/c{options} {command}\nFROM scratch\nCOPY --from=0 /o /\n"
            ),
            &["--no-cache"],
        );
        std::fs::read_to_string(out.join("o")).unwrap()
    };
    assert_eq!(run("", "echo root > /c/who; stat -c %u:%a /c > /o"), "0:755\n");
    assert_eq!(run(",uid=10,mode=0700", "{ stat -c %u:%a /c; ls /c; } > /o"), "10:700\n");
    assert_eq!(run(",sharing=locked", "cat /c/who > /o"), "root\n");
}

#[test]
fn no_cache_replaces_cached_results() {
    let lab = Lab::new();
    lab.write("f", "one");
    let file = "FROM busybox AS made\nRUN head -c9 /dev/urandom | od -An -tx1 > /r\nFROM scratch\nCOPY f /f\nCOPY --from=made /r /r\n";
    let built = |args: &[&str]| std::fs::read_to_string(lab.build_local(file, args).join("r")).unwrap();
    let first = built(&[]);
    assert_eq!(built(&[]), first);
    let second = built(&["--no-cache"]);
    assert_ne!(second, first);
    assert_eq!(built(&[]), second);
    assert_eq!(lab.build(file, &["-t", "x"]).ok().steps().0, 0);
    assert_eq!(lab.build(file, &["-t", "x", "--no-cache"]).ok().steps().1, 0);
}

#[test]
fn cache_keys_cover_exactly_the_relevant_inputs() {
    let lab = Lab::new();
    let shadowed = "FROM busybox\nARG FOO\nENV X=1 FOO=bat\nRUN echo $FOO > /o\n";
    lab.build(shadowed, &["--build-arg", "FOO=1", "-t", "x"]).ok();
    assert_eq!(lab.build(shadowed, &["--build-arg", "FOO=2", "-t", "x"]).ok().steps(), (0, 1));
    assert_eq!(lab.build(shadowed, &["-t", "x"]).ok().steps(), (0, 1));
    let limited = "FROM busybox\nRUN ulimit -n > /o; df -k /dev/shm >> /o; true\n";
    for args in [&["-t", "x"][..], &["-t", "x", "--ulimit", "nofile=100:200"], &["-t", "x", "--shm-size", "1m"]] {
        assert_eq!(lab.build(limited, args).ok().steps(), (1, 0), "{args:?}");
        assert_eq!(lab.build(limited, args).ok().steps(), (0, 1), "{args:?}");
    }
    let seeded = |text: &str| {
        format!(
            "FROM busybox AS seed\nRUN mkdir /s && echo {text} > /s/f\nFROM busybox\n\
             RUN --mount=type=cache,target=/c,from=seed,source=/s cat /c/f > /o\nFROM scratch\nCOPY --from=1 /o /\n"
        )
    };
    for text in ["one", "two", "one"] {
        let out = lab.build_local(&seeded(text), &[]);
        assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), format!("{text}\n"));
    }
}

/// Either of two cache mounts has initial content; the instructions differ in nothing else.
#[test]
fn a_key_records_which_of_two_caches_was_seeded() {
    let lab = Lab::new();
    let file = |first: &str, second: &str| {
        format!(
            "FROM busybox AS seed\nRUN mkdir /s && echo > /s/f\nFROM busybox\n\
             RUN --mount=type=cache,id=a,target=/x,source=/s{first} --mount=type=cache,id=b,target=/y,source=/s{second} \
             --mount=from=seed,source=/s,target=/z ls /x /y > /o\n"
        )
    };
    for (first, second, listed) in [(",from=seed", "", "/x:\nf\n\n/y:\n"), ("", ",from=seed", "/x:\n\n/y:\nf\n")] {
        let out = lab.build_local(&file(first, second), &[]);
        assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), listed, "{first}{second}");
    }
}

#[test]
fn required_secrets_and_agents_are_checked_before_anything_runs() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo long > /o\nRUN --mount=type=secret,id=tok,required=true cat /run/secrets/tok\n\
                RUN --mount=type=ssh,required=true true\n";
    let ran = lab.build(file, &[]).fails(
        1,
        &["secret `tok` is required but was not provided", "SSH agent `default` is required but was not provided"],
    );
    assert!(!ran.stderr.contains("RUN echo long > /o\n#"), "{}", ran.stderr);
    assert_eq!(ran.steps(), (0, 0), "{}", ran.stderr);
    // A cached step does not need its inputs.
    lab.write("token", "a-long-secret");
    let file = "FROM busybox\nRUN --mount=type=secret,id=tok,required=true wc -c < /run/secrets/tok > /o\n";
    lab.build(file, &["-t", "x", "--secret", "id=tok,src=token"]).ok();
    assert_eq!(lab.build(file, &["-t", "x"]).ok().steps(), (0, 1));
}

#[test]
fn unusual_dockerfiles_build_as_in_buildkit() {
    let lab = Lab::new();
    lab.write("f", "x");
    lab.write("Dockerfile", b"# caf\xe9\nFROM --platform=linux busybox\nRUN\nUSER nobody-here\nWORKDIR /bin\n");
    lab.rbuild(["build", "-t", "x"]).ok();
    lab.build("# syntax=mirror:5000/docker/dockerfile:1\nFROM scratch\nCOPY --chmod=go=u,o=g-w f /\n", &[]).ok();
    let windows = "FROM scratch\nWORKDIR C:\\\\app\nCOPY f .\nCMD serve\n";
    lab.build(windows, &["--platform", "windows/amd64", "-t", "win"]).ok();
    let config = lab.rbuild(["inspect", "win"]).ok().stdout;
    for want in ["\"cmd\"", "\"/S\"", "\"/C\"", "\\\\app"] {
        assert!(config.contains(want), "{want}: {config}");
    }
    assert!(!config.contains("/usr/local/sbin"), "{config}");
}

#[test]
fn check_and_build_use_the_same_platform() {
    let lab = Lab::new();
    lab.build("FROM scratch\nENV FROMBASE=1\n", &["--platform", "linux/arm64", "-t", "base-arm64"]).ok();
    lab.build("FROM scratch\n", &["--platform", "linux/amd64", "-t", "base-amd64"]).ok();
    lab.write("Dockerfile", "FROM base-$TARGETARCH\nLABEL x=$FROMBASE\n");
    lab.rbuild(["build", "--platform", "linux/arm64", "--check"]).ok();
}

#[test]
fn check_uses_the_base_image_of_the_build() {
    let lab = Lab::new();
    lab.build("FROM scratch\nENV FROMBASE=1\n", &["-t", "rich"]).ok();
    lab.build("FROM scratch\n", &["-t", "poor"]).ok();
    lab.write("Dockerfile", "ARG BASE=poor\nFROM $BASE\nLABEL x=$FROMBASE\n");
    lab.rbuild(["build", "--check"]).fails(1, &[]);
    lab.rbuild(["build", "--check", "--build-arg", "BASE=rich"]).ok();
    lab.rbuild(["build", "--check", "--build-context", "poor=docker-image://rich"]).ok();
    lab.rbuild(["build", "--check", "--build-arg", "BASE=rich", "--build-context", "rich=docker-image://scratch"])
        .fails(1, &[]);
}

/// Mounts are made in the order of their targets, parents first, regardless of their order in the
/// instruction.
#[test]
fn a_mount_does_not_hide_another_below_it() {
    let lab = Lab::new();
    lab.write("in/f", "inner").write("c/in/.keep", "").write("c/f", "outer");
    let caches =
        [("inner", "/x/y"), ("outer", "/x")].map(|(id, target)| format!("--mount=type=cache,id={id},target={target}"));
    let binds = ["--mount=source=in,target=/x/in", "--mount=source=c,target=/x"].map(String::from);
    for [first, second] in [caches.clone(), [caches[1].clone(), caches[0].clone()]] {
        let out = lab.build_local(
            &format!(
                "FROM busybox AS b\nRUN {first} {second} echo kept >/x/y/f\n\
                 RUN --mount=type=cache,id=inner,target=/c cp /c/f /kept\nFROM scratch\nCOPY --from=b /kept /\n"
            ),
            &["--no-cache"],
        );
        assert_eq!(std::fs::read_to_string(out.join("kept")).unwrap(), "kept\n", "{first} {second}");
    }
    for [first, second] in [binds.clone(), [binds[1].clone(), binds[0].clone()]] {
        let file = format!(
            "FROM busybox AS b\nRUN {first} {second} cat /x/in/f /x/f >/both\nFROM scratch\nCOPY --from=b /both /\n"
        );
        let out = lab.build_local(&file, &[]);
        assert_eq!(std::fs::read_to_string(out.join("both")).unwrap(), "innerouter", "{first} {second}");
    }
}

/// As in BuildKit, the last type applies, the default target is the working directory, and empty
/// values count as unset.
#[test]
fn mount_options_have_the_meaning_of_buildkit() {
    let lab = Lab::new();
    lab.write("f", "of the context");
    let file = "FROM busybox\nWORKDIR /w\nARG unset\n\
        RUN --mount=type=bind test \"$(cat /w/f)\" = 'of the context'\n\
        RUN --mount=type=bind,type=cache,id=$unset,target=/c echo 1 > /c/kept\n\
        RUN --mount=type=cache,target=/c,id=/c test -e /c/kept\n\
        FROM busybox AS unused\nRUN --mount=type=overlay,target=/m true\nFROM busybox\nCOPY --from=0 /w /w\n";
    lab.build(file, &["."]).ok();
    lab.build("FROM busybox\nRUN --mount=type=bind true\n", &["."]).fails(2, &["would cover the root file system"]);
    lab.build("FROM busybox\nFROM busybox\nRUN --mount=from=$A,target=/m true\n", &["--target", "0", "."])
        .fails(2, &["`from` does not expand variables"]);
    lab.build("FROM busybox\nRUN --mount=type=tmpfs,target=/t,ro=f touch /t/x\n", &["."]).ok();
}

#[test]
fn missing_working_directories_are_created_for_commands() {
    let lab = Lab::new();
    let listing = lab.build_listing("FROM busybox\nWORKDIR /w/x\nRUN rm -r /w\nRUN touch in\n");
    for want in ["755 0:0 w/", "755 0:0 w/x/", "644 0:0 w/x/in"] {
        assert!(listing.iter().any(|entry| entry == want), "{want}: {listing:#?}");
    }
    let listing = lab.build_listing("FROM busybox\nWORKDIR /w/x\nRUN rm -r /w\nUSER 5:6\nRUN touch in\n");
    for want in ["755 5:6 w/", "755 5:6 w/x/", "644 5:6 w/x/in"] {
        assert!(listing.iter().any(|entry| entry == want), "{want}: {listing:#?}");
    }
    // A mount that covers the directory, and a path with `..`.
    lab.build("FROM busybox\nWORKDIR /w/x\nRUN --mount=type=tmpfs,target=/w test $PWD = /w/x\n", &[]).ok();
    lab.build("FROM busybox\nWORKDIR /a/../b\nRUN test $(pwd) = /b\n", &[]).ok();
    lab.build("FROM busybox\nRUN touch /f\nWORKDIR /w\nRUN rmdir /w && ln -s f /w\nRUN true\n", &[])
        .fails(1, &["the working directory `/w` is not a directory"]);
}

#[test]
fn a_tmpfs_has_the_mode_of_the_directory_that_it_covers() {
    let lab = Lab::new();
    let mode = |target: &str| format!("--mount=type=tmpfs,target={target} stat -c %a {target}");
    let file = ["/d", "/missing"].map(|at| format!("RUN {} >>/modes\n", mode(at))).concat();
    let out = lab
        .build_local(&format!("FROM busybox\nRUN mkdir -m 711 /d\n{file}FROM scratch\nCOPY --from=0 /modes /\n"), &[]);
    assert_eq!(std::fs::read_to_string(out.join("modes")).unwrap(), "711\n1777\n");
    let out = lab.build_local(
        "FROM busybox AS from\nRUN mkdir -p -m 711 /d\nFROM busybox\nRUN mkdir -p -m 700 /m/d /t/d\n\
         RUN --mount=type=bind,from=from,target=/m --mount=type=tmpfs,target=/m/d stat -c %a /m/d >/modes\n\
         RUN --mount=type=tmpfs,target=/t --mount=type=tmpfs,target=/t/d stat -c %a /t/d >>/modes\n\
         FROM scratch\nCOPY --from=1 /modes /\n",
        &[],
    );
    assert_eq!(std::fs::read_to_string(out.join("modes")).unwrap(), "711\n1777\n");
    // Links decide which directory it covers: one of the image leads into the bind, one of the bind
    // leads out of it, and one of the bind stays in it.
    let out = lab.build_local(
        "FROM busybox AS from\nRUN mkdir -m 711 /d && mkdir -m 750 /abs && ln -s /abs /out && ln -s d /in\n\
         FROM busybox\nRUN mkdir -p -m 700 /m/d && mkdir -m 705 /abs && ln -s /m /z && echo >/modes\n\
         RUN --mount=from=from,target=/m --mount=type=tmpfs,target=/z/d stat -c %a /m/d >>/modes\n\
         RUN --mount=from=from,target=/m --mount=type=tmpfs,target=/m/out stat -c %a /abs >>/modes\n\
         RUN --mount=from=from,target=/m --mount=type=tmpfs,target=/m/in stat -c %a /m/d >>/modes\n\
         RUN --mount=from=from,target=/m,rw --mount=type=tmpfs,target=/z/missing stat -c %a /m/missing >>/modes\n\
         RUN ln -s /fresh /zz\n\
         RUN --mount=type=tmpfs,target=/fresh/deep/x --mount=type=tmpfs,target=/zz stat -c %a /fresh >>/modes\n\
         FROM scratch\nCOPY --from=1 /modes /\n",
        &[],
    );
    assert_eq!(std::fs::read_to_string(out.join("modes")).unwrap(), "\n711\n705\n711\n1777\n1777\n");
}

#[test]
fn heredocs_and_quotes_are_split_as_in_buildkit() {
    let lab = Lab::new();
    let out = lab.build_local(
        "FROM busybox\nARG V=value\nRUN cat << EOF >/spaced\ntext\nEOF\nRUN << EOF\necho script >/script\nEOF\n\
         RUN echo $((1 << 2)) >/shift\nCOPY <<\\EOF /expanded\n$V\nEOF\n",
        &[],
    );
    for (name, want) in [("spaced", "text\n"), ("script", "script\n"), ("shift", "4\n"), ("expanded", "value\n")] {
        assert_eq!(std::fs::read_to_string(out.join(name)).unwrap(), want, "{name}");
    }
}
