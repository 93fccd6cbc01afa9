//! Results are shared between isolation modes with different kinds of owners, and no image contains
//! files of two runs of one command.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::lab::{Lab, Ran, contents, listing};

/// Pairs of a mode that builds first, and another one.
const WAYS: [(&str, &str); 2] = [("userns", "single-id"), ("single-id", "userns")];

const ODD: &str = "FROM busybox AS made\n\
    RUN mkdir -p /out/d && echo 1 > /out/a && chmod 600 /out/a && chown 33:50 /out/a && chown 7:8 /out/d && \
        ln -s a /out/l && chown -h 12:34 /out/l && ln /out/a /out/hard\n\
    FROM busybox\n\
    RUN rm /bin/yes && chown 5:6 / && chmod 1711 / && echo x > /f && chown 9:10 /f && chmod 6755 /f && mkfifo /p && \
        chown 11:12 /p && mkdir -m 2500 /dir && echo y > /dir/y && touch -d @123456789 /dir/y && \
        dd if=/dev/zero of=/sparse bs=1 count=1 seek=3000000 2>/dev/null && mkdir /old && echo > /old/x && ln /f /g\n\
    RUN rm -r /old && mkdir /old && echo > /old/y && rm /g && chmod 700 /dir\n\
    WORKDIR /w/x\n\
    COPY --from=made /out /out\n\
    COPY --chown=3:4 f /ctx\n";

const OWNERS: &str =
    "/:5:6:1711 /out/a:33:50:600 /out/d:7:8:755 /out/l:12:34:777 /f:9:10:6755 /p:11:12:644 /ctx:3:4:644 ";
const STAT: &str = "stat -c %n:%u:%g:%a / /out/a /out/d /out/l /f /p /ctx | tr '\\n' ' '";

fn build(lab: &Lab, mode: &str, file: &str, args: &[&str]) -> Ran {
    lab.write("Dockerfile", file).write("f", "of the context\n");
    lab.rbuild(["--isolation", mode, "build"].into_iter().chain(args.iter().copied()))
}

/// Builds to a tar; returns also its listing and its file `/owners`.
fn files(lab: &Lab, mode: &str, file: &str) -> (Ran, Vec<String>, String) {
    let tar = lab.path("files.tar");
    let ran = build(lab, mode, file, &["-o", &format!("type=tar,dest={}", tar.display())]).ok();
    let tar = std::fs::read(tar).unwrap();
    let owners = contents(&tar).remove("owners").unwrap_or_default();
    (ran, listing(&tar), String::from_utf8(owners).unwrap())
}

