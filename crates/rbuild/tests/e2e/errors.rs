use std::io::Write;

use crate::lab::{Lab, base};

#[test]
fn errors_in_the_dockerfile_mark_the_offending_line() {
    let lab = Lab::new();
    lab.build("FROM busybox\nCOPPY a b\nRUN --mont=x y\n", &[]).fails(
        2,
        &[
            "unknown instruction `COPPY`",
            "did you mean `COPY`",
            "--> Dockerfile:2:1",
            "^^^^^",
            "did you mean `--mount`",
        ],
    );
    lab.build("FROM busybox AS build-client\nFROM scratch\nCOPY --from=build-server /x /\n", &[]).fails(
        1,
        &["`build-server` is neither a stage nor an image", "did you mean `build-client`", "Dockerfile:3:13"],
    );
    lab.write("main.go", "x");
    lab.build("FROM busybox\nCOPY mian.go /\n", &[]).fails(1, &["`mian.go` not found", "Dockerfile:2:6"]);
    lab.build("FROM busybox\nCOPY Main.go /\n", &[]).fails(1, &["did you mean `main.go`"]);
    lab.build("FROM no-such-image\n", &[]).fails(1, &["`no-such-image`", "rbuild import"]);
    lab.build("", &[]).fails(2, &["is empty"]);
    lab.build("FROM busybox\nADD https://example.com/x.git /\n", &[])
        .fails(2, &["ADD of a git repository is not supported yet", "Dockerfile:2:5"]);
}

#[test]
fn diagnostics_mark_the_offending_word() {
    let lab = Lab::new();
    lab.write("a", "a").write("b", "b").write("text.tar.gz", "this is not an archive");
    for (file, place, marked) in [
        ("FROM busybox\nRUN touch /f\nCOPY a b /f\n", "Dockerfile:3:10", "^^"),
        ("FROM busybox\nRUN true\nADD a /bin/busybox/x\n", "Dockerfile:3:7", "^^^^^^^^^^^^^^"),
        ("FROM busybox\nCOPY <<x /bin/busybox/y\nhi\nx\n", "Dockerfile:2:10", "^^^^^^^^^^^^^^"),
        ("FROM busybox\nUSER who\nRUN true\n", "Dockerfile:2:6", "^^^"),
        ("FROM busybox\nUSER who:grp\nWORKDIR /x\n", "Dockerfile:2:6", "^^^^^^^"),
        ("FROM busybox AS one\nUSER who\nFROM one\nRUN true\n", "Dockerfile:2:6", "^^^"),
        ("FROM busybox\nCOPY --chown=who a /\n", "Dockerfile:2:14", "^^^"),
        ("FROM busybox\nRUN true && \\\n  true && \\\n  nosuch -x && \\\n  true\n", "Dockerfile:4:3", "^^^^^^"),
        (
            "FROM busybox\nRUN true && \\\n  false && \\\n  true\n",
            "Dockerfile:2:1",
            "3 | |   false && \\\n4 | |   true\n",
        ),
    ] {
        let ran = lab.build(file, &[]).fails(1, &[place]);
        assert!(ran.stderr.contains(marked) && !ran.stderr.contains(&format!("{marked}^")), "{}", ran.stderr);
    }
    lab.build("FROM busybox\nRUN false\n", &[]).fails(1, &["--on-error shell"]);
    // A trigger is not part of the Dockerfile, so its FROM is marked.
    lab.build("FROM busybox\nONBUILD COPY a /bin/busybox/x\nONBUILD USER who\n", &["-t", "base"]).ok();
    lab.build("FROM base\n", &[]).fails(1, &["Dockerfile:1:"]);
}

