//! Number of connections that a client uses for blobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the connections of a client for blobs.
#[derive(Default)]
pub(crate) struct BlobConnections(AtomicUsize);

/// A connection that is counted until this is dropped.
pub(crate) struct CountedConnection(Arc<BlobConnections>);

impl BlobConnections {
    /// Counts a connection.
    pub(crate) fn count(self: &Arc<Self>) -> CountedConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        CountedConnection(self.clone())
    }

    /// Counts another connection, unless there are `total`.
    pub(crate) fn another(self: &Arc<Self>, total: usize) -> Option<CountedConnection> {
        let free = |count: usize| (count < total).then_some(count + 1);
        let counted = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        counted.is_ok().then(|| CountedConnection(self.clone()))
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
