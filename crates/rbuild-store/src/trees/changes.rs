//! Trees that are stored as a diff to an earlier tree.
//!
//! A copy that differs little from an earlier one is not written anew. Its tree consists of the
//! tree of the earlier copy, the base, and of a tree of changes that is stacked above it. The tree
//! of changes has all directories of the result, the files that the base lacks or has in another
//! version, and whiteouts for those that are gone. Stacked on the trees below the copy, the two
//! yield the same files as a complete tree, because no deleted name exists below the base.
//!
//! For callers that cannot stack trees, a complete tree is made of hard links on demand.

use std::ffi::OsStr;

use rbuild_layer::{Remainder, Splice};
use rbuild_linux::RootDir;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::layers::REMAINDER;
use crate::store::{Store, document};
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::trees::device_placeholders::{DEVICES, PLACEHOLDERS};
use crate::trees::id::{CHANGES, TreeId};
use crate::trees::notes::CHANGES_NOTE;
use crate::trees::tree::INODES;
use crate::workspace::Workspace;

/// A note beside a tree that is stored as changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChangesNote {
    /// The tree below the changes, which is not stored as changes itself.
    pub base: TreeId,
    /// Boot ID under which the complete tree was made, `None` if it was not.
    boot: Option<String>,
}

/// The files of an earlier copy, as a base for the next one.
pub struct EarlierFiles {
    /// The tree with all files that the changes do not contain.
    pub base: TreeId,
    /// Files of the tree.
    pub files: RootDir,
    /// The tree of changes above it, if there is one.
    pub changes: Option<RootDir>,
}

/// Trees that are stored as changes to earlier ones.
#[derive(Clone, Copy)]
pub struct ChangedTrees<'s> {
    pub(crate) store: &'s Store,
}

impl ChangedTrees<'_> {
    /// Turns the files of a new tree into changes to `base`.
    ///
    /// # Errors
    ///
    /// Fails if the files cannot be moved or the note cannot be written.
    pub fn store_as_changes(&self, made: &RootDir, base: &TreeId) -> Result<()> {
        made.create_dir(OsStr::new(CHANGES), crate::modes::dir())?;
        made.rename(OsStr::new("fs"), &made.sub(CHANGES)?, OsStr::new("fs"))?;
        let note = ChangesNote { base: base.clone(), boot: None };
        self.store.trees().put_note(made, CHANGES_NOTE, &document(CHANGES_NOTE, &note)?)
    }

    /// Returns the note of a tree that is stored as changes, complete or not.
    pub(crate) fn changes_note(&self, tree: &TreeId) -> Result<Option<ChangesNote>> {
        if !tree.is_stored_as_changes() {
            return Ok(None);
        }
        self.store.read_if_whole(&format!("trees/{}/{CHANGES_NOTE}", tree.name()))
    }

    /// Returns true if the tree is stored as changes, and was not made complete since the last
    /// boot.
    pub(crate) fn is_incomplete(&self, note: &ChangesNote) -> bool {
        note.boot.as_deref() != Some(self.store.boot())
    }

    /// Returns true if all of a tree that is stored as changes exists.
    pub(crate) fn has_changes(&self, tree: &TreeId, note: &ChangesNote) -> Result<bool> {
        let changes = format!("trees/{}/fs", tree.changes().name());
        Ok(self.store.root.exists(changes)?
            && !note.base.is_stored_as_changes()
            && self.store.lazy_trees().has_tree(&note.base)?)
    }

    /// Returns the trees that a tree is stacked from, lowest first, with their files on disk.
    ///
    /// # Errors
    ///
    /// Fails if files cannot be unpacked.
    pub fn stacked(&self, work: &Workspace, tree: &TreeId) -> Result<Vec<TreeId>> {
        match self.changes_note(tree)?.filter(|note| self.is_incomplete(note)) {
            Some(note) => {
                self.store.lazy_trees().materialize(work, &note.base)?;
                Ok(vec![note.base, tree.changes()])
            }
            None => {
                self.store.lazy_trees().materialize(work, tree)?;
                Ok(vec![tree.clone()])
            }
        }
    }

    /// Returns the files of an earlier copy, or `None` if they are not on disk.
    ///
    /// # Errors
    ///
    /// Fails if the trees cannot be opened.
    pub fn earlier_files(&self, tree: &TreeId) -> Result<Option<EarlierFiles>> {
        let (base, changes) = match self.changes_note(tree)? {
            Some(note) => (note.base, Some(self.store.trees().tree(&tree.changes())?)),
            None => (tree.clone(), None),
        };
        Ok(self.store.lazy_trees().unpacked_tree(&base)?.map(|files| EarlierFiles { base, files, changes }))
    }

    /// Returns true if changes can be stored above this tree. That is not possible with device
    /// nodes and placeholders of devices, which are recorded for the tree that contains them.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be read.
    pub fn can_store_as_changes(&self, base: &TreeId) -> Result<bool> {
        let has = |note: &str| self.store.root.exists(format!("trees/{}/{note}", base.name()));
        Ok(!self.store.owner_records().has_seen_placeholders() && !has(PLACEHOLDERS)? && !has(DEVICES)?)
    }

    /// Makes the complete tree of one that is stored as changes. The caller holds the lock, and the
    /// files of the base are on disk.
    pub(crate) fn complete(&self, work: &Workspace, tree: &TreeId, note: ChangesNote) -> Result<()> {
        let made = self.store.trees().new_tree(work)?.dir;
        let parts = [self.store.trees().tree(&note.base)?, self.store.trees().tree(&tree.changes())?];
        merge(&parts, &made.sub("fs")?, MergedFiles::Linked, MergedWhiteouts::Applied)?;
        let place = format!("trees/{}", tree.name());
        let dir = self.store.dir(&place)?;
        // Remains of an interrupted attempt, and sizes computed before.
        for old in ["fs", "bytes.json", INODES] {
            dir.remove_all(OsStr::new(old))?;
        }
        made.rename(OsStr::new("fs"), &dir, OsStr::new("fs"))?;
        self.store.write(&place, CHANGES_NOTE, &ChangesNote { boot: Some(self.store.boot().to_string()), ..note })
    }

    /// Prepares the layer of a tree that is stored as changes from the layer of its base. Calls
    /// `pack` with it, or returns `None` if there is no such layer.
    pub(crate) fn spliced<T>(&self, tree: &TreeId, pack: impl FnOnce(&Splice<'_>) -> Result<T>) -> Result<Option<T>> {
        let Some(ChangesNote { base, .. }) = self.changes_note(tree)? else { return Ok(None) };
        let Some((layer, file)) = self.store.layers().plain_layer_file(&base)? else { return Ok(None) };
        let remainder = Remainder::from_bytes(&self.store.trees().tree_note(&base, REMAINDER)?, &layer.diff_id);
        let changes = self.store.trees().tree(&tree.changes())?;
        Splice::new(&changes, file, remainder.as_ref())?.map(|splice| pack(&splice)).transpose()
    }
}
