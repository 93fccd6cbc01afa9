//! Loads image archives: the time must be linear in their length, and a load must be complete or
//! have no effect. The input is either an archive or a script that generates one: documents and
//! layers that refer to each other, possibly many times, with correct digests.
#![no_main]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rbuild_image::BlobDigest;
use rbuild_layer::{EntryKind, TarEntry, TarWriter};
use rbuild_store::Store;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Maximum size of a generated archive in bytes; what would exceed it is omitted.
const MAX_BYTES: usize = 1 << 20;
/// Upper bound of the overhead of a member in bytes: its header, the header for the PAX record of a
/// long name, and padding.
const HEADERS: usize = 4 * 512;
/// Upper bound of a descriptor's size in a document, in bytes.
const DESCRIPTOR: usize = 300;
/// Time permitted per 100 kB, and the minimum for short archives.
const PACE: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_secs(1);

fuzz_target!(|bytes: &[u8]| {
    static VALID: Once = Once::new();
    VALID.call_once(|| {
        for last in [ENTRY, ITEM] {
            // A one-byte blob as the layer, its configuration and manifest, and the reference to
            // the manifest.
            let made = Making::new(&[BLOB, 1, b'x', CONFIG, 0, 1, MANIFEST, 1, 0, 1, last, 2, 0, 1, 1]).archive();
            assert!(load(&made), "a valid archive is refused");
        }
    });
    match bytes.split_first() {
        Some((0, archive)) => load(archive),
        Some((_, script)) => load(&Making::new(script).archive()),
        None => true,
    };
});

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Loads an archive into a new store; returns true if it was accepted.
fn load(archive: &[u8]) -> bool {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let dir = base.join(format!("rbuild-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let store = Store::open(&dir).unwrap();
    let began = processor_time();
    let loaded = rbuild_transport::load(&store, archive, &rbuild_transport::WantedPlatform::new(None));
    let taken = processor_time() - began;
    let most = LEAST.max(PACE * (archive.len() / 1000) as u32 / 100);
    assert!(taken < most, "{} bytes took {taken:?}", archive.len());
    assert!(files(&dir.join("tmp")).is_empty(), "work in progress stays");
    match &loaded {
        Ok(_) => assert!(store.gc().check(false).unwrap().damage.is_empty()),
        Err(_) => {
            let left = [files(&dir.join("blobs/sha256")), files(&dir.join("layers"))].concat();
            assert!(left.is_empty() && store.images().list().unwrap().is_empty(), "{left:?} stays of what was refused");
        }
    }
    drop(store);
    std::fs::remove_dir_all(&dir).unwrap();
    loaded.is_ok()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

const BLOB: u8 = 0;
const CONFIG: u8 = 1;
const MANIFEST: u8 = 2;
const INDEX: u8 = 3;
const ENTRY: u8 = 4;
const ITEM: u8 = 5;
const LINK: u8 = 6;

/// Generates an archive from a script.
struct Making<'b> {
    script: &'b [u8],
    tar: TarWriter<Vec<u8>>,
    /// Bytes of `MAX_BYTES` that are left.
    left: usize,
    /// Blobs added so far: digest, size, and media type.
    blobs: Vec<(BlobDigest, usize, &'static str)>,
    /// Names of members that can be referenced instead of blobs.
    names: Vec<String>,
    entries: Vec<Value>,
    items: Vec<Value>,
}

impl<'b> Making<'b> {
    fn new(script: &'b [u8]) -> Making<'b> {
        let (blobs, names, entries, items) = Default::default();
        Making { script, tar: TarWriter::new(Vec::new()), left: MAX_BYTES, blobs, names, entries, items }
    }

    fn archive(mut self) -> Vec<u8> {
        while !self.script.is_empty() {
            self.step();
        }
        if !self.entries.is_empty() {
            let index = json!({ "schemaVersion": 2, "manifests": self.entries });
            self.write("index.json", &serde_json::to_vec(&index).unwrap());
        }
        if !self.items.is_empty() {
            let items = serde_json::to_vec(&self.items).unwrap();
            self.write("manifest.json", &items);
        }
        let archive = self.tar.finish().unwrap();
        assert!(archive.len() <= 2 * MAX_BYTES, "a generated archive has {} bytes", archive.len());
        archive
    }

    /// Reserves space in the archive; returns false if less is left.
    fn fits(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        }
        fits
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.script.split_first().unwrap_or((&0, &[]));
        self.script = rest;
        *first
    }

    /// Reads a repetition count, for something of this size in bytes, and reserves the space.
    fn times(&mut self, size: usize) -> usize {
        let times = match usize::from(self.byte()) {
            few @ ..=200 => few,
            many => (many - 200) * 100,
        };
        if self.fits(times * size) { times } else { 0 }
    }

    fn piece(&mut self) -> &'b [u8] {
        let length = usize::from(self.byte()).min(self.script.len());
        let (piece, rest) = self.script.split_at(length);
        self.script = rest;
        piece
    }

    /// Reads a blob index, which counts from the first blob or, beyond the last, backwards from the
    /// end.
    fn blob(&mut self) -> (BlobDigest, usize, &'static str) {
        let nth = usize::from(self.byte());
        let none = (BlobDigest::of(b""), 0, "application/vnd.oci.image.layer.v1.tar");
        self.blobs.get(nth).or_else(|| self.blobs.iter().nth_back(255 - nth)).copied().unwrap_or(none)
    }

    fn step(&mut self) {
        match self.byte() % 8 {
            BLOB => {
                let piece = self.piece();
                self.add("layer.v1.tar", piece);
            }
            CONFIG => {
                let (layer, times) = (self.blob().0.to_string(), self.times(DESCRIPTOR));
                let fs = json!({ "type": "layers", "diff_ids": vec![layer; times] });
                let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": fs });
                self.document("config.v1+json", &config);
            }
            MANIFEST => {
                let config = descriptor(self.blob());
                let layers = vec![descriptor(self.blob()); self.times(DESCRIPTOR)];
                self.document("manifest.v1+json", &json!({ "schemaVersion": 2, "config": config, "layers": layers }));
            }
            INDEX => {
                let (first, other) = (descriptor(self.blob()), descriptor(self.blob()));
                let mut entries = vec![first; self.times(DESCRIPTOR)];
                entries.push(other);
                self.document("index.v1+json", &json!({ "schemaVersion": 2, "manifests": entries }));
            }
            ENTRY => {
                let mut entry = descriptor(self.blob());
                if self.byte() % 4 == 1 {
                    entry["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
                }
                let (times, named) = (self.times(DESCRIPTOR), self.byte() % 2 == 1);
                for n in 0..times {
                    if named {
                        entry["annotations"] = json!({ "io.containerd.image.name": format!("n:{n}") });
                    }
                    self.entries.push(entry.clone());
                }
            }
            ITEM => self.item(),
            LINK => {
                let (name, to) = (self.name(), self.name());
                if self.fits(name.len() + to.len() + 2 * HEADERS) {
                    let link = TarEntry { kind: EntryKind::Symlink, link: to.into(), ..TarEntry::plain_file(&name, 0) };
                    let _ = self.tar.entry(&link);
                    self.names.push(name);
                }
            }
            _ => {
                let (name, piece) = (self.name(), self.piece());
                self.member(&name, piece);
                self.names.push(name);
            }
        }
    }

    /// Adds an entry to docker's manifest.json, for an image that may or may not have a manifest
    /// among the blobs.
    fn item(&mut self) {
        let place = |blob: (BlobDigest, usize, &str)| format!("blobs/sha256/{}", blob.0.hex());
        let config = place(self.blob());
        let config = self.blobs.iter().rev().find(|blob| blob.2.contains("config")).map_or(config, |blob| place(*blob));
        let layer = place(self.blob());
        let layer = self.names.last().cloned().unwrap_or(layer);
        // Escaped control characters take six bytes each.
        let layers = vec![layer.clone(); self.times(6 * layer.len() + 3)];
        let tags: Vec<String> = (0..self.times(20)).map(|n| format!("n:{n}")).collect();
        self.items.push(json!({ "Config": config, "Layers": layers, "RepoTags": tags }));
    }

    fn name(&mut self) -> String {
        let name = String::from_utf8_lossy(self.piece()).replace('\0', "");
        name.repeat(usize::from(self.byte() % 8) * 50 + 1)
    }

    fn document(&mut self, kind: &'static str, document: &Value) {
        self.add(kind, &serde_json::to_vec(document).unwrap());
    }

    fn add(&mut self, kind: &'static str, bytes: &[u8]) {
        let digest = BlobDigest::of(bytes);
        self.member(&format!("blobs/sha256/{}", digest.hex()), bytes);
        self.blobs.push((digest, bytes.len(), kind));
    }

    fn member(&mut self, name: &str, bytes: &[u8]) {
        if self.fits(name.len() + bytes.len() + HEADERS) {
            self.write(name, bytes);
        }
    }

    /// Adds a member. The caller has reserved its space.
    fn write(&mut self, name: &str, bytes: &[u8]) {
        if self.tar.entry(&TarEntry::plain_file(name, bytes.len() as u64)).is_ok() {
            self.tar.content(bytes).unwrap();
        }
    }
}

fn descriptor(blob: (BlobDigest, usize, &str)) -> Value {
    let (digest, size, kind) = blob;
    let fields = BTreeMap::from([
        ("mediaType", json!(format!("application/vnd.oci.image.{kind}"))),
        ("digest", json!(digest.to_string())),
        ("size", json!(size)),
    ]);
    json!(fields)
}
