//! Explanations of why steps run again, and reuse of unchanged files in a copy.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::{Lab, base, contents};

/// Returns the explanation for the step whose header contains `text`.
fn reason(stderr: &str, text: &str) -> String {
    let number = stderr.lines().find(|l| l.starts_with('#') && l.contains(text)).unwrap_or_else(|| {
        panic!("no step {text:?} in\n{stderr}");
    });
    let head = format!("{} why: ", number.split_whitespace().next().unwrap());
    let line = stderr.lines().find_map(|l| l.strip_prefix(&head));
    line.unwrap_or_else(|| panic!("nothing is said of {text:?} in\n{stderr}")).to_string()
}

const FILE: &str = "FROM base AS builder\nARG VERSION=1.1\nWORKDIR /app\nCOPY . .\nRUN echo $VERSION > v\n\
                    FROM scratch\nCOPY --from=builder /app/v /\n";

#[test]
fn explain_names_the_changed_inputs() {
    let lab = Lab::new();
    lab.rbuild(["import", base("busybox.tar").to_str().unwrap(), "base"]).ok();
    lab.write(".dockerignore", "Dockerfile\n").write("src/a", "1").write("src/gone", "1");
    let build = |args: &[&str]| lab.build(FILE, &[&["--explain"], args].concat()).ok().stderr;
    let first = build(&[]);
    assert_eq!(reason(&first, "COPY . ."), "no earlier build of this step is recorded");
    assert!(reason(&build(&[]), "COPY . .").starts_with("cache hit: no input changed"));
    lab.write("src/a", "2").write("src/b", "1");
    std::fs::remove_file(lab.ctx().join("src/gone")).unwrap();
    let changed = build(&[]);
    assert_eq!(reason(&changed, "COPY . ."), "`src/a` changed; `src/b` was added; `src/gone` was removed");
    assert_eq!(reason(&changed, "RUN echo"), "input [builder 3/4] changed");
    assert!(reason(&changed, "COPY --from").starts_with("cache hit: no input changed"));
    let argument = build(&["--build-arg", "VERSION=1.2"]);
    assert_eq!(reason(&argument, "RUN echo"), "`VERSION` changed from `1.1` to `1.2`");
    assert_eq!(reason(&build(&["--no-cache"]), "RUN echo"), "the cache is disabled for this step");
    lab.rbuild(["import", "-c", "ENV A=1", base("busybox.tar").to_str().unwrap(), "base"]).ok();
    let same_files = build(&["--build-arg", "VERSION=1.2"]);
    assert!(reason(&same_files, "WORKDIR").starts_with("cache hit: no input changed"), "{same_files}");
    assert!(reason(&same_files, "RUN echo").contains("`A` was added: `1`"), "{same_files}");
    // A changed configuration is not a reason, even if there is another reason.
    lab.rbuild(["import", "-c", "LABEL b=2", base("busybox.tar").to_str().unwrap(), "base"]).ok();
    let other = lab.build(&FILE.replace("RUN echo", "RUN echo b"), &["--explain"]).ok().stderr;
    assert!(!other.contains("image `base`"), "{other}");
    lab.build("FROM base\nCOPY src/a /a\n", &["-t", "base"]).ok();
    let moved = reason(&build(&["--build-arg", "VERSION=1.2"]), "WORKDIR");
    assert!(moved.starts_with("image `base` changed: its manifest was ") && moved.contains(" and is "), "{moved}");
    // The explanation is stored in the logs, whether or not it was requested.
    lab.build(&FILE.replace("> v", "> /app/v"), &[]).ok();
    let log = lab.rbuild(["logs", "latest"]).ok().stdout;
    assert!(log.contains("why: the command changed"), "{log}");
    lab.rbuild(["prune", "-a"]).ok();
    assert_eq!(reason(&build(&[]), "COPY . ."), "no earlier build of this step is recorded");
}

#[test]
fn explain_names_files_of_stages_and_mounts() {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("src/a", "1").write("src/b", "1").write("other/x", "1");
    let file = "FROM busybox AS build\nRUN --mount=type=bind,source=src,target=/src --mount=type=bind,source=other,target=/other \\\n\
                cp -r /src /out; cp /other/x /x\nFROM busybox\nCOPY --from=build /out /out/\nCOPY --from=build /x /\n";
    let build = || lab.build(file, &["--explain"]).ok().stderr;
    build();
    lab.write("src/a", "2").write("src/c", "1").write("other/x", "2");
    let changed = build();
    assert_eq!(reason(&changed, " cp -r"), "`other/x`, `src/a` changed; `src/c` was added");
    assert_eq!(reason(&changed, "/out /out/"), "in [build 2/2]: `out/a` changed; `out/c` was added");
    // Back to the original state: the mounted files and the result are still in the store.
    lab.write("src/a", "1").write("other/x", "1");
    std::fs::remove_file(lab.ctx().join("src/c")).unwrap();
    assert!(reason(&build(), " cp -r").starts_with("cache hit: no input changed"));
    // One of them is unchanged, the other is new.
    lab.write("src/a", "2").write("src/c", "1").write("other/x", "3");
    assert_eq!(reason(&build(), " cp -r"), "`other/x`, `src/a` changed; `src/c` was added");
}

