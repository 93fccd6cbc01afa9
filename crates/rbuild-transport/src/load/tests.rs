use std::path::Path;
use std::sync::Arc;

use rbuild_image::Platform;
use rbuild_remedy::{ImageRemedy, Remedy, Warning};
use rbuild_store::Store;
use rbuild_testkit::{Scratch, assert_recorded, message_row, variants};
use serde_json::{Value, json};

use crate::error::TransportError;
use crate::fixture::{Fixture, INDEX, layer, named, store_in};
use crate::layout::blob_path;
use crate::load::{Loaded, WantedPlatform, WithWarnings, import_from_layout, load, load_directory};

const NAME: &str = "io.containerd.image.name";
const TAG: &str = "org.opencontainers.image.ref.name";
const HOST: &str = "linux/amd64";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn all() -> WantedPlatform {
    WantedPlatform::All(HOST.parse().unwrap())
}

fn given(platform: &str) -> WantedPlatform {
    WantedPlatform::Given(platform.parse().unwrap())
}

fn is_empty(store: &Path) -> bool {
    let count = |dir: &str| std::fs::read_dir(store.join(dir)).unwrap().count();
    (count("blobs/sha256"), count("tmp"), count("layers")) == (0, 0, 0)
}

/// Loads an archive; returns the names of each image, or the message.
fn load_names(store: &Store, archive: &[u8], wanted: &WantedPlatform) -> Result<Vec<Vec<String>>, String> {
    let familiar = |image: Loaded| image.names.iter().map(|name| name.familiar()).collect();
    match load(store, archive, wanted) {
        Ok(WithWarnings { found, .. }) => Ok(found.into_iter().map(familiar).collect()),
        Err(e) => Err(e.message()),
    }
}

/// Makes a layout, and returns it with the entries of its index.
type Make = fn(&mut Fixture) -> Vec<Value>;

