//! Work that all threads and processes using a store do once: making a tree, a layer's files, a
//! cache.
//!
//! [`Store::once`] implements the sequence: look for the result; wait for the lock of its key; look
//! again, because the last holder may have made it; make and publish it. `Session::tree_once` is
//! the same for trees that have a record under their own key.
//!
//! # Order of locks
//!
//! Locks are bytes of `steps.lock`, one for each [`Lock`]. A thread that holds one waits only for
//! locks that come after it in the order of [`Lock`], so that no two threads wait for each other.
//! Debug builds check this. A lock belongs to the thread that took it. Locks that are only tried,
//! and never waited for (`LogLock`), have no place in the order.

use std::cell::RefCell;
use std::marker::PhantomData;

use rbuild_image::{DiffId, Hasher};
use rbuild_linux::{KeyLock, LockKind};

use crate::error::{Result, StoreError};
use crate::ids::{CacheId, CacheKey, CacheName, LockId};
use crate::store::Store;
use crate::trees::id::TreeId;

/// A lock on one piece of work. The variants are in the order in which a thread may take them; of
/// locks of one variant, those with lower identifiers come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    /// The download of an image.
    Pull(LockId),
    /// A step, by the key that its files are recorded under.
    Step(CacheKey),
    /// A merged tree.
    Squash(CacheKey),
    /// Files of a context that a command mounts.
    ContextPart(CacheKey),
    /// A cache mount in use. A command that uses several takes them in the order of their
    /// identifiers.
    Cache(CacheId, CacheName),
    /// The initial content of a cache mount.
    NewCache(LockId),
    /// Files of an image at certain paths.
    ImageParts(CacheKey),
    /// The unpacked files of a layer.
    Layer(DiffId),
    /// The fix-up tree of a layer.
    Fixup(CacheKey),
    /// The unpacked files of a lazy tree.
    Materialize(LockId),
    /// Copies between a cache mount and a command's private view of it.
    CacheView(LockId),
    /// The secrets that a tree is known to hold.
    Verdict(LockId),
}

impl Lock {
    /// Returns the lock on the download of an image or a file. `object` is the identity of the
    /// image or file.
    pub fn pull(object: &str) -> Lock {
        Lock::Pull(LockId::of(format!("pull {object}").as_bytes()))
    }

    pub(crate) fn new_cache(name: &CacheName) -> Lock {
        Lock::NewCache(named("making", name.bytes()))
    }

    pub(crate) fn cache_view(name: &CacheName) -> Lock {
        Lock::CacheView(named("copying", name.bytes()))
    }

    pub(crate) fn materialize(tree: &TreeId) -> Lock {
        Lock::Materialize(named("unfold", tree.name().as_bytes()))
    }

    pub(crate) fn verdict(tree: &TreeId) -> Lock {
        Lock::Verdict(named("verdict", tree.name().as_bytes()))
    }

    /// Returns the part of the identifier that names the byte of the lock file.
    fn key(&self) -> [u8; 8] {
        lock_key(match self {
            Lock::Step(key) | Lock::Squash(key) | Lock::ContextPart(key) | Lock::ImageParts(key) | Lock::Fixup(key) => {
                key.bytes()
            }
            Lock::Cache(_, name) => name.bytes(),
            Lock::Layer(diff_id) => diff_id.bytes(),
            Lock::Pull(id) | Lock::NewCache(id) | Lock::Materialize(id) | Lock::CacheView(id) | Lock::Verdict(id) => {
                id.bytes()
            }
        })
    }
}

/// Returns the part of a hash that identifies its lock.
pub(crate) fn lock_key(hash: &[u8; 32]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    first
}

/// Returns the identifier of the lock for one of several operations on an entry of the store.
fn named(operation: &str, entry: &[u8]) -> LockId {
    let mut hasher = Hasher::new();
    hasher.field(operation).field(entry);
    hasher.finish()
}

thread_local! {
    /// The locks that the thread holds, in their order.
    static HELD: RefCell<Vec<Lock>> = const { RefCell::new(Vec::new()) };
}

/// A lock that is held until this is dropped, by the thread that took it.
pub(crate) struct HeldLock {
    lock: Lock,
    _key: KeyLock,
    _thread: PhantomData<*const ()>,
}

impl HeldLock {
    fn new(lock: Lock, key: KeyLock) -> HeldLock {
        HELD.with_borrow_mut(|held| held.push(lock));
        HeldLock { lock, _key: key, _thread: PhantomData }
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| held.retain(|lock| *lock != self.lock));
    }
}

/// Panics in debug builds if the thread holds a lock that comes after `lock`, or `lock` itself.
fn check_order(lock: &Lock) {
    let last = HELD.with_borrow(|held| held.last().copied());
    debug_assert!(last.is_none_or(|last| last < *lock), "{lock:?} is taken after {last:?}");
}

/// The result of [`Store::once`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once<T> {
    /// Existed, or was made by another thread or process meanwhile.
    Found(T),
    /// Was made by this call.
    Made(T),
}

impl<T> Once<T> {
    /// Returns the result, wherever it came from.
    pub fn into_inner(self) -> T {
        let (Once::Found(it) | Once::Made(it)) = self;
        it
    }
}

impl Store {
    /// Returns the existing result from `find`, or else a new one from `make`. Of all threads and
    /// processes that need the same result, identified by `lock`, one makes it while the others
    /// wait. `make` must publish it so that `find` returns it; if it fails, the next one tries.
    ///
    /// # Errors
    ///
    /// Fails if `find` or `make` fails, if the lock cannot be taken, or if the build is canceled.
    pub fn once<T, E: From<StoreError>>(
        &self,
        lock: Lock,
        find: impl Fn() -> std::result::Result<Option<T>, E>,
        make: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<Once<T>, E> {
        if let Some(found) = find()? {
            return Ok(Once::Found(found));
        }
        let _alone = self.lock(lock)?;
        if let Some(found) = find()? {
            return Ok(Once::Found(found));
        }
        make().map(Once::Made)
    }

    /// Waits until no other thread or process holds the lock. For work that is serialized instead
    /// of shared, such as changes to a document.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken, or if the build is canceled.
    pub(crate) fn lock(&self, lock: Lock) -> Result<HeldLock> {
        check_order(&lock);
        let key = self.wait_for_key(lock.key())?;
        if (self.stop())() {
            return Err(StoreError::Canceled);
        }
        Ok(HeldLock::new(lock, key))
    }

    /// Takes the lock unless another build holds it.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken, or if the build is canceled.
    pub(crate) fn try_lock(&self, lock: Lock, kind: LockKind) -> Result<Option<HeldLock>> {
        check_order(&lock);
        Ok(self.try_key(lock.key(), kind)?.map(|key| HeldLock::new(lock, key)))
    }
}

#[cfg(test)]
pub(crate) mod tests;
