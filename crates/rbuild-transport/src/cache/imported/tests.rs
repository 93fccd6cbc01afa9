use std::collections::BTreeSet;

use rbuild_linux::Directory;
use rbuild_testkit::Scratch;

use super::*;
use crate::cache::artifact::tests::step;
use crate::cache::local::{LocalCache, write_local_cache};
use crate::cache::merge::{CacheLimits, OwnSteps};
use crate::cache::shards::RemoteCache;
use crate::layout::LayoutWriter;

/// Returns an empty tar archive, and one with other bytes.
fn layers() -> [Vec<u8>; 2] {
    [vec![0; 1024], vec![0; 1536]]
}

fn imported(place: &Path, name: &str, steps: &[CachedStep]) -> ImportedCache {
    let dir = place.join(name);
    let layout = LayoutWriter::open(&Directory::find(&place.join("all")).unwrap()).unwrap();
    layers().iter().for_each(|layer| layout.put_bytes(layer).unwrap());
    let to = LocalCache { dir: Directory::find(&dir).unwrap(), tag: "t".into() };
    let none = BTreeSet::new();
    let own = OwnSteps {
        steps,
        lost: &none,
        refreshed: &none,
        limits: CacheLimits::default(),
        today: 1,
        keys: RecordKeys::none(),
    };
    write_local_cache(&to, &own, &[&layout.source().unwrap()]).unwrap();
    ImportedCache::local(&dir, "t", RecordKeys::none(), &RecordBudget::default()).unwrap().unwrap()
}

#[test]
fn layers_are_copied_once_and_verified() {
    let place = Scratch::new();
    let [one, two] = layers();
    let steps = [step("a", &one, 1), step("b", &two, 1), step("c", &one, 1)];
    let caches = ImportedCaches::new(vec![imported(&place, "cache", &steps)]);
    let store = Store::open(&place.join("store")).unwrap();
    let work = Workspace::open(&store).unwrap();
    let found: Vec<ImportedStep> = steps.iter().filter_map(|step| caches.step(&step.key)).collect();
    assert_eq!(found.len(), 3);
    assert!(caches.step(&CacheKey::of(b"other")).is_none());
    let lost = caches.fetch(&store, &work, &found.iter().collect::<Vec<_>>()).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(found.iter().all(|found| store.blobs().has_blob(&found.step.layer.blob).unwrap()));
    // What the store has is not copied again.
    std::fs::remove_dir_all(place.join("cache/blobs")).unwrap();
    assert!(caches.fetch(&store, &work, &found.iter().collect::<Vec<_>>()).unwrap().is_empty());
}

