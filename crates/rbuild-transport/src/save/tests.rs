use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rbuild_image::Reference;
use rbuild_linux::{Destination, Directory, RootDir};
use rbuild_store::Store;
use rbuild_testkit::{Scratch, assert_recorded, message_row};
use serde_json::{Value, json};

use crate::archive::{ArchiveFormat, ArchiveWriter};
use crate::blobs::{BlobInfo, BlobSink, BlobSource, Document, copy_verified};
use crate::documents::{NamedArtifact, extended_index};
use crate::error::TransportError;
use crate::fixture::{Fixture, Memory, store_in};
use crate::layout::{LayoutSource, LayoutWriter, blob_path};
use crate::load::{WantedPlatform, load, load_directory};
use crate::save::{archive_blobs, layer_blobs, save_directory, save_size, save_to};

const HOST: &str = "linux/amd64";

fn directory(scratch: &Scratch, name: &str) -> Directory {
    Directory { base: RootDir::open(scratch).unwrap(), rest: name.into() }
}

/// Returns a store with the images of a fixture, and these images under names.
fn saved(scratch: &Scratch, name: &str, fixture: Fixture, entries: &[Value], names: &[&str]) -> (Store, NamedArtifact) {
    let store = store_in(scratch, name);
    let archive = fixture.with_index(entries).archive();
    load(&store, &archive[..], &WantedPlatform::Host(HOST.parse().unwrap())).unwrap();
    let images = store.images().list().unwrap();
    let images = images.iter().map(|entry| store.images().image(&entry.manifest).unwrap()).collect();
    let names = names.iter().map(|name| name.parse::<Reference>().unwrap()).collect();
    (store, NamedArtifact { images, index: None, names })
}

fn archive(store: &Store, images: &[NamedArtifact], known: &BTreeSet<rbuild_image::BlobDigest>, to: &Path) -> Vec<u8> {
    let dest = Destination::of_file(File::create(to).unwrap(), to);
    save_to(store, images, known, ArchiveFormat::Docker, &dest, &Arc::default()).unwrap();
    std::fs::read(to).unwrap()
}

#[test]
fn a_saved_image_equals_the_loaded_one() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, manifest| manifest["annotations"] = json!({"org.example.a": "1"}));
    let (store, saved) = saved(&scratch, "from", fixture, &[image.entry], &["busybox:1", "quay.io/a/b"]);
    let images = [saved];
    let first = archive(&store, &images, &BTreeSet::new(), &scratch.join("1.tar"));
    assert!(first == archive(&store, &images, &BTreeSet::new(), &scratch.join("2.tar")), "bytes differ");
    save_directory(&store, &images, &BTreeSet::new(), &directory(&scratch, "layout"), &Arc::default()).unwrap();
    let wanted = WantedPlatform::new(None);
    for (place, to) in [("archive", store_in(&scratch, "a")), ("layout", store_in(&scratch, "b"))] {
        let loaded = match place {
            "archive" => load(&to, &first[..], &wanted).unwrap(),
            _ => load_directory(&to, &scratch.join("layout"), &wanted, &Arc::default()).unwrap(),
        };
        let names: Vec<String> = loaded.found[0].names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["busybox:1", "quay.io/a/b:latest"], "{place}");
        let found = to.images().find_image("busybox:1").unwrap().1;
        assert_eq!(found.manifest_digest.blob(), image.manifest, "{place}");
    }
}

#[test]
fn layers_that_the_recipient_has_are_omitted() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.valid_image(HOST, "1");
    let (store, saved) = saved(&scratch, "store", fixture, &[image.entry], &["a:1"]);
    let known: BTreeSet<_> = layer_blobs(&saved.images[0]).unwrap().into_iter().collect();
    assert_eq!(known, [image.layer].into());
    let images = [saved];
    let whole = save_size(&store, &images, &BTreeSet::new()).unwrap();
    assert_eq!(whole - save_size(&store, &images, &known).unwrap(), 2048);
    let bytes = archive(&store, &images, &known, &scratch.join("a.tar"));
    let blobs = archive_blobs(&bytes[..], "the archive", store.limits()).unwrap();
    assert_eq!(blobs, [image.config, image.manifest].into());
    // Complete only where the layer is.
    let incomplete = load(&store_in(&scratch, "other"), &bytes[..], &WantedPlatform::new(None)).unwrap_err();
    assert!(
        incomplete.message().contains("1 layer is missing from the archive and the store"),
        "{}",
        incomplete.message()
    );
    load(&store, &bytes[..], &WantedPlatform::new(None)).unwrap();
}

