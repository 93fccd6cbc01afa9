//! Owners, modes, times and attributes of unpacked entries.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rbuild_linux::{UidGid, set_file_owner};

use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::unpack::options::Owners;
use crate::unpack::target::{UnpackTarget, entry_error};
use crate::write_behind::{Filled, Unfinished};
use crate::xattrs::keep_in_tree;

impl UnpackTarget<'_> {
    pub(super) fn ids(&self, entry: &TarEntry) -> Result<UidGid> {
        match self.options.owners {
            Owners::Always(ids) => Ok(ids),
            Owners::FromArchive => {
                // The highest ID is invalid: to chown(2) it means "unchanged".
                let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
                let ids = id(entry.uid).zip(id(entry.gid)).map(|(uid, gid)| UidGid { uid, gid });
                let odd = || format!("has the owner {}:{}; IDs must be below 4294967295", entry.uid, entry.gid);
                ids.ok_or_else(|| entry_error(entry, odd()))
            }
        }
    }

    pub(super) fn set_meta(
        &mut self,
        entry: &TarEntry,
        path: &Path,
        name: &OsStr,
        ids: UidGid,
        made: bool,
    ) -> Result<()> {
        let dir = &self.parent.1;
        if ids != UidGid::ROOT || !made {
            dir.chown(name, ids).map_err(|e| self.owner_hint(entry, e))?;
        }
        for (attr, value) in entry.xattrs.iter().filter(|(attr, _)| keep_in_tree(attr)) {
            dir.set_xattr(name, attr, value)?;
        }
        match entry.kind {
            EntryKind::Dir => {
                self.dirs.insert(path.to_path_buf(), (entry.mode, entry.mtime));
                self.implied.remove(path);
                return Ok(());
            }
            EntryKind::Symlink => {}
            // chown(2) clears set-id bits.
            _ if entry.mode & 0o7000 != 0 || ids != UidGid::ROOT => dir.chmod(name, entry.mode)?,
            _ => {}
        }
        Ok(dir.set_mtime(name, entry.mtime)?)
    }

    /// Sets the metadata of a file that is still open and was created with its permission bits. The
    /// file receives the next `bytes` bytes of the writer's buffer.
    pub(super) fn finish_file(
        &mut self,
        file: File,
        bytes: usize,
        entry: &TarEntry,
        path: &Path,
        name: &OsStr,
    ) -> Result<()> {
        let ids = self.ids(entry)?;
        // Changing the owner and writing both clear set-id bits.
        let mut owner = (entry.mode & 0o7000 != 0 || ids != UidGid::ROOT).then_some((ids, entry.mode));
        // Changing the owner removes capabilities, so attributes are set after it.
        if !entry.xattrs.is_empty() {
            if let Some((ids, mode)) = owner.take() {
                set_file_owner(&file, self.root.owners(), ids, mode).map_err(|e| self.owner_hint(entry, e))?;
            }
            for (attr, value) in entry.xattrs.iter().filter(|(attr, _)| keep_in_tree(attr)) {
                self.parent.1.set_xattr(name, attr, value)?;
            }
        }
        let filled = Filled { file, bytes, path: path.to_path_buf(), owner, mtime: entry.mtime };
        self.files.take(filled).map_err(unfinished)
    }

    pub(super) fn owner_hint(&self, entry: &TarEntry, e: rbuild_linux::Error) -> LayerError {
        owner_error(entry.path.to_string_lossy().into_owned(), e)
    }
}

pub(super) fn unfinished(Unfinished { path, error }: Unfinished) -> LayerError {
    owner_error(path.to_string_lossy().into_owned(), error)
}

fn owner_error(name: String, e: rbuild_linux::Error) -> LayerError {
    if e.unmapped().is_some() { LayerError::Owner { name, source: e.without_object() } } else { e.into() }
}
