//! Mounts as file descriptors.
//!
//! A mount made here has no place in any tree until somebody moves it to one: it is usable through its
//! descriptor (`RootDir::from_fd`), and the kernel drops it with that descriptor. Nothing can be left behind.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::error::{Error, Result};
use crate::rootdir::RootDir;
use crate::syscalls::make_read_only;

/// Lower directories that one overlay takes (fs/overlayfs/params.h, OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// Serves all threads of a process for mounts that need a place for a moment.
static SCRATCH: Mutex<()> = Mutex::new(());

/// Longest option page of the classic mount(2) call.
const OPTION_PAGE: usize = 4096;

/// What a mount does not let be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    SetId,
    Devices,
    Programs,
    Writing,
}

/// A new file system of that kind with these options.
pub fn new_filesystem(kind: &'static str, options: &[(&str, &str)], forbidden: &[Forbidden]) -> Result<OwnedFd> {
    let attributes = forbidden.iter().map(|what| match what {
        Forbidden::SetId => MountAttrFlags::MOUNT_ATTR_NOSUID,
        Forbidden::Devices => MountAttrFlags::MOUNT_ATTR_NODEV,
        Forbidden::Programs => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        Forbidden::Writing => MountAttrFlags::MOUNT_ATTR_RDONLY,
    });
    let set = |fs: BorrowedFd<'_>| {
        options.iter().try_for_each(|(key, value)| rustix::mount::fsconfig_set_string(fs, *key, *value))
    };
    new_fs_with(kind, attributes.collect(), set)
}

fn new_fs(kind: &'static str, set: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>) -> Result<OwnedFd> {
    new_fs_with(kind, MountAttrFlags::empty(), set)
}

fn new_fs_with(
    kind: &'static str,
    attributes: MountAttrFlags,
    set: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> Result<OwnedFd> {
    let fail = |call, e: Errno| Error::new(call, kind, e);
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| fail("fsopen", e))?;
    set(fs.as_fd()).map_err(|e| fail("fsconfig", e))?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(|e| fail("fsconfig(CREATE)", e))?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| fail("fsmount", e))
}

/// A new procfs of the calling process's pid namespace.
pub fn new_procfs() -> Result<OwnedFd> {
    new_fs("proc", |_| Ok(()))
}

/// The directory or file `path` as a mount of its own. Mounts below it come along only where the kernel refuses
/// to show what they cover (a user namespace may not uncover locked mounts).
pub fn bind_clone(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match rustix::mount::open_tree(CWD, path, flags) {
        Err(Errno::INVAL) => rustix::mount::open_tree(CWD, path, flags | OpenTreeFlags::AT_RECURSIVE),
        other => other,
    }
    .map_err(|e| Error::new("open_tree", path, e))
}

/// An overlay of `lowers` (the topmost first) with `upper` and its work directory on top, or read-only without.
///
/// Paths must be absolute and stay valid during this call only. `userxattr` is always set, as an overlay in a
/// user namespace needs it. With an upper directory the mount is `volatile`: fsync inside costs nothing, and
/// the caller syncs what it keeps.
/// Uses `lowerdir+` (Linux 6.8, 500 layers); on older kernels the classic call at `scratch`, an existing
/// directory of the caller's own mount namespace, which takes about 100 layers. What is beyond 500 becomes an
/// overlay of its own below the other; the kernel stacks two, so there are 999 layers at most.
pub fn detached_overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, scratch: &Path) -> Result<OwnedFd> {
    if lowers.len() >= 2 * MAX_LOWERS {
        return Err(Error::new(
            "mount",
            format!("overlay of {} layers; 999 are the most", lowers.len()),
            Errno::TOOBIG,
        ));
    }
    if lowers.len() > MAX_LOWERS {
        let (top, bottom) = lowers.split_at(MAX_LOWERS - 1);
        let below = detached_overlay(bottom, None, scratch)?;
        let _alone = SCRATCH.lock().unwrap_or_else(PoisonError::into_inner);
        move_to(below.as_fd(), CWD, scratch)?;
        let made = overlay_by_config(&[top, &[scratch.to_path_buf()]].concat(), upper);
        rustix::mount::unmount(scratch, UnmountFlags::DETACH).map_err(|e| Error::new("umount2", scratch, e))?;
        return made;
    }
    match overlay_by_config(lowers, upper) {
        Err(e) if e.errno() == Some(libc::EINVAL) || e.errno() == Some(libc::ENOSYS) => {
            overlay_classic(lowers, upper, scratch).map_err(|_| e)
        }
        other => other,
    }
}

