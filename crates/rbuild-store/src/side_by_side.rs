use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::Result;

/// Does something with each item, several at a time; gives what came of them, in their order. After an error nothing more is
/// begun, and that error is the answer.
///
/// Threads of their own: they wait for locks and for the disk, which workers of a pool must not.
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
    // What was not begun stands for nothing: then there is an error among the rest.
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}
