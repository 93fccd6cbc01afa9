//! Path resolution inside a root file system.
//!
//! A [`RootDir`] is a directory that serves as `/`. Every path given to it is resolved by the
//! kernel with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS` (openat2(2), Linux 5.6): absolute symbolic
//! links and `..` stop at this root and never escape it, whatever other processes change
//! concurrently. Operations never follow a link in the last component unless their name contains
//! `follow`. Operations that take a name instead of a path accept exactly one component, as the
//! kernel resolves it without regard to the root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, StatVfsMountFlags, StatxFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::idmap::unmapped_owner;
use crate::meta::{Kind, Stat, Timestamp, Xattrs, xattrs_by};
use crate::recorded_owners::{self, Recorded, owners_are_recorded};

mod long;

use long::{IN_ROOT, clean_dotted, openat2_by};

#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    /// Used in error messages only; never resolved again.
    label: PathBuf,
}

/// One directory entry, with its type as returned by getdents(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    /// `None` if the file system does not report it.
    pub kind: Option<Kind>,
}

fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if path.as_os_str().len() >= long::MOST_AT_ONCE {
        return long::open(dir, path, flags, mode);
    }
    openat2_by(dir, path, (flags, mode), IN_ROOT)
}

/// Returns `name` if it is a single path component. `..` or a slash in a name would leave the
/// directory despite `RESOLVE_IN_ROOT`, because the `*at` calls do not know the root.
fn one_component(name: &OsStr) -> rustix::io::Result<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

/// Like [`one_component`], but accepts an empty name, which means the directory itself.
fn one_component_or_self(name: &OsStr) -> rustix::io::Result<&OsStr> {
    if name.is_empty() { Ok(name) } else { one_component(name) }
}

/// Attribute that makes an empty file an overlay whiteout.
const WHITEOUT: &str = "user.overlay.whiteout";

impl RootDir {
    /// Opens `path` of the calling process's own file system as a root, following symbolic links.
    pub fn open(path: impl AsRef<Path>) -> Result<RootDir> {
        let path = path.as_ref();
        let fd = rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
            .map_err(|e| Error::new("openat", path, e))?;
        Ok(RootDir { fd, label: path.to_path_buf() })
    }

    /// Uses a directory descriptor as a root; `label` names it in errors.
    pub fn from_fd(fd: OwnedFd, label: impl Into<PathBuf>) -> RootDir {
        RootDir { fd, label: label.into() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub fn label(&self) -> &Path {
        &self.label
    }

    pub fn try_clone(&self) -> Result<RootDir> {
        let fd = self.fd.try_clone().map_err(|e| Error::new("dup", &self.label, e))?;
        Ok(RootDir { fd, label: self.label.clone() })
    }

    pub(crate) fn err(&self, call: &'static str, path: &Path, e: Errno) -> Error {
        let shown = path.strip_prefix("/").unwrap_or(path);
        Error::new(call, self.label.join(shown), e)
    }

    /// Opens a directory below this one as a root of its own.
    pub fn sub(&self, path: impl AsRef<Path>) -> Result<RootDir> {
        let path = path.as_ref();
        let fd = openat2(self.fd(), path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(|e| self.err("openat2", path, e))?;
        Ok(RootDir { fd, label: self.label.join(path.strip_prefix("/").unwrap_or(path)) })
    }

    /// Opens the directory that holds the last component of `path`, and returns it with that
    /// component's name. The name is empty if `path` is the root itself.
    pub fn parent(&self, path: impl AsRef<Path>) -> Result<(RootDir, OsString)> {
        let path = path.as_ref();
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((self.sub(parent)?, name.to_os_string())),
            _ => Ok((self.try_clone()?, OsString::new())),
        }
    }

    /// Returns the metadata of `path`, without following a link in the last component.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<Stat> {
        let path = path.as_ref();
        if one_component(path.as_os_str()).is_ok() {
            return self.stat_name(path.as_os_str());
        }
        let fd = openat2(self.fd(), path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| self.err("openat2", path, e))?;
        stat_fd(fd.as_fd()).map_err(|e| self.err("statx", path, e))
    }

    /// Returns the metadata of `path`, following links inside the root.
    pub fn stat_follow(&self, path: impl AsRef<Path>) -> Result<Stat> {
        let path = path.as_ref();
        let fd = openat2(self.fd(), path, OFlags::PATH, Mode::empty()).map_err(|e| self.err("openat2", path, e))?;
        stat_fd(fd.as_fd()).map_err(|e| self.err("statx", path, e))
    }

    /// Returns the metadata of the direct child `name`, with one system call and no path
    /// resolution.
    pub fn stat_name(&self, name: &OsStr) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let x = one_component(name)
            .and_then(|name| rustix::fs::statx(self.fd(), name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME))
            .map_err(|e| self.err("statx", Path::new(name), e))?;
        Ok(Stat::from_statx(&x).as_recorded(|| self.proc_path(name), false, x.stx_atime))
    }

