//! Images in which the same layer occurs more than once, as in many published images.

use crate::forge::{Blob, Forged, Layer};
use crate::lab::{Lab, contents};

fn base() -> Blob {
    Layer::new().dir("d").file("d/x", "base").file("d/keep", "kept").file("below", "below").plain()
}

/// A layer that adds a file, deletes one, replaces a directory, and contains a hard link.
fn layer() -> Blob {
    let layer = Layer::new().dir("d").file("d/x", "layer").file("d/.wh.gone", "").dir("o").file("o/.wh..wh..opq", "");
    layer.file("o/in", "in").file("first", "linked").hard_link("second", "first").gzip()
}

/// A layer that deletes and replaces files of the layer above.
fn between() -> Blob {
    let layer = Layer::new().file("d/.wh.x", "").file(".wh.first", "").file("d/gone", "back").dir("o");
    layer.file("o/other", "other").file("second", "another file").plain()
}

fn empty() -> Blob {
    Layer::new().plain()
}

/// Paths with the content of their files, `None` if there is none.
type Contents = Vec<(&'static str, Option<&'static str>)>;

/// The stacks, and the resulting content of some files.
fn stacks() -> Vec<(&'static str, Vec<Blob>, Contents)> {
    let whole = [("d/x", Some("layer")), ("d/keep", Some("kept")), ("o/in", Some("in")), ("second", Some("linked"))];
    let again = [&whole[..], &[("d/gone", None), ("o/other", None), ("first", Some("linked"))]].concat();
    let below = vec![
        ("d/x", None),
        ("d/gone", Some("back")),
        ("o/in", Some("in")),
        ("o/other", Some("other")),
        ("first", None),
    ];
    vec![
        ("twice", vec![base(), layer(), layer()], again.clone()),
        ("between", vec![base(), layer(), between(), layer()], again.clone()),
        ("thrice", vec![layer(), base(), layer(), between(), layer()], again),
        ("under", vec![base(), between(), layer(), between()], below),
        ("empty", vec![empty(), base(), empty(), layer(), empty(), empty()], whole.to_vec()),
        ("nothing", vec![empty(), empty()], vec![("d/x", None)]),
    ]
}

fn check(image: &str, tar: &[u8], want: &[(&str, Option<&str>)]) {
    let files = contents(tar);
    for (path, content) in want {
        // The second name of a file is a hard link entry in a tar, which has no content.
        let linked = ["first", "second"].contains(path) && files.get(*path).is_some_and(|c| c.is_empty());
        let found = files.get(*path).map(|c| String::from_utf8_lossy(c).into_owned());
        let found = if linked { Some("linked".to_string()) } else { found };
        assert_eq!(found.as_deref(), *content, "{image}: {path}");
    }
}

#[test]
fn all_outputs_agree_on_images_with_equal_layers() {
    for (name, layers, want) in stacks() {
        let lab = Lab::new();
        let archive = lab.path("image.tar");
        Forged::new(layers.clone()).write_docker(&archive, "stack:latest");
        lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
        let out = lab.path("out.tar");
        let dest = format!("type=tar,dest={}", out.display());
        lab.build("FROM stack\n", &["-o", &dest]).ok();
        check(name, &std::fs::read(&out).unwrap(), &want);
        lab.sh("$RB cp stack:/ - > $LAB/out.tar").ok();
        check(name, &std::fs::read(&out).unwrap(), &want);
        let local = lab.build_local("FROM stack\n", &[]);
        for (path, content) in &want {
            assert_eq!(std::fs::read_to_string(local.join(path)).ok().as_deref(), *content, "{name}: {path}");
        }
        // Followed by a copy and a command, squashed into one layer, and exported as an archive.
        let file = "FROM stack\nCOPY --from=busybox /bin/busybox /bin/\n\
            RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox find / -xdev -type f | /bin/busybox sort > /found\"]\n\
            RUN --mount=from=stack,target=/m [\"/bin/busybox\", \"ls\", \"/m\"]\n";
        for squash in [&[][..], &["--squash=steps"], &["--squash=all"]] {
            lab.build(file, &[&["-t", "more", "-o", &dest], squash].concat()).ok();
            check(name, &std::fs::read(&out).unwrap(), &want);
            lab.sh("$RB cp more:/ - > $LAB/out.tar").ok();
            check(name, &std::fs::read(&out).unwrap(), &want);
        }
        lab.sh("$RB save -o all.tar more stack && RBUILD_ROOT=$LAB/other $RB load -i all.tar && RBUILD_ROOT=$LAB/other $RB cp stack:/ - > $LAB/out.tar; $RB inspect --verify stack more").ok();
        check(name, &std::fs::read(&out).unwrap(), &want);
        lab.sh("RBUILD_ROOT=$LAB/other $RB run --rm more /bin/busybox ls / && RBUILD_ROOT=$LAB/other $RB prune -a")
            .ok();
    }
}

/// A linked copy that occurs twice is stored as one tree and yields two layers.
#[test]
fn a_linked_copy_can_be_executed_twice() {
    let lab = Lab::new();
    lab.write("f", "f").write("g", "g");
    let file = "FROM busybox\nCOPY --link f /a\nCOPY --link g /a\nRUN rm /a\nCOPY --link f /a\nCOPY --link f /a\nRUN cat /a > /b\n";
    let out = lab.build_local(file, &["-t", "twice"]);
    assert_eq!(std::fs::read_to_string(out.join("b")).unwrap(), "f");
    lab.sh("$RB save twice | tar -xO manifest.json > m.json").ok();
    let manifest: serde_json::Value = serde_json::from_str(&lab.read("ctx/m.json")).unwrap();
    assert_eq!(manifest[0]["Layers"].as_array().unwrap().len(), 7);
    lab.rbuild(["run", "--rm", "twice", "cat", "/a"]).ok();
    for kind in ["docker", "oci"] {
        lab.build(file, &["-o", &format!("type={kind},dest=direct.tar,compression=uncompressed")]).ok();
    }
    lab.build(file, &["-o", "type=oci,dest=layout,tar=false,compression=uncompressed"]).ok();
}
