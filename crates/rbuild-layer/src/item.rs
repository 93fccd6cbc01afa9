//! Entries with their content, on the way from a tree into an archive.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use rbuild_linux::{Stat, file_stat};

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};

/// An entry, and its content if it has any.
pub(crate) enum Item {
    Header(TarEntry),
    Small(TarEntry, Vec<u8>),
    /// Read when it is written.
    Large(TarEntry, File, Option<Unchanged>),
}

/// Files up to this size are read where they are found.
pub(crate) const SMALL: u64 = 64 << 10;

/// What a file was when it was found.
pub(crate) struct Unchanged {
    pub stat: Stat,
    pub path: PathBuf,
}

impl Unchanged {
    /// An error if it is something else now. A file that was removed or replaced has another time of change.
    pub(crate) fn check(&self, file: &File) -> Result<()> {
        let now = file_stat(file)?;
        let told = |stat: &Stat| (stat.size, stat.mtime, stat.ctime);
        match told(&now) == told(&self.stat) {
            true => Ok(()),
            false => Err(self.broken()),
        }
    }

    pub(crate) fn broken(&self) -> LayerError {
        LayerError::Changed(self.path.clone())
    }
}

/// What a small file holds, which has to be as much as its entry says.
pub(crate) fn read_small(mut file: &File, entry: &TarEntry) -> Result<Vec<u8>> {
    let mut content = vec![0; entry.size as usize];
    match file.read_exact(&mut content) {
        Ok(()) => Ok(content),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(entry_changed(entry)),
        Err(e) => Err(LayerError::io(format!("reading {:?}", entry.path))(e)),
    }
}

pub(crate) fn entry_changed(entry: &TarEntry) -> LayerError {
    LayerError::Entry {
        name: entry.path.to_string_lossy().into_owned(),
        reason: "became shorter while it was read".into(),
    }
}
