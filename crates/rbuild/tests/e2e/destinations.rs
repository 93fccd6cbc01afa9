//! Files named by the caller: an existing file is written to or left unchanged, and is never
//! replaced by one of another type.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use crate::lab::{Lab, exists, listing};

const FILES: &str = "FROM busybox\nRUN mkdir /d /g && echo f > /d/f && ln -s f /d/l && ln -s /d /way && echo s > '/g/b*r' && echo w > /g/bar\n";

#[test]
fn every_output_file_may_be_a_fifo_a_symlink_or_a_descriptor() {
    let lab = Lab::new();
    lab.build(FILES, &["-t", "x"]).ok();
    for (name, command) in [
        ("tar", "build -o type=tar,dest=@ ."),
        ("oci", "build -o type=oci,dest=@ ."),
        ("docker", "build -o type=docker,dest=@ ."),
        ("save", "save -o @ x"),
        ("cp", "cp x:/d/f @"),
        ("iid", "build -t x --iidfile @ ."),
        ("metadata", "build -t x --metadata-file @ ."),
        ("timings", "build -t x --timings @ ."),
    ] {
        let run = |dest: &str| command.replace('@', dest);
        let script = format!(
            "mkdir $LAB/{name} && cd $LAB/{name} && cp -r $LAB/ctx/. . && set -e\n\
             $RB {plain} && test -s plain\n\
             mkfifo p; (cat p > got) & $RB {fifo}; wait; test -p p && test -s got\n\
             ln -s sub/target l; mkdir sub; $RB {link}; test -L l && test -f sub/target && test -s sub/target\n\
             $RB {process} 7> >(cat > through); for i in 1 2 3 4 5 6 7 8 9; do test -s through && break; sleep 0.2; done; test -s through\n\
             $RB {stdout} > out; test -s out\n\
             echo old > kept; chmod 600 kept; $RB {kept}; test $(stat -c %a kept) = 600; test -s kept; ! grep -qx old kept\n\
             ! ls -A | grep tmp$",
            plain = run("plain"),
            fifo = run("p"),
            link = run("l"),
            process = run("/dev/fd/7"),
            stdout = run("/dev/stdout"),
            kept = run("kept"),
        );
        lab.sh(&script).ok();
    }
}

#[test]
fn root_output_devices_are_not_replaced() {
    let lab = Lab::new();
    lab.build(FILES, &["-t", "x"]).ok();
    lab.sh("mknod $LAB/null c 1 3 && mkdir $LAB/to $LAB/out && mknod $LAB/to/f c 1 3 && mkdir $LAB/out/d && mknod $LAB/out/d/f c 1 3")
        .ok();
    for command in [
        "build -o type=tar,dest=$LAB/null .",
        "build -o type=oci,dest=$LAB/null .",
        "build -o type=docker,dest=$LAB/null .",
        "build -t x --iidfile $LAB/null --metadata-file $LAB/null --timings $LAB/null .",
        "save -o $LAB/null x",
        "cp x:/d/f $LAB/null",
        "cp x:/d/f /dev/stdout",
    ] {
        lab.sh(&format!("$RB {command} && test -c $LAB/null")).ok();
    }
    // A special file is never replaced by a link, directory or file, nor is one inside an existing
    // directory.
    for command in
        ["cp x:/d/l $LAB/null", "cp x:/d $LAB/null", "cp x:/d/f $LAB/to", "cp x:/d/. $LAB/to", "build -o $LAB/out ."]
    {
        let ran = lab.sh(&format!("$RB {command}"));
        assert_eq!(ran.code, Some(1), "{command}: {}", ran.stderr);
        lab.sh("test -c $LAB/null && test -c $LAB/to/f && test -c $LAB/out/d/f").ok();
    }
    // The owner of an existing file is kept, too.
    lab.sh(
        "echo old > $LAB/theirs && chown 1234:2345 $LAB/theirs && chmod 604 $LAB/theirs && $RB save -o $LAB/theirs x",
    )
    .ok();
    let meta = lab.path("theirs").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 2345, 0o604));
    assert!(meta.len() > 10_000);
}

