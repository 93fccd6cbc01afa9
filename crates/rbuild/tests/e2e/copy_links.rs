//! Copies onto symbolic links of the image: the target of the link is written, each path occurs
//! once in the layer, and all outputs agree.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::lab::Lab;

/// Expected files by path: the content of a file, `-> target` for a link, `/` for a directory. For
/// a file with several names, `=` precedes the content.
type Files = BTreeMap<String, String>;

/// Returns the files of a tar below a path; fails if a path occurs twice.
#[track_caller]
fn in_tar(tar: &[u8]) -> Files {
    let mut files = Files::new();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string().trim_matches('/').to_string();
        let link = entry.link_name().unwrap().map(|l| l.display().to_string());
        let kind = entry.header().entry_type();
        let content = match (kind, link) {
            (tar::EntryType::Directory, _) => "/".to_string(),
            (tar::EntryType::Symlink, Some(link)) => format!("-> {link}"),
            (tar::EntryType::Link, Some(first)) => {
                let shared = format!("={}", files[&first].trim_start_matches('='));
                files.insert(first, shared.clone());
                shared
            }
            _ => {
                let mut content = String::new();
                std::io::Read::read_to_string(&mut entry, &mut content).unwrap_or_default();
                content
            }
        };
        assert_eq!(files.insert(path.clone(), content), None, "{path} is there twice");
    }
    files
}

fn in_dir(top: &Path, wanted: &[(&str, &str)]) -> Files {
    let look = |path: &str| {
        let at = top.join(path);
        let meta = at.symlink_metadata().ok()?;
        let shared = if std::os::unix::fs::MetadataExt::nlink(&meta) > 1 { "=" } else { "" };
        Some(match meta.file_type() {
            t if t.is_dir() => "/".to_string(),
            t if t.is_symlink() => {
                format!("-> {}", String::from_utf8_lossy(at.read_link().unwrap().as_os_str().as_bytes()))
            }
            _ => format!("{shared}{}", std::fs::read_to_string(&at).unwrap()),
        })
    };
    wanted.iter().filter_map(|(path, _)| Some((path.to_string(), look(path)?))).collect()
}

/// Returns a command that succeeds if all of these files exist. Link counts are not checked.
fn check(wanted: &[(&str, &str)]) -> String {
    let one = |(path, content): &(&str, &str)| match content.strip_prefix("-> ") {
        Some(target) => format!("[ \"$(readlink /{path})\" = '{target}' ]"),
        None if *content == "/" => format!("[ -d /{path} ] && [ ! -h /{path} ]"),
        None if content.is_empty() => format!("[ ! -e /{path} ]"),
        None => {
            format!("[ ! -h /{path} ] && [ \"$(cat /{path})\" = '{}' ]", content.trim_start_matches('=').trim_end())
        }
    };
    wanted.iter().map(one).collect::<Vec<_>>().join(" && ")
}

#[track_caller]
fn agree(got: &Files, wanted: &[(&str, &str)], who: &str) {
    for (path, content) in wanted {
        assert_eq!(got.get(*path).map_or("", String::as_str), *content, "{path}: {who}");
    }
}

/// Builds the step on a busybox image modified by this command, checks all outputs, and checks them
/// again after unrelated changes.
#[track_caller]
fn everywhere(lab: &Lab, rounds: u32, setup: &str, step: &str, wanted: &[(&str, &str)]) {
    let file = format!("FROM busybox AS base\nRUN {setup}\nFROM scratch AS ctx\nCOPY . /\nFROM base\n{step}\n");
    for round in 0..rounds {
        lab.write("d/beside", format!("{round}")).write("rootfs/beside", format!("{round}"));
        let about = format!("round {round} of\n{file}");
        // An image comes first: its last layer is packed directly from the source files.
        lab.build(&file, &["-t", "x"]).ok();
        let layer = in_tar(&lab.top_layer_tar("x"));
        for (path, content) in wanted.iter().filter(|(path, _)| layer.contains_key(*path)) {
            assert_eq!(layer[*path], *content, "{path} in the layer: {about}");
        }
        let tar = lab.path("out.tar");
        lab.build(&file, &["-o", &format!("type=tar,dest={}", tar.display())]).ok();
        agree(&in_tar(&std::fs::read(&tar).unwrap()), wanted, &format!("tar, {about}"));
        agree(&in_dir(&lab.build_local(&file, &[]), wanted), wanted, &format!("local, {about}"));
        lab.build(&format!("{file}RUN {}\n", check(wanted)), &[]).ok();
    }
}

