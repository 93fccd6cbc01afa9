//! Images for tests: layouts and archives made file by file, so that any part of them can be wrong.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_image::{BlobDigest, DiffId, ImageConfig, Platform};
use rbuild_layer::{EntryKind, TarEntry, TarWriter};
use rbuild_store::Store;
use rbuild_testkit::Scratch;
use serde_json::{Value, json};

use crate::blobs::{BlobInfo, BlobRead, BlobSource};
use crate::error::{Result, TransportError};
use crate::layout::{blob_path, wrong_digest};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Opens a store in a directory below `scratch`.
pub fn store_in(scratch: &Scratch, name: &str) -> Store {
    Store::open(&scratch.join(name)).unwrap()
}

/// The files of a layout, by path.
#[derive(Default, Clone)]
pub struct Fixture {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Links by path.
    pub links: BTreeMap<String, String>,
}

/// The parts of an image of one layer.
pub struct Parts {
    pub layer: BlobDigest,
    pub config: BlobDigest,
    pub manifest: BlobDigest,
    /// The entry of an index for it.
    pub entry: Value,
}

/// Returns a tar with one file.
pub fn layer(content: &str) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    tar.entry(&TarEntry::plain_file("f", content.len() as u64)).unwrap();
    tar.content(content.as_bytes()).unwrap();
    tar.finish().unwrap()
}

impl Fixture {
    /// Adds a blob; returns its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (BlobDigest::of(&bytes), bytes.len());
        self.files.insert(blob_path(&digest), bytes);
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
    }

    pub fn document(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, serde_json::to_vec(value).unwrap())
    }

    /// Adds an image of one layer. `change` may falsify the configuration and the manifest.
    pub fn image(&mut self, platform: &str, content: &str, change: impl FnOnce(&mut Value, &mut Value)) -> Parts {
        let platform: Platform = platform.parse().unwrap();
        let bytes = layer(content);
        let mut config = ImageConfig::empty(&platform);
        config.rootfs.diff_ids = vec![DiffId::of(&bytes)];
        let layer = self.blob(LAYER, bytes);
        let mut config = serde_json::to_value(&config).unwrap();
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": null, "layers": [layer]});
        change(&mut config, &mut manifest);
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        if manifest["config"].is_null() {
            manifest["config"] = config.clone();
        }
        let mut entry = self.document(MANIFEST, &manifest);
        entry["platform"] = json!({"os": platform.os, "architecture": platform.arch});
        let digest = |of: &Value| of["digest"].as_str().unwrap().parse().unwrap();
        Parts { layer: digest(&layer), config: digest(&config), manifest: digest(&entry), entry }
    }

    pub fn valid_image(&mut self, platform: &str, content: &str) -> Parts {
        self.image(platform, content, |_, _| {})
    }

    /// Adds an attestation of an image, in the form of BuildKit.
    pub fn attestation(&mut self, image: &Parts) -> Parts {
        let layer = self.blob("application/vnd.in-toto+json", br#"{"predicateType": "example"}"#.to_vec());
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}".to_vec());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut entry = self.document(MANIFEST, &manifest);
        entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        entry["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.manifest.to_string(),
        });
        let digest = |of: &Value| of["digest"].as_str().unwrap().parse().unwrap();
        Parts { layer: digest(&layer), config: digest(&config), manifest: digest(&entry), entry }
    }

    /// Adds an index of these entries; returns its own entry.
    pub fn list(&mut self, media_type: &str, entries: &[Value]) -> Value {
        self.document(media_type, &json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}))
    }

    /// Makes it a layout whose index has these entries.
    pub fn with_index(mut self, entries: &[Value]) -> Fixture {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        self.files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        self.files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self
    }

    pub fn with_manifest_json(mut self, items: &Value) -> Fixture {
        self.files.insert("manifest.json".into(), serde_json::to_vec(items).unwrap());
        self
    }

    /// Returns the files as a tar.
    pub fn archive(&self) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (path, bytes) in &self.files {
            tar.entry(&TarEntry::plain_file(path, bytes.len() as u64)).unwrap();
            tar.content(bytes).unwrap();
        }
        for (path, to) in &self.links {
            let link = TarEntry { kind: EntryKind::Symlink, link: to.into(), ..TarEntry::plain_file(path, 0) };
            tar.entry(&link).unwrap();
        }
        tar.finish().unwrap()
    }

    /// Writes the files into a directory.
    pub fn write(&self, dir: &Path) {
        for (path, bytes) in &self.files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
}

/// Returns the entry of an index under a name.
pub fn named(entry: &Value, annotation: &str, name: &str) -> Value {
    let mut entry = entry.clone();
    entry["annotations"] = json!({annotation: name});
    entry
}

/// A source in memory.
#[derive(Default)]
pub struct Memory {
    pub blobs: BTreeMap<BlobDigest, Vec<u8>>,
    /// Number of times that each blob is wrong before it is right.
    pub wrong: usize,
    pub attempts: usize,
    /// The size in bytes that the source reports of each blob, if it is not the real one.
    pub reported: Option<u64>,
    pub opened: AtomicUsize,
}

impl Memory {
    /// Returns a source of the blobs of a layout.
    pub fn of(fixture: &Fixture) -> Memory {
        let blobs =
            fixture.files.iter().filter_map(|(path, bytes)| Some((crate::layout::digest_in(path)?, bytes.clone())));
        Memory { blobs: blobs.collect(), attempts: 1, ..Memory::default() }
    }

    fn bytes(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        self.blobs.get(digest).cloned().ok_or_else(|| TransportError::other(format!("memory has no {digest}")))
    }
}

struct MemoryBlob<'a> {
    digest: BlobDigest,
    bytes: Cursor<Vec<u8>>,
    memory: &'a Memory,
}

impl Read for MemoryBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buf)
    }
}

impl BlobRead for MemoryBlob<'_> {
    fn note_wrong(&self, _found: &BlobDigest) -> bool {
        self.memory.opened.load(Ordering::Relaxed) < self.memory.attempts
    }

    fn start_at(&mut self, at: u64) -> io::Result<()> {
        self.bytes.set_position(at);
        Ok(())
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        wrong_digest(&blob_path(&self.digest), found)
    }
}

impl BlobSource for Memory {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(self.reported.or(self.blobs.get(digest).map(|bytes| bytes.len() as u64)))
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        self.bytes(digest)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let mut bytes = self.bytes(&part.digest)?;
        if self.opened.fetch_add(1, Ordering::Relaxed) < self.wrong {
            bytes[0] ^= 1;
        }
        Ok(Box::new(MemoryBlob { digest: part.digest, bytes: Cursor::new(bytes), memory: self }))
    }
}
