//! Volumes: directories with a name that containers mount and that outlive them.
//!
//! A volume gets its first content, and the isolation mode to whose owners its files belong, when a
//! container mounts it for the first time.

use std::ffi::OsStr;
use std::path::PathBuf;

use rbuild_linux::{RootDir, Timestamp};
use serde::{Deserialize, Serialize};

use crate::durability::Durability;
use crate::error::{Result, StoreError};
use crate::gc::measure::tree_bytes;
use crate::gc::trash::{Discarded, Trash};
use crate::modes;
use crate::store::Store;
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::workspace::Workspace;

/// Directory with a directory for each volume.
const DIR: &str = "volumes";
/// The files of a volume.
const DATA: &str = "data";
const DOCUMENT: &str = "volume.json";
/// Lock file of the processes that create, fill or remove volumes.
const LOCK: &str = "volumes.lock";

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredVolume {
    /// Name, unique in the store.
    pub name: String,
    /// Time of its creation in seconds since the Unix epoch.
    pub created: i64,
    /// Labels, with their values.
    pub labels: Vec<(String, String)>,
    /// True if its name was generated for one container.
    pub anonymous: bool,
    /// Name of the isolation mode whose owners its files have; `None` before its first use.
    pub isolation: Option<String>,
}

/// The volumes of a store.
#[derive(Clone, Copy)]
pub struct Volumes<'s> {
    pub(crate) store: &'s Store,
}

impl Volumes<'_> {
    /// Returns all volumes, sorted by their names.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredVolume>> {
        if !self.store.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let names = self.store.dir(DIR)?.entries()?.into_iter().filter_map(|entry| entry.name.into_string().ok());
        let volumes = names.map(|name| self.find(&name)).collect::<Result<Vec<_>>>()?;
        let mut volumes: Vec<StoredVolume> = volumes.into_iter().flatten().collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Returns the volume with that name.
    ///
    /// # Errors
    ///
    /// Fails if its document cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<StoredVolume>> {
        self.store.read_if_whole(&format!("{DIR}/{name}/{DOCUMENT}"))
    }

    /// Creates a volume, unless there is one with that name. Returns true if it was created.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn create(&self, name: &str, labels: &[(String, String)], anonymous: bool) -> Result<bool> {
        let _lock = self.store.lock_file(LOCK)?;
        if self.find(name)?.is_some() {
            return Ok(false);
        }
        let dir = format!("{DIR}/{name}");
        for dir in [DIR, &dir] {
            self.store.root.create_dir_all(dir, modes::private_dir(), None, |_| ())?;
        }
        let (labels, created) = (labels.to_vec(), Timestamp::now().sec);
        let volume = StoredVolume { name: name.into(), created, labels, anonymous, isolation: None };
        self.write(&volume)?;
        Ok(true)
    }

    fn write(&self, volume: &StoredVolume) -> Result<()> {
        self.store.write_with(&format!("{DIR}/{}", volume.name), DOCUMENT, volume, Durability::PowerFailure)
    }

    /// Returns the path of the files of a volume, for a container in an isolation mode. If it is
    /// used for the first time, it gets a copy of `initial`, a directory of the image. Runs in the
    /// builder.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::OtherIsolation`] if its files have owners of another isolation
    /// mode, or if it cannot be filled.
    pub fn open(&self, work: &Workspace, name: &str, isolation: &str, initial: Option<&RootDir>) -> Result<PathBuf> {
        self.create(name, &[], false)?;
        let _lock = self.store.lock_file(LOCK)?;
        let Some(volume) = self.find(name)? else { return Err(StoreError::NoVolume(name.into())) };
        let dir = self.store.dir(format!("{DIR}/{name}"))?;
        match &volume.isolation {
            Some(mode) if mode == isolation => {}
            Some(mode) => return Err(StoreError::OtherIsolation { volume: name.into(), mode: mode.clone() }),
            None => {
                let (made, files) = work.new_dir()?;
                if let Some(initial) = initial {
                    merge(&[initial.try_clone()?], &files, MergedFiles::Copied, MergedWhiteouts::Applied)?;
                    let root = initial.stat_self()?;
                    files.set_own_meta(root.owner(), root.mode, root.mtime)?;
                }
                dir.remove_all(OsStr::new(DATA))?;
                work.dir().rename(made.file_name().unwrap_or_default(), &dir, OsStr::new(DATA))?;
                self.write(&StoredVolume { isolation: Some(isolation.into()), ..volume })?;
            }
        }
        Ok(self.store.path().join(DIR).join(name).join(DATA))
    }

    /// Returns the path of the files of a volume.
    pub fn path(&self, name: &str) -> PathBuf {
        self.store.path().join(DIR).join(name).join(DATA)
    }

    /// Returns the disk usage of a volume in bytes.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be opened.
    pub fn bytes(&self, name: &str) -> Result<u64> {
        Ok(tree_bytes(&self.store.dir(format!("{DIR}/{name}"))?))
    }

    /// Returns the names of the volumes that containers mount, whether they run or not.
    ///
    /// # Errors
    ///
    /// Fails if a document of a container cannot be read.
    pub fn used(&self) -> Result<Vec<String>> {
        let mut used = Vec::new();
        for container in self.store.containers().list()? {
            let settings = self.store.containers().settings(&container.id)?;
            let names = settings.iter().flat_map(|settings| &settings.mounts).filter_map(|mount| mount.volume());
            used.extend(names.map(str::to_string));
        }
        Ok(used)
    }

    /// Removes a volume that no container uses. Returns false if its files belong to users whose
    /// files this process may not remove. Runs in the builder.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::VolumeInUse`] if a container uses it, and with
    /// [`StoreError::NoVolume`] if it does not exist.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let mut trash = Trash::new(self.store);
        let lock = self.store.lock_file(LOCK)?;
        if self.find(name)?.is_none() {
            return Err(StoreError::NoVolume(name.into()));
        }
        if self.used()?.iter().any(|used| used == name) {
            return Err(StoreError::VolumeInUse(name.into()));
        }
        let name = OsStr::new(name);
        if !self.store.dir(DIR)?.is_removable(name)? {
            return Ok(false);
        }
        trash.discard(Discarded { dir: DIR, name, bytes: Some(0), reason: "requested" })?;
        // Containers that fill volumes do not wait for the deletion of the files.
        drop(lock);
        Ok(trash.empty()?.unremovable == 0)
    }
}
