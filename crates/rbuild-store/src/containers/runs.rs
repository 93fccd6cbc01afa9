//! Containers with a process.
//!
//! There is no daemon: each running container has a supervisor, a process of rbuild that holds an
//! exclusive lock on a file of the container for as long as it exists. The kernel releases the lock
//! when the supervisor ends, however it ends. Other processes recognize a running container by that
//! lock, and wait for its end by waiting for the lock.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rbuild_container::{Capabilities, ContainerMount, ContainerPort, GroupLimits, PublishedPort, Ulimit};
use rbuild_image::HealthcheckConfig;
use rbuild_linux::{ProcessStamp, RootDir, described, lock_holders};
use serde::{Deserialize, Serialize};

use crate::containers::documents::{Containers, NewContainer};
use crate::containers::health::{FILES as HEALTH_FILES, HealthFile};
use crate::containers::output::FILES as OUTPUT_FILES;
use crate::containers::restarts::{FILES as RESTART_FILES, LastEnd, RestartFiles, RestartPolicy};
use crate::error::{Result, StoreError};
use crate::gc::measure::tree_bytes;
use crate::ids::ContainerId;
use crate::modes;
use crate::trees::id::TreeId;

/// Directory with a directory for each container that was started.
const DIR: &str = "runs";

const SETTINGS: &str = "settings.json";
const STARTED: &str = "started.json";
const TREES: &str = "trees.json";
const CHANGES: &str = "changes.json";
const PAUSED: &str = "paused.json";
const LOCK: &str = "lock";

/// Bytes that are reserved for the description of an end: it must be written even if the disk is
/// full.
const RESERVED: usize = 4 << 10;

/// Maximum size of the description of an end.
const MAX_END: u64 = 64 << 10;

/// Settings of a container: all that is needed to start it, besides its image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunSettings {
    /// Arguments that replace CMD. If there are none, CMD applies unless `entrypoint` is given.
    #[serde(default)]
    pub args: Vec<String>,
    /// Words that replace ENTRYPOINT.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Variables that the command line sets.
    pub env: Vec<(String, String)>,
    /// User of the command, as it was specified; empty for root.
    pub user: String,
    /// Additional groups of the command, by name or ID.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Working directory of the command; empty for `/`.
    pub cwd: String,
    /// True if the command has a terminal.
    pub terminal: bool,
    /// True if the command has an input.
    #[serde(default)]
    pub interactive: bool,
    /// Privileges, and the files that the command may write.
    #[serde(default)]
    pub security: SecuritySettings,
    /// True if the command is a child of a small first process.
    #[serde(default)]
    pub init: bool,
    /// Host name.
    pub hostname: String,
    /// Additional entries of `/etc/hosts`: names and their addresses.
    #[serde(default)]
    pub hosts: Vec<(String, String)>,
    /// Name resolution.
    #[serde(default)]
    pub dns: DnsSettings,
    /// Name of the network mode.
    pub network: String,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Ports that the image or the command line declares.
    pub exposed: Vec<ContainerPort>,
    /// Mounts, in the order in which they are made.
    #[serde(default)]
    pub mounts: Vec<ContainerMount>,
    /// Size of /dev/shm in bytes; `None` for the default.
    #[serde(default)]
    pub shm_size: Option<u64>,
    /// Limits that apply; none in containers made by older versions.
    #[serde(default)]
    pub limits: GroupLimits,
    /// Limits on the resources of each process, as above.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// True if the container is removed at its end.
    pub remove: bool,
    /// The ends after which the command is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Check of the health of the container; `None` for no check.
    #[serde(default)]
    pub health: Option<HealthcheckConfig>,
    /// Number of the signal that requests the end of the command.
    pub stop_signal: i32,
    /// Seconds until the command is killed after that signal.
    pub stop_timeout: u64,
    /// Labels, with their values.
    pub labels: Vec<(String, String)>,
}

/// Settings of a container that concern its privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecuritySettings {
    /// True if the command has the privileges of an insecure step of a build.
    pub privileged: bool,
    /// Capabilities of root.
    pub capabilities: Capabilities,
    /// True if set-uid programs give no privileges.
    pub no_new_privileges: bool,
    /// True if the command must not write to the files of its image.
    pub read_only: bool,
}

