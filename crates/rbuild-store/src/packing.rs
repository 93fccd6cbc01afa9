//! Layers that are read while they are packed.

use std::fs::File;

use rbuild_image::BlobDigest;

/// Receives the layers that are packed into blobs of a store.
pub trait PackingWatch: Send + Sync {
    /// A layer begins, into a file that is open for reading. Its bytes are never changed.
    fn begun(&self, file: File) -> Box<dyn PackingProgress + '_>;

    /// Returns true if the receiver has this layer from an earlier build, perhaps in another form.
    fn has(&self, layer: &BlobDigest) -> bool;
}

/// Receives the progress of one layer. It is dropped without the end if packing fails.
pub trait PackingProgress {
    /// The file has that many bytes.
    fn grown(&mut self, size: u64);

    /// The layer is complete, and its blob in the store: its digest and its size in bytes.
    fn packed(self: Box<Self>, digest: &BlobDigest, size: u64);
}
