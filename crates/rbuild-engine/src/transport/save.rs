//! Images as a tar archive or a directory: an OCI image layout, optionally with the files of a
//! docker-archive.
//!
//! The bytes depend only on the images and their names: entries are sorted, times are zero, owners
//! are root. An archive whose layers are packed directly into it starts with these layers, in their
//! own order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{Read, Seek, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{
    BlobDigest, Descriptor, DiffId, DigestError, ManifestDigest, MediaType, Platform, REF_NAME, Reference, descriptor,
    digest_of,
};
use rbuild_layer::{Bounded, LimitedTar, Limits, TarEntry, TarWriter};
use rbuild_linux::process::by_umask;
use rbuild_linux::{AtomicFile, Destination, Directory, RootDir, write_atomic};
use rbuild_store::{Image, PackedLayer, Store};
use serde_json::{Value, json};

use crate::destination::write;
use crate::error::{BuildError, Result};
use crate::exports::ArchiveFormat;
use crate::transport::load::members::promised;
use crate::transport::load::named::clean;

/// An image to be archived under its names, or one image per platform under the same names.
pub struct Saved {
    /// Never empty. With several platforms, one image for each.
    pub images: Vec<Image>,
    pub names: Vec<Reference>,
}

/// Writes the images with their names to a destination. The caller, who opened it, publishes it.
///
/// Layers in `known` are left out because the recipient already has them. `moved` counts the bytes
/// of blobs that were written.
pub fn save_to(
    store: &Store,
    images: &[Saved],
    known: &BTreeSet<BlobDigest>,
    format: ArchiveFormat,
    dest: &Destination,
    moved: &AtomicU64,
) -> Result<()> {
    write(dest, |out| save(store, images, known, format, out, moved))
}

/// Returns the size in bytes of the blobs to be archived, without tar headers and padding.
pub fn save_size(store: &Store, images: &[Saved], known: &BTreeSet<BlobDigest>) -> Result<u64> {
    let blobs = blobs_of(images, known)?;
    let stored = blobs.iter().filter(|(_, blob)| matches!(blob, Blob::Stored));
    stored.map(|(digest, _)| Ok(store.blobs().blob_size(digest)?)).sum()
}

/// Returns the blob digests of an image's layers, lowest first.
pub fn layer_blobs(image: &Image) -> Result<Vec<BlobDigest>> {
    Ok(layer_pairs(image.layers()?.iter())?.into_iter().map(|(blob, _)| blob).collect())
}

/// Returns the digests of the blobs in an archive of images, taken from the entry names.
pub fn archive_blobs(archive: impl Read, shown: &str, limits: Limits) -> Result<BTreeSet<BlobDigest>> {
    let mut tar = LimitedTar::new(Bounded::new(archive, limits).map_err(BuildError::io(shown))?, limits);
    let mut blobs = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(shown))? {
        blobs.extend(promised(&clean(&entry.path.to_string_lossy())));
    }
    Ok(blobs)
}

/// Returns the blobs of layers with their diffIDs.
pub(crate) fn layer_pairs<'a>(
    layers: impl Iterator<Item = &'a (Descriptor, DiffId)>,
) -> Result<Vec<(BlobDigest, DiffId)>> {
    let pairs = layers.map(|(layer, diff_id)| Ok((digest_of(layer)?, *diff_id)));
    pairs.collect::<std::result::Result<_, DigestError>>().map_err(|e| BuildError::other(e.to_string()))
}

/// Checks that every outgoing layer of the store has the diffID that its image's configuration
/// names.
pub(crate) fn check_layers(store: &Store, images: &[Saved], known: &BTreeSet<BlobDigest>) -> Result<()> {
    let mut layers = BTreeSet::new();
    for image in images.iter().flat_map(|saved| &saved.images) {
        for (digest, diff_id) in layer_pairs(image.layers()?.iter())? {
            // Layers that were packed directly into the archive are not in the store.
            if !known.contains(&digest) && store.blobs().has_blob(&digest)? {
                layers.insert((digest, diff_id));
            }
        }
    }
    Ok(store.blobs().check_layers(&layers.into_iter().collect::<Vec<_>>())?)
}