#[test]
fn errors_on_the_command_line_name_the_argument() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\n");
    lab.rbuild(["build", "--no-such-flag"]).fails(2, &["--no-such-flag"]);
    lab.rbuild(["build", "-o", "type=lcoal,dest=x"]).fails(2, &["did you mean `local`"]);
    lab.rbuild(["build", "-f", "Dockerfile.none"]).fails(1, &["Dockerfile.none"]);
    lab.rbuild(["build", "/no/such/dir"]).fails(2, &["/no/such/dir"]);
    lab.rbuild(["build", "-t", "UPPER"]).fails(2, &["lower case"]);
    lab.rbuild(["build", "--target", "nope"]).fails(2, &["stage `nope` does not exist"]);
    // Options that scripts often pass to docker are accepted, with a warning if they have no
    // effect.
    let habits =
        ["build", "--rm", "--force-rm", "--compress", "--provenance=false", "-m", "1g", "--cache-from", "type=gha"];
    let ran = lab.rbuild(habits).ok();
    assert!(
        ran.stderr.contains("--memory is not supported") && ran.stderr.contains("--cache-from type=gha has no effect")
    );
    assert!(!ran.stderr.contains("--provenance"), "{}", ran.stderr);
    lab.rbuild(["imagse"]).fails(2, &["did you mean `rbuild images`"]);
}

#[test]
fn truncated_and_inconsistent_archives_are_rejected() {
    let lab = Lab::bare();
    let bytes = std::fs::read(base("debian.tar.gz")).unwrap();
    let cut = lab.path("cut.tar.gz");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    lab.rbuild(["import", cut.to_str().unwrap(), "x"]).fails(1, &["cut.tar.gz"]);
    let text = lab.path("text");
    std::fs::write(&text, "this is not an archive").unwrap();
    lab.rbuild(["import", text.to_str().unwrap(), "x"]).fails(1, &["text`: the content is not a tar archive"]);
    lab.rbuild(["load", "-i", text.to_str().unwrap()]).fails(1, &["text`: the content is not a tar archive"]);
    assert_eq!(lab.rbuild(["images", "-a", "-q"]).ok().stdout, "");
    // A blob whose content does not match its digest.
    let full = Lab::new();
    let tar = full.path("a.tar");
    full.rbuild(["save", "-o", tar.to_str().unwrap(), "busybox"]).ok();
    let mut bytes = std::fs::read(&tar).unwrap();
    let at = bytes.windows(9).position(|w| w == b"diff_ids\"").unwrap() + 30;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    std::fs::write(&tar, bytes).unwrap();
    lab.rbuild(["load", "-i", tar.to_str().unwrap()]).fails(1, &["is corrupt: its digest is"]);
    // A layer whose content was changed in the store.
    let id = full.rbuild(["inspect", "busybox"]).ok();
    assert!(id.stdout.contains("RootFS"));
    let blobs = full.store().join("blobs/sha256");
    let biggest = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| p.metadata().unwrap().len())
        .unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&biggest).unwrap();
    file.write_all(b"more").unwrap();
    full.build("FROM busybox\nRUN true\n", &[]).fails(1, &["is corrupt: its digest is"]);
}

#[test]
fn missing_user_namespaces_are_an_error_with_a_remedy() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    let ran =
        lab.sh("unshare -Ur bash -c 'echo 0 > /proc/sys/user/max_user_namespaces; \"$RB\" --isolation userns build'");
    ran.fails(3, &["cannot create a user namespace", "sysctl -w user.max_user_namespaces"]);
    let doctor =
        lab.sh("unshare -Ur bash -c 'echo 0 > /proc/sys/user/max_user_namespaces; \"$RB\" --isolation userns doctor'");
    assert_eq!(doctor.code, Some(3));
    assert!(doctor.stdout.contains("NO  userns"), "{}", doctor.stdout);
}

/// Runs a script as root of a user namespace that maps no other user, with its own store, for
/// setups that need a mount.
pub fn in_namespace(lab: &Lab, script: &str) -> crate::lab::Ran {
    let base = base("busybox.tar");
    let script =
        format!("set -e; export RBUILD_ROOT=$LAB/small BASE={}; mkdir -p $RBUILD_ROOT; {script}", base.display());
    std::fs::write(lab.path("script"), script).unwrap();
    lab.sh("unshare -Urm bash $LAB/script")
}