#[test]
fn a_dash_is_standard_input_and_output() {
    let lab = Lab::new();
    lab.sh("cd $LAB && $RB save -o - busybox > a.tar && $RB save busybox > b.tar && cmp a.tar b.tar").ok();
    lab.sh("cd $LAB && $RB rmi busybox && $RB load -i - < a.tar && $RB inspect busybox").ok();
    assert!(!exists(lab.path("-")));
    lab.rbuild(["save", "--format", "oci", "-o", "-", "busybox"]).fails(2, &["writes a directory", "add -o DIR"]);
}

#[test]
fn unwritable_destinations_fail_before_the_build() {
    let lab = Lab::new();
    std::fs::write(lab.path("file"), "old").unwrap();
    std::fs::create_dir(lab.path("closed")).unwrap();
    std::fs::set_permissions(lab.path("closed"), PermissionsExt::from_mode(0o555)).unwrap();
    let mut places = vec![("file/x", "is a file, not a directory"), ("ctx", "is a directory")];
    // Root may write everywhere.
    if lab.sh("test $(id -u) = 0").code != Some(0) {
        places.push(("closed/a/b", "does not exist, and this user cannot create it"));
        places.push(("closed/b", "is not writable: permission denied"));
    }
    for (place, expected) in places {
        let dest = lab.path(place).display().to_string();
        for args in [
            vec!["-o".to_string(), format!("type=tar,dest={dest}")],
            vec!["-o".to_string(), format!("type=oci,dest={dest}")],
            vec!["--iidfile".to_string(), dest.clone()],
            vec!["--metadata-file".to_string(), dest.clone()],
            vec!["--timings".to_string(), dest.clone()],
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let ran = lab.build("FROM busybox\nRUN echo ran-after-all && false\n", &args).fails(1, &[expected]);
            assert!(!ran.stderr.contains("ran-after-all"), "{}", ran.stderr);
        }
        lab.rbuild(["save", "-o", &dest, "busybox"]).fails(1, &[expected]);
    }
    assert_eq!(lab.read("file"), "old");
    assert!(!exists(lab.path("closed/a")));
}

#[test]
fn a_failed_or_stopped_build_keeps_existing_outputs() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("o")).unwrap();
    for name in ["t", "m"] {
        std::fs::write(lab.path("o").join(name), "old").unwrap();
    }
    let args = "-o type=tar,dest=$LAB/o/t -o type=oci,dest=$LAB/o/new --metadata-file $LAB/o/m";
    lab.write("Dockerfile", "FROM busybox\nRUN false\n");
    assert_eq!(lab.sh(&format!("$RB build {args}")).code, Some(1));
    lab.write("Dockerfile", "FROM busybox\nRUN touch /x && sleep 60\n");
    for signal in ["INT", "TERM", "KILL"] {
        lab.sh(&format!("$RB build {args} & sleep 1; kill -{signal} $!; wait $!; ls -A $LAB/o | tr '\\n' ' '"));
        assert_eq!(lab.sh("ls -A $LAB/o | tr '\\n' ' '; cat $LAB/o/*").ok().stdout, "m t oldold", "{signal}");
    }
}

