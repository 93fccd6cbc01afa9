//! Tables of contents of stores, and of those that remain after an eviction or a prune.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use rbuild_image::{BlobDigest, ImageConfig, MediaType, Platform, Reference, descriptor, manifest};
use rbuild_layer::LayerForm;
use rbuild_linux::{OwnerMode, RootDir, Timestamp};
use rbuild_testkit::Scratch;

use super::budget::Budget;
use super::freed::Freed;
use super::prune::DanglingImages;
use crate::cache::records::{RecordOrigin, RecordedStep};
use crate::cache_mounts::CacheUse;
use crate::containers::{NewContainer, RunSettings};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::ids::{BuildId, BuildIndexName, CacheId, CacheKey, HashesName, ImageKey};
use crate::layers::LayerVariant;
use crate::session::record_tree;
use crate::staging::Staging;
use crate::store::Store;
use crate::trees::id::TreeId;
use crate::trees::tree::{INODES, LISTING};
use crate::workspace::Workspace;

const PLAIN: LayerVariant = LayerVariant { form: LayerForm::Uncompressed, latest: None };
const MIB: u64 = 1 << 20;

struct Scene {
    store: Store,
    path: Scratch,
}

impl Scene {
    fn new() -> Scene {
        let path = Scratch::new();
        let store = Store::open(&path).unwrap();
        Scene { store, path }
    }

