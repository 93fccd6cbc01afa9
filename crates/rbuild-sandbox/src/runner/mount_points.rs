//! Mount points that the root file system lacks.
//!
//! They must exist to be mounted on, but must not end up in the layer. Those that every container
//! has are in a layer below all others (`rbuild_linux::MOUNT_POINTS`). Others, and those hidden by
//! layers above it, are created in a separate directory that becomes the topmost lower layer of the
//! overlay: the command sees them, but the upper directory contains only what the command wrote.
//! Parent directories of a mount point copy the metadata of the directories that they cover.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, Result, RootDir};

use crate::error::RunnerProblem;
use crate::runner::obstacles::{Taken, free_place};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointKind {
    Dir,
    File,
}

impl PointKind {
    pub(crate) fn needs(self) -> FileKind {
        match self {
            PointKind::Dir => FileKind::Dir,
            PointKind::File => FileKind::File,
        }
    }
}

pub struct Stubs<'a> {
    /// The root file system below the step.
    below: &'a RootDir,
    /// Parent of the directory of stubs, which is created on demand.
    scratch: &'a RootDir,
    made: bool,
    taken: Taken,
}

/// The name of the directory of stubs.
pub(crate) const STUBS: &str = "stubs";

impl<'a> Stubs<'a> {
    pub fn new(below: &'a RootDir, scratch: &'a RootDir) -> Stubs<'a> {
        Stubs { below, scratch, made: false, taken: Taken::default() }
    }

    fn dir(&mut self) -> Result<RootDir> {
        let name = OsStr::new(STUBS);
        if !self.made {
            let root = self.below.stat_self()?;
            self.scratch.create_dir(name, 0o755)?;
            self.scratch.sub(name)?.set_own_meta(root.owner(), root.mode, root.mtime)?;
            self.made = true;
        }
        self.scratch.sub(name)
    }

    /// Ensures that `target` exists once the stubs are in place. Targets are given in the order in
    /// which they are mounted; in directories that earlier ones cover, nothing is made.
    pub fn ensure(&mut self, target: &Path, kind: PointKind) -> std::result::Result<(), RunnerProblem> {
        if let Some(real) = free_place(self.below, target, kind.needs(), &self.taken)? {
            self.have(&real, kind).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
            self.taken.add(real, kind.needs());
        }
        Ok(())
    }

    fn have(&mut self, real: &Path, kind: PointKind) -> Result<()> {
        if self.below.exists(real)? || (self.made && self.dir()?.exists(real)?) {
            return Ok(());
        }
        let stubs = self.dir()?;
        let mut at = PathBuf::from("/");
        for part in real.parent().unwrap_or(Path::new("/")).components().skip(1) {
            at.push(part);
            self.cover(&stubs, &at)?;
        }
        let (dir, name) = stubs.parent(real)?;
        match kind {
            PointKind::Dir => dir.create_dir(&name, 0o755)?,
            PointKind::File => drop(dir.create_file(&name, 0o644)?),
        }
        // Creating the mount point changed the times of its parent directories.
        self.restore_times(&stubs, real)
    }

    /// Creates one parent directory, with the metadata of the one below, if any.
    fn cover(&self, stubs: &RootDir, path: &Path) -> Result<()> {
        if stubs.exists(path)? {
            return Ok(());
        }
        let (dir, name) = stubs.parent(path)?;
        dir.create_dir(&name, 0o755)?;
        if let Ok(stat) = self.below.stat(path)
            && stat.kind == FileKind::Dir
        {
            let (below, below_name) = self.below.parent(path)?;
            for (attr, value) in below.xattrs(&below_name)? {
                if !attr.to_string_lossy().starts_with("user.overlay.") {
                    dir.set_xattr(&name, &attr, &value)?;
                }
            }
            dir.sub(&name)?.set_own_meta(stat.owner(), stat.mode, stat.mtime)?;
        }
        Ok(())
    }

    fn restore_times(&self, stubs: &RootDir, real: &Path) -> Result<()> {
        let mut above = real.parent();
        while let Some(path) = above {
            if let Ok(stat) = self.below.stat(path) {
                match path.file_name() {
                    Some(_) => {
                        let (dir, name) = stubs.parent(path)?;
                        dir.set_mtime(&name, stat.mtime)?;
                    }
                    None => stubs.set_own_mtime(stat.mtime)?,
                }
            }
            above = path.parent();
        }
        Ok(())
    }

    /// Returns the directory of stubs, if any were needed.
    pub fn finish(mut self) -> Result<Option<RootDir>> {
        if self.made { self.dir().map(Some) } else { Ok(None) }
    }
}

/// Creates the entries of `stubs` that are missing in `root`. Times of existing directories are
/// kept.
pub fn plant_points(stubs: &RootDir, root: &RootDir) -> Result<()> {
    let mtime = root.stat_self()?.mtime;
    for entry in stubs.entries()? {
        let stat = stubs.stat_name(&entry.name)?;
        let there = root.exists(&entry.name)?;
        if stat.kind != FileKind::Dir {
            if !there {
                drop(root.create_file(&entry.name, 0o644)?);
            }
            continue;
        }
        if !there {
            root.create_dir(&entry.name, 0o755)?;
        }
        plant_points(&stubs.sub(&entry.name)?, &root.sub(&entry.name)?)?;
    }
    root.set_own_mtime(mtime)
}

/// Removes what [`plant_points`] created: entries that `had` does not report as preexisting, and
/// that are still empty. `scratch` is the scratch directory of the request.
pub fn remove_points(scratch: &RootDir, root: &RootDir, had: &dyn Fn(&Path) -> bool) -> Result<()> {
    match scratch.sub(STUBS) {
        Ok(stubs) => remove_below(&stubs, root, Path::new(""), had),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

fn remove_below(stubs: &RootDir, root: &RootDir, path: &Path, had: &dyn Fn(&Path) -> bool) -> Result<()> {
    let mtime = root.stat_self()?.mtime;
    for entry in stubs.entries()? {
        let here = path.join(&entry.name);
        // The command may have removed it.
        let Ok(stat) = root.stat_name(&entry.name) else { continue };
        if stat.kind == FileKind::Dir {
            if let (Ok(stub), Ok(dir)) = (stubs.sub(&entry.name), root.sub(&entry.name)) {
                remove_below(&stub, &dir, &here, had)?;
            }
            if !had(&here) {
                // Fails if it is not empty; then it is more than a mount point and stays.
                let _ = root.remove_dir(&entry.name);
            }
        } else if stat.kind == FileKind::File && stat.size == 0 && !had(&here) {
            root.remove_file(&entry.name)?;
        }
    }
    root.set_own_mtime(mtime)
}
