//! A reader that runs ahead on a thread of its own, so that decompression overlaps with what uses its bytes, and with hashing
//! them on a third one.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use rbuild_image::{Digest, Hasher};

const CHUNK: usize = 256 * 1024;
const AHEAD: usize = 8;
/// So many chunks are hashed by who reads them: a thread costs more.
const FEW: usize = 8;

/// Bytes for the consumer and for who hashes them.
type Chunk = Arc<Vec<u8>>;

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
        let hashing =
            hashes.then(|| Hashing { scope, used: used.clone(), here: Hasher::new(), count: 0, elsewhere: None });
        let producer = scope.spawn(move || {
            let mut hashing = hashing;
            produce(&mut source, &sender, &again, &mut hashing);
            (source, hashing.map(Hashing::finish))
        });
        let mut reader = ReadAhead { receiver, used, chunk: Chunk::default(), at: 0 };
        let result = consume(&mut reader);
        // The producer sees the closed channel and stops.
        drop(reader);
        let (source, digest) = joined(producer);
        (source, result, digest)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes a digest of chunks, of many on a thread of its own.
struct Hashing<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    used: Sender<Vec<u8>>,
    here: Hasher,
    count: usize,
    elsewhere: Option<(SyncSender<Chunk>, ScopedJoinHandle<'s, Hasher>)>,
}

impl Hashing<'_, '_> {
    fn take(&mut self, chunk: &Chunk) {
        self.count += 1;
        if self.count <= FEW {
            return self.here.update(chunk);
        }
        let (sender, _) = self.elsewhere.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel::<Chunk>(AHEAD);
            let mut hasher = std::mem::take(&mut self.here);
            let used = self.used.clone();
            let thread = self.scope.spawn(move || {
                for chunk in receiver {
                    hasher.update(&chunk);
                    give_back(chunk, &used);
                }
                hasher
            });
            (sender, thread)
        });
        // It listens until this end is dropped; if it panicked, joining says so.
        let _ = sender.send(chunk.clone());
    }

    fn finish(self) -> Digest {
        match self.elsewhere {
            None => self.here.finish(),
            Some((sender, thread)) => {
                drop(sender);
                joined(thread).finish()
            }
        }
    }
}

/// The last to have a chunk gives its memory back.
fn give_back(chunk: Chunk, used: &Sender<Vec<u8>>) {
    if let Some(memory) = Arc::into_inner(chunk).filter(|memory| memory.capacity() > 0) {
        // The producer may have ended.
        let _ = used.send(memory);
    }
}

fn produce(
    source: &mut impl Read,
    sender: &SyncSender<io::Result<Chunk>>,
    again: &Receiver<Vec<u8>>,
    hashing: &mut Option<Hashing<'_, '_>>,
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
        let chunk = Chunk::new(chunk);
        if let Some(hashing) = hashing {
            hashing.take(&chunk);
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
        while self.at == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => {
                    let old = std::mem::replace(&mut self.chunk, chunk?);
                    self.at = 0;
                    give_back(old, &self.used);
                }
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.chunk.len() - self.at);
        buf[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
