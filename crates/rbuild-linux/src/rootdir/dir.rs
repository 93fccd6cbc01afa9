//! Access to the entries of a directory that serves as `/`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Object, Result};
use crate::meta::{FileKind, Stat, UidGid};
use crate::recorded_owners::OwnerRecords;
use crate::rootdir::long::{self, IN_ROOT, openat2_by, unresolved};

/// A directory that serves as `/`.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    /// The valid records of owners and devices of its files. If `None`, owners are those of the
    /// file system. Directories opened from this one have the same records.
    owners: Option<OwnerRecords>,
    /// Used in error messages only; never resolved again.
    label: PathBuf,
    /// The name of the place in error messages, if its files' paths mean nothing to the user.
    place: Option<Arc<str>>,
}

/// One directory entry, with its type as returned by getdents(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name of the entry.
    pub name: OsString,
    /// `None` if the file system does not report it.
    pub kind: Option<FileKind>,
}

fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if path.as_os_str().len() >= long::MAX_AT_ONCE {
        return long::open(dir, path, flags, mode);
    }
    openat2_by(dir, path, flags, mode, IN_ROOT)
}

/// Returns `name` if it is a single path component. `..` or a slash in a name would leave the
/// directory despite `RESOLVE_IN_ROOT`, because the `*at` calls do not take the root into account.
pub(super) fn one_component(name: &OsStr) -> rustix::io::Result<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

