//! Threads that write files while the walk goes on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread::Scope;

use rbuild_linux::parallel::{Queue, Workers};
use rbuild_linux::{AtomicFile, RootDir, Stat, copy_file};

use crate::error::{BuildError, Result};
use crate::export::local::errors::{clear_directory, fail};

/// Number of files that the walking thread writes itself before threads are started.
const FEW: usize = 64;
/// Number of files and of bytes per group, and number of groups that may be queued.
const GROUP: usize = 100;
const GROUP_BYTES: u64 = 4 << 20;
const WAITING: usize = 16;

/// Files to be copied from one directory to another.
pub(super) struct ExportGroup {
    pub from: RootDir,
    pub to: RootDir,
    /// Path of the directory, relative to the output directory.
    pub path: PathBuf,
    pub files: Vec<(OsString, Stat)>,
    bytes: u64,
}

impl ExportGroup {
    pub(super) fn new(from: &RootDir, to: &RootDir, path: &Path) -> Result<ExportGroup> {
        let open = |dir: &RootDir| dir.try_clone().map_err(fail(path));
        Ok(ExportGroup { from: open(from)?, to: open(to)?, path: path.to_path_buf(), files: Vec::new(), bytes: 0 })
    }

    pub(super) fn add(&mut self, name: OsString, stat: Stat) {
        self.bytes += stat.size;
        self.files.push((name, stat));
    }

    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= GROUP || self.bytes >= GROUP_BYTES
    }

    fn write(&self) -> Result<()> {
        for (name, stat) in &self.files {
            let path = self.path.join(name);
            let from = self.from.open_name(name).map_err(fail(&path))?;
            clear_directory(&self.to, &path, name)?;
            let mut to = AtomicFile::create(&self.to, 0o600).map_err(fail(&path))?;
            copy_file(&from, stat, to.file()).map_err(fail(&path))?;
            to.finish(stat.mode, stat.mtime, name).map_err(fail(&path))?;
        }
        Ok(())
    }
}

/// The groups that wait for a thread.
pub(super) type ExportQueue = Queue<ExportGroup, BuildError>;

/// Writes groups: a few files at once, and more on separate threads.
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
    pub(super) fn give(&mut self, group: ExportGroup) -> Result<()> {
        self.count += group.files.len();
        if self.count <= FEW && !group.is_full() {
            return group.write();
        }
        self.workers.give(group);
        Ok(())
    }

    pub(super) fn has_failed(&self) -> bool {
        self.workers.has_failed()
    }
}
