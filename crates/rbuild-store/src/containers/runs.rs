//! Containers with a process.
//!
//! There is no daemon: each running container has a supervisor, a process of rbuild that holds an
//! exclusive lock on a file of the container for as long as it exists. The kernel releases the lock
//! when the supervisor ends, however it ends. Other processes recognize a running container by that
//! lock, and wait for its end by waiting for the lock.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rbuild_container::{ContainerPort, GroupLimits, PublishedPort, Ulimit};
use rbuild_linux::{ProcessStamp, described};
use serde::{Deserialize, Serialize};

use crate::containers::documents::{Container, Containers, NewContainer};
use crate::error::{Result, StoreError};
use crate::ids::ContainerId;
use crate::modes;
use crate::trees::id::TreeId;

/// Directory with a directory for each container that was started.
const DIR: &str = "runs";

const SETTINGS: &str = "settings.json";
const STARTED: &str = "started.json";
const TREES: &str = "trees.json";
const LOCK: &str = "lock";

/// Bytes that are reserved for the description of an end: it must be written even if the disk is
/// full.
const RESERVED: usize = 4 << 10;

/// Maximum size of the description of an end.
const MAX_END: u64 = 64 << 10;

/// Settings of a container that is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSettings {
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Ports that the image or the command line declares.
    pub exposed: Vec<ContainerPort>,
    /// True if the command has a terminal.
    pub terminal: bool,
    /// True if the container is removed at its end.
    pub remove: bool,
    /// Number of the signal that requests the end of the command.
    pub stop_signal: i32,
    /// Seconds until the command is killed after that signal.
    pub stop_timeout: u64,
    /// Labels, with their values.
    pub labels: Vec<(String, String)>,
    /// Variables that the command line sets.
    pub env: Vec<(String, String)>,
    /// User of the command, as it was specified; empty for root.
    pub user: String,
    /// Working directory of the command.
    pub cwd: String,
    /// Host name.
    pub hostname: String,
    /// Name of the network mode.
    pub network: String,
    /// Limits that apply; none in containers made by older versions.
    #[serde(default)]
    pub limits: GroupLimits,
    /// Limits on the resources of each process, as above.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
}

/// The start of the command of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// PID of the first process, in the PID namespace of the supervisor.
    pub pid: u32,
    /// Start time of that process in clock ticks since the boot.
    pub start: u64,
    /// The boot during which it was started.
    pub boot: String,
    /// Name of the isolation mode.
    pub isolation: String,
    /// Time of the start in seconds since the Unix epoch.
    pub at: i64,
}

impl Started {
    /// Returns the start of the process with that stamp.
    pub fn new(stamp: ProcessStamp, isolation: &str, at: i64) -> Started {
        let ProcessStamp { pid, start, boot } = stamp;
        Started { pid, start, boot, isolation: isolation.to_string(), at }
    }

    /// Opens a pidfd of the process. Returns `None` if it has ended.
    pub fn open(&self) -> Option<OwnedFd> {
        ProcessStamp { pid: self.pid, start: self.start, boot: self.boot.clone() }.open()
    }
}

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code of the command; 128 and the number of the signal if a signal killed it.
    pub code: i32,
    /// The reason if the command was not started, one sentence.
    pub error: Option<String>,
    /// True if a process of the container was killed because it exceeded the limit on memory.
    #[serde(default)]
    pub memory_exceeded: bool,
    /// Time of the end in seconds since the Unix epoch.
    pub at: i64,
}

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Never started.
    Created,
    /// Has a supervisor, but not yet a command.
    Starting,
    /// Runs its command.
    Running(Started),
    /// Has ended.
    Exited(Ended),
    /// The supervisor was killed, or the machine was switched off.
    Dead,
}

impl ContainerState {
    /// Returns true if the container has a supervisor.
    pub fn is_running(&self) -> bool {
        matches!(self, ContainerState::Starting | ContainerState::Running(_))
    }
}

/// The lock of a running container. Held by its supervisor, and by the processes that are forked
/// from it.
#[derive(Debug)]
pub struct RunLock(File);

impl RunLock {
    /// Records the end of the container. Readers see it once the lock is released. A reason for
    /// which no space is reserved is omitted.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn record_end(&self, end: &Ended) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(end).map_err(std::io::Error::other)?;
        if text.len() > RESERVED {
            text = serde_json::to_vec(&Ended { error: None, ..end.clone() }).map_err(std::io::Error::other)?;
        }
        self.0.write_all_at(&text, 0)
    }
}

/// A container whose end is awaited. Works even if the container is removed meanwhile.
#[derive(Debug)]
pub struct RunWatch(File);