/// As in buildx: the ID in the file is never that of an earlier build.
#[test]
fn a_build_that_fails_leaves_no_id_file() {
    let lab = Lab::new();
    let id = lab.path("id");
    for (file, args, code) in [
        ("FROM busybox\nRUN false\n", "", 1),
        ("FROM busybox\nCOPY nosuch /\n", "", 1),
        ("FROM busybox\nRUNN x\n", "", 2),
        ("FROM busybox\nRUN touch x\n", "-f nosuch", 1),
        ("FROM busybox\nRUN touch x\n", "--secret id=x,src=nosuch", 2),
        ("FROM busybox\n", "--metadata-file Dockerfile/x", 1),
        ("FROM busybox\n", "--call nosuch", 2),
    ] {
        lab.write("Dockerfile", file);
        std::fs::write(&id, "old").unwrap();
        let ran = lab.sh(&format!("$RB build --iidfile $LAB/id {args} ."));
        assert_eq!((ran.code, exists(&id)), (Some(code), false), "{file}{args}: {}", ran.stderr);
    }
    // The store cannot be opened.
    std::fs::write(&id, "old").unwrap();
    let ran = lab.sh("touch $LAB/file && $RB --root $LAB/file build --iidfile $LAB/id .");
    assert!(ran.code != Some(0) && !exists(&id), "{}", ran.stderr);
    lab.write("Dockerfile", "FROM busybox\nRUN sleep 60\n");
    std::fs::write(&id, "old").unwrap();
    lab.sh("$RB build --iidfile $LAB/id . & sleep 1; kill -KILL $!; wait $!");
    assert!(!exists(&id));
    // A link is kept, and a file is as accessible as before. Analyses do not write the file.
    std::fs::write(&id, "old").unwrap();
    lab.write("Dockerfile", "FROM busybox\n");
    lab.sh("cd $LAB && chmod 600 id && ln -s id l && $RB build --check --iidfile $LAB/l ctx && test $(cat l) = old")
        .ok();
    lab.sh("cd $LAB && $RB build --iidfile $LAB/l ctx && test -L l && test $(stat -c %a id) = 600 && grep sha256 id")
        .ok();
}

#[test]
fn cp_takes_paths_literally_and_follows_symlinks_on_request() {
    let lab = Lab::new();
    lab.build(FILES, &["-t", "x"]).ok();
    let cp = |args: &str| lab.sh(&format!("cd $LAB && $RB cp {args}"));
    // Characters of a pattern are taken literally.
    assert_eq!(cp("'x:/g/b*r' - | tar -t").ok().stdout, "b*r\n");
    assert_eq!(cp("'x:/g/b*r' /dev/stdout").ok().stdout, "s\n");
    cp("'x:/g/b?r' -").fails(1, &["`/g/b?r` does not exist in the image"]);
    // Links are copied as links: into a directory, next to it, and in place of a file or another
    // link.
    std::fs::create_dir(lab.path("dir")).unwrap();
    for _ in 0..2 {
        cp("x:/d/l dir").ok();
        assert_eq!(std::fs::read_link(lab.path("dir/l")).unwrap().to_str(), Some("f"));
    }
    cp("x:/d/l dir/").ok();
    cp("x:/way dir").ok();
    assert_eq!(std::fs::read_link(lab.path("dir/way")).unwrap().to_str(), Some("/d"));
    std::fs::write(lab.path("file"), "old").unwrap();
    cp("x:/d/l file").ok();
    assert!(lab.path("file").symlink_metadata().unwrap().is_symlink());
    assert_eq!(listing(cp("x:/d/l -").ok().stdout.as_bytes()).len(), 1);
    // With -L, the target is copied under the link's name.
    cp("-L x:/d/l followed").ok();
    assert_eq!(lab.read("followed"), "f\n");
    std::fs::create_dir(lab.path("into")).unwrap();
    cp("-L x:/d/l into").ok();
    cp("-L x:/way into").ok();
    assert_eq!((lab.read("into/l"), lab.read("into/way/f")), ("f\n".into(), "f\n".into()));
    // A trailing slash requires a directory.
    cp("x:/way/ made").ok();
    assert_eq!(lab.read("made/f"), "f\n");
    cp("x:/d/f/ n").fails(1, &["is not a directory in the image"]);
    cp("x:/d followed").fails(1, &["is a file, and a directory in the image"]);
    cp("x:/d/f no/such").fails(1, &["does not exist"]);
    // A link at the destination is followed: its target is written, and the link stays.
    lab.sh("cd $LAB && ln -s goal to && mkfifo p").ok();
    cp("x:/d/f to").ok();
    assert!(lab.path("to").symlink_metadata().unwrap().is_symlink());
    assert_eq!(lab.read("goal"), "f\n");
    assert_eq!(lab.sh("cd $LAB && ($RB cp x:/d/f p &) && cat p").ok().stdout, "f\n");
    assert!(lab.path("p").symlink_metadata().unwrap().file_type().is_fifo());
}

