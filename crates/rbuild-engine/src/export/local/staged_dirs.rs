//! New directories of an output, which are filled under temporary names.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rbuild_linux::{RootDir, temporary_name};

use crate::error::Result;
use crate::export::local::errors::{clear_directory, fail, has_directory};
use crate::export::local::writers::OutputDir;

/// Directories that still have temporary names. Dropping this removes those that were not
/// published.
pub(super) struct StagedDirs<'a> {
    dest: &'a RootDir,
    dirs: Vec<StagedDir>,
}

struct StagedDir {
    /// The directory that contains it, which existed before the export.
    parent: PathBuf,
    temp: OsString,
    /// Path in the result.
    path: PathBuf,
}

impl<'a> StagedDirs<'a> {
    pub(super) fn new(dest: &'a RootDir) -> StagedDirs<'a> {
        StagedDirs { dest, dirs: Vec::new() }
    }

    /// Creates a directory for `path`, which does not exist yet, and returns its temporary name.
    pub(super) fn create(&mut self, parent: &OutputDir, path: &Path) -> rbuild_linux::Result<OsString> {
        let temp = temporary_name();
        parent.dir.create_dir(&temp, 0o755)?;
        self.dirs.push(StagedDir { parent: parent.place.clone(), temp: temp.clone(), path: path.to_path_buf() });
        Ok(temp)
    }

    /// Renames the directories to their final names. If another process has created such a
    /// directory in the meantime, the entries are moved into it.
    pub(super) fn publish(mut self) -> Result<()> {
        while let Some(StagedDir { parent, temp, path }) = self.dirs.last() {
            let dir = self.dest.sub(parent).map_err(fail(path))?;
            move_directory(&dir, temp, &dir, path.file_name().unwrap_or_default(), path)?;
            self.dirs.pop();
        }
        Ok(())
    }
}

impl Drop for StagedDirs<'_> {
    fn drop(&mut self) {
        for StagedDir { parent, temp, .. } in &self.dirs {
            let _ = self.dest.sub(parent).and_then(|dir| dir.remove_all(temp));
        }
    }
}

/// Moves the directory `old` of `from` to `name` in `to`, merging it into an existing directory.
fn move_directory(from: &RootDir, old: &OsStr, to: &RootDir, name: &OsStr, path: &Path) -> Result<()> {
    match from.rename(old, to, name) {
        Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            has_directory(to, path, name)?;
            return from.rename(old, to, name).map_err(fail(path));
        }
        other => return other.map_err(fail(path)),
    }
    let (below, target) = (from.sub(old).map_err(fail(path))?, to.sub(name).map_err(fail(path))?);
    for entry in below.entries().map_err(fail(path))? {
        let path = path.join(&entry.name);
        if below.stat_name(&entry.name).map_err(fail(&path))?.kind == rbuild_linux::FileKind::Dir {
            move_directory(&below, &entry.name, &target, &entry.name, &path)?;
        } else {
            clear_directory(&target, &path, &entry.name)?;
            below.rename(&entry.name, &target, &entry.name).map_err(fail(&path))?;
        }
    }
    from.remove_dir(old).map_err(fail(path))
}
