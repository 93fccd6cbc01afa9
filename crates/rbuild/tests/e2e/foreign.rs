//! Archives and layouts whose parts contradict each other or have the wrong type.

use std::io::Write;
use std::process::Stdio;

use rbuild_image::DiffId;

use crate::forge::{Blob, Forged, Layer, Meta, ROOTS};
use crate::lab::{Lab, Ran, contents, listing};

pub fn load_archive(lab: &Lab, image: &Forged, name: &str) -> Ran {
    let archive = lab.path("image.tar");
    image.write_docker(&archive, name);
    lab.rbuild(["load", "-i", archive.to_str().unwrap()])
}

fn load_layout(lab: &Lab, image: &Forged, name: &str) -> Ran {
    let archive = lab.path("image.tar");
    image.write_oci_archive(&archive, name);
    let from_archive = lab.rbuild(["load", "-i", archive.to_str().unwrap()]);
    let dir = lab.path("layout");
    let _ = std::fs::remove_dir_all(&dir);
    image.write_layout(&dir, name);
    let from_dir = lab.rbuild(["load", "-i", dir.to_str().unwrap()]);
    assert_eq!(from_archive.code, from_dir.code, "{}\n{}", from_archive.stderr, from_dir.stderr);
    from_dir
}

/// The correct tree is already in the store, so the layer could be exported without reading its
/// bytes first.
#[test]
fn a_layer_with_a_wrong_diff_id_is_never_exported() {
    let good = Layer::new().file("f", "good");
    let good_tar = good.bytes();
    let diff_id = DiffId::of(&good_tar);
    let foreign = Blob { diff_id, ..Blob::gzip_of(&Layer::new().file("f", "evil").bytes()) };
    type Load = fn(&Lab, &Forged, &str) -> Ran;
    for load in [load_archive as Load, load_layout] {
        let lab = Lab::new();
        load(&lab, &Forged::new(vec![Blob::gzip_of(&good_tar)]), "good:latest").ok();
        lab.build("FROM good\nCOPY --from=busybox /bin/busybox /b\n", &["-t", "built"]).ok();
        load(&lab, &Forged::new(vec![foreign.clone()]), "evil:latest").ok();
        let wrong = ["has diffID", "load or pull it again"];
        lab.rbuild(["save", "-o", "out.tar", "evil"]).fails(1, &wrong);
        lab.rbuild(["save", "-o", "out.tar", "good", "evil"]).fails(1, &wrong);
        lab.rbuild(["save", "--format", "oci", "-o", "out", "evil"]).fails(1, &wrong);
        lab.rbuild(["save", "evil"]).fails(1, &wrong);
        for kind in ["oci", "docker"] {
            for more in ["", ",compression=uncompressed", ",compression=zstd,force-compression=true"] {
                for file in ["FROM evil\n", "FROM evil\nCOPY --from=busybox /bin/busybox /b\n"] {
                    lab.build(file, &["-o", &format!("type={kind},dest=out.tar{more}")]).fails(1, &["has diffID"]);
                }
            }
        }
        assert!(!lab.ctx().join("out.tar").exists());
        // Correct images are not affected.
        lab.rbuild(["save", "-o", "out.tar", "good", "built"]).ok();
        lab.sh("RBUILD_ROOT=$LAB/other $RB load -i out.tar && RBUILD_ROOT=$LAB/other $RB inspect --verify good built && RBUILD_ROOT=$LAB/other $RB prune -a").ok();
    }
}

/// The result of the inspection is recorded, so a layer is not inspected twice.
#[test]
fn a_layer_is_decompressed_once_before_its_export() {
    let lab = Lab::bare();
    load_archive(&lab, &Forged::new(vec![Layer::new().file("f", "1").gzip()]), "a:latest").ok();
    let notes = "ls $RBUILD_ROOT/layers | grep -c holds";
    lab.sh(notes).fails(1, &[]);
    lab.rbuild(["save", "-o", "out.tar", "a"]).ok();
    assert_eq!(lab.sh(notes).ok().stdout, "1\n");
    lab.rbuild(["prune"]).ok();
    assert_eq!(lab.sh(notes).ok().stdout, "1\n");
    lab.rbuild(["rmi", "a"]).ok();
    lab.rbuild(["prune"]).ok();
    lab.sh(notes).fails(1, &[]);
}

