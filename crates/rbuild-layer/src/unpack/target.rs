//! Creation of the entries of an archive below one root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, RootDir, Timestamp, quoted};

use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::reader::TarReader;
use crate::unpack::content::{read_content, write_content};
use crate::unpack::options::{Unpacking, Whiteouts};
use crate::whiteout::{self, deleted_name, is_whiteout};
use crate::write_behind::{FileWriter, SMALL};
use crate::xattrs::{OPAQUE, ORIGIN};

/// The state of unpacking into one root.
pub(super) struct UnpackTarget<'a> {
    pub(super) root: &'a RootDir,
    pub(super) options: Unpacking<'a>,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// The directory of the last entry, which most entries share with their predecessor.
    pub(super) parent: (PathBuf, RootDir),
    pub(super) files: FileWriter,
    /// Hard links whose targets may follow in the archive, by the path of the link.
    pub(super) later: BTreeMap<PathBuf, TarEntry>,
    /// Mode and time of directories, applied at the end.
    pub(super) dirs: BTreeMap<PathBuf, (u32, Timestamp)>,
    /// Directories without an entry of their own, created because an entry is inside them.
    pub(super) implied: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
}

pub(super) fn entry_error(entry: &TarEntry, reason: impl Into<String>) -> LayerError {
    LayerError::Entry { name: entry.path.to_string_lossy().into_owned(), reason: reason.into() }
}

impl TarEntry {
    /// Returns the path that the entry affects: its own, or for a whiteout the deleted path.
    /// Returns `None` if the path is outside the root.
    pub fn subject(&self) -> Option<PathBuf> {
        let path = rbuild_paths::inside(&self.path)?;
        let name = path.file_name().unwrap_or_default();
        if name == whiteout::OPAQUE {
            return Some(path.parent().unwrap_or(Path::new("")).to_path_buf());
        }
        Some(match deleted_name(name) {
            Some(deleted) => path.with_file_name(deleted),
            None => path,
        })
    }
}