#[test]
fn a_failed_build_keeps_the_explanation_baseline() {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("a", "1");
    let file = "FROM busybox\nCOPY . /a/\nRUN cat /a/a\nRUN echo last\n";
    lab.build(file, &[]).ok();
    lab.write("a", "2");
    lab.build(&file.replace("RUN cat", "RUN false; false #"), &[]).fails(1, &[]);
    let again = lab.build(file, &["--explain"]).ok().stderr;
    assert_eq!(reason(&again, "RUN echo last"), "input [3/4] changed");
}

/// Returns the inodes of the stored copies of a file, by content.
fn inodes(store: &Path, name: &str) -> HashMap<String, u64> {
    let mut found = HashMap::new();
    let mut open = vec![store.join("trees")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else if path.file_name().is_some_and(|n| n == name) {
                let tree = path.strip_prefix(store.join("trees")).unwrap().components().next().unwrap();
                found.insert(format!("{:?}", tree), std::fs::symlink_metadata(&path).unwrap().ino());
            }
        }
    }
    found
}

#[test]
fn unchanged_files_of_a_copy_are_written_once() {
    let (lab, fresh) = (Lab::new(), Lab::new());
    // Without a following command, the copy would be stored as a layer only.
    let file = "FROM busybox\nRUN mkdir -p /app/sub && ln -s sub /app/to && echo below > /app/sub/covered\nCOPY . /app/to/\n\
         RUN true\n";
    for lab in [&lab, &fresh] {
        lab.write(".dockerignore", "Dockerfile\n").write("same", "1").write("dir/same2", "2").write("changed", "3");
        lab.write("covered", "by the copy");
        symlink("same", lab.ctx().join("link")).unwrap();
        std::fs::hard_link(lab.ctx().join("same"), lab.ctx().join("hard")).unwrap();
        lab.write("dir/run.sh", "#!/bin/sh\n");
    }
    // Timestamps of files that were written very recently are not trusted.
    std::thread::sleep(Duration::from_millis(3100));
    lab.build(file, &[]).ok();
    let before = inodes(&lab.store(), "same2");
    lab.write("changed", "other");
    lab.build(file, &[]).ok();
    let after = inodes(&lab.store(), "same2");
    let overlays = lab.links_copies();
    // The second copy consists of changes to the first one.
    assert_eq!((before.len(), after.len()), (1, if overlays { 1 } else { 2 }));
    let one = after.values().collect::<std::collections::HashSet<_>>().len() == 1;
    assert_eq!(one, overlays, "{after:?}");
    // Only hard links of the context are hard links in the result.
    let hard = |name: &str| inodes(&lab.store(), name).into_values().collect::<std::collections::HashSet<_>>().len();
    assert_eq!(hard("changed"), 2);
    // The result is identical to one built without the earlier copy.
    fresh.write("changed", "other");
    for name in ["same", "dir/same2", "changed", "covered", "dir/run.sh", "dir", "."] {
        let time = std::fs::metadata(lab.ctx().join(name)).unwrap().modified().unwrap();
        std::fs::File::open(fresh.ctx().join(name)).unwrap().set_modified(time).unwrap();
    }
    fresh.build(file, &[]).ok();
    let tar = |lab: &Lab| {
        let out = lab.path("out.tar");
        let mut command = lab.command(["build", "-q", "-o", &format!("type=tar,dest={}", out.display()), "."]);
        lab.run_with(&mut command, &[("SOURCE_DATE_EPOCH", "1000")]).ok();
        std::fs::read(out).unwrap()
    };
    let (ours, theirs) = (tar(&lab), tar(&fresh));
    assert_eq!(contents(&ours)["app/sub/changed"], b"other");
    assert_eq!(contents(&ours)["app/sub/covered"], b"by the copy");
    assert!(ours == theirs, "the same files in another tar");
}