/// A context of directories whose files overlap, old enough that file stamps are trusted.
fn scene() -> Lab {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n.dockerignore\n").write("A", "A").write("B", "B").write("hid/f", "hf");
    lab.write("d/a/f", "da").write("d/b/f", "db").write("d/b/only", "ob").write("e/a/f", "ea").write("e/z/f", "ez");
    lab.write("rootfs/bin/t", "1").write("rootfs/bin/keep", "2").write("rootfs/usr/bin/t", "3");
    lab.write("rootfs/usr/bin/only", "4").write("many/a/0", "a0");
    for i in 0..700 {
        lab.write(&format!("many/a/{i}"), format!("a{i}")).write(&format!("many/b/{i}"), format!("b{i}"));
    }
    lab.sh("ln d/a/f d/a/hard && ln -s f d/a/s && echo -n s > d/b/s && ln d/b/s d/b/s2 && cp -a d g && rm g/b/f && ln -s A g/b/f").ok();
    lab.sh(
        "tar -C d -cf d.tar a b && tar -C e -cf z.tar a/f && mkdir dir && tar -cf dir.tar dir && tar -cf file.tar A",
    )
    .ok();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    lab
}

#[test]
fn sources_merge_through_symlinks_of_the_image() {
    let lab = scene();
    let meet = "mkdir -p /w/a && echo -n old > /w/a/f && ln -s a /w/b";
    let both = [
        ("w/b", "-> a"),
        ("w/a/f", "db"),
        ("w/a/hard", "da"),
        ("w/a/only", "ob"),
        ("w/a/s", "=s"),
        ("w/a/s2", "=s"),
        ("w/a", "/"),
    ];
    for step in ["COPY d /w", "ADD d /w/", "COPY A d /w/", "COPY --from=ctx d /w", "COPY --chown=3:4 d /w"] {
        everywhere(&lab, 2, meet, step, &both);
    }
    everywhere(&lab, 2, "mkdir -p /w/a && ln -s /w/a /w/b", "COPY d /w", &both[1..]);
    // The link is created first, the directory afterwards.
    let late = [("w/a", "-> z"), ("w/z/f", "ez")];
    everywhere(&lab, 2, "mkdir -p /w/z && ln -s z /w/a", "COPY e /w", &late);
    everywhere(&lab, 2, "mkdir -p /w && ln -s z /w/a", "COPY e /w", &late);
    // Links out of the destination, and back into it.
    everywhere(
        &lab,
        2,
        "mkdir -p /w /o && ln -s /o /w/a && ln -s ../../../o /w/b",
        "COPY d /w",
        &[("o/f", "db"), ("o/hard", "da")],
    );
    everywhere(&lab, 2, "mkdir -p /w && ln -s .. /w/b && ln -s w /a", "COPY d /w", &[("f", "db"), ("w/a/f", "=da")]);
    // A link replaces a file: its name is gone, and the other hard link remains.
    everywhere(&lab, 2, meet, "COPY g /w", &[("w/a/f", "-> A"), ("w/a/hard", "da")]);
    // Images with merged /usr.
    let merged = [("bin", "-> usr/bin"), ("usr/bin/t", "3"), ("usr/bin/keep", "2"), ("usr/bin/only", "4")];
    let base = "mkdir -p /r/usr/bin && ln -s usr/bin /r/bin";
    let below: Vec<_> = merged.iter().map(|(path, content)| (format!("r/{path}"), *content)).collect();
    let below: Vec<_> = below.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    for step in ["COPY rootfs/ /r/", "COPY --from=ctx rootfs /r", "ADD rootfs /r", "COPY --chmod=755 rootfs /r"] {
        everywhere(&lab, 2, base, step, &below);
    }
    everywhere(&lab, 2, base, "COPY --parents rootfs/./bin rootfs/./usr/bin/* /r/", &below);
}

