//! Modes of the files in the store, and store locks held by other programs.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, base};

/// Collects the files in and next to the store that grant other users more permissions than the
/// umask allows. Files of images keep their own modes: for trees and cache mounts, only the top
/// directory is checked.
fn too_open(dir: &Path, umask: u32, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let is_of_an_image = path.file_name().is_some_and(|name| name == "fs")
            || path.parent().and_then(Path::file_name).is_some_and(|above| above == "mounts");
        if meta.is_symlink() || meta.file_type().is_socket() || is_of_an_image {
            continue;
        }
        if meta.mode() & umask & 0o777 != 0 {
            found.push(format!("{:o} {}", meta.mode() & 0o7777, path.display()));
        }
        if meta.is_dir() {
            too_open(&path, umask, found);
        }
    }
}

#[test]
fn store_files_follow_the_callers_umask() {
    for umask in ["077", "022", "027"] {
        let lab = Lab::bare();
        lab.write("f", "content").write("d/g", "more");
        std::fs::write(lab.path("token"), "tops3cret").unwrap();
        lab.write(
            "Dockerfile",
            "FROM busybox AS a\nRUN --mount=type=cache,target=/c echo x > /c/f; echo printed\nFROM busybox\nCOPY --from=a /etc/passwd /p\n\
             COPY . /ctx\nRUN --mount=type=secret,id=t --mount=target=/m wc -c < /run/secrets/t\nWORKDIR /w\n",
        );
        let build = "$RB build -q --secret id=t,src=$LAB/token";
        let out = "$LAB/made";
        lab.sh(&format!(
            "set -e; umask {umask}; mkdir {out}; $RB import {} busybox; {build} -t x .; {build} -t y .; echo new >> f; {build} -t x .; \
             {build} -o type=oci,dest={out}/a.tar -o type=oci,tar=false,dest={out}/layout .; $RB save -o {out}/x.tar x; \
             $RB load -i {out}/x.tar; $RB load -i {out}/a.tar; $RB create --name c x; $RB run x true; $RB prune; $RB df; \
             {build} --timings {out}/t.html --metadata-file {out}/m --iidfile {out}/i -t z .",
            base("busybox.tar").display()
        ))
        .ok();
        let mut found = Vec::new();
        let umask = u32::from_str_radix(umask, 8).unwrap();
        for place in [lab.store(), lab.path("made")] {
            too_open(&place, umask, &mut found);
        }
        assert_eq!(found, Vec::<String>::new());
        // Any user who can open a lock file can block all builds, also in a store of an earlier
        // version.
        lab.sh(&format!("(cd {}; chmod 666 steps.lock lock); {build} --no-cache -t x .", lab.store().display())).ok();
        for lock in ["lock", "steps.lock", "index.lock"] {
            assert_eq!(std::fs::metadata(lab.store().join(lock)).unwrap().mode() & 0o007, 0, "{lock}");
        }
    }
}

/// A set-uid program of an image is stored with its mode and belongs to the user who builds.
#[test]
fn image_files_in_the_store_are_private_to_their_owner() {
    let lab = Lab::new();
    let build = || lab.build("FROM busybox\nRUN cp /bin/busybox /s && chmod 6755 /s\n", &["-t", "x"]).ok();
    build();
    let modes =
        || ["blobs", "trees", "mounts", "tmp"].map(|d| std::fs::metadata(lab.store().join(d)).unwrap().mode() & 0o777);
    assert_eq!(modes(), [0o700; 4]);
    // A store made by an earlier version.
    lab.sh("cd $RBUILD_ROOT && chmod 755 blobs trees mounts tmp").ok();
    lab.rbuild(["images"]).ok();
    assert_eq!(modes(), [0o700; 4]);
    build();
}

#[test]
fn root_other_users_cannot_run_set_uid_programs_of_images() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN cp /bin/busybox /s && chmod 6755 /s\n", &["-t", "x"]).ok();
    let run = "for f in $RBUILD_ROOT/trees/*/fs/s; do test -u $f && echo there; \
        setpriv --reuid 65534 --regid 65534 --clear-groups $f id -u && echo started; done";
    let ran = lab.sh(run);
    assert_eq!(ran.stdout, "there\n", "{}", ran.stderr);
}

/// Starts a program other than rbuild that takes a lock and keeps it. The script selects the call.
fn holder(lab: &Lab, script: &str) -> Child {
    let text = format!(
        "import fcntl, os, struct, sys, time\nf = open(sys.argv[1], 'r+b')\n{script}\nprint('has it', flush=True)\ntime.sleep(600)\n"
    );
    let file = lab.path("holder.py");
    std::fs::write(&file, text).unwrap();
    let mut holder =
        Command::new("python3").arg(&file).arg(lab.store().join("steps.lock")).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "has it\n");
    holder
}

