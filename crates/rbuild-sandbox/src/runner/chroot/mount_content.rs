//! Contents placed into a root directory instead of a mount.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use rbuild_linux::{DirStack, EntryCopy, FileKind, RootDir, Stat, UidGid, copy_entry};

use crate::error::RunnerProblem;
use crate::protocol::{MountRequest, MountSource};
use crate::runner::devices::DEVICES;
use crate::runner::mount_points::TMPFS_MODE;

/// A directory entry: its directory and its name.
pub(super) type EntryAt = (RootDir, OsString);

/// The content of a mount.
pub(super) enum MountContent<'a> {
    /// A file: content, mode, owner and group.
    Text(&'a [u8], u32, UidGid),
    /// An empty directory with that mode.
    Empty(u32),
    /// The command's own /dev.
    Devices,
    /// An entry made for this command alone. It is moved into the root directory and back.
    Moved(EntryAt),
    /// A file or directory of the host, which is copied and only read.
    Copied(EntryAt),
    /// A socket, which is hard-linked: all its names refer to the same socket.
    Socket(EntryAt),
}

impl MountContent<'_> {
    /// Returns the content of a mount. `covered_mode` returns the mode of the directory that it
    /// covers, if there is one.
    pub(super) fn of<'w>(
        wanted: &'w MountRequest,
        covered_mode: impl FnOnce(&Path) -> Option<u32>,
    ) -> Result<MountContent<'w>, RunnerProblem> {
        Ok(match &wanted.source {
            MountSource::File { content, mode, uid, gid } => {
                MountContent::Text(content, *mode, UidGid::new(*uid, *gid))
            }
            MountSource::Tmpfs(options) => {
                let covered_mode = || covered_mode(Path::new(&wanted.target));
                MountContent::Empty(options.mode.or_else(covered_mode).unwrap_or(TMPFS_MODE))
            }
            MountSource::Bind(path) => socket(path)?,
            MountSource::Part { dir, path } => MountContent::Moved(inside(dir, path)?),
            MountSource::BindBelow { .. } => return Err(RunnerProblem::NeedsMounts("a directory that stays".into())),
            MountSource::Trees { .. } => return Err(RunnerProblem::NeedsMounts("a mount of layers".into())),
            MountSource::Machine(path) if wanted.read_only => MountContent::Copied(outside(path)?),
            MountSource::Machine(path) => return Err(RunnerProblem::WritableVolume(path.display().to_string())),
        })
    }

    pub(super) fn is_dir(&self) -> Result<bool, RunnerProblem> {
        match self {
            MountContent::Text(..) | MountContent::Socket(_) => Ok(false),
            MountContent::Empty(_) | MountContent::Devices => Ok(true),
            MountContent::Moved((dir, name)) | MountContent::Copied((dir, name)) => {
                let stat = dir.stat_name(name)?;
                Ok(stat.kind == FileKind::Dir)
            }
        }
    }

    /// Creates it as the entry `name` of `dir`. The name must not exist.
    pub(super) fn make(&self, dir: &RootDir, name: &OsStr) -> rbuild_linux::Result<()> {
        match self {
            MountContent::Text(content, mode, owner) => {
                let mut file = dir.create_file(name, 0o600)?;
                let failed = |e| dir.error("write", name, e);
                file.write_all(content).map_err(failed)?;
                dir.chown(name, *owner)?;
                dir.chmod(name, *mode)
            }
            MountContent::Empty(mode) => {
                dir.create_dir(name, 0o700)?;
                dir.chmod(name, *mode)
            }
            MountContent::Devices => {
                dir.create_dir(name, 0o755)?;
                dir.chmod(name, 0o755)?;
                fill_dev(&dir.sub(name)?)
            }
            MountContent::Moved((from, old)) => from.rename(old, dir, name),
            MountContent::Copied((from, old)) => copy_tree(from, old, dir, name),
            MountContent::Socket((from, old)) => dir.hard_link(from, old, name),
        }
    }
}

/// Creates the device nodes and shared memory. Without permission to create nodes, they are empty
/// files.
fn fill_dev(dev: &RootDir) -> rbuild_linux::Result<()> {
    for (name, number) in DEVICES {
        let name = OsStr::new(name);
        if dev.create_node(name, FileKind::CharDevice, 0o666, number).is_err() {
            drop(dev.create_file(name, 0o666)?);
        }
        dev.chmod(name, 0o666)?;
    }
    let shared = OsStr::new("shm");
    dev.create_dir(shared, 0o777)?;
    dev.chmod(shared, 0o1777)
}

fn socket(path: &Path) -> Result<MountContent<'static>, RunnerProblem> {
    let (dir, name) = outside(path)?;
    match dir.stat_name(&name)?.kind {
        FileKind::Socket => Ok(MountContent::Socket((dir, name))),
        // Any other file shown directly could be hard-linked into the result.
        _ => Err(RunnerProblem::NeedsMounts(path.display().to_string().into())),
    }
}

/// Resolves a path inside a directory, without links leaving it.
fn inside(dir: &Path, path: &Path) -> Result<EntryAt, RunnerProblem> {
    let root = RootDir::open(dir)?;
    let real = root.resolve(path)?;
    match real.file_name() {
        Some(_) => Ok(root.parent(&real)?),
        None => outside(dir),
    }
}

fn outside(path: &Path) -> Result<EntryAt, RunnerProblem> {
    let above = path.parent().ok_or_else(|| RunnerProblem::NeedsMounts("the root directory of the machine".into()))?;
    let name =
        path.file_name().ok_or_else(|| RunnerProblem::NeedsMounts("the root directory of the machine".into()))?;
    Ok((RootDir::open(above)?, name.to_os_string()))
}

/// Copies an entry recursively under another name. Devices, FIFOs and sockets are skipped.
fn copy_tree(from: &RootDir, old: &OsStr, to: &RootDir, name: &OsStr) -> rbuild_linux::Result<()> {
    let stat = from.stat_name(old)?;
    if stat.kind != FileKind::Dir {
        return copy_leaf(from, old, &stat, to, name);
    }
    to.create_dir(name, 0o700)?;
    let (mut there, mut here) = (DirStack::new(from.sub(old)?), DirStack::new(to.sub(name)?));
    let mut levels = vec![(there.last().entries()?, stat)];
    while let Some((entries, stat)) = levels.last_mut() {
        let Some(entry) = entries.pop() else {
            here.last().set_own_meta(stat.owner(), stat.mode, stat.mtime)?;
            levels.pop();
            there.leave()?;
            here.leave()?;
            continue;
        };
        let (name, stat) = (&entry.name, there.last().stat_name(&entry.name)?);
        if stat.kind != FileKind::Dir {
            copy_leaf(there.last(), name, &stat, here.last(), name)?;
            continue;
        }
        here.last().create_dir(name, 0o700)?;
        here.enter(name)?;
        levels.push((there.enter(name)?.entries()?, stat));
    }
    Ok(())
}

/// Copies an entry that is not a directory, without its extended attributes.
fn copy_leaf(from: &RootDir, old: &OsStr, stat: &Stat, to: &RootDir, name: &OsStr) -> rbuild_linux::Result<()> {
    match stat.kind {
        FileKind::File | FileKind::Symlink => copy_entry(from, old, stat, to, name, &EntryCopy::of(stat)).map(drop),
        _ => Ok(()),
    }
}
