use std::collections::BTreeMap;
use std::path::PathBuf;

use rbuild_store::{CacheKey, CachedStep};
use rbuild_testkit::Scratch;

use super::*;
use crate::cache::artifact::CachedSteps;
use crate::cache::artifact::tests::{step, steps};
use crate::cache::merge::CacheLimits;

const NONE: &BTreeSet<CacheKey> = &BTreeSet::new();

fn cache(dir: &Path, tag: &str) -> LocalCache {
    LocalCache { dir: Directory::find(dir).unwrap(), tag: tag.into() }
}

/// Makes a layout with these blobs.
fn layout(dir: &Path, blobs: &[&[u8]]) -> LayoutSource {
    let layout = LayoutWriter::open(&Directory::find(dir).unwrap()).unwrap();
    blobs.iter().for_each(|blob| layout.put_bytes(blob).unwrap());
    layout.source().unwrap()
}

/// Returns the files of a directory with their content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry)
            } else {
                drop(found.insert(entry.clone(), std::fs::read(entry).unwrap()))
            }
        }
    }
    found
}

fn write(dir: &Path, ours: &[CachedStep], source: &LayoutSource) -> WrittenCache {
    write_local_cache(&cache(dir, "main"), &own(ours, &BTreeSet::new()), &[source]).unwrap()
}

fn own<'a>(steps: &'a [CachedStep], lost: &'a BTreeSet<CacheKey>) -> OwnSteps<'a> {
    OwnSteps { steps, lost, refreshed: NONE, limits: CacheLimits::default(), today: 100, keys: RecordKeys::none() }
}

fn read(dir: &Path, tag: &str) -> Option<CachedSteps> {
    open_local(dir, tag, RecordKeys::none(), &RecordBudget::default()).unwrap().map(|(records, _)| records.steps)
}

fn written(steps: usize, layers: usize, bytes: u64, is_unchanged: bool) -> WrittenCache {
    let content = StepCount { steps, mounts: 0 };
    WrittenCache { content, layers, bytes, is_unchanged, ..WrittenCache::default() }
}

#[test]
fn only_new_layers_are_written_and_nothing_if_nothing_is_new() {
    let place = Scratch::new();
    let (dir, source) = (place.join("a/cache"), layout(&place.join("store"), &[b"one", b"two"]));
    assert_eq!(read(&dir, "main"), None);
    let one = step("a", b"one", 100);
    let first = written(1, 1, 3, false);
    assert_eq!(write(&dir, std::slice::from_ref(&one), &source), first);
    assert_eq!(read(&dir, "main"), Some(steps([one.clone()])));
    assert_eq!(read(&dir, "other"), None);
    let before = files(&dir);
    let again = written(1, 0, 0, true);
    assert_eq!(write(&dir, std::slice::from_ref(&one), &source), again);
    assert_eq!(files(&dir), before);
    let two = [step("b", b"two", 100), step("c", b"one", 100)];
    assert_eq!(write(&dir, &two, &source), written(3, 1, 3, false));
    assert_eq!(read(&dir, "main"), Some(steps([[one].as_slice(), &two].concat())));
}

#[test]
fn equal_steps_have_equal_bytes() {
    let place = Scratch::new();
    let source = layout(&place.join("store"), &[b"one", b"two"]);
    let ours = [step("a", b"one", 1), step("b", b"two", 1)];
    let other = [ours[1].clone(), ours[0].clone()];
    write(&place.join("x"), &ours, &source);
    write(&place.join("y"), &other, &source);
    let relative = |dir: &str| -> Vec<Vec<u8>> { files(&place.join(dir)).into_values().collect() };
    assert_eq!(relative("x"), relative("y"));
}

#[test]
fn other_content_of_the_layout_stays() {
    let place = Scratch::new();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &[b"one"]));
    layout(&dir, &[b"image"]);
    let entry = json!({"digest": BlobDigest::of(b"image").to_string(), "annotations": {REF_NAME: "image"}});
    let index = json!({"schemaVersion": 2, "manifests": [entry], "annotations": {"kept": "yes"}});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    for tag in ["main", "branch", "main"] {
        let to = cache(&dir, tag);
        write_local_cache(&to, &own(&[step("a", b"one", 1)], &BTreeSet::new()), &[&source]).unwrap();
    }
    let found: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    assert_eq!(found["manifests"].as_array().unwrap().len(), 3, "{found}");
    assert_eq!((&found["manifests"][0], &found["annotations"]["kept"]), (&entry, &json!("yes")));
    assert!(read(&dir, "branch").is_some());
}