/// The error of the command itself does not name the disk of the store.
#[test]
fn a_command_that_fills_the_disk_of_the_store_has_a_hint_about_it() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM busybox\nRUN head -c 40m /dev/zero > /f\n");
    let script = "mount -t tmpfs -o size=16m x $RBUILD_ROOT; $RB import $BASE busybox >/dev/null; $RB build";
    let ran = in_namespace(&lab, script);
    ran.fails(
        1,
        &["exited with code 1", "hint: free some space on the disk of the store, which is full, with `rbuild prune`"],
    );
    lab.write("Dockerfile", "FROM busybox\nRUN false\n");
    let ran = in_namespace(&lab, script).fails(1, &["hint: "]);
    assert!(!ran.stderr.contains("which is full"), "{}", ran.stderr);
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing_behind() {
    for step in ["COPY big /", "ADD big.tar /"] {
        let lab = Lab::bare();
        lab.write("Dockerfile", format!("FROM busybox\n{step}\n")).write("big", vec![7u8; 30 << 20]);
        let ran = in_namespace(
            &lab,
            "tar cf big.tar big; mount -t tmpfs -o size=12m x $RBUILD_ROOT; $RB import $BASE busybox >/dev/null; \
             c=0; $RB build || c=$?; ls -A $RBUILD_ROOT/tmp; echo 'FROM busybox' > Dockerfile; \
             echo 'RUN true' >> Dockerfile; $RB build -q -t ok; exit $c",
        );
        let full = "no space left on device";
        let hint = "hint: free some space; `rbuild prune -a`";
        let ran = ran.fails(1, &["error: ", "in the store `", full, step, hint]);
        assert!(ran.stdout.starts_with("sha256:"), "{step}: left in tmp: {}", ran.stdout);
        assert!(!ran.stderr.contains("small/"), "{step}: a path of the store: {}", ran.stderr);
    }
}

/// The archive can be read, but the store is full.
#[test]
fn a_full_disk_during_import_or_load_names_the_store() {
    let lab = Lab::bare();
    lab.write("big", vec![7u8; 8 << 20]);
    lab.sh("tar cf root.tar big && xz -k root.tar").ok();
    let named = "cannot write to the layers in the store `";
    for archive in ["root.tar", "root.tar.xz"] {
        let import = format!("mount -t tmpfs -o size=4m x $RBUILD_ROOT; $RB import {archive} x");
        let ran = in_namespace(&lab, &import).fails(1, &[named, "no space left on device", "hint: free some space"]);
        assert!(!ran.stderr.contains("cannot read"), "{}", ran.stderr);
    }
    let load = "$RB import root.tar x >/dev/null; $RB save -o x.tar x; export RBUILD_ROOT=$LAB/full; \
                mkdir $RBUILD_ROOT; mount -t tmpfs -o size=4m x $RBUILD_ROOT; $RB load -i x.tar";
    in_namespace(&lab, load).fails(1, &[named, "no space left on device", "hint: free some space"]);
}

/// The disk has space for the layer of the base image, but not for its files.
#[test]
fn a_full_disk_during_unpacking_names_the_store() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM big\nRUN true\n");
    let build = "mount -t tmpfs -o size=30m x $RBUILD_ROOT; head -c 20000000 /dev/urandom > big; tar cf big.tar big; \
                 $RB import big.tar big >/dev/null; $RB build";
    let expected = "error: unpacking `big` failed: cannot write to the snapshots in the store `";
    in_namespace(&lab, build).fails(1, &[expected, "Dockerfile:1", "no space left on device", "hint: free some space"]);
}

/// The disk has space for the files, but not for the layer that is packed from them.
#[test]
fn a_full_disk_during_packing_names_the_store_and_the_step() {
    let lab = Lab::bare();
    let file = "FROM busybox\nLABEL a=b\nRUN head -c 20000000 /dev/urandom > /big\n";
    lab.write("Dockerfile", file);
    let build = "mount -t tmpfs -o size=30m x $RBUILD_ROOT; $RB import $BASE busybox >/dev/null; $RB build -t x";
    let expected = "cannot write to the layers in the store `";
    let ran = in_namespace(&lab, build).fails(1, &[expected, "no space left on device", "Dockerfile:3:1"]);
    assert!(ran.stderr.contains("hint: free some space; `rbuild prune -a`"), "{}", ran.stderr);
}

