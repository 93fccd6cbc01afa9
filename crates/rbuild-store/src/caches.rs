//! Cache mounts: directories that last between builds and belong to no image.

use std::ffi::OsStr;
use std::path::PathBuf;

use rbuild_image::{Digest, Hasher};
use rbuild_linux::{KeyLock, LockKind, RootDir};

use crate::error::{Result, StoreError};
use crate::layout::{Owners, Store};
use crate::records::lock_key;
use crate::workspace::Workspace;

mod lent;

pub use lent::LentCache;

/// Who may use a cache at the same time; the strictest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheUse {
    /// Everybody who also shares.
    Shared,
    /// Nobody else; who comes second gets another, new one.
    Private,
    /// Nobody else; who comes second waits.
    Locked,
}

/// A cache in use; others may have it when this is dropped.
pub struct CacheMount {
    pub path: PathBuf,
    pub dir: RootDir,
    name: Digest,
    _lock: KeyLock,
}

impl Store {
    /// The cache called `id`, made by `fill` (which gets an empty directory that nobody else sees yet) if there is
    /// none. To wait for several locked ones without a deadlock, ask for them in the order of their ids.
    pub fn cache_mount<E: From<StoreError>>(
        &self,
        work: &Workspace,
        id: &Digest,
        how: CacheUse,
        fill: impl FnOnce(&RootDir) -> std::result::Result<(), E>,
    ) -> std::result::Result<CacheMount, E> {
        let (name, lock) = self.lock_cache(id, how)?;
        let short = &name.hex()[..32];
        let mounts = self.dir("mounts")?;
        let exists = || mounts.exists(short).map_err(StoreError::from);
        if !exists()? {
            // Those who share the cache make it once.
            let _alone = self.alone_with("making", &name)?;
            if !exists()? {
                let (path, dir) = work.new_dir()?;
                fill(&dir)?;
                let made = path.file_name().unwrap_or_default();
                work.dir().rename(made, &mounts, OsStr::new(short)).map_err(StoreError::from)?;
            }
        }
        self.note_use("mounts", short)?;
        let path = self.path().join("mounts").join(short);
        Ok(CacheMount { path, dir: mounts.sub(short).map_err(StoreError::from)?, name, _lock: lock })
    }

    /// Keeps others from doing the same with the cache of that name.
    fn alone_with(&self, doing: &str, name: &Digest) -> Result<KeyLock> {
        let mut hasher = Hasher::new();
        hasher.field(doing).field(name.bytes());
        self.lock_step(&hasher.finish())
    }

    /// The name of the first cache of that id that can be had this way, and the lock on it.
    fn lock_cache(&self, id: &Digest, how: CacheUse) -> Result<(Digest, KeyLock)> {
        let mut copy = 0u64;
        loop {
            let mut hasher = Hasher::new();
            hasher.field("cache mount").field(id.bytes()).field(copy.to_le_bytes());
            if self.owners() == Owners::Recorded {
                hasher.field("keyed owners");
            }
            let name = hasher.finish();
            let lock = match how {
                CacheUse::Locked => Some(self.wait_for_key(lock_key(&name))?),
                CacheUse::Shared => self.try_key(lock_key(&name), LockKind::Shared)?,
                CacheUse::Private => self.try_key(lock_key(&name), LockKind::Exclusive)?,
            };
            match lock {
                Some(lock) => return Ok((name, lock)),
                None => copy += 1,
            }
        }
    }
}
