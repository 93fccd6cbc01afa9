//! Gzip on several cores, one member, the same bytes for any number of threads.
//!
//! The input is cut into blocks of a fixed size. Each block is deflated on its own with the 32 KiB before it as
//! the dictionary and ends on a byte boundary (a sync flush), so the blocks can be joined (RFC 1951, 3.2.3).

use std::io::{self, Write};

use flate2::{Compress, Crc, FlushCompress};
use rayon::prelude::*;

const BLOCK: usize = 1 << 20;
const WINDOW: usize = 32 * 1024;
/// Blocks in the making at a time; bounds memory.
const BATCH: usize = 8;

pub struct ParallelGzip<W: Write> {
    out: W,
    level: u32,
    /// The last window of what was compressed, then what waits.
    pending: Vec<u8>,
    /// How much of `pending` is that window.
    window: usize,
    crc: Crc,
}

impl<W: Write> ParallelGzip<W> {
    pub fn new(mut out: W, level: u32) -> io::Result<ParallelGzip<W>> {
        // No name, no time, unknown operating system (RFC 1952).
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])?;
        Ok(ParallelGzip { out, level, pending: Vec::new(), window: 0, crc: Crc::new() })
    }

    fn flush_blocks(&mut self, last: bool) -> io::Result<()> {
        let ready = self.pending.len() - self.window;
        let blocks = if last { ready.div_ceil(BLOCK) } else { ready / BLOCK };
        if blocks > 0 {
            let (level, window, pending) = (self.level, self.window, &self.pending);
            let compressed: Vec<io::Result<Vec<u8>>> = (0..blocks)
                .into_par_iter()
                .map(|i| {
                    let start = window + i * BLOCK;
                    let end = (start + BLOCK).min(pending.len());
                    deflate(&pending[start..end], &pending[start.saturating_sub(WINDOW)..start], level)
                })
                .collect();
            for block in compressed {
                self.out.write_all(&block?)?;
            }
            let done = (self.window + blocks * BLOCK).min(self.pending.len());
            let keep = done.saturating_sub(WINDOW);
            self.pending.drain(..keep);
            self.window = done - keep;
        }
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.flush_blocks(true)?;
        // An empty final block with fixed codes, then the trailer.
        self.out.write_all(&[3, 0])?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

fn deflate(block: &[u8], dictionary: &[u8], level: u32) -> io::Result<Vec<u8>> {
    let mut z = Compress::new(flate2::Compression::new(level), false);
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
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.crc.update(bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() - self.window >= BLOCK * BATCH {
            self.flush_blocks(false)?;
        }
        Ok(bytes.len())
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
        pool.install(|| {
            let mut gz = ParallelGzip::new(Vec::new(), 6).unwrap();
            data.chunks(piece.max(1)).for_each(|c| gz.write_all(c).unwrap());
            gz.finish().unwrap()
        })
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
