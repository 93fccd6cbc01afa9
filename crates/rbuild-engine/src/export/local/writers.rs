//! Threads that write files while the walk goes on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use rbuild_linux::{AtomicFile, RootDir, Stat, copy_file};

use super::errors::{clear_directory, fail};
use crate::error::Result;

/// Number of files that the walking thread writes itself before threads are started.
const FEW: usize = 64;
/// Number of files and of bytes per group, and number of groups that may be queued.
const GROUP: usize = 100;
const GROUP_BYTES: u64 = 4 << 20;
const WAITING: usize = 16;
const MOST_THREADS: usize = 8;

/// Files to be copied from one directory to another.
pub(super) struct Group {
    pub from: RootDir,
    pub to: RootDir,
    /// Path of the directory, relative to the output directory.
    pub path: PathBuf,
    pub files: Vec<(OsString, Stat)>,
    bytes: u64,
}

impl Group {
    pub(super) fn new(from: &RootDir, to: &RootDir, path: &Path) -> Result<Group> {
        let open = |dir: &RootDir| dir.try_clone().map_err(fail(path));
        Ok(Group { from: open(from)?, to: open(to)?, path: path.to_path_buf(), files: Vec::new(), bytes: 0 })
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

/// State shared by the threads.
#[derive(Default)]
pub(super) struct Work {
    groups: Mutex<Option<Receiver<Group>>>,
    failed: AtomicBool,
    failure: Mutex<Option<crate::BuildError>>,
}

impl Work {
    fn run(&self) {
        // A thread waits for a group while it holds the lock; the others wait for the lock and get
        // the following groups.
        let next = || self.groups.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.recv().ok();
        while let Some(group) = next() {
            if self.failed.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(e) = group.write() {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                self.failed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Returns the first error.
    pub(super) fn outcome(self) -> Result<()> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// The sending end of the threads' queue. The threads are started when there is enough to do, and
/// end when this is dropped.
pub(super) struct LocalWriters<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    work: &'e Work,
    sender: Option<SyncSender<Group>>,
    count: usize,
}

impl<'s, 'e> LocalWriters<'s, 'e> {
    pub(super) fn new(scope: &'s Scope<'s, 'e>, work: &'e Work) -> LocalWriters<'s, 'e> {
        LocalWriters { scope, work, sender: None, count: 0 }
    }

    /// Writes the files of a group, now or later. An error on another thread is returned by
    /// [`Work::outcome`]; groups after it are not written.
    pub(super) fn give(&mut self, group: Group) -> Result<()> {
        self.count += group.files.len();
        if self.count <= FEW && !group.is_full() {
            return group.write();
        }
        let sender = self.sender.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel(WAITING);
            *self.work.groups.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
            (0..threads).for_each(|_| drop(self.scope.spawn(|| self.work.run())));
            sender
        });
        // The receiver is in `work`, which outlives this.
        let _ = sender.send(group);
        Ok(())
    }

    pub(super) fn has_failed(&self) -> bool {
        self.work.failed.load(Ordering::Relaxed)
    }
}