#[test]
fn many_files_with_equal_destinations_are_written_once() {
    let lab = scene();
    let file = "FROM busybox\nRUN mkdir -p /w/a && ln -s a /w/b\nCOPY many /w\n";
    for round in 0..2 {
        lab.write("many/beside", format!("{round}"));
        lab.build(file, &["-t", "x"]).ok();
        let layer = in_tar(&lab.top_layer_tar("x"));
        let out = lab.build_local(file, &[]);
        for i in 0..700 {
            assert_eq!(layer[&format!("w/a/{i}")], format!("b{i}"));
            assert_eq!(std::fs::read_to_string(out.join(format!("w/a/{i}"))).unwrap(), format!("b{i}"));
        }
        assert_eq!(layer.keys().filter(|path| path.starts_with("w/a/")).count(), 700);
    }
}

#[test]
fn linked_copies_and_archives_do_not_follow_symlinks_of_the_image() {
    let lab = scene();
    let meet = "mkdir -p /w/a && echo -n old > /w/a/f && ln -s a /w/b && ln -s /nothing /w/c";
    let apart = [("w/a/f", "=da"), ("w/b", "/"), ("w/b/f", "db"), ("w/a/hard", "=da"), ("w/c", "-> /nothing")];
    everywhere(&lab, 1, meet, "COPY --link d /w", &apart);
    everywhere(&lab, 1, meet, "ADD --link d.tar /w", &apart);
    // An archive entry for a directory replaces a link; a path through a link resolves to the
    // link's target.
    everywhere(&lab, 1, meet, "ADD d.tar /w", &apart);
    everywhere(&lab, 1, "mkdir -p /w/z && ln -s z /w/a", "ADD z.tar /w", &[("w/a", "-> z"), ("w/z/f", "ea")]);
    everywhere(&lab, 1, "mkdir -p /w && ln -s /q/z /w/a", "ADD z.tar /w", &[("w/a", "-> /q/z"), ("w/q/z/f", "ea")]);
    everywhere(&lab, 1, "echo -n t > /t && ln -s t /l", "COPY --link A /l", &[("t", "t"), ("l", "A")]);
}

#[test]
fn archive_entries_replace_existing_files() {
    let lab = scene();
    for (setup, step, wanted) in [
        ("echo > /dir", "ADD dir.tar /", [("dir", "/")]),
        ("ln -s /t /dir && echo t > /t", "ADD dir.tar /", [("dir", "/")]),
        ("mkdir /t && ln -s /t /dir", "ADD dir.tar /", [("dir", "/")]),
        ("mkdir -p /A/deep && echo > /A/deep/f", "ADD file.tar /", [("A", "A")]),
        ("mkdir -p /w/A/deep && echo > /w/A/deep/f", "ADD file.tar /w", [("w/A", "A")]),
        ("ln -s /t /A && echo -n t > /t", "ADD file.tar /", [("A", "A")]),
        ("mknod /A p", "ADD file.tar /", [("A", "A")]),
    ] {
        everywhere(&lab, 1, setup, step, &wanted);
    }
    lab.build("FROM busybox\nRUN echo > /a\nADD z.tar /\n", &[]).fails(1, &["below something that is not a directory"]);
    lab.build("FROM busybox\nRUN echo > /a\nADD z.tar /a\n", &[]).fails(1, &["`/a` is not a directory in the image"]);
}

