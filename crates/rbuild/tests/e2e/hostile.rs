//! Images with unexpected file types at the system's mount points and files.

use crate::forge::{Forged, Layer};
use crate::lab::{Lab, Ran};

#[test]
fn unexpected_file_types_at_system_mount_points_are_reported() {
    let lab = Lab::new();
    let is_bare = std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "chroot");
    lab.write("f", "");
    lab.sh("mkdir -p k e/hosts; ln -s /tmp k/proc").ok();
    for (copy, expected) in [
        ("COPY f /proc", "cannot mount on `/proc`: the image has a file there"),
        ("COPY k /", "cannot mount on `/proc`: the image has a symbolic link there"),
        ("COPY f /dev", "cannot mount on `/dev`: the image has a file there"),
        ("COPY e/hosts /etc/hosts/", "cannot mount on `/etc/hosts`: the image has a directory there"),
        ("COPY e/hosts /etc/resolv.conf/", "cannot mount on `/etc/resolv.conf`: the image has a directory there"),
    ] {
        let make = format!("FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\n{copy}\nRUN true\n");
        let ran = lab.build(&make, &[]);
        if !is_bare {
            let ran = ran.fails(1, &["cannot start the command", "the image has", expected]);
            assert!(!ran.stderr.contains("move_mount") && !ran.stderr.contains("rootfs"), "{}", ran.stderr);
        }
        assert_eq!(std::fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0);
    }
}

/// An image in which paths that rbuild uses are links to themselves.
#[test]
fn symlink_loops_are_reported() {
    let lab = Lab::new();
    lab.write("f", "");
    for place in ["/proc", "/sys", "/dev", "/tmp", "/etc/hosts", "/etc/resolv.conf"] {
        let name = place.rsplit('/').next().unwrap();
        lab.sh(&format!("rm -rf k; mkdir -p k$(dirname {place}); ln -s {name} k{place}")).ok();
        let base = "FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\nCOPY k /\n";
        let mut steps = vec![format!("COPY f {place}/x"), format!("ADD f {place}/"), format!("WORKDIR {place}/y")];
        if place != "/tmp" {
            steps.push("RUN true".into());
        }
        for step in steps {
            let ran = lab.build(&format!("{base}{step}\n"), &[]).fails(1, &[place]);
            let expected = ["too many levels of symbolic links", "the image has a symbolic link there"];
            assert!(expected.iter().any(|text| ran.stderr.contains(text)), "{step}: {}", ran.stderr);
            assert!(!ran.stderr.contains("os error"), "{step}: {}", ran.stderr);
        }
    }
    lab.sh("rm -rf k; mkdir -p k/etc; ln -s passwd k/etc/passwd").ok();
    let base = "FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\nCOPY k /\n";
    for step in ["USER web\nRUN true", "COPY --chown=web f /g"] {
        lab.build(&format!("{base}{step}\n"), &[]).fails(1, &["no user `web` in /etc/passwd", "use a numeric ID"]);
    }
    lab.build(&format!("{base}USER 7\nRUN true\n"), &[]).ok();
}

/// A user with an ID that is not mapped in the namespace, given as a number, as a name and as a
/// group.
#[test]
fn a_user_beyond_the_mapped_ids_is_reported_with_the_range() {
    let lab = Lab::new();
    let is_mapped = std::fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    let recorded = std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "single-id");
    lab.write("passwd", "far:x:2000000000:0::/:/bin/sh\n").write("group", "away:x:2000000001:far\n");
    for (user, expected) in [
        ("2000000000", "user ID 2000000000"),
        ("1:2000000000", "group ID 2000000000"),
        ("far", "user ID 2000000000"),
        ("1:away", "group ID 2000000001"),
    ] {
        let file = format!("FROM busybox\nCOPY passwd group /etc/\nUSER {user}\nRUN id\n");
        let ran = lab.build(&file, &["-t", "x"]);
        lab.build(&file.replace("RUN id\n", ""), &["-t", "x"]).ok();
        let run = lab.rbuild(["run", "--rm", "x", "id"]);
        if is_mapped || recorded {
            assert_eq!((ran.code, run.code), (Some(0), Some(0)), "{}{}", ran.stderr, run.stderr);
            continue;
        }
        let expected = [&format!("user `{user}`: {expected} is not mapped; mapped IDs: 0 to"), "hint: grant more IDs"];
        ran.fails(1, &[&expected[..], &["Dockerfile:3:6"]].concat());
        run.fails(125, &expected);
    }
    // A command that sets such an owner fails by itself.
    let ran = lab.build("FROM busybox\nRUN touch /f && chown 2000000000 /f\n", &[]);
    if is_mapped || recorded {
        ran.ok()
    } else {
        ran.fails(1, &["exited with code 1", "hint: grant more IDs in /etc/subuid"])
    };
}

