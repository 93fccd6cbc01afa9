//! Images as a tar archive or a directory: an OCI image layout, optionally with the files of a
//! docker-archive.
//!
//! The bytes depend only on the images and their names: entries are sorted, times are zero, owners
//! are root. An archive whose layers are packed directly into it starts with these layers, in their
//! own order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::{BlobDigest, Descriptor, DiffId, DigestError, digest_of};
use rbuild_layer::{Bounded, LimitedTar, Limits};
use rbuild_linux::{Destination, Directory};
use rbuild_store::{Image, Store};

use crate::archive::{ArchiveFormat, ArchiveWriter};
use crate::blobs::{BlobInfo, BlobSink, BlobSource, Document};
use crate::destination::write_destination;
use crate::destination_full::WriteError;
use crate::documents::{NamedArtifact, extended_index, platform_index};
use crate::error::{Result, TransportError};
use crate::layout::{LayoutWriter, digest_in};
use crate::member_name::clean;

/// Writes the images with their names to a destination. The caller, who opened it, publishes it.
///
/// Layers in `known` are omitted because the recipient already has them. `moved` counts the bytes
/// of blobs that were written.
///
/// # Errors
///
/// Fails if the store lacks a blob, if a layer is not that of its image, or if the destination
/// cannot be written.
pub fn save_to(
    store: &Store,
    images: &[NamedArtifact],
    known: &BTreeSet<BlobDigest>,
    format: ArchiveFormat,
    dest: &Destination,
    moved: &Arc<AtomicU64>,
) -> Result<()> {
    check_layers(store, images, known)?;
    write_destination(dest, |out| -> Result<()> {
        let archive = ArchiveWriter::begin(out)?;
        copy_images(&store.blobs(), &archive, images, known, moved)?;
        archive.finish(images, format).map(drop)
    })
}

/// Writes the images with their names into an OCI image layout directory, beside the images that it
/// contains already.
///
/// # Errors
///
/// Fails if the store lacks a blob, if a layer is not that of its image, or if the directory cannot
/// be written.
pub fn save_directory(
    store: &Store,
    images: &[NamedArtifact],
    known: &BTreeSet<BlobDigest>,
    dest: &Directory,
    moved: &Arc<AtomicU64>,
) -> Result<()> {
    check_layers(store, images, known)?;
    write_layout(&store.blobs(), images, known, dest, moved).map_err(|e| e.writing_to(&dest.path()))
}

fn write_layout(
    source: &dyn BlobSource,
    images: &[NamedArtifact],
    known: &BTreeSet<BlobDigest>,
    dest: &Directory,
    moved: &Arc<AtomicU64>,
) -> Result<()> {
    let layout = LayoutWriter::open(dest)?;
    copy_images(source, &layout, images, known, moved)?;
    layout.change_index(|existing| extended_index(existing, images))
}

/// Returns the size in bytes of the blobs to be archived, without tar headers and padding.
///
/// # Errors
///
/// Fails if the store lacks a blob.
pub fn save_size(store: &Store, images: &[NamedArtifact], known: &BTreeSet<BlobDigest>) -> Result<u64> {
    let blobs = blobs_of(images, known)?;
    let stored = blobs.iter().filter(|(_, blob)| matches!(blob, BlobContent::Stored(_)));
    stored.map(|(digest, _)| Ok(store.blobs().blob_size(digest)?)).sum()
}

/// Returns the blob digests of an image's layers, lowest first.
///
/// # Errors
///
/// Fails if the manifest has an invalid digest, or a different number of layers than the
/// configuration.
pub fn layer_blobs(image: &Image) -> Result<Vec<BlobDigest>> {
    Ok(layer_pairs(image.layers()?.iter())?.into_iter().map(|(blob, _)| blob).collect())
}

/// Returns the digests of the blobs in an archive of images, taken from the entry names.
///
/// # Errors
///
/// Fails if the archive is damaged or exceeds a limit.
pub fn archive_blobs(archive: impl Read, shown: &str, limits: Limits) -> Result<BTreeSet<BlobDigest>> {
    let mut tar = LimitedTar::new(Bounded::new(archive, limits).map_err(TransportError::io(shown))?, limits);
    let mut blobs = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(TransportError::layer(shown))? {
        blobs.extend(digest_in(&clean(&entry.path.to_string_lossy())));
    }
    Ok(blobs)
}

/// Returns the blobs of layers with their diffIDs.
///
/// # Errors
///
/// Fails if a descriptor has an invalid digest.
pub fn layer_pairs<'a>(layers: impl Iterator<Item = &'a (Descriptor, DiffId)>) -> Result<Vec<(BlobDigest, DiffId)>> {
    let pairs = layers.map(|(layer, diff_id)| Ok((digest_of(layer)?, *diff_id)));
    pairs.collect::<std::result::Result<_, DigestError>>().map_err(TransportError::document("the manifest"))
}

/// Checks that every outgoing layer of the store has the diffID that the image configuration
/// states.
///
/// # Errors
///
/// Fails if a layer has another one, or cannot be read.
pub fn check_layers(store: &Store, images: &[NamedArtifact], known: &BTreeSet<BlobDigest>) -> Result<()> {
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

/// A blob of an image: read from the source with its size in bytes, or generated.
enum BlobContent {
    Stored(u64),
    Made(Document),
}

fn blobs_of(images: &[NamedArtifact], known: &BTreeSet<BlobDigest>) -> Result<BTreeMap<BlobDigest, BlobContent>> {
    let mut blobs = BTreeMap::new();
    for saved in images {
        for image in &saved.images {
            for (layer, (descriptor, _)) in layer_blobs(image)?.into_iter().zip(image.layers()?) {
                if !known.contains(&layer) {
                    blobs.insert(layer, BlobContent::Stored(descriptor.size()));
                }
            }
            blobs.insert(image.manifest_digest.blob(), BlobContent::Stored(image.manifest_size));
            blobs.insert(image.id.blob(), BlobContent::Stored(image.manifest.config().size()));
        }
        if let Some(index) = platform_index(saved)? {
            blobs.insert(index.digest(), BlobContent::Made(index));
        }
        for attachment in saved.index.iter().flat_map(|index| &index.attachments) {
            let parts = attachment.blobs.iter().filter(|blob| !known.contains(&blob.digest));
            blobs.extend(parts.map(|blob| (blob.digest, BlobContent::Stored(blob.size))));
            blobs.insert(attachment.document.digest(), BlobContent::Made(attachment.document.clone()));
        }
    }
    Ok(blobs)
}

/// Copies everything that the images consist of, in the order of the digests. Layers in `known` are
/// left out.
///
/// # Errors
///
/// Fails if the source lacks a blob, or if either end fails.
pub fn copy_images(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    images: &[NamedArtifact],
    known: &BTreeSet<BlobDigest>,
    moved: &Arc<AtomicU64>,
) -> Result<()> {
    for (digest, blob) in blobs_of(images, known)? {
        match blob {
            BlobContent::Stored(size) => drop(sink.copy(source, &BlobInfo { digest, size }, moved)?),
            BlobContent::Made(document) => sink.put_document(&document)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
