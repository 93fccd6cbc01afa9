//! Documents of caches in memory.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};

use rbuild_image::BlobDigest;

use crate::blobs::{BlobInfo, BlobRead, BlobSource};
use crate::error::{Result, TransportError};

/// Documents in memory.
pub(crate) struct Prefetched(HashMap<BlobDigest, Vec<u8>>);

impl Prefetched {
    /// Returns the source of documents with these digests.
    pub fn new(documents: HashMap<BlobDigest, Vec<u8>>) -> Prefetched {
        Prefetched(documents)
    }

    /// Returns the source of these documents.
    pub fn of(documents: &[Vec<u8>]) -> Prefetched {
        Prefetched(documents.iter().map(|bytes| (BlobDigest::of(bytes), bytes.clone())).collect())
    }

    /// Returns the documents.
    pub fn parts(&self) -> Vec<BlobInfo> {
        self.0.iter().map(|(digest, bytes)| BlobInfo { digest: *digest, size: bytes.len() as u64 }).collect()
    }
}

impl BlobSource for Prefetched {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(self.0.get(digest).map(|bytes| bytes.len() as u64))
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        self.0.get(digest).cloned().ok_or_else(|| TransportError::other("a document of the cache is missing"))
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let bytes =
            self.0.get(&part.digest).ok_or_else(|| TransportError::other("a document of the cache is missing"))?;
        Ok(Box::new(DocumentBlob(Cursor::new(&bytes[..]))))
    }
}

/// A document in memory that is uploaded.
struct DocumentBlob<'a>(Cursor<&'a [u8]>);

impl Read for DocumentBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl BlobRead for DocumentBlob<'_> {
    fn start_at(&mut self, at: u64) -> io::Result<()> {
        self.0.set_position(at);
        Ok(())
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        TransportError::other(format!("a document of the cache has the digest {found}"))
    }
}