/// Several sources that cover each other's files.
#[test]
fn later_sources_overwrite_earlier_ones() {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n");
    for (dir, names) in
        [("one", ["f", "both/f", "only", "was-file", "alone"]), ("two", ["f", "both/f", "both/g", "was-link", "h"])]
    {
        names.iter().for_each(|name| {
            lab.write(&format!("{dir}/{name}"), dir);
        });
    }
    symlink("f", lab.ctx().join("one/was-link")).unwrap();
    symlink("f", lab.ctx().join("two/was-file")).unwrap();
    std::fs::hard_link(lab.ctx().join("two/h"), lab.ctx().join("two/only")).unwrap();
    lab.write("many/1", "1").write("many/2", "2");
    std::thread::sleep(Duration::from_millis(3100));
    let file = "FROM busybox\nRUN mkdir /x && echo below > /x/f\nCOPY one two /x/\nCOPY many/* /m/\nRUN true\n";
    let check = |two: &str| {
        let out = lab.build_local(file, &[]);
        let read = |name: &str| std::fs::read_to_string(out.join("x").join(name)).unwrap();
        for name in ["f", "both/f", "both/g", "was-link", "h", "only", "was-file"] {
            assert_eq!(read(name), two, "{name}");
        }
        assert_eq!(read("alone"), "one");
        let stat = |name: &str| std::fs::symlink_metadata(out.join("x").join(name)).unwrap();
        assert!(stat("was-link").is_file() && stat("was-file").is_symlink());
        assert_eq!(stat("h").ino(), stat("only").ino());
    };
    check("two");
    // One source changes: unchanged files are reused, and the result is the same as without reuse.
    lab.write("two/f", "3").write("many/1", "3");
    let out = lab.build_local(file, &[]);
    assert_eq!(std::fs::read_to_string(out.join("x/f")).unwrap(), "3");
    lab.write("two/f", "two");
    check("two");
    let overlays = lab.links_copies();
    for (name, one) in [("alone", overlays), ("2", overlays), ("1", false)] {
        let found = inodes(&lab.store(), name);
        assert!(found.len() > 1 || one, "{name}: {found:?}");
        let inodes: std::collections::HashSet<u64> = found.into_values().collect();
        assert_eq!(inodes.len() == 1, one, "{name}: {inodes:?}");
    }
    // Several hard links to one file, all copied to the same destination.
    let last = lab.build_local("FROM scratch\nCOPY two/[ho]* /x\n", &[]);
    assert_eq!(std::fs::read_to_string(last.join("x")).unwrap(), "two");
    // A directory and a file of the same name are an error in either order.
    lab.write("dir/clash/in", "1").write("file/clash", "1");
    let clash = |sources: &str, message: &str| {
        lab.build(&format!("FROM scratch\nCOPY {sources} /x/\n"), &[]).fails(1, &["/x/clash", message]);
    };
    clash("file dir", "is a file in the image and a directory in the source");
    clash("dir file", "is a directory in the image");
}

