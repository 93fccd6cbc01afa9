//! Destination paths in the root file system: resolves and creates them, and replaces existing
//! files.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_linux::FileKind;

use crate::ops::copy::copier::{Copier, Defers};
use crate::ops::copy::destination::DestDir;
use crate::ops::copy_error::{CopyProblem, PathConflict};
use crate::ops::new_dirs::inherit_group;

impl Copier<'_> {
    /// Resolves a path, following symbolic links of the root, including dangling ones.
    fn real(&self, path: &Path) -> Result<PathBuf, CopyProblem> {
        let real = self.root.resolve(path)?;
        Ok(real.strip_prefix("/").unwrap_or(&real).to_path_buf())
    }

    /// Returns true if the path is a directory or a symbolic link to one.
    pub(super) fn is_dir(&self, path: &Path) -> Result<bool, CopyProblem> {
        Ok(self.root.stat(self.real(path)?).is_ok_and(|stat| stat.kind == FileKind::Dir))
    }

    /// Returns a directory of the destination path, creating it and its missing parents.
    pub(super) fn dir(&mut self, path: &Path, mode: u32) -> Result<DestDir, CopyProblem> {
        let real = self.real(path)?;
        let mut made = Vec::new();
        let result = self.root.create_dir_all(&real, mode, self.chown, |p| made.push(p.to_path_buf()));
        let handle = result.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotADirectory if self.at_dest > 0 && path == Path::new(&self.step.dest) => {
                PathConflict::FileAndDirectory(shown(path)).into()
            }
            std::io::ErrorKind::NotADirectory => CopyProblem::Path(PathConflict::NotADirectory(shown(path))),
            _ => e.into(),
        })?;
        inherit_group(self.root, &made, self.chown)?;
        for path in made {
            self.no_file_later(&path)?;
            self.times.insert(path.clone(), self.now());
            self.made.insert(path);
        }
        Ok(DestDir { handle, made: self.made.contains(&real), real })
    }

    /// Returns a directory below the destination. Excluded parents of included files were not
    /// visited, so they are created here.
    pub(super) fn member_dir(&mut self, path: &Path) -> Result<DestDir, CopyProblem> {
        let real = self.real(path)?;
        if real != path {
            self.meets_link();
        }
        match self.root.sub(&real) {
            Ok(handle) => Ok(DestDir { handle, made: self.made.contains(&real), real }),
            Err(e) if e.is_not_found() => self.dir(&real, self.parent_mode()),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the directory and the name for a single file. A symbolic link in the last component
    /// of the destination path is followed; a symbolic link with the file's name inside a
    /// destination directory is replaced.
    pub(super) fn file_place(&mut self, name: &OsStr) -> Result<(DestDir, OsString), CopyProblem> {
        let (step, mode) = (self.step, self.parent_mode());
        let dest = Path::new(&step.dest);
        if step.dest_is_dir {
            return Ok((self.dir(dest, mode)?, name.to_os_string()));
        }
        let real = self.real(dest)?;
        let there = self.root.stat(&real).ok();
        match (real.parent(), real.file_name(), there) {
            (Some(parent), Some(last), there) if there.is_none_or(|stat| stat.kind != FileKind::Dir) => {
                self.at_dest += 1;
                Ok((self.dir(parent, mode)?, last.to_os_string()))
            }
            _ => Ok((self.dir(&real, mode)?, name.to_os_string())),
        }
    }

    /// Fails if several sources would be copied to a path that is a file in the image.
    pub(super) fn no_file_for_several(&self) -> Result<(), CopyProblem> {
        let step = self.step;
        if step.dest_is_dir || step.sources.len() + step.inline.len() < 2 {
            return Ok(());
        }
        match self.root.stat(self.real(Path::new(&step.dest))?) {
            Ok(stat) if stat.kind != FileKind::Dir => {
                Err(PathConflict::SeveralOverFile(shown(Path::new(&step.dest))).into())
            }
            _ => Ok(()),
        }
    }

    /// Creates the directory of an entry, or takes an existing one, following symbolic links.
    /// Returns its resolved path.
    pub(super) fn entry_dir(&mut self, dir: &DestDir, name: &OsStr) -> Result<PathBuf, CopyProblem> {
        let place = dir.real.join(name);
        match dir.handle.create_dir(name, 0o755) {
            Ok(()) => {
                self.no_file_later(&place)?;
                self.made.insert(place.clone());
                return Ok(place);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        match dir.handle.stat_name(name)?.kind {
            FileKind::Dir => Ok(place),
            FileKind::Symlink => {
                self.meets_link();
                let real = self.real(&place)?;
                match self.root.stat(&real) {
                    Ok(stat) if stat.kind != FileKind::Dir => Err(self.dir_over_file(&place)),
                    Ok(_) => Ok(real),
                    Err(_) => Ok(self.dir(&real, 0o755)?.real),
                }
            }
            _ => Err(self.dir_over_file(&place)),
        }
    }

    /// Removes the existing file at the path of a new one. Fails for a directory, which is never
    /// replaced.
    pub(super) fn clear_place(&mut self, dir: &DestDir, name: &OsStr) -> Result<(), CopyProblem> {
        let place = dir.real.join(name);
        match dir.handle.stat_name(name) {
            Ok(stat) if stat.kind == FileKind::Dir => {
                return Err(PathConflict::FileOverDirectory(shown(&place)).into());
            }
            Ok(_) => dir.handle.remove_file(name)?,
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        self.cover(&place);
        Ok(())
    }

    /// Forgets earlier hard links and deferred files at a path that is being replaced.
    pub(super) fn cover(&mut self, place: &Path) {
        self.links.cover(place);
        if self.defers == Defers::Tracked {
            self.incremental.iter_mut().for_each(|incremental| incremental.drop_destination(place));
        }
    }

    /// Starts to track destination paths: because of a symbolic link, several entries may now have
    /// the same one.
    fn meets_link(&mut self) {
        if self.defers == Defers::Plain {
            self.defers = Defers::Tracked;
            self.incremental.iter_mut().for_each(|incremental| incremental.note_places());
        }
    }

    /// Fails if a deferred file has this path, because a directory does not replace a file.
    fn no_file_later(&self, place: &Path) -> Result<(), CopyProblem> {
        let later = self.defers == Defers::Tracked
            && self.incremental.as_ref().is_some_and(|incremental| incremental.has_destination(place));
        if later { Err(self.dir_over_file(place)) } else { Ok(()) }
    }

    /// Returns the error about a directory at the path of a file of the image or of an earlier
    /// source of the same copy.
    fn dir_over_file(&self, place: &Path) -> CopyProblem {
        let place = shown(place);
        if self.at_dest > 0 && place == shown(Path::new(&self.step.dest)) {
            PathConflict::FileAndDirectory(place).into()
        } else {
            PathConflict::DirectoryOverFile(place).into()
        }
    }
}

/// Returns the path as seen in the image.
fn shown(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}
