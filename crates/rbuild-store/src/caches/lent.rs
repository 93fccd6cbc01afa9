//! Caches where nothing can be mounted: a command works in directories of its own, and what it changed there goes into the cache afterwards.
//!
//! The files in them are those of the cache by another name, so that writing to one is writing to the cache as it is in a mount; those of a
//! read-only mount are copies. None of a command's files becomes one of a cache, or the other way round: what a command has linked is
//! copied when it is brought in, and when the command's tree is committed ([`cut_links`]). Commands that share a cache each bring in
//! the names that they changed themselves, so that none undoes what another did meanwhile; of a name that several changed, the last one's
//! file stays.

use std::path::{Path, PathBuf};

use rbuild_linux::RootDir;

use super::CacheMount;
use crate::copies::{Before, Files, Marks, cut_links, merge};
use crate::error::Result;
use crate::layout::Store;
use crate::workspace::Workspace;

/// A cache, or a part of it, as one command has it.
pub struct LentCache {
    pub path: PathBuf,
    part: PathBuf,
    before: Before,
}

impl Store {
    /// Lends the directory `part` of a cache, which is made if need be. Changes can be told once the clock that stamps them has moved on.
    pub fn lend_cache(&self, work: &Workspace, cache: &CacheMount, part: &Path, read_only: bool) -> Result<LentCache> {
        let _alone = self.alone_with("copying", &cache.name)?;
        let from = cache.dir.create_dir_all(part, 0o755, None, |_| ())?;
        let (path, copy) = work.new_dir()?;
        let files = if read_only { Files::Copied } else { Files::Linked };
        merge(&[from], &copy, files, Marks::Done)?;
        let before = Before::of(&copy, files == Files::Linked)?;
        Ok(LentCache { path, part: part.to_path_buf(), before })
    }

    /// Brings what a command changed into the cache. What was lent stays what it is if it is to be used `again`, and is of no use otherwise.
    pub fn return_cache(&self, work: &Workspace, cache: &CacheMount, lent: LentCache, again: bool) -> Result<()> {
        let copy = match RootDir::open(&lent.path) {
            Ok(copy) => copy,
            // Whoever was to put it back there was killed.
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let (changed_path, changed) = work.new_dir()?;
        lent.before.changes(&copy, &changed)?;
        {
            let _alone = self.alone_with("copying", &cache.name)?;
            let home = cache.dir.create_dir_all(&lent.part, 0o755, None, |_| ())?;
            if again {
                merge(&[changed.try_clone()?], &home, Files::Copied, Marks::Done)?;
            } else {
                cut_links(&changed)?;
                merge(&[changed.try_clone()?], &home, Files::Linked, Marks::Done)?;
            }
        }
        if again {
            merge(&[changed], &copy, Files::Linked, Marks::Done)?;
        }
        if let Some(name) = changed_path.file_name() {
            work.dir().remove_all(name)?;
        }
        Ok(())
    }
}