fn overlay_by_config(lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<OwnedFd> {
    new_fs("overlay", |fs| {
        use rustix::mount::{fsconfig_set_flag, fsconfig_set_string};
        fsconfig_set_string(fs, "source", "rbuild")?;
        for lower in lowers {
            fsconfig_set_string(fs, "lowerdir+", lower.as_path())?;
        }
        if let Some((upper, work)) = upper {
            fsconfig_set_string(fs, "upperdir", upper)?;
            fsconfig_set_string(fs, "workdir", work)?;
            fsconfig_set_flag(fs, "volatile")?;
        }
        fsconfig_set_flag(fs, "userxattr")
    })
}

fn overlay_classic(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, scratch: &Path) -> Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let mut options = b"userxattr,lowerdir=".to_vec();
    for (i, lower) in lowers.iter().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend_from_slice(lower.as_os_str().as_bytes());
    }
    if let Some((upper, work)) = upper {
        for (key, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
            options.extend_from_slice(key);
            options.extend_from_slice(path.as_os_str().as_bytes());
        }
        options.extend_from_slice(b",volatile");
    }
    if options.len() >= OPTION_PAGE {
        return Err(Error::new("mount", format!("overlay of {} layers", lowers.len()), Errno::TOOBIG));
    }
    let _alone = SCRATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let data = std::ffi::CString::new(options).map_err(|_| Error::new("mount", "overlay", Errno::INVAL))?;
    rustix::mount::mount("rbuild", scratch, "overlay", MountFlags::empty(), data.as_c_str())
        .map_err(|e| Error::new("mount", "overlay", e))?;
    let clone = bind_clone(scratch);
    rustix::mount::unmount(scratch, UnmountFlags::DETACH).map_err(|e| Error::new("umount2", scratch, e))?;
    clone
}

/// A mount namespace of the caller's own from which nothing propagates back.
pub fn private_mount_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| Error::new("unshare", "CLONE_NEWNS", std::io::Error::from(e)))?;
    make_private()
}

/// Namespaces of the caller's own for mounts, from which nothing propagates back, for System V and POSIX objects, and for
/// the host name, which it sets if it may: filters of containers forbid sethostname(2) to whoever had no CAP_SYS_ADMIN to begin with.
pub fn private_namespaces(hostname: &str) -> Result<()> {
    use nix::sched::CloneFlags;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(|e| Error::new("unshare", "CLONE_NEWNS|CLONE_NEWIPC|CLONE_NEWUTS", std::io::Error::from(e)))?;
    match rustix::system::sethostname(hostname.as_bytes()) {
        Ok(()) | Err(Errno::PERM | Errno::NOSYS) => {}
        Err(e) => return Err(Error::new("sethostname", hostname, e)),
    }
    make_private()
}

/// Mounts an empty tmpfs over the directory `place`.
pub fn mount_tmpfs(place: &Path) -> Result<()> {
    let tmpfs = new_fs("tmpfs", |fs| rustix::mount::fsconfig_set_string(fs, "mode", "0755"))?;
    move_to(tmpfs.as_fd(), CWD, place)
}

fn make_private() -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|e| Error::new("mount", "/ (private)", e))
}

/// The small world of the builder process: a tmpfs with a handful of mounts in it.
///
/// Few lines in mountinfo make every later container cheap. The container library moves each container into a cgroup, and there
/// is none to move it to: where `/sys/fs/cgroup` is a cgroup2, it writes a number into an ordinary file that covers
/// `cgroup.procs` there, and where it is an empty directory, it looks through mountinfo for each old controller in vain.
pub struct MiniRoot {
    root: RootDir,
}

/// A directory of the small root with the mount points that every container has: /proc, /sys, /dev, and in /etc the hosts and the
/// resolv.conf. As the lowest layer of a container's files it gives what no layer above it has.
pub const MOUNT_POINTS: &str = "/points";