/// A root file system with file names that are whiteouts in a layer.
#[test]
fn an_import_with_whiteouts_causes_a_warning() {
    let lab = Lab::bare();
    lab.sh(
        "mkdir -p r/d; touch r/d/x r/d/.wh.x; tar -C r -cf r.tar .; $RB import r.tar odd 2> messages; cat messages >&2",
    )
    .fails(0, &["contains `d/.wh.x`, which is a whiteout in an image", "hint: rename it"]);
    lab.sh("rm r/d/.wh.x; tar -C r -cf r.tar .; $RB import r.tar plain 2> messages; ! grep deletes messages").ok();
}

/// Entries of a layer that no file system can contain are reported by their names in the archive.
#[test]
fn entries_that_cannot_be_created_are_reported_by_name() {
    let lab = Lab::bare();
    let long = "n".repeat(300);
    let circle = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "");
    for (layer, name, expected) in [
        (circle, "a/x", "too many levels of symbolic links"),
        (Layer::new().file(&long, ""), &long[..], "exceeds the file system's limit"),
    ] {
        let archive = lab.path("image.tar");
        Forged::new(vec![layer.gzip()]).write_docker(&archive, "odd");
        lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
        let ran = lab.build("FROM odd\nCOPY Dockerfile /\nRUN true\n", &[]);
        let ran = ran.fails(1, &[&format!("cannot unpack archive entry `{name}`"), expected]);
        assert!(!ran.stderr.contains("/store/"), "{}", ran.stderr);
    }
}

/// A tree of directories that exceeds the maximum depth.
#[test]
fn trees_that_are_too_deep_are_reported_with_the_limit() {
    let lab = Lab::new();
    let deep = "cd k; for i in $(seq 25); do mkdir -p $(printf 'd/%.0s' $(seq 100)); cd -P $(printf 'd/%.0s' $(seq 100)); done";
    lab.sh(&format!("mkdir k; bash -c \"{}\"", deep.replace('$', "\\$"))).ok();
    for step in ["COPY k /k", "COPY . /k/", "ADD --link k /k", "RUN --mount=type=bind,source=k,target=/m true"] {
        let ran = lab.build(&format!("FROM busybox\n{step}\n"), &[]).fails(1, &["more than 2048 "]);
        assert!(ran.stderr.len() < 3000 && !ran.stderr.contains("changed"), "{step}: {}", ran.stderr);
    }
    lab.sh("rm -rf k").ok();
}

/// Runs a command with these mounts in an image with these symlinks, each a path and its target.
fn run_with_links(lab: &Lab, links: &[(&str, &str)], mounts: &str) -> Ran {
    lab.sh("rm -rf k; mkdir -p k/etc").ok();
    for (at, target) in links {
        std::os::unix::fs::symlink(target, lab.ctx().join("k").join(at)).unwrap();
    }
    let run = format!("RUN {mounts} test -s /etc/hosts && touch /ran");
    let dest = format!("type=local,dest={}", lab.path("out").display());
    lab.sh("rm -rf ../out").ok();
    lab.build(&format!("FROM busybox\nCOPY k /\n{run}\n"), &["-o", &dest])
}

