//! Sessions: what running builds make in the store, and record there.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use rbuild_linux::RootDir;

use crate::cache::records::RecordedStep;
use crate::error::{Result, StoreError};
use crate::ids::{BuildId, CacheKey, ResultId};
use crate::once::{Lock, Once};
use crate::store::Store;
use crate::trees::id::TreeId;
use crate::workspace::Workspace;

/// A running build or command: the workspace in which it makes trees, and the ID and the time of
/// its records.
#[derive(Clone, Copy)]
pub struct Session<'s> {
    pub(crate) store: &'s Store,
    pub(crate) work: &'s Workspace,
    pub(crate) build: &'s BuildId,
    pub(crate) now: i64,
    /// Counts the bytes of the layers that are unpacked.
    pub(crate) moved: Option<&'s AtomicU64>,
}

impl<'s> Session<'s> {
    /// Returns the session of a build, which makes its trees in `work`. `now` is the creation time
    /// of these trees in seconds since the Unix epoch.
    pub fn new(store: &'s Store, work: &'s Workspace, build: &'s BuildId, now: i64) -> Session<'s> {
        Session { store, work, build, now, moved: None }
    }

    /// Adds the bytes of the layers that are unpacked to `moved`, so that another thread can
    /// observe the progress. Layers that are unpacked already count as a whole.
    pub fn counting(self, moved: &'s AtomicU64) -> Session<'s> {
        Session { moved: Some(moved), ..self }
    }

    /// Returns the tree that is recorded under `key`, or else fills a new one and records it there.
    /// `lock` is the kind of the lock, such as [`Lock::Fixup`]; `fill` gets the new tree's
    /// directory, which contains an empty `fs`.
    ///
    /// Steps do not use this: each execution of one has its own tree and result, and a
    /// record under two keys.
    ///
    /// # Errors
    ///
    /// Fails if `fill` fails, if the store cannot be read or written, or if the build is canceled.
    pub fn tree_once<E: From<StoreError>>(
        &self,
        lock: impl FnOnce(CacheKey) -> Lock,
        key: &CacheKey,
        fill: impl FnOnce(&RootDir) -> std::result::Result<(), E>,
    ) -> std::result::Result<Once<TreeId>, E> {
        self.store.once(
            lock(*key),
            || Ok(self.recorded(key)?),
            || {
                let made = self.store.trees().new_tree(self.work)?;
                fill(&made.dir)?;
                Ok(self.publish(&made.path, key)?)
            },
        )
    }

    /// Returns the tree that is recorded under `key`.
    pub(crate) fn recorded(&self, key: &CacheKey) -> Result<Option<TreeId>> {
        Ok(self.store.records().record(key)?.map(|record| record.tree))
    }

    /// Publishes a new tree that depends on nothing but `key`, and records it.
    pub(crate) fn publish(&self, made: &Path, key: &CacheKey) -> Result<TreeId> {
        let tree = self.store.trees().step_tree(&(*key).into());
        self.store.trees().commit_tree(self.work, made, &tree)?;
        self.put_record(key, &tree, (*key).into())?;
        Ok(tree)
    }

    /// Stores the record of a key for files that this session has made. The tree must exist.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn put_record(&self, key: &CacheKey, tree: &TreeId, result: ResultId) -> Result<()> {
        let step = RecordedStep { tree, result, created: self.now, origin: None };
        self.store.records().put_record(key, None, &step, self.build)
    }

    /// Stores the record of a key. The same files are also recorded under the key `shared`. The
    /// tree must exist.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn put_record_of(&self, key: &CacheKey, shared: &CacheKey, step: &RecordedStep<'_>) -> Result<()> {
        self.store.records().put_record(key, (shared != key).then_some(*shared), step, self.build)
    }
}

/// Stores the record of a tree of that key, as a build does.
#[cfg(test)]
pub(crate) fn record_tree(store: &Store, key: &CacheKey, tree: &TreeId) {
    let work = Workspace::open(store).unwrap();
    Session::new(store, &work, &BuildId::of_command("build"), 7).put_record(key, tree, (*key).into()).unwrap();
}

#[cfg(test)]
mod tests;