#[test]
fn contradicting_documents_are_rejected() {
    let lab = Lab::bare();
    let layers = || vec![Layer::new().file("f", "1").gzip(), Layer::new().file("g", "2").plain()];
    let sizes = Forged { size_error: 7, ..Forged::new(layers()) };
    load_layout(&lab, &sizes, "x:latest").fails(1, &["layer sha256:", "bytes", "; its descriptor states "]);
    let mut types = Forged::new(layers());
    types.layers[1].media_type = "application/vnd.example.layer.v1.squashfs".into();
    load_layout(&lab, &types, "x:latest").fails(1, &["has the unknown type application/vnd.example.layer.v1.squashfs"]);
    let few = Forged { diff_ids: Forged::new(layers()).diff_ids[..1].to_vec(), ..Forged::new(layers()) };
    let more =
        Forged { diff_ids: [Forged::new(layers()).diff_ids, vec![DiffId::of(b"")]].concat(), ..Forged::new(layers()) };
    for (image, expected) in [(few, "number of layers: 2 and 1"), (more, "number of layers: 2 and 3")] {
        load_layout(&lab, &image, "x:latest").fails(1, &[expected]);
        load_archive(&lab, &image, "x:latest").fails(1, &[expected]);
    }
    let mut plain = Forged::new(layers());
    plain.diff_ids[1] = DiffId::of(b"else");
    load_layout(&lab, &plain, "x:latest").fails(1, &["has diffID", "the image configuration expects"]);
    assert_eq!(lab.rbuild(["images", "-a", "-q"]).ok().stdout, "");
    // As a layout that a build uses as a named context.
    Forged { size_error: 7, ..Forged::new(layers()) }.write_layout(&lab.ctx().join("lay"), "latest");
    let args = ["--build-context", "base=oci-layout://lay", "-o", "out"];
    lab.build("FROM base\n", &args).fails(1, &["; its descriptor states "]);
    // Docker's own media types are accepted.
    let mut docker = Forged::new(layers());
    docker.layers[0].media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    load_layout(&lab, &docker, "x:latest").ok();
}

#[test]
fn a_layout_without_an_oci_layout_file_is_accepted_with_a_warning() {
    let lab = Lab::bare();
    let image = Forged::new(vec![Layer::new().file("f", "1").gzip()]);
    let dir = lab.ctx().join("lay");
    image.write_layout(&dir, "x:latest");
    let warns = |ran: Ran| ran.ok().stderr.contains("warning: ");
    assert!(!warns(lab.rbuild(["load", "-i", "lay"])));
    std::fs::remove_file(dir.join("oci-layout")).unwrap();
    let loaded = lab.rbuild(["load", "-i", "lay"]);
    assert!(loaded.stderr.contains("warning: the OCI layout has no oci-layout file"), "{}", loaded.stderr);
    loaded.ok();
    assert!(warns(lab.sh("tar -C lay -c . | $RB load")));
    assert!(warns(lab.build("FROM base\n", &["--build-context", "base=oci-layout://lay", "-o", "out"])));
    assert_eq!(std::fs::read_to_string(lab.ctx().join("out/f")).unwrap(), "1");
}

#[test]
fn an_archive_of_images_is_imported_with_a_warning() {
    let lab = Lab::bare();
    let image = Forged::new(vec![Layer::new().file("f", "1").gzip()]);
    image.write_docker(&lab.ctx().join("docker.tar"), "x:latest");
    image.write_oci_archive(&lab.ctx().join("oci.tar"), "x:latest");
    std::fs::write(lab.ctx().join("files.tar"), Layer::new().dir("etc").file("etc/manifest.json", "{}").bytes())
        .unwrap();
    for (file, warns) in [("docker.tar", true), ("oci.tar", true), ("files.tar", false)] {
        let ran = lab.rbuild(["import", file, "y"]).ok();
        let warned = ran.stderr.contains("warning: ") && ran.stderr.contains("rbuild load");
        assert_eq!(warned, warns, "{file}: {}", ran.stderr);
    }
}

