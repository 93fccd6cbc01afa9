//! An earlier layer of mostly the same files: what has not changed since is read from there, in one go, and not file by file from
//! where it lies.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use rbuild_linux::Xattrs;

use crate::entry::{EntryKind, TarEntry};
use crate::reader::TarReader;

/// Goes through an uncompressed layer that was written here, beside a walk in the same order.
pub(crate) struct EarlierLayer {
    /// None when it has nothing more to say.
    reader: Option<TarReader<BufReader<File>>>,
    /// The entry that was read last, and the path that it is about.
    entry: Option<(PathBuf, TarEntry)>,
}

/// Bytes that are read at a time.
const BUFFER: usize = 256 << 10;

impl EarlierLayer {
    pub fn new(file: File) -> EarlierLayer {
        EarlierLayer { reader: Some(TarReader::new(BufReader::with_capacity(BUFFER, file))), entry: None }
    }

    /// The attributes and the content of a file of that path and size, if the layer has it. Each path comes after the one that
    /// was asked for before, by the parts of both.
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
                // What cannot be read here is read where it lies.
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