/// The disk is full for the process that prepares a command, not for the builder.
#[test]
fn a_full_disk_during_run_is_reported() {
    let lab = Lab::bare();
    lab.write("big", vec![7u8; 30 << 20]);
    let run = "mount -t tmpfs -o size=12m x $RBUILD_ROOT; $RB import $BASE busybox >/dev/null; \
               $RB --isolation=chroot run -v $PWD/big:/big:ro busybox true";
    in_namespace(&lab, run)
        .fails(126, &["cannot start the command", "no space left on device", "hint: ", "rbuild prune"]);
}

/// A message names the store's directory and the kind of its files, not their paths.
#[test]
fn files_of_the_store_that_cannot_be_used_are_reported_without_their_paths() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN echo 1 > /a\n", &[]).ok();
    let store = lab.store();
    let inside = |ran: &crate::lab::Ran| ran.stderr.contains(&format!("{}/", store.display()));
    let hidden = lab.path("hidden");
    std::fs::rename(store.join("tmp"), &hidden).unwrap();
    let ran = lab
        .build("FROM busybox\nRUN echo 2 > /a\n", &[])
        .fails(1, &["error: cannot read the store `", "no such file or directory", "hint: run `rbuild fsck --repair`"]);
    assert!(!inside(&ran), "{}", ran.stderr);
    std::fs::rename(&hidden, store.join("tmp")).unwrap();
    lab.build("FROM busybox\nRUN echo 2 > /a\n", &[]).ok();
}

/// The message about a full disk does not name the store if another disk is full.
#[test]
fn a_full_disk_of_the_output_is_reported() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM scratch\nCOPY big small-* /\n");
    // Incompressible data.
    let noise: Vec<u8> = (0..3u32 << 20)
        .scan(1u32, |x, _| {
            *x = x.wrapping_mul(1664525).wrapping_add(1013904223);
            Some((*x >> 24) as u8)
        })
        .collect();
    lab.write("big", noise).write("small-a", vec![7u8; 60 << 10]);
    let prepare = "mkdir -p t; mount -t tmpfs -o size=1m x t; $RB import $BASE busybox >/dev/null; $RB build -q -t x >/dev/null; ";
    for command in [
        "save -o t/x x",
        "build -o t/d",
        "build -o type=tar,dest=t/x",
        "build -o type=oci,compression=uncompressed,dest=t/x",
        "build -o type=docker,compression=uncompressed,dest=t/x",
        "build -o type=oci,tar=false,compression=uncompressed,dest=t/d",
        "cp x:/big t/big",
        "cp x:/big t",
    ] {
        let ran = in_namespace(&lab, &format!("{prepare}$RB {command}"));
        let ran = ran.fails(1, &["no space left on device", "free some space on the disk of "]);
        assert_eq!(ran.stderr.to_lowercase().matches("no space left").count(), 1, "{command}: {}", ran.stderr);
        assert!(!ran.stderr.contains("prune") && !ran.stderr.contains("cannot read"), "{command}: {}", ran.stderr);
    }
    let small = "dd if=/dev/zero of=t/fill bs=1k count=1000 2>/dev/null; $RB cp x:/small-a t";
    let ran = in_namespace(&lab, &format!("{prepare}{small}")).fails(1, &["cannot write", "no space left on device"]);
    assert!(!ran.stderr.contains("cannot read"), "{}", ran.stderr);
}

/// No configuration file is known in a directory that cannot be searched, but one that cannot be
/// read may have settings.
#[test]
fn a_directory_of_configuration_files_that_cannot_be_searched_is_a_warning() {
    let lab = Lab::bare();
    let is_root = nix::unistd::getuid().is_root();
    let run = |prepare: &str| lab.sh(&format!("{prepare}; HOME=$LAB/home env -u XDG_CONFIG_HOME $RB images"));
    let warning = "warning: cannot search `";
    let ran = run("mkdir -p $LAB/home/.config/rbuild; chmod 0 $LAB/home/.config").ok();
    assert_eq!(ran.stderr.matches(warning).count(), usize::from(!is_root), "{}", ran.stderr);
    let ran = run("chmod 700 $LAB/home/.config; touch $LAB/home/.config/rbuild/config.toml; \
         chmod 0 $LAB/home/.config/rbuild/config.toml");
    assert_eq!(ran.code, Some(if is_root { 0 } else { 2 }), "{}", ran.stderr);
    assert!(!ran.stderr.contains(warning), "{}", ran.stderr);
}

