//! Parallel processing of independent items.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::Result;

/// Processes the items in parallel and returns the results in order. After an error no further
/// items are started, and the error is returned.
///
/// Uses threads of its own, because the work waits for locks and the disk, which workers of a pool
/// must not do.
pub(crate) fn side_by_side<T, R>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>>
where
    T: Sync,
    R: Send + Sync,
{
    let done: Vec<OnceLock<Result<R>>> = items.iter().map(|_| OnceLock::new()).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < items.len()) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let result = work(&items[i]);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            let _ = done[i].set(result);
        }
    };
    let others = std::thread::available_parallelism().map_or(1, |n| n.get()).min(items.len()).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(worker);
        }
        worker();
    });
    // Items that were not started have no result; another item then has the error.
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}