/// Layouts with one fault each.
const FAULTS: [(&str, Make); 12] = [
    ("no layer", |f| {
        let image = f.valid_image(HOST, "1");
        f.files.remove(&blob_path(&image.layer));
        vec![image.entry]
    }),
    ("no configuration", |f| {
        let image = f.valid_image(HOST, "1");
        f.files.remove(&blob_path(&image.config));
        vec![image.entry]
    }),
    ("no manifest", |f| {
        let image = f.valid_image(HOST, "1");
        f.files.remove(&blob_path(&image.manifest));
        vec![image.entry]
    }),
    ("another size", |f| vec![f.image(HOST, "1", |_, manifest| manifest["layers"][0]["size"] = json!(7)).entry]),
    ("other bytes", |f| {
        let image = f.valid_image(HOST, "1");
        f.files.insert(blob_path(&image.layer), layer("2"));
        vec![image.entry]
    }),
    ("a layer of an unknown type", |f| {
        vec![f.image(HOST, "1", |_, manifest| manifest["layers"][0]["mediaType"] = json!("image/png")).entry]
    }),
    ("more layers than diffIDs", |f| {
        vec![f.image(HOST, "1", |config, _| config["rootfs"]["diff_ids"] = json!([])).entry]
    }),
    ("another diffID", |f| {
        let other = rbuild_image::DiffId::of(b"other").to_string();
        vec![f.image(HOST, "1", |config, _| config["rootfs"]["diff_ids"][0] = json!(other)).entry]
    }),
    ("a configuration that is not an object", |f| vec![f.image(HOST, "1", |config, _| *config = json!([])).entry]),
    ("a manifest without layers", |f| vec![f.document(crate::fixture::MANIFEST, &json!({"config": 1}))]),
    ("too many nested indexes", |f| {
        let mut entry = f.valid_image(HOST, "1").entry;
        for _ in 0..6 {
            entry = f.list(INDEX, &[entry]);
        }
        vec![entry]
    }),
    ("a digest of another kind", |f| {
        let mut entry = f.valid_image(HOST, "1").entry;
        entry["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
        vec![entry]
    }),
];

#[test]
fn a_faulty_layout_is_refused_as_recorded_and_leaves_nothing() {
    let scratch = Scratch::new();
    let mut table = String::new();
    for (case, make) in FAULTS {
        let mut fixture = Fixture::default();
        let entries = make(&mut fixture);
        let fixture = fixture.with_index(&entries);
        let store = store_in(&scratch, &format!("{case} 1"));
        let archive = load(&store, &fixture.archive()[..], &all()).unwrap_err();
        let dir = scratch.join(case);
        fixture.write(&dir);
        let layout = load_directory(&store, &dir, &all(), &Arc::default()).unwrap_err();
        for (form, e) in [("archive", archive), ("directory", layout)] {
            let row = message_row(&format!("{case}, {form}"), &e, e.help());
            table += &row.replace(&*dir.to_string_lossy(), "[layout]");
        }
        assert!(is_empty(&scratch.join(format!("{case} 1"))), "{case}");
        assert_eq!(store.images().list().unwrap(), [], "{case}");
    }
    assert_recorded!("faulty-layouts", table);
}

#[test]
fn names_are_normalized_and_the_last_one_applies() {
    let scratch = Scratch::new();
    for (annotations, names) in [
        (&[(TAG, "busybox:1")][..], &["busybox:1"][..]),
        (&[(NAME, "docker.io/library/busybox:1")], &["busybox:1"]),
        (&[(NAME, "docker.io/library/a:1"), (NAME, "a:1"), (NAME, "quay.io/a/b:2")], &["a:1", "quay.io/a/b:2"]),
        (&[(TAG, "localhost:5000/a")], &["localhost:5000/a:latest"]),
        // Neither a bare tag nor an invalid reference is a name.
        (&[(TAG, "1")], &[]),
        (&[(NAME, "UPPER/CASE:1")], &[]),
    ] {
        let mut fixture = Fixture::default();
        let entry = fixture.valid_image(HOST, "1").entry;
        let entries: Vec<Value> = annotations.iter().map(|(key, name)| named(&entry, key, name)).collect();
        let store = store_in(&scratch, &format!("{annotations:?}").replace('/', "-"));
        let loaded = load_names(&store, &fixture.with_index(&entries).archive(), &all()).unwrap();
        assert_eq!(loaded, [names.to_vec()], "{annotations:?}");
        let listed = store.images().list().unwrap();
        let listed: Vec<String> = listed.iter().filter_map(|entry| Some(entry.name.as_ref()?.familiar())).collect();
        assert_eq!(listed, names, "{annotations:?}");
    }
}

#[test]
fn indexes_resolve_to_the_image_of_the_requested_platform() {
    let scratch = Scratch::new();
    let make = |f: &mut Fixture| {
        let (a, b) = (f.valid_image(HOST, "1").entry, f.valid_image("linux/arm64", "2").entry);
        let inner = f.list(DOCKER_LIST, &[a]);
        f.list(INDEX, &[inner, b])
    };
    let mut fixture = Fixture::default();
    let index = make(&mut fixture);
    let archive = fixture.with_index(&[named(&index, NAME, "a:1")]).archive();
    for (wanted, platforms) in [
        (given(HOST), Ok(HOST)),
        (given("linux/arm64"), Ok("linux/arm64")),
        (given("linux/s390x"), Err("the archive has no image for linux/s390x, only for")),
    ] {
        let store = store_in(&scratch, &wanted.platform().to_string().replace('/', "-"));
        let loaded = load_names(&store, &archive, &wanted);
        match platforms {
            Ok(platform) => {
                assert_eq!(loaded.unwrap(), [["a:1"]]);
                let (_, image) = store.images().find_image("a:1").unwrap();
                assert_eq!(image.config.platform(), platform.parse::<Platform>().unwrap());
            }
            Err(message) => assert!(loaded.unwrap_err().contains(message)),
        }
    }
}

#[test]
fn a_docker_archive_is_loaded_in_every_form() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.valid_image(HOST, "1");
    let (config, bytes) = (blob_path(&image.config), fixture.files[&blob_path(&image.layer)].clone());
    // As Docker wrote it before it wrote layouts: named by IDs of its own, equal layers as links.
    let mut old = Fixture::default();
    old.files.insert("c.json".into(), fixture.files[&config].clone());
    old.files.insert("1/layer.tar".into(), bytes);
    old.links.insert("2/layer.tar".into(), "../1/layer.tar".into());
    let item = |layer: &str, tags: Value| json!([{"Config": "c.json", "RepoTags": tags, "Layers": [layer]}]);
    for (case, items, names) in [
        ("plain", item("1/layer.tar", json!(["a:1", "b:2"])), Ok(vec![vec!["a:1", "b:2"]])),
        ("link", item("2/layer.tar", json!(["a:1"])), Ok(vec![vec!["a:1"]])),
        ("dots", item("./x/../1/layer.tar", json!(["a:1"])), Ok(vec![vec!["a:1"]])),
        ("untagged", item("1/layer.tar", Value::Null), Ok(vec![vec![]])),
        ("no images", json!(null), Ok(vec![])),
        ("missing", item("3/layer.tar", json!(["a:1"])), Err("1 layer is missing from the archive and the store")),
        ("bad name", item("1/layer.tar", json!(["A B"])), Err("A B")),
        ("no list", json!({"Config": 1}), Err("cannot read the image's manifest.json")),
    ] {
        let store = store_in(&scratch, case);
        let archive = old.clone().with_manifest_json(&items).archive();
        match (load_names(&store, &archive, &all()), names) {
            (Ok(loaded), Ok(names)) => assert_eq!(loaded, names, "{case}"),
            (Err(message), Err(want)) => assert!(message.contains(want), "{case}: {message}"),
            (loaded, _) => panic!("{case}: {loaded:?}"),
        }
    }
    let empty = load_names(&store_in(&scratch, "none"), &Fixture::default().archive(), &all()).unwrap_err();
    assert!(empty.contains("neither manifest.json nor index.json"), "{empty}");
}