/// Errors about files that a command writes in addition to its output have the same message and
/// hint as those about the output.
#[test]
fn a_full_disk_of_a_report_is_reported() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM busybox\n");
    let prepare = "mkdir -p t; $RB import $BASE busybox >/dev/null; $RB build -q -t x >/dev/null; \
                   mount -t tmpfs -o size=64k x t; dd if=/dev/zero of=t/fill bs=4k count=16 2>/dev/null || true; ";
    for (command, file) in [
        ("build --metadata-file t/x", "the metadata file `"),
        ("build --iidfile t/x", "the ID file `"),
        ("build --timings t/x", "the timings `"),
        ("save -o t/x x", "/t/x`"),
        ("cp x:/bin/busybox t/x", "/t/x`"),
    ] {
        let ran = in_namespace(&lab, &format!("{prepare}$RB {command}"));
        let ran = ran.fails(1, &[file, "no space left on device", "hint: free some space on the disk of `"]);
        assert!(!ran.stderr.contains("prune"), "{command}: {}", ran.stderr);
    }
}

/// If the disk is too full to create a store, the hint does not suggest another place for the
/// store.
#[test]
fn a_full_disk_of_a_new_store_is_reported() {
    let lab = Lab::bare();
    let fill = "mount -t tmpfs -o size=64k x $RBUILD_ROOT; \
                dd if=/dev/zero of=$RBUILD_ROOT/fill bs=4k count=16 2>/dev/null || true; \
                RBUILD_ROOT=$RBUILD_ROOT/store; ";
    let ran = in_namespace(&lab, &format!("{fill}$RB images"));
    let ran = ran.fails(1, &["cannot use the store", "no space left on device", "hint: free some space"]);
    assert!(!ran.stderr.contains("--root"), "{}", ran.stderr);
}

#[test]
fn a_read_only_store_is_reported() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    in_namespace(&lab, "$RB import $BASE busybox >/dev/null; mount --bind $RBUILD_ROOT $RBUILD_ROOT; mount -o remount,ro,bind $RBUILD_ROOT; $RB build")
        .fails(1, &["cannot use the store", "read-only file system", "--root DIR"]);
}