#[test]
fn hard_linked_files_are_not_modified_in_place() {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("same", "1").write("changed", "1");
    std::thread::sleep(Duration::from_millis(3100));
    let file = "FROM busybox\nCOPY . /app/\nRUN echo 2 >> /app/same; chmod 700 /app/same\n";
    lab.build(file, &[]).ok();
    lab.write("changed", "2");
    lab.build(file, &[]).ok();
    // The first copy again, from the cache.
    lab.write("changed", "1");
    let out = lab.build_local("FROM busybox\nCOPY . /app/\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("app/same")).unwrap(), "1");
    assert_eq!(std::fs::metadata(out.join("app/same")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn timings_writes_an_html_page() {
    let lab = Lab::new();
    lab.write("big", vec![7u8; 300_000]);
    let file = "FROM busybox AS a\nRUN sleep 0.3\nFROM busybox\nCOPY big /<big>\nCOPY --from=a /etc/passwd /p\nRUN sleep 0.2\n";
    lab.build(file, &["-q", "--timings", "t.html", "-t", "x"]).ok();
    let page = std::fs::read_to_string(lab.ctx().join("t.html")).unwrap();
    for part in [
        "<title>rbuild: x:latest",
        "RUN sleep 0.3",
        "class=\"done critical\"",
        "/&lt;big&gt; <em>300kB</em>",
        "no earlier build of this step is recorded",
    ] {
        assert!(page.contains(part), "{part:?} is missing in\n{page}");
    }
    // Fully cached builds and failing builds also get a page.
    lab.build(file, &["-q", "--timings", "t.html", "-t", "x"]).ok();
    assert!(std::fs::read_to_string(lab.ctx().join("t.html")).unwrap().contains("5 steps, 5 from the cache"));
    lab.build("FROM busybox\nRUN echo no; exit 3\n", &["-q", "--timings", "t.html"]).fails(1, &["exited with code 3"]);
    let page = std::fs::read_to_string(lab.ctx().join("t.html")).unwrap();
    for part in ["<h2>Failure</h2>", "exited with code 3", "   2  RUN echo no; exit 3", ">no</pre>", "class=\"failed\""]
    {
        assert!(page.contains(part), "{part:?} is missing in\n{page}");
    }
    assert!(!page.contains("Critical path"), "{page}");
    // Fully cached builds are logged.
    lab.build(file, &["-q", "-t", "y"]).ok();
    let list = lab.rbuild(["logs"]).ok().stdout;
    assert!(list.lines().nth(1).unwrap().ends_with("y:latest"), "{list}");
}

#[test]
fn layers_are_packed_while_steps_run() {
    let lab = Lab::new();
    lab.write("data", vec![1u8; 1 << 20]);
    lab.build("FROM busybox\nCOPY data /\nRUN ls /data; sleep 3\n", &["-t", "x", "--timings", "t.html"]).ok();
    // The layer of the copy was packed before the command ended.
    let trees = std::fs::read_dir(lab.store().join("trees")).unwrap().flatten();
    let made = trees.filter_map(|tree| std::fs::metadata(tree.path().join("layer-uncompressed.json")).ok());
    let mut times: Vec<_> = made.map(|stat| stat.modified().unwrap()).collect();
    times.sort();
    assert_eq!(times.len(), 2, "{times:?}");
    assert!(times[1].duration_since(times[0]).unwrap() > Duration::from_millis(500), "{times:?}");
}

#[test]
fn verify_builds_twice_and_names_the_first_difference() {
    let lab = Lab::new();
    lab.write("f", "1");
    let verify = |file: &str, epoch: &str| {
        lab.write("Dockerfile", file);
        let mut command = lab.command(["build", "--verify", "-t", "x", "-o", "type=oci,dest=x.tar"]);
        let env = [("SOURCE_DATE_EPOCH", epoch)];
        lab.run_with(&mut command, if epoch.is_empty() { &[] } else { &env })
    };
    let file = "FROM busybox AS a\nWORKDIR /w\nCOPY f ./\nRUN echo 1 > one\nFROM busybox\nCOPY --from=a /w /w\nRUN mkdir /d && touch /d/x\n";
    let ran = verify(file, "1000").ok();
    assert!(ran.stderr.contains("verified: two builds without cache produced identical images"), "{}", ran.stderr);
    assert_eq!((ran.stderr.matches("] RUN echo 1").count(), ran.steps().1), (2, 0), "{}", ran.stderr);
    assert!(!ran.stderr.contains("SOURCE_DATE_EPOCH"), "{}", ran.stderr);
    assert!(lab.ctx().join("x.tar").exists());
    lab.rbuild(["inspect", "x"]).ok();
    assert_eq!(lab.rbuild(["images", "-q"]).ok().stdout.lines().count(), 2, "the trials leave no image");
    lab.sh("$RB rmi x && rm x.tar").ok();
    // The times of files that steps write are limited in both builds.
    let unset = verify(file, "").ok();
    assert!(
        unset.stderr.contains("note: SOURCE_DATE_EPOCH is not set; no time in the image is later"),
        "{}",
        unset.stderr
    );
    lab.sh("$RB rmi x && rm x.tar").ok();
    let random = file.replace("touch /d/x", "head -c 100000 /dev/urandom > /d/x; rm -f /d/y");
    let place = " --> Dockerfile:7:1\n  |\n7 | RUN mkdir /d && head -c 100000";
    let differs = verify(&random, "1000");
    differs.fails(1, &["/d/x in layer 3 of 3: content differs from byte", place, "\nsecond build\n"]);
    // The second build has failed, as its difference shows.
    assert_eq!(lab.rbuild(["logs", "-n", "2", "--format", "{{.Status}}"]).ok().stdout, "failed\ndone\n");
    verify(&file.replace("touch /d/x", "date > /d/x"), "1000").fails(1, &["/d/x in layer 3 of 3"]);
    // A failed verification names nothing and writes nothing.
    lab.rbuild(["inspect", "x"]).fails(1, &["image `x` not found"]);
    assert!(!lab.ctx().join("x.tar").exists());
    assert_eq!(lab.rbuild(["images", "-q"]).ok().stdout.lines().count(), 1);
    let again = lab.rbuild(["build", "--verify", "--explain", "--no-cache", "-o", "bin"]);
    assert!(again.stderr.contains("why: the cache is disabled for this step"), "{}", again.stderr);
    assert!(!lab.ctx().join("bin").exists());
    lab.rbuild(["build", "--verify", "-"]).fails(2, &["standard input only once"]);
    // The clock of the second build is not that of its log.
    let logs = lab.rbuild(["logs"]).ok().stdout;
    assert!(logs.contains("-second") && !logs.contains("hours ago"), "{logs}");
    // The verification neither disturbs the next build nor provides cache hits for it.
    assert_eq!(lab.build(file, &[]).ok().steps(), (5, 0));
}
