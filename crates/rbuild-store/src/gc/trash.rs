//! Content that was removed from the store, until its files are deleted.
//!
//! Other processes wait while one holds the exclusive lock. Moving an entry takes microseconds,
//! deleting a large tree takes seconds. Entries are therefore moved into a workspace under the
//! lock, and deleted after its release. Those of a killed process are deleted with its workspace.

use std::ffi::{OsStr, OsString};

use rbuild_linux::{FileKind, RootDir};

use crate::error::Result;
use crate::gc::freed::Freed;
use crate::gc::measure::tree_bytes;
use crate::store::Store;
use crate::workspace::Workspace;

/// Entries to delete, and the amount of content that was removed.
pub(crate) struct Trash<'s> {
    store: &'s Store,
    /// `None` if it cannot be created, for example because the disk is full. Entries are then
    /// deleted at once.
    work: Option<Workspace>,
    /// Removed entries, with their names in the workspace.
    moved: Vec<(RemovedEntry, OsString)>,
    /// The content that was removed so far.
    pub freed: Freed,
}

/// An entry to discard.
pub(crate) struct Discarded<'a> {
    /// The directory of the store that contains it.
    pub dir: &'static str,
    pub name: &'a OsStr,
    /// The disk space that it frees in bytes; `None` if that is to be measured.
    pub bytes: Option<u64>,
    /// The reason, for the debug log.
    pub reason: &'static str,
}

/// A removed entry, and its place in the store.
struct RemovedEntry {
    dir: &'static str,
    name: OsString,
    bytes: Option<u64>,
    reason: &'static str,
}

impl<'s> Trash<'s> {
    /// Returns an empty trash. Also removes what killed processes left, and counts its size. The
    /// caller does not hold the exclusive lock yet.
    pub fn new(store: &'s Store) -> Trash<'s> {
        let (work, bytes) = Workspace::open_measuring(store, tree_bytes).ok().unzip();
        let bytes = bytes.unwrap_or_default();
        Trash { store, work, moved: Vec::new(), freed: Freed { bytes, ..Freed::default() } }
    }

    /// Removes an entry from the store. The caller holds the lock that protects it.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be removed for another reason than the owners of its files.
    pub fn discard(&mut self, Discarded { dir, name, bytes, reason }: Discarded<'_>) -> Result<()> {
        let entry = RemovedEntry { dir, name: name.to_os_string(), bytes, reason };
        let from = self.store.dir(dir)?;
        if let Some(work) = &self.work {
            let moved_to = OsString::from(work.unique("x"));
            if from.rename(name, work.dir(), &moved_to).is_ok() {
                self.moved.push((entry, moved_to));
                return Ok(());
            }
        }
        let is_deleted = delete(&from, name, &entry, &mut self.freed)?;
        self.freed.unremovable += u64::from(!is_deleted);
        Ok(())
    }

    /// Deletes the files, after the release of the lock, and returns the amount of content that was
    /// removed. Entries with files that this process may not remove return to their places, unless
    /// others have made them anew.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be removed for another reason.
    pub fn empty(mut self) -> Result<Freed> {
        let Some(work) = &self.work else { return Ok(self.freed) };
        for (entry, moved_to) in &self.moved {
            if !delete(work.dir(), moved_to, entry, &mut self.freed)? {
                self.freed.unremovable += 1;
                let _ = work.dir().rename(moved_to, &self.store.dir(entry.dir)?, &entry.name);
            }
        }
        Ok(self.freed)
    }
}

/// Deletes an entry, which is at `name` now, and counts it by the directory of the store in which
/// it was. Returns false if it contains files that this process may not remove.
fn delete(at: &RootDir, name: &OsStr, entry: &RemovedEntry, freed: &mut Freed) -> Result<bool> {
    let measure = || -> Result<u64> {
        Ok(match at.stat_name(name)? {
            stat if stat.kind == FileKind::Dir => at.sub(name).map_or(0, |dir| tree_bytes(&dir)),
            stat => stat.blocks * 512,
        })
    };
    let RemovedEntry { dir, name: own_name, bytes, reason } = entry;
    let bytes = bytes.map_or_else(measure, Ok)?;
    if !remove_if_possible(at, name)? {
        return Ok(false);
    }
    tracing::debug!(target: "store", kind = dir, name = %own_name.to_string_lossy(), bytes, reason, "removed");
    match *dir {
        "trees" => freed.trees += 1,
        "mounts" => freed.mounts += 1,
        _ => freed.blobs += 1,
    }
    freed.bytes += bytes;
    Ok(true)
}

/// Removes an entry. Returns false if it holds files that this process may not remove: those of
/// other users, where the builder has one ID only.
fn remove_if_possible(dir: &RootDir, name: &OsStr) -> Result<bool> {
    if !dir.is_removable(name)? {
        return Ok(false);
    }
    match dir.remove_all(name) {
        Ok(()) => Ok(true),
        // Owner and mode are not conclusive: a file may be immutable.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::exclusive_lock::ExclusiveLock;

    const NAME: &str = "sabc";

    /// Makes a tree that nothing uses, and moves it into the trash, under the exclusive lock.
    fn discard_tree<'s>(store: &'s Store, place: &Scratch) -> Trash<'s> {
        std::fs::create_dir_all(place.join("trees").join(NAME).join("fs/dir")).unwrap();
        std::fs::write(place.join("trees").join(NAME).join("fs/dir/file"), [7; 9000]).unwrap();
        let mut trash = Trash::new(store);
        let alone = ExclusiveLock::take(store).unwrap();
        let entry = Discarded { dir: "trees", name: OsStr::new(NAME), bytes: None, reason: "unreferenced" };
        trash.discard(entry).unwrap();
        alone.end().unwrap();
        trash
    }