impl RunWatch {
    /// Waits until the container has ended. Returns `None` if the supervisor was killed.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be locked or read.
    pub fn wait(&self) -> Result<Option<Ended>> {
        let failed = |e| rbuild_linux::Error::new("flock", described("the lock of a container"), e);
        while let Err(e) = self.0.lock_shared() {
            if e.kind() != std::io::ErrorKind::Interrupted {
                return Err(failed(e).into());
            }
        }
        let end = self.end();
        self.0.unlock().map_err(failed)?;
        Ok(end)
    }

    /// Returns true if the container runs.
    pub fn is_running(&self) -> bool {
        match self.0.try_lock_shared() {
            Ok(()) => self.0.unlock().is_err(),
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => false,
        }
    }

    fn end(&self) -> Option<Ended> {
        let mut text = vec![0; self.0.metadata().ok()?.len().min(MAX_END) as usize];
        self.0.read_exact_at(&mut text, 0).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Containers<'_> {
    /// Creates a container that is started at once. The caller becomes its supervisor, or starts
    /// it.
    ///
    /// # Errors
    ///
    /// Fails as [`Containers::create_container`] does.
    pub fn create_running(&self, new: &NewContainer<'_>, settings: &RunSettings) -> Result<(Container, RunLock)> {
        self.create_with(new, |id| {
            let dir = place(id);
            self.store.root.create_dir_all(DIR, modes::private_dir(), None, |_| ())?;
            self.store.root.create_dir_all(&dir, modes::private_dir(), None, |_| ())?;
            let lock = self.store.open_lock(&format!("{dir}/{LOCK}"))?;
            let failed = |call| move |e| rbuild_linux::Error::new(call, described("the lock of a container"), e);
            lock.lock().map_err(failed("flock"))?;
            // JSON may be followed by whitespace.
            lock.write_all_at(&[b' '; RESERVED], 0).map_err(failed("pwrite64"))?;
            self.store.write_durable(&dir, SETTINGS, settings)?;
            Ok(RunLock(lock))
        })
    }

    /// Returns the settings with which a container was started; `None` if it was only created.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be read.
    pub fn settings(&self, id: &ContainerId) -> Result<Option<RunSettings>> {
        self.store.read_if_any(&format!("{}/{SETTINGS}", place(id)))
    }

    /// Records the start of the command.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn record_start(&self, id: &ContainerId, started: &Started) -> Result<()> {
        self.store.write(&place(id), STARTED, started)
    }

    /// Returns the start of the command; `None` if it was not started.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be read.
    pub fn start_of(&self, id: &ContainerId) -> Result<Option<Started>> {
        self.store.read_if_whole(&format!("{}/{STARTED}", place(id)))
    }

