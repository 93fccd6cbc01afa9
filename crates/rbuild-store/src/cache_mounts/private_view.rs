//! Cache mounts without mounting: a command works in a private directory, and its changes are
//! merged into the cache afterwards.
//!
//! The files in that directory are hard links to those of the cache, so that writing to one changes
//! the cache as it would in a mount; those of a read-only mount are copies. No file is ever shared
//! between a cache and a command's tree: hard links made by the command are copied when they are
//! merged, and when the command's tree is committed ([`cut_links`]). Commands that share a cache
//! merge only the names they changed themselves, so that none reverts the changes of another. If
//! several changed the same name, the last one wins.

use std::path::{Path, PathBuf};

use crate::cache_mounts::cache::CacheMount;
use crate::cache_mounts::cache::CacheMounts;
use crate::error::Result;
use crate::once::Lock;
use crate::trees::copies::{Baseline, MergedFiles, MergedWhiteouts, cut_links, merge};
use crate::workspace::Workspace;

/// A command's private view of a cache, or of a part of it.
pub struct CacheView {
    /// Path of the private directory.
    pub path: PathBuf,
    part: PathBuf,
    before: Baseline,
}

impl CacheMounts<'_> {
    /// Creates a private view of the directory `part` of a cache, which is created if necessary.
    /// Every command gets its own; the lock only prevents others from merging at the same time.
    /// Changes are detected by ctime, so they must not be made before the kernel's clock has
    /// advanced.
    ///
    /// # Errors
    ///
    /// Fails if the files cannot be linked or copied.
    pub fn create_view(&self, work: &Workspace, cache: &CacheMount, part: &Path, read_only: bool) -> Result<CacheView> {
        let _alone = self.store.lock(Lock::cache_view(&cache.name))?;
        let from = cache.dir.create_dir_all(part, 0o755, None, |_| ())?;
        let (path, copy) = work.new_dir()?;
        let files = if read_only { MergedFiles::Copied } else { MergedFiles::Linked };
        merge(&[from], &copy, files, MergedWhiteouts::Applied)?;
        let before = Baseline::of(&copy, files == MergedFiles::Linked)?;
        Ok(CacheView { path, part: part.to_path_buf(), before })
    }

    /// Merges a command's changes into the cache. The view is restored if it is to be used `again`,
    /// and is unusable otherwise.
    ///
    /// # Errors
    ///
    /// Fails if the changes cannot be read or merged.
    pub fn merge_view(&self, work: &Workspace, cache: &CacheMount, view: CacheView, again: bool) -> Result<()> {
        let copy = match work.dir().open_alike(&view.path) {
            Ok(copy) => copy,
            // The process that was to restore it was killed.
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let (changed_path, changed) = work.new_dir()?;
        view.before.changes(&copy, &changed)?;
        {
            let _alone = self.store.lock(Lock::cache_view(&cache.name))?;
            let home = cache.dir.create_dir_all(&view.part, 0o755, None, |_| ())?;
            if again {
                merge(&[changed.try_clone()?], &home, MergedFiles::Copied, MergedWhiteouts::Applied)?;
            } else {
                cut_links(&changed)?;
                merge(&[changed.try_clone()?], &home, MergedFiles::Linked, MergedWhiteouts::Applied)?;
            }
        }
        if again {
            merge(&[changed], &copy, MergedFiles::Linked, MergedWhiteouts::Applied)?;
        }
        if let Some(name) = changed_path.file_name() {
            work.dir().remove_all(name)?;
        }
        Ok(())
    }
}
