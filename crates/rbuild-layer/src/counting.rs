//! A reader that counts its bytes in a shared counter.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A reader that counts its bytes, so that another thread can observe the progress.
pub struct Counting<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R> Counting<R> {
    /// Wraps `source`; every read adds to `count`.
    pub fn new(source: R, count: Arc<AtomicU64>) -> Counting<R> {
        Counting { source, count }
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