#[test]
fn root_doctor_explains_how_to_get_sub_ids() {
    let lab = Lab::bare();
    let script = |path: &str| {
        format!(
            "chmod 755 $LAB; mkdir -m 777 $LAB/s; RBUILD_ROOT=$LAB/s setpriv --reuid 61234 --regid 61234 --clear-groups env RBUILD_ISOLATION=auto PATH={path} $RB doctor"
        )
    };
    let ran = lab.sh(&script("$PATH"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for text in ["`/etc/subuid` grants user 61234 no sub-IDs", "usermod --add-subuids", "ok  single-id: "] {
        assert!(ran.stdout.contains(text), "{text:?} is missing in\n{}", ran.stdout);
    }
    let ran = lab.sh(&script("/nowhere").replace("mkdir -m 777 $LAB/s; ", ""));
    assert!(ran.stdout.contains("`newuidmap` is not installed"), "{}", ran.stdout);
    assert!(ran.stdout.contains("apt-get install uidmap"), "{}", ran.stdout);
}

#[test]
fn all_missing_images_are_reported_at_once() {
    let lab = Lab::bare();
    let all = "FROM none-1 AS x\nFROM none-2\nCOPY --from=x /c /d\n";
    lab.build(all, &[]).fails(1, &["`none-1`", "Dockerfile:1:6", "`none-2`", "Dockerfile:2:6"]);
    let inputs = "FROM scratch AS unused\nCOPY --from=none-0 /a /\nFROM none-1 AS x\nFROM scratch\nCOPY --from=none-2 /c /d\n\
                  COPY --from=x /c /d\nRUN --mount=from=none-3,target=/m true\n";
    let ran = lab.build(inputs, &[]);
    let all = ["`none-1`", "Dockerfile:3:6", "`none-2`", "Dockerfile:5:13", "`none-3`", "Dockerfile:7:18"];
    assert!(!ran.fails(1, &all).stderr.contains("none-0"));
    let stage = "FROM scratch AS x\nFROM scratch\nCOPY --from=x /nope /a\n";
    let ran = lab.build(stage, &[]);
    let ran = ran.fails(1, &["`/nope` not found in `x`", "Dockerfile:3:15", "relative to the root of `x`"]);
    assert!(!ran.stderr.contains("build context"), "{}", ran.stderr);
}

/// Failure to write to standard output is an error; a reader that closes the pipe early is not.
#[test]
fn lost_output_is_an_error() {
    let lab = Lab::new();
    for verb in ["images", "inspect busybox", "history busybox"] {
        let ran = lab.sh(&format!("trap '' XFSZ; ulimit -f 0; $RB {verb} > out; echo code $? >&2"));
        assert!(ran.stderr.contains("standard output: file too large"), "{verb}: {}", ran.stderr);
        assert!(ran.stderr.ends_with("code 1\n"), "{verb}: {}", ran.stderr);
        let ran = lab.sh(&format!("$RB {verb} | true; echo code ${{PIPESTATUS[0]}}"));
        assert_eq!(ran.stdout, "code 0\n", "{verb}: {}", ran.stderr);
    }
}

#[test]
fn requests_without_an_effect_cause_a_warning() {
    let lab = Lab::new();
    let ran = lab.build("FROM busybox\nCOPY *.nope /x/\n", &["-t", "dup", "-t", "dup"]).ok();
    assert!(ran.stderr.contains("no file matches `*.nope`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("\nBuilt dup:latest ("), "{}", ran.stderr);
    let ran = lab.build("FROM busybox AS cacher\nRUN true\n", &["--no-cache-filter", "cachwr"]).ok();
    assert!(ran.stderr.contains("stage `cachwr` does not exist"), "{}", ran.stderr);
    assert!(ran.stderr.contains("did you mean `cacher`?"), "{}", ran.stderr);
    lab.build("FROM busybox\nRUN true\n", &["-o", "out"]).ok();
    let logs = lab.rbuild(["logs"]).ok().stdout;
    assert!(logs.contains("/out\n") && logs.contains("dup:latest\n"), "{logs}");
    assert!(logs.contains("Dockerfile in /"), "{logs}");
}

#[test]
fn hints_address_the_cause_of_the_error() {
    let lab = Lab::new();
    lab.write("tok", "a-rather-long-value");
    let secret = ["--secret", "id=t,src=tok"];
    lab.build("FROM busybox\nENV T=a-rather-long-value\n", &secret).fails(
        1,
        &["in the image's configuration or history", "Dockerfile:2:7", "hint: read the value from the secret's mount"],
    );
    lab.build("FROM busybox\nRUN ['echo', 'x']\n", &[]).fails(1, &["JSON strings require double quotes"]);
    std::os::unix::fs::symlink("/etc/passwd", lab.ctx().join("pw")).unwrap();
    lab.build("FROM busybox\nCOPY pw /\n", &[]).fails(
        1,
        &[
            "`pw` is a symbolic link to `/etc/passwd`, which does not exist in the build context",
            "links cannot lead out",
        ],
    );
    lab.rbuild(["run", "-u", "nosuch", "busybox", "true"])
        .fails(125, &["no user `nosuch`", "an image with that account"]);
}

#[test]
fn a_file_that_is_not_a_dockerfile_causes_few_errors() {
    let lab = Lab::new();
    let ran = lab.build(&format!("FROM a\n{}", "NONSENSE x\n".repeat(1000)), &[]).fails(2, &["980 more errors"]);
    assert!(ran.stderr.lines().count() < 200, "{}", ran.stderr);
    let ran = lab.build(&"NONSENSE x\n".repeat(1000), &[]).fails(2, &["this file contains no instruction"]);
    assert!(ran.stderr.lines().count() < 10, "{}", ran.stderr);
}