/// A lost layer is dropped with its step, and written again by the next build that has it. A
/// damaged document is written anew.
#[test]
fn damage_is_repaired_by_the_next_build() {
    let place = Scratch::new();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &[b"one", b"two"]));
    let ours = [step("a", b"one", 100), step("b", b"two", 100)];
    write(&dir, &ours, &source);
    let blob = |content: &[u8]| dir.join("blobs/sha256").join(BlobDigest::of(content).hex());
    std::fs::remove_file(blob(b"one")).unwrap();
    assert_eq!(write(&dir, &[], &source).content.steps, 1);
    assert_eq!(read(&dir, "main"), Some(steps([ours[1].clone()])));
    std::fs::write(blob(b"two"), "t").unwrap();
    assert_eq!(write(&dir, &ours, &source), written(2, 2, 6, false));
    assert_eq!(std::fs::read(blob(b"two")).unwrap(), b"two");
    // A layer of the right size that a build found to be damaged.
    std::fs::write(blob(b"two"), "owt").unwrap();
    let lost = BTreeSet::from([ours[1].key]);
    write_local_cache(&cache(&dir, "main"), &own(&ours, &lost), &[&source]).unwrap();
    assert_eq!(std::fs::read(blob(b"two")).unwrap(), b"two");
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    std::fs::write(dir.join("blobs/sha256").join(manifest), "{}").unwrap();
    assert!(open_local(&dir, "main", RecordKeys::none(), &RecordBudget::default()).is_err());
    let written = write(&dir, &ours, &source);
    assert_eq!((written.content.steps, written.note), (2, CacheNote::Replaced));
    assert_eq!(read(&dir, "main"), Some(steps(ours.clone())));
    // Records that are gone are written again, although the manifest is the same.
    let documents = CacheDocuments::of(&steps(ours.clone()), RecordKeys::none()).unwrap();
    std::fs::remove_file(blob(&documents.blobs[1])).unwrap();
    let written = write(&dir, &ours, &source);
    assert_eq!((written.is_unchanged, written.note), (false, CacheNote::Replaced));
    assert_eq!(read(&dir, "main"), Some(steps(ours)));
}

#[test]
fn a_step_whose_layer_nobody_has_is_left_out() {
    let place = Scratch::new();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &[b"one"]));
    std::fs::write(place.join("store/blobs/sha256").join(BlobDigest::of(b"bad").hex()), "dab").unwrap();
    let ours = [step("a", b"one", 100), step("b", b"two", 100), step("c", b"bad", 100)];
    assert_eq!(write(&dir, &ours, &source).content.steps, 1);
    assert_eq!(read(&dir, "main"), Some(steps([ours[0].clone()])));
}

#[test]
fn several_writers_lose_nothing() {
    let place = Scratch::new();
    let names: Vec<String> = (0..8).map(|n| format!("layer {n}")).collect();
    let blobs: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &blobs));
    std::thread::scope(|threads| {
        for name in &names {
            threads.spawn(|| write(&dir, &[step(name, name.as_bytes(), 100)], &source));
        }
    });
    assert_eq!(read(&dir, "main").unwrap().len(), 8);
}

#[test]
fn a_directory_with_something_else_is_an_error() {
    let place = Scratch::new();
    std::fs::write(place.join("index.json"), "[").unwrap();
    assert!(open_local(&place, "main", RecordKeys::none(), &RecordBudget::default()).is_err());
    let source = layout(&place.join("store"), &[]);
    let to = cache(&place, "main");
    assert!(write_local_cache(&to, &own(&[], &BTreeSet::new()), &[&source]).is_err());
    // The tag of an image is not replaced.
    let image = layout(&place.join("images"), &[b"{}"]);
    let entry = json!({"digest": BlobDigest::of(b"{}").to_string(), "annotations": {REF_NAME: "main"}});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    std::fs::write(place.join("images/index.json"), &index).unwrap();
    let to = cache(&place.join("images"), "main");
    let e = write_local_cache(&to, &own(&[], &BTreeSet::new()), &[&image]).unwrap_err();
    assert_eq!(e.message(), "it is not a cache of rbuild");
    assert_eq!(std::fs::read_to_string(place.join("images/index.json")).unwrap(), index);
    std::fs::write(place.join("file"), "").unwrap();
    assert!(open_local(&place.join("file"), "main", RecordKeys::none(), &RecordBudget::default()).is_err());
}

