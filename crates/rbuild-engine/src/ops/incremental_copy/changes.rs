//! Copies that differ little from an earlier one. Instead of a tree with hard links to all
//! unchanged files, such a copy gets a tree of changes to the earlier copy's tree, the base
//! (`rbuild_store`'s changes).
//!
//! The directories of the copy, and everything else that is never deferred, are already in the new
//! tree. This module plans the rest: deferred files that are new or have changed since the base,
//! and whiteouts for files that the copy no longer has.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_layer::{ExternalFile, ORIGIN, marks_opaque};
use rbuild_linux::parallel::{MAX_FILE_THREADS, cores, try_map};
use rbuild_linux::{DirEntry, FileKind, RootDir};
use rbuild_store::TreeId;

use crate::ops::copy_error::CopyProblem;
use crate::ops::incremental_copy::state::{CopyGroup, IncrementalCopy};

/// Bounds on the copies that are stored as changes.
struct Bounds {
    /// Minimum number of unchanged files.
    kept: usize,
    /// Minimum number of unchanged files for each changed one.
    kept_per_change: usize,
}

impl Bounds {
    const RELEASE: Bounds = Bounds { kept: 256, kept_per_change: 8 };
    /// Debug builds store as many copies as possible as changes, so tests with few files cover this
    /// code.
    const DEBUG: Bounds = Bounds { kept: 1, kept_per_change: 0 };
    const OF_BUILD: Bounds = if cfg!(debug_assertions) { Bounds::DEBUG } else { Bounds::RELEASE };

    /// Returns true if a copy with these numbers of unchanged and changed files is stored as
    /// changes.
    fn include(&self, kept: usize, changed: usize) -> bool {
        kept >= self.kept && kept >= changed * self.kept_per_change
    }
}

/// The origin of a deferred file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CopiedFrom {
    /// The earlier copy's tree, unchanged.
    Base,
    /// The changes above that tree, unchanged.
    Changes,
    Source,
}

/// A copy as changes to the tree of an earlier one.
pub struct ChangePlan {
    pub base: TreeId,
    /// The origin of each file of each group.
    pub(super) origins: Vec<Vec<CopiedFrom>>,
    /// Names to be deleted, by directory.
    deletions: Vec<(PathBuf, Vec<OsString>)>,
}

impl ChangePlan {
    /// Returns the directories in which something is to be deleted.
    pub(super) fn deletes_in(&self) -> impl Iterator<Item = &Path> {
        self.deletions.iter().map(|(dir, _)| dir.as_path())
    }

    /// Creates the whiteouts in the new tree.
    pub(super) fn delete(&self, tree: &RootDir) -> Result<(), CopyProblem> {
        let own = OsStr::new("");
        for (dir, names) in &self.deletions {
            let dir = tree.sub(dir)?;
            names.iter().try_for_each(|name| dir.create_whiteout(name))?;
            if !dir.xattrs(own)?.contains_key(OsStr::new(ORIGIN)) {
                dir.set_xattr(own, OsStr::new(ORIGIN), b"")?;
            }
        }
        Ok(())
    }
}

impl IncrementalCopy {
    /// Plans the copy as changes to the earlier one. `upper` is the unfinished new tree, and `root`
    /// the root file system that contains it. Returns `None` if the copy must be written in full:
    /// if there is no earlier copy, if too much has changed, or if adding and deleting files cannot
    /// turn the base into the result. With `linked`, the trees below the copy are unknown, so
    /// nothing can be deleted.
    pub fn plan_changes(
        &self,
        root: &RootDir,
        upper: &RootDir,
        linked: bool,
    ) -> Result<Option<ChangePlan>, CopyProblem> {
        let Some(earlier) = &self.earlier_files else { return Ok(None) };
        let origins = try_map(cores().min(MAX_FILE_THREADS), &self.groups, |group| self.origins(group))?;
        let kept = origins.iter().flatten().filter(|origin| **origin == CopiedFrom::Base).count();
        let all: usize = origins.iter().map(Vec::len).sum();
        if !Bounds::OF_BUILD.include(kept, all - kept) {
            return Ok(None);
        }
        let mut deferred: HashMap<&Path, HashSet<&OsStr>> = HashMap::new();
        for group in &self.groups {
            deferred.entry(&group.dir).or_default().extend(group.files().map(|file| &*file.name));
        }
        let mut comparison = BaseComparison { root, base: &earlier.files, deferred, linked, deletions: Vec::new() };
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            if !comparison.compare(upper, &dir, &mut dirs)? {
                return Ok(None);
            }
        }
        let deleted: usize = comparison.deletions.iter().map(|(_, names)| names.len()).sum();
        let is_little = Bounds::OF_BUILD.include(kept, all - kept + deleted);
        Ok(is_little.then(|| ChangePlan { base: earlier.base.clone(), origins, deletions: comparison.deletions }))
    }

    /// Returns the origins of the files of a group.
    pub(super) fn origins(&self, group: &CopyGroup) -> Result<Vec<CopiedFrom>, CopyProblem> {
        let dirs = EarlierDirs::of(self, &group.dir)?;
        Ok(group
            .files
            .iter()
            .map(|file| file.as_ref().map_or(CopiedFrom::Base, |file| dirs.origin(group, file)))
            .collect())
    }
}

