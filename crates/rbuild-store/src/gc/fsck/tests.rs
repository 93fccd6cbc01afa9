//! Damaged stores, and what a repair finds and leaves.

mod messages;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rbuild_image::{ImageConfig, ImageId, MediaType, Platform, Reference, descriptor, manifest};
use rbuild_remedy::{Remedy, StoreRemedy};
use rbuild_testkit::Scratch;

use super::*;
use crate::ids::{BuildId, ImageKey};
use crate::staging::Staging;
use crate::workspace::Workspace;

fn texts(found: &[impl ToString]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

fn damage(found: &Checked) -> Vec<String> {
    texts(&found.damage)
}

/// Only the name of the invalid entry is lost.
#[test]
fn invalid_entries_of_the_index_are_removed_alone() {
    let entry = |digest: &str, more: &str| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}",{more}}}"#)
    };
    let valid = format!("sha256:{}", "a".repeat(64));
    let named = r#""annotations":{"org.opencontainers.image.ref.name":"lost"},"size":1"#;
    for (invalid, name) in [
        (entry(&format!("sha512:{}", "a".repeat(128)), r#""size":1"#), ""),
        (entry("sha256:abcd", named), " `lost`"),
        (entry(&valid.to_uppercase(), r#""size":1"#), ""),
        (entry(&valid, r#""size":-1"#), ""),
        (entry(&valid, r#""size":1,"annotations":{"a":1}"#), ""),
        (format!(r#"{{"digest":"{valid}","size":1}}"#), ""),
        ("7".into(), ""),
    ] {
        let (found, after, images) = repaired(|place, _| {
            let index = place.join("index.json");
            let text = std::fs::read_to_string(&index).unwrap();
            std::fs::write(&index, text.replace("\"manifests\":[", &format!("\"manifests\":[{invalid},"))).unwrap();
            assert!(matches!(Store::open(place).unwrap().images().list(), Err(StoreError::Damaged { .. })));
        });
        let start = format!("the entry{name} of the store's index.json is invalid: ");
        let damage = damage(&found);
        assert!(damage.len() == 1 && damage[0].starts_with(&start), "{damage:?}");
        assert_eq!((after.damage.len(), images), (0, 1), "{invalid}");
    }
    let (found, _, images) = repaired(|place, _| std::fs::write(place.join("index.json"), "{").unwrap());
    let damage_of_list = damage(&found);
    assert!(
        damage_of_list.len() == 1 && damage_of_list[0].ends_with("the names of all images are lost"),
        "{damage_of_list:?}"
    );
    assert_eq!(images, 0);
}

/// Removes parts of a store with one image, and returns the damage that a repair finds and the
/// number of images afterwards.
fn repaired(break_it: impl FnOnce(&std::path::Path, &ImageId)) -> (Checked, Checked, usize) {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let work = Workspace::open(&store).unwrap();
    let (digest, id) = empty_image(&store, &work, "a:1");
    store.records().put_result(&ImageKey::of(b"key"), &digest, &BuildId::of_command("build")).unwrap();
    drop((work, store));
    break_it(&place, &id);
    let store = Store::open(&place).unwrap();
    let found = store.gc().check(true).unwrap();
    let (after, images) = (store.gc().check(false).unwrap(), store.images().list().unwrap().len());
    (found, after, images)
}

#[test]
fn missing_parts_of_a_store_are_made_again() {
    let (found, after, images) = repaired(|place, _| std::fs::remove_file(place.join("index.json")).unwrap());
    assert_eq!(damage(&found), ["the store's index.json is missing; the names of all images are lost"]);
    assert_eq!((after.damage.len(), after.unread.len(), images), (0, 0, 0));
    for dir in ["tmp", "records", "trees"] {
        let (found, after, images) = repaired(|place, _| std::fs::remove_dir_all(place.join(dir)).unwrap());
        assert_eq!(damage(&found), [format!("the store's directory `{dir}` is missing")]);
        assert_eq!((after.damage.len(), images), (0, 1));
    }
    let (found, after, images) = repaired(|place, _| std::fs::remove_dir_all(place.join("blobs")).unwrap());
    assert_eq!(found.damage.len(), 3, "{found:?}");
    assert_eq!((after.damage.len(), images), (0, 0));
}

/// Root may read everything, so only other users see the failure.
#[test]
fn content_that_cannot_be_read_is_not_removed() {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut blob = None;
    let (found, after, images) = repaired(|place, id| {
        let file = place.join("blobs/sha256").join(id.hex());
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o0)).unwrap();
        blob = Some(id.blob());
    });
    let unread = texts(&found.unread);
    assert!(found.damage.is_empty() && after.damage.is_empty() && texts(&after.unread) == unread, "{after:?}");
    assert_eq!((unread.len(), images), (if is_root { 0 } else { 2 }, 1), "{found:?}");
    if let [file, image] = &unread[..] {
        let start = format!("cannot read blob {} in the store `", blob.unwrap());
        assert!(file.starts_with(&start) && file.ends_with(": permission denied"), "{file}");
        assert_eq!(found.unread[0].remedy(), Some(Remedy::Store(StoreRemedy::OwnStore)));
        assert!(image.starts_with("image `a:1` cannot be verified: "), "{image}");
    }
}

#[test]
fn things_in_place_of_blobs_and_documents_are_reported_by_path_and_put_away() {
    let dir = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("kept"), "kept").unwrap();
    };
    let link = |path: &Path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap();
    let file = |path: &Path| std::fs::write(path, "kept").unwrap();
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, Option<&'a str>);
    let cases: [Case<'_>; 10] = [
        ("blobs/sha256/HEX", &dir, "is a directory, not a file", Some("HEX/kept")),
        ("blobs/sha256/HEX", &link, "is a symbolic link, not a file", None),
        ("blobs/sha256/mine", &dir, "is a directory, not a file", Some("mine/kept")),
        ("blobs/sha256/mine", &file, "is not named after a digest", Some("mine")),
        ("records/mine", &dir, "is a directory, not a file", Some("mine/kept")),
        ("records/mine.json", &file, "is not named after a digest", Some("mine.json")),
        ("results/mine", &file, "is not named after a digest", Some("mine")),
        ("partial/HEX", &dir, "is a directory, not a file", Some("HEX/kept")),
        ("partial/HEX", &link, "is a symbolic link, not a file", None),
        ("partial/mine", &file, "is not named after a digest", Some("mine")),
    ];
    for (path, put, problem, kept) in cases {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let work = Workspace::open(&store).unwrap();
        let (_, id) = empty_image(&store, &work, "a:1");
        drop(work);
        let real = |text: &str| text.replace("HEX", &id.hex());
        let target = place.join(real(path));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let replaces = target.exists();
        if replaces {
            std::fs::remove_file(&target).unwrap();
        }
        put(&target);
        let found = store.gc().check(false).unwrap();
        assert_eq!(found.damage[0].to_string(), real(&format!("`{path}` in the store {problem}")));
        assert_eq!((found.damage.len(), found.unread.len()), (if replaces { 2 } else { 1 }, 0), "{found:?}");
        let name = real(path.rsplit('/').next().unwrap());
        let repaired = store.gc().check(true).unwrap();
        let moved = if kept.is_some() { format!("; it was moved to `misplaced/{name}`") } else { String::new() };
        assert_eq!(repaired.damage[0].to_string(), format!("{}{moved}", found.damage[0]));
        if let Some(kept) = kept {
            assert_eq!(std::fs::read_to_string(place.join("misplaced").join(real(kept))).unwrap(), "kept");
        }
        let after = store.gc().check(false).unwrap();
        assert_eq!((after.damage.len(), after.unread.len()), (0, 0), "{after:?}");
        // A second entry of the same name gets another name in `misplaced`.
        put(&target);
        assert_eq!(store.gc().check(true).unwrap().damage.len(), 1);
        assert_eq!(place.join(format!("misplaced/{name}.1")).exists(), kept.is_some());
    }
}

#[test]
fn files_in_place_of_directories_are_put_away() {
    for dir in ["blobs", "blobs/sha256", "records", "tmp", "partial", "pulled", "pushed"] {
        let (found, after, _) = repaired(|place, _| {
            if place.join(dir).exists() {
                std::fs::remove_dir_all(place.join(dir)).unwrap();
            }
            std::fs::write(place.join(dir), "mine").unwrap();
        });
        let name = dir.rsplit('/').next().unwrap();
        let problem = format!("`{dir}` in the store is not a directory; it was moved to `misplaced/{name}`");
        assert_eq!((found.damage[0].to_string(), found.unrepaired.len()), (problem, 0), "{found:?}");
        assert_eq!((after.damage.len(), after.unread.len()), (0, 0), "{after:?}");
    }
}

#[test]
fn a_file_named_misplaced_does_not_stop_a_repair() {
    let (found, after, _) = repaired(|place, _| {
        std::fs::create_dir(place.join("records/mine")).unwrap();
        std::fs::write(place.join("misplaced"), "other").unwrap();
        std::fs::write(place.join("misplaced.1"), "other").unwrap();
    });
    let moved = "`records/mine` in the store is a directory, not a file; it was moved to `misplaced.2/mine`";
    assert_eq!((damage(&found), found.unrepaired.len()), (vec![moved.to_string()], 0), "{found:?}");
    assert_eq!((after.damage.len(), after.unread.len()), (0, 0), "{after:?}");
}

/// Returns a name that cannot be made longer.
fn longest_name() -> String {
    "x".repeat(255)
}

/// Prevents a repair from moving entries with the longest name: nothing can be added to it.
fn put_in_the_way(place: &Path) {
    std::fs::create_dir(place.join("misplaced")).unwrap();
    std::fs::write(place.join("misplaced").join(longest_name()), "in the way").unwrap();
}

/// The other damage is repaired, and all damage is reported.
#[test]
fn damage_that_cannot_be_removed_does_not_stop_a_repair() {
    let (found, after, images) = repaired(|place, id| {
        std::fs::create_dir(place.join("blobs/sha256").join(longest_name())).unwrap();
        std::fs::create_dir(place.join("records").join(longest_name())).unwrap();
        std::fs::write(place.join("blobs/sha256").join(id.hex()), "other").unwrap();
        put_in_the_way(place);
    });
    assert_eq!((found.damage.len(), found.unrepaired.len(), found.unread.len()), (2, 2, 0), "{found:?}");
    for (failure, path) in found.unrepaired.iter().zip(["blobs/sha256", "records"]) {
        let start = format!("`{path}/{}` in the store is a directory, not a file; cannot ", longest_name());
        let text = failure.to_string();
        assert!(text.starts_with(&start) && text.contains("misplaced in the store"), "{text}");
        assert!(failure.remedy().is_some(), "{failure:?}");
    }
    assert_eq!((after.damage.len(), after.unrepaired.len(), images), (2, 0, 0), "{after:?}");
}

#[test]
fn damaged_images_without_a_name_are_named_as_in_the_list_of_images() {
    let (found, ..) = repaired(|place, id| {
        let index = place.join("index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        let mut index_of: serde_json::Value = serde_json::from_str(&text).unwrap();
        index_of["manifests"][0].as_object_mut().unwrap().remove("annotations");
        std::fs::write(&index, index_of.to_string()).unwrap();
        std::fs::write(place.join("blobs/sha256").join(id.hex()), "damaged").unwrap();
    });
    assert!(damage(&found).iter().any(|text| text.starts_with("image `<none>` with manifest sha256:")), "{found:?}");
}

/// Stores an image without layers, and returns its manifest and ID.
fn empty_image(store: &Store, work: &Workspace, name: &str) -> (ManifestDigest, ImageId) {
    let staging = Staging::open(store, work).unwrap();
    let (id, size) = staging.put_document(&ImageConfig::empty(&Platform::host())).unwrap();
    let manifest = manifest(descriptor(MediaType::ImageConfig, &id, size), Vec::new());
    let digest = staging.put_document(&manifest).unwrap().0.of_manifest();
    let name: Reference = name.parse().unwrap();
    staging.publish("load", &[digest], &[(digest, Some(name))]).unwrap();
    (digest, id.of_config())
}

#[test]
fn content_added_during_verification_is_not_damage() {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let mut checked = Checked::default();
    let before = store.gc().check_blobs(false, &mut checked).unwrap();
    let work = Workspace::open(&store).unwrap();
    let (digest, id) = empty_image(&store, &work, "a:1");
    store.records().put_result(&ImageKey::of(b"key"), &digest, &BuildId::of_command("build")).unwrap();
    let problems = |blobs: &CheckedBlobs| {
        let mut checked = Checked::default();
        store.gc().check_images(false, blobs, &mut checked).unwrap();
        checked.damage.len()
    };
    assert_eq!(problems(&before), 0);
    std::fs::write(place.join("blobs/sha256").join(id.hex()), "damaged").unwrap();
    assert_eq!(problems(&before), 1, "its configuration is read again");
    assert_eq!(store.gc().check(false).unwrap().damage.len(), 2);
}
