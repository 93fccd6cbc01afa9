//! Corner cases of COPY, ADD and WORKDIR in which builders differ. The expected results are those
//! of the reference implementation.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

use crate::lab::Lab;

/// Returns the entry of a path as `mode owner name`.
#[track_caller]
fn entry<'a>(listing: &'a [String], name: &str) -> &'a str {
    let found = listing.iter().find(|l| l.split(' ').nth(2) == Some(name));
    found.unwrap_or_else(|| panic!("{name} is missing in {listing:#?}"))
}

fn chmod(lab: &Lab, path: &str, mode: u32) {
    std::fs::set_permissions(lab.ctx().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_existing_destination_keeps_its_metadata_and_subdirectories_take_the_sources() {
    let lab = Lab::new();
    lab.write("src/sub/f", "x");
    chmod(&lab, "src", 0o700);
    chmod(&lab, "src/sub", 0o701);
    let listing = lab.build_listing(
        "FROM busybox AS made\nRUN mkdir -p /dir/sub && chown -R 7:8 /dir && chmod 711 /dir /dir/sub && echo > /dir/sub/f\n\
         FROM busybox\nRUN mkdir -p -m 750 /old && mkdir -m 750 /old/sub && chown -R 5:6 /old\n\
         COPY src /old\nCOPY --from=made /dir /new\nCOPY --from=made /dir /old2/\nCOPY --from=made --chown=3:4 /dir /owned\n",
    );
    assert_eq!(entry(&listing, "old/"), "750 5:6 old/");
    assert_eq!(entry(&listing, "old/sub/"), "701 0:0 old/sub/");
    // A destination directory created for a copied directory belongs to root, regardless of the
    // owner of the source; its content keeps its attributes.
    assert_eq!(entry(&listing, "new/"), "755 0:0 new/");
    assert_eq!(entry(&listing, "old2/"), "755 0:0 old2/");
    assert_eq!(entry(&listing, "new/sub/"), "711 7:8 new/sub/");
    assert_eq!(entry(&listing, "owned/"), "755 3:4 owned/");
    assert_eq!(entry(&listing, "owned/sub/"), "711 3:4 owned/sub/");
}

#[test]
fn a_copy_never_replaces_a_directory_by_a_file_or_vice_versa() {
    let lab = Lab::new();
    lab.write("d/x", "1").write("x", "2").write("only", "f");
    let base = "FROM busybox\nRUN mkdir /only && touch /d\n";
    lab.build(&format!("{base}COPY d/ /d\n"), &[]).fails(1, &["`/d` is not a directory in the image", "Dockerfile:3"]);
    lab.build("FROM busybox\nRUN mkdir -p /t/x\nCOPY d /t\n", &[]).fails(1, &["`/t/x` is a directory in the image"]);
    // If the destination is a directory with the name of the file, the file is copied into it.
    let listing = lab.build_listing(&format!("{base}COPY only /only\n"));
    assert!(entry(&listing, "only/only").ends_with("0:0 only/only"));
    // Several files copied to one name that is not a directory: the last one wins, with a warning.
    lab.write("p/a1", "one").write("p/a2", "two");
    for copy in ["p/a*", "p/a1 p/a2", "p/a1 <<h"] {
        let file = format!("FROM scratch\nCOPY {copy} /f\n{}", if copy.contains("<<") { "two\nh\n" } else { "" });
        let output = lab.build(&file, &["-o", &format!("type=tar,dest={}", lab.path("o.tar").display())]).ok();
        assert!(output.stderr.contains("`/f` was overwritten by every source"), "{}", output.stderr);
        let out = lab.build_local(&file, &[]);
        assert_eq!(std::fs::read_to_string(out.join("f")).unwrap().trim(), "two", "{file}");
    }
    // A directory needs no trailing slash; several sources do not replace a file of the image.
    let out = lab.build_local("FROM busybox\nWORKDIR /app\nCOPY p/a1 d only /app\nADD p/a1 p/a2 .\n", &[]);
    for name in ["app/a1", "app/x", "app/only", "app/a2"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let file = "`/d` is a file in the image; several sources require a directory";
    for copy in ["COPY p/a1 p/a2 /d", "ADD p/a1 p/a2 /d", "COPY p/a1 <<h /d\ntext\nh"] {
        lab.build(&format!("{base}{copy}\n"), &[]).fails(1, &[file]);
    }
    // A pattern without matches is allowed, so it can make a file optional; a plain name must
    // exist.
    lab.build("FROM scratch\nCOPY only non[e] /x/\n", &[]).ok();
    lab.build("FROM scratch\nCOPY only none /x/\n", &[]).fails(1, &["`none` not found"]);
}

#[test]
fn warnings_of_a_copy_are_repeated_on_a_cache_hit() {
    let lab = Lab::new();
    lab.write("a", "1").write("b", "2");
    let file = "FROM busybox AS s\nCOPY a b /f\nCOPY a non[e] /d/\n\
                FROM busybox\nCOPY --from=s /f /d/a /g\nCOPY --from=s /f /no* /e/\n";
    let warnings = |file: &str| {
        let said = lab.build(file, &[]).ok().stderr;
        // A command without isolation has a warning of its own.
        let is_of_copy = |line: &&str| line.starts_with("warning: ") && !line.contains("commands share");
        let warnings = said.lines().filter(is_of_copy).map(str::to_string);
        let mut warnings: Vec<String> = warnings.collect();
        warnings.sort();
        warnings
    };
    let overwritten =
        |dest: &str| format!("warning: `{dest}` was overwritten by every source; only the last one remains");
    let unmatched = |pattern: &str| format!("warning: no file matches `{pattern}`; nothing was copied for it");
    let mut expected = [overwritten("/f"), overwritten("/g"), unmatched("non[e]"), unmatched("/no*")];
    expected.sort();
    assert_eq!(warnings(file), expected);
    // Nothing runs: the cache answers.
    assert_eq!(warnings(file), expected);
    // Something else runs.
    assert_eq!(warnings(&format!("{file}RUN true\n")), expected);
    // Another pattern without matches: the copy itself is cached.
    let edited = file.replace("non[e]", "nil[*]");
    assert_ne!(edited, file);
    expected[2..].iter_mut().filter(|line| line.contains("non[e]")).for_each(|line| *line = unmatched("nil[*]"));
    expected.sort();
    for _ in 0..2 {
        assert_eq!(warnings(&edited), expected);
    }
}

#[test]
fn an_unreadable_directory_of_the_context_has_a_hint() {
    let lab = Lab::new();
    lab.write("d/sub/f", "1");
    lab.sh("chmod 0 $LAB/ctx/d/sub").ok();
    let hint = "/ctx/d/sub`, or exclude it in .dockerignore";
    for copy in ["COPY . /x", "COPY d/ /x/", "COPY d/sub /x"] {
        let built = lab.build(&format!("FROM scratch\n{copy}\n"), &[]);
        // Root may read everything.
        if nix::unistd::geteuid().is_root() {
            built.ok()
        } else {
            built.fails(1, &["permission denied", "Dockerfile:2", "permit this user to read `", hint])
        };
    }
    lab.write(".dockerignore", "d/sub\n");
    lab.build("FROM scratch\nCOPY . /x\n", &[]).ok();
    lab.sh("chmod 755 $LAB/ctx/d/sub").ok();
}

#[test]
fn created_parent_directories_have_default_mode_and_owner() {
    let lab = Lab::new();
    lab.write("f", "x").write("src/sub/g", "y");
    chmod(&lab, "f", 0o644);
    chmod(&lab, "src/sub", 0o750);
    lab.sh("tar -cf a.tar --owner=0 --group=0 f").ok();
    let listing = lab.build_listing(
        "FROM busybox\nCOPY --chmod=0777 f /parent/f\nCOPY --chmod=u=rwx,g=,o= f /sym/f\n\
         COPY --chmod=4755 f /special/f\nCOPY --chmod=1777 f /sticky/f\nCOPY --chmod=g-x,o= src /tree/d\nCOPY --chmod=u=rwx <<h /here/h\ntext\nh\n\
         ADD --chmod=700 a.tar /archive/x\nCOPY --parents --chmod=u=rwx f /kept/\nCOPY --chown=5:6 f /o1/o2/f\n\
         COPY --chmod=4755 f /set\nUSER 9:9\nCOPY f /user/f\n\
         WORKDIR /made/by\nWORKDIR user\nRUN mkdir -p /tmp/x\nUSER web\nWORKDIR /named/one\nWORKDIR /tmp/x\n",
    );
    for (name, want) in [
        ("parent/", "777 0:0"),
        ("parent/f", "777 0:0"),
        ("sym/", "755 0:0"),
        ("sym/f", "700 0:0"),
        ("special/", "755 0:0"),
        ("special/f", "4755 0:0"),
        ("sticky/", "777 0:0"),
        ("sticky/f", "1777 0:0"),
        ("tree/", "755 0:0"),
        ("tree/d/", "755 0:0"),
        ("tree/d/sub/", "740 0:0"),
        ("here/", "755 0:0"),
        ("here/h", "744 0:0"),
        ("archive/", "755 0:0"),
        ("archive/x/", "755 0:0"),
        ("archive/x/f", "644 0:0"),
        ("kept/", "755 0:0"),
        ("kept/f", "744 0:0"),
        ("o1/", "755 5:6"),
        ("o1/o2/", "755 5:6"),
        ("o1/o2/f", "644 5:6"),
        ("set", "4755 0:0"),
        ("user/", "755 0:0"),
        ("user/f", "644 0:0"),
        ("made/", "755 9:9"),
        ("made/by/user/", "755 9:9"),
        ("named/", "755 33:33"),
        ("named/one/", "755 33:33"),
        // The directory existed already, so it keeps its owner.
        ("tmp/x/", "755 9:9"),
    ] {
        assert_eq!(entry(&listing, name), format!("{want} {name}"));
    }
}

#[test]
fn special_files_and_attributes_are_copied() {
    let lab = Lab::new();
    lab.write("d/f", "x");
    let _socket = std::os::unix::net::UnixListener::bind(lab.ctx().join("d/socket")).unwrap();
    lab.sh("mkfifo d/fifo && chmod 600 d/fifo && setfattr -n user.note -v kept d/f").ok();
    let out = lab.build_local("FROM scratch\nCOPY d /d\n", &[]);
    let kind = |n: &str| out.join(n).symlink_metadata().unwrap().file_type();
    assert!(kind("d/fifo").is_fifo());
    assert!(kind("d/socket").is_file());
    let file = "FROM busybox\nCOPY d /d\nRUN --mount=type=bind,target=/ctx [ -p /d/fifo ] && [ ! -S /d/socket ]\n";
    lab.build(file, &["-t", "x"]).ok();
    let seen = lab.sh("$RB build -q -o type=tar,dest=$LAB/x.tar . && tar --xattrs --xattrs-include='*' -tvvf $LAB/x.tar d/f; python3 - <<'P'\nimport tarfile, os\nt = tarfile.open(os.environ['LAB'] + '/x.tar')\nprint(t.getmember('d/f').pax_headers)\nP").ok();
    assert!(seen.stdout.contains("'SCHILY.xattr.user.note': 'kept'"), "{}", seen.stdout);
}

#[test]
fn archives_are_detected_by_content_and_unpacked_at_the_destination() {
    let lab = Lab::new();
    lab.write("t/deep/f", "x").write("u/g", "y");
    chmod(&lab, "t", 0o700);
    lab.sh(
        "tar -C t --owner=7 --group=8 -czf plain.txt . && tar -C u -cJf more.tar.xz g && tar -C t -cf implied deep/f \
         && echo no > fake.tar.gz && mkdir sl && ln -s /real sl/link && mkdir sl2 sl2/link && echo z > sl2/link/file \
         && tar -C sl2 -cf through.tar link/file && tar -cf hard.tar u/g && ln u/g u/h && tar -cf hard.tar u",
    )
    .ok();
    let listing = lab.build_listing(
        "FROM busybox\nRUN mkdir -m 751 /dest\nADD plain.txt /dest\nADD plain.txt more.tar.xz /both/\nADD *.tar.xz /wild/\n\
         ADD implied /implied/\nADD fake.tar.gz /fake\nADD --chown=3:4 plain.txt /owned\nADD --unpack=false plain.txt /packed\n\
         COPY plain.txt /copied\nADD hard.tar /hard/\n",
    );
    for (name, want) in [
        // The archive's entry for its root does not apply to the destination.
        ("dest/", "751 0:0"),
        ("dest/deep/", "755 7:8"),
        ("dest/deep/f", "644 7:8"),
        ("both/deep/f", "644 7:8"),
        ("implied/deep/f", "644 0:0"),
        ("owned/", "755 3:4"),
        ("owned/deep/f", "644 3:4"),
    ] {
        let line = entry(&listing, name);
        assert!(line.starts_with(want) || name.ends_with('f'), "{line}");
        if name != "implied/deep/f" {
            assert_eq!(line.split(' ').nth(1), want.split(' ').nth(1), "{line}");
        }
    }
    for name in ["both/g", "wild/g", "fake", "packed", "copied", "hard/u/g"] {
        entry(&listing, name);
    }
    assert!(listing.iter().any(|l| l.contains("hard/u/h -> ") || l.contains("hard/u/g -> ")), "{listing:#?}");
    // An absolute link of the image resolves inside the image.
    let out = lab.build_local("FROM busybox\nRUN mkdir /real && ln -s /real /link\nADD through.tar /\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("real/file")).unwrap(), "z\n");
}

#[test]
fn ignore_files_can_re_include_files_of_an_ignored_directory() {
    let lab = Lab::bare();
    lab.write("a/keep", "1").write("a/drop", "2").write("b.tmp", "3").write("c/d.tmp", "4").write("e", "5");
    lab.write(".dockerignore", "\u{feff}# a comment\na\n!a/keep\n**/*.tmp\n /e \nDockerfile\n.dockerignore\n");
    let out = lab.build_local("FROM scratch\nCOPY . /\n", &[]);
    let listed = lab.sh(&format!("cd {} && find . -type f | sort", out.display())).ok().stdout;
    assert_eq!(listed, "./a/keep\n");
    lab.build("FROM scratch\nCOPY Dockerfile /\n", &[]).fails(1, &["hint: remove or narrow the pattern `"]);
    lab.write(".dockerignore", "!\n");
    lab.build("FROM scratch\nCOPY . /\n", &[]).fails(1, &["the ignore file"]);
}

#[test]
fn a_dockerfile_may_be_a_link_or_in_lower_case_and_have_its_own_ignore_file() {
    let lab = Lab::bare();
    lab.write("sub/file", "FROM scratch\nCOPY . /\n").write("seen", "x").write("hidden", "y");
    symlink("sub/file", lab.ctx().join("dockerfile")).unwrap();
    lab.write("dockerfile.dockerignore", "hidden\n").write(".dockerignore", "seen\n");
    let out = lab.path("out");
    lab.rbuild(["build", "-o", out.to_str().unwrap()]).ok();
    assert!(out.join("seen").exists() && !out.join("hidden").exists());
}

#[test]
fn file_names_may_contain_spaces_stars_and_other_bytes() {
    let lab = Lab::bare();
    lab.write("with blank", "1").write("star*", "2").write("star-not", "3").write("ünïcode", "4").write("-dash", "5");
    let file = "FROM scratch\nCOPY [\"with blank\", \"/a b\"]\nCOPY star[*] /star\nCOPY ünïcode /\nCOPY -- -dash /d\n";
    let out = lab.build_local(file, &[]);
    for (name, content) in [("a b", "1"), ("star", "2"), ("ünïcode", "4"), ("d", "5")] {
        assert_eq!(std::fs::read_to_string(out.join(name)).unwrap(), content, "{name}");
    }
    lab.sh("printf x > \"$(printf 'not-\\377-text')\"").ok();
    let out = lab.build_local("FROM scratch\nCOPY not* /n/\n", &[]);
    assert_eq!(std::fs::read_dir(out.join("n")).unwrap().count(), 1);
}