/// Device nodes that containers get from the outside, as a user namespace cannot make them.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl MiniRoot {
    /// Mounts an empty tmpfs at `place` (an existing directory; only this mount namespace sees it). What is to
    /// be attached later must have been cloned before if it lies under `place`.
    pub fn new(place: &Path) -> Result<MiniRoot> {
        make_private()?;
        mount_tmpfs(place)?;
        let root = RootDir::open(place)?;
        for dir in ["proc", "dev", "sys", "sys/fs", "sys/fs/cgroup", "etc", "run", "tmp", "mnt"] {
            root.create_dir_all(dir, 0o755, None, |_| ())?;
        }
        // See MOUNT_POINTS.
        for dir in ["proc", "sys", "dev", "etc"] {
            root.create_dir_all(Path::new("points").join(dir), 0o755, None, |_| ())?;
        }
        for file in ["hosts", "resolv.conf"] {
            root.sub("points/etc")?.create_file(OsStr::new(file), 0o644)?;
        }
        Ok(MiniRoot { root })
    }

    pub fn root(&self) -> &RootDir {
        &self.root
    }

    /// Mounts a cgroup2 whose `cgroup.procs` is an ordinary file. Where that cannot be, the directory stays empty.
    pub fn attach_cgroup(&self) -> Result<()> {
        // A user namespace mounts cgroups of a cgroup namespace that it owns (cgroup_namespaces(7)).
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).is_err() {
            return Ok(());
        }
        let Ok(cgroup) = new_fs("cgroup2", |_| Ok(())) else { return Ok(()) };
        let name = OsStr::new("cgroup.procs");
        drop(self.root.create_file(name, 0o644)?);
        let file = bind_clone(&self.root.label().join(name))?;
        if self.root.sub("sys/fs")?.attach(&cgroup, "cgroup").is_err() {
            return Ok(());
        }
        let place = "sys/fs/cgroup";
        if self.root.sub(place)?.attach(&file, name).is_err() {
            let place = self.root.label().join(place);
            rustix::mount::unmount(&place, UnmountFlags::DETACH).map_err(|e| Error::new("umount2", place, e))?;
        }
        Ok(())
    }

    /// Attaches a detached mount of a directory or a file at `place` below the root; the point is made.
    pub fn attach(&self, mount: &OwnedFd, place: &Path) -> Result<()> {
        let place = place.strip_prefix("/").unwrap_or(place);
        let stat = rustix::fs::fstat(mount).map_err(|e| Error::new("fstat", place, e))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
            self.root.create_dir_all(place, 0o755, None, |_| ())?;
        } else {
            self.root.create_dir_all(place.parent().unwrap_or(Path::new("")), 0o755, None, |_| ())?;
            let (dir, name) = self.root.parent(place)?;
            dir.create_file(&name, 0o600)?;
        }
        move_to(mount.as_fd(), self.root.fd(), place)
    }

    /// Binds the few device nodes from the caller's /dev, read-only: commands use the devices and cannot change the machine's
    /// nodes (mode, owner, times, attributes). One that is missing there is left out.
    pub fn attach_devices(&self) -> Result<()> {
        let dev = self.root.sub("dev")?;
        for name in DEVICES {
            let source = Path::new("/dev").join(name);
            match bind_clone(&source) {
                Ok(mount) => {
                    make_read_only(&mount)?;
                    dev.create_file(OsStr::new(name), 0o666)?;
                    move_to(mount.as_fd(), dev.fd(), Path::new(name))?;
                }
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Makes this the root of the mount namespace and lets go of the old one. Descriptors opened before stay
    /// usable, mounts below them included.
    pub fn enter(self) -> Result<()> {
        let fail = |call, e: Errno| Error::new(call, "/", e);
        rustix::process::fchdir(self.root.fd()).map_err(|e| fail("fchdir", e))?;
        rustix::process::pivot_root(".", ".").map_err(|e| fail("pivot_root", e))?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(|e| fail("umount2", e))?;
        rustix::process::chdir("/").map_err(|e| fail("chdir", e))
    }
}

fn move_to(mount: BorrowedFd<'_>, dir: impl AsFd, name: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| Error::new("move_mount", name, e))
}

impl RootDir {
    /// This directory as a mount of its own.
    pub fn detached(&self) -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        rustix::mount::open_tree(self.fd(), "", flags).map_err(|e| Error::new("open_tree", self.label(), e))
    }

    /// Attaches a detached mount over the direct child `name`.
    pub fn attach(&self, mount: &OwnedFd, name: impl AsRef<Path>) -> Result<()> {
        move_to(mount.as_fd(), self.fd(), name.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_layers_are_refused_by_number() {
        let lowers = vec![PathBuf::from("/"); 1000];
        let error = detached_overlay(&lowers, None, Path::new("/mnt")).unwrap_err().to_string();
        assert!(error.contains("1000 layers; 999 are the most"), "{error}");
    }
}
