//! Hashes of files that a build reads.

use std::fmt;

use rbuild_image::BlobDigest;

rbuild_image::id_type! {
    /// Hash of a selection of files, for cache keys: names, metadata and content.
    key SelectionHash;
}

/// Hash of one file's content and extended attributes: a BLAKE3, which is several times as fast as
/// SHA-256. It has no text form, so that it cannot be confused with a blob digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Returns the hash with this binary value.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> ContentHash {
        ContentHash(bytes)
    }

    /// Returns the hash that represents the target of a symbolic link in listings. It is a SHA-256,
    /// as in the first version of the format.
    pub fn of_link_target(target: &[u8]) -> ContentHash {
        ContentHash(*BlobDigest::of(target).bytes())
    }

    /// Returns the binary value.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for ContentHash {
    fn from(hash: blake3::Hash) -> ContentHash {
        ContentHash(hash.into())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}