/// Only a missing or changed document is damage. One that cannot be read now, or that another
/// version of the program wrote, stays.
#[test]
fn a_cache_that_cannot_be_read_now_is_not_replaced() {
    let place = Scratch::new();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &[b"one", b"two"]));
    let (ours, more) = ([step("a", b"one", 100)], [step("b", b"two", 100)]);
    write(&dir, &ours, &source);
    let documents = CacheDocuments::of(&steps(ours.clone()), RecordKeys::none()).unwrap().blobs;
    let path = |bytes: &[u8]| dir.join("blobs/sha256").join(BlobDigest::of(bytes).hex());
    let records = path(&documents[1]);
    std::fs::remove_file(&records).unwrap();
    std::fs::create_dir(&records).unwrap();
    write_local_cache(&cache(&dir, "main"), &own(&more, NONE), &[&source]).unwrap_err();
    std::fs::remove_dir(&records).unwrap();
    std::fs::write(&records, &documents[1]).unwrap();
    assert_eq!(write(&dir, &more, &source).content.steps, 2, "no step is lost");
    std::fs::write(&records, "x").unwrap();
    // The manifest with both steps refers to other records.
    assert_eq!(write(&dir, &more, &source).note, CacheNote::None);
    let newer = br#"{"version":2}"#;
    let index = std::fs::read_to_string(dir.join("index.json")).unwrap();
    let parsed: Value = serde_json::from_str(&index).unwrap();
    let digest: BlobDigest = parsed["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let manifest = std::fs::read_to_string(dir.join("blobs/sha256").join(digest.hex())).unwrap();
    let config = serde_json::from_str::<Value>(&manifest).unwrap()["config"]["digest"].as_str().unwrap().to_string();
    let changed = manifest.replace(&config, &BlobDigest::of(newer).to_string());
    std::fs::write(path(newer), newer).unwrap();
    std::fs::write(path(changed.as_bytes()), &changed).unwrap();
    let index = index.replace(&digest.to_string(), &BlobDigest::of(changed.as_bytes()).to_string());
    std::fs::write(dir.join("index.json"), &index).unwrap();
    assert_eq!(write(&dir, &more, &source).note, CacheNote::NewerFormat);
    assert_eq!(std::fs::read_to_string(dir.join("index.json")).unwrap(), index);
}

/// All caches of a build share one budget, whatever their type is.
#[test]
fn the_documents_of_directories_count_in_the_budget() {
    let place = Scratch::new();
    let dirs = ["one", "two"].map(|name| place.join(name));
    let (ours, source) = ([step("a", b"layer", 100)], layout(&place.join("store"), &[b"layer"]));
    for dir in &dirs {
        write(dir, &ours, &source);
    }
    let CacheDocuments { manifest, blobs } = CacheDocuments::of(&steps(ours.clone()), RecordKeys::none()).unwrap();
    let lines = zstd::decode_all(&blobs[1][..]).unwrap().len();
    let size = (manifest.bytes.len() + blobs.concat().len() + lines) as u64;
    let open = |dir: &Path, budget: &RecordBudget| open_local(dir, "main", RecordKeys::none(), budget).map(drop);
    let enough = RecordBudget::of(2 * size);
    dirs.iter().for_each(|dir| open(dir, &enough).unwrap());
    assert!(enough.take(1).is_err(), "nothing is left");
    let little = RecordBudget::of(2 * size - 1);
    open(&dirs[0], &little).unwrap();
    let e = open(&dirs[1], &little).unwrap_err().message();
    assert!(e.contains("the records of all caches exceed"), "{e}");
}

/// Even if the same steps are written again, and the size of a damaged document is right.
#[test]
fn damaged_documents_are_written_again() {
    let place = Scratch::new();
    let (dir, source) = (place.join("cache"), layout(&place.join("store"), &[b"one"]));
    let ours = [step("a", b"one", 100)];
    write(&dir, &ours, &source);
    let CacheDocuments { manifest, blobs } = CacheDocuments::of(&steps(ours.clone()), RecordKeys::none()).unwrap();
    for bytes in blobs.iter().chain([&manifest.bytes]) {
        let path = dir.join("blobs/sha256").join(BlobDigest::of(bytes).hex());
        for wrong in [vec![b'x'; bytes.len()], Vec::new()] {
            std::fs::write(&path, wrong).unwrap();
            assert_eq!(write(&dir, &ours, &source).note, CacheNote::Replaced);
            assert_eq!(read(&dir, "main"), Some(steps(ours.clone())));
        }
        std::fs::remove_file(&path).unwrap();
        write(&dir, &ours, &source);
        assert_eq!(read(&dir, "main"), Some(steps(ours.clone())));
    }
}
