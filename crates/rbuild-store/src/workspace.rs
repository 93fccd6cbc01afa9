//! Work in progress of a process.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rbuild_linux::parallel::{locked, lower_priority, start};
use rbuild_linux::{DirEntry, RootDir, Timestamp, described};

use crate::error::Result;
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::measure::tree_bytes;
use crate::modes;
use crate::old_downloads;
use crate::store::Store;

/// End of the names of locks, which begin with the name of the workspace.
const LOCK_SUFFIX: &str = ".lock";

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A process's private directory for work in progress. Its content is removed when it is dropped;
/// that of a killed process is removed by the next one that opens a workspace.
pub struct Workspace {
    tmp: RootDir,
    name: OsString,
    dir: RootDir,
    path: PathBuf,
    /// Directories with the merged content of trees, by the names of the trees.
    pub(crate) merged: Mutex<HashMap<String, PathBuf>>,
    remover: Mutex<Option<Remover>>,
    _lock: File,
}

/// A thread that removes directories of a workspace, one after the other.
struct Remover {
    names: Sender<OsString>,
    /// Set when the rest is removed with the workspace.
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Remover {
    fn start(dir: RootDir) -> rbuild_linux::Result<Remover> {
        let (names, removed) = channel::<OsString>();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = start(move || {
            // The next step begins at the same moment.
            lower_priority();
            for name in removed.iter().take_while(|_| !over.load(Ordering::Relaxed)) {
                let _ = dir.remove_all(&name);
            }
        })?;
        Ok(Remover { names, is_over, thread })
    }
}

impl Workspace {
    /// Creates a workspace, and removes those of killed processes, and the downloads that were
    /// interrupted more than a day ago.
    ///
    /// # Errors
    ///
    /// Fails if the directory or its lock cannot be created.
    pub fn open(store: &Store) -> Result<Workspace> {
        let (workspace, _) = Workspace::open_measuring(store, |_| 0)?;
        Ok(workspace)
    }

    /// Creates a workspace as [`Workspace::open`] does. Also returns the sum of what `measure`
    /// returns for the workspaces of killed processes, which are removed afterwards.
    pub(crate) fn open_measuring(store: &Store, measure: fn(&RootDir) -> u64) -> Result<(Workspace, u64)> {
        let tmp = store.dir("tmp")?;
        let swept = sweep(store, &tmp, measure)?;
        if swept.is_some()
            && let Some(alone) = ExclusiveLock::try_take(store)?
        {
            store.remove_unpublished()?;
            alone.end()?;
        }
        old_downloads::remove(store);
        // Trees are made in workspaces, and keep their inodes when they are renamed.
        tmp.mark_top_of_trees();
        let (name, lock) = locked_name(store)?;
        tmp.create_dir(OsStr::new(&name), modes::dir())?;
        let dir = tmp.sub(&name)?;
        let path = store.path().join("tmp").join(&name);
        let (merged, remover) = (Mutex::default(), Mutex::default());
        let workspace = Workspace { tmp, name: name.into(), dir, path, merged, remover, _lock: lock };
        Ok((workspace, swept.unwrap_or_default()))
    }

