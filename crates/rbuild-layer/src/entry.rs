//! Entries of a tar archive.

use std::ffi::OsString;

use rbuild_linux::{Timestamp, Xattrs};

/// The type of an archive entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link to [`TarEntry::link`].
    Symlink,
    /// A hard link to the entry at [`TarEntry::link`].
    HardLink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO (named pipe).
    Fifo,
}

/// The header of one entry, with long names and PAX records applied.
#[derive(Debug, Clone)]
pub struct TarEntry {
    /// Path as written in the archive; never empty.
    pub path: OsString,
    /// Type of the entry.
    pub kind: EntryKind,
    /// Permission and set-id bits, at most `0o7777`.
    pub mode: u32,
    /// User ID; not every value is valid for the kernel.
    pub uid: u64,
    /// Group ID; not every value is valid for the kernel.
    pub gid: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Number of content bytes that follow the header.
    pub size: u64,
    /// Target of a symbolic or hard link, otherwise empty.
    pub link: OsString,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// For a sparse file, its data regions as offset and length, ordered and without overlap, and
    /// the size of the file including holes.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
}

impl TarEntry {
    /// Returns the size of the file including holes, in bytes.
    pub(crate) fn whole_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |(_, whole)| *whole)
    }
}
