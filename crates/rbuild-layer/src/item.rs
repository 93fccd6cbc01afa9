//! Archive entries with their content, as produced by a walk of a tree.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use rbuild_linux::{FileStamp, file_stat, quoted};

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};

/// An entry and its content.
pub(crate) enum PackItem {
    /// An entry without content.
    Header(TarEntry),
    /// An entry and its content in memory.
    Small(TarEntry, Vec<u8>),
    /// An entry whose content is read when it is written.
    Large(TarEntry, File, Option<Unchanged>),
    /// The end of a tree with files or attributes that no archive holds.
    Incomplete,
}

/// Files up to this size are read during the walk.
pub(crate) const SMALL: u64 = 64 << 10;

/// The stamp of a file when it was found, to detect later changes.
pub(crate) struct Unchanged {
    /// The stamp.
    pub stamp: FileStamp,
    /// Path of the file, for messages.
    pub path: PathBuf,
}

impl Unchanged {
    /// Fails if the file has changed.
    pub(crate) fn check(&self, file: &File) -> Result<()> {
        if self.stamp.is_unchanged(&FileStamp::of(&file_stat(file)?)) { Ok(()) } else { Err(self.broken()) }
    }

    /// Returns the error for a file that has changed.
    pub(crate) fn broken(&self) -> LayerError {
        LayerError::Changed(self.path.clone())
    }
}

/// Reads the content of a small file. Fails if the file is shorter than its entry's size.
pub(crate) fn read_small(mut file: &File, entry: &TarEntry) -> Result<Vec<u8>> {
    let mut content = vec![0; entry.size as usize];
    match file.read_exact(&mut content) {
        Ok(()) => Ok(content),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(entry_changed(entry)),
        Err(e) => Err(LayerError::io(format!("reading {}", quoted(&entry.path)))(e)),
    }
}

pub(crate) fn entry_changed(entry: &TarEntry) -> LayerError {
    LayerError::Changed(PathBuf::from(&entry.path))
}
