//! Directories that a copy writes to, and the hard links that it has made.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rbuild_linux::{Inode, RootDir, Stat};

/// A directory of the root that entries are copied into.
pub(super) struct DestDir {
    pub handle: RootDir,
    pub real: PathBuf,
    /// True if this copy created it. It then contains only files of this copy.
    pub made: bool,
}

/// The first copies of source files that have several hard links, as long as these copies exist.
#[derive(Default)]
pub(super) struct Links {
    first: HashMap<Inode, PathBuf>,
    at: HashMap<PathBuf, Inode>,
}

impl Links {
    /// Returns the first copy of the file with this metadata.
    pub fn first(&self, stat: &Stat) -> Option<&Path> {
        self.first.get(&stat.inode()).map(PathBuf::as_path)
    }

    /// Records the first copy of a file.
    pub fn put(&mut self, stat: &Stat, place: PathBuf) {
        self.first.insert(stat.inode(), place.clone());
        self.at.insert(place, stat.inode());
    }

    /// Forgets the copy at a path that is being replaced.
    pub fn cover(&mut self, place: &Path) {
        if let Some(inode) = self.at.remove(place) {
            self.first.remove(&inode);
        }
    }

    /// Forgets all copies.
    pub fn clear(&mut self) {
        *self = Links::default();
    }
}
