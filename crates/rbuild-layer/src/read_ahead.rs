//! A reader that runs ahead on a thread of its own, so that decompression overlaps with what uses its bytes, and with hashing
//! them on a third one.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rbuild_image::Digest;

use crate::hash_thread::HashAside;

const CHUNK: usize = 1 << 20;
const AHEAD: usize = 4;

/// Bytes for the consumer and for who hashes them.
#[derive(Clone, Default)]
struct Chunk(Arc<Vec<u8>>);

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub struct ReadAhead {
    receiver: Receiver<io::Result<Chunk>>,
    /// Takes chunks that were read: fresh memory costs as much as what is done with it.
    used: Sender<Vec<u8>>,
    chunk: Chunk,
    at: usize,
}

/// Runs `consume` with a reader over `source`, which is read on another thread. The source is given back so that
/// what it counted and hashed can be asked for, and with `hashes` the digest of the bytes that were read of it.
pub fn with_read_ahead<S, T>(
    mut source: S,
    hashes: bool,
    consume: impl FnOnce(&mut ReadAhead) -> T,
) -> (S, T, Option<Digest>)
where
    S: Read + Send,
{
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let (used, again) = channel();
        let back = used.clone();
        let hashing = hashes.then(|| HashAside::new(move |chunk| give_back(chunk, &back)));
        let producer = scope.spawn(move || {
            let mut hashing = hashing;
            produce(&mut source, &sender, &again, &mut hashing);
            (source, hashing.map(|hashing| hashing.finish().0))
        });
        let mut reader = ReadAhead { receiver, used, chunk: Chunk::default(), at: 0 };
        let result = consume(&mut reader);
        // The producer sees the closed channel and stops.
        drop(reader);
        let (source, digest) = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (source, result, digest)
    })
}

/// The last to have a chunk gives its memory back.
fn give_back(chunk: Chunk, used: &Sender<Vec<u8>>) {
    if let Some(memory) = Arc::into_inner(chunk.0).filter(|memory| memory.capacity() > 0) {
        // The producer may have ended.
        let _ = used.send(memory);
    }
}

fn produce(
    source: &mut impl Read,
    sender: &SyncSender<io::Result<Chunk>>,
    again: &Receiver<Vec<u8>>,
    hashing: &mut Option<HashAside<Chunk>>,
) {
    loop {
        // Only the last chunk is shorter than what was filled before.
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
        let chunk = Chunk(Arc::new(chunk));
        if let Some(hashing) = hashing {
            hashing.take(chunk.clone());
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
                    give_back(old, &self.used);
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
