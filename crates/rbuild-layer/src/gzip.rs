//! Parallel gzip whose output does not depend on the number of threads.
//!
//! The input is split into blocks of fixed size, and each block becomes a gzip member of its own
//! (RFC 1952, 2.2: members simply follow each other). A final empty member records the total
//! uncompressed size in its extra field, because gzip records the size of a single member only,
//! modulo 4 GiB.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};

use libdeflater::{CompressionLvl, Compressor};

/// Uncompressed size of a member in bytes.
const BLOCK: usize = 1 << 20;

/// libdeflate levels that compress as well as gzip levels 0 to 9.
const LEVELS: [i32; 10] = [0, 1, 2, 3, 3, 4, 5, 6, 7, 9];

/// Size of the final member in bytes.
pub const END: usize = 34;

/// The final member up to the size: a header without time and operating system, the length of the
/// extra field (12), and the subfield's name and length (8).
const END_HEAD: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 12, 0, b'R', b'B', 8, 0];
/// The final member after the size: an empty final block with fixed codes, its checksum and its
/// length.
const END_TAIL: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Returns the uncompressed size recorded in the final member, or `None` if the stream was not
/// written by `ParallelGzip`.
pub fn unpacked_size(end: &[u8; END]) -> Option<u64> {
    let number = end.strip_prefix(&END_HEAD)?.strip_suffix(&END_TAIL)?;
    Some(u64::from_le_bytes(number.try_into().ok()?))
}

/// Returns true if a gzip stream may consist of several members, that is, if any later bytes look
/// like a member header (RFC 1952, 2.3). False positives are possible.
///
/// # Errors
///
/// Fails if `source` cannot be read.
pub fn may_have_members(mut source: impl Read) -> io::Result<bool> {
    const HEADER: usize = 10;
    let is_header = |at: &[u8]| {
        let [0x1f, 0x8b, 8, flags, _, _, _, _, extra, system, ..] = *at else { return false };
        flags & 0xe0 == 0 && matches!(extra, 0 | 2 | 4) && matches!(system, 0..=13 | 255)
    };
    // Skip the first byte, so that the first header does not match.
    io::copy(&mut (&mut source).take(1), &mut io::sink())?;
    let mut bytes = Vec::new();
    loop {
        let n = (&mut source).take(BLOCK as u64).read_to_end(&mut bytes)?;
        let mut rest = &bytes[..];
        while let Some(at) = rest.iter().position(|b| *b == 0x1f) {
            if is_header(&rest[at..]) {
                return Ok(true);
            }
            rest = &rest[at + 1..];
        }
        if n == 0 {
            return Ok(false);
        }
        // A header may straddle two reads.
        bytes.drain(..bytes.len().saturating_sub(HEADER - 1));
    }
}

/// Returns the pool of compression threads. It is separate from other pools, so that a worker of
/// those may block on it.
fn compressors() -> io::Result<Arc<rayon::ThreadPool>> {
    static POOL: OnceLock<Arc<rayon::ThreadPool>> = OnceLock::new();
    if let Some(pool) = POOL.get() {
        return Ok(pool.clone());
    }
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("gzip-{i}")).build().map_err(not_started)?;
    // If two threads make a pool at the same time, one is dropped.
    Ok(POOL.get_or_init(|| Arc::new(pool)).clone())
}

/// Returns the error of the kernel that is the cause, or else the error itself.
fn not_started(e: rayon::ThreadPoolBuildError) -> io::Error {
    let cause = e.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => {
            let cause = io::Error::from_raw_os_error(errno);
            rbuild_linux::Error::new("pthread_create", rbuild_linux::described("a compressing thread"), cause).into()
        }
        None => io::Error::other(e),
    }
}

/// A finished member, and the buffer of its input block for reuse.
type Made = io::Result<(Vec<u8>, Vec<u8>)>;

/// A gzip writer that compresses blocks in parallel.
pub struct ParallelGzip<W: Write> {
    out: W,
    level: CompressionLvl,
    pool: Arc<rayon::ThreadPool>,
    block: Vec<u8>,
    /// Blocks being compressed, in order. Their number bounds the memory use.
    making: VecDeque<Receiver<Made>>,
    /// Input buffers for reuse.
    spare: Vec<Vec<u8>>,
    /// Uncompressed bytes written so far.
    taken: u64,
}

impl<W: Write> ParallelGzip<W> {
    /// Creates a writer with a gzip level from 0 to 9.
    ///
    /// # Errors
    ///
    /// Fails if the level is out of range, or if the compression threads cannot be started.
    pub fn new(out: W, level: u32) -> io::Result<ParallelGzip<W>> {
        ParallelGzip::on(compressors()?, out, level)
    }

    fn on(pool: Arc<rayon::ThreadPool>, out: W, level: u32) -> io::Result<ParallelGzip<W>> {
        let wrong = || io::Error::other(format!("gzip has no level {level}"));
        let level = *LEVELS.get(level as usize).ok_or_else(wrong)?;
        let level = CompressionLvl::new(level).map_err(|_| wrong())?;
        let (block, making, spare) = (Vec::with_capacity(BLOCK), VecDeque::new(), Vec::new());
        Ok(ParallelGzip { out, level, pool, block, making, spare, taken: 0 })
    }

