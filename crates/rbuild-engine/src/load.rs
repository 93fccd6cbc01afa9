//! `load`: images from a tar or an OCI image layout that docker, podman, skopeo or rbuild wrote.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::{
    Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, MediaType, REF_NAME, Reference, descriptor,
};
use rbuild_layer::Compression;
use rbuild_store::{Store, Workspace};
use serde::Deserialize;

use crate::error::{BuildError, Result};
use crate::image::put_layer;

mod manifest;
mod members;

use manifest::{compression, counts_differ, is_index, named, not_the_layer, take, take_image};
use members::Members;
pub(crate) use members::{clean, promised};

/// One image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// What came in, and what there is to say of where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<T> {
    pub found: T,
    /// Each a sentence.
    pub warnings: Vec<String>,
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
const DAMAGED: &str = "the archive is damaged; write or transfer it again";

/// Reads an archive of any compression to its end and keeps its images under their names.
pub fn load(store: &Store, source: impl Read) -> Result<Incoming<Vec<Loaded>>> {
    let work = Workspace::open(store)?;
    load_all(&Members::of_archive(store, &work, source)?)
}

/// Keeps the images of an OCI image layout directory under their names. `moved` counts the bytes that are read.
pub fn load_directory(store: &Store, dir: &Path, moved: &Arc<AtomicU64>) -> Result<Incoming<Vec<Loaded>>> {
    let work = Workspace::open(store)?;
    load_all(&Members::of_directory(store, &work, dir, moved)?)
}

/// Takes one image of an OCI image layout into the store without a name, and gives its manifest. `wanted` is a tag
/// or a digest; without one, the only image there is, or the one tagged `latest`.
pub fn take_from_layout(store: &Store, dir: &Path, wanted: Option<&str>) -> Result<Incoming<Digest>> {
    let work = Workspace::open(store)?;
    let members = Members::of_directory(store, &work, dir, &Arc::default())?;
    let text = members.document("index.json")?.unwrap_or_default();
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
    match &oci_images(&members, entry, 0)?[..] {
        [(manifest, _)] => Ok(Incoming { found: *manifest, warnings: layout_warning(&members)?.into_iter().collect() }),
        found => Err(BuildError::other(format!(
            "the OCI layout {} has {} images of this platform under that name",
            dir.display(),
            found.len()
        ))),
    }
}

/// An image whose parts are all in the store, and which has no name there yet.
struct Taken {
    manifest: Digest,
    loaded: Loaded,
}

/// Takes everything in and then, when it is on the disk, gives it its names.
fn load_all(members: &Members<'_>) -> Result<Incoming<Vec<Loaded>>> {
    let Incoming { found: taken, warnings } = images(members)?;
    let store = members.store;
    store.sync("load")?;
    let mut all: Vec<Loaded> = Vec::new();
    for Taken { manifest, loaded } in taken {
        if loaded.names.is_empty() {
            store.tag(&manifest, None)?;
        }
        for name in &loaded.names {
            store.tag(&manifest, Some(name))?;
        }
        match all.iter_mut().find(|l| l.id == loaded.id) {
            Some(known) => known.names.extend(loaded.names),
            None => all.push(loaded),
        }
    }
    Ok(Incoming { found: all, warnings })
}

fn images(members: &Members<'_>) -> Result<Incoming<Vec<Taken>>> {
    let text = members.document("index.json")?;
    let index = text.as_ref().and_then(|text| serde_json::from_slice::<ImageIndex>(text).ok());
    // What docker's own document says of an image of several platforms is the choice of whoever wrote it.
    let several = index.iter().flat_map(|index| index.manifests()).any(|entry| is_index(entry.media_type()));
    let docker = if several { None } else { members.document("manifest.json")? };
    match (docker, text) {
        (Some(text), _) => {
            let items: Vec<DockerItem> = parse(&text, "manifest.json")?;
            let entries = index.map(|index| index.manifests().clone()).unwrap_or_default();
            let found = items.into_iter().map(|item| docker_item(members, item, &entries)).collect::<Result<_>>()?;
            Ok(Incoming { found, warnings: Vec::new() })
        }
        (None, Some(text)) => {
            let index: ImageIndex = parse(&text, "index.json")?;
            let mut found = Vec::new();
            for entry in index.manifests() {
                found.extend(oci_entry(members, entry)?);
            }
            Ok(Incoming { found, warnings: layout_warning(members)?.into_iter().collect() })
        }
        (None, None) => Err(BuildError::Other {
            message: "the archive holds no image: it has neither manifest.json nor index.json".into(),
            help: Some("a root file system without image files is taken in by `rbuild import`".into()),
        }),
    }
}

/// A layout says that it is one by a file of its own (OCI image layout, "oci-layout file").
fn layout_warning(members: &Members<'_>) -> Result<Option<String>> {
    let missing = members.document("oci-layout")?.is_none();
    Ok(missing.then(|| "the OCI layout has no oci-layout file; its index.json is read as if it were one".into()))
}

