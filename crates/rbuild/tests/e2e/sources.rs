//! Sources of COPY, ADD and mounts: resolution of paths, files that a build may read, and files
//! that are part of the key.

use crate::lab::{Lab, exists};

/// Returns the lines of a result's listing whose path begins with `below`, without the owner.
fn lines(lab: &Lab, file: &str, below: &str) -> Vec<String> {
    let without_owner = |line: String| {
        let mut words = line.splitn(3, ' ');
        let (mode, _, rest) = (words.next()?, words.next()?, words.next()?);
        rest.starts_with(below).then(|| format!("{mode} {rest}"))
    };
    lab.build_listing(file).into_iter().filter_map(without_owner).collect()
}

#[test]
fn parents_keeps_directories_and_symlinks_of_the_source() {
    let lab = Lab::new();
    lab.sh("mkdir -p usr/lib a/b && echo z > usr/lib/libz.so.1.2 && ln -s libz.so.1.2 usr/lib/libz.so.1 && \
            ln -s libz.so.1 usr/lib/libz.so && echo 1 > a/b/f && ln -s /data lnk && mkdir data && echo mine > data/f1 && \
            chmod 644 usr/lib/libz.so.1.2 a/b/f && chmod 755 usr usr/lib && chmod 711 a && chmod 750 a/b")
        .ok();
    // Links keep their own names, whichever pattern matches them.
    let links = ["755 w/usr/lib/", "777 w/usr/lib/libz.so -> libz.so.1", "777 w/usr/lib/libz.so.1 -> libz.so.1.2"];
    for source in
        ["/usr/lib/libz.so*", "usr/lib/libz.*", "usr/lib/libz.so usr/lib/libz.so.1 usr/lib/libz.so.1.2", "usr"]
    {
        let all = lines(&lab, &format!("FROM scratch\nCOPY --parents {source} /w/\n"), "w/usr/lib/");
        assert_eq!(all, [&links[..], &["644 w/usr/lib/libz.so.1.2"]].concat(), "{source}");
        let staged = format!("FROM scratch AS s\nCOPY usr /usr/\nFROM scratch\nCOPY --from=s --parents {source} /w/\n");
        assert_eq!(lines(&lab, &staged, "w/usr/lib/"), all, "{source}");
    }
    // A link is not followed, and its target in the image is not written to.
    let base = "FROM busybox AS base\nRUN mkdir /data && echo theirs > /data/f1\nFROM base\n";
    for link in ["", "--link "] {
        lab.build(&format!("{base}COPY --parents {link}lnk/f1 /w/\n"), &[])
            .fails(1, &["`lnk/f1` crosses the symbolic link `lnk`"]);
    }
    let out = lab.build_local(&format!("{base}COPY --parents lnk data/f1 /\n"), &[]);
    assert_eq!(
        (lab.read("out/data/f1").as_str(), out.join("lnk").read_link().unwrap().to_str()),
        ("mine\n", Some("/data"))
    );
    // Parent directories have their mode in the source, even if they exist in the image already.
    assert_eq!(
        lines(&lab, "FROM scratch\nCOPY --parents a/b/f /w/\n", "w/"),
        ["755 w/", "711 w/a/", "750 w/a/b/", "644 w/a/b/f"]
    );
    let there = "FROM busybox\nRUN mkdir -m 700 -p /w/a/b && chmod 700 /w/a\nCOPY --parents a/b/f /w/\n";
    assert_eq!(lines(&lab, there, "w/a/"), ["711 w/a/", "750 w/a/b/", "644 w/a/b/f"]);
    // A pattern without matches still creates the destination.
    assert_eq!(lines(&lab, "FROM scratch\nCOPY --parents none* /w/x/\n", ""), ["755 w/", "755 w/x/"]);
    assert_eq!(lines(&lab, "FROM scratch\nCOPY --parents a/./none/* /w\n", ""), ["755 w/"]);
    assert_eq!(lines(&lab, "FROM scratch\nCOPY none* /w/x/\n", ""), Vec::<String>::new());
}

