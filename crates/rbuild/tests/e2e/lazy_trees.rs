//! Copies that are used only in an image are stored as their layer and unpacked when their files
//! are first needed.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::lab::Lab;

const COPY: &str =
    "FROM busybox\nRUN mkdir -p /app/below && echo covered > /app/b && chmod 711 /\nCOPY --chown=7:8 . /app/\n";

/// A context with every kind of file that a copy supports.
fn scene() -> Lab {
    let lab = Lab::new();
    lab.write(".dockerignore", "Dockerfile\n").write("b", "b").write("empty", "").write("below/x", "x");
    for i in 0..300 {
        lab.write(&format!("many/{i}"), format!("{i}"));
    }
    lab.write("large", vec![3u8; 3_000_000]).write("set-id", "s");
    std::fs::set_permissions(lab.ctx().join("set-id"), PermissionsExt::from_mode(0o4755)).unwrap();
    symlink("b", lab.ctx().join("link")).unwrap();
    std::fs::hard_link(lab.ctx().join("b"), lab.ctx().join("hard")).unwrap();
    lab
}

/// Returns the directories of the trees that contain the file `app/large`.
fn trees_with_files(lab: &Lab) -> Vec<PathBuf> {
    let trees = std::fs::read_dir(lab.store().join("trees")).unwrap().map(|e| e.unwrap().path());
    trees.filter(|tree| tree.join("fs/app/large").exists()).collect()
}

/// Returns true if copies are stored as layers. Snapshots made by copying need the files of a copy
/// on disk.
pub fn stores_as_layers() -> bool {
    std::env::var_os("RBUILD_SNAPSHOTS").is_none_or(|way| way != "copy")
        && std::env::var_os("RBUILD_ISOLATION").is_none_or(|mode| mode != "chroot")
}

#[test]
fn a_copy_used_only_in_an_image_is_stored_as_its_layer() {
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    assert_eq!(trees_with_files(&lab).len(), usize::from(!stores_as_layers()));
    // The layer is identical to the one packed from files. `--timings` measures layers, which
    // requires the files on disk.
    let packed = lab.top_layer("x");
    lab.rbuild(["prune", "-a"]).ok();
    lab.build(COPY, &["-t", "y", "--timings", "t.html"]).ok();
    assert_eq!(trees_with_files(&lab).len(), 1);
    let mut written = lab.top_layer("y");
    // The second context has one more page.
    written.retain(|line| !line.ends_with("t.html"));
    assert_eq!(packed, written);
}

