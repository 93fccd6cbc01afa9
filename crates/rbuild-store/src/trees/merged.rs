//! Stacks of trees, read as one tree without mounting them.
//!
//! The files are opened in the trees that hold them. This saves the cost of an overlay, and the
//! kernel copies their content itself: an overlay counts as another file system, across which
//! neither copy_file_range(2) nor reflinks work.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rbuild_layer::marks_opaque;
use rbuild_linux::{DirEntry, Error, FileKind, MAX_DEPTH, Result, RootDir, Stat};

use crate::store::Store;
use crate::trees::id::TreeId;
use crate::trees::stack::distinct;

/// Maximum number of trees. All of them are open, and so are the directories that are merged in
/// each directory in use.
const MAX_TREES: usize = 32;

/// The content of a stack of trees.
pub struct MergedTree {
    /// Highest first.
    trees: Vec<RootDir>,
}

/// A directory of a [`MergedTree`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergedPath {
    /// Path relative to the root of the stack.
    pub path: PathBuf,
    /// Positions of the trees whose directories are merged there, highest first.
    trees: Vec<usize>,
}

/// An open directory of a [`MergedTree`].
pub struct MergedDir {
    at: MergedPath,
    /// The directories that are merged, highest first, as `at.trees`.
    dirs: Vec<RootDir>,
}

/// An entry of a [`MergedDir`].
#[derive(Debug, Clone)]
pub struct MergedEntry {
    /// Name of the entry.
    pub name: OsString,
    /// Metadata of the entry.
    pub stat: Stat,
    /// Positions in [`MergedDir::dirs`] of the directories that have it; several if it is a
    /// directory. The first one provides the metadata.
    found: Vec<usize>,
}

impl From<RootDir> for MergedTree {
    /// Reads a directory as a stack of one tree.
    fn from(tree: RootDir) -> MergedTree {
        MergedTree { trees: vec![tree] }
    }
}

impl MergedTree {
    /// Stacks open trees, given lowest first.
    pub(crate) fn stacked(mut trees: Vec<RootDir>) -> MergedTree {
        trees.reverse();
        MergedTree { trees }
    }

    /// Returns the content of a stack of trees (lowest first), whose files are on disk; `None` if
    /// there are too many to keep them open.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be opened.
    pub fn of_trees(store: &Store, trees: &[TreeId]) -> crate::Result<Option<MergedTree>> {
        let trees = distinct(trees);
        if trees.len() > MAX_TREES {
            return Ok(None);
        }
        let open = trees.into_iter().map(|tree| store.trees().tree(tree));
        Ok(Some(MergedTree::stacked(open.collect::<crate::Result<_>>()?)))
    }

    /// Returns the root directory. Like an overlay, it ignores the opaque mark of root directories:
    /// stacks do not have trees below one that has it.
    pub fn top(&self) -> MergedPath {
        MergedPath { path: PathBuf::new(), trees: (0..self.trees.len()).collect() }
    }

    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be opened, or if it is more than [`MAX_DEPTH`] levels down.
    pub fn open(&self, at: MergedPath) -> Result<MergedDir> {
        if at.path.components().count() > MAX_DEPTH {
            let reason = format!("directories are nested more than {MAX_DEPTH} levels deep");
            return Err(Error::new("walking", &at.path, io::Error::other(reason)));
        }
        let mut dirs = Vec::with_capacity(at.trees.len());
        for (nth, tree) in at.trees.iter().enumerate() {
            let dir = self.trees[*tree].sub(&at.path)?;
            let is_lowest = nth + 1 == at.trees.len() || at.path.as_os_str().is_empty();
            let hides = !is_lowest && marks_opaque(&dir.xattrs(OsStr::new(""))?);
            dirs.push(dir);
            if hides {
                break;
            }
        }
        Ok(MergedDir { at, dirs })
    }
}

impl MergedDir {
    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.at.path
    }

    /// Returns the directory that holds an entry; of those that are merged, the highest.
    pub fn holder(&self, entry: &MergedEntry) -> &RootDir {
        &self.dirs[entry.found[0]]
    }

    /// Returns the place of an entry that is a directory.
    pub fn below(&self, entry: &MergedEntry) -> MergedPath {
        let trees = entry.found.iter().map(|dir| self.at.trees[*dir]).collect();
        MergedPath { path: self.at.path.join(&entry.name), trees }
    }

    /// Returns the entries, sorted bytewise by name. Whiteouts and the entries that they delete are
    /// left out.
    ///
    /// # Errors
    ///
    /// Fails if an entry cannot be read.
    pub fn entries(&self) -> Result<Vec<MergedEntry>> {
        let mut names: Vec<(DirEntry, usize)> = Vec::new();
        for (nth, dir) in self.dirs.iter().enumerate() {
            names.extend(dir.entries()?.into_iter().map(|entry| (entry, nth)));
        }
        if self.dirs.len() > 1 {
            // Stable: the highest directory stays first.
            names.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        }
        let mut names = names.into_iter().peekable();
        let mut entries = Vec::new();
        while let Some((entry, nth)) = names.next() {
            let mut lower = Vec::new();
            while let Some(same) = names.next_if(|(other, _)| other.name == entry.name) {
                lower.push(same);
            }
            entries.extend(self.merge(entry, nth, lower)?);
        }
        Ok(entries)
    }

    /// Merges an entry with those of the same name in lower directories. Returns `None` for a
    /// whiteout.
    fn merge(&self, entry: DirEntry, nth: usize, lower: Vec<(DirEntry, usize)>) -> Result<Option<MergedEntry>> {
        let stat = self.dirs[nth].stat_name(&entry.name)?;
        if self.dirs[nth].is_whiteout(&entry.name, &stat)? {
            return Ok(None);
        }
        let mut found = vec![nth];
        for (same, nth) in lower.into_iter().filter(|_| stat.kind == FileKind::Dir) {
            let kind = match same.kind {
                Some(kind) => kind,
                None => self.dirs[nth].stat_name(&same.name)?.kind,
            };
            // A file or a whiteout hides the directories below it.
            if kind != FileKind::Dir {
                break;
            }
            found.push(nth);
        }
        Ok(Some(MergedEntry { name: entry.name, stat, found }))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded, message_row};

    use super::*;

    #[test]
    fn the_depth_limit_is_worded_as_recorded() {
        let dir = Scratch::new();
        let tree = MergedTree::from(RootDir::open(&dir).unwrap());
        let path = std::iter::repeat_n("d", MAX_DEPTH + 1).collect();
        let e = tree.open(MergedPath { path, trees: vec![0] }).map(drop).unwrap_err();
        assert_recorded!("merged", message_row("too deep", &e, e.remedy()));
    }
}
