//! Mounts as file descriptors.
//!
//! A mount created here is detached until it is attached somewhere: it is usable through its
//! descriptor (`RootDir::from_fd`), and the kernel drops it with that descriptor, so no mount can
//! be left behind.

use crate::parallel::locked;
use rbuild_remedy::counted;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::error::{Error, Result, described};
use crate::rootdir::RootDir;
use crate::syscalls::make_read_only;

/// Maximum number of lower directories of one overlay (fs/overlayfs/params.h, OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// Serializes mounts that temporarily occupy the scratch directory.
static SCRATCH: Mutex<()> = Mutex::new(());

/// Maximum length of the option page of the classic mount(2) call.
const OPTION_PAGE: usize = 4096;

/// A kind of use that a mount forbids (mount(2): nosuid, nodev, noexec, ro).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// Set-user-ID and set-group-ID programs (`nosuid`).
    SetId,
    /// Device nodes (`nodev`).
    Devices,
    /// Programs (`noexec`).
    Programs,
    /// Changes (`ro`).
    Writing,
}

/// Creates a detached file system of that type with these options.
pub fn new_filesystem(kind: &'static str, options: &[(&str, &str)], forbidden: &[Forbidden]) -> Result<OwnedFd> {
    let attributes = forbidden.iter().map(|forbidden| match forbidden {
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
    let fail = |call, e: Errno| Error::new(call, described(format!("a new {kind} file system")), e);
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| fail("fsopen", e))?;
    set(fs.as_fd()).map_err(|e| fail("fsconfig", e))?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(|e| fail("fsconfig(CREATE)", e))?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| fail("fsmount", e))
}

/// Creates a procfs of the calling process's PID namespace.
pub fn new_procfs() -> Result<OwnedFd> {
    new_fs("proc", |_| Ok(()))
}

/// Clones the directory or file `path` as a detached mount. Mounts below it are included only if
/// the kernel refuses to reveal what they cover (a user namespace may not uncover locked mounts).
pub fn bind_clone(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match rustix::mount::open_tree(CWD, path, flags) {
        Err(Errno::INVAL) => rustix::mount::open_tree(CWD, path, flags | OpenTreeFlags::AT_RECURSIVE),
        other => other,
    }
    .map_err(|e| Error::new("open_tree", path, e))
}

/// Creates an overlay of `lowers` (topmost first), with `upper` and its work directory on top, or
/// read-only without them.
///
/// Paths must be absolute and need to stay valid during this call only. `userxattr` is always set,
/// as required for an overlay in a user namespace. With an upper directory the mount is `volatile`:
/// fsync inside is free, and the caller syncs what it keeps.
///
/// Uses `lowerdir+` (Linux 6.8, 500 layers). Older kernels get the classic call at `scratch`, an
/// existing directory in the caller's own mount namespace, which takes about 100 layers. Layers
/// beyond 500 form a second overlay below the first; the kernel stacks two, so the maximum is 999
/// layers.
pub fn detached_overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, scratch: &Path) -> Result<OwnedFd> {
    if lowers.len() >= 2 * MAX_LOWERS {
        return Err(too_many(lowers.len(), 2 * MAX_LOWERS - 1));
    }
    if lowers.len() > MAX_LOWERS {
        let (top, bottom) = lowers.split_at(MAX_LOWERS - 1);
        let below = detached_overlay(bottom, None, scratch)?;
        let _alone = locked(&SCRATCH);
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

fn too_many(layers: usize, limit: usize) -> Error {
    unmountable(layers, format!("the limit is {limit}"))
}

fn unmountable(layers: usize, reason: String) -> Error {
    let overlay = described(format!("an overlay of {}", counted(layers as u64, "layer")));
    Error::new("mount", overlay, std::io::Error::other(reason))
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
        return Err(unmountable(lowers.len(), format!("their paths have more than {OPTION_PAGE} bytes in total")));
    }
    let _alone = locked(&SCRATCH);
    let data =
        std::ffi::CString::new(options).map_err(|_| Error::new("mount", described("an overlay"), Errno::INVAL))?;
    rustix::mount::mount("rbuild", scratch, "overlay", MountFlags::empty(), data.as_c_str())
        .map_err(|e| Error::new("mount", described("an overlay"), e))?;
    let clone = bind_clone(scratch);
    rustix::mount::unmount(scratch, UnmountFlags::DETACH).map_err(|e| Error::new("umount2", scratch, e))?;
    clone
}

/// Enters a new mount namespace that propagates no mounts back.
pub fn private_mount_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| Error::new("unshare", described("a mount namespace"), std::io::Error::from(e)))?;
    make_private()
}

