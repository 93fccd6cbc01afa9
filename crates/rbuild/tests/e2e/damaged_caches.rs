//! Caches in registries that are damaged, of other formats, or beyond their limits.

use std::io::Read;

use rbuild_image::BlobDigest;
use serde_json::{Value, json};

use crate::registries::Scene;
use crate::registries::server::Access;
use crate::remote_caches::Machine;

const FILE: &str = "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry with the cache of two steps, and the machine that wrote it.
struct Cached {
    scene: Scene,
    machine: Machine,
    place: String,
}

impl Cached {
    fn new(more: &str) -> Cached {
        let (scene, machine) = (Scene::new(Access::Open), Machine::new());
        let place = format!("type=registry,ref={}{more}", scene.name("app:cache"));
        machine.build(FILE, &["-o", "type=cacheonly", "--cache-to", &place]).ok();
        Cached { scene, machine, place }
    }

    /// Replaces a document that the manifest of the cache names, where it is embedded, too.
    fn replace(&self, of: impl Fn(&mut Value) -> &mut Value, bytes: &[u8]) {
        let mut manifest = self.scene.document("app", "cache");
        let digest = self.scene.registry.add_blob("app", bytes);
        let part = of(&mut manifest);
        part.as_object_mut().unwrap().remove("data");
        (part["digest"], part["size"]) = (json!(digest.to_string()), json!(bytes.len()));
        self.scene.registry.add_manifest("app", "cache", MANIFEST, manifest.to_string().as_bytes());
    }

    /// Returns a document that the manifest of the cache names.
    fn blob(&self, of: impl Fn(&Value) -> &Value) -> Vec<u8> {
        let digest: BlobDigest = of(&self.scene.document("app", "cache"))["digest"].as_str().unwrap().parse().unwrap();
        self.scene.registry.state().blobs[&("app".to_string(), digest)].clone()
    }

    fn records(&self) -> String {
        let packed = self.blob(|manifest| &manifest["layers"][0]);
        let mut text = String::new();
        rbuild_layer::Decoder::new(&packed[..]).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn set_records(&self, bytes: &[u8]) {
        self.replace(|manifest| &mut manifest["layers"][0], bytes);
    }
}

/// A reader warns of records of which nothing can be read, and a required cache fails the build. A
/// writer says that it replaces them.
#[test]
fn damaged_records_in_a_registry_are_reported_and_replaced() {
    for more in ["", ",shards=1"] {
        let cached = Cached::new(more);
        let whole = frame(&cached.records());
        let lines = cached.records().replace("\"s\":", "\"s\":\"x\",\"ss\":");
        let lines = frame(&lines);
        for damaged in [b"garbage".as_slice(), &whole[..whole.len() - 4], &lines] {
            cached.set_records(damaged);
            let reader = Machine::new();
            let ran = reader.build(FILE, &["-o", "type=cacheonly", "--cache-from", &cached.place]).ok();
            assert_eq!(ran.steps(), (2, 0), "{}", ran.stderr);
            let warning = "cannot read the cache, so it is not used: the records of the cache are damaged: ";
            assert_eq!(ran.stderr.matches(warning).count(), 1, "{}", ran.stderr);
            let required = format!("{},required", cached.place);
            reader
                .build(FILE, &["-o", "type=cacheonly", "--no-cache", "--cache-from", &required])
                .fails(1, &["cannot read the cache: the records of the cache are damaged"]);
            let write = || cached.machine.build(FILE, &["-o", "type=cacheonly", "--cache-to", &cached.place]).ok();
            let ran = write();
            assert!(ran.stderr.contains("was damaged, so its earlier steps were dropped"), "{}", ran.stderr);
            assert!(ran.stderr.contains("wrote the cache"), "{}", ran.stderr);
            assert_eq!(cached.records().lines().count(), 2);
            let ran = write();
            assert!(ran.stderr.contains("is unchanged") && !ran.stderr.contains("damaged"), "{}", ran.stderr);
        }
        // Single lines may be those of a later version.
        let unknown = cached.records().replacen("\"s\":", "\"s\":\"x\",\"ss\":", 1);
        cached.set_records(&frame(&unknown));
        let ran = Machine::new().build(FILE, &["-o", "type=cacheonly", "--cache-from", &cached.place]).ok();
        assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    }
}

/// A cache with layers of an older format is replaced, one of a newer format stays.
#[test]
fn a_cache_of_an_older_format_is_replaced() {
    for more in ["", ",shards=1"] {
        let cached = Cached::new(more);
        let config: Value = serde_json::from_slice(&cached.blob(|manifest| &manifest["config"])).unwrap();
        for (format, is_older) in [(1, true), (99, false)] {
            let other = json!({"version": 1, "layer_format": format, "steps": 2}).to_string();
            cached.replace(|manifest| &mut manifest["config"], other.as_bytes());
            let args = ["-o", "type=cacheonly", "--cache-from", &cached.place, "--cache-to", &cached.place];
            let ran = cached.machine.build(FILE, &args).ok();
            let age = if is_older { "an older version of rbuild, so its earlier" } else { "a newer version of rbuild" };
            assert!(ran.stderr.contains(&format!("was written by {age}")), "{more}: {}", ran.stderr);
            let written: Value = serde_json::from_slice(&cached.blob(|manifest| &manifest["config"])).unwrap();
            assert_eq!(written == config, is_older, "{written}");
        }
    }
}

/// A build that adds nothing applies the limits, and writes days in the future anew.
#[test]
fn limits_apply_to_builds_that_add_nothing() {
    for more in ["", ",shards=1"] {
        let cached = Cached::new(more);
        let (file, other) = ("FROM busybox\nRUN echo one > /one\n", Machine::new());
        let build = |options: &str| {
            let to = format!("{}{options}", cached.place);
            other.build(file, &["-o", "type=cacheonly", "--cache-from", &cached.place, "--cache-to", &to]).ok().stderr
        };
        let same = build("");
        assert!(same.contains("is unchanged: 1 step"), "{same}");
        let largest = cached.records().lines().map(size).max().unwrap();
        let limited = build(&format!(",max-size={largest}"));
        assert!(limited.contains("wrote the cache") && limited.contains(": 1 step, no new layer"), "{limited}");
        assert_eq!(cached.records().lines().count(), 1);
        let again = build(&format!(",max-size={largest}"));
        assert!(again.contains("is unchanged: 1 step"), "{again}");
        let record: Value = serde_json::from_str(&cached.records()).unwrap();
        let mut future = record.clone();
        future["n"] = json!(99_999);
        cached.set_records(&frame(&format!("{future}\n")));
        let mended = build("");
        assert!(mended.contains("wrote the cache"), "{mended}");
        assert_eq!(serde_json::from_str::<Value>(&cached.records()).unwrap()["n"], record["n"]);
    }
}

/// Returns a text of less than 128 KiB as a frame of zstd, with one block that is not compressed.
fn frame(text: &str) -> Vec<u8> {
    let size = u32::try_from(text.len()).unwrap();
    let block = &((size << 3) | 1).to_le_bytes()[..3];
    [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &size.to_le_bytes(), block, text.as_bytes()].concat()
}

/// Returns the size of the layer in a record.
fn size(record: &str) -> u64 {
    serde_json::from_str::<Value>(record).unwrap()["s"].as_u64().unwrap()
}