    /// Keeps the trees in which these directories are for as long as the container runs, even if no
    /// process holds the lock of the store.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn pin_trees(&self, id: &ContainerId, lowers: &[PathBuf]) -> Result<()> {
        let trees = self.store.path().join("trees");
        let name = |dir: &PathBuf| {
            let first = dir.strip_prefix(&trees).ok()?.iter().next()?;
            Some(TreeId::of_dir(first.to_str()?))
        };
        let pinned: Vec<TreeId> = lowers.iter().filter_map(name).collect();
        self.store.write(&place(id), TREES, &pinned)
    }

    /// Returns the state of a container.
    ///
    /// # Errors
    ///
    /// Fails if a document cannot be read.
    pub fn state(&self, id: &ContainerId) -> Result<ContainerState> {
        let Some(watch) = self.watch(id)? else { return Ok(ContainerState::Created) };
        // The start is recorded before the end.
        if watch.is_running() {
            return Ok(self.start_of(id)?.map_or(ContainerState::Starting, ContainerState::Running));
        }
        Ok(watch.end().map_or(ContainerState::Dead, ContainerState::Exited))
    }

    /// Returns the means to wait for the end of a container; `None` if it was only created.
    ///
    /// # Errors
    ///
    /// Fails if its lock cannot be opened.
    pub fn watch(&self, id: &ContainerId) -> Result<Option<RunWatch>> {
        let path = format!("{}/{LOCK}", place(id));
        if !self.store.root.exists(&path)? {
            return Ok(None);
        }
        match self.store.open_lock(&path) {
            Ok(lock) => Ok(Some(RunWatch(lock))),
            // Another process has just removed the container.
            Err(StoreError::Kernel(e)) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the path of a file of a container.
    pub(super) fn file_of(&self, id: &ContainerId, name: &str) -> PathBuf {
        self.store.path().join(place(id)).join(name)
    }

    /// Removes the files of a container that was started.
    pub(super) fn remove_run(&self, id: &ContainerId) -> Result<()> {
        if self.store.root.exists(place(id))? {
            self.store.dir(DIR)?.remove_all(OsStr::new(&id.hex()))?;
        }
        Ok(())
    }

    /// Returns the names of the trees that running containers use. The caller holds the exclusive
    /// lock.
    pub(crate) fn pinned_trees(&self) -> Result<HashSet<String>> {
        let mut pinned = HashSet::new();
        for container in self.list()? {
            if self.watch(&container.id)?.is_some_and(|watch| watch.is_running()) {
                let path = format!("{}/{TREES}", place(&container.id));
                let trees: Option<Vec<TreeId>> = self.store.read_if_any(&path)?;
                pinned.extend(trees.into_iter().flatten().map(|tree| tree.name().to_string()));
            }
        }
        Ok(pinned)
    }

    /// Removes the files of containers whose removal was interrupted. The caller holds the
    /// exclusive lock.
    pub(crate) fn sweep_runs(&self) -> Result<()> {
        if !self.store.root.exists(DIR)? {
            return Ok(());
        }
        let known: HashSet<String> = self.list()?.iter().map(|container| container.id.hex()).collect();
        let runs = self.store.dir(DIR)?;
        for entry in runs.entries()? {
            if known.contains(&*entry.name.to_string_lossy()) {
                continue;
            }
            let name = Path::new(&entry.name).join(LOCK);
            let is_running = runs.exists(&name)? && {
                let path = Path::new(DIR).join(&name);
                RunWatch(self.store.open_lock(&path.to_string_lossy())?).is_running()
            };
            if !is_running {
                runs.remove_all(&entry.name)?;
            }
        }
        Ok(())
    }
}

fn place(id: &ContainerId) -> String {
    format!("{DIR}/{}", id.hex())
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::store::Store;

    fn settings() -> RunSettings {
        RunSettings {
            ports: Vec::new(),
            exposed: Vec::new(),
            terminal: false,
            remove: false,
            stop_signal: 15,
            stop_timeout: 10,
            labels: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            cwd: String::new(),
            hostname: String::new(),
            network: String::new(),
            limits: GroupLimits::default(),
            ulimits: Vec::new(),
        }
    }

    fn new(name: &str) -> NewContainer<'_> {
        static IMAGE: std::sync::OnceLock<rbuild_image::ManifestDigest> = std::sync::OnceLock::new();
        let image = IMAGE.get_or_init(|| rbuild_image::ManifestDigest::of(b"{}"));
        let created = rbuild_linux::Timestamp { sec: 1, nsec: 0 };
        NewContainer { name: Some(name), image, image_name: "x", created, command: &[], salt: name }
    }

    #[test]
    fn a_container_runs_as_long_as_its_lock_is_held() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let containers = store.containers();
        let state = |container: &Container| containers.state(&container.id).unwrap();
        let (ended, lock) = containers.create_running(&new("ended"), &settings()).unwrap();
        assert_eq!(state(&ended), ContainerState::Starting);
        let started = Started { pid: 1, start: 2, boot: "3".into(), isolation: "userns".into(), at: 4 };
        containers.record_start(&ended.id, &started).unwrap();
        assert_eq!(state(&ended), ContainerState::Running(started));
        let trees = store.path().join("trees");
        containers
            .pin_trees(&ended.id, &[trees.join("lab/fs"), trees.join("lcd/changes/fs"), "/other".into()])
            .unwrap();
        let names: HashSet<String> = ["lab", "lcd"].map(String::from).into();
        assert_eq!(containers.pinned_trees().unwrap(), names);
        let watch = containers.watch(&ended.id).unwrap().unwrap();
        let end = Ended { code: 7, error: None, memory_exceeded: false, at: 5 };
        // The disk may be full.
        let length = || std::fs::metadata(containers.file_of(&ended.id, LOCK)).unwrap().len();
        let reserved = length();
        lock.record_end(&Ended { error: Some("x".repeat(RESERVED)), ..end.clone() }).unwrap();
        assert_eq!((length(), reserved), (RESERVED as u64, RESERVED as u64));
        drop(lock);
        assert_eq!((state(&ended), watch.wait().unwrap()), (ContainerState::Exited(end.clone()), Some(end)));
        let (killed, lock) = containers.create_running(&new("killed"), &settings()).unwrap();
        drop(lock);
        assert_eq!(state(&killed), ContainerState::Dead);
        assert!(containers.pinned_trees().unwrap().is_empty());
        let made = containers.create_container(&new("made")).unwrap();
        assert_eq!(state(&made), ContainerState::Created);
        containers.remove_container(&killed).unwrap();
        assert_eq!(std::fs::read_dir(place.join(DIR)).unwrap().count(), 1);
        // The removal of this one was interrupted.
        store.remove_note("containers", OsStr::new(&format!("{}.json", ended.id.hex()))).unwrap();
        containers.sweep_runs().unwrap();
        assert_eq!(std::fs::read_dir(place.join(DIR)).unwrap().count(), 0);
    }
}
