//! Changes of the state of containers: creation, start, revert of a start, and removal.
//!
//! All of them are made under one lock, which is held from the check of the state to the end of the
//! change, so that they cannot contradict each other: what is removed is not started, and only one
//! process starts a container. The end of a container needs no change, because it is the release of
//! its own lock.

use std::ffi::OsStr;
use std::fs::File;

use rbuild_linux::Timestamp;

use crate::containers::documents::{Container, Containers, DIR as DOCUMENTS, NewContainer};
use crate::containers::runs::{ContainerState, RunLock, RunSettings};
use crate::durability::Durability;
use crate::error::{Result, StoreError};
use crate::ids::ContainerId;

/// Lock file of the processes that change containers.
const LOCK: &str = "containers.lock";

/// The result of an attempt to start a container that was created before.
#[derive(Debug)]
pub enum StartAttempt {
    /// The caller is its supervisor.
    Begun(RunLock),
    /// The container is running, or another process is starting it.
    Running,
    /// The container has ended, and its files have been removed.
    Ended,
    /// There is no such container.
    Missing,
}

/// The result of a change that first removes abandoned containers, because one of them may have the
/// requested name.
#[derive(Debug)]
#[must_use = "the caller removes the anonymous volumes of the removed containers"]
pub struct NameChange<T> {
    /// The result.
    pub result: Result<T>,
    /// Settings of the abandoned containers that were removed, even if the change failed. The
    /// caller removes their anonymous volumes.
    pub abandoned: Vec<RunSettings>,
}

/// The right to change containers. No other process changes one meanwhile.
pub struct ContainerChanges<'s> {
    containers: Containers<'s>,
    _lock: File,
}