fn end(mut holder: Child) {
    let _ = holder.kill();
    let _ = holder.wait();
}

const STEP: &str = "FROM busybox\nRUN --mount=type=cache,target=/c echo x > /o\n";

#[test]
fn waiting_for_a_foreign_holder_of_steps_lock_times_out_and_names_it() {
    let lab = Lab::new();
    lab.build(STEP, &["-q"]).ok();
    // A process lock, an open file description lock on all bytes, and a shared lock.
    for script in [
        "fcntl.lockf(f, fcntl.LOCK_EX)",
        "fcntl.fcntl(f, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))",
        "fcntl.lockf(f, fcntl.LOCK_SH)",
    ] {
        let holder = holder(&lab, script);
        let named = format!("python3 (PID {}, user ", holder.id());
        let began = Instant::now();
        let ran = lab.rbuild(["--lock-timeout", "4", "build", "--no-cache", "."]);
        end(holder);
        let ran = ran
            .fails(1, &["the store's steps.lock is held by", "is not rbuild", "RBUILD_LOCK_TIMEOUT", "waiting for "]);
        // Open file description locks have no PID, and a builder in a namespace may be unable to
        // see which process has the file open.
        assert!(script.contains("37") || ran.stderr.contains(&named), "{}", ran.stderr);
        assert!(began.elapsed() < Duration::from_secs(30), "{script} took {:?}", began.elapsed());
    }
    // A lock released in time only delays the build.
    let holder = holder(&lab, "fcntl.lockf(f, fcntl.LOCK_EX)");
    let waiting = std::thread::scope(|scope| {
        let build = scope.spawn(|| lab.rbuild(["build", "--no-cache", "."]));
        std::thread::sleep(Duration::from_secs(1));
        end(holder);
        build.join().unwrap()
    });
    waiting.ok();
}

#[test]
fn waiting_for_a_foreign_holder_of_the_store_lock_times_out_and_names_it() {
    let lab = Lab::new();
    lab.write("Dockerfile", STEP);
    for (file, args) in [("lock", &["images"][..]), ("lock", &["build", "."]), ("index.lock", &["tag", "busybox", "y"])]
    {
        let holder = Command::new("flock").arg(lab.store().join(file)).args(["sleep", "600"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let named = format!("flock (PID {}, user ", holder.id());
        let ran = lab.run_with(&mut lab.command(args.iter().copied()), &[("RBUILD_LOCK_TIMEOUT", "1")]);
        end(holder);
        // The process that `flock` started still holds the lock.
        lab.sh(&format!("fuser -s -k $LAB/store/{file}; true")).ok();
        ran.fails(1, &[&format!("the store's {file} is held by"), &named, "is not rbuild"]);
    }
    // Prune needs exclusive access to the store: it immediately reports the processes that use it.
    let holder = Command::new("flock").arg("-s").arg(lab.store().join("lock")).args(["sleep", "600"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let named = format!("the store is in use by flock (PID {}", holder.id());
    let ran = lab.rbuild(["prune"]);
    end(holder);
    lab.sh("fuser -s -k $LAB/store/lock; true").ok();
    ran.fails(1, &[&named]);
    lab.rbuild(["prune"]).ok();
}

/// The name of a process proves nothing: rbuild does not wait for an idle lock holder.
#[test]
fn an_idle_process_named_rbuild_times_out_too() {
    let lab = Lab::new();
    lab.sh("mkdir $LAB/fake && cp $(command -v flock) $LAB/fake/rbuild").ok();
    for (file, args) in [("lock", &["images"][..]), ("index.lock", &["tag", "busybox", "y"])] {
        let holder =
            Command::new(lab.path("fake/rbuild")).arg(lab.store().join(file)).args(["sleep", "600"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        let named = format!("the store's {file} is held by rbuild (PID {}, user ", holder.id());
        let ran = lab.run_with(&mut lab.command(args.iter().copied()), &[("RBUILD_LOCK_TIMEOUT", "1")]);
        end(holder);
        lab.sh(&format!("fuser -s -k $LAB/store/{file}; true")).ok();
        ran.fails(1, &[&named, "has made no progress", "RBUILD_LOCK_TIMEOUT"]);
        assert!(began.elapsed() < Duration::from_secs(20), "{file} took {:?}", began.elapsed());
    }
}

#[test]
fn waiting_for_another_build_has_no_timeout() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN sleep 7\n");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| lab.rbuild(["build", "."]));
        std::thread::sleep(Duration::from_secs(1));
        let second = lab.rbuild(["--lock-timeout", "1", "build", "."]).ok();
        assert!(
            second.stderr.contains("waiting for rbuild (PID ") && second.stderr.contains("the same step"),
            "{}",
            second.stderr
        );
        first.join().unwrap().ok();
    });
}
