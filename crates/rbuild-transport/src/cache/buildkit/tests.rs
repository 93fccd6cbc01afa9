use serde_json::json;

use super::*;
use crate::cache::artifact::tests::Memory;

fn digest(name: &str) -> BlobDigest {
    BlobDigest::of(name.as_bytes())
}

/// Records of `FROM`, `COPY`, and `RUN` above it, and of a stage that is copied from.
fn config() -> Value {
    let record = |vertex: &str, output: Option<u32>| record_digest(&digest(vertex), output).to_string();
    let at = "2026-11-27T08:08:16.253704369Z";
    json!({
        "layers": [
            {"blob": digest("base").to_string(), "parent": -1},
            {"blob": digest("copied").to_string()},
            {"blob": digest("made").to_string(), "parent": 1},
            {"blob": digest("unknown").to_string(), "parent": 2},
        ],
        "records": [
            {"digest": record("from", Some(0))},
            {"digest": record("content", None)},
            {"digest": record("copy", Some(0)), "inputs": [[{"link": 7}, {}], [{"link": 1}]],
             "layers": [{"layer": 1, "createdAt": at}]},
            {"digest": record("run", Some(0)), "inputs": [[{"link": 2}]],
             "layers": [{"layer": 2, "createdAt": at}], "chains": [{"layers": [0, 2], "createdAt": at}]},
            {"digest": record("copy from", Some(0)),
             "inputs": [[{"link": 0}], [{"selector": digest("/made").to_string(), "link": 3}]],
             "layers": [{"layer": 3, "createdAt": at}]},
        ],
    })
}

fn layer(name: &str) -> Value {
    json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": digest(name).to_string(),
        "size": 9, "annotations": {DIFF_ID: digest(&format!("diff {name}")).to_string()}})
}

/// Returns the names of the layers of the results of a record, lowest first, if all are known.
fn names(cache: &BuildKitCache, record: usize) -> Vec<Vec<String>> {
    let layers = ["base", "copied", "made"];
    let name = |layer: Option<&BuildKitLayer>| {
        let layer = layer?;
        assert_eq!((layer.size, layer.form.as_str()), (9, "gzip"));
        layers.iter().find(|name| digest(name) == layer.blob).map(|name| name.to_string())
    };
    let chain = |(result, _): &(ResultLayers, i64)| -> Option<Vec<String>> {
        let mut names: Vec<String> = cache.downwards(result).map(name).collect::<Option<_>>()?;
        names.reverse();
        Some(names)
    };
    cache.results(record).filter_map(chain).collect()
}

fn diff_ids(names: &[&str]) -> Vec<DiffId> {
    names.iter().map(|name| digest(&format!("diff {name}")).to_string().parse().unwrap()).collect()
}

#[test]
fn records_are_found_from_their_inputs() {
    let text = serde_json::to_vec(&config()).unwrap();
    let blobs = Memory([(BlobDigest::of(&text), text.clone())].into());
    let described =
        json!({"mediaType": BUILDKIT_CONFIG, "digest": BlobDigest::of(&text).to_string(), "size": text.len()});
    let layers: Vec<Value> = ["base", "copied", "made"].iter().map(|name| layer(name)).collect();
    let image = json!({"schemaVersion": 2, "config": described, "layers": layers});
    let all = [&layers[..], std::slice::from_ref(&described)].concat();
    let index = json!({"schemaVersion": 2, "manifests": all});
    for manifest in [image, index] {
        let cache = read_buildkit(&serde_json::to_vec(&manifest).unwrap(), &blobs).unwrap().unwrap();
        let from = cache.sources(&[digest("other"), digest("from")]);
        assert_eq!(from, [0].into());
        let content = InputRecords::whole(cache.content(&digest("content")));
        let copied = cache.steps(&[digest("copy")], &[InputRecords::whole(from.clone()), content.clone()]);
        assert_eq!((copied.clone(), names(&cache, 2)), ([2].into(), vec![vec!["base".into(), "copied".into()]]));
        let made = cache.steps(&[digest("run")], &[InputRecords::whole(copied.clone())]);
        assert_eq!(made, [3].into());
        let full: Vec<String> = ["base", "copied", "made"].map(String::from).into();
        assert_eq!(names(&cache, 3), [full, vec!["base".into(), "made".into()]]);
        let on = |below: &[&str]| -> Vec<(BlobDigest, i64)> {
            cache.results_on(3, &diff_ids(below)).map(|(layer, made)| (layer.blob, made)).collect()
        };
        for (below, want) in [(&["base", "copied"][..], 1), (&["base"], 1), (&["copied"], 0), (&[], 0)] {
            assert_eq!(on(below), vec![(digest("made"), 1_795_766_896); want], "{below:?}");
        }
        for (record, layers, want) in [
            (2, &["base", "copied"][..], true),
            (2, &["copied"], false),
            (2, &["base", "copied", "made"], false),
            (3, &["base", "copied", "made"], false),
            (3, &["base", "made"], false),
            (4, &["base", "copied", "made"], false),
            (0, &[], false),
            (9, &[], false),
        ] {
            assert_eq!(cache.has_only_result(record, &diff_ids(layers)), want, "{record} {layers:?}");
        }
        let selected = |selector: &str, records| InputRecords {
            whole: BTreeSet::new(),
            selected: Some((digest(selector), records)),
        };
        let base = InputRecords::whole(from.clone());
        let stage = [base.clone(), selected("/made", made.clone())];
        assert_eq!(cache.steps(&[digest("copy from")], &stage), [4].into());
        assert!(names(&cache, 4).is_empty(), "a layer is not described");
        for inputs in [
            vec![],
            vec![base.clone()],
            vec![base.clone(), InputRecords::whole(made.clone())],
            vec![base.clone(), selected("/other", made.clone())],
            vec![base, selected("/made", copied)],
            vec![content.clone(), selected("/made", made)],
        ] {
            assert!(cache.steps(&[digest("copy from")], &inputs).is_empty());
        }
        assert!(cache.steps(&[digest("copy")], &[InputRecords::whole(from), InputRecords::default()]).is_empty());
    }
}