impl<'s> ContainerChanges<'s> {
    /// Waits until no other process changes containers.
    pub(crate) fn begin(containers: Containers<'s>) -> Result<ContainerChanges<'s>> {
        let lock = containers.store.lock_file(LOCK)?;
        Ok(ContainerChanges { containers, _lock: lock })
    }

    /// Creates a container that is not started yet.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NameTaken`] if the name is in use, or if a document cannot be
    /// written.
    pub fn create(&self, new: &NewContainer<'_>, settings: &RunSettings) -> NameChange<Container> {
        self.naming(new.name, None, || {
            let container = document(new, false);
            self.containers.write_settings(new, &container.id, settings)?;
            self.containers.write_document(&container, new.durability)?;
            Ok(container)
        })
    }

    /// Creates a container that is started at once by the caller, its supervisor.
    ///
    /// # Errors
    ///
    /// Fails as [`ContainerChanges::create`] does.
    pub fn create_running(&self, new: &NewContainer<'_>, settings: &RunSettings) -> NameChange<RunLock> {
        self.naming(new.name, None, || {
            let container = document(new, true);
            self.containers.write_settings(new, &container.id, settings)?;
            let lock = self.containers.new_lock(&container.id)?;
            self.containers.write_document(&container, new.durability)?;
            Ok(lock)
        })
    }

    /// Gives a container another name. The result is false if it does not exist.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NameTaken`] if the name is in use, or if the document cannot be
    /// written.
    pub fn rename(&self, id: &ContainerId, name: &str) -> NameChange<bool> {
        self.naming(Some(name), Some(id), || {
            let Some(container) = self.containers.document(id)? else { return Ok(false) };
            let renamed = Container { name: name.to_string(), ..container };
            self.containers.write_document(&renamed, Durability::PowerFailure)?;
            Ok(true)
        })
    }

    /// Makes a change that gives a container a name, unless a container other than `own` has it.
    /// Generated names are not checked: they are as unique as IDs.
    fn naming<T>(
        &self,
        name: Option<&str>,
        own: Option<&ContainerId>,
        change: impl FnOnce() -> Result<T>,
    ) -> NameChange<T> {
        let Some(name) = name else { return NameChange { result: change(), abandoned: Vec::new() } };
        let NameChange { result, abandoned } = self.remove_abandoned();
        let result = result.and_then(|()| {
            if self.containers.list()?.iter().any(|other| other.name == name && Some(&other.id) != own) {
                return Err(StoreError::NameTaken(name.to_string()));
            }
            change()
        });
        NameChange { result, abandoned }
    }

    /// Starts a container that was created before, or whose start was interrupted. The caller
    /// becomes its supervisor.
    ///
    /// # Errors
    ///
    /// Fails if its state cannot be read, or if the lock cannot be created.
    pub fn start(&self, id: &ContainerId) -> Result<StartAttempt> {
        if self.containers.document(id)?.is_none() {
            return Ok(StartAttempt::Missing);
        }
        match self.containers.state(id)? {
            ContainerState::Created => {
                // An interrupted start leaves a lock.
                self.containers.remove_start(id)?;
                self.containers.new_lock(id).map(StartAttempt::Begun)
            }
            state if state.is_running() => Ok(StartAttempt::Running),
            _ => Ok(StartAttempt::Ended),
        }
    }

    /// Reverts the start of a container whose command could not be started. The caller, its
    /// supervisor, holds its lock.
    ///
    /// # Errors
    ///
    /// Fails if its files cannot be removed.
    pub fn revert_start(&self, id: &ContainerId, _lock: &RunLock) -> Result<()> {
        self.containers.remove_start(id)
    }

    /// Removes a container. Returns the freed disk space in bytes, 0 if the container no longer
    /// exists. Returns `None` if it runs, and so stays.
    ///
    /// # Errors
    ///
    /// Fails if its state cannot be read, or if its files cannot be removed.
    pub fn remove(&self, id: &ContainerId) -> Result<Option<u64>> {
        if self.containers.state(id)?.is_running() {
            return Ok(None);
        }
        self.remove_files(id).map(Some)
    }

    /// Removes a container whose supervisor is the caller, which holds its lock.
    ///
    /// # Errors
    ///
    /// Fails if its files cannot be removed.
    pub fn remove_own(&self, id: &ContainerId, _lock: &RunLock) -> Result<()> {
        self.remove_files(id).map(drop)
    }

    /// Removes the containers whose supervisors were killed before they could remove them.
    ///
    /// # Errors
    ///
    /// Fails if a state cannot be read, or if files cannot be removed.
    pub fn remove_abandoned(&self) -> NameChange<()> {
        let mut abandoned = Vec::new();
        let result = self.containers.list().and_then(|all| {
            for container in all {
                if self.is_abandoned(&container)? {
                    abandoned.extend(self.containers.settings(&container.id)?);
                    self.remove_files(&container.id)?;
                }
            }
            Ok(())
        });
        NameChange { result, abandoned }
    }

    /// Returns true for a container that is removed when it ends, and for one whose creation and
    /// first start were interrupted.
    fn is_abandoned(&self, container: &Container) -> Result<bool> {
        let id = &container.id;
        let is_to_be_removed = || Ok(self.containers.settings(id)?.is_some_and(|settings| settings.remove));
        match self.containers.state(id)? {
            ContainerState::Dead if container.created_by_start && self.containers.start_of(id)?.is_none() => Ok(true),
            ContainerState::Exited(_) | ContainerState::Dead => is_to_be_removed(),
            _ => Ok(false),
        }
    }

    /// Removes the document first: files without a document are removed by the next prune.
    fn remove_files(&self, id: &ContainerId) -> Result<u64> {
        self.containers.store.remove_note(DOCUMENTS, OsStr::new(&format!("{}.json", id.hex())))?;
        self.containers.remove_run(id)
    }
}

/// Returns the document of a new container.
fn document(new: &NewContainer<'_>, created_by_start: bool) -> Container {
    let NewContainer { name, image, image_name, created, command, salt: _, durability: _ } = *new;
    let id = new.id();
    let Timestamp { sec, nsec } = created;
    Container {
        id,
        name: name.map_or_else(|| format!("rbuild_{}", id.short()), str::to_string),
        image: *image,
        image_name: Some(image_name.to_string()),
        created: Some(sec),
        created_nanos: nsec,
        command: Some(command.to_vec()),
        created_by_start,
    }
}
