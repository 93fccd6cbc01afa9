//! The exclusive lock of the store.
//!
//! flock(2) releases the shared lock before it acquires the exclusive one, and holds neither if it
//! fails. Before a process requests the exclusive lock, it therefore locks another file, the
//! turnstile, and holds it until it has the shared lock again: in between, no other process can
//! acquire the exclusive one.

use rbuild_linux::described;
use std::fs::{File, TryLockError};

use crate::error::{Result, StoreError};
use crate::store::Store;

/// Lock file of the processes that take or hold the exclusive lock.
const TURNSTILE: &str = "alone.lock";

/// The exclusive lock of a store. Dropping it returns to the shared lock.
pub(crate) struct ExclusiveLock<'s> {
    store: &'s Store,
    _turnstile: File,
}

impl<'s> ExclusiveLock<'s> {
    /// Takes the exclusive lock, or fails with [`StoreError::Busy`].
    pub(crate) fn take(store: &'s Store) -> Result<ExclusiveLock<'s>> {
        let busy = || StoreError::Busy(store.waits.names(&store.waits.holders(&store.lock)));
        ExclusiveLock::try_take(store)?.ok_or_else(busy)
    }

    /// Takes the exclusive lock. Returns `None` if another process uses the store; the shared lock
    /// is then held as before.
    pub(crate) fn try_take(store: &'s Store) -> Result<Option<ExclusiveLock<'s>>> {
        let turnstile = store.open_lock(TURNSTILE)?;
        let failed = |name: &str, e| rbuild_linux::Error::new("flock", described(format!("the store's {name}")), e);
        match turnstile.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(failed(TURNSTILE, e).into()),
        }
        let alone = ExclusiveLock { store, _turnstile: turnstile };
        match store.lock.try_lock() {
            Ok(()) => Ok(Some(alone)),
            Err(_) => alone.end().map(|()| None),
        }
    }

    /// Returns to the shared lock.
    ///
    /// # Errors
    ///
    /// Fails if a program other than rbuild has taken the lock, or if the build is canceled.
    pub fn end(self) -> Result<()> {
        self.store.lock_shared()
    }
}

impl Drop for ExclusiveLock<'_> {
    fn drop(&mut self) {
        let _ = self.store.lock_shared();
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn an_attempt_never_opens_the_store_to_others() {
        let place = Scratch::new();
        let (one, other) = (Store::open(&place).unwrap(), Store::open(&place).unwrap());
        std::thread::scope(|threads| {
            for store in [&one, &other] {
                threads.spawn(move || {
                    for _ in 0..2_000 {
                        assert!(
                            ExclusiveLock::try_take(store).unwrap().is_none(),
                            "the other one holds the shared lock"
                        );
                    }
                });
            }
        });
        drop(other);
        drop(ExclusiveLock::try_take(&one).unwrap().expect("nobody else uses the store"));
        let other = Store::open(&place).expect("the lock is shared again");
        assert!(matches!(ExclusiveLock::take(&other), Err(StoreError::Busy(_))));
    }
}
