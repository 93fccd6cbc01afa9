use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::lab::Lab;

fn has(listing: &[String], line: &str) {
    assert!(listing.iter().any(|l| l == line), "{line:?} is missing in {listing:#?}");
}

#[test]
fn copies_set_destinations_owners_and_modes() {
    let lab = Lab::new();
    lab.write("a.txt", "a").write("b.txt", "b").write("d/one", "1").write("d/sub/two", "2");
    std::fs::set_permissions(lab.ctx().join("a.txt"), std::fs::Permissions::from_mode(0o640)).unwrap();
    for dir in ["d", "d/sub"] {
        std::fs::set_permissions(lab.ctx().join(dir), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let listing = lab.build_listing(
        "FROM scratch\nCOPY a.txt /file\nCOPY a.txt /dir/\nCOPY d /copied\nCOPY *.txt /globbed/\nCOPY --chown=5:6 --chmod=700 d /owned\n\
         WORKDIR /w\nCOPY b.txt .\nCOPY nothing* /none/\n",
    );
    for line in [
        "640 0:0 file",
        "755 0:0 dir/",
        "640 0:0 dir/a.txt",
        "755 0:0 copied/",
        "755 0:0 copied/sub/",
        "640 0:0 globbed/a.txt",
        "700 5:6 owned/",
        "700 5:6 owned/sub/",
        "700 5:6 owned/sub/two",
        "755 0:0 w/",
    ] {
        has(&listing, line);
    }
    assert!(listing.iter().any(|l| l.ends_with(" w/b.txt")) && !listing.iter().any(|l| l.contains("none")));
}

#[test]
fn names_for_chown_come_from_the_image() {
    let lab = Lab::new();
    lab.write("f", "x");
    let listing =
        lab.build_listing("FROM busybox\nCOPY --chown=web:extra f /f\nCOPY --chown=web f /g\nCOPY --chown=9 f /h\n");
    for owner in ["33:50 f", "33:33 g", "9:9 h"] {
        assert!(listing.iter().any(|l| l.ends_with(owner)), "{owner}: {listing:#?}");
    }
    lab.build("FROM busybox\nCOPY --chown=nobody-here f /f\n", &[]).fails(1, &["no user `nobody-here`"]);
}

#[test]
fn symlinks_in_the_image_are_followed_and_never_leave_it() {
    let lab = Lab::new();
    lab.write("f", "x");
    let out = lab.build_local(
        "FROM busybox\nRUN mkdir /real && ln -s /real /abs && ln -s ../../../../real /up && ln -s / /slash\n\
         COPY f /abs/f1\nCOPY f /up/f2\nCOPY f /slash/f3\n",
        &[],
    );
    for name in ["real/f1", "real/f2", "f3"] {
        assert!(out.join(name).is_file(), "{name}");
    }
}

#[test]
fn symlinks_in_the_context_are_copied_unless_named_and_never_leave_it() {
    let lab = Lab::new();
    lab.write("d/f", "x");
    std::fs::write(lab.path("outside"), "secret").unwrap();
    symlink("f", lab.ctx().join("d/link")).unwrap();
    symlink("d", lab.ctx().join("named")).unwrap();
    symlink("../outside", lab.ctx().join("out")).unwrap();
    symlink(lab.path("outside"), lab.ctx().join("abs")).unwrap();
    let out = lab.build_local("FROM scratch\nCOPY d /a\nCOPY named /b\n", &[]);
    assert!(out.join("a/link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(out.join("b/f")).unwrap(), "x");
    for name in ["out", "abs"] {
        lab.build(&format!("FROM scratch\nCOPY {name} /x\n"), &[])
            .fails(1, &["is a symbolic link to ", "which does not exist in the build context"]);
    }
}

#[test]
fn archives_are_unpacked_by_add_and_copied_by_copy() {
    let lab = Lab::new();
    lab.write("in/d/f", "x");
    lab.sh("tar -cf plain.tar -C in d && gzip -k plain.tar && xz -k plain.tar && echo no > not.tar").ok();
    let out = lab.build_local(
        "FROM scratch\nADD plain.tar /p/\nADD plain.tar.gz /g\nADD plain.tar.xz /x/\nADD not.tar /n/\nCOPY plain.tar /c/\nADD --unpack=false plain.tar /u/\n",
        &[],
    );
    for name in ["p/d/f", "g/d/f", "x/d/f", "n/not.tar", "c/plain.tar", "u/plain.tar"] {
        assert!(out.join(name).is_file(), "{name}");
    }
}

#[test]
fn ignored_paths_are_not_in_the_context() {
    let lab = Lab::new();
    lab.write("keep", "1").write("drop", "2").write("d/drop", "3").write("d/keep", "4");
    lab.write(".dockerignore", "# comment\n**/drop\nDockerfile\n");
    let out = lab.build_local("FROM scratch\nCOPY . /\n", &[]);
    assert!(out.join("d/keep").exists() && !out.join("drop").exists() && !out.join("d/drop").exists());
    assert!(!out.join("Dockerfile").exists());
    lab.build("FROM scratch\nCOPY drop /\n", &[]).fails(1, &["hint: remove or narrow the pattern `"]);
    lab.write("Dockerfile.dockerignore", "keep\n");
    assert!(lab.build_local("FROM scratch\nCOPY drop /\n", &[]).join("drop").exists());
}

#[test]
fn hard_links_times_and_holes_are_kept() {
    let lab = Lab::new();
    lab.write("d/one", "x");
    std::fs::hard_link(lab.ctx().join("d/one"), lab.ctx().join("d/two")).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(lab.ctx().join("d/one")).unwrap().set_modified(old).unwrap();
    let sparse = std::fs::File::create(lab.ctx().join("d/sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    let out = lab.build_local("FROM scratch\nCOPY d /\n", &[]);
    let meta = |n: &str| std::fs::metadata(out.join(n)).unwrap();
    assert_eq!(meta("one").ino(), meta("two").ino());
    assert_eq!(meta("one").mtime(), 1_000_000_000);
    assert_eq!(meta("sparse").len(), 50 << 20);
    assert!(meta("sparse").blocks() < 1000, "{} blocks", meta("sparse").blocks());
}

/// As in BuildKit, the destination of a directory's content has the time of the source directory,
/// even if it existed before. It has the time of the build if a later source writes a file into it,
/// or if the source is the root of its tree.
#[test]
fn the_destination_has_the_time_of_the_source_directory() {
    let lab = Lab::new();
    lab.write("d/f", "1").write("e/g", "2").write("h", "3");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for (dir, age) in [("d", 0), ("e", 5)] {
        let dir = std::fs::File::open(lab.ctx().join(dir)).unwrap();
        dir.set_modified(old + std::time::Duration::from_secs(age)).unwrap();
    }
    let stage =
        "FROM busybox AS base\nRUN mkdir -p /there /l; ln -s /there /to\nFROM base AS stage\nCOPY d /s\nFROM base\n";
    for (copy, place, time) in [
        ("COPY d /there/", "there", Some(0)),
        ("COPY d /new/", "new", Some(0)),
        ("COPY --link d /new/", "new", Some(0)),
        ("ADD d /to", "there", Some(0)),
        ("COPY --from=stage /s /there/", "there", Some(0)),
        ("COPY d e /there/", "there", Some(5)),
        ("COPY e d /there/", "there", Some(0)),
        ("COPY --exclude=f d /there/", "there", Some(0)),
        ("COPY d h /there/", "there", None),
        ("COPY h d /there/", "there", Some(0)),
        ("COPY d <<i /there/\nx\ni", "there", None),
        ("COPY . /there/", "there", None),
    ] {
        let out = lab.build_local(&format!("{stage}{copy}\n"), &[]);
        let seen = std::fs::metadata(out.join(place)).unwrap().mtime() - 1_000_000_000;
        assert!(time.map_or(seen > 1_000_000, |time| seen == time), "{copy}: {seen}");
    }
}

/// The largest number means "unchanged" to the kernel: no account can have it.
#[test]
fn accounts_with_an_invalid_id_are_rejected_when_used() {
    let lab = Lab::new();
    lab.write("f", "1").write("d/f", "1");
    let base =
        "FROM busybox\nRUN echo w:x:4294967295:1::/:/bin/sh >> /etc/passwd; echo g:x:4294967295: >> /etc/group\n";
    for (line, file) in [
        ("COPY --chown=w f /o", "passwd"),
        ("COPY --chown=0:g f /o", "group"),
        ("COPY --chown=w --parents d/f /o", "passwd"),
        ("COPY --chown=w <<f /o/\nx\nf", "passwd"),
        ("ADD --chown=:g f /o", "group"),
        ("USER w\nWORKDIR /new", "passwd"),
        ("USER w\nRUN true", "passwd"),
        ("USER 0:g\nRUN true", "group"),
    ] {
        let words =
            [format!("the image's `/etc/{file}` gives "), "the ID 4294967295".to_string(), "Dockerfile:".into()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        lab.build(&format!("{base}{line}\n"), &["--no-cache", "-t", "x"]).fails(1, &words);
    }
}

/// A file that one source provides at several destinations is one file in the image; files from
/// several sources or matches are separate.
#[test]
fn hard_links_are_preserved_within_one_source_only() {
    let lab = Lab::new();
    lab.write("d/one", "x");
    std::fs::hard_link(lab.ctx().join("d/one"), lab.ctx().join("d/two")).unwrap();
    let stage = "FROM scratch AS s\nCOPY d /d\n";
    for (copies, linked) in [
        ("COPY d/one d/two /r/", false),
        ("COPY d/* /r/", false),
        ("ADD d/one d/two /r/", false),
        ("COPY d/one /r/one\nCOPY d/two /r/two", false),
        ("COPY --link d/one d/two /r/", false),
        ("COPY --from=s d/one d/two /r/", false),
        ("COPY --parents d/./one d/./two /r/", false),
        ("COPY --parents d/./* /r/", true),
        ("COPY --from=s d /r/", true),
        ("COPY d* /r/", true),
    ] {
        let listed = lab.build_local(&format!("{stage}FROM scratch\n{copies}\n"), &[]);
        let meta = |n: &str| std::fs::metadata(listed.join("r").join(n)).unwrap();
        assert_eq!(meta("one").ino() == meta("two").ino(), linked, "{copies}");
    }
}

#[test]
fn heredocs_become_files_and_scripts() {
    let lab = Lab::new();
    let out = lab.build_local(
        "FROM busybox\nARG who=me\nCOPY <<one <<'two' /d/\nhello $who\none\nraw $who\ntwo\nRUN <<EOF\necho a > /o\necho b >> /o\nEOF\n",
        &[],
    );
    let read = |n: &str| std::fs::read_to_string(out.join(n)).unwrap();
    assert_eq!((read("d/one"), read("d/two"), read("o")), ("hello me\n".into(), "raw $who\n".into(), "a\nb\n".into()));
}

#[test]
fn a_copy_from_an_image_overwrites_existing_files() {
    let lab = Lab::new();
    lab.write("f", "new").write("d/x", "1");
    let out = lab.build_local("FROM scratch\nCOPY --from=busybox /etc/passwd /p\nCOPY f /p\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("p")).unwrap(), "new");
    lab.build("FROM busybox\nCOPY f /etc\nCOPY f /bin/etc\nRUN mkdir /dir /dir/f\nCOPY f /dir/\n", &[])
        .fails(1, &["is a directory in the image"]);
    lab.build("FROM busybox\nRUN touch /file\nCOPY d /file\n", &[]).fails(1, &["is not a directory"]);
}

#[test]
fn exclude_omits_files_and_parents_keeps_directories() {
    let lab = Lab::new();
    for path in ["a/one.txt", "a/one.md", "a/b/two.txt", "a/b/two.md", "c/three.txt"] {
        lab.write(path, path);
    }
    let names = |file: &str| {
        let mut names: Vec<String> = lab
            .build_listing(file)
            .iter()
            .filter_map(|l| l.rsplit_once(' ').map(|(_, n)| n.to_string()))
            .filter(|n| !n.ends_with('/'))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("FROM scratch\nCOPY --exclude=**/*.md a /\n"), ["b/two.txt", "one.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --exclude=* --exclude=!one.* a /\n"), ["one.md", "one.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --exclude=*.md a/* /d/\n"), ["d/one.txt", "d/two.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --parents a/b/two.txt c /d/\n"), ["d/a/b/two.txt", "d/c/three.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --parents a/./b/two.* /\n"), ["b/two.md", "b/two.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --parents **/*.txt /d/\n"), ["d/a/b/two.txt", "d/a/one.txt", "d/c/three.txt"]);
    assert_eq!(names("FROM scratch\nCOPY --parents none/* /d/\n"), Vec::<String>::new());
    lab.build("FROM scratch\nCOPY --parents a/none /d/\n", &[]).fails(1, &["`a/none` not found"]);
}

#[test]
fn chmod_accepts_symbolic_modes() {
    let lab = Lab::new();
    lab.write("d/f", "x").write("d/run", "x");
    for (path, mode) in [("d", 0o700), ("d/f", 0o600), ("d/run", 0o700)] {
        std::fs::set_permissions(lab.ctx().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let listing = lab.build_listing("FROM scratch\nCOPY --chmod=u=rwX,go=rX d /d\nCOPY --chmod=+x d/f /g\n");
    for line in ["644 0:0 d/f", "755 0:0 d/run", "711 0:0 g"] {
        has(&listing, line);
    }
}

#[test]
fn copy_link_does_not_depend_on_its_parent() {
    let lab = Lab::new();
    lab.write("f", "x");
    // The copy replaces a link on the path, where a copy without `--link` would follow it.
    let base = "FROM busybox\nRUN mkdir /real && ln -s /real /way\n";
    let out = lab.build_local(&format!("{base}COPY --link f /way/f\n"), &[]);
    assert!(out.join("way").symlink_metadata().unwrap().is_dir() && !out.join("real/f").exists());
    // A different parent and the same files: nothing is copied again.
    let file =
        |n: u32| format!("FROM busybox\nRUN echo {n} > /n\nCOPY --link f /linked/f\nRUN cat /n /linked/f > /o\n");
    assert_eq!(lab.build(&file(1), &["-t", "x"]).ok().steps(), (3, 0));
    assert_eq!(lab.build(&file(2), &["-t", "x"]).ok().steps(), (2, 1));
    assert_eq!(lab.build(&file(2), &["-t", "x"]).ok().steps(), (0, 3));
    let out = lab.build_local(&file(2), &[]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "2\nx");
}
