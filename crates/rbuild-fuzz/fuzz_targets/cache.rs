//! Reads arbitrary documents as caches of steps, and adds a step to them. The first byte selects
//! the document that the others are: the records of a cache, those in the configuration of an image
//! (of this program, and of BuildKit), the configuration of a cache of BuildKit, or a manifest.
//!
//! A step that was added must be found, whatever the cache contained before.
#![no_main]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rbuild_image::BlobDigest;
use rbuild_layer::LAYER_FORMAT;
use rbuild_linux::Directory;
use rbuild_registry::embeddable;
use rbuild_store::{CacheKey, CachedStep};
use rbuild_transport::{CacheLimits, ImportedCache, LocalCache, OwnSteps, RecordBudget, RecordKeys, write_local_cache};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Tag of the cache.
const TAG: &str = "steps";
/// The layer of the step that is added, and of images.
const LAYER: &[u8] = b"layer";
/// The day of the build, counted from the Unix epoch.
const TODAY: i64 = 20_000;
/// Maximum processor time for an input.
const MOST: Duration = Duration::from_secs(2);

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else { return };
    let dir = directory();
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    put(&dir, LAYER);
    let manifest = match kind % 5 {
        0 => records(&dir, text),
        1 => image(&dir, "rbuild.cache.v1", text),
        2 => image(&dir, "moby.buildkit.cache.v0", text),
        3 => buildkit(&dir, text),
        _ => text.to_vec(),
    };
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": put(&dir, &manifest),
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": TAG},
    });
    std::fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    let began = processor_time();
    let _ = ImportedCache::local(&dir, TAG, RecordKeys::none(), &RecordBudget::default());
    add_a_step(&dir);
    let taken = processor_time() - began;
    assert!(taken < MOST, "{} bytes took {taken:?}", bytes.len());
    std::fs::remove_dir_all(&dir).unwrap();
});

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Returns the path of the cache of this process.
fn directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    base.join(format!("rbuild-fuzz-{}", std::process::id()))
}

/// Writes a blob, and returns its digest.
fn put(dir: &Path, bytes: &[u8]) -> String {
    let digest = BlobDigest::of(bytes);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest.to_string()
}

fn descriptor(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": put(dir, bytes), "size": bytes.len()})
}

/// Returns the manifest of a cache with these records.
fn records(dir: &Path, text: &[u8]) -> Vec<u8> {
    let config = json!({"version": 1, "layer_format": LAYER_FORMAT, "steps": 1}).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "artifactType": "application/vnd.rbuild.cache.v1+json",
        "config": descriptor(dir, "application/vnd.rbuild.cache.config.v1+json", config.as_bytes()),
        "layers": [descriptor(dir, "application/vnd.rbuild.cache.records.v1+jsonl+zstd", text)],
    });
    manifest.to_string().into_bytes()
}

/// Returns the manifest of an image with records in its configuration.
fn image(dir: &Path, name: &str, text: &[u8]) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [BlobDigest::of(LAYER).to_string()]},
        name: embeddable(text),
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor(dir, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": [descriptor(dir, "application/vnd.oci.image.layer.v1.tar", LAYER)],
    });
    manifest.to_string().into_bytes()
}

/// Returns the manifest of a cache of BuildKit with this configuration.
fn buildkit(dir: &Path, text: &[u8]) -> Vec<u8> {
    let mut layer = descriptor(dir, "application/vnd.oci.image.layer.v1.tar", LAYER);
    layer["annotations"] = json!({"containerd.io/uncompressed": BlobDigest::of(LAYER).to_string()});
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor(dir, "application/vnd.buildkit.cacheconfig.v0", text),
        "layers": [layer],
    });
    manifest.to_string().into_bytes()
}

/// Adds a step to the cache. A cache of another kind is refused and stays as it is.
fn add_a_step(dir: &Path) {
    let blob = BlobDigest::of(LAYER);
    let step: CachedStep = serde_json::from_value(json!({
        "k": CacheKey::of(b"own"), "r": CacheKey::of(b"result"), "l": blob, "d": blob,
        "m": "application/vnd.oci.image.layer.v1.tar", "f": "uncompressed", "s": LAYER.len(), "u": LAYER.len(),
        "o": [0, 0, 493], "t": [7, 0], "c": 7, "n": TODAY,
    }))
    .unwrap();
    let none = BTreeSet::new();
    let ours = OwnSteps {
        steps: &[step],
        lost: &none,
        refreshed: &none,
        limits: CacheLimits::default(),
        today: TODAY,
        keys: RecordKeys::none(),
    };
    let cache = LocalCache { dir: Directory::find(dir).unwrap(), tag: TAG.into() };
    let index = std::fs::read(dir.join("index.json")).unwrap();
    match write_local_cache(&cache, &ours, &[]) {
        // Nothing is changed in a cache of another version, either.
        Ok(written) if std::fs::read(dir.join("index.json")).unwrap() != index => {
            let read = ImportedCache::local(dir, TAG, RecordKeys::none(), &RecordBudget::default()).unwrap().unwrap();
            let count = written.content.steps + written.content.mounts;
            assert!(count > 0 && read.len() == count, "{written:?}, but {} can be read", read.len());
        }
        _ => assert_eq!(std::fs::read(dir.join("index.json")).unwrap(), index),
    }
}