#[test]
fn symlinks_at_the_destination_are_followed_to_existing_and_missing_targets() {
    let lab = scene();
    let here = "<<h /l\nhere\nh";
    for (setup, step, wanted) in [
        ("echo -n t > /t && ln -s t /l", "COPY A /l", &[("l", "-> t"), ("t", "A")][..]),
        ("echo -n t > /t && ln -s /t /l", "ADD --chown=5:6 --chmod=600 A /l", &[("l", "-> /t"), ("t", "A")]),
        (
            "echo -n t > /t && ln -s m /l && ln -s ../../t /m",
            "COPY A /l",
            &[("l", "-> m"), ("m", "-> ../../t"), ("t", "A")],
        ),
        ("mkdir /x && echo -n t > /x/t && ln -s x /k", "COPY A /k/t", &[("k", "-> x"), ("x/t", "A")]),
        // A link at the file's own name in the destination directory is not followed; neither are
        // links at members of a directory.
        ("mkdir /x && echo -n t > /t && ln -s /t /x/A", "COPY A /x/", &[("t", "t"), ("x/A", "A")]),
        ("mkdir /x && echo -n t > /t && ln -s /t /x/A", "COPY A /x", &[("t", "t"), ("x/A", "A")]),
        ("mkdir -p /x/a && echo -n t > /t && ln -s /t /x/a/f", "COPY d /x", &[("t", "t"), ("x/a/f", "=da")]),
        ("mkdir /x && ln -s x /l", "COPY A /l", &[("l", "-> x"), ("x/A", "A")]),
        // A dangling link.
        ("ln -s /n/x /l", "COPY A /l", &[("l", "-> /n/x"), ("n", "/"), ("n/x", "A")]),
        ("ln -s /n/x /l", "COPY A B /l/", &[("n/x/A", "A"), ("n/x/B", "B")]),
        ("ln -s ../../n/x /l", "COPY A /l/q/r", &[("n/x/q/r", "A")]),
        ("ln -s m /l && ln -s n/x m", "COPY d /l", &[("m", "-> n/x"), ("n/x/a/f", "=da"), ("n/x/b/f", "db")]),
        ("ln -s /n/x /l", "COPY --link A /l", &[("l", "A")]),
        ("ln -s /n/x /l", "COPY --from=ctx d/b/f /l", &[("n/x", "db")]),
        ("ln -s /n/x /l", "ADD d.tar /l", &[("l", "-> /n/x"), ("n/x/a/f", "=da"), ("n/x/b/f", "db")]),
        ("ln -s /n/x /l", "ADD z.tar file.tar /l/y/", &[("n/x/y/a/f", "ea"), ("n/x/y/A", "A")]),
        ("ln -s /n/x /l", "COPY --parents d/b/f /l", &[("n/x/d/b/f", "db")]),
        ("ln -s /n/x /l", &format!("COPY {here}"), &[("l", "-> /n/x"), ("n/x", "here\n")]),
        ("echo -n t > /t; ln -s t /l", &format!("ADD {here}"), &[("l", "-> t"), ("t", "here\n")]),
        ("ln -s /n/x /l", "COPY <<h /l/\nhere\nh", &[("n/x/h", "here\n")]),
        ("mkdir /w && ln -s /n/x /w/a", "COPY d /w", &[("w/a", "-> /n/x"), ("n/x/f", "=da"), ("w/b/f", "db")]),
        ("ln -s /n/x /l", "WORKDIR /l/y", &[("l", "-> /n/x"), ("n/x/y", "/")]),
        ("ln -s n/x /l", "WORKDIR /l\nCOPY A .", &[("n/x/A", "A")]),
    ] {
        everywhere(&lab, 1, setup, step, wanted);
    }
    lab.build("FROM busybox\nRUN ln -s l /l\nCOPY A /l\n", &[]).fails(1, &["copying into `/l`", "symbolic links"]);
    lab.build("FROM busybox\nRUN ln -s t /l; echo > /t\nCOPY A /l/\n", &[]).fails(1, &["`/l` is not a directory"]);
}

#[test]
fn owner_and_mode_apply_to_the_symlink_target_not_the_link() {
    let lab = scene();
    lab.sh("chmod 644 A d/a/f && chmod 711 d/a && chmod 755 d d/b").ok();
    let listing = lab.build_listing(
        "FROM busybox\nRUN echo t > /t && chown 9:9 /t && chmod 6755 /t && ln -s t /l && chown -h 8:8 /l\n\
         RUN mkdir -p /w/x && chown 9:9 /w /w/x && chmod 700 /w/x && ln -s x /w/a && chown -h 8:8 /w/a\n\
         RUN ln -s /n/x /k && ln -s /m/x /w/b && chown -h 8:8 /k /w/b\n\
         COPY A /l\nCOPY --chown=5:6 d /w\nCOPY --chown=5:6 --chmod=640 A /k/f\n",
    );
    for line in [
        "777 8:8 l -> t",
        "644 0:0 t",
        "777 8:8 w/a -> x",
        "755 9:9 w/",
        "711 5:6 w/x/",
        "644 5:6 w/x/f",
        "777 8:8 k -> /n/x",
        "640 5:6 n/",
        "640 5:6 n/x/",
        "640 5:6 n/x/f",
        "777 8:8 w/b -> /m/x",
        "755 5:6 m/",
        "755 5:6 m/x/",
    ] {
        assert!(listing.iter().any(|l| l == line), "{line:?} is missing in {listing:#?}");
    }
}