/// A blob of an archive: read from the store, or generated for the archive.
enum Blob {
    Stored,
    Made(Vec<u8>),
}

fn blobs_of(images: &[Saved], known: &BTreeSet<BlobDigest>) -> Result<BTreeMap<BlobDigest, Blob>> {
    let mut blobs = BTreeMap::new();
    for saved in images {
        for image in &saved.images {
            let layers = layer_blobs(image)?.into_iter().filter(|layer| !known.contains(layer));
            blobs
                .extend(layers.chain([image.manifest_digest.blob(), image.id.blob()]).map(|blob| (blob, Blob::Stored)));
        }
        if let Some(index) = platform_index(saved)? {
            blobs.insert(BlobDigest::of(&index), Blob::Made(index));
        }
    }
    Ok(blobs)
}

/// Returns the image index for an image of several platforms, `None` for a single image.
fn platform_index(saved: &Saved) -> Result<Option<Vec<u8>>> {
    if saved.images.len() < 2 { Ok(None) } else { index_of_images(&saved.images).map(Some) }
}

/// Returns the image index for the images of several platforms.
pub(crate) fn index_of_images(images: &[Image]) -> Result<Vec<u8>> {
    let kind = MediaType::ImageManifest.to_string();
    let entry =
        |image: &Image| index_entry(&kind, &image.manifest_digest, image.manifest_size, image.config.platform());
    index_of(images.iter().map(entry).collect())
}

/// Returns the entry of an index for the manifest of a platform.
pub(crate) fn index_entry(media_type: &str, manifest: &ManifestDigest, size: u64, platform: Platform) -> Value {
    let Platform { os, arch, variant } = platform;
    let mut platform = json!({"architecture": arch, "os": os});
    if let Some(variant) = variant {
        platform["variant"] = json!(variant);
    }
    json!({"mediaType": media_type, "digest": manifest.to_string(), "size": size, "platform": platform})
}

/// Returns an index with these entries.
pub(crate) fn index_of(entries: Vec<Value>) -> Result<Vec<u8>> {
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::ImageIndex.to_string(), "manifests": entries});
    serde_json::to_vec(&index).map_err(|e| BuildError::other(e.to_string()))
}

/// An OCI image layout directory that is being written.
pub(crate) struct Layout {
    root: RootDir,
    pub blobs: RootDir,
}

impl Layout {
    pub(crate) fn open(dest: &Directory) -> Result<Layout> {
        let shown = dest.path();
        let fail = || BuildError::kernel(format!("writing the layout {}", shown.display()));
        let root = dest.base.create_dir_all(&dest.rest, by_umask(0o777), None, |_| ()).map_err(fail())?;
        let blobs = root.create_dir_all("blobs/sha256", by_umask(0o777), None, |_| ()).map_err(fail())?;
        Ok(Layout { root, blobs })
    }
}

/// Writes the images with their names as an OCI image layout directory. Existing blobs are kept.
pub fn save_directory(
    store: &Store,
    images: &[Saved],
    known: &BTreeSet<BlobDigest>,
    dest: &Directory,
    moved: &AtomicU64,
) -> Result<()> {
    check_layers(store, images, known)?;
    write_layout(store, images, known, dest, moved).map_err(|e| e.writing_to(&dest.path()))
}

fn write_layout(
    store: &Store,
    images: &[Saved],
    known: &BTreeSet<BlobDigest>,
    dest: &Directory,
    moved: &AtomicU64,
) -> Result<()> {
    let Layout { root, blobs: dir } = Layout::open(dest)?;
    let fail = || BuildError::kernel(format!("writing the layout {}", root.label().display()));
    for (digest, blob) in blobs_of(images, known)? {
        let name = digest.hex();
        if dir.exists(&name).map_err(fail())? {
            continue;
        }
        let mut file = AtomicFile::create(&dir, by_umask(0o666)).map_err(fail())?;
        match &blob {
            Blob::Stored => copy_blob(store, &digest, moved, file.file())?,
            Blob::Made(bytes) => file.write_all(bytes).map_err(BuildError::io("writing the image"))?,
        }
        file.publish(OsStr::new(&name)).map_err(fail())?;
    }
    for (name, value) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index(images)?)] {
        let bytes = serde_json::to_vec(&value).map_err(|e| BuildError::other(e.to_string()))?;
        write_atomic(&root, OsStr::new(name), &bytes, by_umask(0o666)).map_err(fail())?;
    }
    Ok(())
}

