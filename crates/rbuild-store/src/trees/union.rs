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
        Ok(self.follow(path)?.map_or_else(|| path.to_path_buf(), |levels| levels.into_iter().map(|l| l.name).collect()))
    }

    /// Resolves a path with all symbolic links. Returns a level for each component, or `None` if
    /// there are too many links.
    fn follow(&self, path: &Path) -> Result<Option<Vec<Level>>> {
        let parts = |path: &Path| -> Vec<OsString> { unresolved(path).rev().map(OsString::from).collect() };
        let mut levels: Vec<Level> = Vec::new();
        let mut todo = parts(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                levels.pop();
                continue;
            }
            let (entry, merged) = look(levels.last().map_or(&self.trees, |level| &level.merged), &name)?;
            let Some(link) = entry.as_ref().filter(|entry| entry.stat.kind == FileKind::Symlink) else {
                levels.push(Level { name, entry, merged });
                continue;
            };
            links += 1;
            if links > MAX_SYMLINKS {
                return Ok(None);
            }
            let target = PathBuf::from(link.dir.read_link(&link.name)?);
            if target.is_absolute() {
                levels.clear();
            }
            todo.extend(parts(&target));
        }
        Ok(Some(levels))
    }
}

/// A component of a resolved path.
struct Level {
    name: OsString,
    /// `None` if it does not exist.
    entry: Option<FoundEntry>,
    /// The directories of the trees that are merged in it.
    merged: Vec<RootDir>,
}

/// Stacks of trees that are images, or parts of them.
#[derive(Clone, Copy)]
pub struct ImageTrees<'s> {
    pub(crate) store: &'s Store,
}

impl ImageTrees<'_> {
    /// Opens a stack of trees (lowest first) to read files of it.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be opened.
    pub fn files(&self, trees: &[TreeId]) -> crate::Result<StackedFiles> {
        let open = trees.iter().map(|tree| self.store.trees().tree(tree)).collect::<crate::Result<Vec<_>>>()?;
        Ok(StackedFiles(UnionView::new(open.into_iter())))
    }
}

/// The files of a stack of trees.
pub struct StackedFiles(UnionView);

impl StackedFiles {
    /// Returns the content of a regular file, following symbolic links inside the stack. Returns
    /// `None` if the file does not exist or is larger than `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be read.
    pub fn read(&self, path: &Path, limit: u64) -> crate::Result<Option<Vec<u8>>> {
        let found = self.0.follow(path)?.and_then(|mut levels| levels.pop()).and_then(|level| level.entry);
        let found = found.filter(|f| f.stat.kind == FileKind::File && f.stat.size <= limit);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn files_are_read_through_links_of_all_trees() {
        let dir = Scratch::new();
        for (tree, path, text) in [("0", "etc/passwd", "low"), ("0", "usr/share/x", "x"), ("1", "etc/group", "g")] {
            let file = dir.join(tree).join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        std::fs::create_dir_all(dir.join("2/a/b")).unwrap();
        for (target, link) in
            [("etc", "0/conf"), ("/usr/../conf/passwd", "2/a/p"), ("../../etc", "2/a/b/up"), ("loop", "2/loop")]
        {
            symlink(target, dir.join(link)).unwrap();
        }
        let files = StackedFiles(UnionView::new((0..3).map(|tree| RootDir::open(dir.join(tree.to_string())).unwrap())));
        let table = [
            ("etc/passwd", Some("low")),
            ("/etc/group", Some("g")),
            ("conf/group", Some("g")),
            ("a/p", Some("low")),
            ("a/b/up/group", Some("g")),
            ("a/b/../p", Some("low")),
            ("../../etc/passwd", Some("low")),
            ("usr/share/x", None),
            ("etc/none/passwd", None),
            ("etc/passwd/x", None),
            ("etc", None),
            ("a/..", None),
            ("loop", None),
            ("loop/x", None),
        ];
        for (path, want) in table {
            let limit = if path.ends_with('x') { 0 } else { 100 };
            let read = files.read(Path::new(path), limit).unwrap();
            assert_eq!(read.as_deref(), want.map(str::as_bytes), "{path}");
        }
        for (path, want) in [("a/p", "etc/passwd"), ("a/b/up/new/x", "etc/new/x"), ("loop/x", "loop/x"), ("a/..", "")] {
            assert_eq!(files.0.resolve(Path::new(path)).unwrap(), Path::new(want), "{path}");
        }
    }
}