    fn left(place: &Scratch) -> usize {
        std::fs::read_dir(place.join("tmp")).unwrap().count()
    }

    #[test]
    fn files_are_deleted_while_others_use_the_store() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let trash = discard_tree(&store, &place);
        assert!(!place.join("trees").join(NAME).exists());
        // The files still exist, and another process works.
        let other = Store::open(&place).unwrap();
        let work = Workspace::open(&other).unwrap();
        assert_eq!(left(&place), 4, "two workspaces and their locks");
        let freed = trash.empty().unwrap();
        assert!(freed.trees == 1 && freed.bytes > 9000, "{freed:?}");
        drop(work);
        assert_eq!(left(&place), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_deleted_by_the_next_one() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let trash = discard_tree(&store, &place);
        // As the kernel does it, release the lock, and keep the files.
        let work = trash.work.as_ref().unwrap().path().to_path_buf();
        std::fs::rename(&work, place.join("tmp/dead")).unwrap();
        std::fs::write(place.join("tmp/dead.lock"), b"").unwrap();
        drop(trash);
        assert_eq!(left(&place), 2);
        let trees = || store.disk_usage().by_kind().unwrap().into_iter().find(|(kind, _)| *kind == "Trees").unwrap().1;
        assert!(trees().bytes > 9000 && trees().reclaimable == trees().bytes, "{:?}", trees());
        let freed = Trash::new(&store).empty().unwrap();
        assert!(freed.bytes > 9000 && freed.trees == 0, "{freed:?}");
        assert_eq!((left(&place), trees().bytes), (0, 0));
    }

    #[test]
    fn an_interrupted_trash_is_deleted_with_its_workspace() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        drop(discard_tree(&store, &place));
        assert!(left(&place) == 0 && !place.join("trees").join(NAME).exists());
    }

    #[test]
    fn entries_are_deleted_at_once_without_a_workspace() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        std::fs::write(place.join("blobs/sha256/ab"), [7; 9000]).unwrap();
        let mut trash = Trash { work: None, ..Trash::new(&store) };
        let entry = Discarded { dir: "blobs/sha256", name: OsStr::new("ab"), bytes: Some(7), reason: "unreferenced" };
        trash.discard(entry).unwrap();
        assert!(!place.join("blobs/sha256/ab").exists());
        assert_eq!(trash.empty().unwrap(), Freed { blobs: 1, bytes: 7, ..Freed::default() });
    }
}