    /// Returns its directory.
    pub fn dir(&self) -> &RootDir {
        &self.dir
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates an empty directory with a unique name, which may become a root directory.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be created.
    pub fn new_dir(&self) -> Result<(PathBuf, RootDir)> {
        self.new_dir_with(0o755)
    }

    pub(crate) fn new_dir_with(&self, mode: u32) -> Result<(PathBuf, RootDir)> {
        let name = self.unique("d");
        self.dir.create_dir(OsStr::new(&name), mode)?;
        Ok((self.path.join(&name), self.dir.sub(&name)?))
    }

    /// Removes an entry on another thread. On most file systems, removing directories takes longer
    /// than creating them, and the build does not have to wait for it. Errors are ignored: the rest
    /// of the entry is removed with the workspace.
    pub fn remove_later(&self, name: &OsStr) {
        let mut remover = locked(&self.remover);
        if remover.is_none() {
            *remover = self.dir.try_clone().and_then(Remover::start).ok();
        }
        if let Some(remover) = &*remover {
            let _ = remover.names.send(name.to_os_string());
        }
    }

    pub(crate) fn unique(&self, prefix: &str) -> String {
        format!("{prefix}{}", SERIAL.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Some(Remover { names, is_over, thread }) = locked(&self.remover).take() {
            is_over.store(true, Ordering::Relaxed);
            drop(names);
            let _ = thread.join();
        }
        let _ = self.tmp.remove_all(&self.name);
        let _ = self.tmp.remove_file(&lock_of(&self.name));
    }
}

/// Returns a unique name and the lock that reserves it.
fn locked_name(store: &Store) -> Result<(String, File)> {
    loop {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let now = Timestamp::now();
        let name = format!("{:x}-{:x}{:08x}-{serial}", std::process::id(), now.sec, now.nsec);
        let lock = store.open_lock(&format!("tmp/{name}{LOCK_SUFFIX}"))?;
        let failed = |e| rbuild_linux::Error::new("flock", described("a temporary directory of the store"), e);
        lock.lock().map_err(failed)?;
        // A concurrent sweep may have locked the new file first, taken it for that of a dead
        // process, and removed it.
        if lock.metadata().map_err(failed)?.nlink() > 0 {
            return Ok((name, lock));
        }
    }
}

/// Removes the work of dead processes. Returns the sum of what `measure` returned for the removed
/// directories; `None` if there was no such work.
pub(crate) fn sweep(store: &Store, tmp: &RootDir, measure: fn(&RootDir) -> u64) -> Result<Option<u64>> {
    // The lock is created before the directory and removed after it. A directory without a lock was
    // left by a power failure.
    for entry in tmp.entries()?.iter().filter(|entry| !is_lock(&entry.name)) {
        if !tmp.exists(lock_of(&entry.name))? {
            let _ = tmp.remove_all(&entry.name);
        }
    }
    let dead = dead_work(store, tmp)?;
    let mut removed = 0;
    for DeadWork { name, _lock } in &dead {
        let size = tmp.sub(name).map_or(0, |dir| measure(&dir));
        // Files owned by sub-IDs can only be removed inside the user namespace; the next builder
        // does it.
        if tmp.remove_all(name).is_ok() {
            removed += size;
            let _ = tmp.remove_file(&lock_of(name));
        }
    }
    Ok((!dead.is_empty()).then_some(removed))
}

/// Returns the disk usage of the work of dead processes, in bytes.
///
/// # Errors
///
/// Fails if the directory of workspaces cannot be read.
pub(crate) fn dead_bytes(store: &Store) -> Result<u64> {
    let tmp = store.dir("tmp")?;
    let of = |work: &DeadWork| tmp.sub(&work.name).map_or(0, |dir| tree_bytes(&dir));
    Ok(dead_work(store, &tmp)?.iter().map(of).sum())
}

/// The workspace of a dead process.
struct DeadWork {
    name: OsString,
    _lock: File,
}

/// Returns the workspaces of dead processes, which are recognized by unlocked lock files.
fn dead_work(store: &Store, tmp: &RootDir) -> Result<Vec<DeadWork>> {
    let dead = |entry: &DirEntry| {
        let name = entry.name.to_str()?.strip_suffix(LOCK_SUFFIX)?;
        let lock = File::open(store.path().join("tmp").join(&entry.name)).ok()?;
        lock.try_lock().ok()?;
        Some(DeadWork { name: name.into(), _lock: lock })
    };
    Ok(tmp.entries()?.iter().filter_map(dead).collect())
}

fn is_lock(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(LOCK_SUFFIX))
}

fn lock_of(name: &OsStr) -> OsString {
    let mut lock = name.to_os_string();
    lock.push(LOCK_SUFFIX);
    lock
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn files_left_by_a_killed_writer_are_removed() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        std::fs::create_dir_all(dir.join("containers")).unwrap();
        let left: Vec<_> = [".", "records", "results", "builds", "layers", "containers"]
            .iter()
            .map(|of| dir.join(of).join(".rbuild-7-1-000000aa.tmp"))
            .collect();
        let leave = || left.iter().for_each(|path| std::fs::write(path, b"").unwrap());
        leave();
        assert!(store.gc().check(false).unwrap().damage.is_empty());
        assert!(store.containers().list().unwrap().is_empty());
        store.gc().check(true).unwrap();
        assert!(left.iter().all(|path| !path.exists()), "a repair leaves none");
        leave();
        std::fs::write(dir.join("tmp/dead.lock"), b"").unwrap();
        let other = Store::open(&dir).unwrap();
        drop(Workspace::open(&store).unwrap());
        assert!(left.iter().all(|path| path.exists()), "another process may be writing them");
        drop(other);
        std::fs::write(dir.join("tmp/dead.lock"), b"").unwrap();
        drop(Workspace::open(&store).unwrap());
        assert!(left.iter().all(|path| !path.exists()), "the next builder removes them");
    }

    #[test]
    fn workspaces_of_live_processes_are_not_swept() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let place = Workspace::open(&store).unwrap();
                        let (path, made) = place.new_dir().unwrap();
                        made.create_dir(OsStr::new("x"), 0o755).unwrap();
                        std::thread::yield_now();
                        std::fs::write(path.join("x/file"), b"still here").unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    }
}
