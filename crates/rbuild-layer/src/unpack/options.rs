//! Options and results of unpacking.

use std::sync::atomic::AtomicU64;

use rbuild_image::{BlobDigest, DiffId};
use rbuild_linux::UidGid;

use crate::limits::Limits;
use crate::lower_refs::LowerRefs;

/// Interpretation of `.wh.*` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// Whiteouts of an image layer; they become overlay whiteouts.
    Overlay,
    /// Ordinary names, as in an archive unpacked by `ADD`.
    Plain,
}

/// Ownership of unpacked files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The IDs in the archive.
    FromArchive,
    /// This user and group ID.
    Always(UidGid),
}

/// Digests, sizes and references of an unpacked archive.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Digest of the bytes as read, compressed.
    pub digest: BlobDigest,
    /// Number of bytes as read, compressed.
    pub size: u64,
    /// Digest of the bytes after decompression.
    pub diff_id: DiffId,
    /// Number of bytes after decompression.
    pub unpacked: u64,
    /// Number of entries.
    pub entries: u64,
    /// References to lower layers; empty unless the archive is a layer.
    pub lower_refs: LowerRefs,
}

/// Returns true if unpacking is canceled.
pub type CancelCheck<'a> = &'a (dyn Fn() -> bool + Sync);

/// Options for unpacking.
#[derive(Clone, Copy)]
pub struct Unpacking<'a> {
    /// Interpretation of `.wh.*` names.
    pub whiteouts: Whiteouts,
    /// Ownership of unpacked files.
    pub owners: Owners,
    /// Limits on the archive.
    pub limits: Limits,
    /// Digest of the bytes as read, if it has been verified already. It is then not computed again.
    pub known: Option<BlobDigest>,
    /// Nanoseconds of the modification times of the entries, in their order, if the archive is a
    /// layer with a [`Remainder`](crate::Remainder).
    pub nanoseconds: Option<&'a [u32]>,
    /// Polled before every read. Unpacking fails with
    /// [`LayerError::Canceled`](crate::LayerError::Canceled) once it returns true.
    pub stop: CancelCheck<'a>,
    /// Counts the bytes as read, so that another thread can observe the progress.
    pub moved: Option<&'a AtomicU64>,
}

impl Unpacking<'_> {
    /// Returns the options for a layer of an image.
    pub fn layer(limits: Limits) -> Unpacking<'static> {
        Unpacking { whiteouts: Whiteouts::Overlay, ..Unpacking::archive(Owners::FromArchive, limits) }
    }

    /// Returns the options for an archive of files.
    pub fn archive(owners: Owners, limits: Limits) -> Unpacking<'static> {
        Unpacking {
            whiteouts: Whiteouts::Plain,
            owners,
            limits,
            known: None,
            nanoseconds: None,
            stop: &|| false,
            moved: None,
        }
    }
}
