//! Gzip on several cores, one member, the same bytes for any number of threads.
//!
//! The input is cut into blocks of a fixed size. Each block is deflated on its own with the 32 KiB before it as
//! the dictionary and ends on a byte boundary (a sync flush), so the blocks can be joined (RFC 1951, 3.2.3).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};

use flate2::{Compress, Crc, FlushCompress};

const BLOCK: usize = 1 << 20;
const WINDOW: usize = 32 * 1024;

/// Threads that compress and do nothing else, so that whoever waits for them may be a worker of another pool.
fn compressors() -> io::Result<Arc<rayon::ThreadPool>> {
    static POOL: OnceLock<Result<Arc<rayon::ThreadPool>, String>> = OnceLock::new();
    let make = || rayon::ThreadPoolBuilder::new().thread_name(|i| format!("gzip-{i}")).build();
    let pool = POOL.get_or_init(|| make().map(Arc::new).map_err(|e| e.to_string()));
    pool.clone().map_err(io::Error::other)
}

pub struct ParallelGzip<W: Write> {
    out: W,
    level: u32,
    pool: Arc<rayon::ThreadPool>,
    /// The last window of the block before, then what waits for the block to be full.
    block: Vec<u8>,
    /// How much of `block` is that window.
    window: usize,
    /// Blocks in the making, in order; their number bounds the memory.
    making: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    crc: Crc,
}

impl<W: Write> ParallelGzip<W> {
    pub fn new(out: W, level: u32) -> io::Result<ParallelGzip<W>> {
        ParallelGzip::on(compressors()?, out, level)
    }

    fn on(pool: Arc<rayon::ThreadPool>, mut out: W, level: u32) -> io::Result<ParallelGzip<W>> {
        // No name, no time, unknown operating system (RFC 1952).
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])?;
        let block = Vec::with_capacity(WINDOW + BLOCK);
        Ok(ParallelGzip { out, level, pool, block, window: 0, making: VecDeque::new(), crc: Crc::new() })
    }

    /// Hands the block to the compressors, and writes what they have finished if enough is in the making.
    fn submit(&mut self) -> io::Result<()> {
        let mut next = Vec::with_capacity(WINDOW + BLOCK);
        next.extend_from_slice(&self.block[self.block.len().saturating_sub(WINDOW)..]);
        let block = std::mem::replace(&mut self.block, next);
        let window = std::mem::replace(&mut self.window, self.block.len());
        let (sender, receiver) = sync_channel(1);
        let level = self.level;
        self.pool.spawn(move || drop(sender.send(deflate(&block[window..], &block[..window], level))));
        self.making.push_back(receiver);
        while self.making.len() > 2 * self.pool.current_num_threads() {
            self.write_one()?;
        }
        Ok(())
    }

    fn write_one(&mut self) -> io::Result<()> {
        let Some(receiver) = self.making.pop_front() else { return Ok(()) };
        let block = receiver.recv().map_err(|_| io::Error::other("a compressing thread ended"))??;
        self.out.write_all(&block)
    }

    pub fn finish(mut self) -> io::Result<W> {
        if self.block.len() > self.window {
            self.submit()?;
        }
        while !self.making.is_empty() {
            self.write_one()?;
        }
        // An empty final block with fixed codes, then the trailer.
        self.out.write_all(&[3, 0])?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

fn deflate(block: &[u8], dictionary: &[u8], level: u32) -> io::Result<Vec<u8>> {
    thread_local!(static STATE: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) });
    STATE.with_borrow_mut(|state| {
        let z = match state {
            Some((known, z)) if *known == level => {
                z.reset();
                z
            }
            state => &mut state.insert((level, Compress::new(flate2::Compression::new(level), false))).1,
        };
        if !dictionary.is_empty() {
            z.set_dictionary(dictionary).map_err(io::Error::other)?;
        }
        let mut out = Vec::with_capacity(block.len() / 2 + 1024);
        loop {
            let taken = z.total_in() as usize;
            let before = out.len();
            z.compress_vec(&block[taken..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            if z.total_in() as usize == block.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() == before || out.len() == out.capacity() {
                out.reserve(64 * 1024);
            }
        }
    })
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOCK - (self.block.len() - self.window);
        let taken = &bytes[..room.min(bytes.len())];
        self.crc.update(taken);
        self.block.extend_from_slice(taken);
        if taken.len() == room {
            self.submit()?;
        }
        Ok(taken.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn compress(data: &[u8], threads: usize, piece: usize) -> Vec<u8> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut gz = ParallelGzip::on(Arc::new(pool), Vec::new(), 6).unwrap();
        data.chunks(piece.max(1)).for_each(|c| gz.write_all(c).unwrap());
        gz.finish().unwrap()
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_write_sizes() {
        let mut data: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 27) as u8).collect();
        data.extend(std::iter::repeat_n(7u8, 3_000_000));
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, data.len()] {
            let one = compress(&data[..size], 1, 1 << 20);
            assert_eq!(one, compress(&data[..size], 3, 77_777), "{size}");
            let mut back = Vec::new();
            flate2::read::GzDecoder::new(&one[..]).read_to_end(&mut back).unwrap();
            assert!(back == data[..size], "{size}");
        }
    }
}