    /// Queues the current block, and writes finished members while too many blocks are in flight.
    fn submit(&mut self) -> io::Result<()> {
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK));
        let block = std::mem::replace(&mut self.block, next);
        let (sender, receiver) = sync_channel(1);
        let level = self.level;
        self.pool.spawn(move || drop(sender.send(member(&block, level).map(|made| (made, block)))));
        self.making.push_back(receiver);
        while self.making.len() > 2 * self.pool.current_num_threads() {
            self.write_one()?;
        }
        Ok(())
    }

    fn write_one(&mut self) -> io::Result<()> {
        let Some(receiver) = self.making.pop_front() else { return Ok(()) };
        let (member, mut block) = receiver.recv().map_err(|_| io::Error::other("a compressing thread ended"))??;
        block.clear();
        self.spare.push(block);
        self.out.write_all(&member)
    }

    /// Writes the remaining members and the final one, and returns the underlying writer.
    ///
    /// # Errors
    ///
    /// Fails if compression or a write fails.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.submit()?;
        }
        while !self.making.is_empty() {
            self.write_one()?;
        }
        self.out.write_all(&END_HEAD)?;
        self.out.write_all(&self.taken.to_le_bytes())?;
        self.out.write_all(&END_TAIL)?;
        Ok(self.out)
    }
}

/// Per-thread compressor and output buffer; allocating them for every block is measurably slow.
struct BlockCompressor {
    level: CompressionLvl,
    compressor: Compressor,
    made: Vec<u8>,
}

fn member(block: &[u8], level: CompressionLvl) -> io::Result<Vec<u8>> {
    thread_local!(static STATE: RefCell<Option<BlockCompressor>> = const { RefCell::new(None) });
    STATE.with_borrow_mut(|state| {
        let fresh = || BlockCompressor { level, compressor: Compressor::new(level), made: Vec::new() };
        if state.as_ref().is_none_or(|state| state.level != level) {
            *state = Some(fresh());
        }
        let BlockCompressor { compressor, made, .. } = state.get_or_insert_with(fresh);
        made.resize(made.len().max(compressor.gzip_compress_bound(block.len())), 0);
        let length = compressor.gzip_compress(block, made).map_err(io::Error::other)?;
        Ok(made[..length].to_vec())
    })
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOCK - self.block.len();
        let taken = &bytes[..room.min(bytes.len())];
        self.taken += taken.len() as u64;
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
    use rbuild_testkit::{assert_recorded, message_row};

    use super::*;

    #[test]
    fn the_error_number_of_a_thread_that_is_not_started_is_kept() {
        let none = |_| Err(io::Error::from_raw_os_error(11));
        let e = not_started(rayon::ThreadPoolBuilder::new().spawn_handler(none).build().unwrap_err());
        let carried = e.get_ref().and_then(|e| e.downcast_ref::<rbuild_linux::Error>()).unwrap();
        assert_eq!(carried.errno(), Some(11), "{e}");
    }

    #[test]
    fn failures_are_worded_as_recorded() {
        let mut ended = ParallelGzip::new(Vec::new(), 6).unwrap();
        ended.making.push_back(sync_channel(1).1);
        let rows = [
            message_row("a thread that ended", &ended.finish().unwrap_err(), None::<()>),
            message_row("a level", &ParallelGzip::new(Vec::new(), 10).map(drop).unwrap_err(), None::<()>),
        ];
        assert_recorded!("gzip", rows.concat());
    }

    #[test]
    fn members_are_found_at_any_offset() {
        let member = |data: &[u8]| {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            gz.write_all(data).unwrap();
            gz.finish().unwrap()
        };
        for size in (BLOCK - 1100..BLOCK + 20).step_by(7).chain([0, 10]) {
            let one = member(&vec![0x1f; size]);
            assert!(!may_have_members(&one[..]).unwrap(), "{size}");
            assert!(may_have_members(&[&one[..], &member(b"more")].concat()[..]).unwrap(), "{size}");
        }
        assert!(!may_have_members(&b""[..]).unwrap());
    }

    fn compress(data: &[u8], threads: usize, piece: usize, level: u32) -> Vec<u8> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut gz = ParallelGzip::on(Arc::new(pool), Vec::new(), level).unwrap();
        data.chunks(piece.max(1)).for_each(|c| gz.write_all(c).unwrap());
        gz.finish().unwrap()
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_write_sizes() {
        let mut data: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 27) as u8).collect();
        data.extend(std::iter::repeat_n(7u8, 3_000_000));
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, data.len()] {
            let one = compress(&data[..size], 1, 1 << 20, 6);
            assert_eq!(one, compress(&data[..size], 3, 77_777, 6), "{size}");
            let mut back = Vec::new();
            flate2::read::MultiGzDecoder::new(&one[..]).read_to_end(&mut back).unwrap();
            assert!(back == data[..size], "{size}");
            let end: &[u8; END] = one.last_chunk().unwrap();
            assert_eq!(unpacked_size(end), Some(size as u64));
        }
    }

    #[test]
    fn valid_levels_are_accepted_and_others_rejected() {
        let data = b"something that goes on and on ".repeat(1000);
        let sizes: Vec<usize> = (0..10).map(|level| compress(&data, 2, 4096, level).len()).collect();
        assert!(sizes[0] > data.len() && sizes[9] < data.len() / 20, "{sizes:?}");
        assert!(ParallelGzip::new(Vec::new(), 10).is_err());
        assert_eq!(unpacked_size(&[0; END]), None);
    }
}
