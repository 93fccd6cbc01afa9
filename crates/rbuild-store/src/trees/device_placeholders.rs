//! Trees with devices: as nodes, or as placeholder files for isolation modes that
//! cannot create device nodes.
//!
//! Every builder uses placeholders. Device nodes are used only by builders that can create them, as
//! no other can change or copy them; for all others, the tree is missing.
//!
//! The note on such a file is valid for its inode only ([`rbuild_linux::Recorded`]). A copied store
//! has other inodes, so its trees with placeholders are invalid. The kernel also assigns a new
//! inode when a command changes a placeholder and it is copied up.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::parallel::locked;
use rbuild_linux::{DirStack, FileKind, RootDir, Stat};

use crate::error::Result;
use crate::trees::id::TreeId;
use crate::trees::tree::Trees;
use crate::trees::union::{FoundEntry, UnionView};

/// File next to a tree that may contain placeholders, with the inode number of its `fs` directory.
pub(crate) const PLACEHOLDERS: &str = "stand-ins";

/// File next to a tree that contains device nodes.
pub(crate) const DEVICES: &str = "devices";

impl Trees<'_> {
    /// Marks a new tree as possibly containing placeholders, if this process has encountered any,
    /// or as containing device nodes.
    pub(crate) fn note_devices(&self, made: &RootDir) -> Result<()> {
        match made.stat_name(OsStr::new("fs")) {
            Ok(fs) if self.store.owner_records().has_seen_placeholders() => {
                self.put_note(made, PLACEHOLDERS, fs.ino.to_string().as_bytes())?
            }
            Ok(_) => {}
            Err(_) => return Ok(()),
        }
        if self.store.takes_devices() && has_devices(&made.sub("fs")?)? {
            self.put_note(made, DEVICES, b"")
        } else {
            Ok(())
        }
    }

    /// Returns true if this store's builder can use the files of a tree with its kind of owners.
    pub(crate) fn is_usable(&self, tree: &TreeId) -> Result<bool> {
        let note = || self.store.root.exists(Path::new("trees").join(tree.name()).join(DEVICES));
        Ok(self.store.takes_devices() || !note()?)
    }

    /// Returns true if the tree has a note about placeholders. Reads the note of a tree once,
    /// because each command of a build asks for all trees below it.
    fn may_hold_placeholders(&self, tree: &TreeId) -> Result<bool> {
        if let Some(known) = locked(&self.store.placeholder_notes).get(tree) {
            return Ok(*known);
        }
        let has_note = !self.tree_note(tree, PLACEHOLDERS)?.is_empty();
        locked(&self.store.placeholder_notes).insert(tree.clone(), has_note);
        Ok(has_note)
    }

    /// Returns true if the tree's placeholders, if any, are still the original inodes.
    pub(crate) fn has_own_placeholders(&self, tree: &TreeId) -> Result<bool> {
        let note = self.tree_note(tree, PLACEHOLDERS)?;
        if note.is_empty() {
            return Ok(true);
        }
        let fs = self.store.root.stat(Path::new("trees").join(tree.name()).join("fs"))?;
        Ok(note == fs.ino.to_string().as_bytes())
    }

    /// Revalidates placeholders that the kernel copied up from these trees (lowest first) into the
    /// overlay upper directory `upper` because a command changed them.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be read or a placeholder cannot be changed.
    pub fn renew_placeholders(&self, trees: &[TreeId], upper: &RootDir) -> Result<()> {
        if upper.entries()?.is_empty() {
            return Ok(());
        }
        let mut may_be = false;
        for tree in trees {
            may_be |= self.may_hold_placeholders(tree)?;
        }
        if !may_be {
            return Ok(());
        }
        let open = trees.iter().map(|tree| self.tree(tree)).collect::<Result<Vec<_>>>()?;
        let below = UnionView::new(open.into_iter());
        let mut todo = vec![(PathBuf::new(), upper.try_clone()?)];
        while let Some((path, dir)) = todo.pop() {
            for entry in dir.entries()? {
                let stat = dir.stat_name(&entry.name)?;
                let here = path.join(&entry.name);
                match stat.kind {
                    FileKind::Dir => todo.push((here, dir.sub(&entry.name)?)),
                    FileKind::File if stat.size == 0 => renew(&dir, &entry.name, &stat, &below, &here)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Returns true if there are device nodes below a directory, other than whiteouts.
fn has_devices(fs: &RootDir) -> Result<bool> {
    let mut dirs = DirStack::endless(fs.try_clone()?);
    let mut levels = Vec::new();
    let mut entries = fs.entries()?.into_iter();
    loop {
        let Some(entry) = entries.next() else {
            let Some(above) = levels.pop() else { return Ok(false) };
            entries = above;
            dirs.leave()?;
            continue;
        };
        if matches!(entry.kind, Some(FileKind::File | FileKind::Symlink | FileKind::Fifo | FileKind::Socket)) {
            continue;
        }
        let stat = dirs.last().stat_name(&entry.name)?;
        match stat.kind {
            FileKind::CharDevice | FileKind::BlockDevice if !stat.is_whiteout() => return Ok(true),
            FileKind::Dir => {
                let below = dirs.enter(&entry.name)?.entries()?;
                levels.push(std::mem::replace(&mut entries, below.into_iter()));
            }
            _ => {}
        }
    }
}

/// Revalidates a file if it is a copied-up placeholder: its note equals that of the placeholder
/// below, and it belongs to root or to the same owner. An attacker who could forge such a file
/// could also have changed the original. A placeholder with another owner or path is not
/// recognized.
fn renew(dir: &RootDir, name: &OsStr, stat: &Stat, below: &UnionView, path: &Path) -> Result<()> {
    let Some(record) = dir.owner_record(name)? else { return Ok(()) };
    let Some(FoundEntry { dir: old_dir, name: old_name, stat: old }) = below.find(path)? else { return Ok(()) };
    match old.device {
        Some(device)
            if (stat.uid == 0 || stat.uid == old.uid) && old_dir.owner_record(&old_name)?.as_ref() == Some(&record) =>
        {
            Ok(dir.set_placeholder(name, device)?)
        }
        _ => Ok(()),
    }
}
