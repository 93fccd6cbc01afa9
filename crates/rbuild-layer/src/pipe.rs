//! A reader that runs ahead on a thread of its own, so that decompression overlaps with what uses its bytes.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

const CHUNK: usize = 256 * 1024;
const AHEAD: usize = 8;

pub struct ReadAhead {
    receiver: Receiver<io::Result<Vec<u8>>>,
    /// Takes chunks that were read: fresh memory costs as much as what is done with it.
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

/// Runs `consume` with a reader over `source`, which is read on another thread. The source is given back so that
/// what it counted and hashed can be asked for.
pub fn with_read_ahead<S, T>(mut source: S, consume: impl FnOnce(&mut ReadAhead) -> T) -> (S, T)
where
    S: Read + Send,
{
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let (used, again) = channel();
        let producer = scope.spawn(move || {
            produce(&mut source, &sender, &again);
            source
        });
        let mut reader = ReadAhead { receiver, used, chunk: Vec::new(), at: 0 };
        let result = consume(&mut reader);
        // The producer sees the closed channel and stops.
        drop(reader);
        let source = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (source, result)
    })
}

fn produce(source: &mut impl Read, sender: &SyncSender<io::Result<Vec<u8>>>, again: &Receiver<Vec<u8>>) {
    loop {
        // Only the last chunk is shorter than what was filled before.
        let mut chunk = again.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match source.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    chunk.truncate(filled);
                    let _ = sender.send(Ok(chunk)).and_then(|()| sender.send(Err(e)));
                    return;
                }
            }
        }
        chunk.truncate(filled);
        if filled == 0 || sender.send(Ok(chunk)).is_err() {
            return;
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
                    if !old.is_empty() {
                        // The producer may have ended.
                        let _ = self.used.send(old);
                    }
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
