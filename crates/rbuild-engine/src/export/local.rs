//! Export of a file system as plain files of the caller. It is merged into an existing directory;
//! each file is written completely or not at all.
//!
//! A directory that does not exist in the output is filled under a temporary name and renamed once
//! everything is written, so its files need no temporary names.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_linux::{FileKind, Inode, RootDir, Stat, Timestamp};
use rbuild_sandbox::Cancel;
use rbuild_store::{MergedDir, MergedEntry, MergedPath, MergedTree};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;

mod errors;
mod staged_dirs;
mod writers;

use errors::{Obstacle, clear_directory, fail, has_directory, obstacle};
use staged_dirs::StagedDirs;
use writers::{ExportGroup, ExportQueue, LocalWriters, OutputDir};

/// Copies everything in `tree` into `dest`. Modes, symbolic and hard links and times are kept (with
/// `epoch`, all files get that time); owners are not. Devices are omitted.
///
/// Returns the number of entries that were written, without directories. `moved` counts the bytes
/// of the files that are written.
///
/// Stops when `stop` is canceled. Without `stop`, the caller may be killed at any time, and
/// directories with temporary names would remain. In that case each file gets its name as soon as
/// it is complete.
pub fn export(
    tree: &MergedTree,
    dest: &RootDir,
    epoch: Option<i64>,
    stop: Option<&Cancel>,
    moved: &AtomicU64,
) -> Result<u64> {
    let groups = ExportQueue::default();
    let mut staged = stop.map(|_| StagedDirs::new(dest));
    let written = std::thread::scope(|scope| {
        let mut export = LocalExport {
            dest,
            stop,
            time: epoch.map(|sec| Timestamp { sec, nsec: 0 }),
            staged: staged.as_mut(),
            writers: LocalWriters::new(scope, &groups),
            deferred: DeferredWork::default(),
            count: 0,
            moved,
        };
        export.walk(tree)?;
        Ok::<_, BuildError>((export.deferred, export.count))
    });
    groups.outcome()?;
    let (deferred, count) = written?;
    deferred.link(dest)?;
    staged.map_or(Ok(()), StagedDirs::publish)?;
    deferred.set_directories(dest)?;
    Ok(count)
}

/// Removes from `dest` all entries that the result does not contain, and those that are a directory
/// either only in `dest` or only in the result.
pub fn remove_others(tree: &MergedTree, dest: &RootDir) -> Result<()> {
    let mut stack = vec![tree.top()];
    while let Some(at) = stack.pop() {
        let theirs = tree.open(at).map_err(unreadable)?;
        let path = theirs.path();
        let entries = theirs.entries().map_err(unreadable)?;
        let wanted: BTreeMap<&OsStr, &MergedEntry> = entries.iter().map(|entry| (&*entry.name, entry)).collect();
        let ours = dest.sub(path).map_err(fail(path))?;
        for entry in ours.entries().map_err(fail(path))? {
            let below = path.join(&entry.name);
            let is_dir = |stat: &Stat| stat.kind == FileKind::Dir;
            let found = ours.stat_name(&entry.name).map_err(fail(&below))?;
            match wanted.get(&*entry.name) {
                Some(wanted) if is_dir(&wanted.stat) && is_dir(&found) => stack.push(theirs.below(wanted)),
                Some(wanted) if is_dir(&wanted.stat) == is_dir(&found) => {}
                _ => ours.remove_all(&entry.name).map_err(fail(&below))?,
            }
        }
    }
    Ok(())
}

fn unreadable(source: rbuild_linux::Error) -> BuildError {
    BuildError::Kernel { context: ErrorContext::Result.into(), source }
}

/// Walks the result, creates directories and passes files to the writers.
struct LocalExport<'a, 'd, 's, 'e> {
    dest: &'d RootDir,
    stop: Option<&'a Cancel>,
    /// Modification time of all entries, if it is fixed.
    time: Option<Timestamp>,
    staged: Option<&'a mut StagedDirs<'d>>,
    writers: LocalWriters<'s, 'e>,
    deferred: DeferredWork,
    /// Number of entries, without directories and devices.
    count: u64,
    moved: &'a AtomicU64,
}

/// A directory to export.
struct PendingDir {
    from: MergedPath,
    /// Path in the output during the export; directories may have temporary names.
    place: PathBuf,
    /// True if this export created it; its entries then need no temporary names.
    is_new: bool,
}