/// Builds to a directory and describes every entry of it, with times in nanoseconds.
fn exact(lab: &Lab, mode: &str, file: &str) -> BTreeSet<String> {
    let out = lab.path(&format!("exact-{mode}"));
    build(lab, mode, file, &["-o", &format!("type=local,dest={}", out.display())]).ok();
    let (mut found, mut todo) = (BTreeSet::new(), vec![out.clone()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            let name = path.strip_prefix(&out).unwrap().display().to_string();
            let content = if meta.is_file() { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let text = String::from_utf8_lossy(&content[..content.len().min(200)]).into_owned();
            // The output does not set the times of FIFOs.
            let time = if meta.mode() & 0o170000 == 0o010000 { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            found.insert(format!("{name} {:o} {size} {links} {time:?} {text}", meta.mode()));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    found
}

#[test]
fn a_build_in_one_mode_is_cached_in_another() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        let image = build(&lab, first, ODD, &["-q", "-t", "x"]).ok().stdout;
        for args in [&["-t", "x", "--explain"][..], &[], &["-t", "x", "--annotation", "a=b"]] {
            let ran = build(&lab, second, ODD, args).ok();
            assert_eq!(ran.steps(), (0, 6), "{first} {second} {args:?}: {}", ran.stderr);
        }
        assert_eq!(build(&lab, second, ODD, &["-q", "-t", "y"]).ok().stdout, image);
        // Files, and a command that sees them.
        let (ran, found, _) = files(&lab, second, ODD);
        assert_eq!(ran.steps(), (0, 6), "{first} {second}: {}", ran.stderr);
        assert_eq!(found, files(&lab, first, ODD).1);
        let (theirs, own) = (exact(&lab, first, ODD), exact(&lab, second, ODD));
        assert_eq!(own.symmetric_difference(&theirs).collect::<Vec<_>>(), <[&String; 0]>::default());
        let (ran, _, owners) = files(&lab, second, &format!("{ODD}RUN {STAT} > /owners\n"));
        assert_eq!(ran.steps(), (1, 6), "{first} {second}: {}", ran.stderr);
        assert_eq!(owners, OWNERS);
        lab.rbuild(["prune"]).ok();
        assert_eq!(lab.rbuild(["fsck"]).ok().code, Some(0));
        for mode in [first, second] {
            assert_eq!(build(&lab, mode, ODD, &["-t", "x"]).ok().steps(), (0, 6));
        }
    }
}

/// Two stages with random content, which reach the result in several ways.
const RANDOM: &str = "FROM busybox AS made\n\
    RUN cat /proc/sys/kernel/random/uuid > /r && cp /r /s\n\
    FROM busybox AS mid\n\
    COPY --from=made /r /r\n\
    RUN cp /r /m && cat /proc/sys/kernel/random/uuid > /own\n\
    FROM busybox\n\
    COPY --link --from=mid /m /out/m\n\
    COPY --from=made /s /out/s\n\
    COPY --from=mid /own /out/own\n\
    RUN --mount=type=bind,from=mid,target=/mid cp /mid/r /out/r && cp /mid/own /out/own2\n";

/// Fails a build unless all copies of each random file agree.
const AGREE: &str = "RUN cmp /out/m /out/s && cmp /out/m /out/r && cmp /out/own /out/own2\n";

#[test]
fn a_stage_that_was_never_packed_runs_again_with_all_above_it() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        build(&lab, first, RANDOM, &["-t", "x"]).ok();
        let ran = build(&lab, second, RANDOM, &["-t", "x"]).ok();
        assert_eq!(ran.steps(), (0, 7), "{first} {second}: {}", ran.stderr);
        // One more copy needs the files of the first stage.
        let more = format!("{RANDOM}COPY --from=made /r /late\nRUN cmp /late /out/m\n{AGREE}");
        let ran = build(&lab, second, &more, &["-t", "x", "--explain"]).ok();
        assert_eq!(ran.steps(), (10, 0), "{first} {second}: {}", ran.stderr);
        assert!(ran.stderr.contains("belong to another isolation mode"), "{}", ran.stderr);
        for rung in [first, second] {
            build(&lab, rung, &more, &["-t", "x"]).ok();
            build(&lab, rung, &format!("{RANDOM}{AGREE}"), &["-t", "x"]).ok();
        }
    }
}

#[test]
fn a_result_without_layers_is_made_again() {
    let lab = Lab::new();
    for (first, second) in WAYS {
        let file = format!("{RANDOM}RUN echo {first}\n");
        let (_, found, _) = files(&lab, first, &file);
        let (_, again, _) = files(&lab, second, &format!("{file}{AGREE}"));
        assert_eq!(found, again);
    }
}

#[test]
fn no_cache_in_one_mode_keeps_the_result_of_the_other() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        let image =
            |mode: &str, args: &[&str]| build(&lab, mode, RANDOM, &[&["-q", "-t", "x"], args].concat()).ok().stdout;
        let one = image(first, &[]);
        let two = image(second, &["--no-cache"]);
        assert_ne!(one, two);
        for _ in 0..2 {
            assert_eq!((image(first, &[]), image(second, &[])), (one.clone(), two.clone()));
            for mode in [first, second] {
                build(&lab, mode, &format!("{RANDOM}{AGREE}"), &["-t", "x"]).ok();
            }
        }
    }
}

