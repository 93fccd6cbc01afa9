//! Path lookup in a stack of trees without mounting them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_layer::marks_opaque;
use rbuild_linux::{FileKind, MAX_SYMLINKS, Result, RootDir, Stat};
use rbuild_paths::unresolved;

use crate::store::Store;
use crate::trees::id::TreeId;

/// A stack of trees.
pub(crate) struct UnionView {
    /// The trees, highest first.
    trees: Vec<RootDir>,
}

/// An entry of the stack: the directory of the tree that provides it, its name there, and its
/// status.
pub(crate) struct FoundEntry {
    pub dir: RootDir,
    pub name: OsString,
    pub stat: Stat,
}

impl UnionView {
    /// Creates a stack of trees given lowest first.
    pub(crate) fn new(trees: impl DoubleEndedIterator<Item = RootDir>) -> UnionView {
        UnionView { trees: trees.rev().collect() }
    }

    /// Returns the entry at a path (relative, normalized, not the root) without following symbolic
    /// links.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<FoundEntry>> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let mut merged = None;
        for part in above {
            merged = Some(look(merged.as_deref().unwrap_or(&self.trees), part)?.1);
        }
        Ok(look(merged.as_deref().unwrap_or(&self.trees), name)?.0)
    }

    /// Returns the path with all symbolic links resolved, including the last component; relative.
    /// Components that do not exist are kept.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let parts = |path: &Path| -> Vec<OsString> { unresolved(path).rev().map(OsString::from).collect() };
        let mut done = PathBuf::new();
        let mut todo = parts(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(&part);
            let Some(FoundEntry { dir, name, .. }) = self.find(&done)?.filter(|f| f.stat.kind == FileKind::Symlink)
            else {
                continue;
            };
            links += 1;
            if links > MAX_SYMLINKS {
                return Ok(path.to_path_buf());
            }
            let target = PathBuf::from(dir.read_link(&name)?);
            done.pop();
            if target.is_absolute() {
                done.clear();
            }
            todo.extend(parts(&target));
        }
        Ok(done)
    }
}

/// Stacks of trees that are images, or parts of them.
#[derive(Clone, Copy)]
pub struct ImageTrees<'s> {
    pub(crate) store: &'s Store,
}

impl ImageTrees<'_> {
    /// Returns the content of a regular file in a stack of trees (lowest first), following symbolic
    /// links inside it. Returns `None` if the file does not exist or is larger than `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be read.
    pub fn read_in_trees(&self, trees: &[TreeId], path: &Path, limit: u64) -> crate::Result<Option<Vec<u8>>> {
        let open = trees.iter().map(|tree| self.store.trees().tree(tree)).collect::<crate::Result<Vec<_>>>()?;
        let view = UnionView::new(open.into_iter());
        let found = view.find(&view.resolve(path)?)?.filter(|f| f.stat.kind == FileKind::File && f.stat.size <= limit);
        Ok(found.map(|f| f.dir.read(&f.name, limit)).transpose()?)
    }
}

/// Looks up a name in stacked directories, highest first. Returns the entry, and the directories
/// that are merged below it.
fn look(dirs: &[RootDir], name: &OsStr) -> Result<(Option<FoundEntry>, Vec<RootDir>)> {
    let (mut found, mut below) = (None, Vec::new());
    for dir in dirs {
        let stat = match dir.stat_name(name) {
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        if dir.is_whiteout(name, &stat)? || (stat.kind != FileKind::Dir && found.is_some()) {
            break;
        }
        let is_dir = stat.kind == FileKind::Dir;
        if found.is_none() {
            found = Some(FoundEntry { dir: dir.try_clone()?, name: name.to_os_string(), stat });
        }
        if !is_dir {
            break;
        }
        let sub = dir.sub(name)?;
        let hides = marks_opaque(&sub.xattrs(OsStr::new(""))?);
        below.push(sub);
        if hides {
            break;
        }
    }
    Ok((found, below))
}
