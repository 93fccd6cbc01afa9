//! Caches, which are created once and locked while they are in use.

use std::ffi::OsStr;
use std::path::PathBuf;

use rbuild_image::Hasher;
use rbuild_linux::{LockKind, OwnerMode, RootDir};

use crate::error::{Result, StoreError};
use crate::ids::{CacheId, CacheName};
use crate::once::{HeldLock, Lock};
use crate::store::Store;
use crate::workspace::Workspace;

/// Sharing mode of a cache mount, in order of strictness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheUse {
    /// Shared with all other users in this mode.
    Shared,
    /// Exclusive; a concurrent user gets another, new cache.
    Private,
    /// Exclusive; a concurrent user waits.
    Locked,
}

/// A cache in use. Dropping it releases the lock.
pub struct CacheMount {
    /// Path of the cache directory.
    pub path: PathBuf,
    /// The cache directory.
    pub dir: RootDir,
    pub(super) name: CacheName,
    _lock: HeldLock,
}

/// The cache mounts of a store.
#[derive(Clone, Copy)]
pub struct CacheMounts<'s> {
    pub(crate) store: &'s Store,
}

impl CacheMounts<'_> {
    /// Returns the cache `id`, creating it with `fill` if it does not exist. `fill` gets an empty,
    /// private directory. To avoid a deadlock, request several locked caches in the order of their
    /// IDs.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken, if `fill` fails, or if the cache cannot be created.
    pub fn cache_mount<E: From<StoreError>>(
        &self,
        work: &Workspace,
        id: &CacheId,
        sharing: CacheUse,
        fill: impl FnOnce(&RootDir) -> std::result::Result<(), E>,
    ) -> std::result::Result<CacheMount, E> {
        let (name, lock) = self.lock_cache(id, sharing)?;
        let short = &name.hex()[..32];
        let mounts = self.store.dir("mounts")?;
        let exists = || mounts.exists(short).map_err(StoreError::from);
        let make = || {
            let (path, dir) = work.new_dir()?;
            fill(&dir)?;
            let made = path.file_name().unwrap_or_default();
            work.dir().rename(made, &mounts, OsStr::new(short)).map_err(|e| E::from(StoreError::from(e)))
        };
        // Concurrent users of a shared cache create it once.
        self.store.once(Lock::new_cache(&name), || Ok(exists()?.then_some(())), make)?;
        self.store.gc().note_use("mounts", short)?;
        let path = self.store.path().join("mounts").join(short);
        Ok(CacheMount { path, dir: mounts.sub(short).map_err(StoreError::from)?, name, _lock: lock })
    }

    /// Returns the cache `id`, if it exists and no command has it for itself.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken or the cache cannot be opened.
    pub fn idle_mount(&self, id: &CacheId) -> Result<Option<CacheMount>> {
        let name = self.name_of_copy(id, 0);
        let Some(lock) = self.store.try_lock(Lock::Cache(*id, name), LockKind::Shared)? else { return Ok(None) };
        let short = &name.hex()[..32];
        let mounts = self.store.dir("mounts")?;
        if !mounts.exists(short)? {
            return Ok(None);
        }
        let path = self.store.path().join("mounts").join(short);
        Ok(Some(CacheMount { path, dir: mounts.sub(short)?, name, _lock: lock }))
    }

    /// Returns the name of a copy of a cache. The first one has the number 0.
    pub(super) fn name_of_copy(&self, id: &CacheId, copy: u64) -> CacheName {
        let mut hasher = Hasher::new();
        hasher.field("cache mount").field(id.bytes()).field(copy.to_le_bytes());
        if self.store.owners() == OwnerMode::Recorded {
            hasher.field("keyed owners");
        }
        hasher.finish()
    }

    /// Locks the first available copy of the cache `id`. Returns its name and the lock.
    fn lock_cache(&self, id: &CacheId, sharing: CacheUse) -> Result<(CacheName, HeldLock)> {
        let mut copy = 0u64;
        loop {
            let name = self.name_of_copy(id, copy);
            let lock = Lock::Cache(*id, name);
            let held = match sharing {
                CacheUse::Locked => Some(self.store.lock(lock)?),
                CacheUse::Shared => self.store.try_lock(lock, LockKind::Shared)?,
                CacheUse::Private => self.store.try_lock(lock, LockKind::Exclusive)?,
            };
            match held {
                Some(held) => return Ok((name, held)),
                None => copy += 1,
            }
        }
    }
}
