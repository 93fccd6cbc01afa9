//! Reads ahead on a separate thread, so that decompression overlaps with the use of the bytes, and
//! with hashing on a third thread.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rbuild_image::Sha256Id;

use rbuild_linux::parallel::start_in;

use crate::hash_thread::BackgroundHasher;

/// Size of a chunk in bytes.
const CHUNK: usize = 1 << 20;
/// Number of chunks the producer may be ahead.
const AHEAD: usize = 4;

/// Bytes shared by the consumer and the hasher.
#[derive(Clone, Default)]
struct SharedBytes(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A reader of the chunks produced by the other thread.
pub struct ReadAhead {
    receiver: Receiver<io::Result<SharedBytes>>,
    /// Returns the memory of used chunks to the producer: allocating fresh memory costs as much as
    /// processing it.
    used: Sender<Vec<u8>>,
    chunk: SharedBytes,
    at: usize,
}

/// Runs `consume` with a reader over `source`, which is read on another thread. If none can be
/// started, the reader fails. Returns the source, for its counters and digests, the result of
/// `consume`, and with `hashes` the digest of the bytes read from the source.
pub fn with_read_ahead<S, T, D>(
    mut source: S,
    hashes: bool,
    consume: impl FnOnce(&mut ReadAhead) -> T,
) -> (S, T, Option<D>)
where
    S: Read + Send,
    D: Sha256Id + Send,
{
    let (result, digest) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let (used, again) = channel();
        let back = used.clone();
        let hashing = hashes.then(|| BackgroundHasher::new(move |chunk| recycle(chunk, &back)));
        let (to_reader, to_read) = (sender.clone(), &mut source);
        let producer = start_in(scope, move || {
            let mut hashing = hashing;
            produce(to_read, &sender, &again, &mut hashing);
            hashing.map(|hashing| hashing.finish().0)
        });
        let producer = producer.map_err(|e| to_reader.send(Err(e.into()))).ok();
        drop(to_reader);
        let mut reader = ReadAhead { receiver, used, chunk: SharedBytes::default(), at: 0 };
        let result = consume(&mut reader);
        // Closing the channel stops the producer.
        drop(reader);
        let joined = producer.map(|producer| producer.join());
        (result, joined.and_then(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    });
    (source, result, digest)
}

/// Returns the memory of a chunk to the producer if this was the last reference.
fn recycle(chunk: SharedBytes, used: &Sender<Vec<u8>>) {
    if let Some(memory) = Arc::into_inner(chunk.0).filter(|memory| memory.capacity() > 0) {
        // The producer may have ended already.
        let _ = used.send(memory);
    }
}

fn produce(
    source: &mut impl Read,
    sender: &SyncSender<io::Result<SharedBytes>>,
    again: &Receiver<Vec<u8>>,
    hashing: &mut Option<BackgroundHasher<SharedBytes>>,
) {
    loop {
        // A reused buffer keeps its content; `resize` only fills what a shorter last chunk lacks.
        let mut chunk = again.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        let error = loop {
            match source.read(&mut chunk[filled..]) {
                Ok(0) => break None,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Some(e),
            }
            if filled == CHUNK {
                break None;
            }
        };
        chunk.truncate(filled);
        let chunk = SharedBytes(Arc::new(chunk));
        if let Some(hashing) = hashing {
            hashing.push(chunk.clone());
        }
        match error {
            Some(e) => {
                let _ = sender.send(Ok(chunk)).and_then(|()| sender.send(Err(e)));
                return;
            }
            None if filled == 0 || sender.send(Ok(chunk)).is_err() => return,
            None => {}
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.0.len() {
            match self.receiver.recv() {
                Ok(chunk) => {
                    let old = std::mem::replace(&mut self.chunk, chunk?);
                    self.at = 0;
                    recycle(old, &self.used);
                }
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.chunk.0[self.at..];
        let n = buf.len().min(rest.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}
