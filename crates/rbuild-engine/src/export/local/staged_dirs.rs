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
    areas: Vec<StagingArea>,
    dirs: Vec<StagedDir>,
}

/// A directory with a temporary name in a directory of the output that existed before, on whose
/// file system the staged directories must be.
struct StagingArea {
    parent: PathBuf,
    temp: OsString,
    /// The only entry, which holds the staged directories: the area itself is marked as a top of
    /// trees, below which they are one tree. Its name is random, because ext4 derives the block
    /// group from it.
    entry: OsString,
}

impl StagingArea {
    fn create_entry(&self, parent: &RootDir) -> rbuild_linux::Result<()> {
        let dir = parent.sub(&self.temp)?;
        dir.mark_top_of_trees();
        dir.create_dir(&self.entry, 0o755)
    }

    /// Returns the path of its entry, relative to the parent.
    fn below(&self) -> PathBuf {
        Path::new(&self.temp).join(&self.entry)
    }

    fn remove(&self, dest: &RootDir) {
        let _ = dest.sub(&self.parent).and_then(|dir| dir.remove_all(&self.temp));
    }
}

struct StagedDir {
    /// Index of its staging area.
    area: usize,
    temp: OsString,
    /// Path in the result.
    path: PathBuf,
}

impl<'a> StagedDirs<'a> {
    pub(super) fn new(dest: &'a RootDir) -> StagedDirs<'a> {
        StagedDirs { dest, areas: Vec::new(), dirs: Vec::new() }
    }

    /// Creates a directory for `path`, which does not exist yet, and returns its temporary path,
    /// relative to `parent`.
    pub(super) fn create(&mut self, parent: &OutputDir, path: &Path) -> rbuild_linux::Result<PathBuf> {
        let area = match self.areas.iter().position(|area| area.parent == parent.place) {
            Some(area) => area,
            None => self.add_area(parent)?,
        };
        let below = self.areas[area].below();
        let temp = OsString::from(self.dirs.len().to_string());
        parent.dir.sub(&below)?.create_dir(&temp, 0o755)?;
        self.dirs.push(StagedDir { area, temp: temp.clone(), path: path.to_path_buf() });
        Ok(below.join(temp))
    }

    fn add_area(&mut self, parent: &OutputDir) -> rbuild_linux::Result<usize> {
        let temp = temporary_name();
        parent.dir.create_dir(&temp, 0o755)?;
        self.areas.push(StagingArea { parent: parent.place.clone(), temp, entry: temporary_name() });
        let area = self.areas.len() - 1;
        self.areas[area].create_entry(&parent.dir)?;
        Ok(area)
    }

    /// Renames the directories to their final names. If another process has created such a
    /// directory in the meantime, the entries are moved into it.
    pub(super) fn publish(self) -> Result<()> {
        for StagedDir { area, temp, path } in self.dirs.iter().rev() {
            let area = &self.areas[*area];
            let to = self.dest.sub(&area.parent).map_err(fail(path))?;
            let from = to.sub(area.below()).map_err(fail(path))?;
            move_directory(&from, temp, &to, path.file_name().unwrap_or_default(), path)?;
        }
        Ok(())
    }
}

impl Drop for StagedDirs<'_> {
    fn drop(&mut self) {
        self.areas.iter().for_each(|area| area.remove(self.dest));
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
