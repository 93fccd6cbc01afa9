//! The interfaces of image stores: a source of blobs and documents, and a sink. The store, OCI
//! layouts, archives and repositories of registries implement them.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::BlobDigest;
use rbuild_layer::ChunkHash;
use rbuild_linux::parallel::try_map;

use crate::error::{Result, TransportError};

/// Number of bytes that the kernel copies between two updates of the progress counter.
const COPIED: u64 = 16 << 20;
/// Size of a chunk in bytes that is read and hashed at once. It fits the processor's cache.
const CHUNK: usize = 256 << 10;

/// A blob of an image: its digest, and its size in bytes as stated by the document that refers to
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    /// Digest of the bytes.
    pub digest: BlobDigest,
    /// Number of bytes.
    pub size: u64,
}

/// The bytes of a blob, from their beginning. Only the receiver of all of them can compute their
/// digest. The error of a failed read may carry that of the source ([`TransportError::reading`]).
pub trait BlobRead: Read {
    /// Returns the file with the bytes if their digest is verified already.
    fn verified(&self) -> Option<&File> {
        None
    }

    /// Records that the receiver verified the digest.
    fn note_verified(&self) {}

    /// Records that the bytes have the wrong digest `found`. Returns true if the blob should be
    /// read again.
    fn note_wrong(&self, _found: &BlobDigest) -> bool {
        false
    }

    /// Continues at a position, counted in bytes from the beginning.
    ///
    /// # Errors
    ///
    /// Fails if the source cannot be read there.
    fn start_at(&mut self, at: u64) -> io::Result<()>;

    /// Returns the error for bytes with another digest.
    fn wrong_digest(&self, found: &BlobDigest) -> TransportError;
}

/// A place that images are read from.
pub trait BlobSource: Sync {
    /// Returns the size of a blob in bytes; `None` if the source does not have the blob, or would
    /// have to read it to determine its size.
    ///
    /// # Errors
    ///
    /// Fails if the source cannot be read.
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>>;

    /// Reads a manifest, an index or a configuration and verifies its digest.
    ///
    /// # Errors
    ///
    /// Fails if it is missing, damaged or too large for a document.
    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>>;

    /// Opens a blob.
    ///
    /// # Errors
    ///
    /// Fails if it is missing.
    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>>;

    /// Returns the maximum number of blobs that are read at once.
    fn at_once(&self) -> usize {
        usize::MAX
    }

    /// Returns true if a copy of a large blob that was interrupted should be continued later.
    fn resumes(&self) -> bool {
        false
    }
}

/// Origin of a blob that a sink has after a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobOrigin {
    /// Bytes of the source, which were copied.
    Source,
    /// The sink had it.
    Sink,
    /// The registry mounted it from another of its repositories.
    OtherRepository,
}

/// A place that images are written to.
pub trait BlobSink: Sync {
    /// Returns the number of blobs that are copied at once. With 1, they are copied in order.
    fn at_once(&self) -> usize {
        1
    }

    /// Copies a blob, unless the sink has it. `moved` counts its bytes. Returns the origin.
    ///
    /// # Errors
    ///
    /// Fails if either end fails, or if the bytes have another digest.
    fn copy(&self, source: &dyn BlobSource, part: &BlobInfo, moved: &Arc<AtomicU64>) -> Result<BlobOrigin>;

    /// Writes a manifest or an index under its digest, unless the sink has it.
    ///
    /// # Errors
    ///
    /// Fails if the place refuses it or cannot be written.
    fn put_document(&self, document: &Document) -> Result<()>;
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Media type.
    pub media_type: String,
    /// Bytes of the document.
    pub bytes: Vec<u8>,
}

impl Document {
    /// Returns the digest of the bytes.
    pub fn digest(&self) -> BlobDigest {
        BlobDigest::of(&self.bytes)
    }
}

/// Receives the progress of a pull or push.
pub struct TransferProgress<'a> {
    /// Counts bytes.
    pub moved: Arc<AtomicU64>,
    /// Called with the total in bytes, once it is known.
    pub total: &'a (dyn Fn(u64) + Sync),
    /// Called with each blob that the sink has after a copy, its size in bytes and its origin.
    pub done: &'a (dyn Fn(&BlobDigest, u64, BlobOrigin) + Sync),
}

/// Copies blobs, several at once if the sink permits it. Returns the first error; no further blob
/// is begun after it.
pub(crate) fn copy_all(
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    parts: &[BlobInfo],
    progress: &TransferProgress<'_>,
) -> Result<()> {
    let copied = try_map(sink.at_once().min(source.at_once()), parts, |part| {
        let origin = sink.copy(source, part, &progress.moved)?;
        (progress.done)(&part.digest, part.size, origin);
        Ok(())
    });
    copied.map(drop)
}

/// Returns the number of bytes of all blobs. Manifests may claim any sizes.
pub(crate) fn total_size(parts: &[BlobInfo]) -> u64 {
    parts.iter().fold(0, |total, part| total.saturating_add(part.size))
}

/// Writes a blob to `out` and verifies its digest, unless that was done before. Returns the number
/// of bytes.
pub(crate) fn copy_verified(
    blob: &mut dyn BlobRead,
    digest: &BlobDigest,
    out: &mut impl Write,
    moved: &AtomicU64,
) -> Result<u64> {
    let failed = || TransportError::io("cannot write the image");
    let mut copied = 0;
    let mut count = |bytes: u64| {
        copied += bytes;
        moved.fetch_add(bytes, Ordering::Relaxed);
    };
    if let Some(file) = blob.verified() {
        // If both ends are files, the kernel copies the bytes without passing them through user
        // space.
        loop {
            match io::copy(&mut file.take(COPIED), out).map_err(failed())? {
                0 => return Ok(copied),
                n => count(n),
            }
        }
    }
    let (mut hash, mut chunk) = (ChunkHash::new(), Vec::new());
    loop {
        chunk.resize(CHUNK, 0);
        match blob.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => chunk.truncate(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(TransportError::reading("cannot read the image")(e)),
        }
        count(chunk.len() as u64);
        out.write_all(&chunk).map_err(failed())?;
        chunk = hash.push(chunk);
    }
    match hash.finish::<BlobDigest>().0 {
        found if found == *digest => {
            blob.note_verified();
            Ok(copied)
        }
        found => Err(blob.wrong_digest(&found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflowing_sizes_do_not_panic() {
        let part = |text: &[u8], size| BlobInfo { digest: BlobDigest::of(text), size };
        assert_eq!(total_size(&[part(b"a", 3), part(b"b", 4)]), 7);
        assert_eq!(total_size(&[part(b"a", i64::MAX as u64); 3]), u64::MAX);
    }
}