/// A read from a pipe returns what has been written so far, possibly a single byte.
#[test]
fn compression_is_detected_on_slow_pipes() {
    let lab = Lab::new();
    let archive = lab.path("image.tar");
    Forged::new(vec![Layer::new().file("f", "1").gzip()]).write_docker(&archive, "x:latest");
    let load = Blob::gzip_of(&std::fs::read(&archive).unwrap()).bytes;
    let context =
        Blob::gzip_of(&Layer::new().file("Dockerfile", "FROM busybox\nCOPY f /\n").file("f", "1").bytes()).bytes;
    let files = Blob::gzip_of(&Layer::new().file("f", "1").bytes()).bytes;
    for (args, bytes) in [
        (&["load"][..], &load),
        (&["import", "-", "imported"], &files),
        (&["build", "-o", "made", "-"], &context),
        (&["build", "-t", "built", "-"], &context),
    ] {
        let mut command = lab.command(args.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for part in [&bytes[..1], &bytes[1..2], &bytes[2..]] {
            let _ = stdin.write_all(part);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    lab.rbuild(["inspect", "--verify", "x", "imported", "built"]).ok();
}

#[test]
fn a_whiteout_of_a_directory_without_an_entry_keeps_its_new_files() {
    let lab = Lab::bare();
    let low = Layer::new().dir("x").file("x/old", "old").file("x/new", "old").plain();
    for top in
        [Layer::new().file(".wh.x", "").file("x/new", "new"), Layer::new().file("x/new", "new").file(".wh.x", "")]
    {
        let image = Forged::new(vec![low.clone(), top.gzip()]);
        load_archive(&lab, &image, "img:latest").ok();
        let seen = lab.build_listing("FROM img\n");
        assert_eq!(seen, ["755 0:0 x/", "644 0:0 x/new"]);
        let out = lab.build_local("FROM scratch\nCOPY --from=img /x /\n", &[]);
        assert_eq!(std::fs::read_to_string(out.join("new")).unwrap(), "new");
    }
}

/// A layer that hides everything below it.
#[test]
fn an_opaque_top_directory_hides_all_lower_layers() {
    let low = Layer::new().dir("x").file("x/old", "old").file("old", "old").plain();
    let top = Layer::new().file("new", "new").file(".wh..wh..opq", "").dir("x").gzip();
    let image = Forged::new(vec![low, top]);
    let lab = Lab::bare();
    load_archive(&lab, &image, "img:latest").ok();
    // Without unpacking the image, and with it unpacked.
    let out = lab.build_local("FROM scratch\nCOPY --from=img /new /n\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("n")).unwrap(), "new");
    lab.build("FROM scratch\nCOPY --from=img /old /\n", &["-o", "out"]).fails(1, &["old"]);
    assert_eq!(lab.build_listing("FROM img\n"), ["644 0:0 new", "755 0:0 x/"]);
}

#[test]
fn invalid_owner_ids_are_rejected() {
    let lab = Lab::bare();
    let owner = |uid, gid| Meta { uid, gid, ..ROOTS };
    for (uid, gid) in [(4294967295, 0), (0, 4294967295)] {
        let layer = Layer::new().file_with("f", b"1", &owner(uid, gid));
        load_archive(&lab, &Forged::new(vec![layer.gzip()]), "x:latest").ok();
        lab.build("FROM x\n", &["-o", "type=tar,dest=out.tar"])
            .fails(1, &[&format!("`f` has the owner {uid}:{gid}"), "below 4294967295"]);
    }
}

/// Applies in modes that set real owners and do not map every ID.
#[test]
fn an_owner_beyond_the_sub_ids_is_reported_with_the_range() {
    let lab = Lab::new();
    let layer = Layer::new().file_with("f", b"1", &Meta { uid: 2_000_000_000, ..ROOTS });
    load_archive(&lab, &Forged::new(vec![layer.gzip()]), "x:latest").ok();
    lab.write("f", "1");
    for file in ["FROM x\n", "FROM busybox\nCOPY --chown=2000000000:2000000000 f /\n"] {
        let ran = lab.build(file, &["-o", "type=tar,dest=out.tar"]);
        if ran.code == Some(0) {
            // All IDs are mapped, or owners are recorded in attributes.
            assert!(
                listing(&std::fs::read(lab.ctx().join("out.tar")).unwrap()).iter().any(|l| l.contains(" 2000000000:"))
            );
            continue;
        }
        ran.fails(1, &["user ID 2000000000 is not mapped; mapped IDs: 0 to ", "/etc/subuid", "--isolation=single-id"]);
    }
}

#[test]
fn a_file_named_like_a_whiteout_is_rejected_with_its_path() {
    let lab = Lab::new();
    lab.write("d/.wh.x", "").write("f", "1");
    lab.sh("mkdir t && touch t/.wh..wh..opq && tar -C t -cf t.tar .wh..wh..opq").ok();
    for (file, path) in [
        ("RUN touch /etc/.wh.f", "/etc/.wh.f"),
        ("RUN mkdir /.wh.d && touch /.wh.d/f", "/.wh.d"),
        ("COPY f /.wh.f", "/.wh.f"),
        ("COPY --link f /.wh..wh..opq", "/.wh..wh..opq"),
        ("COPY d /e", "/e/.wh.x"),
        ("COPY . /e", "/e/d/.wh.x"),
        ("COPY --from=made / /e", "/e/.wh.m"),
        ("ADD t.tar /e/", "/e/.wh..wh..opq"),
        ("ADD f /.wh.a", "/.wh.a"),
        ("COPY <<.wh.h /e/\nx\n.wh.h\n", "/e/.wh.h"),
        ("WORKDIR /.wh.w/deep", "/.wh.w"),
        ("RUN ln -s x /.wh.l", "/.wh.l"),
    ] {
        let file = format!("FROM busybox AS made\nRUN touch /.wh.m\nFROM busybox\n{file}\n");
        let message = format!("`{path}` cannot be in an image");
        for args in [
            &["-t", "x"][..],
            &["-o", "type=oci,dest=o.tar"],
            &["-o", "type=docker,dest=o.tar,compression=uncompressed"],
            &["--squash=all", "-t", "x"],
            &["--squash=steps", "-t", "x"],
        ] {
            let ran = lab.build(&file, args);
            assert!(ran.stderr.contains("`.wh.`"), "{file}{args:?}: {}", ran.stderr);
            let squashes = args[0].starts_with("--squash");
            assert!(squashes || ran.stderr.contains("--> Dockerfile:4:1"), "{file}{args:?}: {}", ran.stderr);
            ran.fails(1, &[&message]);
        }
    }
    assert_eq!(lab.rbuild(["images", "-q", "x"]).ok().stdout, "");
    // Without a layer, `.wh.x` is an ordinary file name.
    let out = lab.build_local("FROM scratch\nCOPY d /\n", &[]);
    assert!(out.join(".wh.x").exists());
}

#[test]
fn a_docker_archive_keeps_annotations() {
    let lab = Lab::new();
    let annotation = "\"org.example.note\":\"kept\"";
    let manifest = |store: &str, name: &str| {
        let ran = lab.sh(&format!("RBUILD_ROOT={store} $RB save --format oci-archive {name} > m.tar")).ok();
        drop(ran);
        let files = contents(&std::fs::read(lab.ctx().join("m.tar")).unwrap());
        let found = files.values().any(|bytes| String::from_utf8_lossy(bytes).contains(annotation));
        assert!(found, "{store}");
    };
    let args = ["--annotation", "org.example.note=kept"];
    lab.build(
        "FROM busybox\nRUN echo 1 > /f\n",
        &[&args[..], &["-t", "noted", "-o", "type=docker,dest=d.tar"]].concat(),
    )
    .ok();
    manifest("$LAB/store", "noted");
    lab.rbuild(["save", "-o", "s.tar", "noted"]).ok();
    lab.build(
        "FROM busybox\nRUN echo 1 > /f\n",
        &[&args[..], &["-o", "type=docker,dest=u.tar,compression=uncompressed,name=noted"]].concat(),
    )
    .ok();
    for file in ["d.tar", "s.tar", "u.tar"] {
        lab.sh(&format!(
            "set -e; export RBUILD_ROOT=$LAB/other; $RB load -i {file}; [ -n \"$($RB images -q noted)\" ]"
        ))
        .ok();
        manifest("$LAB/other", "noted");
        lab.sh("RBUILD_ROOT=$LAB/other $RB rmi noted; RBUILD_ROOT=$LAB/other $RB prune -a").ok();
    }
}

/// An empty layer is omitted; the history and the layers agree.
#[test]
fn squashing_an_empty_result_makes_no_layer() {
    let lab = Lab::bare();
    let empty = Forged::new(vec![Layer::new().plain(), Layer::new().plain()]);
    load_archive(&lab, &empty, "empty:latest").ok();
    let some = Forged::new(vec![Layer::new().file("f", "1").plain()]);
    load_archive(&lab, &some, "some:latest").ok();
    for (file, layers) in [
        ("FROM scratch\n", 0),
        ("FROM scratch\nLABEL a=b\n", 0),
        ("FROM scratch AS a\nFROM a\nENV a=b\n", 0),
        ("FROM empty\nLABEL a=b\n", 0),
        ("FROM some\nLABEL a=b\n", 1),
    ] {
        lab.build(file, &["--squash=all", "-t", "squashed"]).ok();
        lab.build(file, &["--squash=all", "-o", "type=docker,dest=o.tar,name=other"]).ok();
        lab.rbuild(["load", "-q", "-i", "o.tar"]).ok();
        lab.rbuild(["inspect", "--verify", "squashed", "other"]).ok();
        let shown = lab.sh("$RB save squashed | tar -xO manifest.json > m.json; $RB save squashed | tar -xO $(sed 's/.*Config\":\"\\([^\"]*\\).*/\\1/' m.json) > c.json").ok();
        drop(shown);
        let config: serde_json::Value = serde_json::from_str(&lab.read("ctx/c.json")).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), layers, "{file}");
        let history = config["history"].as_array().cloned().unwrap_or_default();
        let filled = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert_eq!(filled, layers, "{file}: {config}");
    }
}