/// `manifest.json` has no annotations; the manifest of the index next to it does.
#[test]
fn a_docker_archive_keeps_the_manifest_with_its_annotations() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let image = fixture.image(HOST, "1", |_, manifest| manifest["annotations"] = json!({"org.example.a": "1"}));
    let items = json!([{
        "Config": blob_path(&image.config), "RepoTags": ["a:1"], "Layers": [blob_path(&image.layer)],
    }]);
    let fixture = fixture.with_index(std::slice::from_ref(&image.entry)).with_manifest_json(&items);
    let store = store_in(&scratch, "store");
    assert_eq!(load_names(&store, &fixture.archive(), &all()).unwrap(), [["a:1"]]);
    let (_, found) = store.images().find_image("a:1").unwrap();
    assert_eq!(found.manifest_digest.blob(), image.manifest);
    assert_eq!(found.manifest.annotations().as_ref().unwrap()["org.example.a"], "1");
    // A damaged one is replaced by a manifest of what `manifest.json` describes.
    let mut damaged = fixture;
    damaged.files.remove(&blob_path(&image.manifest));
    let WithWarnings { found, warnings } = load(&store_in(&scratch, "other"), &damaged.archive()[..], &all()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(warnings[0].text.contains("which cannot be used"), "{warnings:?}");
}

/// Returns the texts of warnings, and the platforms that their hints select.
fn told(warnings: &[Warning]) -> Vec<(String, Option<String>)> {
    let selected = |help: &Option<Remedy>| match help {
        Some(Remedy::Image(ImageRemedy::SelectPlatform { platform })) => Some(platform.clone()),
        _ => None,
    };
    warnings.iter().map(|warning| (warning.text.clone(), selected(&warning.help))).collect()
}