/// The configuration that docker 20.10.24 wrote into an image (`BUILDKIT_INLINE_CACHE=1`).
#[test]
fn records_in_an_image_are_read() {
    let text = include_bytes!("inline-config.json");
    let config: Value = serde_json::from_slice(text).unwrap();
    let layers: Vec<Value> = ["base", "copied", "made"].iter().map(|name| layer(name)).collect();
    let manifest = json!({"schemaVersion": 2, "layers": layers, "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": BlobDigest::of(text).to_string(), "size": text.len()}});
    let blobs = Memory([(BlobDigest::of(text), text.to_vec())].into());
    let cache = read_buildkit(&serde_json::to_vec(&manifest).unwrap(), &blobs).unwrap().unwrap();
    assert_eq!(cache.len(), 5);
    let of_image: Vec<DiffId> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
    assert!(cache.has_only_result(0, &of_image[..2]) && cache.has_only_result(4, &of_image));
    let (run, _) = cache.results_on(4, &of_image[..2]).next().unwrap();
    assert_eq!((run.diff_id, run.blob), (of_image[2], digest("made")));
    // The same image twice, behind an index with an attestation and a missing image.
    let image = serde_json::to_vec(&manifest).unwrap();
    let mut blobs = blobs;
    blobs.0.insert(BlobDigest::of(&image), image.clone());
    let entry = json!({"digest": BlobDigest::of(&image).to_string()});
    let attestation = json!({"digest": digest("attestation").to_string(),
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    let manifests = [attestation, json!({"digest": digest("missing").to_string()}), entry.clone(), entry];
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let both = read_buildkit(index.as_bytes(), &blobs).unwrap().unwrap();
    assert_eq!((both.records[..5].to_vec(), both.len()), (cache.records.clone(), 10));
    for (first, second) in (0..5).zip(5..10) {
        assert_eq!(names(&both, first), names(&both, second));
        let links = |record: usize| both.records[record].inputs.iter().flatten().map(|link| link.record);
        assert!(links(first).map(|link| link + 5).eq(links(second)));
    }
    assert!(both.has_only_result(9, &of_image));
}

#[test]
fn hostile_records_are_ignored() {
    let circle = json!({"layers": [{"blob": digest("a").to_string(), "parent": 1}, {"parent": 0}],
        "records": [{"digest": digest("x").to_string(), "layers": [{"layer": 0}, {"layer": 77}],
            "chains": [{"layers": [99]}], "inputs": [[{"link": 99}, {"selector": "no digest"}]]}]});
    let cache = cache_of(serde_json::from_value(circle).unwrap(), &HashMap::new()).unwrap();
    assert_eq!([0, 9].map(|record| cache.results_on(record, &diff_ids(&["a"])).count()), [0, 0]);
    assert!(!cache.has_only_result(0, &diff_ids(&["a", "a"])));
    let image = |config: &[u8]| {
        let manifest = json!({"schemaVersion": 2, "layers": [], "config": {"mediaType": BUILDKIT_CONFIG,
            "digest": BlobDigest::of(config).to_string(), "size": config.len()}});
        let blobs = Memory([(BlobDigest::of(config), config.to_vec())].into());
        read_buildkit(&serde_json::to_vec(&manifest).unwrap(), &blobs)
    };
    assert!(image(b"[").is_err() && image(b"{\"records\": 1}").is_err());
    assert!(image(b"{}").unwrap().unwrap().is_empty());
    // Small texts of many links, results and layers of results.
    let record = digest("x").to_string();
    for (list, end) in [("\"inputs\":[[", "]]"), ("\"layers\":[", "]"), ("\"chains\":[{\"layers\":[", "]}]")] {
        let item = if list.contains("chains") { "1" } else { "{}" };
        let text = |items: usize| {
            let items = vec![item; items].join(",");
            image(format!("{{\"records\":[{{\"digest\":\"{record}\",{list}{items}{end}}}]}}").as_bytes())
        };
        assert_eq!(text(100_000).unwrap().unwrap().len(), 1);
        let e = text(1_000_000).unwrap_err().message();
        assert!(e.contains("more than 1000000 items"), "{e}");
    }
    // Results are not stored with all layers below them.
    let layers: Vec<Value> = (0..1000).map(|n| json!({"blob": digest("base").to_string(), "parent": n - 1})).collect();
    let text =
        json!({"layers": layers, "records": [{"digest": record, "layers": vec![json!({"layer": 999}); 50_000]}]});
    let cache = image(text.to_string().as_bytes()).unwrap().unwrap();
    assert!(cache.records[0].results.iter().all(|(result, _)| *result == ResultLayers::Top(999)));
    assert_eq!(read_buildkit(b"{}", &Memory(HashMap::new())).unwrap(), None);
}
