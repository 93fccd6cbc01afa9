//! Computes the diff between a merged directory and the trees that it was merged from, in the form
//! of an overlay upper directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_layer::{OPAQUE, ORIGIN, is_read_by_overlay, keep_in_tree};
use rbuild_linux::{DirStack, Error, FileKind, Result, RootDir, Stat, Timestamp, UidGid, Xattrs};

/// The identity of an entry before the changes.
#[derive(Debug, Clone, PartialEq)]
enum Mark {
    /// A file, symbolic link or node. `changed` is its ctime (statx(2), stx_ctime); it is omitted
    /// for hard-linked files, because linking changes it.
    Leaf { inode: u64, changed: Option<Timestamp> },
    /// A directory. A directory that was removed and recreated may reuse the inode number, so its
    /// birth time counts as well.
    Dir { inode: u64, made: Option<Timestamp>, meta: DirMeta },
}

impl Mark {
    /// Returns true if the entry is the marked one and, as far as the mark shows, unchanged. It
    /// must not be a directory.
    fn is_leaf(&self, stat: &Stat) -> bool {
        matches!(self, Mark::Leaf { inode, changed } if *inode == stat.ino && changed.is_none_or(|at| at == stat.ctime))
    }
}

#[derive(Debug, Clone, PartialEq)]
struct DirMeta {
    owner: UidGid,
    mode: u32,
    mtime: Timestamp,
    xattrs: Xattrs,
}

/// The entries of a directory.
type DirMarks = HashMap<OsString, Mark>;

/// A subdirectory, and its former entries if it existed before.
type Subdirectory = (OsString, Option<DirMarks>);

/// A record of a merged directory before work in it.
pub struct Baseline {
    /// Entries of each directory, by its path relative to the root.
    dirs: HashMap<PathBuf, DirMarks>,
    linked: bool,
}

fn meta(dir: &RootDir, stat: &Stat) -> Result<DirMeta> {
    let xattrs = dir.xattrs(OsStr::new(""))?.into_iter().filter(|(attr, _)| keep_in_tree(attr)).collect();
    Ok(DirMeta { owner: stat.owner(), mode: stat.mode, mtime: stat.mtime, xattrs })
}

impl Baseline {
    /// Records all entries below `root`. With `linked`, its files are hard links to files
    /// elsewhere, and changes of their content or metadata do not count as changes here.
    ///
    /// # Errors
    ///
    /// Fails if a directory cannot be read.
    pub fn of(root: &RootDir, linked: bool) -> Result<Baseline> {
        let mut before = Baseline { dirs: HashMap::new(), linked };
        each_directory(root, (), |dir, path, ()| before.note(dir, path))?;
        Ok(before)
    }

    /// Records the entries of one directory, and returns the names of its subdirectories.
    fn note(&mut self, dir: &RootDir, path: &Path) -> Result<Vec<(OsString, ())>> {
        let (mut marks, mut below) = (DirMarks::new(), Vec::new());
        for entry in dir.entries()? {
            let stat = dir.stat_name(&entry.name)?;
            let mark = if stat.kind == FileKind::Dir {
                let meta = meta(&dir.sub(&entry.name)?, &stat)?;
                below.push((entry.name.clone(), ()));
                Mark::Dir { inode: stat.ino, made: stat.btime, meta }
            } else {
                self.leaf(&stat)
            };
            marks.insert(entry.name, mark);
        }
        self.dirs.insert(path.to_path_buf(), marks);
        Ok(below)
    }

    fn leaf(&self, stat: &Stat) -> Mark {
        // Files that could not be linked are copies.
        let is_link = self.linked && stat.nlink > 1;
        Mark::Leaf { inode: stat.ino, changed: (!is_link).then_some(stat.ctime) }
    }

