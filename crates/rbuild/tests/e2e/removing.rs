//! Commands that remove images, containers and logs, and the objects that they keep.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use crate::lab::{Lab, base, exists};
use crate::run_command::on_terminal;

fn images(lab: &Lab) -> Vec<String> {
    let listed = lab.rbuild(["images", "-a", "--format", "{{.Repository}}:{{.Tag}}"]).ok().stdout;
    let mut names: Vec<String> = listed.lines().map(str::to_string).collect();
    names.sort();
    names
}

#[test]
fn image_prune_removes_images_and_keeps_the_cache() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN echo x > /x\n";
    lab.build(dockerfile, &["-t", "a"]).ok();
    lab.build("FROM busybox\nRUN echo y > /y\n", &["-t", "a"]).ok();
    lab.rbuild(["create", "--name", "c", "busybox"]).ok();
    assert_eq!(images(&lab), ["<none>:<none>", "a:latest", "busybox:latest"]);
    let output = lab.rbuild(["image", "prune", "-f"]).ok().stdout;
    assert!(
        output.starts_with("Deleted Images:\ndeleted: sha256:") && output.contains("\n\nTotal reclaimed space: "),
        "{output}"
    );
    assert_eq!(images(&lab), ["a:latest", "busybox:latest"]);
    // With -a, only images used by a container are left.
    let output = lab.rbuild(["image", "prune", "-a", "-f"]).ok().stdout;
    assert!(output.contains("untagged: a:latest\ndeleted: sha256:"), "{output}");
    assert_eq!(images(&lab), ["busybox:latest"]);
    assert_eq!(lab.rbuild(["image", "prune", "-a"]).ok().stdout, "Total reclaimed space: 0B\n");
    assert_eq!(lab.build(dockerfile, &["-t", "a"]).ok().steps().0, 0);
    lab.rbuild(["image", "prune", "-a", "--filter", "until=24h"]).ok();
    lab.rbuild(["image", "prune", "-a", "--filter", "label=none"]).ok();
    assert_eq!(images(&lab), ["a:latest", "busybox:latest"]);
    lab.rbuild(["image", "prune", "--filter", "x=y"]).fails(2, &["unknown filter"]);
}

#[test]
fn image_prune_lists_each_image_once_by_its_id() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo x > /x\n");
    lab.rbuild(["build", "-o", "type=image,compression=zstd,name=a"]).ok();
    lab.rbuild(["build", "-t", "b", "-t", "d"]).ok();
    lab.rbuild(["tag", "busybox", "c"]).ok();
    let id = |name: &str| lab.rbuild(["inspect", "-f", "{{.Id}}", name]).ok().stdout;
    let (built, busybox) = (id("a"), id("busybox"));
    assert_eq!(id("b"), built);
    let said = lab.rbuild(["image", "prune", "-a"]).ok().stdout;
    let mut deleted: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("deleted: ")).collect();
    let mut expected = [built.trim(), busybox.trim()];
    deleted.sort();
    expected.sort();
    assert_eq!(deleted, expected, "{said}");
    assert_eq!(said.matches("untagged: ").count(), 5, "{said}");
}

#[test]
fn system_prune_counts_the_images_that_it_removes() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN echo x > /x\n", &["-t", "a", "-t", "b"]).ok();
    lab.rbuild(["create", "--name", "c", "busybox"]).ok();
    let kept = lab.rbuild(["system", "prune", "-f"]).ok().stdout;
    assert!(kept.starts_with("Deleted Containers:\n") && kept.contains("\nRemoved 0 images, "), "{kept}");
    let all = lab.rbuild(["system", "prune", "-a", "-f"]).ok().stdout;
    assert!(all.starts_with("Deleted Images:\nuntagged: ") && all.contains("\nRemoved 2 images, "), "{all}");
    assert_eq!(images(&lab), [""; 0]);
    lab.rbuild(["system", "prune", "--filter", "x=y"]).fails(2, &["unknown filter"]);
}