/// Writes a blob after verifying its digest; `moved` counts its bytes.
fn copy_blob(store: &Store, blob: &BlobDigest, moved: &AtomicU64, out: &mut impl Write) -> Result<()> {
    let failed = || BuildError::io("writing the image");
    let count = |bytes| moved.fetch_add(bytes, Ordering::Relaxed);
    if let Some(file) = store.blobs().open_known(blob)? {
        // If both ends are files, the kernel copies the bytes without passing them through user
        // space.
        loop {
            match std::io::copy(&mut (&file).take(MOVED), out).map_err(failed())? {
                0 => return Ok(()),
                n => _ = count(n),
            }
        }
    }
    store.blobs().read_blob(blob, |bytes| {
        count(bytes.len() as u64);
        out.write_all(bytes).map_err(failed())
    })
}

/// Bytes copied between two updates of the progress counter.
const MOVED: u64 = 16 << 20;

/// Writes the images with their names as an archive to `out`.
pub(crate) fn save(
    store: &Store,
    images: &[Saved],
    known: &BTreeSet<BlobDigest>,
    format: ArchiveFormat,
    out: &mut impl Write,
    moved: &AtomicU64,
) -> Result<()> {
    check_layers(store, images, known)?;
    Writer::begin(out)?.finish(store, images, known, format, moved).map(drop)
}

/// An archive that is being written.
pub(crate) struct Writer<W: Write> {
    tar: TarWriter<W>,
    /// Blobs already in the archive.
    written: BTreeSet<BlobDigest>,
}

fn failed(e: std::io::Error) -> BuildError {
    BuildError::io("writing the archive")(e)
}

impl<W: Write> Writer<W> {
    pub(crate) fn begin(out: W) -> Result<Writer<W>> {
        let mut tar = TarWriter::new(out);
        tar.entry(&TarEntry::plain_dir("blobs")).map_err(failed)?;
        tar.entry(&TarEntry::plain_dir("blobs/sha256")).map_err(failed)?;
        Ok(Writer { tar, written: BTreeSet::new() })
    }

    /// Packs a layer directly into the archive. A layer with a digest that is already in the
    /// archive is dropped, so each blob is stored once.
    pub(crate) fn layer(&mut self, make: impl FnOnce(&mut dyn Write) -> Result<PackedLayer>) -> Result<PackedLayer>
    where
        W: Seek,
    {
        struct Content<'a, W: Write>(&'a mut TarWriter<W>);
        impl<W: Write> Write for Content<'_, W> {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.content(bytes).map(|()| bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let entry = self.tar.late_entry().map_err(failed)?;
        let layer = make(&mut Content(&mut self.tar))?;
        let new = self.written.insert(layer.digest).then(|| blob_path(&layer.digest));
        self.tar.end_late_entry(entry, new.as_deref()).map_err(failed)?;
        Ok(layer)
    }

    /// Writes all blobs that are still missing, then the index and the other documents.
    pub(crate) fn finish(
        mut self,
        store: &Store,
        images: &[Saved],
        known: &BTreeSet<BlobDigest>,
        format: ArchiveFormat,
        moved: &AtomicU64,
    ) -> Result<W> {
        let tar = &mut self.tar;
        let blobs = blobs_of(images, known)?;
        for (digest, blob) in blobs.iter().filter(|(digest, _)| !self.written.contains(digest)) {
            let size = match blob {
                Blob::Stored => store.blobs().blob_size(digest)?,
                Blob::Made(bytes) => bytes.len() as u64,
            };
            tar.entry(&TarEntry::plain_file(blob_path(digest), size)).map_err(failed)?;
            match blob {
                Blob::Stored => copy_blob(store, digest, moved, tar.content_writer())?,
                Blob::Made(bytes) => tar.content(bytes).map_err(failed)?,
            }
        }
        let mut documents = vec![("index.json", index(images)?)];
        if format == ArchiveFormat::Docker {
            documents.push(("manifest.json", docker_manifest(images)?));
        }
        documents.push(("oci-layout", json!({"imageLayoutVersion": "1.0.0"})));
        if format == ArchiveFormat::Docker {
            documents.push(("repositories", repositories(images)?));
        }
        for (name, value) in documents {
            let bytes = serde_json::to_vec(&value).map_err(|e| BuildError::other(e.to_string()))?;
            tar.entry(&TarEntry::plain_file(name, bytes.len() as u64)).map_err(failed)?;
            tar.content(&bytes).map_err(failed)?;
        }
        self.tar.finish().map_err(failed)
    }
}

