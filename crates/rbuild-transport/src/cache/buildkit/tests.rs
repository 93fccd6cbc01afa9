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

fn names(cache: &BuildKitCache, record: usize) -> Vec<Vec<String>> {
    let layers = ["base", "copied", "made"];
    let name = |layer: &&BuildKitLayer| {
        assert_eq!((layer.size, layer.form.as_str()), (9, "gzip"));
        layers.iter().find(|name| digest(name) == layer.blob).unwrap().to_string()
    };
    cache.results(record).iter().map(|(chain, _)| chain.iter().map(name).collect()).collect()
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
        assert_eq!(cache.results(3)[0].1, 1_795_766_896);
        let selected = |selector: &str, records| InputRecords {
            whole: BTreeSet::new(),
            selected: Some((digest(selector), records)),
        };
        let base = InputRecords::whole(from.clone());
        let stage = [base.clone(), selected("/made", made.clone())];
        assert_eq!(cache.steps(&[digest("copy from")], &stage), [4].into());
        assert!(cache.results(4).is_empty(), "a layer is not described");
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
    let [copy, run] = [0, 4].map(|record| cache.results(record).remove(0).0);
    assert_eq!((copy.len(), run.len()), (2, 3));
    assert_eq!(run[2].diff_id.to_string(), config["rootfs"]["diff_ids"][2].as_str().unwrap());
    assert_eq!(run[2].blob, digest("made"));
}

#[test]
fn hostile_records_are_ignored() {
    let circle = json!({"layers": [{"blob": digest("a").to_string(), "parent": 1}, {"parent": 0}],
        "records": [{"digest": digest("x").to_string(), "layers": [{"layer": 0}, {"layer": 77}],
            "chains": [{"layers": [99]}], "inputs": [[{"link": 99}, {"selector": "no digest"}]]}]});
    let cache = cache_of(serde_json::from_value(circle).unwrap(), &HashMap::new()).unwrap();
    assert!(cache.results(0).is_empty() && cache.results(9).is_empty());
    let image = |config: &[u8]| {
        let manifest = json!({"schemaVersion": 2, "layers": [], "config": {"mediaType": BUILDKIT_CONFIG,
            "digest": BlobDigest::of(config).to_string(), "size": config.len()}});
        let blobs = Memory([(BlobDigest::of(config), config.to_vec())].into());
        read_buildkit(&serde_json::to_vec(&manifest).unwrap(), &blobs)
    };
    assert!(image(b"[").is_err() && image(b"{\"records\": 1}").is_err());
    assert!(image(b"{}").unwrap().unwrap().is_empty());
    assert_eq!(read_buildkit(b"{}", &Memory(HashMap::new())).unwrap(), None);
}