/// The last part of the removal needs the store for itself: without it, nothing is removed.
#[test]
fn system_prune_beside_a_build_removes_nothing() {
    let lab = Lab::new();
    lab.rbuild(["create", "--name", "c", "busybox"]).ok();
    let build = lab.command(["build", "--no-cache", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut build = build.unwrap();
    build.stdin.take().unwrap().write_all(b"FROM busybox\nRUN echo begun; sleep 600\n").unwrap();
    let mut lines = BufReader::new(build.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("begun")), "the command runs");
    for args in [&["system", "prune", "-a", "-f"][..], &["system", "prune", "-f", "--filter", "until=1s"]] {
        lab.rbuild(args.iter().copied()).fails(1, &["the store is in use by"]);
    }
    lab.rbuild(["prune", "--keep-storage", "1k"]).fails(1, &["the store is in use by"]);
    lab.sh(&format!("kill {}", build.id())).ok();
    build.wait().unwrap();
    assert_eq!(images(&lab), ["busybox:latest"]);
    assert!(lab.rbuild(["ps", "-a"]).ok().stdout.contains(" c"));
    lab.rbuild(["rm", "c"]).ok();
}

#[test]
fn system_prune_with_filters_removes_old_images_without_a_name() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN echo x > /x\n", &["-t", "a"]).ok();
    lab.build("FROM busybox\nRUN echo y > /y\n", &["-t", "a"]).ok();
    lab.rbuild(["system", "prune", "-f", "--filter", "until=1h"]).ok();
    assert_eq!(images(&lab), ["<none>:<none>", "a:latest", "busybox:latest"]);
    std::thread::sleep(Duration::from_millis(2100));
    lab.rbuild(["system", "prune", "-f", "--filter", "until=1s", "--keep-storage", "1g"]).ok();
    assert_eq!(images(&lab), ["a:latest", "busybox:latest"]);
}

#[test]
fn a_named_image_outlives_an_unnamed_one_with_its_id() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN echo x > /x\n";
    lab.write("Dockerfile", dockerfile);
    let build = |form: &str| lab.rbuild(["build", "-o", &format!("type=image,compression={form}")]).ok();
    build("gzip");
    lab.build(dockerfile, &["-t", "kept"]).ok();
    build("zstd");
    for prune in [["prune", "-f"], ["image-prune", "-f"]] {
        lab.rbuild(prune).ok();
        assert_eq!(images(&lab), ["busybox:latest", "kept:latest"]);
        lab.rbuild(["run", "kept", "cat", "/x"]).ok();
    }
}