#[test]
fn sinks_accept_valid_blobs_of_any_source_once() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.valid_image(HOST, "1");
    let size = fixture.files[&blob_path(&image.layer)].len() as u64;
    let part = BlobInfo { digest: image.layer, size };
    let document = Document { media_type: crate::fixture::INDEX.into(), bytes: b"{}".to_vec() };
    let valid_image = Memory::of(&fixture);
    for sink in ["layout", "archive"] {
        let layout = LayoutWriter::open(&directory(&scratch, "layout")).unwrap();
        let archive = ArchiveWriter::begin(Vec::new()).unwrap();
        let sink_of = |name| -> &dyn BlobSink { if name == "layout" { &layout } else { &archive } };
        let to = sink_of(sink);
        let moved = Arc::default();
        for _ in 0..2 {
            to.copy(&valid_image, &part, &moved).unwrap();
            to.put_document(&document).unwrap();
        }
        assert_eq!(moved.load(std::sync::atomic::Ordering::Relaxed), size, "{sink}");
        let config = BlobInfo { digest: image.config, size: 1 };
        let wrong = Memory { wrong: 1, ..Memory::of(&fixture) };
        let refused = to.copy(&wrong, &config, &moved).unwrap_err().message();
        assert!(refused.contains("is corrupt: its digest is"), "{sink}: {refused}");
        let missing = to.copy(&Memory::default(), &config, &moved);
        if sink == "layout" {
            assert!(missing.unwrap_err().message().contains("memory has no"));
        }
    }
    // A layout is a source, too.
    let layout = LayoutSource::open(&scratch.join("layout")).unwrap();
    assert_eq!(layout.size(&image.layer).unwrap(), Some(size));
    assert_eq!(layout.size(&image.config).unwrap(), None);
    assert_eq!(layout.document(&document.digest()).unwrap(), b"{}");
    let copy = LayoutWriter::open(&directory(&scratch, "copy")).unwrap();
    copy.copy(&layout, &part, &Arc::default()).unwrap();
    std::fs::write(scratch.join("layout").join(blob_path(&image.layer)), b"else").unwrap();
    let other = LayoutWriter::open(&directory(&scratch, "other")).unwrap();
    assert!(other.copy(&layout, &part, &Arc::default()).unwrap_err().message().contains("is corrupt: its digest is"));
    assert!(!scratch.join("other").join(blob_path(&image.layer)).exists());
}

#[test]
fn failures_of_sources_and_sinks_are_worded_as_recorded() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.valid_image(HOST, "1");
    let bytes = fixture.files[&blob_path(&image.layer)].clone();
    let (valid, part) = (Memory::of(&fixture), BlobInfo { digest: image.layer, size: bytes.len() as u64 });
    let reported = |size| Memory { reported: Some(size), ..Memory::of(&fixture) };
    let archived = |source: &dyn BlobSource| {
        ArchiveWriter::begin(Vec::new()).unwrap().copy(source, &part, &Arc::default()).unwrap_err()
    };
    let [damaged, other] = ["damaged", "other"].map(|name| scratch.join(name));
    let (store, _) = saved(&scratch, "damaged", fixture.clone(), &[image.entry], &[]);
    std::fs::write(damaged.join(blob_path(&image.layer)), "damaged").unwrap();
    std::fs::create_dir_all(other.join(blob_path(&image.layer))).unwrap();
    let mut read_only = File::open("/dev/null").unwrap();
    let written = copy_verified(&mut *valid.open(&part).unwrap(), &part.digest, &mut read_only, &Default::default());
    std::fs::write(scratch.join("file"), "").unwrap();
    let rows: [(&str, TransportError); 6] = [
        ("a blob of the store with another digest", archived(&store.blobs())),
        ("a blob that shrank", archived(&reported(part.size + 1))),
        ("a blob that grew", archived(&reported(part.size - 1))),
        ("a directory in place of a blob", archived(&LayoutSource::open(&other).unwrap())),
        ("a failed write", written.unwrap_err()),
        ("a file in place of a layout", LayoutWriter::open(&directory(&scratch, "file")).map(drop).unwrap_err()),
    ];
    let table: String = rows.iter().map(|(case, e)| message_row(case, e, e.help())).collect();
    assert_recorded!("sources-and-sinks", table.replace(&*scratch.to_string_lossy(), "[dir]"));
}