    /// Returns true if there was an entry at the path.
    pub fn contained(&self, path: &Path) -> bool {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return true };
        self.dirs.get(dir).is_some_and(|marks| marks.contains_key(name))
    }

    /// Accepts the current entry at the path as the original one if it is the same file. For use
    /// after another entry was temporarily put in its place, because moving the file away and back
    /// changes its ctime.
    pub fn accept_moved(&mut self, root: &RootDir, path: &Path) {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
        let Ok(stat) = root.stat(path) else { return };
        let now = self.leaf(&stat);
        if let Some(mark @ Mark::Leaf { .. }) = self.dirs.get_mut(dir).and_then(|marks| marks.get_mut(name))
            && matches!(mark, Mark::Leaf { inode, .. } if *inode == stat.ino)
        {
            *mark = now;
        }
    }

    /// Moves new and changed entries of `root` into the empty directory `tree`, in the form of an
    /// overlay upper directory: deletions become whiteouts, and parent directories of changes are
    /// created with their current metadata. `root` is unusable afterwards.
    ///
    /// # Errors
    ///
    /// Fails if an entry cannot be read, moved or created.
    pub fn changes(mut self, root: &RootDir, tree: &RootDir) -> Result<()> {
        let mut out = DiffOutput { tree, now: HashMap::new(), made: vec![PathBuf::new()] };
        out.now.insert(PathBuf::new(), meta(root, &root.stat_self()?)?);
        let marks = self.dirs.remove(Path::new(""));
        each_directory(root, marks, |dir, path, marks| self.changes_in(dir, path, marks, &mut out))?;
        out.finish()
    }

    /// Moves the changes in one directory, which had the entries `marks` before. Returns its
    /// subdirectories with their former entries.
    fn changes_in(
        &mut self,
        dir: &RootDir,
        path: &Path,
        marks: Option<DirMarks>,
        out: &mut DiffOutput<'_>,
    ) -> Result<Vec<Subdirectory>> {
        let (mut marks, mut dirs) = (marks.unwrap_or_default(), Vec::new());
        for entry in dir.entries()? {
            let stat = dir.stat_name(&entry.name)?;
            let old = marks.remove(&entry.name);
            if stat.kind != FileKind::Dir {
                if !old.is_some_and(|old| old.is_leaf(&stat)) {
                    refuse_whiteout(&stat, path, &entry.name)?;
                    let to = out.dir(path)?;
                    dir.rename(&entry.name, &to, &entry.name)?;
                    remove_overlay_attributes(&to, &entry.name)?;
                }
                continue;
            }
            let here = path.join(&entry.name);
            let now = meta(&dir.sub(&entry.name)?, &stat)?;
            out.now.insert(here.clone(), now.clone());
            let contained = match old {
                Some(Mark::Dir { inode, made, meta }) if inode == stat.ino && made == stat.btime => {
                    if meta != now {
                        out.dir(&here)?;
                    }
                    self.dirs.remove(&here)
                }
                other => {
                    let made = out.dir(&here)?;
                    if other.is_some() {
                        made.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
                    }
                    None
                }
            };
            dirs.push((entry.name, contained));
        }
        for gone in marks.into_keys() {
            let to = out.dir(path)?;
            to.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
            to.create_whiteout(&gone)?;
        }
        Ok(dirs)
    }
}

/// Calls `visit` for a directory and those below it, with the path of each and what is known about
/// it. `visit` returns the subdirectories, with what is known about them.
fn each_directory<T>(
    root: &RootDir,
    known: T,
    mut visit: impl FnMut(&RootDir, &Path, T) -> Result<Vec<(OsString, T)>>,
) -> Result<()> {
    let mut dirs = DirStack::new(root.try_clone()?);
    let mut path = PathBuf::new();
    // The subdirectories left to visit on each level.
    let mut levels = vec![visit(root, &path, known)?];
    while let Some(below) = levels.last_mut() {
        let Some((name, known)) = below.pop() else {
            levels.pop();
            path.pop();
            dirs.leave()?;
            continue;
        };
        path.push(&name);
        let below = visit(dirs.enter(&name)?, &path, known)?;
        levels.push(below);
    }
    Ok(())
}

/// Fails for a device 0:0 that a command has made: as a change, it would remove a file.
fn refuse_whiteout(stat: &Stat, dir: &Path, name: &OsStr) -> Result<()> {
    if !stat.is_whiteout() {
        return Ok(());
    }
    let problem = std::io::Error::other("it is a character device 0:0, which is a whiteout in a layer");
    Err(Error::new("mknodat", Path::new("/").join(dir).join(name), problem))
}

/// Removes attributes that an overlay would interpret from an entry that is not a directory.
fn remove_overlay_attributes(dir: &RootDir, name: &OsStr) -> Result<()> {
    for (attribute, _) in dir.xattrs(name)?.iter().filter(|(attribute, _)| is_read_by_overlay(attribute)) {
        dir.remove_xattr(name, attribute)?;
    }
    Ok(())
}

struct DiffOutput<'a> {
    tree: &'a RootDir,
    /// Metadata of each directory before anything was moved out of it.
    now: HashMap<PathBuf, DirMeta>,
    /// Directories created in the tree, whose metadata is set at the end.
    made: Vec<PathBuf>,
}

impl DiffOutput<'_> {
    /// Returns the directory of the tree at that path, creating it and its parents if necessary.
    fn dir(&mut self, path: &Path) -> Result<RootDir> {
        if let Ok(dir) = self.tree.sub(Path::new(".").join(path)) {
            return Ok(dir);
        }
        let made = &mut self.made;
        let dir = self.tree.create_dir_all(path, 0o700, None, |path| made.push(path.to_path_buf()))?;
        Ok(dir)
    }

    fn finish(mut self) -> Result<()> {
        // Children first, because filling a directory changes its time.
        self.made.sort_by(|a, b| b.cmp(a));
        for path in &self.made {
            let Some(DirMeta { owner, mode, mtime, xattrs }) = self.now.get(path) else { continue };
            let dir = self.tree.sub(Path::new(".").join(path))?;
            for (attr, value) in xattrs {
                dir.set_xattr(OsStr::new(""), attr, value)?;
            }
            dir.set_own_meta(*owner, *mode, *mtime)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, message_row};

    use super::*;

    #[test]
    fn a_device_like_a_whiteout_is_refused_as_recorded() {
        let file = RootDir::open("/").unwrap().stat_self().unwrap();
        let device = |rdev| Stat { kind: FileKind::CharDevice, rdev, ..file };
        let refuse = |stat: &Stat| refuse_whiteout(stat, Path::new("dev"), OsStr::new("x"));
        refuse(&device((1, 3))).unwrap();
        let e = refuse(&device((0, 0))).unwrap_err();
        assert_recorded!("whiteout-device", message_row("a device 0:0", &e, e.remedy()));
    }
}
