//! Blobs that are verified while they are uploaded.

use std::io::{self, Read};

use rbuild_image::{BlobDigest, Hasher};

use crate::blobs::{BlobInfo, BlobRead};

/// A blob whose digest is verified before its last bytes are returned, so that a damaged one is
/// reported as such, and not as a refusal of the registry.
pub(crate) struct Verifying<'a> {
    blob: Box<dyn BlobRead + 'a>,
    part: BlobInfo,
    /// `None` if the digest is known or cannot be computed.
    hasher: Option<Hasher>,
    read: u64,
}

impl<'a> Verifying<'a> {
    /// Returns the reader of a blob from the position `read`. Without a hasher, nothing is
    /// verified.
    pub fn new(blob: Box<dyn BlobRead + 'a>, part: BlobInfo, hasher: Option<Hasher>, read: u64) -> Verifying<'a> {
        Verifying { blob, part, hasher, read }
    }
}

impl Read for Verifying<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read(buf)?;
        self.read += n as u64;
        let ends = self.read >= self.part.size || (n == 0 && !buf.is_empty());
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        match self.hasher.take_if(|_| ends).map(Hasher::finish::<BlobDigest>) {
            Some(found) if found != self.part.digest => Err(io::Error::other(self.blob.wrong_digest(&found))),
            _ => Ok(n),
        }
    }
}