    fn names(&self, dir: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path.join(dir)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn used_at(&self, dir: &str, name: &str, sec: i64) {
        self.store.dir(dir).unwrap().set_mtime(OsStr::new(name), Timestamp { sec, nsec: 0 }).unwrap();
    }

    /// Makes a tree with one small file, which a step or a layer may have.
    fn tree(&self, id: &TreeId) {
        let work = Workspace::open(&self.store).unwrap();
        let made = self.store.trees().new_tree(&work).unwrap();
        std::fs::write(made.path.join("fs/file"), id.name()).unwrap();
        self.store.trees().put_note(&made.dir, "note", b"").unwrap();
        self.store.trees().commit_tree(&work, &made.path, id).unwrap();
    }

    /// Sets the disk usage of a tree, which is otherwise measured when it is needed.
    fn occupies(&self, tree: &TreeId, mib: u64) {
        std::fs::write(self.path.join("trees").join(tree.name()).join("bytes.json"), (mib * MIB).to_string()).unwrap();
    }

    /// Records a tree under a key.
    fn record(&self, key: &CacheKey, tree: &TreeId) {
        record_tree(&self.store, key, tree);
    }

    /// Makes a tree with a record of that key.
    fn step(&self, key: &str) -> TreeId {
        let key = CacheKey::of(key.as_bytes());
        let tree = self.store.trees().step_tree(&key.into());
        self.tree(&tree);
        self.record(&key, &tree);
        tree
    }

    /// Makes a step whose tree is stored as changes to `base`.
    fn changes(&self, key: &str, base: &TreeId) -> TreeId {
        let (key, work) = (CacheKey::of(key.as_bytes()), Workspace::open(&self.store).unwrap());
        let made = self.store.trees().new_tree(&work).unwrap();
        std::fs::write(made.path.join("fs/changed"), key.hex()).unwrap();
        self.store.changed_trees().store_as_changes(&made.dir, base).unwrap();
        let tree = self.store.trees().commit_step(&work, &made, &key.into()).unwrap();
        self.record(&key, &tree);
        tree
    }

    /// Makes the tree of a layer with that content.
    fn layer(&self, content: &str) -> TreeId {
        let diff_id = BlobDigest::of(content.as_bytes()).of_plain_layer();
        let tree = TreeId::of_layer(&diff_id, OwnerMode::Given);
        self.tree(&tree);
        let document = format!(r#"{{"tree":"{}","boot":"{}","build":"build"}}"#, tree.name(), self.store.boot());
        std::fs::write(self.path.join(format!("layers/{}.json", diff_id.hex())), document).unwrap();
        tree
    }

    /// Makes an image of one layer with that content, and returns its manifest, configuration and
    /// layer.
    fn image(&self, content: &str, name: Option<&str>) -> [BlobDigest; 3] {
        let work = Workspace::open(&self.store).unwrap();
        let staging = Staging::open(&self.store, &work).unwrap();
        let (layer, size) = staging.put_bytes(content.as_bytes()).unwrap();
        let mut config = ImageConfig::empty(&Platform::host());
        config.rootfs.diff_ids = vec![layer.of_plain_layer()];
        let (id, id_size) = staging.put_document(&config).unwrap();
        let layers = vec![descriptor(MediaType::ImageLayer, &layer, size)];
        let document = manifest(descriptor(MediaType::ImageConfig, &id, id_size), layers);
        let digest = staging.put_document(&document).unwrap().0;
        let name: Option<Reference> = name.map(|name| name.parse().unwrap());
        staging.publish("load", &[digest.of_manifest()], &[(digest.of_manifest(), name)]).unwrap();
        [digest, id, layer]
    }

    /// Makes a cache mount of `mib` mebibytes, and returns its name.
    fn cache_mount(&self, id: &str, mib: usize) -> String {
        let work = Workspace::open(&self.store).unwrap();
        let fill = |dir: &RootDir| {
            std::fs::write(dir.label().join("file"), vec![7; mib << 20]).unwrap();
            Ok::<(), StoreError>(())
        };
        let id = CacheId::of(id.as_bytes());
        let cache = self.store.cache_mounts().cache_mount(&work, &id, CacheUse::Shared, fill).unwrap();
        cache.path.file_name().unwrap().to_str().unwrap().to_string()
    }
}

fn record(key: &str) -> String {
    format!("{}.json", CacheKey::of(key.as_bytes()).hex())
}

/// A cache of 10 MiB: a tree without a record (1 MiB), a step used at 10 (2 MiB), a cache mount
/// used at 20 (1 MiB), the tree of a layer used at 30 (4 MiB), and a step used at 40 (2 MiB).
/// Returns each with its path, and that of its document.
fn ten_mebibytes(scene: &Scene) -> [(&'static str, String, Option<String>); 5] {
    let (early, late, layer) = (scene.step("early"), scene.step("late"), scene.layer("layer"));
    let orphan = scene.store.trees().step_tree(&CacheKey::of(b"orphan").into());
    scene.tree(&orphan);
    let mount = scene.cache_mount("mount", 1);
    for (tree, mib) in [(&orphan, 1), (&early, 2), (&layer, 4), (&late, 2)] {
        scene.occupies(tree, mib);
    }
    let document = format!("{}.json", &layer.name()[1..]);
    scene.used_at("records", &record("early"), 10);
    scene.used_at("mounts", &mount, 20);
    scene.used_at("layers", &document, 30);
    scene.used_at("records", &record("late"), 40);
    [
        ("orphan", tree(&orphan), None),
        ("early", tree(&early), Some(format!("records/{}", record("early")))),
        ("mount", format!("mounts/{mount}"), None),
        ("layer", tree(&layer), Some(format!("layers/{document}"))),
        ("late", tree(&late), Some(format!("records/{}", record("late")))),
    ]
}

/// Each row has a budget in MiB, the time since which entries must have been used, and the number
/// of entries that are evicted: the first ones of [`ten_mebibytes`].
#[test]
fn the_least_recently_used_entries_are_evicted_until_the_rest_fits() {
    for (mib, used_since, evicted) in [
        (None, None, 0),
        (Some(11), None, 0),
        (Some(10), None, 0),
        (Some(9), None, 1),
        (Some(8), None, 2),
        (Some(7), None, 2),
        (Some(6), None, 3),
        (Some(5), None, 4),
        (Some(2), None, 4),
        (Some(1), None, 5),
        (Some(0), None, 5),
        (None, Some(10), 1),
        (None, Some(11), 2),
        (None, Some(40), 4),
        (None, Some(41), 5),
        // With both, entries to which both apply.
        (Some(6), Some(21), 3),
        (Some(9), Some(31), 1),
        (Some(1), Some(1), 1),
    ] {
        let scene = Scene::new();
        let entries = ten_mebibytes(&scene);
        // The directory of a cache mount may occupy some blocks itself.
        let bytes = mib.map(|mib: u64| mib * MIB + MIB / 2);
        let freed = scene.store.gc().collect(Budget { bytes, used_since, origin: None }).unwrap();
        let exists = |path: &str| scene.path.join(path).exists();
        let case = format!("{mib:?} MiB, used since {used_since:?}");
        for (i, (name, path, document)) in entries.iter().enumerate() {
            assert_eq!(exists(path), i >= evicted, "{case}: {name}");
            assert!(document.as_ref().is_none_or(|document| exists(document) == (i >= evicted)), "{case}: {name}");
        }
        let of = |kind: &[&str]| entries[..evicted].iter().filter(|(name, ..)| kind.contains(name)).count() as u64;
        let expected = Freed {
            trees: of(&["orphan", "early", "layer", "late"]),
            records: of(&["early", "layer", "late"]),
            mounts: of(&["mount"]),
            bytes: freed.bytes,
            ..Freed::default()
        };
        assert_eq!(freed, expected, "{case}");
    }
}

#[test]
fn only_entries_of_a_cache_are_evicted() {
    let scene = Scene::new();
    scene.step("own");
    scene.step("other");
    let origin = RecordOrigin { cache: "a cache".into(), runner: None, imported: 7 };
    let key = CacheKey::of(b"imported");
    let tree = scene.step("imported");
    let step = RecordedStep { tree: &tree, result: key.into(), created: 7, origin: Some(&origin) };
    scene.store.records().put_record(&key, None, &step, &BuildId::new(9, 9)).unwrap();
    let collect = |origin, used_since| {
        let freed = scene.store.gc().collect(Budget { bytes: None, used_since, origin: Some(origin) }).unwrap();
        (freed.trees, scene.names("trees").len())
    };
    assert_eq!(collect("another", None), (0, 3));
    assert_eq!(collect("a cache", Some(1)), (0, 3), "it is not old enough");
    assert_eq!(collect("a cache", None), (1, 2));
}

/// Each row has the times at which the two records of a tree were used, and the times since which
/// entries must have been used so that it stays and goes.
#[test]
fn a_tree_with_several_records_counts_as_used_at_the_latest() {
    for (one, other, stays, goes) in [(10, 20, 20, 21), (20, 10, 20, 21), (10, 10, 10, 11)] {
        let scene = Scene::new();
        let (key, tree) = (CacheKey::of(b"other"), scene.step("one"));
        scene.record(&key, &tree);
        scene.used_at("records", &record("one"), one);
        scene.used_at("records", &record("other"), other);
        let collect =
            |used_since| scene.store.gc().collect(Budget { used_since: Some(used_since), ..Budget::default() });
        assert_eq!(collect(stays).unwrap(), Freed::default(), "{one} {other}");
        let freed = collect(goes).unwrap();
        assert_eq!((freed.trees, freed.records, scene.names("records").len()), (1, 2, 0), "{one} {other}");
    }
}

/// Two copies of 3 MiB each share a file of 2 MiB. Each row has a budget and the number of trees
/// that are kept.
#[test]
fn files_shared_by_copies_count_once() {
    for (mib, linked, kept) in [(4, true, 2), (3, true, 1), (2, true, 0), (6, false, 2), (5, false, 1), (4, false, 1)] {
        let scene = Scene::new();
        for (key, used, inode) in [("early", 10, 1), ("late", 20, if linked { 1 } else { 2 })] {
            let tree = scene.step(key);
            scene.occupies(&tree, 3);
            scene.used_at("records", &record(key), used);
            let note: Vec<u8> = [inode, 2 * MIB].iter().flat_map(|number: &u64| number.to_le_bytes()).collect();
            let dir = scene.path.join("trees").join(tree.name());
            std::fs::write(dir.join(LISTING), "").unwrap();
            std::fs::write(dir.join(INODES), note).unwrap();
        }
        let reclaimable = scene.store.disk_usage().reclaimable_cache().unwrap();
        assert_eq!(reclaimable / MIB, if linked { 4 } else { 6 }, "by recorded sizes");
        scene.store.gc().collect(Budget { bytes: Some(mib * MIB), ..Budget::default() }).unwrap();
        assert_eq!(scene.names("trees").len(), kept, "{mib} MiB, linked: {linked}");
    }
}

/// Each row has the times at which the records of a tree and of the changes above it were used, a
/// budget in MiB, and whether each is kept. The tree has 4 MiB, the changes 1 MiB.
#[test]
fn the_base_of_a_tree_stored_as_changes_is_evicted_last_and_takes_that_tree_along() {
    for (base_used, changes_used, mib, keeps_base, keeps_changes) in [
        (10, 20, 5, true, true),
        (10, 20, 4, true, false),
        (20, 10, 4, true, false),
        (10, 20, 3, false, false),
        (20, 10, 3, false, false),
    ] {
        let scene = Scene::new();
        let base = scene.step("base");
        let changes = scene.changes("changes", &base);
        scene.occupies(&base, 4);
        scene.occupies(&changes, 1);
        scene.used_at("records", &record("base"), base_used);
        scene.used_at("records", &record("changes"), changes_used);
        scene.store.gc().collect(Budget { bytes: Some(mib * MIB), ..Budget::default() }).unwrap();
        let case = format!("{base_used} {changes_used}, {mib} MiB");
        for (name, tree, kept) in [("base", &base, keeps_base), ("changes", &changes, keeps_changes)] {
            assert_eq!(scene.names("trees").contains(tree.name()), kept, "{case}: {name}");
            assert_eq!(scene.names("records").contains(&record(name)), kept, "{case}: record of {name}");
        }
    }
}

#[test]
fn a_base_without_a_record_is_kept_for_the_changes_above_it() {
    let scene = Scene::new();
    let base = scene.step("base");
    let changes = scene.changes("changes", &base);
    std::fs::remove_file(scene.path.join("records").join(record("base"))).unwrap();
    scene.store.gc().prune(false, DanglingImages::Remove).unwrap();
    assert_eq!(scene.names("trees"), [&base, &changes].map(|tree| tree.name().to_string()).into());
    let of_changes = || scene.store.records().record(&CacheKey::of(b"changes")).unwrap();
    assert!(of_changes().is_some());
    // Neither another version of this program nor anything else may leave half of such a tree.
    std::fs::remove_dir_all(scene.path.join(tree(&base))).unwrap();
    assert!(of_changes().is_none());
    scene.store.gc().prune(false, DanglingImages::Remove).unwrap();
    assert_eq!((scene.names("trees").len(), scene.names("records").len()), (0, 0));
}

#[test]
fn packed_layers_are_counted_and_evicted_with_their_tree() {
    let scene = Scene::new();
    let tree = scene.step("step");
    let work = Workspace::open(&scene.store).unwrap();
    let layer = scene.store.layers().pack_tree(&work, &tree, PLAIN, &|| false).unwrap();
    drop(work);
    scene.occupies(&tree, 1);
    let budget = |bytes| Budget { bytes: Some(bytes), ..Budget::default() };
    assert_eq!(scene.store.gc().collect(budget(MIB + layer.size)).unwrap(), Freed::default());
    assert!(scene.names("blobs/sha256").contains(&layer.digest.hex()));
    let freed = scene.store.gc().collect(budget(MIB + layer.size - 1)).unwrap();
    assert_eq!((freed.trees, freed.blobs), (1, 1));
    assert!(scene.names("blobs/sha256").is_empty());
}

#[test]
fn a_measured_cache_without_mounts_is_known_to_fit() {
    let scene = Scene::new();
    let (one, two) = (scene.step("one"), scene.step("two"));
    scene.occupies(&one, 1);
    assert!(scene.store.gc().may_exceed(100 * MIB).unwrap(), "a tree was not measured");
    scene.occupies(&two, 2);
    let work = Workspace::open(&scene.store).unwrap();
    let layer = scene.store.layers().pack_tree(&work, &one, PLAIN, &|| false).unwrap();
    drop(work);
    let bytes = 3 * MIB + layer.size;
    assert_eq!([bytes - 1, bytes].map(|most| scene.store.gc().may_exceed(most).unwrap()), [true, false]);
    scene.cache_mount("mount", 1);
    assert!(scene.store.gc().may_exceed(100 * MIB).unwrap(), "cache mounts change");
}

#[test]
fn interrupted_downloads_count_towards_the_limit() {
    let scene = Scene::new();
    let path = scene.path.join("partial").join(BlobDigest::of(b"blob").hex());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, vec![1; 2 << 20]).unwrap();
    for (limit, exceeds) in [(3 * MIB, false), (MIB, true)] {
        assert_eq!(scene.store.gc().may_exceed(limit).unwrap(), exceeds, "{limit}");
        let freed = scene.store.gc().collect(Budget { bytes: Some(limit), ..Budget::default() }).unwrap();
        assert_eq!((freed.blobs, path.exists()), (u64::from(exceeds), !exceeds), "{limit}");
    }
}

#[test]
fn a_budget_evicts_nothing_while_another_process_uses_the_store() {
    let scene = Scene::new();
    scene.step("step");
    let other = Store::open(&scene.path).unwrap();
    let none = Budget { bytes: Some(0), ..Budget::default() };
    assert_eq!(scene.store.gc().collect(none).unwrap(), Freed::default());
    drop(other);
    assert_eq!(scene.store.gc().collect(none).unwrap().trees, 1);
}

/// A name, a path below the store's directory, and whether it survives a prune and a prune of all.
type Row = (&'static str, String, bool, bool);

fn blob(digest: &BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn tree(id: &TreeId) -> String {
    format!("trees/{}", id.name())
}

/// Makes a named image, a dangling one, and one that a container uses, and the notes about them.
fn fill_images(scene: &Scene) -> Vec<Row> {
    let store = &scene.store;
    let [named, named_config, named_layer] = scene.image("named", Some("a:1"));
    let [dangling, _, dangling_layer] = scene.image("dangling", None);
    let [held, ..] = scene.image("held", None);
    let image = held.of_manifest();
    let created = rbuild_linux::Timestamp::default();
    let durability = Durability::Crash;
    let new =
        NewContainer { name: None, image: &image, image_name: "held", created, command: &[], salt: "salt", durability };
    store.container_changes().unwrap().create(&new, &RunSettings::default()).result.unwrap();
    let (live_tree, dead_tree) = (scene.layer("named"), scene.layer("dangling"));
    let [live_note, dead_note] = [&named_layer, &dangling_layer].map(|layer| {
        let diff_id = BlobDigest::of(b"content").of_plain_layer();
        store.blobs().note_layer(layer, &diff_id).unwrap();
        store.layers().put_layer_size(&layer.of_plain_layer(), 7).unwrap();
        format!("layers/{}-{}.holds", diff_id.hex(), layer.hex())
    });
    let [kept_result, removed_result] = [&named, &dangling].map(|manifest| {
        let key = ImageKey::of(manifest.bytes());
        store.records().put_result(&key, &manifest.of_manifest(), &BuildId::of_command("build")).unwrap();
        format!("results/{}.json", key.hex())
    });
    vec![
        ("the manifest of a named image", blob(&named), true, true),
        ("its configuration", blob(&named_config), true, true),
        ("its layer", blob(&named_layer), true, true),
        ("the size of its layer", format!("layers/{}.size", named_layer.hex()), true, true),
        ("the content of its layer", live_note, true, true),
        ("the tree of its layer", tree(&live_tree), true, false),
        ("the document of that tree", format!("layers/{}.json", named_layer.hex()), true, false),
        ("the result that is its manifest", kept_result, true, false),
        ("the manifest of a dangling image", blob(&dangling), false, false),
        ("its layer", blob(&dangling_layer), false, false),
        ("the size of its layer", format!("layers/{}.size", dangling_layer.hex()), false, false),
        ("the content of its layer", dead_note, false, false),
        ("the tree of its layer", tree(&dead_tree), false, false),
        ("the result that is its manifest", removed_result, false, false),
        ("the manifest of a container's image", blob(&held), true, true),
        ("a sync mark", "builds/load.synced".into(), true, false),
    ]
}

/// Makes a step with and without a tree, a tree without a step, and the notes about them.
fn fill_cache(scene: &Scene) -> Vec<Row> {
    let (store, work) = (&scene.store, Workspace::open(&scene.store).unwrap());
    let (step, lost) = (scene.step("step"), scene.step("lost"));
    std::fs::remove_dir_all(scene.path.join(tree(&lost))).unwrap();
    let orphan = store.trees().step_tree(&CacheKey::of(b"orphan").into());
    scene.tree(&orphan);
    let [packed, orphan_packed] =
        [&step, &orphan].map(|tree| store.layers().pack_tree(&work, tree, PLAIN, &|| false).unwrap());
    for key in ["step", "gone"] {
        store.records().put_key_inputs(&CacheKey::of(key.as_bytes()), &Default::default()).unwrap();
    }
    let (hashes, index) = (HashesName::of(b"context"), BuildIndexName::of(b"file"));
    store.records().put_hashes(&hashes, b"").unwrap();
    store.records().put_build_index(&index, &Default::default()).unwrap();
    let mount = scene.cache_mount("mount", 0);
    vec![
        ("the tree of a step", tree(&step), true, false),
        ("its record", format!("records/{}", record("step")), true, false),
        ("the inputs of its key", format!("accounts/{}", record("step")), true, false),
        ("its packed layer", blob(&packed.digest), true, false),
        ("a record without a tree", format!("records/{}", record("lost")), false, false),
        ("inputs of a key without a record", format!("accounts/{}", record("gone")), false, false),
        ("a tree without a record", tree(&orphan), false, false),
        ("its packed layer", blob(&orphan_packed.digest), false, false),
        ("a cache mount", format!("mounts/{mount}"), true, false),
        ("digests of a context", format!("hashes/{}", hashes.hex()), true, false),
        ("the index of a Dockerfile", format!("ledgers/{}.json", index.hex()), true, false),
    ]
}

/// Fills a store with each kind of content.
fn fill(scene: &Scene) -> Vec<Row> {
    [fill_images(scene), fill_cache(scene)].concat()
}

#[test]
fn prune_keeps_the_cache_and_prune_all_keeps_images_only() {
    for all in [false, true] {
        let scene = Scene::new();
        let rows = fill(&scene);
        for (object, path, ..) in &rows {
            assert!(scene.path.join(path).exists(), "{object}: {path}");
        }
        let freed = scene.store.gc().prune(all, DanglingImages::Remove).unwrap();
        for (object, path, prune, prune_all) in &rows {
            assert_eq!(scene.path.join(path).exists(), if all { *prune_all } else { *prune }, "all: {all}, {object}");
        }
        let expected = Freed {
            // The image of the container loses its entry, and keeps its content.
            images: 2,
            records: if all { 4 } else { 2 },
            trees: if all { 4 } else { 2 },
            blobs: if all { 5 } else { 4 },
            mounts: u64::from(all),
            unremovable: 0,
            bytes: freed.bytes,
        };
        assert_eq!(freed, expected, "all: {all}");
        let again = scene.store.gc().prune(all, DanglingImages::Remove).unwrap();
        assert_eq!(again, Freed::default(), "all: {all}, the second time");
        assert!(scene.store.gc().check(false).unwrap().damage.is_empty(), "all: {all}");
    }
}

#[test]
fn dangling_images_are_kept_on_request() {
    for all in [false, true] {
        let scene = Scene::new();
        fill(&scene);
        let entries = || scene.store.images().list().unwrap();
        let before = entries();
        assert!(before.iter().any(|entry| entry.name.is_none()));
        assert_eq!(scene.store.gc().prune(all, DanglingImages::Keep).unwrap().images, 0);
        assert_eq!(entries(), before, "all: {all}");
        assert!(before.iter().all(|entry| scene.store.images().image(&entry.manifest).is_ok()), "all: {all}");
        assert!(scene.store.gc().check(false).unwrap().damage.is_empty(), "all: {all}");
    }
}

#[test]
fn prune_counts_the_records_that_fsck_counts() {
    let scene = Scene::new();
    fill(&scene);
    let counted = || scene.store.gc().check(false).unwrap().records;
    let before = counted();
    let freed = scene.store.gc().prune(true, DanglingImages::Remove).unwrap();
    assert_eq!((freed.records, counted()), (before, 0));
}

#[test]
fn prune_is_refused_while_another_process_uses_the_store() {
    let scene = Scene::new();
    let rows = fill(&scene);
    let _other = Store::open(&scene.path).unwrap();
    let error = scene.store.gc().prune(true, DanglingImages::Remove).unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
    assert!(rows.iter().all(|(_, path, ..)| scene.path.join(path).exists()));
}