/// An absolute link of the image that would point to a directory of the host resolves inside the
/// image.
#[test]
fn absolute_symlinks_never_lead_to_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let lab = scene();
    let outside = lab.path("outside");
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    let links = ["/w/a", "/w/b", "/l", "/x"].map(|link| format!("ln -s {} {link}", outside.display())).join(" && ");
    let modes = || ["", "deep"].map(|name| std::fs::metadata(outside.join(name)).unwrap().permissions().mode());
    let (before, path) = (modes(), outside.strip_prefix("/").unwrap().to_path_buf());
    for step in
        ["COPY --chmod=701 d /w", "COPY --chmod=701 d /l", "ADD d.tar /l", "WORKDIR /l/b", "COPY <<h /l/b/f\ndb\nh"]
    {
        let file = format!("FROM busybox\nRUN mkdir /w && {links}\n{step}\n");
        let listing = lab.build_listing(&file);
        let made = format!(" {}/", path.display());
        assert!(listing.iter().any(|line| line.contains(&made)), "{step}: {listing:#?}");
        assert_eq!(modes(), before, "{step}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{step}");
    }
}

/// `..` in a link's target is relative to the directory that contains the link and stops at the
/// root.
#[test]
fn symlinks_in_a_source_cannot_leave_its_top_directory() {
    let lab = Lab::new();
    lab.write("f", "root\n").write("d/f", "inner\n").write("e/f", "e\n");
    lab.sh("ln -s ../.. d/up && ln -s ../../../e d/far && ln -s .. d/one && ln -s up d/chain").ok();
    let stage = "FROM busybox AS s\nCOPY . /c/\nRUN mkdir -p /x/y && ln -s ../../.. /x/y/up && ln -s ../../../c/d /x/y/c && \
                 echo top >/f\n";
    let cases = [
        ("", "d/up/f", "root"),
        ("", "d/far/f", "e"),
        ("", "d/one/f", "root"),
        ("", "d/chain/f", "root"),
        ("", "d/up/d/f", "inner"),
        ("", "d/up/f*", "root"),
        ("", "/d/up/../f", "inner"),
        ("--from=s", "/c/d/up/f", "top"),
        ("--from=s", "/c/d/one/f", "root"),
        ("--from=s", "/x/y/up/f", "top"),
        ("--from=s", "/x/y/c/f", "inner"),
        ("--link --from=s", "/x/y/c/up/f", "top"),
    ];
    let copies: Vec<String> =
        cases.iter().enumerate().map(|(n, (flags, source, _))| format!("COPY {flags} {source} /{n}/\n")).collect();
    let out = lab.build_local(&format!("{stage}FROM scratch\n{}", copies.concat()), &[]);
    for (n, (flags, source, want)) in cases.iter().enumerate() {
        let got = std::fs::read_to_string(out.join(format!("{n}/f"))).unwrap();
        assert_eq!(got.trim(), *want, "COPY {flags} {source}");
    }
}

/// Hard links are part of a copy's content: a context with different hard links is copied again.
#[test]
fn changed_hard_links_are_not_served_from_the_cache() {
    let lab = Lab::new();
    let file = "FROM busybox AS s\nCOPY c /d\nFROM busybox\nCOPY --from=s /d /d\n\
                RUN --mount=source=c,target=/m stat -c %h /m/f >/count; echo tail >>/d/f\n";
    let built = |fresh: bool| {
        let mut args = vec!["-o", "type=tar,dest=../out.tar"];
        if fresh {
            args.push("--no-cache");
        }
        lab.build(file, &args).ok();
        let tar = std::fs::read(lab.path("out.tar")).unwrap();
        let content = crate::lab::contents(&tar);
        let mut names = crate::lab::listing(&tar);
        names.retain(|name| name.contains("d/"));
        (names, content.get("d/g").cloned(), content.get("count").cloned())
    };
    lab.write("c/f", "one\n");
    std::fs::hard_link(lab.ctx().join("c/f"), lab.ctx().join("c/g")).unwrap();
    let linked = built(false);
    std::fs::remove_file(lab.ctx().join("c/g")).unwrap();
    lab.write("c/g", "one\n");
    let apart = built(false);
    assert_eq!(apart, built(true));
    assert_ne!(apart, linked);
}
