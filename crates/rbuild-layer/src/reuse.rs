//! Reads unchanged files sequentially from an earlier layer, which is faster than opening each of
//! them.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use rbuild_linux::Xattrs;

use crate::entry::{EntryKind, TarEntry};
use crate::reader::TarReader;

/// An uncompressed layer written by this crate, read in lockstep with a walk in the same order.
pub(crate) struct EarlierLayer {
    /// `None` at the end of the layer, or after an error.
    reader: Option<TarReader<BufReader<File>>>,
    /// The last entry read, and its path.
    entry: Option<(PathBuf, TarEntry)>,
}

/// Size of the read buffer in bytes.
const BUFFER: usize = 256 << 10;

impl EarlierLayer {
    /// Starts reading an uncompressed layer.
    pub fn new(file: File) -> EarlierLayer {
        EarlierLayer { reader: Some(TarReader::new(BufReader::with_capacity(BUFFER, file))), entry: None }
    }

    /// Returns the attributes and the content of the file with this path and size, if the layer has
    /// it. Calls must be in ascending order of the paths, compared by component.
    pub fn file(&mut self, path: &Path, size: u64) -> Option<(Xattrs, Vec<u8>)> {
        loop {
            let Some((found, _)) = &self.entry else {
                self.entry = self.next();
                self.entry.as_ref()?;
                continue;
            };
            match found.as_path().cmp(path) {
                std::cmp::Ordering::Less => self.entry = None,
                std::cmp::Ordering::Equal => break,
                std::cmp::Ordering::Greater => return None,
            }
        }
        let (_, entry) = self.entry.take()?;
        if entry.kind != EntryKind::File || entry.size != size || entry.sparse.is_some() {
            return None;
        }
        let mut content = vec![0; size as usize];
        let mut filled = 0;
        while filled < content.len() {
            match self.reader.as_mut()?.read_content(&mut content[filled..]) {
                Ok(n) if n > 0 => filled += n,
                // On any failure the caller reads the file from its source.
                _ => {
                    self.reader = None;
                    return None;
                }
            }
        }
        Some((entry.xattrs, content))
    }

    fn next(&mut self) -> Option<(PathBuf, TarEntry)> {
        let reader = self.reader.as_mut()?;
        let entry = reader.pass_over().and_then(|()| reader.next_entry()).ok().flatten();
        let found = entry.and_then(|entry| Some((entry.subject()?, entry)));
        if found.is_none() {
            self.reader = None;
        }
        found
    }
}