#[test]
fn containers_are_listed_and_pruned_as_in_docker() {
    let lab = Lab::new();
    let headings = "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES\n";
    assert_eq!(lab.rbuild(["container", "ls"]).ok().stdout, headings);
    let id = lab.rbuild(["create", "--name", "c", "busybox"]).ok().stdout;
    // Nothing of the container is running.
    assert_eq!(lab.rbuild(["container", "ls"]).ok().stdout, headings);
    assert_eq!(lab.rbuild(["ps", "-a", "-q"]).ok().stdout.trim(), &id[..12]);
    let listed = lab.rbuild(["container", "ls", "-a", "--format", "{{.ID}} {{.Image}} {{.Names}}", "--no-trunc"]).ok();
    assert_eq!(listed.stdout, format!("{} busybox c\n", id.trim()));
    lab.rbuild(["create", "--name", "d", "--entrypoint", "sh", "busybox", "-c", "sleep 1; sleep 2"]).ok();
    let listed = |args: &[&str]| {
        let args = [&["ps", "-a", "--format", "{{.Names}} {{.Command}} {{.RunningFor}}"], args].concat();
        let mut lines: Vec<String> = lab.rbuild(args).ok().stdout.lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    let ago = |line: &str| line.ends_with(" ago");
    let lines = listed(&[]);
    assert!(lines[1].starts_with("d \"sh -c 'sleep 1; sle…\" ") && lines.iter().all(|line| ago(line)), "{lines:?}");
    let lines = listed(&["--no-trunc"]);
    assert!(lines[1].starts_with("d \"sh -c 'sleep 1; sleep 2'\" "), "{lines:?}");
    lab.rbuild(["rm", "d"]).ok();
    let output = lab.rbuild(["container", "prune", "-f"]).ok().stdout;
    // Its record.
    assert!(output.starts_with(&format!("Deleted Containers:\n{id}\nTotal reclaimed space: ")), "{output}");
    assert!(!output.ends_with(" 0B\n"), "{output}");
    assert_eq!(lab.rbuild(["container", "ls", "-aq"]).ok().stdout, "");
    assert_eq!(lab.rbuild(["container", "prune"]).ok().stdout, "Total reclaimed space: 0B\n");
    assert_eq!(images(&lab), ["busybox:latest"]);
    lab.rbuild(["container", "tag", "a", "b"]).fails(2, &["container tag"]);
}

#[test]
fn rmi_continues_after_errors_and_force_ignores_missing() {
    let lab = Lab::new();
    let names = ["a", "b", "c"];
    let tag = || names.iter().for_each(|name| drop(lab.rbuild(["tag", "busybox", name]).ok()));
    tag();
    let ran = lab.rbuild(["rmi", "a", "none", "b", "nope"]).fails(1, &["`none`", "`nope`"]);
    assert_eq!(ran.stdout, "Untagged: a:latest\nUntagged: b:latest\n");
    assert_eq!(images(&lab), ["busybox:latest", "c:latest"]);
    lab.rbuild(["rmi", "-f", "none"]).ok();
    assert_eq!(lab.rbuild(["rmi", "-f", "none", "c"]).ok().stdout, "Untagged: c:latest\n");
    // An ID with names in several repositories needs -f, which removes all of them.
    tag();
    let id = lab.rbuild(["images", "-q", "busybox"]).ok().stdout.trim().to_string();
    lab.rbuild(["rmi", &id])
        .fails(1, &["has names in several repositories: ", "hint: remove them one by one, or all with -f"]);
    let output = lab.rbuild(["rmi", "--force", &id]).ok().stdout;
    assert_eq!((output.matches("Untagged: ").count(), output.matches("Deleted: ").count()), (4, 1), "{output}");
    assert!(images(&lab).is_empty());
}

#[test]
fn rmi_by_id_removes_all_names_in_one_repository() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN true\n", &["-t", "app:1", "-t", "app:2", "-t", "app"]).ok();
    let id = lab.rbuild(["images", "-q", "app:1"]).ok().stdout.trim().to_string();
    let output = lab.rbuild(["rmi", &id]).ok().stdout;
    assert_eq!((output.matches("Untagged: app:").count(), output.matches("Deleted: ").count()), (3, 1), "{output}");
    assert_eq!(images(&lab), ["busybox:latest"]);
}

/// One configuration with layers in two forms: two manifests with one ID.
#[test]
fn rmi_by_id_removes_every_image_that_has_it() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN echo hi > /x\n";
    let twice = || {
        lab.build(file, &["-t", "a"]).ok();
        let gzip = "type=oci,compression=gzip,force-compression=true,dest=gz.tar";
        lab.build(file, &["-o", gzip, "-t", "a"]).ok();
        lab.rbuild(["load", "-i", "gz.tar"]).ok();
    };
    twice();
    lab.rbuild(["tag", "a", "b"]).ok();
    let ids = lab.rbuild(["images", "-a", "-q", "--no-trunc"]).ok().stdout;
    let id = lab.rbuild(["images", "-q", "--no-trunc", "a"]).ok().stdout.trim().to_string();
    assert_eq!(ids.lines().filter(|other| *other == id).count(), 3, "{ids}");
    lab.rbuild(["rmi", &id])
        .fails(1, &["has names in several repositories: a:latest, b:latest\nhint: remove them one by one"]);
    let output = lab.rbuild(["rmi", "-f", &id[..20]]).ok().stdout;
    assert_eq!(output, format!("Untagged: a:latest\nUntagged: b:latest\nDeleted: {id}\n"));
    assert_eq!(images(&lab), ["busybox:latest"]);
    // A dangling image still has the ID.
    twice();
    assert_eq!(lab.rbuild(["rmi", "a"]).ok().stdout, "Untagged: a:latest\n");
    assert_eq!(lab.rbuild(["rmi", &id]).ok().stdout, format!("Deleted: {id}\n"));
    lab.rbuild(["rmi", &id]).fails(1, &["not found in the local store"]);
}