#[test]
fn two_modes_can_build_concurrently_in_one_store() {
    let lab = Lab::new();
    for round in 0..3 {
        lab.write("Dockerfile", format!("{RANDOM}RUN echo {round}\n{AGREE}"));
        let start = |mode: &str| {
            let mut command = lab.command(["--isolation", mode, "build", "-t", mode]);
            command.stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        for child in [start("userns"), start("single-id")] {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
    assert_eq!(lab.rbuild(["fsck"]).ok().code, Some(0));
}

fn entries(dir: PathBuf) -> BTreeSet<PathBuf> {
    std::fs::read_dir(dir).map_or(BTreeSet::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

/// Within one mode as well, a command that runs again because its record or its tree is gone is not
/// treated as the run that later steps were built on.
#[test]
fn a_lost_step_that_runs_again_has_another_result() {
    let file = "FROM busybox\nRUN date +%N > /a && cat /proc/self/stat >> /a\nRUN cp /a /b\nRUN cmp /a /b\n";
    for what in ["records", "trees"] {
        let lab = Lab::new();
        lab.build(file, &["-t", "x"]).ok();
        for lost in entries(lab.store().join(what)) {
            if what == "records" {
                std::fs::remove_file(&lost).unwrap();
            } else {
                std::fs::rename(&lost, lab.path("lost")).unwrap();
            }
            let check = format!("{file}RUN cmp /a /b && echo {}\n", lost.display());
            lab.build(&check, &["-t", "x"]).ok();
            let out = lab.build_local(file, &[]);
            let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
            assert_eq!(read("a"), read("b"), "without {lost:?}");
            let _ = std::fs::rename(lab.path("lost"), lab.path(&lost.file_name().unwrap().to_string_lossy()));
        }
    }
}

/// Pseudo-random numbers with a given sequence (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn some_of(&mut self, dir: &Path) -> Option<PathBuf> {
        let all: Vec<PathBuf> = entries(dir.to_path_buf()).into_iter().collect();
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }
}

/// Copies of one random file agree, regardless of what is built, pruned and lost in which mode.
#[test]
fn any_sequence_of_builds_in_two_modes_gives_consistent_images() {
    let seed = std::env::var("RBUILD_STORM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5EED);
    let lab = Lab::new();
    let mut dice = Dice(seed | 1);
    let mut done = Vec::new();
    for turn in 0..40 {
        let mode = ["userns", "single-id"][dice.below(2)];
        match dice.below(8) {
            0 => drop(lab.rbuild(["prune"]).ok()),
            1 | 2 => {
                let lost = dice.some_of(&lab.store().join("records"));
                lost.iter().for_each(|lost| std::fs::remove_file(lost).unwrap());
            }
            _ => {}
        }
        let file = match dice.below(3) {
            0 => format!("{RANDOM}COPY --from=made /r /out/late\nRUN cmp /out/late /out/r\n"),
            1 => format!("{RANDOM}{AGREE}"),
            _ => RANDOM.to_string(),
        };
        let mut args = vec!["-t", "x"];
        match dice.below(6) {
            0 => args.push("--no-cache"),
            1 => args.extend(["--no-cache-filter", "mid"]),
            2 => args.extend(["-o", "type=local,dest=../o"]),
            _ => {}
        }
        done.push(format!("{mode} {args:?}"));
        let what = || format!("seed {seed}, turn {turn}: {done:#?}");
        let ran = build(&lab, mode, &file, &args);
        assert_eq!(ran.code, Some(0), "{}\n{}", what(), ran.stderr);
        let out = lab.path("copied");
        let _ = std::fs::remove_dir_all(&out);
        lab.rbuild(["cp", "x:/out", out.to_str().unwrap()]).ok();
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        assert_eq!([read("m"), read("s")], [read("r"), read("r")], "{}", what());
        assert_eq!(read("own"), read("own2"), "{}", what());
    }
}

/// A command that mounts equal files of two stages, which were built in one mode each.
#[test]
fn equal_commands_of_two_modes_have_one_result_in_a_build() {
    let stage = |name: &str| format!("FROM busybox AS {name}\nRUN mkdir /d && echo equal > /d/f # {name}\n");
    let run = |from: &str| {
        format!(
            "FROM busybox AS of-{from}\nRUN --mount=type=bind,from={from},source=/d,target=/d \
             cat /d/f /proc/sys/kernel/random/uuid > /r\n"
        )
    };
    for (first, second) in WAYS {
        let lab = Lab::new();
        let one = format!("{}{}", stage("a"), run("a"));
        // Its layer is packed after the other mode has run the command itself.
        build(&lab, first, &one, &["-o", "type=tar,dest=../one.tar"]).ok();
        build(&lab, second, &format!("{}{}", stage("b"), run("b")), &["-t", "y"]).ok();
        build(&lab, first, &one, &["-t", "x"]).ok();
        let both = format!(
            "{}{}{}{}FROM busybox\nCOPY --from=of-a /r /1\nCOPY --from=of-b /r /2\nRUN cmp /1 /2\n",
            stage("a"),
            stage("b"),
            run("a"),
            run("b")
        );
        build(&lab, second, &both, &["-t", "z"]).ok();
    }
}

/// A copy that was made again, together with an equal one of another stage, while the other mode
/// still has its first result.
#[test]
fn a_copy_with_newer_equal_files_is_not_taken_from_another_mode() {
    let copy = "FROM scratch\nCOPY --from=busybox /bin/busybox /x\n";
    let equal = "FROM busybox AS changed\nRUN echo z > /z\nFROM scratch\nCOPY --from=changed /bin/busybox /x\n";
    for (first, second) in WAYS {
        let lab = Lab::new();
        build(&lab, second, equal, &["-t", "e"]).ok();
        build(&lab, first, copy, &["-t", "x"]).ok();
        build(&lab, second, copy, &["--no-cache", "-t", "y"]).ok();
        build(&lab, second, equal, &["--no-cache", "-t", "e"]).ok();
        build(&lab, second, copy, &["-o", "type=tar,dest=../o.tar"]).ok();
        assert!(listing(&std::fs::read(lab.path("o.tar")).unwrap()).iter().any(|line| line.contains('x')));
    }
}

/// The namespace of `userns` lacks the user, and its commands see no devices.
#[test]
fn files_that_a_mode_cannot_create_are_not_adopted() {
    for step in ["touch /f && { chown 2000000 /f || true; }", "touch /f && { mknod /d c 1 3 || true; }"] {
        let lab = Lab::new();
        let file = format!("FROM busybox\nRUN {step}\n");
        build(&lab, "single-id", &file, &["-t", "x"]).ok();
        let more = format!("{file}RUN ls -l / > /seen && cat /seen && test -f /f\n");
        for _ in 0..2 {
            build(&lab, "userns", &more, &["-t", "y"]).ok();
        }
    }
}

/// `single-id` cannot remove files that `userns` created for sub-IDs, and keeps them.
#[test]
fn files_of_sub_ids_are_left_alone_where_one_id_is_mapped() {
    let lab = Lab::new();
    let theirs = "FROM busybox\nRUN --mount=type=cache,target=/c mkdir /c/d && echo big > /c/d/f && chown -R 7:7 /c/d && \
                  mkdir /d && echo f > /d/f && chown -R 7:7 /d\n";
    build(&lab, "userns", theirs, &["-o", "type=tar,dest=o.tar"]).ok();
    let limited = |number: u32, limit: &str| {
        let out = format!("type=tar,dest=../{number}.tar");
        let file = format!("FROM busybox\nRUN echo {number} > /x\n");
        let ran = build(&lab, "single-id", &file, &["-t", "x", "--cache-limit", limit, "-o", &out]).ok();
        assert!(!ran.stderr.contains("could not"), "{}", ran.stderr);
        assert!(lab.path(&format!("{number}.tar")).exists());
    };
    limited(1, "1m");
    limited(2, "1m");
    limited(3, "1");
    // None of these files was changed.
    assert_eq!(build(&lab, "userns", theirs, &["-o", "type=tar,dest=o.tar"]).ok().steps(), (0, 1));
    let prune = |mode: &str, args: &[&str]| {
        lab.rbuild(["--isolation", mode, "prune"].into_iter().chain(args.iter().copied())).ok().stdout
    };
    assert!(!prune("single-id", &[]).contains("Kept"), "the build in userns refers to its tree");
    let report = prune("single-id", &["--keep-storage", "1"]);
    assert!(report.contains("\nKept 2 directory trees with files of other users; repeat this with"), "{report}");
    let report = prune("single-id", &["-a"]);
    assert!(report.contains("\nKept 2 directory trees with files of other users; repeat this with"), "{report}");
    limited(4, "1");
    let report = prune("userns", &["-a"]);
    assert!(!report.contains("Kept"), "{report}");
    for dir in ["trees", "mounts"] {
        assert_eq!(std::fs::read_dir(lab.store().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[test]
fn a_damaged_remainder_is_detected_and_the_step_runs_again() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        let file = "FROM busybox\nRUN date +%N > /r && cat /proc/sys/kernel/random/uuid >> /r\nRUN cp /r /s\n";
        build(&lab, first, file, &["-t", "x"]).ok();
        build(&lab, second, file, &["-t", "x", "--annotation", "a=b"]).ok();
        let mut damaged = 0;
        for tree in entries(lab.store().join("trees")) {
            let Ok(bytes) = std::fs::read(tree.join("remainder")) else { continue };
            // The trees of both modes share the file.
            if damaged % 2 == 0 {
                std::fs::write(tree.join("remainder"), &bytes[..bytes.len() - 1]).unwrap();
            }
            damaged += 1;
        }
        assert!(damaged > 0);
        let check = format!("{file}RUN cmp /r /s\n");
        lab.rbuild(["fsck"]).fails(1, &["refers to missing content"]);
        build(&lab, second, &check, &["-t", "x"]).ok();
        build(&lab, first, &check, &["-t", "x"]).ok();
        lab.rbuild(["fsck", "--repair"]);
        lab.rbuild(["fsck"]).ok();
    }
}

#[test]
fn a_secret_in_a_result_of_the_other_mode_makes_the_step_run_again() {
    let file = "FROM busybox\nRUN --mount=type=secret,id=s cat /run/secrets/s > /s || true\n";
    for (first, second) in WAYS {
        let lab = Lab::new();
        lab.write("secret", "a value of some length");
        let secret = format!("id=s,src={}", lab.ctx().join("secret").display());
        build(&lab, first, file, &["--secret", &secret, "--allow", "secret-in-image", "-t", "x"]).ok();
        let ran = build(&lab, second, file, &["-t", "x", "--explain"]).ok();
        assert!(ran.stderr.contains("contains a secret that this build was not given"), "{first}: {}", ran.stderr);
    }
}

/// `userns` and `chroot` have the same kind of owners.
#[test]
fn root_modes_with_mapped_owners_share_trees() {
    for (first, second) in [("userns", "chroot"), ("chroot", "userns")] {
        let lab = Lab::new();
        let file = "FROM busybox AS a\nRUN echo 1 > /a && chown 3:4 /a\nFROM busybox\nCOPY --from=a /a /a\n";
        build(&lab, first, file, &["-t", "x"]).ok();
        let more =
            format!("{file}COPY --from=a /a /b\nRUN test \"$(stat -c %u:%g /a /b | tr '\\n' ' ')\" = '3:4 3:4 '\n");
        let ran = build(&lab, second, &more, &["-t", "x"]).ok();
        assert_eq!(ran.steps(), (2, 2), "{first} {second}: {}", ran.stderr);
    }
}

/// The mode, owner and name of the device of [`with_device`].
const DEVICE: &str = "600 0:0 d/nul";

/// Writes `dev.tar`, an archive with a device node.
fn with_device() -> Lab {
    let lab = Lab::new();
    lab.sh("mkdir d && mknod -m 644 d/nul c 1 3 && tar -cf dev.tar d && rm -r d").ok();
    lab
}

/// Builds in the isolation mode and asserts that the listing shows the device as given.
#[track_caller]
fn has_device(lab: &Lab, mode: &str, file: &str, steps: (usize, usize), device: &str) {
    let (ran, found, _) = files(lab, mode, file);
    assert_eq!(ran.steps(), steps, "{mode}: {}", ran.stderr);
    let found: Vec<_> = found.iter().filter(|entry| entry.contains("d/nul")).collect();
    assert!(found.len() == 1 && found[0].starts_with(device), "{mode}: {found:?}");
}

/// Without a user namespace, devices are created as device nodes, which commands in a user
/// namespace cannot change.
#[test]
fn root_steps_with_device_nodes_run_again_in_another_mode() {
    let lab = with_device();
    let step = "FROM busybox\nADD dev.tar /\n";
    let more = format!("{step}RUN chmod 600 /d/nul\n");
    has_device(&lab, "chroot", step, (1, 0), "644 0:0 d/nul");
    has_device(&lab, "userns", &more, (2, 0), DEVICE);
    for mode in ["chroot", "userns"] {
        has_device(&lab, mode, &more, (0, 2), DEVICE);
    }
    // Placeholders of devices are used in every mode.
    let other = step.replace(" /\n", " /other/\n");
    has_device(&lab, "userns", &other, (1, 0), "644 0:0 other/d/nul");
    has_device(&lab, "chroot", &other, (0, 1), "644 0:0 other/d/nul");
}

#[test]
fn root_layers_with_device_nodes_are_unpacked_again_in_another_mode() {
    let lab = with_device();
    let archive = lab.path("devices.tar");
    build(&lab, "userns", "FROM busybox\nADD dev.tar /\n", &["-t", "devices"]).ok();
    lab.rbuild(["save", "-o", archive.to_str().unwrap(), "devices"]).ok();
    lab.rbuild(["rmi", "devices"]).ok();
    lab.rbuild(["prune", "-a"]).ok();
    lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
    has_device(&lab, "chroot", "FROM devices\nRUN true\n", (1, 0), "644 0:0 d/nul");
    let change = "FROM devices\nRUN chmod 600 /d/nul\n";
    has_device(&lab, "userns", change, (1, 0), DEVICE);
    has_device(&lab, "chroot", change, (0, 1), DEVICE);
    lab.rbuild(["prune"]).ok();
    has_device(&lab, "userns", "FROM devices\nRUN chmod 600 /d/nul # again\n", (1, 0), DEVICE);
    lab.rbuild(["fsck"]).ok();
}