#[test]
fn an_index_keeps_the_images_of_other_names() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, _| {});
    let digest = image.entry["digest"].clone();
    let (_, new) = saved(&scratch, "from", fixture, &[image.entry], &["docker.io/library/app:1"]);
    let entry = |name: &str, reference: &str, digest: &str| match (name, reference) {
        ("", "") => json!({"digest": digest, "annotations": {"other": "kept"}}),
        ("", _) => json!({"digest": digest, "annotations": {"org.opencontainers.image.ref.name": reference}}),
        _ => {
            let names = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": reference});
            json!({"digest": digest, "annotations": names})
        }
    };
    let app = entry("docker.io/library/app:1", "1", "sha256:old");
    let others =
        [entry("docker.io/library/web:1", "1", "sha256:a"), entry("", "1", "sha256:b"), entry("", "", "sha256:c")];
    let existing = [&others[..], &[app, entry("", "", digest.as_str().unwrap())]].concat();
    let existing = json!({"schemaVersion": 2, "manifests": existing, "annotations": {"of": "the index"}});
    let mut extended = extended_index(Some(existing.to_string().as_bytes()), &[new]).unwrap();
    let mut entries = extended["manifests"].take();
    let added = entries.as_array_mut().unwrap().pop().unwrap();
    assert_eq!(entries.as_array().unwrap()[..], others, "an equal name or an equal unnamed image was kept");
    assert_eq!(
        (&added["digest"], &added["annotations"]["io.containerd.image.name"]),
        (&digest, &json!("docker.io/library/app:1"))
    );
    assert_eq!(extended["annotations"], json!({"of": "the index"}));
    for bad in ["", "[]", "{}", "{\"manifests\": 1}"] {
        let error = extended_index(Some(bad.as_bytes()), &[]).unwrap_err().to_string();
        assert!(error.contains("index.json is not an OCI image index"), "{error}");
    }
}

#[test]
fn an_image_without_names_is_tagged_latest_in_a_layout() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, _| {});
    let (_, new) = saved(&scratch, "from", fixture, &[image.entry], &[]);
    let once = extended_index(None, std::slice::from_ref(&new)).unwrap();
    assert_eq!(once["manifests"][0]["annotations"], json!({"org.opencontainers.image.ref.name": "latest"}));
    assert_eq!(extended_index(Some(once.to_string().as_bytes()), &[new]).unwrap(), once);
}

#[test]
fn a_blob_of_a_layout_that_a_power_failure_shortened_is_written_again() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, _| {});
    let (store, saved) = saved(&scratch, "from", fixture, &[image.entry], &["app:1"]);
    let images = [saved];
    let save =
        || save_directory(&store, &images, &BTreeSet::new(), &directory(&scratch, "l"), &Arc::default()).unwrap();
    save();
    for blob in std::fs::read_dir(scratch.join("l/blobs/sha256")).unwrap() {
        let blob = blob.unwrap().path();
        let before = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, "").unwrap();
        save();
        assert!(std::fs::read(&blob).unwrap() == before, "{}", blob.display());
    }
}

#[test]
fn a_damaged_blob_of_the_store_is_replaced_by_a_load() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, _| {});
    let (store, saved) = saved(&scratch, "from", fixture, &[image.entry], &["app:1"]);
    let images = [saved];
    save_directory(&store, &images, &BTreeSet::new(), &directory(&scratch, "l"), &Arc::default()).unwrap();
    for digest in layer_blobs(&images[0].images[0]).unwrap() {
        let blob = scratch.join("from/blobs/sha256").join(digest.hex());
        let whole = std::fs::read(&blob).unwrap();
        let mut damaged = whole.clone();
        damaged[10] ^= 1;
        std::fs::write(&blob, damaged).unwrap();
        load_directory(&store, &scratch.join("l"), &WantedPlatform::new(None), &Arc::default()).unwrap();
        assert!(std::fs::read(&blob).unwrap() == whole);
    }
}