/// Each build runs as PID 1 of its own PID namespace, so PIDs do not make temporary names unique.
#[test]
fn concurrent_builds_can_write_into_one_directory() {
    let lab = Lab::new();
    for side in ["a", "b"] {
        lab.sh(&format!("mkdir -p {side}/l; for i in $(seq 400); do ln -s to-{side}-$i {side}/l/{side}$i; echo {side} > {side}/l/f{side}$i; ln {side}/l/f{side}$i {side}/l/h{side}$i; done")).ok();
    }
    let file = "FROM busybox AS a\nCOPY a/l /l/\nFROM busybox AS b\nCOPY b/l /l/\n\
                FROM scratch AS xa\nCOPY --from=a /l /l/\nFROM scratch AS xb\nCOPY --from=b /l /l/\n";
    lab.write("Dockerfile", file);
    lab.sh(
        "set -e; for i in 1 2 3; do rm -rf z; $RB build --target xa -o z & $RB build --target xb -o z || exit 1; wait $!; done",
    )
    .ok();
    let count = |side: &str| {
        format!(
            "for i in $(seq 400); do test $(readlink z/l/{side}$i) = to-{side}-$i && test z/l/f{side}$i -ef z/l/h{side}$i && echo; done | wc -l"
        )
    };
    for side in ["a", "b"] {
        assert_eq!(lab.sh(&count(side)).ok().stdout.trim(), "400", "{side}");
    }
    assert_eq!(lab.sh("find z -name '.rbuild*'").ok().stdout, "");
}

#[test]
fn build_ids_are_unique_within_a_second_and_across_pid_namespaces() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo words\n");
    let script = "root=-r; [ $(id -u) != 0 ] || root=; \
        for i in 1 2 3; do unshare $root --pid --fork --mount-proc $RB build --no-cache & done; wait $(jobs -p)";
    lab.sh(&format!("set -e; {script}")).ok();
    let names = lab.sh("$RB logs | tail -n +2 | cut -d' ' -f1 | sort -u | wc -l").ok().stdout;
    assert_eq!(names.trim(), "3");
}

#[test]
fn builds_into_one_layout_add_to_it() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nARG N\nRUN echo $N > /n\n");
    lab.sh(
        "for n in 1 2 3 4; do $RB build --build-arg N=$n -t v:$n -o type=oci,tar=false,dest=$LAB/lo . & done; wait; \
         $RB build --build-arg N=5 -o type=oci,tar=false,dest=$LAB/lo . && $RB save --format oci -o $LAB/lo v:1",
    )
    .ok();
    let index: serde_json::Value = serde_json::from_str(&lab.read("lo/index.json")).unwrap();
    let names = index["manifests"].as_array().unwrap().iter();
    let mut names: Vec<_> =
        names.map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["1", "2", "3", "4", "latest"]);
    lab.sh("RBUILD_ROOT=$LAB/other $RB load -i $LAB/lo && RBUILD_ROOT=$LAB/other $RB run v:3 grep 3 /n").ok();
}

/// As in buildx and podman, which have no abbreviation of standard output here.
#[test]
fn a_report_file_can_be_named_like_standard_output() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nLABEL a=b\n");
    lab.sh("cd $LAB && $RB build --iidfile - ctx > out && test ! -s out && grep -q sha256: ./-").ok();
    lab.sh("cd $LAB && $RB build --metadata-file - ctx > out && test ! -s out && grep -q containerimage.digest ./-")
        .ok();
}
