//! `load`: images from a tar or an OCI image layout that docker, podman, skopeo or rbuild wrote.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::{
    Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, MediaType, REF_NAME, Reference, descriptor, digest_of,
};
use rbuild_layer::{Compression, Counting, Decoder, EntryKind, TarReader, detect};
use rbuild_linux::RootDir;
use rbuild_store::{Store, Workspace};
use serde::Deserialize;

use crate::error::{BuildError, Result};
use crate::image::put_layer;

/// One image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// What the archive has under a name.
#[derive(Debug, Clone)]
enum Member {
    Blob(Digest, u64),
    /// Old docker-archives link equal layers to each other.
    Link(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

const MAX_INDEX_DEPTH: usize = 4;
/// Longest index of a layout directory, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Reads an archive of any compression to its end and keeps its images under their names.
pub fn load(store: &Store, source: impl Read) -> Result<Vec<Loaded>> {
    let work = Workspace::open(store)?;
    let members = Members::Archive(members(store, &work, source)?);
    Loader { store, work: &work, members, moved: &Arc::default() }.load_all()
}

/// Keeps the images of an OCI image layout directory under their names. `moved` counts the bytes that are read.
pub fn load_directory(store: &Store, dir: &Path, moved: &Arc<AtomicU64>) -> Result<Vec<Loaded>> {
    let work = Workspace::open(store)?;
    Loader { store, work: &work, members: Members::Directory(open_layout(dir)?), moved }.load_all()
}

/// Takes one image of an OCI image layout into the store without a name, and gives its manifest. `wanted` is a tag
/// or a digest; without one, the only image there is, or the one tagged `latest`.
pub fn take_from_layout(store: &Store, dir: &Path, wanted: Option<&str>) -> Result<Digest> {
    let work = Workspace::open(store)?;
    let moved = Arc::default();
    let loader = Loader { store, work: &work, members: Members::Directory(open_layout(dir)?), moved: &moved };
    let text = loader.document("index.json")?.unwrap_or_default();
    let index: ImageIndex = parse(&text, "index.json")?;
    let tag = |d: &Descriptor| d.annotations().as_ref().and_then(|a| a.get(REF_NAME).cloned()).unwrap_or_default();
    let fits = |d: &&Descriptor| match wanted {
        Some(wanted) => tag(d) == wanted || d.digest().to_string() == wanted,
        None => tag(d) == "latest" || index.manifests().len() == 1,
    };
    let Some(entry) = index.manifests().iter().find(fits) else {
        let tags: Vec<String> = index.manifests().iter().map(tag).filter(|t| !t.is_empty()).collect();
        return Err(BuildError::Other {
            message: format!("the OCI layout {} has no image `{}`", dir.display(), wanted.unwrap_or("latest")),
            help: Some(if tags.is_empty() { "give a digest".into() } else { format!("it has {}", tags.join(", ")) }),
        });
    };
    match &loader.oci_images(entry, 0)?[..] {
        [(manifest, _)] => Ok(*manifest),
        found => Err(BuildError::other(format!(
            "the OCI layout {} has {} images of this platform under that name",
            dir.display(),
            found.len()
        ))),
    }
}

fn open_layout(dir: &Path) -> Result<RootDir> {
    RootDir::open(dir).map_err(BuildError::kernel(format!("the OCI layout {}", dir.display())))
}

/// Where the parts of images are.
enum Members {
    /// In the store already, by the names they had in the archive.
    Archive(HashMap<String, Member>),
    Directory(RootDir),
}

fn members(store: &Store, work: &Workspace, source: impl Read) -> Result<HashMap<String, Member>> {
    let what = "the archive";
    let mut tar = TarReader::new(Decoder::new(source).map_err(BuildError::io(what))?);
    let mut members = HashMap::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(what))? {
        let name = clean(&entry.path.to_string_lossy());
        match entry.kind {
            EntryKind::File => {
                let (digest, size) = store.put_blob(work, Content(&mut tar))?;
                if promised(&name).is_some_and(|p| p != digest) {
                    return Err(wrong_digest(&name, &digest));
                }
                members.insert(name, Member::Blob(digest, size));
            }
            EntryKind::Symlink | EntryKind::HardLink => {
                let target = entry.link.to_string_lossy().into_owned();
                let base =
                    if entry.kind == EntryKind::Symlink { name.rsplit_once('/').map_or("", |(d, _)| d) } else { "" };
                let target = clean(&format!("{base}/{target}"));
                members.insert(name, Member::Link(target));
            }
            _ => {}
        }
    }
    tar.drain().map_err(BuildError::layer(what))?;
    Ok(members)
}

/// The content of the current entry as a reader.
struct Content<'a, R: Read>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_content(buf).map_err(std::io::Error::other)
    }
}

pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

struct Loader<'a> {
    store: &'a Store,
    work: &'a Workspace,
    members: Members,
    /// Bytes read from a directory.
    moved: &'a Arc<AtomicU64>,
}

/// What the digest in a blob's name promises.
pub(crate) fn promised(name: &str) -> Option<Digest> {
    name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok())
}

fn wrong_digest(name: &str, found: &Digest) -> BuildError {
    BuildError::Other {
        message: format!("the archive's {name} has the digest {found}"),
        help: Some("the archive is damaged; write or transfer it again".into()),
    }
}

/// An image whose parts are all in the store, and which has no name there yet.
struct Taken {
    manifest: Digest,
    loaded: Loaded,
}

impl Loader<'_> {
    /// Takes everything in and then, when it is on the disk, gives it its names.
    fn load_all(&self) -> Result<Vec<Loaded>> {
        let taken = self.load()?;
        self.store.sync("load")?;
        let mut all: Vec<Loaded> = Vec::new();
        for Taken { manifest, loaded } in taken {
            if loaded.names.is_empty() {
                self.store.tag(&manifest, None)?;
            }
            for name in &loaded.names {
                self.store.tag(&manifest, Some(name))?;
            }
            match all.iter_mut().find(|l| l.id == loaded.id) {
                Some(known) => known.names.extend(loaded.names),
                None => all.push(loaded),
            }
        }
        Ok(all)
    }

    fn load(&self) -> Result<Vec<Taken>> {
        let index = self.document("index.json")?;
        // What docker's own document says of an image of several platforms is the choice of whoever wrote it.
        let several = |d: &Descriptor| *d.media_type() == MediaType::ImageIndex;
        let parsed = index.as_ref().and_then(|text| serde_json::from_slice::<ImageIndex>(text).ok());
        let docker = match parsed.is_some_and(|index| index.manifests().iter().any(several)) {
            true => None,
            false => self.document("manifest.json")?,
        };
        match (docker, index) {
            (Some(text), _) => self.docker(&text),
            (None, Some(text)) => self.oci(&text),
            (None, None) => Err(BuildError::Other {
                message: "the archive holds no image: it has neither manifest.json nor index.json".into(),
                help: Some("a root file system without image files is taken in by `rbuild import`".into()),
            }),
        }
    }

    /// A part by its name, in the store.
    fn blob(&self, name: &str) -> Result<(Digest, u64)> {
        match &self.members {
            Members::Archive(members) => match promised(&clean(name)) {
                // What was left out because we have it.
                Some(digest) if !members.contains_key(&clean(name)) && self.store.has_blob(&digest)? => {
                    Ok((digest, self.store.blob_size(&digest)?))
                }
                _ => Self::member(members, name),
            },
            Members::Directory(dir) => self.file(dir, &clean(name)),
        }
    }

    fn file(&self, dir: &RootDir, name: &str) -> Result<(Digest, u64)> {
        let fail = || BuildError::kernel(format!("the image's {name}"));
        if let Some(digest) = promised(name) {
            // Left out because we have it, or in the store at its full length.
            let there = match dir.stat(name) {
                Ok(stat) => self.store.has_whole_blob(&digest, stat.size)?,
                Err(e) if e.is_not_found() => self.store.has_blob(&digest)?,
                Err(e) => return Err(fail()(e)),
            };
            if there {
                return Ok((digest, self.store.blob_size(&digest)?));
            }
        }
        let file = dir.open_file(name).map_err(fail())?;
        let (digest, size) = self.store.put_blob(self.work, Counting::new(file, self.moved.clone()))?;
        match promised(name) {
            Some(promised) if promised != digest => Err(wrong_digest(name, &digest)),
            _ => Ok((digest, size)),
        }
    }

    fn member(members: &HashMap<String, Member>, name: &str) -> Result<(Digest, u64)> {
        let mut name = clean(name);
        for _ in 0..16 {
            match members.get(&name) {
                Some(Member::Blob(digest, size)) => return Ok((*digest, *size)),
                Some(Member::Link(to)) => name = to.clone(),
                None => break,
            }
        }
        Err(BuildError::Other {
            message: format!("the archive lacks {name}, which its manifest names"),
            help: Some("it was cut short; write or transfer it again".into()),
        })
    }

    /// Says which of the layers are neither in the archive nor in the store; none is fetched or guessed.
    fn nothing_missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<()> {
        let Members::Archive(members) = &self.members else { return Ok(()) };
        let mut missing = Vec::new();
        for name in names {
            let here = members.contains_key(&clean(name));
            let known = promised(&clean(name));
            if !here && !known.map_or(Ok(false), |digest| self.store.has_blob(&digest))? {
                missing.push(known.map_or_else(|| name.to_string(), |digest| digest.to_string()));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let count = missing.len();
        Err(BuildError::Other {
            message: format!("{count} layers are neither in the archive nor in the store: {}", missing.join(", ")),
            help: Some("it was written without its base (save --exclude or --since): load the base first".into()),
        })
    }

    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.members {
            Members::Archive(members) => match members.get(name) {
                Some(Member::Blob(digest, _)) => Ok(Some(self.store.read_document(digest)?)),
                _ => Ok(None),
            },
            Members::Directory(dir) => match dir.read(name, MAX_DOCUMENT) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(BuildError::kernel(format!("the image's {name}"))(e)),
            },
        }
    }

    fn docker(&self, text: &[u8]) -> Result<Vec<Taken>> {
        let items: Vec<DockerItem> = parse(text, "manifest.json")?;
        items.into_iter().map(|item| self.docker_item(item)).collect()
    }

    fn docker_item(&self, item: DockerItem) -> Result<Taken> {
        let (id, config_size) = self.blob(&item.config)?;
        let config: ImageConfig = parse(&self.store.read_document(&id)?, &item.config)?;
        if config.rootfs.diff_ids.len() != item.layers.len() {
            return Err(BuildError::other(format!(
                "the archive's manifest has {} layers and its configuration {}",
                item.layers.len(),
                config.rootfs.diff_ids.len()
            )));
        }
        self.nothing_missing(item.layers.iter().map(String::as_str))?;
        let mut layers = Vec::new();
        for (name, diff_id) in item.layers.iter().zip(&config.rootfs.diff_ids) {
            layers.push(self.docker_layer(name, diff_id)?);
        }
        let manifest = rbuild_image::manifest(descriptor(MediaType::ImageConfig, &id, config_size), layers);
        let (manifest, _) = self.store.put_document(self.work, &manifest)?;
        let names: Vec<Reference> = item
            .repo_tags
            .unwrap_or_default()
            .iter()
            .map(|t| t.parse().map_err(|e: rbuild_image::ReferenceError| BuildError::other(e.to_string())))
            .collect::<Result<_>>()?;
        Ok(Taken { manifest, loaded: Loaded { id, names } })
    }

    /// A layer of a docker-archive comes without a digest of its own. Whether it is the one that the configuration means
    /// shows here where its bytes are plain, and else when it is unpacked or verified, as with any other image.
    fn docker_layer(&self, name: &str, diff_id: &Digest) -> Result<Descriptor> {
        let (digest, size) = self.blob(name)?;
        let mut head = [0u8; 16];
        let n = self.store.open_blob(&digest)?.read(&mut head).map_err(BuildError::io("reading a layer"))?;
        let (found, layer) = match detect(&head[..n]) {
            Compression::Gzip => return Ok(descriptor(MediaType::ImageLayerGzip, &digest, size)),
            Compression::Zstd => return Ok(descriptor(MediaType::ImageLayerZstd, &digest, size)),
            Compression::None => (digest, descriptor(MediaType::ImageLayer, &digest, size)),
            Compression::Bzip2 | Compression::Xz => {
                let source = self.store.open_blob(&digest)?;
                let (blob, size, found, media_type) = put_layer(self.store, self.work, source, name)?;
                (found, descriptor(media_type, &blob, size))
            }
        };
        if found != *diff_id {
            return Err(BuildError::Other {
                message: format!(
                    "the archive's layer {name} has the diffID {found}, but its configuration says {diff_id}"
                ),
                help: Some("the archive is damaged; write or transfer it again".into()),
            });
        }
        Ok(layer)
    }

    fn oci(&self, text: &[u8]) -> Result<Vec<Taken>> {
        let index: ImageIndex = parse(text, "index.json")?;
        let mut taken = Vec::new();
        for entry in index.manifests() {
            taken.extend(self.oci_entry(entry)?);
        }
        Ok(taken)
    }

    fn oci_entry(&self, entry: &Descriptor) -> Result<Vec<Taken>> {
        let annotations = entry.annotations().clone().unwrap_or_default();
        let name = annotations.get("io.containerd.image.name").or_else(|| annotations.get(REF_NAME));
        // A bare tag is no name for an image.
        let names: Vec<Reference> =
            name.filter(|n| n.contains([':', '/'])).and_then(|n| n.parse().ok()).into_iter().collect();
        let images = self.oci_images(entry, 0)?;
        let take = |(manifest, id)| Taken { manifest, loaded: Loaded { id, names: names.clone() } };
        Ok(images.into_iter().map(take).collect())
    }

    /// The manifests that an entry leads to, for this platform, and their image ids; all they need is in the store.
    fn oci_images(&self, entry: &Descriptor, depth: usize) -> Result<Vec<(Digest, Digest)>> {
        let digest = digest_of(entry).map_err(|e| BuildError::other(e.to_string()))?;
        self.blob(&format!("blobs/sha256/{}", digest.hex()))?;
        let text = self.store.read_document(&digest)?;
        if *entry.media_type() == MediaType::ImageIndex && depth < MAX_INDEX_DEPTH {
            let index: ImageIndex = parse(&text, "an index")?;
            let host = rbuild_image::Platform::host();
            let fits = |d: &&Descriptor| match d.platform() {
                Some(p) => p.os().to_string() == host.os && p.architecture().to_string() == host.arch,
                None => true,
            };
            let mut all = Vec::new();
            for inner in index.manifests().iter().filter(fits) {
                all.extend(self.oci_images(inner, depth + 1)?);
            }
            return Ok(all);
        }
        let manifest: ImageManifest = parse(&text, "a manifest")?;
        let id = digest_of(manifest.config()).map_err(|e| BuildError::other(e.to_string()))?;
        let blobs: Vec<String> = manifest
            .layers()
            .iter()
            .filter_map(|d| Some(format!("blobs/sha256/{}", digest_of(d).ok()?.hex())))
            .collect();
        self.nothing_missing(blobs.iter().map(String::as_str))?;
        for d in manifest.layers().iter().chain([manifest.config()]) {
            let digest = digest_of(d).map_err(|e| BuildError::other(e.to_string()))?;
            if !self.store.has_whole_blob(&digest, d.size())? {
                self.blob(&format!("blobs/sha256/{}", digest.hex()))?;
            }
        }
        Ok(vec![(digest, id)])
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| BuildError::other(format!("the archive's {what} cannot be read: {e}")))
}
