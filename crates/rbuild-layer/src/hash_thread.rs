//! Hashing on a separate thread, concurrent with other work on the same bytes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rbuild_image::{Hasher, Sha256Id};
use rbuild_linux::parallel::start;

/// Capacity of the queue to the hashing thread, in chunks.
const WAITING: usize = 8;
/// Up to this size, data is hashed on the calling thread: starting a thread costs more.
const SMALL: u64 = 512 << 10;

/// Receives every chunk after it was hashed.
type OnHashed<C> = Arc<dyn Fn(C) + Send + Sync>;

/// Hashes a sequence of chunks in order, on a separate thread once they exceed [`SMALL`] bytes.
pub(crate) struct BackgroundHasher<C> {
    hasher: Hasher,
    thread: Option<HashThread<C>>,
    count: u64,
    done: OnHashed<C>,
}

/// The hashing thread and its queue. The thread ends when the queue is dropped.
struct HashThread<C> {
    sender: SyncSender<C>,
    thread: JoinHandle<Hasher>,
}

impl<C: AsRef<[u8]> + Send + 'static> BackgroundHasher<C> {
    /// Creates a hasher that passes each hashed chunk to `done`, so that its memory can be reused:
    /// allocating fresh memory takes as long as hashing it.
    pub fn new(done: impl Fn(C) + Send + Sync + 'static) -> BackgroundHasher<C> {
        BackgroundHasher { hasher: Hasher::new(), thread: None, count: 0, done: Arc::new(done) }
    }

    /// Hashes the next chunk.
    pub fn push(&mut self, chunk: C) {
        self.count += chunk.as_ref().len() as u64;
        if self.count <= SMALL {
            self.hasher.update(chunk.as_ref());
            return (self.done)(chunk);
        }
        if self.thread.is_none() {
            let (mut hasher, done) = (self.hasher.clone(), self.done.clone());
            let (sender, receiver) = sync_channel::<C>(WAITING);
            let thread = start(move || {
                for chunk in receiver {
                    hasher.update(chunk.as_ref());
                    done(chunk);
                }
                hasher
            });
            self.thread = thread.ok().map(|thread| HashThread { sender, thread });
        }
        match &self.thread {
            // The thread receives until the sender is dropped. If it panicked, joining reports the
            // panic.
            Some(thread) => drop(thread.sender.send(chunk)),
            // No thread could be started.
            None => {
                self.hasher.update(chunk.as_ref());
                (self.done)(chunk);
            }
        }
    }

    /// Returns the digest and the number of bytes.
    pub fn finish<D: Sha256Id>(mut self) -> (D, u64) {
        let hasher = match self.thread.take() {
            None => std::mem::take(&mut self.hasher),
            Some(HashThread { sender, thread }) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        };
        (hasher.finish(), self.count)
    }
}

/// Joins the thread even if the digest is not needed, so that it does not outlive its owner.
impl<C> Drop for BackgroundHasher<C> {
    fn drop(&mut self) {
        if let Some(HashThread { sender, thread }) = self.thread.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// A digest of chunks whose buffers are reused after hashing.
pub struct ChunkHash {
    aside: BackgroundHasher<Vec<u8>>,
    used: Receiver<Vec<u8>>,
}

impl ChunkHash {
    /// Creates an empty digest.
    #[allow(clippy::new_without_default)]
    pub fn new() -> ChunkHash {
        let (back, used) = channel();
        // The receiver may be gone before the last chunks are hashed.
        let aside = BackgroundHasher::new(move |chunk| drop(back.send(chunk)));
        ChunkHash { aside, used }
    }

    /// Hashes a chunk and returns a buffer for the next one; the buffer's content is irrelevant.
    pub fn push(&mut self, chunk: Vec<u8>) -> Vec<u8> {
        self.aside.push(chunk);
        self.used.try_recv().unwrap_or_default()
    }

    /// Returns the digest and the number of bytes.
    pub fn finish<D: Sha256Id>(self) -> (D, u64) {
        self.aside.finish()
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::BlobDigest;

    use super::*;

    #[test]
    fn the_digest_does_not_depend_on_the_chunks() {
        for size in [0, 1, SMALL as usize, SMALL as usize + 1, 5_000_000] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            for step in [1000, 1 << 18, 1 << 20, 3_333_333] {
                let mut hash = ChunkHash::new();
                let mut memory = Vec::new();
                for chunk in bytes.chunks(step) {
                    memory.clear();
                    memory.extend_from_slice(chunk);
                    memory = hash.push(memory);
                }
                assert_eq!(hash.finish(), (BlobDigest::of(&bytes), size as u64), "{size} in steps of {step}");
            }
        }
    }

    #[test]
    fn every_chunk_is_returned_and_no_thread_remains() {
        let count = Arc::new(());
        let mut aside = BackgroundHasher::new({
            let count = count.clone();
            move |_: Vec<u8>| drop(count.clone())
        });
        (0..40).for_each(|_| aside.push(vec![7; 1 << 18]));
        drop(aside);
        assert_eq!(Arc::strong_count(&count), 1, "a chunk is still referenced");
    }
}