/// Missing, shortened and changed layers, wrong sizes and wrong diffIDs.
#[test]
fn a_layer_that_cannot_be_used_is_lost_and_the_next_cache_has_it() {
    let [one, two] = layers();
    type Damage = fn(&Path, &mut CachedStep);
    let damages: [(&str, Damage); 7] = [
        ("it is missing", |blob, _| std::fs::remove_file(blob).unwrap()),
        ("it is shorter", |blob, _| std::fs::write(blob, "x").unwrap()),
        ("it has other bytes", |blob, _| std::fs::write(blob, vec![1; 1024]).unwrap()),
        ("it has another size", |_, step| step.layer.size += 1),
        ("it has another diffID", |_, step| step.layer.diff_id = rbuild_image::DiffId::of(b"other")),
        ("it is a directory", |blob, _| {
            std::fs::remove_file(blob).unwrap();
            std::fs::create_dir(blob).unwrap();
        }),
        ("it has another form", |_, step| step.layer.form = "gzip".into()),
    ];
    for (case, damage) in damages {
        let place = Scratch::new();
        let (a, b) = (step("a", &one, 1), step("b", &two, 1));
        let mut first = imported(&place, "first", &[a.clone(), b.clone()]);
        let damaged = first.steps.get_mut(&a.key).unwrap();
        damage(&place.join("first/blobs/sha256").join(a.layer.blob.hex()), damaged);
        let caches = ImportedCaches::new(vec![first, imported(&place, "second", std::slice::from_ref(&a))]);
        let store = Store::open(&place.join("store")).unwrap();
        let work = Workspace::open(&store).unwrap();
        let found = [caches.step(&a.key).unwrap(), caches.step(&b.key).unwrap()];
        let lost = caches.fetch(&store, &work, &found.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(lost.len(), 1, "{case}: {lost:?}");
        assert!(lost[0].cache.contains("first"), "{case}");
        assert_eq!(caches.step(&b.key).as_ref(), Some(&found[1]), "{case}");
        let next = caches.step(&a.key).unwrap();
        assert_eq!(next.cache, 1, "{case}");
        assert!(caches.fetch(&store, &work, &[&next]).unwrap().is_empty(), "{case}");
        caches.give_up(&next);
        assert_eq!(caches.step(&a.key), None, "{case}");
    }
}

/// Steps with one blob may state different diffIDs. Only what was checked is used.
#[test]
fn each_statement_about_a_layer_is_checked() {
    let [one, _] = layers();
    for order in [["a", "b"], ["b", "a"]] {
        let place = Scratch::new();
        let steps = [step("a", &one, 1), step("b", &one, 1)];
        let mut cache = imported(&place, "cache", &steps);
        cache.steps.get_mut(&steps[1].key).unwrap().layer.diff_id = rbuild_image::DiffId::of(b"other");
        let caches = ImportedCaches::new(vec![cache]);
        let store = Store::open(&place.join("store")).unwrap();
        let work = Workspace::open(&store).unwrap();
        let found = order.map(|name| caches.step(&CacheKey::of(name.as_bytes())).unwrap());
        assert_eq!(caches.fetch(&store, &work, &found.iter().collect::<Vec<_>>()).unwrap().len(), 1);
        assert!(caches.step(&steps[0].key).is_some() && caches.step(&steps[1].key).is_none());
    }
}

/// A step that one cache has lost remains in the others.
#[test]
fn a_lost_layer_is_one_of_its_cache() {
    let place = Scratch::new();
    let [one, _] = layers();
    let a = step("a", &one, 1);
    let first = imported(&place, "first", std::slice::from_ref(&a));
    let remote = |name: &str| SharedCache::Registry(RemoteCache::new(name.parse().unwrap(), 16));
    let name = remote("a.io/cache:x");
    let steps = RemoteSteps { steps: vec![a.clone()], ..RemoteSteps::default() };
    let limits = CacheLimits::default();
    let partial = RemoteSteps { has_damage: true, ..steps.clone() };
    let partial = ImportedCaches::new(vec![ImportedCache::shared(name.clone(), partial)]);
    let caches = ImportedCaches::new(vec![first, ImportedCache::shared(name.clone(), steps)]);
    let recent = |name: &str, used| caches.has_recent(&remote(name), std::slice::from_ref(&a), limits, used);
    assert_eq!((recent("a.io/cache:x", 1), recent("a.io/cache:x", 2), recent("a.io/cache:y", 1)), (true, false, false));
    // It is written if it is damaged or beyond its limits.
    assert!(!partial.has_recent(&name, std::slice::from_ref(&a), limits, 1));
    let small = CacheLimits { bytes: a.layer.size - 1, ..limits };
    assert!(!caches.has_recent(&name, std::slice::from_ref(&a), small, 1));
    let lost_in = |dir: &str, tag: &str| {
        caches.lost_in_directory(&LocalCache { dir: Directory::find(&place.join(dir)).unwrap(), tag: tag.into() }).len()
    };
    caches.give_up(&caches.step(&a.key).unwrap());
    assert_eq!((lost_in("first", "t"), lost_in("first/../first", "t")), (1, 1));
    assert_eq!((lost_in("first", "other"), lost_in("second", "t"), caches.lost_in_shared(&name).len()), (0, 0, 0));
    caches.give_up(&caches.step(&a.key).unwrap());
    assert_eq!(caches.lost_in_shared(&name), BTreeSet::from([a.key]));
    assert!(!caches.has_recent(&name, std::slice::from_ref(&a), limits, 1));
    assert!(caches.lost_in_shared(&remote("a.io/cache:y")).is_empty());
}
