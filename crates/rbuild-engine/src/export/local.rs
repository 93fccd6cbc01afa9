//! Export of a file system as plain files of the caller. It is merged into an existing directory;
//! each file is written completely or not at all.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, Inode, RootDir, Stat, Timestamp};
use rbuild_source::{Owner, SourceError, SourceTree};

use crate::error::{BuildError, Result};

mod errors;
mod writers;

use errors::{clear_directory, fail, is_device};
use writers::{ExportGroup, ExportQueue, LocalWriters};

/// Copies everything in `view` into `dest`. Modes, symbolic and hard links and times are kept (with
/// `epoch`, all files get that time); owners are not. Devices are omitted.
pub fn export(view: &RootDir, dest: &RootDir, epoch: Option<i64>) -> Result<()> {
    let groups = ExportQueue::default();
    let writer = std::thread::scope(|scope| {
        let mut writer = LocalExport::new(dest, LocalWriters::new(scope, &groups));
        writer.walk(view, epoch.map(|sec| Timestamp { sec, nsec: 0 }))?;
        Ok::<_, BuildError>(writer.rest())
    });
    groups.outcome()?;
    writer?.finish()
}

/// Removes from `dest` all entries that the result does not have, or that are a directory in one
/// and not in the other.
pub fn remove_others(view: &RootDir, dest: &RootDir) -> Result<()> {
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let (theirs, ours) = (view.sub(&path).map_err(fail(&path))?, dest.sub(&path).map_err(fail(&path))?);
        for entry in ours.entries().map_err(fail(&path))? {
            let below = path.join(&entry.name);
            let is_dir = |stat: &Stat| stat.kind == FileKind::Dir;
            let wanted = theirs.stat_name(&entry.name).ok().filter(|stat| !stat.is_whiteout());
            let found = ours.stat_name(&entry.name).map_err(fail(&below))?;
            match wanted {
                Some(wanted) if is_dir(&wanted) && is_dir(&found) => stack.push(below),
                Some(wanted) if is_dir(&wanted) == is_dir(&found) => {}
                _ => ours.remove_all(&entry.name).map_err(fail(&below))?,
            }
        }
    }
    Ok(())
}

struct ExportError(BuildError);

impl From<SourceError> for ExportError {
    fn from(e: SourceError) -> ExportError {
        ExportError(match e {
            SourceError::Kernel(source) => BuildError::Kernel { what: "reading the result".into(), source },
            other => BuildError::other(format!("reading the result: {other}")),
        })
    }
}

impl From<BuildError> for ExportError {
    fn from(e: BuildError) -> ExportError {
        ExportError(e)
    }
}

/// Walks the result, creates directories and passes files to the writers.
struct LocalExport<'a, 's, 'e> {
    dest: &'a RootDir,
    writers: LocalWriters<'s, 'e>,
    group: Option<ExportGroup>,
    rest: Rest<'a>,
}

/// Work that is done after all files have been written.
struct Rest<'a> {
    dest: &'a RootDir,
    /// The first path of each file that has several hard links.
    firsts: HashMap<Inode, PathBuf>,
    /// The other paths of these files, each with the first one.
    links: Vec<(PathBuf, PathBuf)>,
    /// Directories with their modes and times.
    dirs: Vec<(PathBuf, u32, Timestamp)>,
}

impl<'a, 's, 'e> LocalExport<'a, 's, 'e> {
    fn new(dest: &'a RootDir, writers: LocalWriters<'s, 'e>) -> LocalExport<'a, 's, 'e> {
        let rest = Rest { dest, firsts: HashMap::new(), links: Vec::new(), dirs: Vec::new() };
        LocalExport { dest, writers, group: None, rest }
    }

    fn walk(&mut self, view: &RootDir, time: Option<Timestamp>) -> Result<()> {
        let tree = SourceTree { root: view, ignore: None, exclude: None, owner: Owner::AsIs, hashes: None };
        let mut open: (PathBuf, RootDir) = (PathBuf::new(), self.dest.try_clone().map_err(fail(Path::new("")))?);
        tree.walk::<ExportError>(Path::new(""), |source, path, stat| {
            let stat = Stat { mtime: time.unwrap_or(stat.mtime), ..*stat };
            let parent = path.parent().unwrap_or(Path::new(""));
            if open.0 != parent {
                open = (parent.to_path_buf(), self.dest.sub(parent).map_err(fail(parent))?);
            }
            self.entry(source, path, stat, &open.1).map_err(ExportError)
        })
        .map_err(|e| e.0)?;
        self.group.take().map_or(Ok(()), |group| self.writers.give(group))
    }

    fn rest(self) -> Rest<'a> {
        self.rest
    }

