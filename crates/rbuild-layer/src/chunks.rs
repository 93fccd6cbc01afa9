//! A writer that collects an archive's bytes into chunks of equal size. Headers and small files are
//! copied into the current chunk; large files are read directly into it.

use std::io::{self, Write};

/// Size of a chunk in bytes. The last one may be shorter.
const CHUNK: usize = 1 << 20;

/// Consumes a chunk and returns a buffer for another one; the buffer's content is irrelevant.
type ChunkSink<'a> = dyn FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a;

/// Collects bytes and passes them on in chunks of [`CHUNK`] bytes.
pub(crate) struct ChunkWriter<'a> {
    pass: Box<ChunkSink<'a>>,
    /// The current chunk, always [`CHUNK`] bytes long.
    chunk: Vec<u8>,
    /// Number of valid bytes in `chunk`.
    filled: usize,
}

impl<'a> ChunkWriter<'a> {
    /// Creates a writer that passes full chunks to `pass`.
    pub fn new(pass: impl FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a) -> ChunkWriter<'a> {
        ChunkWriter { pass: Box::new(pass), chunk: vec![0; CHUNK], filled: 0 }
    }

    /// Returns the free part of the current chunk; never empty. Report what was written with
    /// [`ChunkWriter::advance`].
    pub fn free(&mut self) -> &mut [u8] {
        &mut self.chunk[self.filled..]
    }

    /// Marks the next `bytes` bytes of [`ChunkWriter::free`] as filled, and passes on a full chunk.
    pub fn advance(&mut self, bytes: usize) -> io::Result<()> {
        self.filled += bytes;
        if self.filled == CHUNK { self.pass_on() } else { Ok(()) }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.truncate(self.filled);
        self.filled = 0;
        self.chunk = (self.pass)(chunk)?;
        self.chunk.resize(CHUNK, 0);
        Ok(())
    }

    /// Passes on the last, partial chunk.
    pub fn finish(mut self) -> io::Result<()> {
        if self.filled > 0 { self.pass_on() } else { Ok(()) }
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let free = self.free();
        let n = bytes.len().min(free.len());
        free[..n].copy_from_slice(&bytes[..n]);
        self.advance(n)?;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