#[test]
fn lazy_trees_are_materialized_on_first_use() {
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    let look = "stat -c '%n %a %u %g %h %s %F' /app/* /app / && cat /app/b /app/hard /app/below/x /app/many/7 && \
                readlink /app/link && cmp /app/b /app/hard && sha256sum /app/large";
    // The first use of the files is a command, a copy, a mount, another copy or a tar.
    let users = [
        format!("{COPY}RUN ({look}) > /out\n"),
        format!("{COPY}FROM scratch\nCOPY --from=0 /app /app\n"),
        format!("{COPY}FROM busybox\nRUN --mount=from=0,target=/in cp -a /in/app /app\n"),
        format!("{COPY}COPY --chmod=600 b /app/again\n"),
        COPY.to_string(),
    ];
    for file in &users {
        let (again, new) = (scene(), scene());
        again.build(COPY, &["-t", "x"]).ok();
        let (ours, theirs) = (again.build_listing(file), new.build_listing(file));
        assert_eq!(ours, theirs, "{file}");
        assert!(ours.len() > 300, "{ours:?}");
    }
    let out = lab.build_local(&users[0], &[]);
    let text = std::fs::read_to_string(out.join("out")).unwrap();
    for line in ["/app/set-id 4755 7 8 1 1 regular file", "/app/hard 644 7 8 2 1 regular file", "/ 711 0 0"] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_lazy_tree_outlives_its_image_and_is_pruned_with_the_cache() {
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    lab.rbuild(["rmi", "x"]).ok();
    lab.rbuild(["prune"]).ok();
    lab.rbuild(["fsck"]).ok();
    let again = lab.build(&format!("{COPY}RUN test -s /app/large\n"), &["-t", "y"]).ok();
    assert_eq!(again.steps(), (1, 2), "{}", again.stderr);
    // If the blob is missing and the files are not on disk, the record is dropped and the copy is
    // made again.
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    let largest = "ls -S $RBUILD_ROOT/blobs/sha256/* | head -1 | xargs rm -f";
    lab.sh(largest).ok();
    let again = lab.build(&format!("{COPY}RUN test -s /app/large\n"), &["-t", "y"]).ok();
    assert_eq!(again.steps(), if stores_as_layers() { (2, 1) } else { (1, 2) }, "{}", again.stderr);
}

#[test]
fn materialized_files_are_unpacked_again_after_a_restart() {
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    lab.build(&format!("{COPY}RUN test -s /app/large\n"), &["-t", "y"]).ok();
    let tree = trees_with_files(&lab).pop().unwrap();
    if !stores_as_layers() {
        assert!(!tree.join("folded.json").exists(), "the files were never packed alone");
        return;
    }
    // The state after a power cut: a note of an earlier boot, and incomplete files.
    let note = std::fs::read_to_string(tree.join("folded.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&note).unwrap();
    let boot = value["boot"].as_str().unwrap();
    std::fs::write(tree.join("folded.json"), note.replace(boot, "another")).unwrap();
    let ran = lab.build(&format!("{COPY}RUN test $(cat /app/many/* | wc -c) = 790\n"), &["-t", "z"]).ok();
    assert_eq!(ran.steps(), (1, 2), "{}", ran.stderr);
    assert!(std::fs::read_to_string(tree.join("folded.json")).unwrap().contains(boot));
}

#[test]
fn a_context_that_keeps_changing_fails_a_lazy_copy() {
    let lab = scene();
    lab.build(COPY, &["-t", "x"]).ok();
    // One file of many changes constantly.
    let script = "(while [ ! -e $LAB/stop ]; do date +%N > many/7; done) & \
                  for i in 1 2 3 4 5 6; do $RB build -q -t z . ; done; touch $LAB/stop; wait";
    let ran = lab.sh(script);
    let mut errors = ran.stderr.lines().filter(|line| line.starts_with("error:"));
    assert!(errors.all(|line| line.ends_with("many/7` changed while it was being read")), "{}", ran.stderr);
    let mount = "FROM busybox\nRUN --mount=target=/m true\n";
    let script = script.replace("-t z .", &format!("-t z -f - . <<'END'\n{mount}END\n"));
    let script = script.replace("; done; touch", "done; touch");
    let ran = lab.sh(&format!("rm -f $LAB/stop; {script}"));
    let mut errors = ran.stderr.lines().filter(|line| line.starts_with("error:"));
    assert!(errors.all(|line| line.ends_with("many/7` changed while it was being read")), "{}", ran.stderr);
    lab.rbuild(["fsck"]).ok();
}

/// Another form of a layer is made from the layer: no files are unpacked for it, and the bytes are
/// those of a store that packs the files directly.
#[test]
fn a_compressed_layer_is_made_from_the_uncompressed_one() {
    let forms = ["type=oci", "type=oci,compression=zstd", "type=docker,compression=gzip"];
    let built = |lab: &Lab, store: &str, form: &str| {
        let output = format!("{form},dest={}", lab.path("out.tar").display());
        let mut command = lab.command(["build", "-o", &output]);
        let ran = lab.run_with(&mut command, &[("RBUILD_LOG", "store=debug"), ("RBUILD_ROOT", store)]).ok();
        (crate::lab::contents(&std::fs::read(lab.path("out.tar")).unwrap()), ran.stderr)
    };
    let lab = Lab::bare();
    for i in 0..300 {
        lab.write(&format!("d/{}/{i}", i % 7), vec![i as u8; 100 * i]);
    }
    lab.write("Dockerfile", "FROM scratch\nCOPY d /\n");
    lab.rbuild(["build", "-t", "x"]).ok();
    let (store, other) = (lab.store(), lab.path("other"));
    for form in forms {
        let (from_plain, log) = built(&lab, store.to_str().unwrap(), form);
        assert!(!log.contains("materialize"), "{form}: {log}");
        let (fresh, _) = built(&lab, other.to_str().unwrap(), form);
        std::fs::remove_dir_all(&other).unwrap();
        let layers = |all: &std::collections::HashMap<String, Vec<u8>>| {
            let compressed =
                |bytes: &&Vec<u8>| bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            all.values().filter(compressed).cloned().collect::<Vec<_>>()
        };
        assert_eq!(layers(&fresh).len(), 1, "{form}");
        assert!(layers(&from_plain) == layers(&fresh), "{form}");
    }
}