impl<'a> UnpackTarget<'a> {
    pub(super) fn new(root: &'a RootDir, options: Unpacking<'a>) -> Result<UnpackTarget<'a>> {
        Ok(UnpackTarget {
            root,
            options,
            entries: 0,
            bytes: 0,
            parent: (PathBuf::new(), root.try_clone()?),
            files: FileWriter::new(root.owners()),
            later: BTreeMap::new(),
            dirs: BTreeMap::new(),
            implied: BTreeSet::new(),
            buffer: vec![0; 256 * 1024],
        })
    }

    pub(super) fn apply<R: Read>(&mut self, entry: &TarEntry, content: &mut TarReader<R>) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.whole_size());
        self.options.limits.check(entry, self.entries, self.bytes)?;
        let path = rbuild_paths::inside(&entry.path)
            .ok_or_else(|| entry_error(entry, "leaves the archive's root with `..`"))?;
        let Some(name) = path.file_name() else { return self.apply_root(entry) };
        let name = name.to_os_string();
        self.enter_parent(entry, path.parent().unwrap_or(Path::new("")))?;
        // If several entries have the same name, the last one wins.
        self.forget_links(&path, entry.kind);
        if self.options.whiteouts == Whiteouts::Overlay
            && let Some(deleted) = deleted_name(&name)
        {
            return self.whiteout(entry, &name, deleted);
        }
        self.create(entry, &path, &name, content)
    }

    /// Discards pending hard links at `path`, and those below it unless it becomes a directory.
    fn forget_links(&mut self, path: &Path, kind: EntryKind) {
        self.later.remove(path);
        if kind == EntryKind::Dir || self.later.is_empty() {
            return;
        }
        let below =
            self.later.range(path.to_path_buf()..).map(|(link, _)| link).take_while(|link| link.starts_with(path));
        for link in below.cloned().collect::<Vec<_>>() {
            self.later.remove(&link);
        }
    }

    fn apply_root(&mut self, entry: &TarEntry) -> Result<()> {
        // The root entry of an archive does not describe the directory that it is added to.
        if entry.kind != EntryKind::Dir || self.options.whiteouts == Whiteouts::Plain {
            return match entry.kind {
                EntryKind::Dir => Ok(()),
                _ => Err(entry_error(entry, "would replace the root directory")),
            };
        }
        let owner = self.ids(entry)?;
        self.root.set_own_meta(owner, entry.mode, entry.mtime).map_err(|e| self.owner_hint(entry, e))?;
        self.dirs.insert(PathBuf::new(), (entry.mode, entry.mtime));
        Ok(())
    }

    pub(super) fn enter_parent(&mut self, entry: &TarEntry, parent: &Path) -> Result<()> {
        if self.parent.0.as_os_str() == parent.as_os_str() {
            return Ok(());
        }
        let dir = match self.root.sub(parent) {
            Ok(dir) => dir,
            Err(e) if e.is_not_found() => {
                let (implied, dirs) = (&mut self.implied, &mut self.dirs);
                // The parent may be a symbolic link whose target does not exist yet, or exists in
                // lower layers only.
                let real = self.root.resolve(parent)?;
                let real = real.strip_prefix("/").unwrap_or(&real);
                self.root.create_dir_all(real, IMPLIED_MODE, None, |made| {
                    implied.insert(made.to_path_buf());
                    // The time of the entry that caused it, so that the result is reproducible.
                    dirs.insert(made.to_path_buf(), (IMPLIED_MODE, entry.mtime));
                })?
            }
            Err(e) if e.errno() == Some(NOT_A_DIRECTORY) => {
                if self.replace_deletion(entry, parent)? {
                    return self.enter_parent(entry, parent);
                }
                return Err(entry_error(entry, "lies below something that is not a directory"));
            }
            Err(e) => return Err(e.into()),
        };
        self.parent = (parent.to_path_buf(), dir);
        Ok(())
    }

    /// Replaces the topmost whiteout above `path` by an opaque directory. Returns false if
    /// there is none. This happens when a layer deletes a directory and has files below it without
    /// an entry for the new directory.
    fn replace_deletion(&mut self, entry: &TarEntry, path: &Path) -> Result<bool> {
        if self.options.whiteouts == Whiteouts::Plain {
            return Ok(false);
        }
        let mut above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for path in above {
            // Symbolic links of the layer may lead there.
            let path = self.root.resolve(path)?;
            let (dir, name) = self.root.parent(&path)?;
            let stat = dir.stat_name(&name)?;
            if !dir.is_whiteout(&name, &stat)? {
                continue;
            }
            dir.remove_all(&name)?;
            dir.create_dir(&name, IMPLIED_MODE)?;
            let made = dir.sub(&name)?;
            made.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
            let path = path.strip_prefix("/").unwrap_or(&path).to_path_buf();
            // No lower layer describes it.
            self.dirs.insert(path, (IMPLIED_MODE, entry.mtime));
            return Ok(true);
        }
        Ok(false)
    }

    /// Applies the whiteout `name` of the name `deleted`.
    fn whiteout(&mut self, entry: &TarEntry, name: &OsStr, deleted: &OsStr) -> Result<()> {
        let (above, dir) = (&self.parent.0, &self.parent.1);
        if name == whiteout::OPAQUE {
            return Ok(dir.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?);
        }
        if is_whiteout(deleted) {
            // `.wh..wh.plnk` and the like are metadata of AUFS, not whiteouts.
            return Ok(());
        }
        if deleted.is_empty() || deleted == "." || deleted == ".." {
            return Err(entry_error(entry, "is a whiteout without a name"));
        }
        // If the lower layers lack the directory, the kernel would list its whiteouts without this
        // mark.
        dir.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
        // Whiteouts apply to lower layers only, regardless of the order of entries: this layer's
        // own files stay.
        if dir.exists(deleted)? {
            let stat = dir.stat_name(deleted)?;
            if stat.kind == FileKind::Dir {
                dir.sub(deleted)?.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
                // The lower layers no longer describe it.
                let path = self.root.resolve(above)?.join(deleted);
                self.implied.remove(path.strip_prefix("/").unwrap_or(&path));
            }
            return Ok(());
        }
        Ok(dir.create_whiteout(deleted)?)
    }

    fn create<R: Read>(&mut self, entry: &TarEntry, path: &Path, name: &OsStr, tar: &mut TarReader<R>) -> Result<()> {
        let ids = self.ids(entry)?;
        let dir = &self.parent.1;
        let mut made = true;
        match entry.kind {
            EntryKind::File => return self.create_file(entry, path, name, tar),
            EntryKind::Dir => made = self.create_dir(name)?,
            EntryKind::Symlink if entry.link.is_empty() => {
                return Err(entry_error(entry, "is a symbolic link without a target"));
            }
            EntryKind::Symlink => place(dir, name, |dir| dir.create_symlink(&entry.link, name))?,
            EntryKind::HardLink => {
                if self.hard_link(entry, name)? == LinkOutcome::TargetMissing {
                    self.later.insert(path.to_path_buf(), entry.clone());
                }
                return Ok(());
            }
            EntryKind::CharDevice if entry.rdev == (0, 0) => {
                return Err(entry_error(entry, "is a character device 0:0, which a layer must not contain"));
            }
            EntryKind::CharDevice => {
                place(dir, name, |dir| dir.create_node(name, FileKind::CharDevice, entry.mode, entry.rdev))?
            }
            EntryKind::BlockDevice => {
                place(dir, name, |dir| dir.create_node(name, FileKind::BlockDevice, entry.mode, entry.rdev))?
            }
            EntryKind::Fifo => place(dir, name, |dir| dir.create_node(name, FileKind::Fifo, entry.mode, entry.rdev))?,
        }
        self.set_meta(entry, path, name, ids, made)
    }

    fn create_file<R: Read>(
        &mut self,
        entry: &TarEntry,
        path: &Path,
        name: &OsStr,
        tar: &mut TarReader<R>,
    ) -> Result<()> {
        let file = place(&self.parent.1, name, |dir| dir.create_file(name, entry.mode & 0o777))?;
        // Writing the content later would undo attributes set now.
        let later = entry.size <= SMALL && entry.sparse.is_none() && entry.xattrs.is_empty();
        let bytes = if later {
            read_content(entry, tar, self.files.content())?;
            entry.size as usize
        } else {
            write_content(&file, path, entry, tar, &mut self.buffer)?;
            0
        };
        self.finish_file(file, bytes, entry, path, name)
    }

    /// Creates a directory, in place of a file of that name. Returns false if it existed.
    fn create_dir(&self, name: &OsStr) -> Result<bool> {
        let dir = &self.parent.1;
        match dir.create_dir(name, 0o700) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        if dir.stat_name(name)?.kind == FileKind::Dir {
            return Ok(false);
        }
        dir.remove_all(name)?;
        dir.create_dir(name, 0o700)?;
        // The whiteout, or the layer's earlier file, hid the lower layers.
        if self.options.whiteouts == Whiteouts::Overlay {
            dir.sub(name)?.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
        }
        Ok(true)
    }

    pub(super) fn hard_link(&self, entry: &TarEntry, name: &OsStr) -> Result<LinkOutcome> {
        let leaves =
            || entry_error(entry, format!("links to {}, which leaves the archive's root", quoted(&entry.link)));
        let target = rbuild_paths::inside(&entry.link).ok_or_else(leaves)?;
        let Some(target_name) = target.file_name() else { return Err(leaves()) };
        let found = self.root.sub(target.parent().unwrap_or(Path::new("")));
        let found = found.and_then(|from| from.stat_name(target_name).map(|stat| (from, stat)));
        let (from, stat) = match found {
            Ok(found) => found,
            Err(e) if e.is_not_found() || e.errno() == Some(NOT_A_DIRECTORY) => return Ok(LinkOutcome::TargetMissing),
            Err(e) => return Err(e.into()),
        };
        if self.options.whiteouts == Whiteouts::Overlay && from.is_whiteout(target_name, &stat)? {
            return Ok(LinkOutcome::TargetMissing);
        }
        if stat.kind == FileKind::Dir {
            return Err(entry_error(entry, "is a hard link to a directory"));
        }
        let dir = &self.parent.1;
        match dir.hard_link(&from, target_name, name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if stat.inode() != dir.stat_name(name)?.inode() {
                    dir.remove_all(name)?;
                    dir.hard_link(&from, target_name, name)?;
                }
            }
            other => other?,
        }
        Ok(LinkOutcome::Done)
    }
}

/// Mode of a directory without an entry, the common default of tar implementations.
const IMPLIED_MODE: u32 = 0o755;

/// The outcome of creating a hard link.
#[derive(PartialEq, Eq)]
pub(super) enum LinkOutcome {
    Done,
    TargetMissing,
}

// `ENOTDIR`.
const NOT_A_DIRECTORY: i32 = 20;

/// Creates a file system object at `name`. An existing one is removed first, never written into.
fn place<T>(dir: &RootDir, name: &OsStr, create: impl Fn(&RootDir) -> rbuild_linux::Result<T>) -> Result<T> {
    match create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            dir.remove_all(name)?;
            Ok(create(dir)?)
        }
        other => Ok(other?),
    }
}
