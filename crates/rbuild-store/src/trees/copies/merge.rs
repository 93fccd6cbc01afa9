//! Merges trees into a directory without mounting an overlay.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_layer::{OPAQUE, ORIGIN, keep_in_tree, marks_opaque};
use rbuild_linux::{DirStack, EntryCopy, FileKind, Inode, Result, RootDir, Stat, Xattrs, copy_entry};

/// Treatment of files in a merged directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergedFiles {
    /// Hard links to the files of the trees. The user must only read them, or replace them without
    /// writing in place.
    Linked,
    /// Copies.
    Copied,
}

/// Treatment of whiteouts and opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergedWhiteouts {
    /// Applied and dropped: the result is a complete view.
    Applied,
    /// Applied and kept for the trees below: the result is a tree itself.
    Kept,
}

/// The current position: source and target directories, and the names left to process in each.
struct MergePosition {
    from: DirStack,
    to: DirStack,
    path: PathBuf,
    names: Vec<Vec<OsString>>,
}

/// Fills the empty directory `dest` with the content that an overlay of the trees (lowest first)
/// would show. Directories are always created anew.
///
/// # Errors
///
/// Fails if an entry cannot be read or created.
pub fn merge(trees: &[RootDir], dest: &RootDir, files: MergedFiles, marks: MergedWhiteouts) -> Result<()> {
    for tree in trees {
        // A layer's root directory may be opaque, too.
        if marks_opaque(&tree.xattrs(OsStr::new(""))?) {
            for entry in dest.entries()? {
                dest.remove_all(&entry.name)?;
            }
        }
        take_attributes(&tree.xattrs(OsStr::new(""))?, dest)?;
        let mut links = HashMap::new();
        let (from, to) = (DirStack::new(tree.try_clone()?), DirStack::new(dest.try_clone()?));
        let mut way = MergePosition { from, to, path: PathBuf::new(), names: vec![names_in(tree)?] };
        while let Some(names) = way.names.last_mut() {
            let Some(name) = names.pop() else {
                way.leave()?;
                continue;
            };
            let (from, to) = (way.from.last(), way.to.last());
            let stat = from.stat_name(&name)?;
            if from.is_whiteout(&name, &stat)? {
                to.remove_all(&name)?;
                if marks == MergedWhiteouts::Kept {
                    to.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
                    to.create_whiteout(&name)?;
                }
            } else if stat.kind == FileKind::Dir {
                way.enter(&name, marks)?;
            } else {
                place(&way, &name, &stat, files, dest, &mut links)?;
            }
        }
    }
    Ok(())
}

fn names_in(dir: &RootDir) -> Result<Vec<OsString>> {
    Ok(dir.entries()?.into_iter().map(|e| e.name).collect())
}

impl MergePosition {
    fn enter(&mut self, name: &OsStr, marks: MergedWhiteouts) -> Result<()> {
        let from = self.from.enter(name)?;
        let attributes = from.xattrs(OsStr::new(""))?;
        let hides = marks_opaque(&attributes);
        let to = self.to.last();
        let before = to.stat_name(name).ok();
        let deleted = before.as_ref().map_or(Ok(false), |stat| to.is_whiteout(name, stat))?;
        if hides || before.is_none_or(|stat| stat.kind != FileKind::Dir) {
            to.remove_all(name)?;
            to.create_dir(name, 0o700)?;
            if marks == MergedWhiteouts::Kept && (hides || deleted) {
                to.set_xattr(name, OsStr::new(OPAQUE), b"y")?;
            }
        }
        let to = self.to.enter(name)?;
        take_attributes(&attributes, to)?;
        self.path.push(name);
        self.names.push(names_in(self.from.last())?);
        Ok(())
    }

    /// Leaves a directory after all its entries were processed, and sets its metadata.
    fn leave(&mut self) -> Result<()> {
        let stat = self.from.last().stat_self()?;
        self.to.last().set_own_meta(stat.owner(), stat.mode, stat.mtime)?;
        self.names.pop();
        self.path.pop();
        self.from.leave()?;
        self.to.leave()
    }
}

/// Sets the attributes of a directory, and removes all others: those of a lower tree's directory do
/// not apply.
fn take_attributes(attributes: &Xattrs, to: &RootDir) -> Result<()> {
    let own = OsStr::new("");
    for attr in to.xattrs(own)?.keys().filter(|attr| keep_in_tree(attr) && !attributes.contains_key(*attr)) {
        to.remove_xattr(own, attr)?;
    }
    for (attr, value) in attributes.iter().filter(|(attr, _)| keep_in_tree(attr)) {
        to.set_xattr(own, attr, value)?;
    }
    Ok(())
}

fn place(
    way: &MergePosition,
    name: &OsStr,
    stat: &Stat,
    files: MergedFiles,
    dest: &RootDir,
    links: &mut HashMap<Inode, PathBuf>,
) -> Result<()> {
    let (from, to) = (way.from.last(), way.to.last());
    to.remove_all(name)?;
    // Linking fails at the maximum link count, or on file systems without hard links.
    if files == MergedFiles::Linked && to.hard_link(from, name, name).is_ok() {
        return Ok(());
    }
    if stat.nlink > 1 {
        if let Some(first) = links.get(&stat.inode()) {
            let (dir, first) = dest.parent(first)?;
            return to.hard_link(&dir, &first, name);
        }
        links.insert(stat.inode(), Path::new("/").join(&way.path).join(name));
    }
    copy_tree_entry(from, name, stat, to, name)
}

/// Copies an entry of a tree, which is not a directory and has the metadata `stat`, to an unused
/// name.
pub(crate) fn copy_tree_entry(from: &RootDir, name: &OsStr, stat: &Stat, to: &RootDir, to_name: &OsStr) -> Result<()> {
    let copy = EntryCopy { keep_attribute: Some(keep_in_tree), ..EntryCopy::of(stat) };
    copy_entry(from, name, stat, to, to_name, &copy).map(drop)
}