    fn entry(&mut self, source: &RootDir, path: &Path, stat: Stat, dir: &RootDir) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        match stat.kind {
            FileKind::Dir => {
                self.directory(path, name, dir)?;
                self.rest.dirs.push((path.to_path_buf(), stat.mode, stat.mtime));
                Ok(())
            }
            FileKind::File => self.file(source, path, stat, dir),
            FileKind::Symlink => {
                let target = source.read_link(name).map_err(fail(path))?;
                replace(dir, path, name, |dir, temp| dir.create_symlink(&target, temp))?;
                dir.set_mtime(name, stat.mtime).map_err(fail(path))
            }
            FileKind::Fifo => {
                replace(dir, path, name, |dir, temp| dir.create_node(temp, FileKind::Fifo, stat.mode, (0, 0)))
            }
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => Ok(()),
        }
    }

    fn directory(&self, path: &Path, name: &OsStr, dir: &RootDir) -> Result<()> {
        match dir.create_dir(name, 0o755) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let found = dir.stat_name(name).map_err(fail(path))?;
                match found.kind {
                    FileKind::Dir => return Ok(()),
                    FileKind::CharDevice | FileKind::BlockDevice => return Err(is_device(path)),
                    _ => {}
                }
                dir.remove_file(name).map_err(fail(path))?;
                dir.create_dir(name, 0o755).map_err(fail(path))
            }
            other => other.map_err(fail(path)),
        }
    }

    fn file(&mut self, source: &RootDir, path: &Path, stat: Stat, dir: &RootDir) -> Result<()> {
        if stat.nlink > 1 {
            if let Some(first) = self.rest.firsts.get(&stat.inode()) {
                self.rest.links.push((path.to_path_buf(), first.clone()));
                return Ok(());
            }
            self.rest.firsts.insert(stat.inode(), path.to_path_buf());
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.group.as_ref().is_some_and(|group| group.is_full() || group.path != parent) {
            self.group.take().map_or(Ok(()), |group| self.writers.give(group))?;
        }
        let mut group = match self.group.take() {
            Some(group) => group,
            None => ExportGroup::new(source, dir, parent)?,
        };
        group.add(path.file_name().unwrap_or_default().to_os_string(), stat);
        self.group = Some(group);
        // This error ends the walk. The caller returns the one that the writers recorded.
        if self.writers.has_failed() { Err(BuildError::AlreadyReported) } else { Ok(()) }
    }
}

impl Rest<'_> {
    fn finish(self) -> Result<()> {
        for (path, first) in &self.links {
            let (first_dir, first_name) = self.dest.parent(first).map_err(fail(path))?;
            let (dir, name) = self.dest.parent(path).map_err(fail(path))?;
            replace(&dir, path, &name, |dir, temp| dir.hard_link(&first_dir, &first_name, temp))?;
        }
        for (path, mode, mtime) in self.dirs.into_iter().rev() {
            let (dir, name) = self.dest.parent(&path).map_err(fail(&path))?;
            dir.chmod(&name, mode).map_err(fail(&path))?;
            dir.set_mtime(&name, mtime).map_err(fail(&path))?;
        }
        Ok(())
    }
}

/// Creates something under a temporary name and renames it into place.
pub(crate) fn replace(
    dir: &RootDir,
    path: &Path,
    name: &OsStr,
    make: impl FnOnce(&RootDir, &OsStr) -> rbuild_linux::Result<()>,
) -> Result<()> {
    clear_directory(dir, path, name)?;
    // Other builds may be writing to the same directory.
    let temp = &*rbuild_linux::temporary_name();
    make(dir, temp).map_err(fail(path))?;
    let renamed = dir.rename(temp, dir, name).map_err(fail(path));
    // Renaming a hard link over another one of the same file does nothing (rename(2)).
    let _ = dir.remove_file(temp);
    renamed
}
