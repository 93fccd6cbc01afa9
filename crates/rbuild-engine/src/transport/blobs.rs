//! Transfer of several blobs at once.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::BlobDigest;
use rbuild_linux::parallel::try_map;

use crate::error::Result;

/// Number of blobs that are transferred at once.
const CONNECTIONS: usize = 6;

/// Receives the progress of a pull or push.
pub struct TransferProgress<'a> {
    /// Counts bytes.
    pub moved: Arc<AtomicU64>,
    /// Is told the total in bytes, once it is known.
    pub total: &'a (dyn Fn(u64) + Sync),
    /// Is told of each blob that has arrived.
    pub done: &'a (dyn Fn(&BlobDigest, u64) + Sync),
}

/// Transfers blobs with their sizes in bytes, several at once. Returns the first error; no further
/// blob is begun after it.
pub(super) fn each_blob(
    blobs: &[(BlobDigest, u64)],
    progress: &TransferProgress<'_>,
    transfer: impl Fn(&BlobDigest, u64) -> Result<()> + Sync,
) -> Result<()> {
    let transferred = try_map(CONNECTIONS, blobs, |(digest, size)| {
        transfer(digest, *size)?;
        (progress.done)(digest, *size);
        Ok(())
    });
    transferred.map(drop)
}

/// Returns the number of bytes of all blobs. Manifests may claim any sizes.
pub(super) fn total_size(blobs: &[(BlobDigest, u64)]) -> u64 {
    blobs.iter().fold(0, |total, (_, size)| total.saturating_add(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_number_holds_are_no_panic() {
        let blob = |text: &[u8], size| (BlobDigest::of(text), size);
        assert_eq!(total_size(&[blob(b"a", 3), blob(b"b", 4)]), 7);
        assert_eq!(total_size(&[blob(b"a", i64::MAX as u64); 3]), u64::MAX);
    }
}
