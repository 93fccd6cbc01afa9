//! Threads that write files during the directory walk.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Scope;

use rbuild_linux::parallel::{Queue, Workers};
use rbuild_linux::{AtomicFile, RootDir, copy_file_while, set_file_mode_and_time};
use rbuild_sandbox::Cancel;
use rbuild_store::{MergedDir, MergedEntry};

use crate::error::{BuildError, Result};
use crate::export::local::errors::{clear_directory, fail};

/// Number of files that the walking thread writes itself before threads are started.
const FEW: usize = 64;
/// Number of files and of bytes per group, and number of groups that may be queued.
const GROUP: usize = 100;
const GROUP_BYTES: u64 = 4 << 20;
const WAITING: usize = 16;

/// An open directory of the output.
pub(super) struct OutputDir {
    pub dir: RootDir,
    /// Path in the output during the export; directories may have temporary names.
    pub place: PathBuf,
    /// True if this export created it. Its files need no temporary names, because no other program
    /// uses the directory yet.
    pub is_new: bool,
    pub stop: Option<Cancel>,
}

/// Files to be copied from one directory to another.
pub(super) struct ExportGroup {
    from: Arc<MergedDir>,
    to: Arc<OutputDir>,
    files: Vec<MergedEntry>,
    bytes: u64,
}

impl ExportGroup {
    pub(super) fn new(from: &Arc<MergedDir>, to: &Arc<OutputDir>) -> ExportGroup {
        ExportGroup { from: from.clone(), to: to.clone(), files: Vec::new(), bytes: 0 }
    }

    pub(super) fn add(&mut self, file: MergedEntry) {
        self.bytes += file.stat.size;
        self.files.push(file);
    }

    /// Returns the size of the files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= GROUP || self.bytes >= GROUP_BYTES
    }

    fn write(&self) -> Result<()> {
        for file in &self.files {
            let path = || self.from.path().join(&file.name);
            if !self.to.is_new {
                clear_directory(&self.to.dir, &path(), &file.name)?;
            }
            if !self.write_file(file).map_err(|e| fail(&path())(e))? {
                return Err(BuildError::Canceled);
            }
        }
        Ok(())
    }

    /// Returns false if the export was canceled.
    fn write_file(&self, file: &MergedEntry) -> rbuild_linux::Result<bool> {
        let MergedEntry { name, stat, .. } = file;
        let goes_on = || !self.to.stop.as_ref().is_some_and(Cancel::is_canceled);
        let from = self.from.holder(file).open_name(name)?;
        if self.to.is_new {
            let to = self.to.dir.create_file(name, 0o600)?;
            let copied = copy_file_while(&from, stat, &to, &goes_on)?;
            set_file_mode_and_time(&to, stat.mode, stat.mtime)?;
            return Ok(copied.is_some());
        }
        let mut to = AtomicFile::create(&self.to.dir, 0o600)?;
        match copy_file_while(&from, stat, to.file(), &goes_on)? {
            Some(_) => to.finish(stat.mode, stat.mtime, name).map(|()| true),
            None => Ok(false),
        }
    }
}

/// The groups that wait for a thread.
pub(super) type ExportQueue = Queue<ExportGroup, BuildError>;

/// Writes groups: a few files on the calling thread, and more on separate threads.
pub(super) struct LocalWriters<'s, 'e> {
    workers: Workers<'s, 'e, ExportGroup, BuildError, fn(ExportGroup) -> Result<()>>,
    count: usize,
}

/// The work of a thread.
const WRITE: fn(ExportGroup) -> Result<()> = |group| group.write();

impl<'s, 'e> LocalWriters<'s, 'e> {
    pub(super) fn new(scope: &'s Scope<'s, 'e>, groups: &'e ExportQueue) -> LocalWriters<'s, 'e> {
        LocalWriters { workers: Workers::new(scope, groups, WAITING, &WRITE), count: 0 }
    }

    /// Writes the files of a group, now or later. An error on another thread is returned by
    /// [`Queue::outcome`]; groups after it are not written.
    pub(super) fn push(&mut self, group: ExportGroup) -> Result<()> {
        self.count += group.files.len();
        if self.count <= FEW && !group.is_full() {
            return group.write();
        }
        self.workers.push(group);
        Ok(())
    }

    pub(super) fn has_failed(&self) -> bool {
        self.workers.has_failed()
    }
}
