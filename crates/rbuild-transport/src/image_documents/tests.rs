use std::sync::Arc;
use std::sync::atomic::Ordering;

use rbuild_image::{DiffId, ImageConfig, Platform, Reference};
use rbuild_store::{Staging, Workspace};
use rbuild_testkit::{Scratch, assert_recorded, message_row};
use serde_json::{Value, json};

use crate::blobs::TransferProgress;
use crate::error::Result;
use crate::fixture::{Fixture, INDEX, MANIFEST, Memory, store_in};
use crate::image_documents::Transfer;

const HOST: &str = "linux/amd64";

/// Pulls the image of an entry from memory. Returns the warnings.
fn pulled(scratch: &Scratch, case: &str, source: &Memory, entry: &Value) -> Result<Vec<String>> {
    let platform: Platform = HOST.parse().unwrap();
    let (total, done) = (|_| {}, |_: &_, _, _| {});
    let progress = TransferProgress { moved: Arc::default(), total: &total, done: &done };
    let store = store_in(scratch, case);
    let transfer = Transfer { source, store: &store, place: "registry/a".into(), platform: &platform };
    let work = Workspace::open(&store).unwrap();
    let staging = Staging::open(&store, &work).unwrap();
    let name: Reference = "registry/a:1".parse().unwrap();
    let document = source.blobs[&entry["digest"].as_str().unwrap().parse().unwrap()].clone();
    let documents = transfer.documents(document, &name)?;
    documents.stage(source, &staging, &progress)?;
    Ok(documents.warnings)
}

/// Makes an image and returns the entry that a name refers to.
type Make = fn(&mut Fixture) -> Value;

fn document_cases() -> [(&'static str, Make); 13] {
    [
        ("image", |f| f.valid_image(HOST, "1").entry),
        ("another platform", |f| f.valid_image("linux/arm64", "1").entry),
        ("index in an index", |f| {
            let image = f.valid_image(HOST, "1").entry;
            let mut inner = f.list(INDEX, &[image]);
            inner["platform"] = json!({"os": "linux", "architecture": "amd64"});
            f.list(INDEX, &[inner])
        }),
        ("too deep", |f| {
            let mut entry = f.valid_image(HOST, "1").entry;
            for _ in 0..4 {
                entry = f.list(INDEX, &[entry]);
                entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
            }
            entry
        }),
        ("no such platform", |f| {
            let other = f.valid_image("linux/arm64", "1").entry;
            f.list(INDEX, &[other])
        }),
        ("empty index", |f| f.list(INDEX, &[])),
        ("artifact", |f| f.image(HOST, "1", |_, manifest| manifest["artifactType"] = json!("example/chart")).entry),
        ("layer type", |f| {
            f.image(HOST, "1", |_, manifest| manifest["layers"][0]["mediaType"] = json!("image/png")).entry
        }),
        ("counts", |f| f.image(HOST, "1", |config, _| config["rootfs"]["diff_ids"] = json!([])).entry),
        ("large configuration", |f| {
            let mut config = f.document("application/vnd.oci.image.config.v1+json", &json!({}));
            config["size"] = json!(17 << 20);
            f.image(HOST, "1", |_, manifest| manifest["config"] = config).entry
        }),
        ("missing layer", |f| {
            let image = f.valid_image(HOST, "1");
            f.files.remove(&crate::layout::blob_path(&image.layer));
            image.entry
        }),
        ("no manifest", |f| f.document(INDEX, &json!({"config": 1}))),
        ("no configuration", |f| f.image(HOST, "1", |config, _| *config = json!([])).entry),
    ]
}

#[test]
fn documents_of_registries_are_checked_as_recorded() {
    let scratch = Scratch::new();
    let mut table = String::new();
    for (case, make) in document_cases() {
        let mut fixture = Fixture::default();
        let entry = make(&mut fixture);
        table += &match pulled(&scratch, case, &Memory::of(&fixture), &entry) {
            Ok(warnings) => format!("{case}: pulled {warnings:?}\n"),
            Err(e) => message_row(case, &e, e.help()),
        };
    }
    assert_recorded!("pull", table);
}

#[test]
fn content_of_descriptors_is_not_downloaded_if_it_fits() {
    let scratch = Scratch::new();
    for (case, changed, is_pulled) in [("right", None, true), ("wrong", Some("AAAA"), false)] {
        let mut fixture = Fixture::default();
        let data = |fixture: &Fixture, part: &Value| {
            let path = crate::layout::blob_path(&part["digest"].as_str().unwrap().parse().unwrap());
            changed.map_or_else(|| base64(&fixture.files[&path]), str::to_string)
        };
        let content = crate::fixture::layer("1");
        let mut layer = fixture.blob(crate::fixture::LAYER, content.clone());
        layer["data"] = json!(data(&fixture, &layer));
        let mut value = serde_json::to_value(ImageConfig::empty(&HOST.parse().unwrap())).unwrap();
        value["rootfs"]["diff_ids"] = json!([DiffId::of(&content)]);
        let mut config = fixture.document("application/vnd.oci.image.config.v1+json", &value);
        config["data"] = json!(data(&fixture, &config));
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut image = fixture.document(MANIFEST, &manifest);
        image["data"] = json!(data(&fixture, &image));
        image["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let entry = fixture.list(INDEX, &[image]);
        let index = entry["digest"].as_str().unwrap().parse().unwrap();
        let all = Memory::of(&fixture);
        let source = Memory { blobs: [(index, all.blobs[&index].clone())].into(), ..Memory::default() };
        assert_eq!(pulled(&scratch, case, &source, &entry).is_ok(), is_pulled, "{case}");
        pulled(&scratch, &format!("{case} with blobs"), &all, &entry).unwrap();
    }
}

/// Returns the Base64 encoding of bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |group: &[u8]| {
        let length = group.len();
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        (0..4).map(move |at| if at <= length { char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]) } else { '=' })
    };
    bytes.chunks(3).flat_map(encode).collect()
}

#[test]
fn an_index_of_too_many_entries_is_refused() {
    let scratch = Scratch::new();
    for (n, want) in [(1000, None), (1001, Some("has 1001 entries; the limit is 1000"))] {
        let mut fixture = Fixture::default();
        let image = fixture.valid_image(HOST, "1").entry;
        let entry = fixture.list(INDEX, &vec![image; n]);
        let result = pulled(&scratch, &n.to_string(), &Memory::of(&fixture), &entry);
        let message = result.err().map(|e| e.message());
        assert_eq!(message.is_some(), want.is_some(), "{message:?}");
        assert!(message.zip(want).is_none_or(|(message, want)| message.ends_with(want)));
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
            (Err(e), Err(want)) => assert!(e.message().contains(want), "{case}: {e}"),
            (found, _) => panic!("{case}: {found:?}"),
        }
    }
}
