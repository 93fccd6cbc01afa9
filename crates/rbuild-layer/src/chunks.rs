//! A writer that collects an archive's bytes into chunks of equal size. Headers and small files are
//! copied into the current chunk; large files are read directly into it.

use std::io::{self, Write};

/// Size of a chunk in bytes. The last one may be shorter.
const PIECE: usize = 1 << 20;

/// Consumes a chunk and returns a buffer for another one; the buffer's content is irrelevant.
type Pass<'a> = dyn FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a;

/// Collects bytes and passes them on in chunks of [`PIECE`] bytes.
pub(crate) struct Pieces<'a> {
    pass: Box<Pass<'a>>,
    /// The current chunk, always [`PIECE`] bytes long.
    piece: Vec<u8>,
    /// Number of valid bytes in `piece`.
    filled: usize,
}

impl<'a> Pieces<'a> {
    /// Creates a writer that passes full chunks to `pass`.
    pub fn new(pass: impl FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a) -> Pieces<'a> {
        Pieces { pass: Box::new(pass), piece: vec![0; PIECE], filled: 0 }
    }

    /// Returns the free part of the current chunk; never empty. Report what was written with
    /// [`Pieces::put`].
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.piece[self.filled..]
    }

    /// Marks the next `bytes` bytes of [`Pieces::room`] as filled, and passes on a full chunk.
    pub fn put(&mut self, bytes: usize) -> io::Result<()> {
        self.filled += bytes;
        if self.filled == PIECE { self.pass_on() } else { Ok(()) }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let mut piece = std::mem::take(&mut self.piece);
        piece.truncate(self.filled);
        self.filled = 0;
        self.piece = (self.pass)(piece)?;
        self.piece.resize(PIECE, 0);
        Ok(())
    }

    /// Passes on the last, partial chunk.
    pub fn finish(mut self) -> io::Result<()> {
        if self.filled > 0 { self.pass_on() } else { Ok(()) }
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room();
        let n = bytes.len().min(room.len());
        room[..n].copy_from_slice(&bytes[..n]);
        self.put(n)?;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
