//! `load`: images from a tar that docker, podman, skopeo or rbuild wrote.

use std::collections::HashMap;
use std::io::Read;

use rbuild_image::{
    Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, MediaType, REF_NAME, Reference, descriptor, digest_of,
};
use rbuild_layer::{Compression, Decoder, EntryKind, TarReader, detect};
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

/// Reads an archive of any compression to its end and keeps its images under their names.
pub fn load(store: &Store, source: impl Read) -> Result<Vec<Loaded>> {
    let work = Workspace::open(store)?;
    let members = members(store, &work, source)?;
    let loader = Loader { store, work: &work, members };
    let loaded = if let Some(text) = loader.document("manifest.json")? {
        loader.docker(&text)?
    } else if let Some(text) = loader.document("index.json")? {
        loader.oci(&text)?
    } else {
        return Err(BuildError::Other {
            message: "the archive holds no image: it has neither manifest.json nor index.json".into(),
            help: Some("a root file system without image files is taken in by `rbuild import`".into()),
        });
    };
    store.sync("load")?;
    Ok(loaded)
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
                let promised: Option<Digest> =
                    name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
                if promised.is_some_and(|p| p != digest) {
                    return Err(BuildError::Other {
                        message: format!("the archive's {name} has the digest {digest}"),
                        help: Some("the archive is damaged; write or transfer it again".into()),
                    });
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

fn clean(path: &str) -> String {
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
    members: HashMap<String, Member>,
}

impl Loader<'_> {
    fn blob(&self, name: &str) -> Result<(Digest, u64)> {
        let mut name = clean(name);
        for _ in 0..16 {
            match self.members.get(&name) {
                Some(Member::Blob(digest, size)) => return Ok((*digest, *size)),
                Some(Member::Link(to)) => name = to.clone(),
                None => break,
            }
        }
        Err(BuildError::Other {
            message: format!("the archive lacks {name}, which its manifest names"),
            help: Some("it was cut short or written without its base; write it again".into()),
        })
    }

    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.members.get(name) {
            Some(Member::Blob(digest, _)) => Ok(Some(self.store.read_document(digest)?)),
            _ => Ok(None),
        }
    }

    fn docker(&self, text: &[u8]) -> Result<Vec<Loaded>> {
        let items: Vec<DockerItem> = parse(text, "manifest.json")?;
        items.into_iter().map(|item| self.docker_item(item)).collect()
    }

    fn docker_item(&self, item: DockerItem) -> Result<Loaded> {
        let (id, config_size) = self.blob(&item.config)?;
        let config: ImageConfig = parse(&self.store.read_document(&id)?, &item.config)?;
        if config.rootfs.diff_ids.len() != item.layers.len() {
            return Err(BuildError::other(format!(
                "the archive's manifest has {} layers and its configuration {}",
                item.layers.len(),
                config.rootfs.diff_ids.len()
            )));
        }
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
        self.keep(&manifest, id, names)
    }

    /// A layer of a docker-archive comes without a digest of its own; its diffID is checked here.
    fn docker_layer(&self, name: &str, diff_id: &Digest) -> Result<Descriptor> {
        let (digest, size) = self.blob(name)?;
        let mut head = [0u8; 16];
        let n = self.store.open_blob(&digest)?.read(&mut head).map_err(BuildError::io("reading a layer"))?;
        let (found, layer) = match detect(&head[..n]) {
            Compression::None => (digest, descriptor(MediaType::ImageLayer, &digest, size)),
            _ => {
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

    fn oci(&self, text: &[u8]) -> Result<Vec<Loaded>> {
        let index: ImageIndex = parse(text, "index.json")?;
        let mut loaded: Vec<Loaded> = Vec::new();
        for entry in index.manifests() {
            for one in self.oci_entry(entry, 0)? {
                match loaded.iter_mut().find(|l| l.id == one.id) {
                    Some(known) => known.names.extend(one.names),
                    None => loaded.push(one),
                }
            }
        }
        Ok(loaded)
    }

    fn oci_entry(&self, entry: &Descriptor, depth: usize) -> Result<Vec<Loaded>> {
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
                let mut inner = inner.clone();
                inner.set_annotations(entry.annotations().clone());
                all.extend(self.oci_entry(&inner, depth + 1)?);
            }
            return Ok(all);
        }
        let manifest: ImageManifest = parse(&text, "a manifest")?;
        let id = digest_of(manifest.config()).map_err(|e| BuildError::other(e.to_string()))?;
        for d in manifest.layers().iter().chain([manifest.config()]) {
            let digest = digest_of(d).map_err(|e| BuildError::other(e.to_string()))?;
            if !self.store.has_blob(&digest)? {
                self.blob(&format!("blobs/sha256/{}", digest.hex()))?;
            }
        }
        let annotations = entry.annotations().clone().unwrap_or_default();
        let name = annotations.get("io.containerd.image.name").or_else(|| annotations.get(REF_NAME));
        // A bare tag is no name for an image.
        let names = name.filter(|n| n.contains([':', '/'])).and_then(|n| n.parse().ok()).into_iter().collect();
        Ok(vec![self.keep(&digest, id, names)?])
    }

    fn keep(&self, manifest: &Digest, id: Digest, names: Vec<Reference>) -> Result<Loaded> {
        if names.is_empty() {
            self.store.tag(manifest, None)?;
        }
        for name in &names {
            self.store.tag(manifest, Some(name))?;
        }
        Ok(Loaded { id, names })
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| BuildError::other(format!("the archive's {what} cannot be read: {e}")))
}
