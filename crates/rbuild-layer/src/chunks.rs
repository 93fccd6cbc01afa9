//! An archive's bytes in pieces of one size: headers and small files are brought together, large files are read to where
//! they are written from.

use std::io::{self, Write};

/// Bytes of a piece; the last one is shorter.
const PIECE: usize = 1 << 20;

/// Who takes a piece; gives memory for another one, with whatever it holds.
type Pass<'a> = dyn FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a;

pub(crate) struct Pieces<'a> {
    pass: Box<Pass<'a>>,
    /// As long as a piece.
    piece: Vec<u8>,
    /// Bytes of it that are there.
    filled: usize,
}

impl<'a> Pieces<'a> {
    pub fn new(pass: impl FnMut(Vec<u8>) -> io::Result<Vec<u8>> + 'a) -> Pieces<'a> {
        Pieces { pass: Box::new(pass), piece: vec![0; PIECE], filled: 0 }
    }

    /// Where the next bytes go; never empty. [`Pieces::put`] says how many came.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.piece[self.filled..]
    }

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

    /// Passes on what is left.
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
