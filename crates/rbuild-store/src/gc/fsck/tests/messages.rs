//! The words for damage of a store.

use std::fs::{create_dir, read_to_string, remove_dir_all, remove_file, write};
use std::os::unix::fs::symlink;
use std::path::Path;

use rbuild_image::{DiffId, ImageConfig, ImageId, MediaType, Platform, descriptor, manifest};
use rbuild_linux::FileKind;
use rbuild_testkit::assert_recorded;

use super::{damage, longest_name, put_in_the_way, repaired, texts};
use crate::gc::fsck::*;
use crate::ids::CacheKey;
use crate::session::record_tree;
use crate::staging::Staging;
use crate::workspace::Workspace;

/// Replaces digests, which depend on the machine's platform.
fn without_digests(text: &str) -> String {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_hex) {
        out += &rest[..start];
        let end = rest[start..].find(|c| !is_hex(c)).map_or(rest.len(), |length| start + length);
        out += if end - start >= 12 { "HEX" } else { &rest[start..end] };
        rest = &rest[end..];
    }
    out + rest
}

/// Returns the result of the repair of a store of one image that `break_it` has damaged.
fn row(name: &str, break_it: impl FnOnce(&Path, &ImageId)) -> String {
    let mut store = String::new();
    let (found, ..) = repaired(|place, id| {
        store = place.display().to_string();
        break_it(place, id);
    });
    let damage = found.damage.into_iter().map(|text| format!("  {text}\n"));
    let failures = found.unrepaired.into_iter().map(|failure| {
        let remedy = failure.remedy().map_or(String::new(), |remedy| format!("    remedy: {remedy:?}\n"));
        format!("  unrepaired: {failure}\n{remedy}")
    });
    let lines = damage.chain(failures).collect::<String>();
    assert!(!lines.is_empty(), "{name}");
    format!(
        "{name}:\n{}",
        without_digests(&lines.replace(&store, "[store]").replace(&longest_name(), "[longest name]"))
    )
}

fn change_index(place: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let file = place.join("index.json");
    let mut index = serde_json::from_str(&read_to_string(&file).unwrap()).unwrap();
    change(&mut index);
    write(file, index.to_string()).unwrap();
}

/// Stores an image without a name, whose configuration has one more layer than its manifest.
fn put_uneven_image(place: &Path) {
    let store = Store::open(place).unwrap();
    let work = Workspace::open(&store).unwrap();
    let staging = Staging::open(&store, &work).unwrap();
    let mut config = ImageConfig::empty(&Platform::host());
    config.rootfs.diff_ids = vec![DiffId::of(b"layer")];
    let (id, size) = staging.put_document(&config).unwrap();
    let document = manifest(descriptor(MediaType::ImageConfig, &id, size), Vec::new());
    let digest = staging.put_document(&document).unwrap().0.of_manifest();
    staging.publish("load", &[digest], &[(digest, None)]).unwrap();
}

fn put_record_without_tree(place: &Path) {
    let store = Store::open(place).unwrap();
    let key = CacheKey::of(b"key");
    let tree = store.trees().step_tree(&key.into());
    record_tree(&store, &key, &tree);
}

#[test]
fn damage_is_worded_as_recorded() {
    let blob = |place: &Path, id: &ImageId| place.join("blobs/sha256").join(id.hex());
    let dir = |place: &Path, path: &str| create_dir(place.join(path)).unwrap();
    let link = |place: &Path, path: &str| symlink("/nowhere", place.join(path)).unwrap();
    let file = |place: &Path, path: &str| write(place.join(path), "text").unwrap();
    let rows = [
        row("a missing directory", |place, _| remove_dir_all(place.join("records")).unwrap()),
        row("a file in place of a directory", |place, _| {
            remove_dir_all(place.join("records")).unwrap();
            file(place, "records");
        }),
        row("a missing index", |place, _| remove_file(place.join("index.json")).unwrap()),
        row("an index that is not JSON", |place, _| file(place, "index.json")),
        row("an invalid entry", |place, _| {
            change_index(place, |index| index["manifests"][0]["digest"] = "sha256:abcd".into());
        }),
        row("a damaged blob", |place, id| write(blob(place, id), "damaged").unwrap()),
        row("a missing configuration", |place, id| remove_file(blob(place, id)).unwrap()),
        row("a missing configuration without a name", |place, id| {
            change_index(place, |index| drop(index["manifests"][0].as_object_mut().unwrap().remove("annotations")));
            remove_file(blob(place, id)).unwrap();
        }),
        row("different numbers of layers", |place, _| put_uneven_image(place)),
        row("a record without a tree", |place, _| put_record_without_tree(place)),
        row("a record that is not JSON", |place, _| {
            file(place, &format!("records/{}.json", CacheKey::of(b"key").hex()));
        }),
        row("a file among blobs", |place, _| file(place, "blobs/sha256/mine")),
        row("a directory among blobs", |place, _| dir(place, "blobs/sha256/mine")),
        row("a link among blobs", |place, _| link(place, "blobs/sha256/mine")),
        row("a directory among records", |place, _| dir(place, "records/mine")),
        row("a FIFO among records", |place, _| {
            let records = RootDir::open(place.join("records")).unwrap();
            records.create_node(OsStr::new("mine"), FileKind::Fifo, 0o600, (0, 0)).unwrap();
        }),
        row("a directory that cannot be moved", |place, _| {
            dir(place, &format!("records/{}", longest_name()));
            put_in_the_way(place);
        }),
    ];
    assert_recorded!("damage", rows.concat());
}

#[test]
fn states_of_images_are_worded_as_recorded() {
    let blob = BlobDigest::of(b"blob");
    let label = || ImageLabel::Named("a:1".parse().unwrap());
    let states = [Ok(()), Err(BlobFault::Damaged), Err(BlobFault::Missing), Err(BlobFault::Unreadable)];
    let rows = states.map(|state| {
        let mut checked = Checked::default();
        let is_broken = ImageState::with(blob, state).report(label(), &mut checked);
        let texts = [damage(&checked), texts(&checked.unread)].concat();
        let state = state.map_or_else(|fault| format!("{fault:?}"), |()| "Intact".into());
        format!("{state} (broken: {is_broken}): {}\n", texts.join("; "))
    });
    assert_recorded!("image-states", rows.concat());
}
