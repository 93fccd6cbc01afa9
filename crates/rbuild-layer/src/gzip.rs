//! Gzip on several cores, the same bytes for any number of threads.
//!
//! The input is cut into blocks of a fixed size, and each becomes a member of its own (RFC 1952, 2.2: members simply follow each
//! other). A last member holds nothing, and says in its extra field how long all the others are together, which gzip
//! itself says of one member only and modulo 4 GiB.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};

use libdeflater::{CompressionLvl, Compressor};

const BLOCK: usize = 1 << 20;

/// libdeflate's levels for those of gzip: the ones that come out as small.
const LEVELS: [i32; 10] = [0, 1, 2, 3, 3, 4, 5, 6, 7, 9];

/// Bytes of the last member.
pub const END: usize = 34;

/// The last member, up to the number: a header without time and system, and its extra field's length (12), name and size (8).
const END_HEAD: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 12, 0, b'R', b'B', 8, 0];
/// What follows the number: an empty final block with fixed codes, its checksum and its length.
const END_TAIL: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The bytes before compression, as the last member of what was compressed here says.
pub fn unpacked_size(end: &[u8; END]) -> Option<u64> {
    let number = end.strip_prefix(&END_HEAD)?.strip_suffix(&END_TAIL)?;
    Some(u64::from_le_bytes(number.try_into().ok()?))
}

/// Whether gzip bytes may be of several members: something in them looks as the header of one (RFC 1952, 2.3).
pub fn may_have_members(mut source: impl Read) -> io::Result<bool> {
    const HEADER: usize = 10;
    let is_header = |at: &[u8]| {
        let [0x1f, 0x8b, 8, flags, _, _, _, _, extra, system, ..] = *at else { return false };
        flags & 0xe0 == 0 && matches!(extra, 0 | 2 | 4) && matches!(system, 0..=13 | 255)
    };
    // The first header does not count.
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
        // What begins at the end may go on.
        bytes.drain(..bytes.len().saturating_sub(HEADER - 1));
    }
}

/// Threads that compress and do nothing else, so that whoever waits for them may be a worker of another pool.
fn compressors() -> io::Result<Arc<rayon::ThreadPool>> {
    static POOL: OnceLock<Result<Arc<rayon::ThreadPool>, String>> = OnceLock::new();
    let make = || rayon::ThreadPoolBuilder::new().thread_name(|i| format!("gzip-{i}")).build();
    let pool = POOL.get_or_init(|| make().map(Arc::new).map_err(|e| e.to_string()));
    pool.clone().map_err(io::Error::other)
}

/// A member, and the buffer of the block that it was made of.
type Made = io::Result<(Vec<u8>, Vec<u8>)>;

pub struct ParallelGzip<W: Write> {
    out: W,
    level: CompressionLvl,
    pool: Arc<rayon::ThreadPool>,
    block: Vec<u8>,
    /// Blocks in the making, in order; their number bounds the memory.
    making: VecDeque<Receiver<Made>>,
    spare: Vec<Vec<u8>>,
    taken: u64,
}

impl<W: Write> ParallelGzip<W> {
    /// `level` is from 0 to 9.
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

    /// Hands the block to the compressors, and writes what they have finished if enough is in the making.
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

/// What a compressing thread keeps: fresh memory costs.
struct State {
    level: CompressionLvl,
    compressor: Compressor,
    made: Vec<u8>,
}

fn member(block: &[u8], level: CompressionLvl) -> io::Result<Vec<u8>> {
    thread_local!(static STATE: RefCell<Option<State>> = const { RefCell::new(None) });
    STATE.with_borrow_mut(|state| {
        let fresh = || State { level, compressor: Compressor::new(level), made: Vec::new() };
        if state.as_ref().is_none_or(|state| state.level != level) {
            *state = Some(fresh());
        }
        let State { compressor, made, .. } = state.get_or_insert_with(fresh);
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
    use super::*;

    #[test]
    fn members_are_seen_wherever_they_begin() {
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
    fn every_level_is_there_and_others_are_refused() {
        let data = b"something that goes on and on ".repeat(1000);
        let sizes: Vec<usize> = (0..10).map(|level| compress(&data, 2, 4096, level).len()).collect();
        assert!(sizes[0] > data.len() && sizes[9] < data.len() / 20, "{sizes:?}");
        assert!(ParallelGzip::new(Vec::new(), 10).is_err());
        assert_eq!(unpacked_size(&[0; END]), None);
    }
}