#[test]
fn logs_are_bounded_and_pruned_with_the_cache() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    lab.build("FROM busybox\nRUN head -c 20000000 /dev/zero | tr '\\0' x | fold -w 99; echo; echo the end\n", &["-q"])
        .ok();
    let shown = lab.rbuild(["logs", "latest"]).ok().stdout;
    assert!(shown.ends_with("\n[log truncated at 16 MiB]\n"), "{}", &shown[shown.len() - 200..]);
    assert!((16 << 20..17 << 20).contains(&shown.len()), "{}", shown.len());
    let df = lab.rbuild(["df"]).ok().stdout;
    let logs = df.lines().find(|l| l.starts_with("Build logs")).unwrap_or_else(|| panic!("{df}"));
    assert!(logs.contains(" 1 ") && logs.ends_with("MB (100%)"), "{df}");
    lab.rbuild(["prune"]).ok();
    assert!(exists(lab.store().join("logs")));
    lab.rbuild(["prune", "-a"]).ok();
    assert!(!exists(lab.store().join("logs")));
    assert_eq!(lab.rbuild(["logs"]).ok().stdout.lines().count(), 1);
}

/// Typed answers to the question before a removal, each with the exit code and true if the removal
/// takes place.
const ANSWERS: [(&str, i32, bool); 7] = [
    ("n", 1, false),
    ("", 1, false),
    ("yes", 1, false),
    ("^D", 1, false),
    ("^C", 130, false),
    ("y", 0, true),
    (" Y ", 0, true),
];

#[test]
fn a_terminal_is_asked_before_images_are_lost() {
    for (command, removes) in [
        ("$RB image prune -a", "all images that no container uses"),
        ("$RB system prune -a", "all containers that are not running, all images that no container uses"),
        ("./docker image prune -a", "all images that no container uses"),
    ] {
        let lab = Lab::new();
        lab.sh("ln -s $RB docker").ok();
        for (answer, code, is_removed) in ANSWERS {
            if images(&lab).is_empty() {
                lab.rbuild(["import", base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
            }
            let (ended, shown) = on_terminal(&lab, command, &format!("wait:[y/N] \n{answer}\n"));
            assert_eq!((ended, images(&lab).is_empty()), (Some(code), is_removed), "{command}, {answer:?}: {shown}");
            assert!(shown.contains(&format!("This removes {removes}")), "{shown}");
            assert_eq!(shown.contains("the removal was canceled"), code == 1, "{command}, {answer:?}: {shown}");
        }
    }
}

/// Under its own name, rbuild asks only before images are lost. As docker, it asks before each
/// removal.
#[test]
fn a_terminal_is_asked_before_a_prune_by_docker_only() {
    let lab = Lab::new();
    lab.sh("ln -s $RB docker").ok();
    for verb in ["prune", "prune -a", "system prune", "image prune", "builder prune", "container prune"] {
        let (code, shown) = on_terminal(&lab, &format!("$RB {verb}"), "");
        assert!(code == Some(0) && !shown.contains("[y/N]"), "{verb}: {shown}");
        for (answer, want) in [("n", 1), ("^D", 1), ("^C", 130), ("y", 0)] {
            lab.rbuild(["create", "busybox"]).ok();
            lab.build("FROM busybox\nRUN echo x > /x\n", &[]).ok();
            let (code, shown) = on_terminal(&lab, &format!("./docker {verb}"), &format!("wait:[y/N] \n{answer}\n"));
            assert_eq!(code, Some(want), "{verb}, {answer:?}: {shown}");
            assert_eq!(shown.contains("eclaimed space"), want == 0, "{verb}, {answer:?}: {shown}");
        }
        let (code, shown) = on_terminal(&lab, &format!("./docker {verb} -f"), "");
        assert!(code == Some(0) && !shown.contains("[y/N]"), "{verb} -f: {shown}");
    }
}