#[test]
fn metadata_of_parent_directories_is_in_the_key() {
    let lab = Lab::new();
    lab.sh("mkdir -p a/b/c && echo 1 > a/b/c/f && chmod 755 a a/b a/b/c").ok();
    let file = "FROM busybox\nCOPY --parents a/b/c/f /w/\n";
    let dirs = |want: [&str; 3]| {
        let found = lines(&lab, file, "w/a/");
        let modes: Vec<&str> = found.iter().filter(|l| l.ends_with('/')).map(|l| &l[..3]).collect();
        assert_eq!(modes, want);
    };
    dirs(["755"; 3]);
    for (change, want) in [
        ("chmod 700 a", ["700", "755", "755"]),
        ("chmod 711 a/b", ["700", "711", "755"]),
        ("chmod 750 a/b/c", ["700", "711", "750"]),
        ("chmod 755 a a/b a/b/c", ["755"; 3]),
    ] {
        lab.sh(change).ok();
        dirs(want);
    }
    let steps = |args: &[&str]| lab.build(file, args).ok().steps();
    assert_eq!(steps(&[]), (0, 1));
    // In contrast, if only the contents of a directory are copied, its own mode is not part of the
    // key.
    let content = "FROM busybox\nCOPY a/b/c /w/\n";
    lab.build(content, &[]).ok();
    lab.sh("chmod 700 a/b/c").ok();
    assert_eq!(lab.build(content, &[]).ok().steps(), (0, 1));
    assert_eq!(steps(&[]), (1, 0));
    // The same for stages.
    let staged = |mode: &str| {
        let file = format!(
            "FROM busybox AS s\nRUN mkdir -p /a/b && echo 1 > /a/b/f && chmod {mode} /a\nFROM scratch\nCOPY --from=s --parents /a/b/f /w/\n"
        );
        lines(&lab, &file, "w/a/").swap_remove(0)
    };
    assert_eq!([staged("700"), staged("755"), staged("u=rwx,go=")], ["700 w/a/", "755 w/a/", "700 w/a/"]);
}

#[test]
fn symlinks_to_excluded_files_are_dangling() {
    let lab = Lab::new();
    lab.sh("mkdir -p sec/in && echo SECRET > secret && echo SECRET > sec/in/key && ln -s secret link && ln -s sec ldir && \
            ln -s link chain && echo open > open && ln -s open good && cp -a . $LAB/n && printf 'secret\\nsec\\n' | tee .dockerignore > $LAB/n/.dockerignore")
        .ok();
    let named = format!("n={}", lab.path("n").display());
    for source in ["link", "chain", "ldir/in/key", "ldir", "ldir/in", "secret"] {
        for step in [
            "COPY S /x",
            "COPY S good /x/",
            "ADD S /x",
            "COPY --link S /x",
            "RUN --mount=source=S,target=/m cat /m",
            "COPY --from=n S /x",
            "RUN --mount=from=n,source=S,target=/m cat /m",
            "COPY --parents S /x/",
        ] {
            if step.contains("--parents") && !["ldir/in/key", "ldir/in", "secret"].contains(&source) {
                continue;
            }
            let file = format!("FROM busybox\n{}\n", step.replace('S', source));
            let ran = lab.build(&file, &["--build-context", &named, "-o", "type=tar,dest=out.tar"]);
            assert_eq!(ran.code, Some(1), "{file}{}", ran.stderr);
            assert!(!ran.stderr.contains("SECRET"), "{file}{}", ran.stderr);
        }
    }
    // A pattern that matches a link refers to the link's target, as a name does.
    for source in ["lin*", "cha* good"] {
        let ran = lab.build(&format!("FROM scratch\nCOPY {source} /y/\n"), &[]);
        let ran = ran.fails(1, &["hint: remove or narrow the pattern `"]);
        assert!(!ran.stderr.contains("SECRET"), "{}", ran.stderr);
    }
    // The links themselves may be copied; their targets are not.
    let out = lab.build_local("FROM scratch\nCOPY . /\nCOPY --parents link /z/\nCOPY good /good\n", &[]);
    assert!(exists(out.join("link")) && exists(out.join("z/link")));
    assert_eq!(lab.read("out/good"), "open\n");
    assert!(!lab.sh("grep -r SECRET $LAB/out").stdout.contains("SECRET"));
}

#[test]
fn directories_without_included_files_do_not_exist() {
    let lab = Lab::new();
    lab.write("d/a", "").write("d/b", "").write("d/e/c", "");
    lab.sh("chmod 711 d && chmod 750 d/e").ok();
    let build = |ignore: &str| {
        lab.write(".dockerignore", ignore);
        lab.build("FROM scratch\nCOPY d /x/\n", &["-o", &format!("type=tar,dest={}", lab.path("out.tar").display())])
    };
    for ignore in ["d\n", "*\n", "d\n!d/none\n", "**\n!e\n"] {
        build(ignore).fails(1, &["`d` not found", "hint: remove or narrow the pattern `"]);
    }
    for ignore in ["d/*\n", "d/**\n", "d/a\nd/b\nd/e\n", "d\n!d/a\n"] {
        build(ignore).ok();
    }
    // Parents of a re-included file have the attributes of the context's directories.
    lab.write(".dockerignore", "*\n!d/e/c\n");
    let dirs = |file: &str| lines(&lab, file, "").into_iter().filter(|l| l.ends_with('/')).collect::<Vec<_>>();
    assert_eq!(dirs("FROM scratch\nCOPY . /\n"), ["711 d/", "750 d/e/"]);
    assert_eq!(dirs("FROM scratch\nCOPY d /x/\n"), ["755 x/", "750 x/e/"]);
    lab.write(".dockerignore", "");
    assert_eq!(dirs("FROM scratch\nCOPY --exclude=* --exclude=!e/c d /x/\n"), ["755 x/", "750 x/e/"]);
    lab.sh("chmod 700 d/e").ok();
    assert_eq!(dirs("FROM scratch\nCOPY --exclude=* --exclude=!e/c d /x/\n"), ["755 x/", "700 x/e/"]);
}

