//! Images like those of other tools, built entry by entry.

use std::path::Path;

use rbuild_image::{BlobDigest, DiffId};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// A layer under construction: entries in the order in which they are added.
pub struct Layer(Builder<Vec<u8>>);

/// The metadata of an entry, apart from its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

pub const ROOTS: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1_000_000 };

impl Layer {
    pub fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, meta: &Meta, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(size);
        header
    }

    pub fn file_with(mut self, path: impl AsRef<Path>, content: &[u8], meta: &Meta) -> Layer {
        let mut header = Layer::header(EntryType::Regular, meta, content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn file(self, path: impl AsRef<Path>, content: &str) -> Layer {
        self.file_with(path, content.as_bytes(), &ROOTS)
    }

    pub fn dir_with(mut self, path: impl AsRef<Path>, meta: &Meta) -> Layer {
        let mut header = Layer::header(EntryType::Directory, meta, 0);
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    pub fn dir(self, path: impl AsRef<Path>) -> Layer {
        self.dir_with(path, &Meta { mode: 0o755, ..ROOTS })
    }

    fn link(mut self, kind: EntryType, path: &Path, to: &Path) -> Layer {
        let mut header = Layer::header(kind, &Meta { mode: 0o777, ..ROOTS }, 0);
        self.0.append_link(&mut header, path, to).unwrap();
        self
    }

    pub fn symlink(self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Layer {
        self.link(EntryType::Symlink, path.as_ref(), to.as_ref())
    }

    pub fn hard_link(self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Layer {
        self.link(EntryType::Link, path.as_ref(), to.as_ref())
    }

    /// Sets the extended attributes of the next entry.
    pub fn xattrs(mut self, xattrs: &[(String, Vec<u8>)]) -> Layer {
        let records: Vec<(String, &[u8])> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), &value[..])).collect();
        if !records.is_empty() {
            self.0.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value))).unwrap();
        }
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn plain(self) -> Blob {
        let bytes = self.bytes();
        Blob { diff_id: DiffId::of(&bytes), media_type: "application/vnd.oci.image.layer.v1.tar".into(), bytes }
    }

    pub fn gzip(self) -> Blob {
        let bytes = self.bytes();
        Blob { diff_id: DiffId::of(&bytes), ..Blob::gzip_of(&bytes) }
    }
}

/// A layer as stored in an archive.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    /// The diffID in the configuration, which may be wrong.
    pub diff_id: DiffId,
    pub media_type: String,
}

impl Blob {
    pub fn gzip_of(plain: &[u8]) -> Blob {
        use std::io::Write;
        let mut child = std::process::Command::new("gzip")
            .args(["-n", "-c"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let plain_copy = plain.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&plain_copy));
        let bytes = child.wait_with_output().unwrap().stdout;
        writer.join().unwrap().unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
        Blob { diff_id: DiffId::of(plain), media_type, bytes }
    }
}

/// An image under construction.
pub struct Forged {
    pub layers: Vec<Blob>,
    /// Added to the layer sizes in the manifest.
    pub size_error: u64,
    pub diff_ids: Vec<DiffId>,
    pub config: Value,
}

impl Forged {
    pub fn new(layers: Vec<Blob>) -> Forged {
        let diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        Forged { layers, size_error: 0, diff_ids, config: json!({"Env": ["PATH=/bin"]}) }
    }

    fn config_bytes(&self) -> Vec<u8> {
        let arch = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({
            "architecture": arch, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        serde_json::to_vec(&config).unwrap()
    }

    /// Writes the image as a docker-archive in the legacy format, in which layers have no digests
    /// of their own.
    pub fn write_docker(&self, path: &Path, name: &str) {
        let names: Vec<String> = (0..self.layers.len()).map(|i| format!("{i}/layer.tar")).collect();
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
        let mut layer = Layer::new().file_with("config.json", &self.config_bytes(), &ROOTS).file_with(
            "manifest.json",
            &serde_json::to_vec(&manifest).unwrap(),
            &ROOTS,
        );
        for (name, blob) in names.iter().zip(&self.layers) {
            layer = layer.file_with(name, &blob.bytes, &ROOTS);
        }
        std::fs::write(path, layer.bytes()).unwrap();
    }

    /// Returns the files of an OCI image layout that contains the image under that name.
    fn layout(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut put = |media_type: &str, bytes: Vec<u8>, more: u64| {
            let digest = BlobDigest::of(&bytes);
            let size = bytes.len() as u64 + more;
            files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let config = put("application/vnd.oci.image.config.v1+json", self.config_bytes(), 0);
        let layers: Vec<Value> =
            self.layers.iter().map(|l| put(&l.media_type, l.bytes.clone(), self.size_error)).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let mut entry = put(kind, serde_json::to_vec(&manifest).unwrap(), 0);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        files.push(("index.json".into(), serde_json::to_vec(&index).unwrap()));
        files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files
    }

    pub fn write_layout(&self, dir: &Path, name: &str) {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (path, bytes) in self.layout(name) {
            std::fs::write(dir.join(path), bytes).unwrap();
        }
    }

    pub fn write_oci_archive(&self, path: &Path, name: &str) {
        let mut files = self.layout(name);
        // Equal layers are stored once.
        files.sort();
        files.dedup();
        let layer = files.iter().fold(Layer::new(), |layer, (name, bytes)| layer.file_with(name, bytes, &ROOTS));
        std::fs::write(path, layer.bytes()).unwrap();
    }
}