impl Default for SecuritySettings {
    fn default() -> SecuritySettings {
        let capabilities = Capabilities::DOCKER;
        SecuritySettings { privileged: false, capabilities, no_new_privileges: false, read_only: false }
    }
}

/// Settings of name resolution. Empty lists stand for the settings of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsSettings {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains in which names are searched.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
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
    /// True if the command can be started again: the container is in the background.
    #[serde(default)]
    pub restartable: bool,
}

impl Started {
    /// Returns the start of the process with that stamp.
    pub fn new(stamp: ProcessStamp, isolation: &str, at: i64) -> Started {
        let ProcessStamp { pid, start, boot } = stamp;
        Started { pid, start, boot, isolation: isolation.to_string(), at, restartable: false }
    }

    /// Returns the start of a command that can be started again.
    #[must_use]
    pub fn restartable(self) -> Started {
        Started { restartable: true, ..self }
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
    /// Starts its command again after this end of it.
    Restarting(LastEnd),
    /// Has ended.
    Exited(Ended),
    /// The supervisor was killed, or the machine was switched off.
    Dead,
}

impl ContainerState {
    /// Returns true if the container has a supervisor.
    pub fn is_running(&self) -> bool {
        matches!(self, ContainerState::Starting | ContainerState::Running(_) | ContainerState::Restarting(_))
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

    /// Returns the PID of the supervisor if a signal has stopped it, so that the container cannot
    /// end. `None` if it is not known.
    pub fn stopped_supervisor(&self) -> Option<u32> {
        let proc = RootDir::open("/proc").ok()?;
        lock_holders(&proc, &self.0).into_iter().find(|holder| holder.is_stopped).map(|holder| holder.pid)
    }

    fn end(&self) -> Option<Ended> {
        let mut text = vec![0; self.0.metadata().ok()?.len().min(MAX_END) as usize];
        self.0.read_exact_at(&mut text, 0).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Containers<'_> {
    /// Removes the traces of a start.
    pub(super) fn remove_start(&self, id: &ContainerId) -> Result<()> {
        let kinds = [&[LOCK, TREES, CHANGES, STARTED, PAUSED][..], &OUTPUT_FILES, &RESTART_FILES, &HEALTH_FILES];
        let mut files = kinds.into_iter().flatten();
        files.try_for_each(|file| self.store.remove_note(&place(id), OsStr::new(file)))
    }

    /// Writes the settings of a container that is being created.
    pub(super) fn write_settings(
        &self,
        new: &NewContainer<'_>,
        id: &ContainerId,
        settings: &RunSettings,
    ) -> Result<()> {
        let dir = place(id);
        self.store.root.create_dir_all(DIR, modes::private_dir(), None, |_| ())?;
        self.store.root.create_dir_all(&dir, modes::private_dir(), None, |_| ())?;
        self.store.write_with(&dir, SETTINGS, settings, new.durability)
    }

    /// Creates the lock of a container, and takes it.
    pub(super) fn new_lock(&self, id: &ContainerId) -> Result<RunLock> {
        let lock = self.store.open_lock(&format!("{}/{LOCK}", place(id)))?;
        let failed = |call| move |e| rbuild_linux::Error::new(call, described("the lock of a container"), e);
        lock.lock().map_err(failed("flock"))?;
        // JSON may be followed by whitespace.
        lock.write_all_at(&[b' '; RESERVED], 0).map_err(failed("pwrite64"))?;
        Ok(RunLock(lock))
    }

    /// Returns the settings of a container; `None` for those that older versions have created, and
    /// those whose settings a power failure left unreadable.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be read.
    pub fn settings(&self, id: &ContainerId) -> Result<Option<RunSettings>> {
        self.store.read_if_whole(&format!("{}/{SETTINGS}", place(id)))
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

    /// Records that the processes of that start of a container are paused, or for `None` that none
    /// are.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written or removed.
    pub fn record_pause(&self, id: &ContainerId, started: Option<&Started>) -> Result<()> {
        match started {
            Some(started) => self.store.write(&place(id), PAUSED, started),
            None => self.store.remove_note(&place(id), OsStr::new(PAUSED)),
        }
    }

    /// Returns true if the processes of that start of a container are paused.
    pub fn is_paused(&self, id: &ContainerId, started: &Started) -> bool {
        let paused: Option<Started> = self.store.read_if_whole(&format!("{}/{PAUSED}", place(id))).ok().flatten();
        paused.as_ref() == Some(started)
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

    /// Records the directory below the store that contains the changes of a container to its files.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn record_changes(&self, id: &ContainerId, upper: &Path) -> Result<()> {
        let path = upper.strip_prefix(self.store.path()).unwrap_or(upper);
        self.store.write(&place(id), CHANGES, &path)
    }

    /// Returns that directory, relative to the store; `None` if the changes are in no directory of
    /// their own.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be read.
    pub fn changes(&self, id: &ContainerId) -> Result<Option<PathBuf>> {
        self.store.read_if_whole(&format!("{}/{CHANGES}", place(id)))
    }

    /// Returns the state of a container. One whose start was interrupted before its command was
    /// started is only created, unless the start created it.
    ///
    /// # Errors
    ///
    /// Fails if a document cannot be read.
    pub fn state(&self, id: &ContainerId) -> Result<ContainerState> {
        let Some(watch) = self.watch(id)? else { return Ok(ContainerState::Created) };
        // The start is recorded before the end.
        if watch.is_running() {
            let Some(started) = self.start_of(id)? else { return Ok(ContainerState::Starting) };
            let last_end = if started.restartable { self.restart_files(id).last_end() } else { None };
            return Ok(match last_end.filter(|end| end.at >= started.at && started.open().is_none()) {
                Some(end) => ContainerState::Restarting(end),
                None => ContainerState::Running(started),
            });
        }
        if let Some(end) = watch.end() {
            return Ok(ContainerState::Exited(end));
        }
        let created_by_start = self.document(id)?.is_none_or(|container| container.created_by_start);
        let was_started = created_by_start || self.start_of(id)?.is_some();
        Ok(if was_started { ContainerState::Dead } else { ContainerState::Created })
    }

    /// Returns the means to wait for the end of a container; `None` if it was only created.
    ///
    /// # Errors
    ///
    /// Fails if its lock cannot be opened.
    pub fn watch(&self, id: &ContainerId) -> Result<Option<RunWatch>> {
        self.watch_in(Path::new(&place(id)))
    }

    fn watch_in(&self, dir: &Path) -> Result<Option<RunWatch>> {
        let path = self.store.path().join(dir).join(LOCK);
        // It must not be created: another process may just have removed the container.
        match File::options().read(true).write(true).open(&path) {
            Ok(lock) => Ok(Some(RunWatch(lock))),
            Err(e) if [std::io::ErrorKind::NotFound, std::io::ErrorKind::NotADirectory].contains(&e.kind()) => Ok(None),
            Err(e) => Err(rbuild_linux::Error::new("openat", described("the lock of a container"), e).into()),
        }
    }

    /// Returns the files for the restarts of a container.
    pub fn restart_files(&self, id: &ContainerId) -> RestartFiles {
        RestartFiles::of(&self.file_of(id, ""))
    }

    /// Returns the file with the health of a container.
    pub fn health_file(&self, id: &ContainerId) -> HealthFile {
        HealthFile::of(&self.file_of(id, ""))
    }

    /// Returns the path of a file of a container.
    pub(super) fn file_of(&self, id: &ContainerId, name: &str) -> PathBuf {
        self.store.path().join(place(id)).join(name)
    }

    /// Returns the disk usage of the records and the output of a container in bytes.
    pub(crate) fn bytes_of_run(&self, id: &ContainerId) -> Result<u64> {
        match self.store.dir(place(id)) {
            Err(StoreError::Kernel(e)) if e.is_not_found() => Ok(0),
            other => Ok(tree_bytes(&other?)),
        }
    }

    /// Removes the files of a container. Returns the freed disk space in bytes.
    pub(super) fn remove_run(&self, id: &ContainerId) -> Result<u64> {
        if !self.store.root.exists(DIR)? {
            return Ok(0);
        }
        let (runs, bytes) = (self.store.dir(DIR)?, self.bytes_of_run(id)?);
        match runs.remove_all(OsStr::new(&id.hex())) {
            // A builder of an older version removes it at the same time.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            other => Ok(other.map(|()| bytes)?),
        }
    }

    /// Returns the names of the trees that running containers use, even of those without a
    /// document. The caller holds the exclusive lock.
    pub(crate) fn pinned_trees(&self) -> Result<HashSet<String>> {
        let mut pinned = HashSet::new();
        for name in self.running_dirs()? {
            let path = Path::new(DIR).join(&name).join(TREES);
            let trees: Option<Vec<TreeId>> = self.store.read_if_any(&path.to_string_lossy())?;
            pinned.extend(trees.into_iter().flatten().map(|tree| tree.name().to_string()));
        }
        Ok(pinned)
    }

    /// Returns the names of the directories of containers whose lock is held.
    fn running_dirs(&self) -> Result<Vec<OsString>> {
        if !self.store.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let mut running = Vec::new();
        for entry in self.store.dir(DIR)?.entries()? {
            if self.watch_in(&Path::new(DIR).join(&entry.name))?.is_some_and(|watch| watch.is_running()) {
                running.push(entry.name);
            }
        }
        Ok(running)
    }

    /// Removes the files of containers whose removal was interrupted. The caller holds the
    /// exclusive lock.
    pub(crate) fn sweep_runs(&self) -> Result<()> {
        if !self.store.root.exists(DIR)? {
            return Ok(());
        }
        let known = self.list()?.into_iter().map(|container| OsString::from(container.id.hex()));
        let kept: HashSet<OsString> = known.chain(self.running_dirs()?).collect();
        let runs = self.store.dir(DIR)?;
        for entry in runs.entries()?.into_iter().filter(|entry| !kept.contains(&entry.name)) {
            runs.remove_all(&entry.name)?;
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
    use crate::containers::tests::{create_running, settings, started};
    use crate::store::Store;

    #[test]
    fn a_container_runs_as_long_as_its_lock_is_held() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let containers = store.containers();
        let state = |id: &ContainerId| containers.state(id).unwrap();
        let (ended, lock) = create_running(&store, "ended", &settings());
        assert_eq!(state(&ended), ContainerState::Starting);
        let started = started();
        containers.record_start(&ended, &started).unwrap();
        assert_eq!(state(&ended), ContainerState::Running(started));
        let last = LastEnd { code: 1, at: 5, restarts: 1 };
        containers.restart_files(&ended).record_end(&last);
        assert_eq!(state(&ended), ContainerState::Restarting(last));
        let trees = store.path().join("trees");
        containers.pin_trees(&ended, &[trees.join("lab/fs"), trees.join("lcd/changes/fs"), "/other".into()]).unwrap();
        let names: HashSet<String> = ["lab", "lcd"].map(String::from).into();
        assert_eq!(containers.pinned_trees().unwrap(), names);
        let watch = containers.watch(&ended).unwrap().unwrap();
        let end = Ended { code: 7, error: None, memory_exceeded: false, at: 5 };
        // The disk may be full.
        let length = || std::fs::metadata(containers.file_of(&ended, LOCK)).unwrap().len();
        let reserved = length();
        lock.record_end(&Ended { error: Some("x".repeat(RESERVED)), ..end.clone() }).unwrap();
        assert_eq!((length(), reserved), (RESERVED as u64, RESERVED as u64));
        drop(lock);
        assert_eq!((state(&ended), watch.wait().unwrap()), (ContainerState::Exited(end.clone()), Some(end)));
        let (killed, lock) = create_running(&store, "killed", &settings());
        drop(lock);
        assert_eq!(state(&killed), ContainerState::Dead);
        assert!(containers.pinned_trees().unwrap().is_empty());
        let remove_document = |id: &ContainerId| {
            store.remove_note("containers", OsStr::new(&format!("{}.json", id.hex()))).unwrap();
        };
        // A container runs even if its document is lost.
        let (lost, lock) = create_running(&store, "lost", &settings());
        containers.pin_trees(&lost, &[trees.join("lef/fs")]).unwrap();
        remove_document(&lost);
        containers.sweep_runs().unwrap();
        assert_eq!(containers.pinned_trees().unwrap(), HashSet::from(["lef".to_string()]));
        drop(lock);
        // The removal of this one was interrupted.
        remove_document(&ended);
        containers.sweep_runs().unwrap();
        assert_eq!(std::fs::read_dir(place.join(DIR)).unwrap().count(), 0);
    }
}