#[test]
fn copies_take_patterns_and_mounts_take_literal_paths() {
    let lab = Lab::new();
    lab.write("app/[i]/f", "literal").write("app/i/f", "pattern").write("a*", "star").write("ab", "");
    lab.sh("ln -s app/i lnk").ok();
    for (source, want) in [("app/[i]", "literal"), ("app/i", "pattern"), ("lnk", "pattern")] {
        for option in ["", ",rw"] {
            let file = format!("FROM busybox\nRUN --mount=type=bind,source={source},target=/m{option} cp /m/f /f\n");
            lab.build_local(&file, &[]);
            assert_eq!(lab.read("out/f"), want, "{source}{option}");
        }
        let staged = format!(
            "FROM scratch AS s\nCOPY app /app/\nCOPY lnk /lnk/\nFROM busybox\nRUN --mount=from=s,source={source},target=/m cp /m/f /f\n"
        );
        lab.build_local(&staged, &[]);
        assert_eq!(lab.read("out/f"), want, "{source}");
    }
    lab.build("FROM busybox\nRUN --mount=source=app/*,target=/m ls /m\n", &[]).fails(1, &["`app/*` not found"]);
    lab.build_local("FROM busybox\nRUN --mount=source=a*,target=/m cp /m /f\n", &[]);
    assert_eq!(lab.read("out/f"), "star");
    lab.build_local("FROM busybox\nCOPY app/[[]i]/f /f\nCOPY app/[i]/f /g\n", &[]);
    assert_eq!((lab.read("out/f"), lab.read("out/g")), ("literal".into(), "pattern".into()));
    for bad in ["[]a]", "[-]", "[a-b-c]", "app/[", "nothing/[^]"] {
        let patterns = format!("invalid pattern `{bad}`");
        for step in [
            format!("COPY {bad} /x/"),
            format!("ADD {bad} /x/"),
            format!("COPY --from=busybox {bad} /x/"),
            format!("COPY --parents {bad} /x/"),
        ] {
            lab.build(&format!("FROM busybox\n{step}\n"), &[]).fails(1, &[&patterns]);
        }
        lab.build(&format!("FROM busybox\nCOPY --exclude={bad} app /x/\n"), &[]).fails(2, &["--exclude", &patterns]);
        lab.write(".dockerignore", format!("ok\n\n{bad}\n"));
        lab.build("FROM scratch\nCOPY app /x/\n", &[]).fails(1, &["the ignore file", "line 3", &patterns]);
        lab.write(".dockerignore", "");
    }
}

#[test]
fn mounts_of_stages_are_keyed_by_their_content() {
    let lab = Lab::new();
    lab.write("ctx/f", "same");
    let named = format!("n={}", lab.ctx().join("ctx").display());
    let build = |noise: &str, content: &str, mount: &str| {
        let file = format!(
            "FROM busybox AS s\nRUN mkdir -p /d/e && echo {content} > /d/e/f && echo {noise} > /noise\n\
             FROM busybox\nRUN --mount={mount},target=/m find /m | sort > /found\nRUN cat /found\n"
        );
        lab.build(&file, &["--build-context", &named]).ok().steps()
    };
    for mount in
        ["from=s,source=/d", "from=s,source=d,rw", "from=s,source=/d/e/f", "type=bind,from=s,source=/d/e,readonly"]
    {
        assert_eq!(build(&format!("0{mount}"), mount, mount), (3, 0), "{mount}");
        // The stage changed and the mounted part did not, so no later step runs.
        assert_eq!(build(&format!("1{mount}"), mount, mount), (1, 2), "{mount}");
        assert_eq!(build(&format!("1{mount}"), mount, mount), (0, 3), "{mount}");
        assert_eq!(build("2", &format!("other{mount}"), mount), (3, 0), "{mount}");
    }
    // A mount of the whole stage depends on all of it.
    assert_eq!(build("3", "x", "from=s"), (3, 0));
    assert_eq!(build("$((1+2))", "x", "from=s"), (1, 2));
    assert_eq!(build("4", "x", "from=s"), (3, 0));
    for mount in ["from=busybox,source=/bin", "from=n,source=/"] {
        assert_eq!(build("5", "x", mount), (2, 0), "{mount}");
        assert_eq!(build("6", "x", mount), (0, 2), "{mount}");
    }
    // Mode and owner of the mounted directory are visible and part of the key.
    let of_mode = |mode: &str| {
        let file = format!(
            "FROM busybox AS s\nRUN mkdir /d && chmod {mode} /d\nFROM busybox\nRUN --mount=from=s,source=/d,target=/m stat -c %a /m > /mode\n"
        );
        lab.build_local(&file, &[]);
        lab.read("out/mode")
    };
    assert_eq!([of_mode("700"), of_mode("755"), of_mode("u=rwx,g=,o=")], ["700\n", "755\n", "700\n"]);
    lab.build("FROM busybox AS s\nFROM busybox\nRUN --mount=from=s,source=/none,target=/m true\n", &[])
        .fails(1, &["/none"]);
}

