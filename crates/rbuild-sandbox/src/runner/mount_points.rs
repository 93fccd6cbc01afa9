//! Mount points that the root file system lacks.
//!
//! They must exist to be mounted on, but must not end up in the layer. Those that every container
//! has are in a layer below all others (`rbuild_linux::MOUNT_POINTS`). Others, and those hidden by
//! layers above it, are created in a separate directory that becomes the topmost lower layer of the
//! overlay: the command sees them, but the upper directory contains only what the command wrote.
//! Parent directories of a mount point copy the metadata of the directories that they cover.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, Result, RootDir};

use crate::error::RunnerProblem;
use crate::runner::mount_checks::{ResolvedMountPoints, resolve_mount_point};

/// The type of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPointKind {
    Dir,
    File,
}

impl MountPointKind {
    pub(crate) fn needs(self) -> FileKind {
        match self {
            MountPointKind::Dir => FileKind::Dir,
            MountPointKind::File => FileKind::File,
        }
    }
}

/// Mount points to create for a command.
pub struct MountPoints<'a> {
    /// The root file system below the step.
    below: &'a RootDir,
    /// Parent of the directory of mount points, which is created on demand.
    scratch: &'a RootDir,
    made: bool,
    /// Directories that the root file system lacks, with links resolved.
    created: HashSet<PathBuf>,
    resolved: ResolvedMountPoints,
}

/// The mount points that were created.
pub struct CreatedMountPoints {
    /// The directory that contains them, if any were needed.
    pub dir: Option<RootDir>,
    /// The paths of directories among them, with links resolved.
    pub paths: HashSet<PathBuf>,
}

/// Mode of a tmpfs at a mount point that the root file system lacks.
pub(crate) const TMPFS_MODE: u32 = 0o1777;

/// Name of the directory with the mount points.
pub(crate) const MOUNT_POINTS_DIR: &str = "mount-points";

impl<'a> MountPoints<'a> {
    /// Returns an empty set of mount points.
    pub fn new(below: &'a RootDir, scratch: &'a RootDir) -> MountPoints<'a> {
        let created = HashSet::new();
        MountPoints { below, scratch, made: false, created, resolved: ResolvedMountPoints::default() }
    }

    fn dir(&mut self) -> Result<RootDir> {
        let name = OsStr::new(MOUNT_POINTS_DIR);
        if !self.made {
            let root = self.below.stat_self()?;
            self.scratch.create_dir(name, 0o755)?;
            self.scratch.sub(name)?.set_own_meta(root.owner(), root.mode, root.mtime)?;
            self.made = true;
        }
        self.scratch.sub(name)
    }

    /// Ensures that `target` exists once the mount points are created. Targets are given in the
    /// order in which they are mounted; in directories that earlier ones cover, nothing is created.
    pub fn ensure(&mut self, target: &Path, kind: MountPointKind) -> std::result::Result<(), RunnerProblem> {
        if let Some(real) = resolve_mount_point(self.below, target, kind.needs(), &self.resolved)? {
            self.create(&real, kind).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
            self.resolved.add(real, kind.needs());
        }
        Ok(())
    }

    fn create(&mut self, real: &Path, kind: MountPointKind) -> Result<()> {
        if self.below.exists(real)? || (self.made && self.dir()?.exists(real)?) {
            return Ok(());
        }
        let points = self.dir()?;
        let mut at = PathBuf::from("/");
        for part in real.parent().unwrap_or(Path::new("/")).components().skip(1) {
            at.push(part);
            self.cover(&points, &at)?;
        }
        let (dir, name) = points.parent(real)?;
        match kind {
            MountPointKind::Dir => {
                dir.create_dir(&name, 0o755)?;
                self.created.insert(real.to_path_buf());
            }
            MountPointKind::File => drop(dir.create_file(&name, 0o644)?),
        }
        // Creating the mount point changed the times of its parent directories.
        self.restore_times(&points, real)
    }

    /// Creates one parent directory, with the metadata of the one below, if any.
    fn cover(&mut self, points: &RootDir, path: &Path) -> Result<()> {
        if points.exists(path)? {
            return Ok(());
        }
        let (dir, name) = points.parent(path)?;
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
        } else {
            self.created.insert(path.to_path_buf());
        }
        Ok(())
    }

    fn restore_times(&self, points: &RootDir, real: &Path) -> Result<()> {
        let mut above = real.parent();
        while let Some(path) = above {
            if let Ok(stat) = self.below.stat(path) {
                match path.file_name() {
                    Some(_) => {
                        let (dir, name) = points.parent(path)?;
                        dir.set_mtime(&name, stat.mtime)?;
                    }
                    None => points.set_own_mtime(stat.mtime)?,
                }
            }
            above = path.parent();
        }
        Ok(())
    }

    /// Returns the mount points that were needed.
    pub fn finish(mut self) -> Result<CreatedMountPoints> {
        let dir = if self.made { Some(self.dir()?) } else { None };
        Ok(CreatedMountPoints { dir, paths: self.created })
    }
}

/// Creates the entries of `points` that are missing in `root`. Times of existing directories are
/// kept.
pub fn create_mount_points(points: &RootDir, root: &RootDir) -> Result<()> {
    let mtime = root.stat_self()?.mtime;
    for entry in points.entries()? {
        let stat = points.stat_name(&entry.name)?;
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
        create_mount_points(&points.sub(&entry.name)?, &root.sub(&entry.name)?)?;
    }
    root.set_own_mtime(mtime)
}

/// Removes the mount points that [`create_mount_points`] created: entries for which `had` returns
/// false and that are still empty. `scratch` is the scratch directory of the request.
pub fn remove_mount_points(scratch: &RootDir, root: &RootDir, had: &dyn Fn(&Path) -> bool) -> Result<()> {
    match scratch.sub(MOUNT_POINTS_DIR) {
        Ok(points) => remove_below(&points, root, Path::new(""), had),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

fn remove_below(points: &RootDir, root: &RootDir, path: &Path, had: &dyn Fn(&Path) -> bool) -> Result<()> {
    let mtime = root.stat_self()?.mtime;
    for entry in points.entries()? {
        let here = path.join(&entry.name);
        // The command may have removed it.
        let Ok(stat) = root.stat_name(&entry.name) else { continue };
        if stat.kind == FileKind::Dir {
            if let (Ok(point), Ok(dir)) = (points.sub(&entry.name), root.sub(&entry.name)) {
                remove_below(&point, &dir, &here, had)?;
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
