//! Entries of a tar archive.

use std::ffi::OsString;

use rbuild_linux::{Timestamp, Xattrs};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Dir,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry's header, long names and PAX records applied.
#[derive(Debug, Clone)]
pub struct TarEntry {
    /// As written, except that it is never empty.
    pub path: OsString,
    pub kind: EntryKind,
    /// `0o7777` at most.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Timestamp,
    /// Bytes of content that follow.
    pub size: u64,
    pub link: OsString,
    pub rdev: (u32, u32),
    pub xattrs: Xattrs,
    /// Where the content's pieces go in a file of that whole size, if it has holes: in order, without overlap.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
}

impl TarEntry {
    /// Bytes of the file with its holes.
    pub(crate) fn whole_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |(_, whole)| *whole)
    }
}