impl LocalExport<'_, '_, '_, '_> {
    /// Passes all files to the writers, and collects the work that must follow. Returns early if a
    /// writer failed.
    fn walk(&mut self, tree: &MergedTree) -> Result<()> {
        let mut pending = vec![PendingDir { from: tree.top(), place: PathBuf::new(), is_new: false }];
        while let Some(PendingDir { from, place, is_new }) = pending.pop() {
            let from = Arc::new(tree.open(from).map_err(unreadable)?);
            let dir = self.dest.sub(&place).map_err(fail(from.path()))?;
            let to = Arc::new(OutputDir { dir, place, is_new, stop: self.stop.cloned() });
            let mut group = ExportGroup::new(&from, &to);
            for mut entry in from.entries().map_err(unreadable)? {
                entry.stat.mtime = self.time.unwrap_or(entry.stat.mtime);
                match entry.stat.kind {
                    FileKind::Dir => pending.push(self.directory(&from, &to, &entry)?),
                    FileKind::File if self.is_link(&from, &to, &entry) => self.count += 1,
                    FileKind::File => {
                        self.count += 1;
                        group.add(entry);
                    }
                    _ => self.count += u64::from(special_file(&from, &to, &entry)?),
                }
                if group.is_full() {
                    let full = std::mem::replace(&mut group, ExportGroup::new(&from, &to));
                    if self.write(full)?.is_break() {
                        return Ok(());
                    }
                }
            }
            if self.write(group)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Passes a group to the writers. Breaks if one of them failed; [`ExportQueue::outcome`]
    /// returns its error.
    fn write(&mut self, group: ExportGroup) -> Result<ControlFlow<()>> {
        if self.stop.is_some_and(Cancel::is_canceled) {
            return Err(BuildError::Canceled);
        }
        let bytes = group.bytes();
        self.writers.push(group)?;
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        Ok(if self.writers.has_failed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn directory(&mut self, from: &MergedDir, to: &OutputDir, entry: &MergedEntry) -> Result<PendingDir> {
        let (name, path) = (&*entry.name, from.path().join(&entry.name));
        let create = |name: &OsStr| to.dir.create_dir(name, 0o755);
        let below = |name: &Path, is_new| PendingDir { from: from.below(entry), place: to.place.join(name), is_new };
        let made = match &mut self.staged {
            _ if to.is_new => create(name).map(|()| below(name.as_ref(), true)).map_err(fail(&path))?,
            // A file that blocks the path is replaced once everything is written.
            Some(_) if obstacle(&to.dir, &path, name)? == Obstacle::Directory => below(name.as_ref(), false),
            Some(staged) => {
                let temp = staged.create(to, &path).map_err(fail(&path))?;
                below(&temp, true)
            }
            None => match create(name) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    if !has_directory(&to.dir, &path, name)? {
                        create(name).map_err(fail(&path))?;
                    }
                    below(name.as_ref(), false)
                }
                other => other.map(|()| below(name.as_ref(), false)).map_err(fail(&path))?,
            },
        };
        self.deferred.dirs.push((path, entry.stat.mode, entry.stat.mtime));
        Ok(made)
    }

    /// Returns true if the file is another name of an exported file, and records the link.
    fn is_link(&mut self, from: &MergedDir, to: &OutputDir, entry: &MergedEntry) -> bool {
        if entry.stat.nlink < 2 {
            return false;
        }
        let place = to.place.join(&entry.name);
        match self.deferred.firsts.get(&entry.stat.inode()) {
            Some(first) => {
                let (path, first) = (from.path().join(&entry.name), first.clone());
                self.deferred.links.push(OutputLink { path, place, first });
                true
            }
            None => {
                self.deferred.firsts.insert(entry.stat.inode(), place);
                false
            }
        }
    }
}

/// Writes an entry that is neither a directory nor a regular file. Returns false for devices and
/// sockets, which are omitted.
fn special_file(from: &MergedDir, to: &OutputDir, entry: &MergedEntry) -> Result<bool> {
    let (name, stat, path) = (&*entry.name, &entry.stat, from.path().join(&entry.name));
    let put = |make: &dyn Fn(&RootDir, &OsStr) -> rbuild_linux::Result<()>| {
        if to.is_new { make(&to.dir, name).map_err(fail(&path)) } else { replace(&to.dir, &path, name, make) }
    };
    match stat.kind {
        FileKind::Symlink => {
            let target = from.holder(entry).read_link(name).map_err(fail(&path))?;
            put(&|dir, name| dir.create_symlink(&target, name))?;
            to.dir.set_mtime(name, stat.mtime).map_err(fail(&path))?;
            Ok(true)
        }
        FileKind::Fifo => {
            put(&|dir, name| dir.create_node(name, FileKind::Fifo, stat.mode, (0, 0)))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Another name of an exported file.
struct OutputLink {
    path: PathBuf,
    /// Path in the output during the export, and the path of the file's first name.
    place: PathBuf,
    first: PathBuf,
}

/// Work that is done after all files have been written.
#[derive(Default)]
struct DeferredWork {
    /// The first place of each file that has several hard links.
    firsts: HashMap<Inode, PathBuf>,
    links: Vec<OutputLink>,
    /// Directories with their modes and times; each before those below it.
    dirs: Vec<(PathBuf, u32, Timestamp)>,
}

impl DeferredWork {
    fn link(&self, dest: &RootDir) -> Result<()> {
        for OutputLink { path, place, first } in &self.links {
            let (first_dir, first_name) = dest.parent(first).map_err(fail(path))?;
            let (dir, name) = dest.parent(place).map_err(fail(path))?;
            replace(&dir, path, &name, |dir, temp| dir.hard_link(&first_dir, &first_name, temp))?;
        }
        Ok(())
    }

    /// Sets the modes and times of all directories. This is done last, because creating an entry
    /// changes the time, and a mode may forbid it.
    fn set_directories(&self, dest: &RootDir) -> Result<()> {
        let mut open: Option<(&Path, RootDir)> = None;
        for (path, mode, mtime) in self.dirs.iter().rev() {
            let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
            let dir = match open.take().filter(|(known, _)| *known == parent) {
                Some((_, dir)) => dir,
                None => dest.sub(parent).map_err(fail(path))?,
            };
            dir.chmod(name, *mode).map_err(fail(path))?;
            dir.set_mtime(name, *mtime).map_err(fail(path))?;
            open = Some((parent, dir));
        }
        Ok(())
    }
}

/// Creates an entry under a temporary name and renames it into place.
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

#[cfg(test)]
mod tests;
