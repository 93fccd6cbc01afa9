//! The memory for the records of caches.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, TransportError};

/// Maximum number of bytes of all documents of caches that are read together, and of their records
/// without compression.
const MAX_BYTES: u64 = 256 << 20;

/// The number of bytes that may still be read from the caches of a build.
pub struct RecordBudget(AtomicU64);

impl Default for RecordBudget {
    fn default() -> RecordBudget {
        RecordBudget(AtomicU64::new(MAX_BYTES))
    }
}

impl RecordBudget {
    /// Takes bytes from the budget.
    ///
    /// # Errors
    ///
    /// Fails if fewer are left.
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let exceeded = || format!("the records of all caches exceed {} MiB", MAX_BYTES >> 20);
        taken.map(drop).map_err(|_| TransportError::other(exceeded()))
    }

    /// Returns a budget of that many bytes.
    #[cfg(test)]
    pub(crate) fn of(bytes: u64) -> RecordBudget {
        RecordBudget(AtomicU64::new(bytes))
    }
}
