use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use rbuild_layer::marks_opaque;
use rbuild_linux::{Kind, Result, RootDir, Stat};

use crate::layout::Store;
use crate::trees::TreeId;

/// Trees on each other, looked into without mounting them.
pub(crate) struct Pile {
    /// The highest first.
    trees: Vec<RootDir>,
}

/// Something in a pile: the directory of the tree that shows it, its name there, and what it is.
pub(crate) struct Found {
    pub dir: RootDir,
    pub name: OsString,
    pub stat: Stat,
}

/// Links on the way to a path, as the kernel counts them.
const MOST_LINKS: usize = 40;

impl Pile {
    /// Of trees that are given the lowest first.
    pub(crate) fn new(trees: impl DoubleEndedIterator<Item = RootDir>) -> Pile {
        Pile { trees: trees.rev().collect() }
    }

    /// What a path (relative, clean, not the root) is; no link is followed.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<Found>> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let mut dirs = self.trees.iter().map(RootDir::try_clone).collect::<Result<Vec<_>>>()?;
        for part in above {
            dirs = look(&dirs, part)?.1;
        }
        Ok(look(&dirs, name)?.0)
    }

    /// The path with every link in it replaced, its last part too; relative. What does not exist stays as it is.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let parts = |path: &Path| -> Vec<OsString> {
            let parts = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
            parts.map(|c| c.as_os_str().to_os_string()).rev().collect()
        };
        let mut done = PathBuf::new();
        let mut todo = parts(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(&part);
            let Some(Found { dir, name, .. }) = self.find(&done)?.filter(|f| f.stat.kind == Kind::Symlink) else {
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
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

impl Store {
    /// The content of a regular file in trees that lie on each other (the lowest first), links followed inside them; `None`
    /// if it is not there, or larger than `limit`.
    pub fn read_in_trees(&self, trees: &[TreeId], path: &Path, limit: u64) -> crate::Result<Option<Vec<u8>>> {
        let open = trees.iter().map(|tree| self.tree(tree)).collect::<crate::Result<Vec<_>>>()?;
        let pile = Pile::new(open.into_iter());
        let found = pile.find(&pile.resolve(path)?)?.filter(|f| f.stat.kind == Kind::File && f.stat.size <= limit);
        Ok(found.map(|f| f.dir.read(&f.name, limit)).transpose()?)
    }
}

/// What a name is in directories that lie on each other, the highest first; and what it is as a directory.
fn look(dirs: &[RootDir], name: &OsStr) -> Result<(Option<Found>, Vec<RootDir>)> {
    let (mut found, mut below) = (None, Vec::new());
    for dir in dirs {
        let stat = match dir.stat_name(name) {
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        if dir.is_whiteout(name, &stat)? || (stat.kind != Kind::Dir && found.is_some()) {
            break;
        }
        let is_dir = stat.kind == Kind::Dir;
        if found.is_none() {
            found = Some(Found { dir: dir.try_clone()?, name: name.to_os_string(), stat });
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
