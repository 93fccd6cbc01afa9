//! The amount of content that was removed from a store.

/// The amount of removed content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Number of index entries without a name that were removed.
    pub images: u64,
    /// Number of cache records.
    pub records: u64,
    /// Number of trees.
    pub trees: u64,
    /// Number of blobs.
    pub blobs: u64,
    /// Number of cache mounts.
    pub mounts: u64,
    /// Number of trees and cache mounts that are kept because they contain files that the builder
    /// may not remove.
    pub unremovable: u64,
    /// Freed disk space of blobs, trees and cache mounts in bytes.
    pub bytes: u64,
}