/// A directory of an earlier copy.
pub(super) struct EarlierDirs<'a> {
    incremental: &'a IncrementalCopy,
    pub base: Option<RootDir>,
    pub changes: Option<RootDir>,
    /// Names in the directory of changes.
    changed: HashSet<OsString>,
}

impl<'a> EarlierDirs<'a> {
    /// Opens the directory `dir` of the earlier copy.
    pub fn of(incremental: &'a IncrementalCopy, dir: &Path) -> Result<EarlierDirs<'a>, CopyProblem> {
        let earlier = incremental.earlier_files.as_ref();
        let base = earlier.and_then(|earlier| earlier.files.sub(dir).ok());
        let changes = earlier.and_then(|earlier| earlier.changes.as_ref()?.sub(dir).ok());
        let entries = changes.as_ref().map_or(Ok(Vec::new()), RootDir::entries)?;
        Ok(EarlierDirs { incremental, base, changes, changed: entries.into_iter().map(|entry| entry.name).collect() })
    }

    /// Returns the origin of a file of this directory.
    pub fn origin(&self, group: &CopyGroup, file: &ExternalFile) -> CopiedFrom {
        let (dir, origin) = if self.changed.contains(&file.name) {
            (&self.changes, CopiedFrom::Changes)
        } else {
            (&self.base, CopiedFrom::Base)
        };
        match dir {
            Some(dir) if self.incremental.has(dir, group, file) => origin,
            _ => CopiedFrom::Source,
        }
    }
}

/// A comparison of the base with the new copy.
struct BaseComparison<'a> {
    /// The root file system without the deferred files.
    root: &'a RootDir,
    base: &'a RootDir,
    /// Names of deferred files, by directory.
    deferred: HashMap<&'a Path, HashSet<&'a OsStr>>,
    linked: bool,
    deletions: Vec<(PathBuf, Vec<OsString>)>,
}

impl BaseComparison<'_> {
    /// Compares a directory of the new copy with that of the base, and records the names to delete.
    /// Adds its subdirectories to `dirs`. Returns false if adding and deleting files cannot turn
    /// the base into the result.
    fn compare(&mut self, upper: &RootDir, path: &Path, dirs: &mut Vec<PathBuf>) -> Result<bool, CopyProblem> {
        let dir = upper.sub(path)?;
        let own = dir.entries()?;
        if !own.iter().all(is_ordinary) || is_opaque(&dir)? {
            return Ok(false);
        }
        dirs.extend(own.iter().filter(|entry| entry.kind == Some(FileKind::Dir)).map(|entry| path.join(&entry.name)));
        let base = match self.base.sub(path) {
            Err(e) if e.is_not_found() => return Ok(true),
            other => other?,
        };
        if is_opaque(&base)? {
            return Ok(false);
        }
        let deferred = self.deferred.get(path);
        let mut gone = Vec::new();
        for entry in base.entries()? {
            let is_dir = entry.kind == Some(FileKind::Dir);
            let now = match own.binary_search_by(|own| own.name.cmp(&entry.name)) {
                Ok(at) => own[at].kind,
                Err(_) if deferred.is_some_and(|names| names.contains(&*entry.name)) => Some(FileKind::File),
                Err(_) => None,
            };
            match now {
                Some(now) if is_ordinary(&entry) && (now == FileKind::Dir) == is_dir => {}
                // A whiteout would also delete a file below the base.
                None if is_ordinary(&entry) && !self.linked && !self.root.exists(path.join(&entry.name))? => {
                    gone.push(entry.name)
                }
                _ => return Ok(false),
            }
        }
        if !gone.is_empty() {
            self.deletions.push((path.to_path_buf(), gone));
        }
        Ok(true)
    }
}

/// Returns false for entries that may be whiteouts.
fn is_ordinary(entry: &DirEntry) -> bool {
    entry.kind.is_some_and(|kind| kind != FileKind::CharDevice)
}

fn is_opaque(dir: &RootDir) -> Result<bool, CopyProblem> {
    Ok(marks_opaque(&dir.xattrs(OsStr::new(""))?))
}

#[cfg(test)]
mod tests {
    use super::Bounds;

    #[test]
    fn copies_with_few_changes_are_stored_as_changes() {
        for (kept, changed, release, debug) in [
            (0, 0, false, false),
            (0, 1, false, false),
            (1, 0, false, true),
            (1, 100, false, true),
            (255, 0, false, true),
            (256, 0, true, true),
            (256, 32, true, true),
            (256, 33, false, true),
            (9_999, 1, true, true),
            (9_000, 1_125, true, true),
            (9_000, 1_126, false, true),
        ] {
            assert_eq!(Bounds::RELEASE.include(kept, changed), release, "{kept} {changed}");
            assert_eq!(Bounds::DEBUG.include(kept, changed), debug, "{kept} {changed}");
        }
    }
}
