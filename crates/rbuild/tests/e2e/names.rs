//! Names of images: references, complete IDs and, on the command line, prefixes of IDs.

use crate::forge::{Forged, Layer};
use crate::lab::{Lab, exists};

fn scene() -> (Lab, String) {
    let lab = Lab::new();
    let archive = lab.path("image.tar");
    Forged::new(vec![Layer::new().file("f", "1").gzip()]).write_docker(&archive, "fam:latest");
    lab.rbuild(["load", "-q", "-i", archive.to_str().unwrap()]).ok();
    let id = lab.rbuild(["images", "-q", "--no-trunc", "fam"]).ok().stdout.trim().to_string();
    (lab, id)
}

/// All positions in a Dockerfile and on the command line that accept an image to read.
const USES: [&str; 3] = [
    "FROM NAME\n",
    "FROM scratch\nCOPY --from=NAME /f /f\n",
    "FROM busybox\nRUN --mount=from=NAME,target=/m cp /m/f /f\n",
];

#[test]
fn a_prefix_of_an_id_is_not_accepted_in_a_dockerfile() {
    let (lab, id) = scene();
    let hex = id.strip_prefix("sha256:").unwrap();
    // A name of digits only is not valid in every position: a leading number is the number of a
    // stage.
    for part in [&hex[..5], &hex[..12], &format!("sha256:{}", &hex[..12])] {
        for file in USES {
            let ran = lab.build(&file.replace("NAME", part), &["-o", "out"]);
            assert!(ran.code == Some(1) || ran.code == Some(2), "{file} {part}: {}", ran.stderr);
            assert!(!exists(lab.ctx().join("out/f")));
        }
        let context = format!("base=docker-image://{part}");
        lab.build("FROM base\n", &["--build-context", &context, "-o", "out"])
            .fails(1, &["not found in the local store"]);
        // Commands accept it.
        for verb in
            [&["inspect", part][..], &["history", part], &["save", "-o", "o.tar", part], &["tag", part, "again"]]
        {
            lab.rbuild(verb.iter().copied()).ok();
        }
    }
    lab.build(&format!("FROM {}\n", &hex[..12]), &["-o", "out"]).fails(1, &["write the whole ID", &id]);
    lab.build(&format!("FROM {hex}\n"), &["-o", "out"]).fails(2, &["64 hexadecimal digits", "sha256:"]);
}

#[test]
fn complete_ids_and_manifest_digests_are_accepted_as_names() {
    let (lab, id) = scene();
    let index: serde_json::Value = serde_json::from_str(&lab.read("store/index.json")).unwrap();
    let is_fam = |entry: &&serde_json::Value| entry["annotations"].to_string().contains("fam");
    let entry = index["manifests"].as_array().unwrap().iter().find(is_fam).unwrap();
    let manifest = entry["digest"].as_str().unwrap().to_string();
    for name in [&id, &manifest, &format!("fam@{manifest}"), &format!("docker.io/fam@{manifest}")] {
        for file in USES {
            let out = lab.build_local(&file.replace("NAME", name), &[]);
            assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), "1", "{file} {name}");
        }
        let out = lab.build_local("FROM base\n", &["--build-context", &format!("base=docker-image://{name}")]);
        assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), "1", "{name}");
    }
    // The ID that a build prints, with and without a name.
    for args in [&["-q"][..], &["-q", "-t", "named"]] {
        let printed = lab.build("FROM fam\nLABEL a=b\n", args).ok().stdout.trim().to_string();
        lab.build_local(&format!("FROM {printed}\n"), &[]);
    }
    lab.build("FROM fam\nLABEL a=c\n", &["--iidfile", "iid"]).ok();
    let iid = std::fs::read_to_string(lab.ctx().join("iid")).unwrap();
    lab.build_local(&format!("FROM {}\n", iid.trim()), &[]);
    let nobody = format!("sha256:{}", "0".repeat(64));
    lab.build(&format!("FROM {nobody}\n"), &["-o", "out"]).fails(1, &[&nobody, "rbuild images --no-trunc"]);
}

#[test]
fn all_spellings_of_a_name_are_equivalent() {
    let (lab, id) = scene();
    for name in
        ["fam", "fam:latest", "docker.io/fam", "docker.io/library/fam", "index.docker.io/fam", "library/fam:latest"]
    {
        lab.build_local(&format!("FROM {name}\n"), &[]);
        assert_eq!(lab.rbuild(["images", "-q", "--no-trunc", name]).ok().stdout.trim(), id, "{name}");
        lab.rbuild(["save", "-o", "o.tar", name]).ok();
        lab.rbuild(["tag", name, "docker.io/other"]).ok();
        assert_eq!(lab.rbuild(["images", "-q", "--no-trunc", "other"]).ok().stdout.trim(), id, "{name}");
        lab.rbuild(["rmi", "index.docker.io/library/other"]).ok();
        assert_eq!(lab.rbuild(["images", "-q", "other"]).ok().stdout, "", "{name}");
        let context = format!("{name}=docker-image://busybox");
        lab.build("FROM fam\nRUN true\n", &["--build-context", &context]).ok();
    }
    let archive = lab.path("image.tar");
    Forged::new(vec![Layer::new().file("f", "2").gzip()]).write_docker(&archive, "docker.io/fam:latest");
    lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
    let out = lab.build_local("FROM fam\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), "2");
}

/// Two manifests of one image: the one without a name is removed, the other keeps its name.
#[test]
fn prune_keeps_the_name_of_an_image_with_another_manifest() {
    let (lab, id) = scene();
    let archive = lab.path("image.tar");
    let mut image = Forged::new(vec![Layer::new().file("f", "1").gzip()]);
    image.write_docker(&archive, "gone:latest");
    lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
    image.layers[0].media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    let dir = lab.path("layout");
    // Without a name, and with a manifest in another format.
    image.write_layout(&dir, "tag");
    lab.rbuild(["load", "-i", dir.to_str().unwrap()]).ok();
    lab.rbuild(["rmi", "gone"]).ok();
    assert_eq!(lab.rbuild(["images", "-a", "-q"]).ok().stdout.lines().count(), 3);
    lab.rbuild(["prune"]).ok();
    assert_eq!(lab.rbuild(["images", "-q", "--no-trunc", "fam"]).ok().stdout.trim(), id);
    assert_eq!(lab.rbuild(["images", "-a", "-q"]).ok().stdout.lines().count(), 2);
    lab.rbuild(["inspect", "--verify", "fam"]).ok();
}

#[test]
fn no_image_is_suggested_in_place_of_one_with_a_digest() {
    let lab = Lab::new();
    let pinned = format!("busybox:latest@sha256:{}", "0".repeat(64));
    lab.build("FROM busybox:lates\n", &[]).fails(1, &["did you mean `busybox`?"]);
    let built = lab.build(&format!("FROM {pinned}\n"), &[]).fails(1, &["not found in the local store"]);
    let inspected = lab.rbuild(["inspect", &pinned]).fails(1, &["hint:"]);
    for text in [built.stderr, inspected.stderr] {
        assert!(!text.contains("did you mean"), "{text}");
    }
}