/// Enters new namespaces for mounts (propagating none back), for System V and POSIX IPC objects,
/// and for the host name, which is set if permitted: seccomp filters of containers deny
/// sethostname(2) to processes that started without CAP_SYS_ADMIN.
pub fn private_namespaces(hostname: &str) -> Result<()> {
    use nix::sched::CloneFlags;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(|e| Error::new("unshare", described("new namespaces"), std::io::Error::from(e)))?;
    match rustix::system::sethostname(hostname.as_bytes()) {
        Ok(()) | Err(Errno::PERM | Errno::NOSYS) => {}
        Err(e) => return Err(Error::new("sethostname", described(format!("the host name `{hostname}`")), e)),
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
        .map_err(|e| Error::new("mount", described("the root directory without propagation"), e))
}

/// The root file system of the builder process: a tmpfs with a handful of mounts in it.
///
/// A short mountinfo makes every later container cheap. The container library moves each container
/// into a cgroup, which the builder does not have. If `/sys/fs/cgroup` is a cgroup2, the library
/// writes the process ID into an ordinary file mounted over its `cgroup.procs`; if it is an empty
/// directory, the library searches mountinfo for each cgroup v1 controller and finds none.
pub struct MiniRoot {
    root: RootDir,
}

/// Directory of the builder's root with the mount points that every container has: /proc, /sys,
/// /dev, /etc/hosts and /etc/resolv.conf. As the lowest layer of a container it supplies those that
/// the layers above lack.
pub const MOUNT_POINTS: &str = "/points";

/// Device nodes bound from the host, because a user namespace cannot create them.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl MiniRoot {
    /// Mounts an empty tmpfs at `place` (an existing directory; visible in this mount namespace
    /// only). Mounts below `place` that are attached later must be cloned before.
    pub fn new(place: &Path) -> Result<MiniRoot> {
        make_private()?;
        mount_tmpfs(place)?;
        let root = RootDir::open(place)?;
        for dir in ["proc", "dev", "sys", "sys/fs", "sys/fs/cgroup", "etc", "run", "tmp", "mnt"] {
            root.create_dir_all(dir, 0o755, None, |_| ())?;
        }
        // See [`MOUNT_POINTS`].
        for dir in ["proc", "sys", "dev", "etc"] {
            root.create_dir_all(Path::new("points").join(dir), 0o755, None, |_| ())?;
        }
        for file in ["hosts", "resolv.conf"] {
            root.sub("points/etc")?.create_file(OsStr::new(file), 0o644)?;
        }
        Ok(MiniRoot { root })
    }

    /// Returns the root directory.
    pub fn root(&self) -> &RootDir {
        &self.root
    }

    /// Mounts a cgroup2 whose `cgroup.procs` is an ordinary file. If that is not possible, the
    /// directory stays empty.
    pub fn attach_cgroup(&self) -> Result<()> {
        // A user namespace can mount cgroups of a cgroup namespace that it owns
        // (cgroup_namespaces(7)).
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).is_err() {
            return Ok(());
        }
        let Ok(cgroup) = new_fs("cgroup2", |_| Ok(())) else { return Ok(()) };
        let name = OsStr::new("cgroup.procs");
        drop(self.root.create_file(name, 0o644)?);
        let file = bind_clone(&self.root.label().join(name))?;
        if attach_mount(&cgroup, &self.root.sub("sys/fs")?, "cgroup").is_err() {
            return Ok(());
        }
        let place = "sys/fs/cgroup";
        if attach_mount(&file, &self.root.sub(place)?, name).is_err() {
            let place = self.root.label().join(place);
            rustix::mount::unmount(&place, UnmountFlags::DETACH).map_err(|e| Error::new("umount2", place, e))?;
        }
        Ok(())
    }

    /// Attaches a detached mount of a directory or file at `place` below the root, creating the
    /// mount point.
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

    /// Binds the few device nodes from the caller's /dev, read-only: commands can use the devices
    /// but not change the host's nodes (mode, owner, times, attributes). Missing nodes are skipped.
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

    /// Makes this the root of the mount namespace. See [`enter_root`].
    pub fn enter(self) -> Result<()> {
        enter_root(&self.root)
    }
}

/// Makes a mount point the root of the mount namespace and detaches the old one. Descriptors opened
/// before remain usable, including mounts below them.
pub fn enter_root(root: &RootDir) -> Result<()> {
    let fail = |call, e: Errno| Error::new(call, described("the new root directory"), e);
    rustix::process::fchdir(root.fd()).map_err(|e| fail("fchdir", e))?;
    rustix::process::pivot_root(".", ".").map_err(|e| fail("pivot_root", e))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(|e| fail("umount2", e))?;
    rustix::process::chdir("/").map_err(|e| fail("chdir", e))
}

fn move_to(mount: BorrowedFd<'_>, dir: impl AsFd, name: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| Error::new("move_mount", name, e))
}

/// Clones a directory as a detached mount.
pub fn detached_dir(dir: &RootDir) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(dir.fd(), "", flags).map_err(|e| dir.error("open_tree", "", e))
}

/// Attaches a detached mount over the direct child `name` of a directory.
pub fn attach_mount(mount: &OwnedFd, dir: &RootDir, name: impl AsRef<Path>) -> Result<()> {
    move_to(mount.as_fd(), dir.fd(), name.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_layers_are_rejected_as_recorded() {
        let lowers = vec![PathBuf::from("/trees/a"); 1000];
        let errors = [
            detached_overlay(&lowers, None, Path::new("/mnt")).unwrap_err(),
            overlay_classic(&lowers[..500], None, Path::new("/mnt")).unwrap_err(),
        ];
        let rows = errors.map(|e| rbuild_testkit::message_row("overlay", &e, e.remedy()));
        rbuild_testkit::assert_recorded!("overlays", rows.concat());
    }
}