/// Symlinks of an image at the system's files and at mount points, to paths that do not exist.
#[test]
fn mounts_follow_symlinks_to_missing_targets() {
    let lab = Lab::new();
    let run = |links: &[(&str, &str)], mounts: &str| run_with_links(&lab, links, mounts);
    let leaves_nothing = |case: &str| {
        let made = ["ran", "no", "nowhere"].map(|name| lab.path("out").join(name).exists());
        assert_eq!(made, [true, false, false], "{case}");
    };
    for target in
        ["/no/where/at/all", "../../../nowhere/x", "/nowhere/./x", "/dev/x", "/dev/x/y", "/dev/shm/x", "resolv.conf"]
    {
        run(&[("etc/hosts", target)], "").ok();
        leaves_nothing(target);
    }
    let data = [("data", "l1"), ("l1", "/nowhere/x")];
    for mount in [
        "--mount=type=tmpfs,target=/data",
        "--mount=type=tmpfs,target=/data/a/b",
        "--mount=type=cache,target=/data/",
        "--mount=target=/data/q",
        "--mount=source=Dockerfile,target=/data",
        "--mount=type=tmpfs,target=/t --mount=source=Dockerfile,target=/t/bin/f",
    ] {
        run(&data, mount).ok();
        leaves_nothing(mount);
    }
    // Other targets in /dev, and those that exist in every /dev.
    for target in ["/dev", "/dev/", "/dev/x", "/dev/shm", "/dev/shm/x"] {
        run(&[], &format!("--mount=type=tmpfs,target={target} test -c /dev/null && test -d {target} &&")).ok();
    }
    // The link belongs to another mount. As in BuildKit, its target remains.
    run(&data, "--mount=rw,target=/t --mount=type=tmpfs,target=/t/k/l1/y --mount=type=tmpfs,target=/t/k/l1/z").ok();
}

#[test]
fn mounts_that_cannot_be_made_are_errors_with_their_path() {
    let lab = Lab::new();
    let hosts = |target| [("etc/hosts", target)];
    let data_to = |target| [("data", target)];
    for (links, mounts, expected) in [
        (
            &hosts("/proc/x")[..],
            "",
            &["cannot create the mount point `/etc/hosts` in /proc: it is a link to `/proc/x`"][..],
        ),
        (&hosts("/sys/x/y"), "", &["cannot create the mount point `/etc/hosts` in /sys: it is a link to `/sys/x/y`"]),
        (&hosts("/bin/sh/x"), "", &["cannot mount on `/etc/hosts`: the image has a file at `/bin/busybox`"]),
        (
            &[("etc/hosts", "/n/x"), ("etc/resolv.conf", "/n/x/y")],
            "",
            &["cannot mount on `/etc/resolv.conf`: another mount has a file at `/n/x`"],
        ),
        (
            &[("etc/hosts", "/n/x"), ("etc/resolv.conf", "/n")],
            "",
            &["cannot mount on `/etc/resolv.conf`: another mount has a directory there"],
        ),
        (
            &hosts("/n"),
            "--mount=type=tmpfs,target=/n",
            &["cannot mount on `/n`: another mount has a file there, and a directory is required"],
        ),
        (&hosts("/n"), "--mount=type=tmpfs,target=/n/x", &["cannot mount on `/n/x`: another mount has a file at `/n`"]),
        (&[], "--mount=type=tmpfs,target=/proc", &["cannot mount on `/proc`: it is the command's procfs"]),
        (
            &[],
            "--mount=target=/dev",
            &["cannot mount on `/dev`: it is the command's device directory", "mount it on another target"],
        ),
        (
            &[],
            "--mount=type=cache,target=/dev/../dev/",
            &["cannot mount on `/dev`: it is the command's device directory"],
        ),
        (&[], "--mount=source=Dockerfile,target=/dev/null", &["every command has its own `/dev/null`"]),
        (
            &[],
            "--mount=source=Dockerfile,target=/dev/null/x",
            &["cannot mount on `/dev/null/x`: every command has its own `/dev/null`"],
        ),
        (&[], "--mount=type=cache,target=/dev/stdout", &["every command has its own `/dev/stdout`"]),
        (
            &data_to("/dev/full"),
            "--mount=source=Dockerfile,target=/data",
            &["cannot mount on `/data`: every command has its own `/dev/full`"],
        ),
        (&data_to("/dev"), "--mount=target=/data", &["cannot mount on `/data`: it is the command's device directory"]),
    ] {
        let ran = run_with_links(&lab, links, mounts).fails(1, &[&["cannot start the command"], expected].concat());
        assert!(!ran.stderr.contains("os error") && !ran.stderr.contains("rootfs"), "{}", ran.stderr);
    }
}