#[test]
fn dockerfile_and_ignore_file_cannot_lead_out_of_the_context() {
    let lab = Lab::new();
    let good = "FROM scratch\nCOPY f /f\n";
    lab.write("f", "x").write("docker/Dockerfile", good).write("docker/ignore", "secret\n").write("secret", "");
    lab.sh("printf 'TOPSECRET\\n' > $LAB/outside; printf 'FROM scratch\\nCOPY f /f\\n' > $LAB/Dockerfile; cp $LAB/Dockerfile Dockerfile").ok();
    let build = |prepare: &str, args: &str| {
        let ran = lab.sh(&format!("{prepare}; timeout 20 $RB build -o $LAB/out {args} .; code=$?; rm -rf Dockerfile dockerfile .dockerignore Dockerfile.dockerignore; \
                                   cp $LAB/Dockerfile Dockerfile; exit $code"));
        assert!(!ran.stderr.contains("TOPSECRET") && !ran.stdout.contains("TOPSECRET"), "{prepare}: {}", ran.stderr);
        ran
    };
    let bad = [
        ("ln -sf $LAB/outside", "is a symbolic link whose target is not in the context"),
        ("ln -sf ../outside", "is a symbolic link whose target is not in the context"),
        ("ln -sf /etc/hostname", "is a symbolic link whose target is not in the context"),
        ("mkfifo", "is a FIFO"),
        ("mkdir", "is a directory"),
    ];
    for (make, expected) in bad {
        for (name, args) in [
            ("Dockerfile", ""),
            ("Dockerfile", "-f Dockerfile"),
            ("Dockerfile", "-f $PWD/Dockerfile"),
            ("dockerfile", ""),
            (".dockerignore", ""),
            (".dockerignore", "-f $LAB/Dockerfile"),
            ("Dockerfile.dockerignore", ""),
        ] {
            build(&format!("rm -f Dockerfile.dockerignore; [ {name} != dockerfile ] || rm Dockerfile; rm -f {name}; {make} {name}"), args)
                .fails(1, &[name, expected]);
        }
    }
    // A link at a directory of the context does not lead out of it either.
    build("ln -sfn $LAB way", "-f way/outside").fails(1, &["is a symbolic link whose target is not in the context"]);
    // Links within the context are followed. Files outside the context that the caller names are
    // allowed.
    build("ln -sf docker/Dockerfile Dockerfile; ln -sf docker/ignore .dockerignore", "").ok();
    build("ln -sf docker/Dockerfile Dockerfile", "-f Dockerfile").ok();
    build("true", "-f $LAB/Dockerfile").ok();
    build("ln -sf $LAB/Dockerfile $LAB/link", "-f $LAB/link").ok();
    build("true", "-f <(cat $LAB/Dockerfile)").ok();
    // The same for named contexts and archives.
    lab.sh("mkdir $LAB/n && touch $LAB/n/x && mkfifo $LAB/n/.dockerignore").ok();
    build("true", "--build-context n=$LAB/n").fails(1, &[".dockerignore` is a FIFO"]);
    lab.sh("mkdir $LAB/t && cd $LAB/t && mkfifo Dockerfile && tar -cf ../t.tar . && timeout 20 $RB build - < ../t.tar")
        .fails(1, &["is a FIFO"]);
}

/// A device in place of the Dockerfile is not opened.
#[test]
fn root_devices_are_rejected_as_dockerfile_and_ignore_file() {
    let lab = Lab::new();
    for name in ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"] {
        lab.sh(&format!(
            "rm -rf *; printf 'FROM scratch\\nCOPY x /\\n' > Dockerfile; touch x; rm -f {name}; mknod {name} c 1 5"
        ))
        .ok();
        lab.sh("timeout 20 $RB build -o $LAB/out .; code=$?; rm -f .dockerignore; exit $code")
            .fails(1, &["is a device"]);
    }
}