fn blob_path(digest: &BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns `index.json`: one descriptor per name, and a single one for an image without names.
fn index(images: &[Saved]) -> Result<Value> {
    let mut manifests = Vec::new();
    for saved in images {
        let Saved { images, names } = saved;
        let plain = match platform_index(saved)? {
            Some(index) => descriptor(MediaType::ImageIndex, &BlobDigest::of(&index), index.len() as u64),
            None => descriptor(MediaType::ImageManifest, &images[0].manifest_digest.blob(), images[0].manifest_size),
        };
        if names.is_empty() {
            manifests.push(plain);
            continue;
        }
        for name in names {
            let mut named = plain.clone();
            let tag = name.tag().unwrap_or("latest").to_string();
            let full = ("io.containerd.image.name".to_string(), name.to_string());
            named.set_annotations(Some([full, (REF_NAME.to_string(), tag)].into()));
            manifests.push(named);
        }
    }
    let mut manifests = serde_json::to_value(&manifests).map_err(|e| BuildError::other(e.to_string()))?;
    // The annotations come from an unordered map.
    for entry in manifests.as_array_mut().into_iter().flatten() {
        if let Some(annotations) = entry.get_mut("annotations").and_then(Value::as_object_mut) {
            let sorted: BTreeMap<String, Value> = std::mem::take(annotations).into_iter().collect();
            annotations.extend(sorted);
        }
    }
    Ok(json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))
}

/// Returns the image for Docker's own documents, which have one platform per image: the one that
/// runs on this machine.
fn for_docker(images: &[Saved]) -> impl Iterator<Item = (&Image, &[Reference])> {
    images.iter().map(|saved| {
        let chosen = preferred(saved.images.iter().map(|image| image.config.platform()));
        (&saved.images[chosen], &saved.names[..])
    })
}

/// Returns the index of the platform that runs on this machine, 0 if none does.
pub(crate) fn preferred(mut platforms: impl Iterator<Item = Platform>) -> usize {
    platforms.position(|platform| Platform::host().runs(&platform)).unwrap_or(0)
}

fn docker_manifest(images: &[Saved]) -> Result<Value> {
    let mut items = Vec::new();
    for (image, names) in for_docker(images) {
        let layers = image.layers()?;
        let layers: Vec<String> = layers
            .iter()
            .map(|(d, _)| digest_of(d).map(|d| format!("blobs/sha256/{}", d.hex())))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| BuildError::other(e.to_string()))?;
        let tags: Vec<String> = names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
        items.push(json!({
            "Config": format!("blobs/sha256/{}", image.id.hex()),
            "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
            "Layers": layers,
        }));
    }
    Ok(Value::Array(items))
}

/// Returns the legacy `repositories` document, `{name: {tag: top layer}}`, for programs that
/// predate `manifest.json`.
fn repositories(images: &[Saved]) -> Result<Value> {
    let mut names: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (image, references) in for_docker(images) {
        let Some((_, top)) = image.layers()?.pop() else { continue };
        for reference in references {
            if let Some(tag) = reference.tag() {
                names.entry(reference.familiar_name()).or_default().insert(tag.to_string(), top.hex());
            }
        }
    }
    serde_json::to_value(names).map_err(|e| BuildError::other(e.to_string()))
}
