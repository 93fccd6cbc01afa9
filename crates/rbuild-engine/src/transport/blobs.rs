//! Transfer of several blobs at once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_image::BlobDigest;

use crate::error::{BuildError, Result};

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
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let error: Mutex<Option<BuildError>> = Mutex::new(None);
    let work = || {
        while let Some((digest, size)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            match transfer(digest, *size) {
                Ok(()) => (progress.done)(digest, *size),
                Err(e) => {
                    failed.store(true, Ordering::Relaxed);
                    error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS.min(blobs.len()) {
            scope.spawn(work);
        }
    });
    error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
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
