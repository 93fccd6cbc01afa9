use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The same bytes, counted for somebody who looks on from another thread.
pub struct Counting<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R> Counting<R> {
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