#[test]
fn platforms_without_content_are_not_suggested() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let (one, arm) = (fixture.valid_image(HOST, "1"), fixture.valid_image("linux/arm64", "2"));
    let (s390x, ppc) = (fixture.valid_image("linux/s390x", "3"), fixture.valid_image("linux/ppc64le", "4"));
    let riscv = fixture.valid_image("linux/riscv64", "5");
    fixture.files.remove(&blob_path(&s390x.manifest));
    fixture.files.remove(&blob_path(&ppc.layer));
    fixture.files.remove(&blob_path(&riscv.config));
    let list = fixture.list(INDEX, &[one.entry, arm.entry, s390x.entry.clone(), ppc.entry.clone(), riscv.entry]);
    let empty = fixture.list(INDEX, &[s390x.entry, ppc.entry]);
    let absent = "has no image for linux/amd64; its index lists linux/ppc64le, linux/s390x without their content";
    for (case, entries, expected) in [
        ("some", vec![named(&list, TAG, "a:1"), named(&empty, TAG, "b:1")], Ok(vec![(format!("b:1 {absent}"), None)])),
        ("all", vec![named(&empty, TAG, "b:1")], Err(absent.to_string())),
    ] {
        let fixture = fixture.clone().with_index(&entries);
        let dir = scratch.join(case);
        fixture.write(&dir);
        let archive = load(&store_in(&scratch, &format!("{case} 1")), &fixture.archive()[..], &all());
        let layout = load_directory(&store_in(&scratch, &format!("{case} 2")), &dir, &all(), &Arc::default());
        for loaded in [archive, layout] {
            match (loaded, &expected) {
                (Ok(loaded), Ok(expected)) => assert_eq!(told(&loaded.warnings), *expected, "{case}"),
                (Err(e), Err(message)) => {
                    assert!(e.message().ends_with(message) && e.help().is_none(), "{case}: {}", e.message());
                }
                (loaded, _) => panic!("{case}: {loaded:?}"),
            }
        }
    }
}

#[test]
fn a_warning_names_only_the_platforms_of_its_image() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let (one, arm) = (fixture.valid_image(HOST, "1"), fixture.valid_image("linux/arm64", "2"));
    let s390x = fixture.valid_image("linux/s390x", "3");
    let list = fixture.list(INDEX, &[one.entry, arm.entry]);
    let other = fixture.list(INDEX, &[s390x.entry]);
    let entries =
        [named(&list, TAG, "a:1"), named(&other, TAG, "b:1"), named(&other, TAG, "c:1"), named(&list, TAG, "d:1")];
    let archive = fixture.with_index(&entries).archive();
    let loaded = load(&store_in(&scratch, "store"), &archive[..], &all()).unwrap();
    let none = |name: &str| format!("{name} has no image for {HOST}, only for linux/s390x");
    let expected = [(none("b:1"), Some("linux/s390x".into())), (none("c:1"), Some("linux/s390x".into()))];
    assert_eq!(told(&loaded.warnings), expected);
}

#[test]
fn images_of_a_layout_are_found_or_refused_as_recorded() {
    let scratch = Scratch::new();
    let mut fixture = Fixture::default();
    let (one, two) = (fixture.valid_image(HOST, "1"), fixture.valid_image(HOST, "2"));
    let other = fixture.valid_image("linux/arm64", "3");
    let list = fixture.list(INDEX, &[one.entry.clone(), other.entry.clone()]);
    let both = fixture.list(INDEX, &[one.entry.clone(), two.entry.clone()]);
    let arm = fixture.list(INDEX, std::slice::from_ref(&other.entry));
    let entries = [
        named(&one.entry, TAG, "latest"),
        named(&two.entry, TAG, "2"),
        named(&list, TAG, "list"),
        named(&both, TAG, "both"),
        named(&arm, TAG, "arm"),
    ];
    let dir = scratch.join("layout");
    fixture.with_index(&entries).write(&dir);
    let (store, digest) = (store_in(&scratch, "store"), two.manifest.to_string());
    let import = |wanted| import_from_layout(&store, &dir, wanted, &HOST.parse().unwrap());
    for (wanted, image) in [(None, &one), (Some("2"), &two), (Some(digest.as_str()), &two), (Some("list"), &one)] {
        assert_eq!(import(wanted).unwrap().found.blob(), image.manifest, "{wanted:?}");
    }
    let refused = ["both", "arm", "3"].map(|wanted| import(Some(wanted)).expect_err(wanted));
    let table = variants!(TransportError).table(&refused, |e| e, TransportError::help);
    assert_recorded!("layouts", table.replace(&*dir.to_string_lossy(), "[layout]"));
}
