//! Trees with files that stand for devices, where none can be made.
//!
//! What such a file says is of use to its inode alone ([`rbuild_linux::Recorded`]). A store that was copied has other inodes,
//! and trees with stand-ins are none there. And the kernel gives a file another inode when a command changes it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir, Stat, has_met_stand_ins, owner_attribute};

use crate::error::{Result, StoreError};
use crate::layout::Store;
use crate::pile::{Found, Pile};
use crate::trees::TreeId;

/// Stands beside the files of a tree which may hold stand-ins: the inode of their directory, in digits.
pub(crate) const STAND_INS: &str = "stand-ins";

impl Store {
    /// Says of a tree in the making that it may hold stand-ins, if any were met since this process began.
    pub(crate) fn note_stand_ins(&self, made: &RootDir) -> Result<()> {
        match made.stat_name(OsStr::new("fs")) {
            Ok(fs) if has_met_stand_ins() => self.put_note(made, STAND_INS, fs.ino.to_string().as_bytes()),
            _ => Ok(()),
        }
    }

    fn may_hold_stand_ins(&self, tree: &TreeId) -> Result<bool> {
        Ok(!self.tree_note(tree, STAND_INS)?.is_empty())
    }

    /// Whether stand-ins of a tree, if it has any, are those that were made.
    pub(crate) fn has_own_stand_ins(&self, tree: &TreeId) -> Result<bool> {
        let note = self.tree_note(tree, STAND_INS)?;
        if note.is_empty() {
            return Ok(true);
        }
        let fs = self.root.stat(Path::new("trees").join(tree.name()).join("fs"))?;
        Ok(note == fs.ino.to_string().as_bytes())
    }

    /// Has stand-ins in `upper` stand for their devices again that the kernel has copied there out of these trees (the lowest
    /// first), as a command changed them. `upper` is the upper directory of an overlay.
    pub fn renew_stand_ins(&self, trees: &[TreeId], upper: &RootDir) -> Result<()> {
        let mut may_be = false;
        for tree in trees {
            may_be |= self.may_hold_stand_ins(tree)?;
        }
        if !may_be {
            return Ok(());
        }
        let open = trees.iter().map(|tree| self.tree(tree)).collect::<Result<Vec<_>>>()?;
        let below = Pile::new(open.into_iter());
        let mut todo = vec![(PathBuf::new(), upper.try_clone()?)];
        while let Some((path, dir)) = todo.pop() {
            for entry in dir.entries()? {
                let stat = dir.stat_name(&entry.name)?;
                let here = path.join(&entry.name);
                match stat.kind {
                    Kind::Dir => todo.push((here, dir.sub(&entry.name)?)),
                    Kind::File if stat.size == 0 => renew(&dir, &entry.name, &stat, &below, &here)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A file that says what the stand-in in its place said, and belongs to root or to whom that belonged, is that one, copied up: who
/// could put another there could change that one as well. One that was given away or moved is not known again.
fn renew(dir: &RootDir, name: &OsStr, stat: &Stat, below: &Pile, path: &Path) -> Result<()> {
    let said = |dir: &RootDir, name: &OsStr| Ok::<_, StoreError>(dir.xattrs(name)?.remove(owner_attribute()));
    let Some(says) = said(dir, name)? else { return Ok(()) };
    let Some(Found { dir: old_dir, name: old_name, stat: old }) = below.find(path)? else { return Ok(()) };
    match old.device {
        Some(device)
            if (stat.uid == 0 || stat.uid == old.uid) && said(&old_dir, &old_name)?.as_ref() == Some(&says) =>
        {
            Ok(dir.set_stand_in(name, device)?)
        }
        _ => Ok(()),
    }
}
