use std::sync::Arc;
use std::sync::atomic::Ordering;

use rbuild_image::{Platform, Reference};
use rbuild_store::{Staging, Workspace};
use serde_json::{Value, json};

use crate::blobs::TransferProgress;
use crate::fixture::{Fixture, INDEX, Memory, Scratch};
use crate::pull::Transfer;

const HOST: &str = "linux/amd64";

/// Pulls the image of an entry from memory. Returns the number of warnings, or the message.
fn pulled(scratch: &Scratch, case: &str, source: &Memory, entry: &Value) -> Result<usize, String> {
    let platform: Platform = HOST.parse().unwrap();
    let (total, done) = (|_| {}, |_: &_, _, _| {});
    let progress = TransferProgress { moved: Arc::default(), total: &total, done: &done };
    let store = scratch.store(case);
    let transfer = Transfer { source, store: &store, place: "registry/a".into(), platform: &platform };
    let work = Workspace::open(&store).unwrap();
    let staging = Staging::open(&store, &work).unwrap();
    let name: Reference = "registry/a:1".parse().unwrap();
    let document = source.blobs[&entry["digest"].as_str().unwrap().parse().unwrap()].clone();
    let documents = transfer.documents(document, &name).map_err(|e| e.message())?;
    documents.stage(source, &staging, &progress).map_err(|e| e.message())?;
    Ok(documents.warnings.len())
}

/// Makes an image and returns the entry that a name stands for.
type Make = fn(&mut Fixture) -> Value;

/// A name, an image, and the number of warnings or a part of the error.
type Case = (&'static str, Make, Result<usize, &'static str>);

fn document_cases() -> [Case; 12] {
    [
        ("image", |f| f.valid_image(HOST, "1").entry, Ok(0)),
        ("another platform", |f| f.valid_image("linux/arm64", "1").entry, Ok(1)),
        (
            "index in an index",
            |f| {
                let image = f.valid_image(HOST, "1").entry;
                let mut inner = f.list(INDEX, &[image]);
                inner["platform"] = json!({"os": "linux", "architecture": "amd64"});
                f.list(INDEX, &[inner])
            },
            Ok(0),
        ),
        (
            "too deep",
            |f| {
                let mut entry = f.valid_image(HOST, "1").entry;
                for _ in 0..4 {
                    entry = f.list(INDEX, &[entry]);
                    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
                }
                entry
            },
            Err("is nested more than 3 levels deep"),
        ),
        (
            "no such platform",
            |f| {
                let other = f.valid_image("linux/arm64", "1").entry;
                f.list(INDEX, &[other])
            },
            Err("registry/a has no image for linux/amd64, only for linux/arm64"),
        ),
        (
            "empty index",
            |f| f.list(INDEX, &[]),
            Err("registry/a has no image for linux/amd64: its index lists no image for any platform"),
        ),
        (
            "artifact",
            |f| f.image(HOST, "1", |_, manifest| manifest["artifactType"] = json!("example/chart")).entry,
            Err("it is an artifact of type example/chart"),
        ),
        (
            "layer type",
            |f| f.image(HOST, "1", |_, manifest| manifest["layers"][0]["mediaType"] = json!("image/png")).entry,
            Err("has the unknown type image/png"),
        ),
        (
            "counts",
            |f| f.image(HOST, "1", |config, _| config["rootfs"]["diff_ids"] = json!([])).entry,
            Err("its manifest and configuration disagree on the number of layers: 1 and 0"),
        ),
        (
            "large configuration",
            |f| {
                let mut config = f.document("application/vnd.oci.image.config.v1+json", &json!({}));
                config["size"] = json!(17 << 20);
                f.image(HOST, "1", |_, manifest| manifest["config"] = config).entry
            },
            Err("its configuration has 17825792 bytes"),
        ),
        (
            "missing layer",
            |f| {
                let image = f.valid_image(HOST, "1");
                f.files.remove(&crate::layout::blob_path(&image.layer));
                image.entry
            },
            Err("memory has no sha256:"),
        ),
        ("no manifest", |f| f.document(INDEX, &json!({"config": 1})), Err("the manifest: ")),
    ]
}

#[test]
fn documents_of_registries_are_checked() {
    let scratch = Scratch::new();
    for (case, make, want) in document_cases() {
        let mut fixture = Fixture::default();
        let entry = make(&mut fixture);
        match (pulled(&scratch, case, &Memory::of(&fixture), &entry), want) {
            (Ok(warnings), Ok(want)) => assert_eq!(warnings, want, "{case}"),
            (Err(message), Err(want)) => assert!(message.contains(want), "{case}: {message}"),
            (found, _) => panic!("{case}: {found:?}"),
        }
    }
}

#[test]
fn a_wrong_blob_is_read_again_if_its_source_may_change() {
    let scratch = Scratch::new();
    for (case, wrong, attempts, want) in [
        ("valid_image", 0, 2, Ok(2)),
        ("once", 1, 2, Ok(3)),
        ("twice", 2, 2, Err("is corrupt: its digest is")),
        ("never", 1, 1, Err("is corrupt: its digest is")),
    ] {
        let mut fixture = Fixture::default();
        let entry = fixture.valid_image(HOST, "1").entry;
        let source = Memory { wrong, attempts, ..Memory::of(&fixture) };
        match (pulled(&scratch, case, &source, &entry), want) {
            (Ok(_), Ok(opened)) => assert_eq!(source.opened.load(Ordering::Relaxed), opened, "{case}"),
            (Err(message), Err(want)) => assert!(message.contains(want), "{case}: {message}"),
            (found, _) => panic!("{case}: {found:?}"),
        }
    }
}
