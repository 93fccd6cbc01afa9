//! The store as a source and, through a staging area, as a sink.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::BlobDigest;
use rbuild_layer::Counting;
use rbuild_store::{Blobs, ResumedBlob, Staging, StoreError};

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSink, BlobSource, Document};
use crate::error::{Result, TransportError};

/// Number of blobs that are received at once.
const AT_ONCE: usize = 6;
/// Size in bytes from which an interrupted copy is continued later.
const RESUMED: u64 = 1 << 20;

/// A blob of the store.
struct StoredBlob<'s> {
    blobs: Blobs<'s>,
    digest: BlobDigest,
    file: File,
    is_verified: bool,
}

impl Read for StoredBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            kind => {
                let blob = rbuild_linux::described(format!("blob {}", self.digest));
                io::Error::new(kind, StoreError::from(rbuild_linux::Error::new("read", blob, e)))
            }
        })
    }
}

impl BlobRead for StoredBlob<'_> {
    fn verified(&self) -> Option<&File> {
        self.is_verified.then_some(&self.file)
    }

    fn note_verified(&self) {
        self.blobs.note_verified(&self.file);
    }

    fn start_at(&mut self, at: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at)).map(drop)
    }

    fn wrong_digest(&self, _found: &BlobDigest) -> TransportError {
        StoreError::damaged(format!("blob {}", self.digest))("its digest is wrong").into()
    }
}

impl BlobSource for Blobs<'_> {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        match self.blob_size(digest) {
            Ok(size) => Ok(Some(size)),
            Err(StoreError::NoBlob(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        Ok(self.read_document(digest)?)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let file = self.open_blob(&part.digest)?;
        let is_verified = self.is_verified(&file);
        Ok(Box::new(StoredBlob { blobs: *self, digest: part.digest, file, is_verified }))
    }
}

impl BlobSink for Staging<'_> {
    fn at_once(&self) -> usize {
        AT_ONCE
    }

    fn copy(&self, source: &dyn BlobSource, part: &BlobInfo, moved: &Arc<AtomicU64>) -> Result<BlobOrigin> {
        let BlobInfo { digest, size } = part;
        if self.verified_size(digest)? == Some(*size) {
            return Ok(BlobOrigin::Sink);
        }
        loop {
            let mut blob = source.open(part)?;
            let resumed = if source.resumes() && *size >= RESUMED { self.resume(digest, *size)? } else { None };
            let at = resumed.as_ref().map_or(0, ResumedBlob::at);
            let put = match resumed {
                Some(resumed) => {
                    blob.start_at(at).map_err(TransportError::reading("cannot read the image"))?;
                    moved.fetch_add(at, Ordering::Relaxed);
                    resumed.finish(Counting::new(&mut blob, moved.clone()))
                }
                None => self.put_watched(digest, Counting::new(&mut blob, moved.clone())),
            };
            match put? {
                (found, _) if found == *digest => return Ok(BlobOrigin::Source),
                // The bytes of an earlier download may be the wrong ones.
                _ if at > 0 => {}
                (found, _) if !blob.note_wrong(&found) => return Err(blob.wrong_digest(&found)),
                _ => {}
            }
        }
    }

    fn put_document(&self, document: &Document) -> Result<()> {
        self.put_bytes(&document.bytes)?;
        Ok(())
    }
}
