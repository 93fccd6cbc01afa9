//! A digest that is made on another thread while the bytes go on.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rbuild_image::{Digest, Hasher};

const CHUNK: usize = 256 * 1024;
const WAITING: usize = 8;
/// Less than this is hashed where it comes along: a thread costs more.
const SMALL: u64 = 2 << 20;

/// Hashes what it is shown; of much, on a thread of its own.
pub struct HashAside {
    here: Hasher,
    elsewhere: Option<Elsewhere>,
    chunk: Vec<u8>,
    count: u64,
}

/// The thread, the way to it, and the way back for chunks that are used up: fresh memory costs as much as hashing it.
struct Elsewhere {
    sender: SyncSender<Vec<u8>>,
    used: Receiver<Vec<u8>>,
    thread: JoinHandle<Hasher>,
}

impl Elsewhere {
    fn start(mut hasher: Hasher) -> Elsewhere {
        let (sender, receiver) = sync_channel::<Vec<u8>>(WAITING);
        let (back, used) = channel();
        let thread = std::thread::spawn(move || {
            for mut chunk in receiver {
                hasher.update(&chunk);
                chunk.clear();
                // The last ones are not waited for.
                let _ = back.send(chunk);
            }
            hasher
        });
        Elsewhere { sender, used, thread }
    }
}

impl HashAside {
    #[allow(clippy::new_without_default)]
    pub fn new() -> HashAside {
        HashAside { here: Hasher::new(), elsewhere: None, chunk: Vec::new(), count: 0 }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.count += bytes.len() as u64;
        if self.count <= SMALL {
            return self.here.update(bytes);
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            if self.chunk.len() == CHUNK {
                self.pass_on();
            }
        }
    }

    /// The same of bytes that nobody needs any more; gives a buffer for the next ones.
    pub fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.count += bytes.len() as u64;
        if self.count <= SMALL {
            self.here.update(&bytes);
            return bytes;
        }
        if !self.chunk.is_empty() {
            self.pass_on();
        }
        self.chunk = bytes;
        self.pass_on();
        std::mem::take(&mut self.chunk)
    }

    /// Gives the chunk to the other thread and begins another.
    fn pass_on(&mut self) {
        let here = &mut self.here;
        let elsewhere = self.elsewhere.get_or_insert_with(|| Elsewhere::start(std::mem::replace(here, Hasher::new())));
        let next = elsewhere.used.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        // It listens until this end is dropped; if it panicked, joining says so.
        let _ = elsewhere.sender.send(std::mem::replace(&mut self.chunk, next));
    }

    /// The digest and the number of bytes.
    pub fn finish(mut self) -> (Digest, u64) {
        if !self.chunk.is_empty() {
            self.pass_on();
        }
        let hasher = match self.elsewhere {
            None => self.here,
            Some(Elsewhere { sender, thread, .. }) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        };
        (hasher.finish(), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_bytes_however_they_come() {
        for size in [0, 1, SMALL as usize, SMALL as usize + 1, 5_000_000, CHUNK * 20] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            for piece in [1000, CHUNK, 1 << 20, 3_333_333] {
                let mut aside = HashAside::new();
                for (i, chunk) in bytes.chunks(piece).enumerate() {
                    match i % 3 {
                        0 => drop(aside.take(chunk.to_vec())),
                        _ => aside.update(chunk),
                    }
                }
                assert_eq!(aside.finish(), (Digest::of(&bytes), size as u64), "{size} in pieces of {piece}");
            }
        }
    }
}