    /// Returns true if the file system stores the access time on every reading (mount(8),
    /// strictatime).
    pub fn writes_access_times(&self) -> bool {
        let rare = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME | StatVfsMountFlags::RDONLY;
        rustix::fs::fstatvfs(self.fd()).is_ok_and(|fs| !fs.f_flag.intersects(rare))
    }

    /// Returns the metadata of the directory itself.
    pub fn stat_self(&self) -> Result<Stat> {
        stat_fd(self.fd()).map_err(|e| self.err("statx", Path::new(""), e))
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.stat(path) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() || e.errno() == Some(libc::ENOTDIR) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns the entries of this directory, sorted bytewise by name, without `.` and `..`.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let here = Path::new("");
        let fd = rustix::fs::openat(self.fd(), c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| self.err("openat", here, e))?;
        let mut buf = Vec::with_capacity(32 * 1024);
        let mut dir = rustix::fs::RawDir::new(fd, buf.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = dir.next() {
            let entry = entry.map_err(|e| self.err("getdents64", here, e))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => Some(Kind::File),
                FileType::Directory => Some(Kind::Dir),
                FileType::Symlink => Some(Kind::Symlink),
                FileType::CharacterDevice => Some(Kind::CharDevice),
                FileType::BlockDevice => Some(Kind::BlockDevice),
                FileType::Fifo => Some(Kind::Fifo),
                FileType::Socket => Some(Kind::Socket),
                FileType::Unknown => None,
            };
            entries.push(Entry { name: OsString::from_vec(name.to_vec()), kind });
        }
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }

    /// Opens a regular file for reading, following links inside the root. Does not block on a FIFO.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        let fd = openat2(self.fd(), path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
            .map_err(|e| self.err("openat2", path, e))?;
        Ok(File::from(fd))
    }

    /// Opens the direct child `name` for reading without following it.
    pub fn open_name(&self, name: &OsStr) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = one_component(name)
            .and_then(|name| rustix::fs::openat(self.fd(), name, flags, Mode::empty()))
            .map_err(|e| self.err("openat", Path::new(name), e))?;
        Ok(File::from(fd))
    }

    /// Opens an `O_PATH` descriptor of the direct child `name`, without following it.
    pub(crate) fn hold(&self, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        one_component(name)
            .and_then(|name| rustix::fs::openat(self.fd(), name, flags, Mode::empty()))
            .map_err(|e| self.err("openat", Path::new(name), e))
    }

    /// Reads a whole regular file. Fails if it is longer than `limit` bytes.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let mut content = Vec::new();
        // Opening a device may have side effects, and a FIFO may never end.
        let kind = self.stat_follow(path)?.kind;
        if kind != Kind::File {
            return Err(Error::not_a_file(
                "read",
                self.label.join(path.strip_prefix("/").unwrap_or(path)),
                kind.noun(),
            ));
        }
        let file = self.open_file(path)?;
        file.take(limit + 1).read_to_end(&mut content).map_err(|e| Error::new("read", self.label.join(path), e))?;
        if content.len() as u64 > limit {
            return Err(self.err("read", path, Errno::FBIG));
        }
        Ok(content)
    }

    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        let target = one_component(name)
            .and_then(|name| rustix::fs::readlinkat(self.fd(), name, Vec::new()))
            .map_err(|e| self.err("readlinkat", Path::new(name), e))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Creates the direct child `name` as a new regular file for writing. Fails if it exists.
    pub fn create_file(&self, name: &OsStr, mode: u32) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = one_component(name)
            .and_then(|name| rustix::fs::openat(self.fd(), name, flags, Mode::from_raw_mode(mode)))
            .map_err(|e| self.err("openat", Path::new(name), e))?;
        Ok(File::from(fd))
    }

    pub fn create_dir(&self, name: &OsStr, mode: u32) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::mkdirat(self.fd(), name, Mode::from_raw_mode(mode)))
            .map_err(|e| self.err("mkdirat", Path::new(name), e))
    }

    pub fn create_symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::symlinkat(target, self.fd(), name))
            .map_err(|e| self.err("symlinkat", Path::new(name), e))
    }

    /// Creates a device node or FIFO. `rdev` is (major, minor). If devices cannot be created,
    /// creates an empty stand-in file, which [`Stat`] reports as that device.
    pub fn create_node(&self, name: &OsStr, kind: Kind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        let file_type = match kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::File | Kind::Dir | Kind::Symlink => return Err(self.err("mknodat", Path::new(name), Errno::INVAL)),
        };
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice) && rdev != (0, 0);
        if is_device && owners_are_recorded() {
            return self.create_stand_in(name, kind, mode, rdev);
        }
        let dev = rustix::fs::makedev(rdev.0, rdev.1);
        let make = |name| rustix::fs::mknodat(self.fd(), name, file_type, Mode::from_raw_mode(mode), dev);
        match one_component(name).and_then(make) {
            // User namespaces cannot create devices (mknod(2)).
            Err(Errno::PERM) if is_device => self.create_stand_in(name, kind, mode, rdev),
            other => other.map_err(|e| self.err("mknodat", Path::new(name), e)),
        }
    }

    /// Creates an empty file that records the device it represents.
    fn create_stand_in(&self, name: &OsStr, kind: Kind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        drop(self.create_file(name, mode)?);
        self.set_stand_in(name, (kind, rdev.0, rdev.1))
    }

    /// Makes the empty file `name` a stand-in for a device.
    pub fn set_stand_in(&self, name: &OsStr, device: (Kind, u32, u32)) -> Result<()> {
        one_component(name).map_err(|e| self.err("lsetxattr", Path::new(name), e))?;
        let what = Recorded { uid: 0, gid: 0, device: Some(device) };
        recorded_owners::record(&self.proc_path(name), false, &what)
            .map_err(|e| self.err("lsetxattr", Path::new(name), e))
    }

    /// Creates an overlay whiteout: a device 0:0 or, where devices cannot be created (on a file
    /// system that is itself an overlay), an empty file with an attribute that the kernel also
    /// recognizes (Linux 6.7).
    pub fn create_whiteout(&self, name: &OsStr) -> Result<()> {
        match self.create_node(name, Kind::CharDevice, 0, (0, 0)) {
            Err(e) if e.errno() == Some(libc::EPERM) => {
                drop(self.create_file(name, 0)?);
                self.set_xattr(name, OsStr::new(WHITEOUT), b"y")
            }
            other => other,
        }
    }

    /// Returns true if the direct child `name`, whose metadata is given, is a whiteout of either
    /// form.
    pub fn is_whiteout(&self, name: &OsStr, stat: &Stat) -> Result<bool> {
        let may_be = stat.kind == Kind::File && stat.size == 0 && stat.mode == 0;
        Ok(stat.is_whiteout() || (may_be && self.xattrs(name)?.contains_key(OsStr::new(WHITEOUT))))
    }

    /// Creates the hard link `name` here to the entry `old` of `old_dir`, which is not followed.
    pub fn hard_link(&self, old_dir: &RootDir, old: &OsStr, name: &OsStr) -> Result<()> {
        one_component(old)
            .and_then(|old| rustix::fs::linkat(old_dir.fd(), old, self.fd(), one_component(name)?, AtFlags::empty()))
            .map_err(|e| self.err("linkat", Path::new(name), e))
    }

    pub fn rename(&self, from: &OsStr, to_dir: &RootDir, to: &OsStr) -> Result<()> {
        one_component(from)
            .and_then(|from| rustix::fs::renameat(self.fd(), from, to_dir.fd(), one_component(to)?))
            .map_err(|e| to_dir.err("renameat", Path::new(to), e))
    }

    pub fn remove_file(&self, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()))
            .map_err(|e| self.err("unlinkat", Path::new(name), e))
    }

    pub fn remove_dir(&self, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::unlinkat(self.fd(), name, AtFlags::REMOVEDIR))
            .map_err(|e| self.err("unlinkat", Path::new(name), e))
    }

    /// Removes the direct child `name` of any type, with everything below it. Succeeds if it does
    /// not exist.
    pub fn remove_all(&self, name: &OsStr) -> Result<()> {
        match self.remove_file(name) {
            Ok(()) => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) if matches!(e.errno(), Some(libc::EISDIR) | Some(libc::EPERM)) => {}
            Err(e) => return Err(e),
        }
        self.remove_dir_tree(name)
    }

    /// Sets the owner of the direct child `name`, without following it.
    pub fn chown(&self, name: &OsStr, uid: u32, gid: u32) -> Result<()> {
        if owners_are_recorded() {
            let stat = self.stat_name(name)?;
            return recorded_owners::chown(self.fd(), name, &self.proc_path(name), &stat, (uid, gid))
                .map_err(|e| self.err("recording the owner", Path::new(name), e));
        }
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        one_component(name)
            .and_then(|name| rustix::fs::chownat(self.fd(), name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| self.err("fchownat", Path::new(name), e).because(unmapped_owner(e, uid, gid)))
    }

    /// Sets the permission bits of the direct child `name`, which must not be a symbolic link.
    pub fn chmod(&self, name: &OsStr, mode: u32) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::chmodat(self.fd(), name, Mode::from_raw_mode(mode), AtFlags::empty()))
            .map_err(|e| self.err("fchmodat", Path::new(name), e))
    }

    /// Sets the modification time of `name`, and its access time to the same, without following it.
    pub fn set_mtime(&self, name: &OsStr, mtime: Timestamp) -> Result<()> {
        let mut times = timestamps(mtime);
        if owners_are_recorded() && mtime.sec > recorded_owners::latest_modification(Kind::Symlink) {
            let latest = recorded_owners::latest_modification(self.stat(name)?.kind);
            times.last_modification.tv_sec = times.last_modification.tv_sec.min(latest);
        }
        one_component(name)
            .and_then(|name| rustix::fs::utimensat(self.fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| self.err("utimensat", Path::new(name), e))
    }

    /// Sets the owner, mode and modification time of this directory itself.
    pub fn set_own_meta(&self, uid: u32, gid: u32, mode: u32, mtime: Timestamp) -> Result<()> {
        let here = Path::new("");
        if owners_are_recorded() {
            let what = Recorded { uid, gid, device: None };
            recorded_owners::record(&self.proc_path(OsStr::new("")), true, &what)
                .map_err(|e| self.err("setxattr", here, e))?;
        } else {
            rustix::fs::fchown(self.fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|e| self.err("fchown", here, e).because(unmapped_owner(e, uid, gid)))?;
        }
        rustix::fs::fchmod(self.fd(), Mode::from_raw_mode(mode)).map_err(|e| self.err("fchmod", here, e))?;
        rustix::fs::futimens(self.fd(), &timestamps(mtime)).map_err(|e| self.err("futimens", here, e))
    }

    /// Sets the modification time of this directory itself.
    pub fn set_own_mtime(&self, mtime: Timestamp) -> Result<()> {
        rustix::fs::futimens(self.fd(), &timestamps(mtime)).map_err(|e| self.err("futimens", Path::new(""), e))
    }

    /// Returns the extended attributes of the direct child `name` (not followed), or of the
    /// directory itself if empty.
    ///
    /// Before Linux 6.13 there is no `*at` form, so the path goes through the descriptor's link in
    /// /proc; only the last component is looked up there, and it is not followed.
    pub fn xattrs(&self, name: &OsStr) -> Result<Xattrs> {
        one_component_or_self(name).map_err(|e| self.err("llistxattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let found = if name.is_empty() {
            xattrs_by(
                |names| rustix::fs::listxattr(&path, names),
                |attr, value| rustix::fs::getxattr(&path, attr, value),
            )
        } else {
            xattrs_by(
                |names| rustix::fs::llistxattr(&path, names),
                |attr, value| rustix::fs::lgetxattr(&path, attr, value),
            )
        };
        found.map_err(|(call, e)| self.err(call, Path::new(name), e))
    }

    /// Sets an extended attribute of the direct child `name` (not followed), or of the directory if
    /// empty.
    pub fn set_xattr(&self, name: &OsStr, attr: &OsStr, value: &[u8]) -> Result<()> {
        one_component_or_self(name).map_err(|e| self.err("lsetxattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let flags = rustix::fs::XattrFlags::empty();
        if name.is_empty() {
            rustix::fs::setxattr(&path, attr, value, flags)
        } else {
            rustix::fs::lsetxattr(&path, attr, value, flags)
        }
        .map_err(|e| self.err("lsetxattr", Path::new(name), e))
    }

    pub fn remove_xattr(&self, name: &OsStr, attr: &OsStr) -> Result<()> {
        one_component_or_self(name).map_err(|e| self.err("lremovexattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let removed =
            if name.is_empty() { rustix::fs::removexattr(&path, attr) } else { rustix::fs::lremovexattr(&path, attr) };
        removed.map_err(|e| self.err("lremovexattr", Path::new(name), e))
    }

    fn proc_path(&self, name: &OsStr) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        if !name.is_empty() {
            path.push(name);
        }
        path
    }

    /// Creates the directory `path` and its missing parents, each with `mode` and `owner`, and
    /// calls `made` with the path of each new one. Links on the way are followed inside the root.
    pub fn create_dir_all(
        &self,
        path: impl AsRef<Path>,
        mode: u32,
        owner: Option<(u32, u32)>,
        mut made: impl FnMut(&Path),
    ) -> Result<RootDir> {
        let parts: Vec<OsString> =
            rbuild_paths::os_in_root(path.as_ref()).into_iter().map(OsStr::to_os_string).collect();
        let (mut at, mut walked) = self.nearest(&parts)?;
        for part in parts.into_iter().skip(walked.components().count()) {
            let next = walked.join(&part);
            // A link is resolved against the root, not against `at`.
            let found = match at.stat_name(&part) {
                Ok(stat) if stat.kind == Kind::Dir => at.sub(&part),
                Ok(_) => self.sub(&next),
                Err(e) => Err(e),
            };
            match found {
                Ok(dir) => at = dir,
                Err(e) if e.is_not_found() => {
                    match at.create_dir(&part, mode) {
                        Ok(()) => {}
                        // Another process or thread created it in between; or a dangling link
                        // exists, which remains an error.
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                            at = self.sub(&next).map_err(|_| e)?;
                            walked = next;
                            continue;
                        }
                        Err(e) => return Err(e),
                    }
                    if let Some((uid, gid)) = owner {
                        at.chown(&part, uid, gid)?;
                    }
                    at.chmod(&part, mode)?;
                    made(&next);
                    at = at.sub(&part)?;
                }
                Err(e) => return Err(e),
            }
            walked = next;
        }
        Ok(at)
    }

    /// Returns the directory of a path if it exists, else its parent, else the root; with its path.
    /// Most of a deep path usually exists, and this opens it in one call.
    fn nearest(&self, parts: &[OsString]) -> Result<(RootDir, PathBuf)> {
        for there in [parts.len(), parts.len().saturating_sub(1)] {
            let path: PathBuf = parts[..there].iter().collect();
            match self.sub(&path) {
                Ok(dir) => return Ok((dir, path)),
                Err(e) if e.is_not_found() => {}
                Err(_) => break,
            }
        }
        Ok((self.try_clone()?, PathBuf::new()))
    }

    /// Replaces all symbolic links in the existing part of the path and appends the rest unchanged.
    /// The result is absolute and contains no `..`. It describes a single moment, so use it for
    /// naming files, not for accessing them.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        Ok(self.resolve_by(path, |_| true)?.unwrap_or_default())
    }

    /// Like [`RootDir::resolve`], but returns `None` on a link for which `may_follow` returns
    /// false.
    pub fn resolve_by(&self, path: impl AsRef<Path>, may_follow: impl Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let mut done = PathBuf::from("/");
        let mut todo: Vec<OsString> = clean_dotted(path.as_ref());
        if long::has_no_link(self.fd(), &todo) {
            done.extend(todo);
            return Ok(Some(done));
        }
        todo.reverse();
        // The directory `done`, if it is one.
        let mut at = Some(self.try_clone()?);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop();
                at = self.sub(&done).ok();
                continue;
            }
            let here = done.join(&part);
            let found = at.as_ref().map(|dir| (dir, dir.stat_name(&part)));
            match found {
                Some((dir, Ok(stat))) if stat.kind == Kind::Symlink => {
                    if !may_follow(here.strip_prefix("/").unwrap_or(&here)) {
                        return Ok(None);
                    }
                    links += 1;
                    if links > long::MOST_LINKS {
                        return Err(self.err("openat2", path.as_ref(), Errno::LOOP));
                    }
                    let target = PathBuf::from(dir.read_link(&part)?);
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                        at = Some(self.try_clone()?);
                    }
                    todo.extend(clean_dotted(&target).into_iter().rev());
                    continue;
                }
                Some((dir, Ok(stat))) if stat.kind == Kind::Dir => at = Some(dir.sub(&part)?),
                Some((_, Err(e))) if !e.is_not_found() && e.errno() != Some(libc::ENOTDIR) => return Err(e),
                _ => at = None,
            }
            done = here;
        }
        Ok(Some(done))
    }
}

pub(crate) fn stat_fd(fd: BorrowedFd<'_>) -> rustix::io::Result<Stat> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let x = rustix::fs::statx(fd, c"", flags, StatxFlags::BASIC_STATS)?;
    let path = || PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok(Stat::from_statx(&x).as_recorded(path, true, x.stx_atime))
}

pub(crate) fn timestamps(mtime: Timestamp) -> Timestamps {
    let t = Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) };
    // The access time may hold an owner record.
    let access = if owners_are_recorded() { recorded_owners::OMITTED } else { t };
    Timestamps { last_access: access, last_modification: t }
}

#[cfg(test)]
mod tests;