fn docker_item(members: &Members<'_>, item: DockerItem, entries: &[Descriptor]) -> Result<Taken> {
    let (id, config_size) = members.blob(&item.config)?;
    let config: ImageConfig = parse(&members.store.read_document(&id)?, &item.config)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != item.layers.len() {
        return Err(counts_differ(item.layers.len(), diff_ids.len()));
    }
    members.nothing_missing(item.layers.iter().map(String::as_str))?;
    let mut layers = Vec::new();
    for (name, diff_id) in item.layers.iter().zip(diff_ids) {
        layers.push(docker_layer(members, name, diff_id)?);
    }
    let manifest = match own_manifest(members, entries, &id, &layers)? {
        Some(manifest) => manifest,
        None => {
            let manifest = rbuild_image::manifest(descriptor(MediaType::ImageConfig, &id, config_size), layers);
            members.store.put_document(members.work, &manifest)?.0
        }
    };
    let names: Vec<Reference> = item
        .repo_tags
        .unwrap_or_default()
        .iter()
        .map(|t| t.parse().map_err(|e: rbuild_image::ReferenceError| BuildError::other(e.to_string())))
        .collect::<Result<_>>()?;
    Ok(Taken { manifest, loaded: Loaded { id, names } })
}

/// The image's own manifest, where the archive is a layout as well and has it there: docker's document says nothing of
/// annotations and types.
fn own_manifest(
    members: &Members<'_>,
    entries: &[Descriptor],
    id: &Digest,
    layers: &[Descriptor],
) -> Result<Option<Digest>> {
    for entry in entries {
        let digest = take(members, entry, "the manifest")?;
        let text = members.store.read_document(&digest)?;
        let Ok(manifest) = serde_json::from_slice::<ImageManifest>(&text) else { continue };
        let same_layers = manifest.layers().iter().map(Descriptor::digest).eq(layers.iter().map(Descriptor::digest));
        if same_layers && named(manifest.config())? == *id {
            take_image(members, &text)?;
            return Ok(Some(digest));
        }
    }
    Ok(None)
}

/// A layer of a docker-archive comes without a digest of its own. Whether it is the one that the configuration means
/// shows here where its bytes are plain, and else when it is unpacked or before it goes out, as with any other image.
fn docker_layer(members: &Members<'_>, name: &str, diff_id: &Digest) -> Result<Descriptor> {
    let (digest, size) = members.blob(name)?;
    let (found, layer) = match compression(members.store, &digest)? {
        Compression::Gzip => return Ok(descriptor(MediaType::ImageLayerGzip, &digest, size)),
        Compression::Zstd => return Ok(descriptor(MediaType::ImageLayerZstd, &digest, size)),
        Compression::None => (digest, descriptor(MediaType::ImageLayer, &digest, size)),
        Compression::Bzip2 | Compression::Xz => {
            let source = members.store.open_blob(&digest)?;
            let put = put_layer(members.store, members.work, source, name)?;
            (put.diff_id, descriptor(put.media_type, &put.digest, put.size))
        }
    };
    if found != *diff_id {
        return Err(not_the_layer(name, &found, diff_id));
    }
    Ok(layer)
}

fn oci_entry(members: &Members<'_>, entry: &Descriptor) -> Result<Vec<Taken>> {
    let annotations = entry.annotations().clone().unwrap_or_default();
    let name = annotations.get("io.containerd.image.name").or_else(|| annotations.get(REF_NAME));
    // A bare tag is no name for an image.
    let names: Vec<Reference> =
        name.filter(|n| n.contains([':', '/'])).and_then(|n| n.parse().ok()).into_iter().collect();
    let images = oci_images(members, entry, 0)?;
    let take = |(manifest, id)| Taken { manifest, loaded: Loaded { id, names: names.clone() } };
    Ok(images.into_iter().map(take).collect())
}

/// The manifests that an entry leads to, for this platform, and their image ids; all they need is in the store.
fn oci_images(members: &Members<'_>, entry: &Descriptor, depth: usize) -> Result<Vec<(Digest, Digest)>> {
    let digest = take(members, entry, "the manifest")?;
    let text = members.store.read_document(&digest)?;
    if !is_index(entry.media_type()) || depth == MAX_INDEX_DEPTH {
        return Ok(vec![(digest, take_image(members, &text)?)]);
    }
    let index: ImageIndex = parse(&text, "an index")?;
    let host = rbuild_image::Platform::host();
    let fits = |d: &&Descriptor| match d.platform() {
        Some(p) => p.os().to_string() == host.os && p.architecture().to_string() == host.arch,
        None => true,
    };
    let mut all = Vec::new();
    for inner in index.manifests().iter().filter(fits) {
        all.extend(oci_images(members, inner, depth + 1)?);
    }
    Ok(all)
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| BuildError::other(format!("the archive's {what} cannot be read: {e}")))
}
