//! Tar archives of images as sinks.

use rbuild_remedy::counted;
use std::collections::BTreeSet;
use std::io::{Seek, Write};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_image::BlobDigest;
use rbuild_layer::{TarEntry, TarWriter};
use rbuild_linux::parallel::locked;
use rbuild_store::PackedLayer;
use serde_json::{Value, json};

use crate::blobs::{BlobInfo, BlobOrigin, BlobSink, BlobSource, Document, copy_verified};
use crate::documents::{NamedArtifact, docker_manifest, index, repositories};
use crate::error::{Result, TransportError};
use crate::layout::blob_path;

/// Format of an archive of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout.
    Oci,
    /// An OCI image layout that also has `manifest.json`, which `docker load` and `podman load` of
    /// any version read.
    Docker,
}

/// An archive that is being written.
pub struct ArchiveWriter<W: Write> {
    state: Mutex<ArchiveState<W>>,
}

struct ArchiveState<W: Write> {
    tar: TarWriter<W>,
    /// Blobs already in the archive.
    written: BTreeSet<BlobDigest>,
}

fn failed(e: std::io::Error) -> TransportError {
    TransportError::io("cannot write the archive")(e)
}

impl<W: Write> ArchiveWriter<W> {
    /// Starts an archive.
    ///
    /// # Errors
    ///
    /// Fails if `out` fails.
    pub fn begin(out: W) -> Result<ArchiveWriter<W>> {
        let mut tar = TarWriter::new(out);
        tar.entry(&TarEntry::plain_dir("blobs")).map_err(failed)?;
        tar.entry(&TarEntry::plain_dir("blobs/sha256")).map_err(failed)?;
        Ok(ArchiveWriter { state: Mutex::new(ArchiveState { tar, written: BTreeSet::new() }) })
    }

    /// Packs a layer directly into the archive. A layer with a digest that is already in the
    /// archive is dropped, so each blob is stored once.
    ///
    /// # Errors
    ///
    /// Fails if `make` fails or the archive cannot be written.
    pub fn layer<E: From<TransportError>>(
        &mut self,
        make: impl FnOnce(&mut dyn Write) -> std::result::Result<PackedLayer, E>,
    ) -> std::result::Result<PackedLayer, E>
    where
        W: Seek,
    {
        struct MemberWriter<'a, W: Write>(&'a mut TarWriter<W>);
        impl<W: Write> Write for MemberWriter<'_, W> {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.content(bytes).map(|()| bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let ArchiveState { tar, written } = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let entry = tar.late_entry().map_err(failed)?;
        let layer = make(&mut MemberWriter(tar))?;
        let new = written.insert(layer.digest).then(|| blob_path(&layer.digest));
        tar.end_late_entry(entry, new.as_deref()).map_err(failed)?;
        Ok(layer)
    }

    /// Writes the documents of a layout with this index, and returns the output. The blobs have
    /// been written.
    ///
    /// # Errors
    ///
    /// Fails if the archive cannot be written.
    pub(crate) fn finish_layout(self, index: Value) -> Result<W> {
        self.finish_with(vec![("index.json", index), ("oci-layout", layout_version())])
    }

    fn finish_with(self, documents: Vec<(&str, Value)>) -> Result<W> {
        let ArchiveState { mut tar, .. } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in documents {
            let bytes = serde_json::to_vec(&value).map_err(TransportError::document(name))?;
            tar.entry(&TarEntry::plain_file(name, bytes.len() as u64)).map_err(failed)?;
            tar.content(&bytes).map_err(failed)?;
        }
        tar.finish().map_err(failed)
    }

    /// Writes the index and the other documents, and returns the output. The blobs have been
    /// written.
    ///
    /// # Errors
    ///
    /// Fails if the archive cannot be written.
    pub fn finish(self, images: &[NamedArtifact], format: ArchiveFormat) -> Result<W> {
        let mut documents = vec![("index.json", index(images)?)];
        if format == ArchiveFormat::Docker {
            documents.push(("manifest.json", docker_manifest(images)?));
        }
        documents.push(("oci-layout", layout_version()));
        if format == ArchiveFormat::Docker {
            documents.push(("repositories", repositories(images)?));
        }
        self.finish_with(documents)
    }
}

fn layout_version() -> Value {
    json!({"imageLayoutVersion": "1.0.0"})
}

impl<W: Write + Send> BlobSink for ArchiveWriter<W> {
    fn copy(&self, source: &dyn BlobSource, part: &BlobInfo, moved: &Arc<AtomicU64>) -> Result<BlobOrigin> {
        let BlobInfo { digest, size } = part;
        let ArchiveState { tar, written } = &mut *locked(&self.state);
        if !written.insert(*digest) {
            return Ok(BlobOrigin::Sink);
        }
        let mut blob = source.open(part)?;
        let size = source.size(digest)?.unwrap_or(*size);
        tar.entry(&TarEntry::plain_file(blob_path(digest), size)).map_err(failed)?;
        match copy_verified(&mut *blob, digest, tar.content_writer(), moved)? {
            copied if copied == size => Ok(BlobOrigin::Source),
            copied => Err(TransportError::other(format!("blob {digest} has {}, not {size}", counted(copied, "byte")))),
        }
    }

    fn put_document(&self, document: &Document) -> Result<()> {
        let ArchiveState { tar, written } = &mut *locked(&self.state);
        let digest = document.digest();
        if !written.insert(digest) {
            return Ok(());
        }
        let size = document.bytes.len() as u64;
        tar.entry(&TarEntry::plain_file(blob_path(&digest), size)).map_err(failed)?;
        tar.content(&document.bytes).map_err(failed)
    }
}