/// Like [`one_component`], but accepts an empty name, which means the directory itself.
pub(super) fn one_component_or_self(name: &OsStr) -> rustix::io::Result<&OsStr> {
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
        Ok(RootDir { fd, owners: None, label: path.to_path_buf(), place: None })
    }

    /// Uses a directory descriptor as a root; `label` names it in errors.
    pub fn from_fd(fd: OwnedFd, label: impl Into<PathBuf>) -> RootDir {
        RootDir { fd, owners: None, label: label.into(), place: None }
    }

    /// Returns the same directory with the records that determine the owners of its files.
    pub fn with_owners(self, owners: &OwnerRecords) -> RootDir {
        RootDir { owners: Some(owners.clone()), ..self }
    }

    /// Uses another directory descriptor as a root with the same records of owners.
    pub fn with_fd(&self, fd: OwnedFd, label: impl Into<PathBuf>) -> RootDir {
        RootDir { fd, owners: self.owners.clone(), label: label.into(), place: None }
    }

    /// Uses another descriptor as a root, with the same records of owners and the same name of the
    /// place.
    pub(crate) fn with_fd_and_place(&self, fd: OwnedFd, label: impl Into<PathBuf>) -> RootDir {
        RootDir { place: self.place.clone(), ..self.with_fd(fd, label) }
    }

    /// Returns the same directory with a name for messages, a noun phrase. Error messages about its
    /// files, and about files of directories opened from it, show that name instead of a path.
    pub fn named(self, place: impl Into<Arc<str>>) -> RootDir {
        RootDir { place: Some(place.into()), ..self }
    }

    /// Returns the same directory as `/`: error messages show the paths of its files from there.
    pub fn shown_as_root(self) -> RootDir {
        RootDir { label: "/".into(), place: None, ..self }
    }

    /// Returns the name that error messages show instead of paths.
    pub fn place(&self) -> Option<&Arc<str>> {
        self.place.as_ref()
    }

    /// Returns the object of an error about a file of this directory.
    pub(crate) fn object(&self, path: impl Into<PathBuf>) -> Object {
        let path = path.into();
        match &self.place {
            Some(place) => Object::Within { place: place.clone(), path },
            None => Object::Path(path),
        }
    }

    /// Returns an error about the file `path` of this directory.
    pub fn error(&self, call: &'static str, path: impl AsRef<Path>, e: impl Into<std::io::Error>) -> Error {
        let path = path.as_ref();
        Error::new(call, self.object(self.label.join(path.strip_prefix("/").unwrap_or(path))), e)
    }

    /// Opens `path` as [`RootDir::open`] does, with the same records of owners, as a directory of
    /// the same place.
    pub fn open_alike(&self, path: impl AsRef<Path>) -> Result<RootDir> {
        let dir = RootDir::open(path).map_err(|e| match &self.place {
            Some(place) => e.within(place.clone()),
            None => e,
        })?;
        Ok(RootDir { owners: self.owners.clone(), place: self.place.clone(), ..dir })
    }

    /// Returns the records that determine the owners of its files.
    pub fn owners(&self) -> Option<&OwnerRecords> {
        self.owners.as_ref()
    }

    /// Returns the records if changes of owners are written to them, not to the file system.
    pub(super) fn written_owners(&self) -> Option<&OwnerRecords> {
        self.owners.as_ref().filter(|owners| owners.are_written())
    }

    /// Returns the descriptor of the directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the descriptor of the directory, without the rest.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Returns the path of the directory for error messages.
    pub fn label(&self) -> &Path {
        &self.label
    }

    /// Duplicates the descriptor of the directory.
    pub fn try_clone(&self) -> Result<RootDir> {
        let fd = self.fd.try_clone().map_err(|e| self.error("dup", "", e))?;
        Ok(self.with_fd_and_place(fd, &self.label))
    }

    pub(crate) fn err(&self, call: &'static str, path: &Path, e: Errno) -> Error {
        self.error(call, path, e)
    }

    /// Opens a directory below this one as a separate root.
    pub fn sub(&self, path: impl AsRef<Path>) -> Result<RootDir> {
        let path = path.as_ref();
        let fd = openat2(self.fd(), path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(|e| self.err("openat2", path, e))?;
        Ok(self.with_fd_and_place(fd, self.label.join(path.strip_prefix("/").unwrap_or(path))))
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
        stat_fd(fd.as_fd(), self.owners()).map_err(|e| self.err("statx", path, e))
    }

    /// Returns the metadata of `path`, following links inside the root.
    pub fn stat_follow(&self, path: impl AsRef<Path>) -> Result<Stat> {
        let path = path.as_ref();
        let fd = openat2(self.fd(), path, OFlags::PATH, Mode::empty()).map_err(|e| self.err("openat2", path, e))?;
        stat_fd(fd.as_fd(), self.owners()).map_err(|e| self.err("statx", path, e))
    }

    /// Returns the metadata of the direct child `name`, with one system call and no path
    /// resolution.
    pub fn stat_name(&self, name: &OsStr) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let x = one_component(name)
            .and_then(|name| rustix::fs::statx(self.fd(), name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME))
            .map_err(|e| self.err("statx", Path::new(name), e))?;
        let stat = Stat::from_statx(&x);
        Ok(match &self.owners {
            Some(owners) => owners.applied(stat, || self.proc_path(name), false, x.stx_atime),
            None => stat,
        })
    }

    /// Returns true if the file system updates access times on every read (mount(8), strictatime).
    pub fn writes_access_times(&self) -> bool {
        let rare = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME | StatVfsMountFlags::RDONLY;
        rustix::fs::fstatvfs(self.fd()).is_ok_and(|fs| !fs.f_flag.intersects(rare))
    }

    /// Returns the metadata of the directory itself.
    pub fn stat_self(&self) -> Result<Stat> {
        stat_fd(self.fd(), self.owners()).map_err(|e| self.err("statx", Path::new(""), e))
    }

    /// Returns true if `path` exists, without following a link in the last component.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.stat(path) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() || e.errno() == Some(libc::ENOTDIR) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns the entries of this directory, sorted bytewise by name, without `.` and `..`.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
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
                FileType::RegularFile => Some(FileKind::File),
                FileType::Directory => Some(FileKind::Dir),
                FileType::Symlink => Some(FileKind::Symlink),
                FileType::CharacterDevice => Some(FileKind::CharDevice),
                FileType::BlockDevice => Some(FileKind::BlockDevice),
                FileType::Fifo => Some(FileKind::Fifo),
                FileType::Socket => Some(FileKind::Socket),
                FileType::Unknown => None,
            };
            entries.push(DirEntry { name: OsString::from_vec(name.to_vec()), kind });
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
        // Opening a device may have side effects, and a FIFO may never end.
        let stat = self.stat_follow(path)?;
        if stat.kind != FileKind::File {
            return Err(Error::not_a_file(
                "read",
                self.object(self.label.join(path.strip_prefix("/").unwrap_or(path))),
                stat.kind.noun(),
            ));
        }
        // `read_to_end` begins with reads of 32 bytes unless more than that is free. The size of a
        // sparse file is no reason to reserve memory.
        const SPARE: u64 = 64;
        const RESERVED: u64 = 1 << 20;
        let mut content = Vec::with_capacity((stat.size.min(limit).min(RESERVED) + SPARE) as usize);
        let file = self.open_file(path)?;
        file.take(limit + 1).read_to_end(&mut content).map_err(|e| self.error("read", path, e))?;
        if content.len() as u64 > limit {
            return Err(self.err("read", path, Errno::FBIG));
        }
        Ok(content)
    }

    /// Returns the target of the symbolic link `name`, a direct child.
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
            .map_err(|e| self.err("creat", Path::new(name), e))?;
        Ok(File::from(fd))
    }

    /// Opens the direct child `name` for reading and appending, or creates it. Does not follow a
    /// link.
    pub fn open_to_append(&self, name: &OsStr, mode: u32) -> Result<File> {
        let flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = one_component(name)
            .and_then(|name| rustix::fs::openat(self.fd(), name, flags, Mode::from_raw_mode(mode)))
            .map_err(|e| self.err("openat", Path::new(name), e))?;
        Ok(File::from(fd))
    }

    /// Creates the directory `name`, a direct child. `mode` is subject to the umask.
    pub fn create_dir(&self, name: &OsStr, mode: u32) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::mkdirat(self.fd(), name, Mode::from_raw_mode(mode)))
            .map_err(|e| self.err("mkdirat", Path::new(name), e))
    }

    /// Creates the symbolic link `name`, a direct child, to `target`.
    pub fn create_symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::symlinkat(target, self.fd(), name))
            .map_err(|e| self.err("symlinkat", Path::new(name), e))
    }

    /// Creates a device node or FIFO. `rdev` is (major, minor). If devices cannot be created,
    /// creates an empty placeholder, which [`Stat`] reports as that device, or fails if the
    /// directory has no records.
    pub fn create_node(&self, name: &OsStr, kind: FileKind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        let file_type = match kind {
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::File | FileKind::Dir | FileKind::Symlink => {
                return Err(self.err("mknodat", Path::new(name), Errno::INVAL));
            }
        };
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) && rdev != (0, 0);
        if is_device && self.written_owners().is_some() {
            return self.create_placeholder(name, kind, mode, rdev);
        }
        let dev = rustix::fs::makedev(rdev.0, rdev.1);
        let make = |name| rustix::fs::mknodat(self.fd(), name, file_type, Mode::from_raw_mode(mode), dev);
        match one_component(name).and_then(make) {
            // User namespaces cannot create devices (mknod(2)).
            Err(Errno::PERM) if is_device && self.owners.is_some() => self.create_placeholder(name, kind, mode, rdev),
            other => other.map_err(|e| self.err("mknodat", Path::new(name), e)),
        }
    }

    /// Creates an overlay whiteout: a device 0:0 or, where devices cannot be created (on a file
    /// system that is itself an overlay), an empty file with an attribute that the kernel also
    /// recognizes (Linux 6.7).
    pub fn create_whiteout(&self, name: &OsStr) -> Result<()> {
        match self.create_node(name, FileKind::CharDevice, 0, (0, 0)) {
            Err(e) if e.errno() == Some(libc::EPERM) => {
                drop(self.create_file(name, 0)?);
                self.set_xattr(name, OsStr::new(WHITEOUT), b"y")
            }
            other => other,
        }
    }

    /// Returns true if the direct child `name`, which has the metadata `stat`, is a whiteout of
    /// either form.
    pub fn is_whiteout(&self, name: &OsStr, stat: &Stat) -> Result<bool> {
        let may_be = stat.kind == FileKind::File && stat.size == 0 && stat.mode == 0;
        Ok(stat.is_whiteout() || (may_be && self.xattrs(name)?.contains_key(OsStr::new(WHITEOUT))))
    }

    /// Creates the hard link `name` here to the entry `old` of `old_dir`, which is not followed.
    pub fn hard_link(&self, old_dir: &RootDir, old: &OsStr, name: &OsStr) -> Result<()> {
        one_component(old)
            .and_then(|old| rustix::fs::linkat(old_dir.fd(), old, self.fd(), one_component(name)?, AtFlags::empty()))
            .map_err(|e| self.err("linkat", Path::new(name), e))
    }

    /// Renames the direct child `from` to the entry `to` of `to_dir`, replacing an existing file.
    pub fn rename(&self, from: &OsStr, to_dir: &RootDir, to: &OsStr) -> Result<()> {
        one_component(from)
            .and_then(|from| rustix::fs::renameat(self.fd(), from, to_dir.fd(), one_component(to)?))
            .map_err(|e| to_dir.err("renameat", Path::new(to), e))
    }

    /// Removes the direct child `name`, which must not be a directory.
    pub fn remove_file(&self, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()))
            .map_err(|e| self.err("unlinkat", Path::new(name), e))
    }

    /// Removes the empty directory `name`, a direct child.
    pub fn remove_dir(&self, name: &OsStr) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::unlinkat(self.fd(), name, AtFlags::REMOVEDIR))
            .map_err(|e| self.err("unlinkat", Path::new(name), e))
    }

    pub(super) fn proc_path(&self, name: &OsStr) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        if !name.is_empty() {
            path.push(name);
        }
        path
    }

    /// Creates the directory `path` and its missing parents, each with `mode` and `owner`, and
    /// calls `made` with the path of each new one. Symbolic links in the path are followed inside
    /// the root.
    pub fn create_dir_all(
        &self,
        path: impl AsRef<Path>,
        mode: u32,
        owner: Option<UidGid>,
        mut made: impl FnMut(&Path),
    ) -> Result<RootDir> {
        let parts: Vec<OsString> =
            rbuild_paths::os_in_root(path.as_ref()).into_iter().map(OsStr::to_os_string).collect();
        let (mut at, mut walked) = self.nearest(&parts)?;
        for part in parts.into_iter().skip(walked.components().count()) {
            let next = walked.join(&part);
            // A link is resolved against the root, not against `at`.
            let found = match at.stat_name(&part) {
                Ok(stat) if stat.kind == FileKind::Dir => at.sub(&part),
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
                    if let Some(owner) = owner {
                        at.chown(&part, owner)?;
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

    /// Opens the directory at a path or, if it does not exist, its parent or the root. Also returns
    /// the path of the opened directory. Most of a deep path usually exists, and is opened in one
    /// call.
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
        let mut todo: Vec<OsString> = unresolved(path.as_ref());
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
                Some((dir, Ok(stat))) if stat.kind == FileKind::Symlink => {
                    if !may_follow(here.strip_prefix("/").unwrap_or(&here)) {
                        return Ok(None);
                    }
                    links += 1;
                    if links > long::MAX_SYMLINKS {
                        return Err(self.err("openat2", path.as_ref(), Errno::LOOP));
                    }
                    let target = PathBuf::from(dir.read_link(&part)?);
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                        at = Some(self.try_clone()?);
                    }
                    todo.extend(unresolved(&target).into_iter().rev());
                    continue;
                }
                Some((dir, Ok(stat))) if stat.kind == FileKind::Dir => at = Some(dir.sub(&part)?),
                Some((_, Err(e))) if !e.is_not_found() && e.errno() != Some(libc::ENOTDIR) => return Err(e),
                _ => at = None,
            }
            done = here;
        }
        Ok(Some(done))
    }
}

pub(crate) fn stat_fd(fd: BorrowedFd<'_>, owners: Option<&OwnerRecords>) -> rustix::io::Result<Stat> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let x = rustix::fs::statx(fd, c"", flags, StatxFlags::BASIC_STATS)?;
    let path = || PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let stat = Stat::from_statx(&x);
    Ok(match owners {
        Some(owners) => owners.applied(stat, path, true, x.stx_atime),
        None => stat,
    })
}
