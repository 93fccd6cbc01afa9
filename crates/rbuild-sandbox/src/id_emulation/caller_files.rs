//! Files named by a call of another process, and their owners.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_linux::seccomp::{ReportedStat, StatTarget};
use rbuild_linux::{FileKind, OwnerRecords, Recorded, Timestamp, UidGid, record_in_times};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::id_emulation::caller::{
    Caller, Result, SelfLinks, SharedProc, link_of_dev, names_link_of_proc, own_path_from_here,
};
use crate::id_emulation::caller_roots::{CallerRoot, Roots};
use crate::id_emulation::decode::HERE;

/// Parameters of opening a file, the `struct open_how` of openat2(2).
#[derive(Debug, Clone, Copy)]
pub struct OpenHow {
    pub flags: OFlags,
    pub mode: u32,
    pub resolve: ResolveFlags,
}

impl OpenHow {
    /// Returns the parameters of open(2) and openat(2).
    pub fn plain(flags: u32, mode: u32) -> OpenHow {
        OpenHow { flags: OFlags::from_bits_retain(flags), mode, resolve: ResolveFlags::empty() }
    }
}

/// A file opened as `O_PATH`.
pub struct OpenedFile {
    pub fd: OwnedFd,
    pub stat: Stat,
}

/// Translates a path of a caller to one that this process can use, provided that both share the
/// container's root and the builder's /proc is the working directory. Valid only if no path of the
/// container leads into a /proc that shows this process (see [`SharedProc::outer`]): links there
/// would be followed with this process's privileges.
fn seen_from_here(caller: &Caller<'_>, dir: i32, path: &[u8], follow: bool) -> Result<CString> {
    let thread = caller.tid();
    if path.starts_with(b"/") {
        let is_unchanged = |(link, to): (&str, &[u8])| is_unchanged(link, to);
        let own = own_path_from_here(path, thread, follow).filter(|_| link_of_dev(path).is_none_or(is_unchanged));
        return CString::new(own.as_deref().unwrap_or(path)).map_err(|_| Errno::INVAL);
    }
    let mut text = match dir {
        HERE => format!("{thread}/cwd"),
        dir => format!("{thread}/fd/{dir}"),
    }
    .into_bytes();
    if !path.is_empty() {
        text.push(b'/');
        text.extend_from_slice(path);
    }
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// Cache of owner records; most files are queried many times.
#[derive(Default)]
pub struct RecordCache(HashMap<(u64, u64), CachedRecord>);

/// A cached record, with the file's change time when it was read.
struct CachedRecord {
    changed: (i64, u64),
    record: Option<Recorded>,
}

/// Maximum number of cached files; when it is exceeded, the cache is cleared.
const MAX_CACHED: usize = 100_000;

/// A path of a caller as this process can use it, and the flags for it.
pub struct SeenPath {
    path: CString,
    flags: AtFlags,
}

impl SeenPath {
    /// Like [`seen_from_here`], with the flags for the resulting path.
    pub fn of(caller: &Caller<'_>, dir: i32, path: &CStr, flags: AtFlags) -> Result<SeenPath> {
        // An empty path names the target of the link in /proc.
        let follow = path.is_empty() || !flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        Ok(SeenPath { path: seen_from_here(caller, dir, path.to_bytes(), follow)?, flags })
    }
}

/// A file whose reported owner differs from the kernel's.
pub enum StatFile {
    Seen(SeenPath),
    Open(OwnedFd),
}

impl StatFile {
    /// Returns the file as a target of stat(2).
    pub fn named(&self) -> StatTarget<'_> {
        match self {
            StatFile::Seen(seen) => StatTarget { dir: CWD, path: &seen.path, flags: seen.flags },
            StatFile::Open(fd) => StatTarget { dir: fd.as_fd(), path: c"", flags: AtFlags::EMPTY_PATH },
        }
    }
}

impl RecordCache {
    /// Returns the record of a file named by a caller, without opening the file. Requires that no
    /// process of the container has changed its root, and that this process is not visible in any
    /// /proc of the container.
    pub fn look(&mut self, owners: &OwnerRecords, seen: SeenPath) -> Option<(StatFile, ReportedStat)> {
        let follow = seen.flags.is_empty();
        // The kernel may find a file for the caller where this process finds none.
        let stat = rustix::fs::statat(CWD, &seen.path, seen.flags).ok()?;
        // Writing a record updates the change time, but only with the clock's granularity; `forget`
        // handles changes within one tick.
        let (file, changed) = ((stat.st_dev, stat.st_ino), (stat.st_ctime, stat.st_ctime_nsec));
        let record = match self.0.get(&file) {
            Some(then) if then.changed == changed => then.record,
            _ => {
                let access = access_time(&stat);
                let path = Path::new(OsStr::from_bytes(seen.path.to_bytes()));
                let record = owners.recorded(path, follow, kind(&stat), stat.st_ino, access);
                if self.0.len() >= MAX_CACHED {
                    self.0.clear();
                }
                self.0.insert(file, CachedRecord { changed, record });
                record
            }
        };
        Some((StatFile::Seen(seen), reported(record?)))
    }

    /// Drops the cached record of a file whose record has just been written.
    pub fn forget(&mut self, target: &OpenedFile) -> Result<()> {
        let stat = rustix::fs::fstat(&target.fd)?;
        self.0.remove(&(stat.st_dev, stat.st_ino));
        Ok(())
    }
}

fn reported(Recorded { owner, device }: Recorded) -> ReportedStat {
    ReportedStat { owner, node: device.map(|(kind, major, minor)| (kind.bits(), major, minor)) }
}

/// Returns true if a path's parent directory passes its group on to new files (set-group-ID).
pub fn passes_group_on(caller: &Caller<'_>, dir: i32, path: &CStr, roots: &Roots) -> bool {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let above = path.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
    let mode = if caller.proc.outer {
        let above = if above.is_empty() { c".".into() } else { CString::new(above).unwrap_or_default() };
        NamedPath::of(caller, dir, above, roots).and_then(|place| place.target(true)).map(|dir| dir.stat.st_mode)
    } else {
        seen_from_here(caller, dir, above, true).and_then(|seen| rustix::fs::stat(&seen)).map(|stat| stat.st_mode)
    };
    mode.map_or(true, |mode| mode & SET_GID != 0)
}

const NO_LINKS_OF_PROC: ResolveFlags = ResolveFlags::NO_MAGICLINKS;

/// The set-group-ID mode bit.
pub const SET_GID: u32 = 0o2000;

fn access_time(stat: &Stat) -> Timestamp {
    Timestamp { sec: stat.st_atime, nsec: stat.st_atime_nsec as u32 }
}

fn kind(stat: &Stat) -> FileKind {
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => FileKind::Dir,
        rustix::fs::FileType::Symlink => FileKind::Symlink,
        rustix::fs::FileType::CharacterDevice => FileKind::CharDevice,
        rustix::fs::FileType::BlockDevice => FileKind::BlockDevice,
        rustix::fs::FileType::Fifo => FileKind::Fifo,
        rustix::fs::FileType::Socket => FileKind::Socket,
        _ => FileKind::File,
    }
}

/// The starting point and path of a lookup. This process resolves the path with its own privileges,
/// so links in /proc (to descriptors, root and working directories of any process) are not
/// followed, as they could lead out of the container.
pub struct NamedPath<'a> {
    /// `None` means this process's working directory, used for absolute paths.
    base: Option<OwnedFd>,
    path: CString,
    resolve: ResolveFlags,
    /// The caller's root directory, if it may be another one than that of this process.
    root: Option<CallerRoot<'a>>,
}

impl<'a> NamedPath<'a> {
    /// Returns the place of a path relative to a caller's directory.
    pub fn of(caller: &Caller<'a>, dir: i32, path: CString, roots: &'a Roots) -> Result<NamedPath<'a>> {
        let root = roots.of(caller)?;
        if let Some(own) = caller.own_path(path.to_bytes(), |links| has_links(root.as_ref(), links))? {
            let path = CString::new(own.rest).map_err(|_| Errno::INVAL)?;
            let resolve = if own.is_link { ResolveFlags::empty() } else { NO_LINKS_OF_PROC };
            return Ok(NamedPath { base: Some(own.base), path, resolve, root });
        }
        let base = if path.to_bytes().starts_with(b"/") { None } else { Some(caller.directory(dir)?) };
        Ok(NamedPath { base, path, resolve: NO_LINKS_OF_PROC, root })
    }

    /// Like [`NamedPath::of`], with additional resolution flags from the caller (openat2(2)).
    pub fn resolved(
        caller: &Caller<'a>,
        dir: i32,
        path: CString,
        roots: &'a Roots,
        resolve: ResolveFlags,
    ) -> Result<NamedPath<'a>> {
        if resolve.intersects(ResolveFlags::BENEATH | ResolveFlags::IN_ROOT) {
            let base = Some(caller.directory(dir)?);
            return Ok(NamedPath { base, path, resolve: resolve | NO_LINKS_OF_PROC, root: None });
        }
        if resolve.intersects(ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
            && names_link_of_proc(path.to_bytes())
        {
            return Err(Errno::LOOP);
        }
        let place = NamedPath::of(caller, dir, path, roots)?;
        Ok(NamedPath { resolve: place.resolve | resolve, ..place })
    }

    fn base(&self) -> BorrowedFd<'_> {
        self.base.as_ref().map_or(CWD, |fd| fd.as_fd())
    }

    fn open(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(self.base(), path, flags, Mode::empty(), self.resolve);
        self.root.as_ref().map_or_else(open, |root| root.inside(open))
    }

    /// Opens the existing file.
    pub fn target(&self, follow: bool) -> Result<OpenedFile> {
        let link = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        OpenedFile::of(self.open(&self.path, link)?)
    }

    /// Returns true if the path can name only a directory.
    pub fn names_directory(&self) -> bool {
        self.path.to_bytes().ends_with(b"/")
    }

    /// Returns the target of a link in `dir` with the text `text`.
    pub fn follow_link(
        self,
        caller: &Caller<'a>,
        dir: OpenedFile,
        text: CString,
        roots: &'a Roots,
    ) -> Result<NamedPath<'a>> {
        if text.to_bytes().starts_with(b"/") {
            NamedPath::of(caller, HERE, text, roots)
        } else {
            Ok(NamedPath { base: Some(dir.fd), path: text, resolve: NO_LINKS_OF_PROC, ..self })
        }
    }

    /// Opens the directory that holds the last component, and returns it with that component.
    ///
    /// # Errors
    ///
    /// As the kernel does for a new entry, fails with ENOENT for an empty path, and for `.` and
    /// `..` as last component with EEXIST, or ENOENT if they lead nowhere.
    pub fn parent(&self) -> Result<(OpenedFile, CString)> {
        let path = self.path.to_bytes();
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        let (above, name) = (&path[..start], &path[start..end]);
        if matches!(name, b"" | b"." | b"..") {
            return Err(self.taken_or_missing());
        }
        let above = if above.is_empty() { &b"."[..] } else { above };
        let text = CString::new(above).map_err(|_| Errno::INVAL)?;
        let dir = self.open(&text, OFlags::DIRECTORY)?;
        Ok((OpenedFile::of(dir)?, CString::new(name).map_err(|_| Errno::INVAL)?))
    }

    /// Like [`NamedPath::parent`], for an entry that cannot be a directory: a slash at the end is
    /// an error.
    pub fn parent_of_leaf(&self) -> Result<(OpenedFile, CString)> {
        if self.names_directory() { Err(self.taken_or_missing()) } else { self.parent() }
    }

    fn taken_or_missing(&self) -> Errno {
        if self.target(true).is_ok() { Errno::EXIST } else { Errno::NOENT }
    }
}

/// Returns true if the link still has the target that it has in new containers.
fn is_unchanged(link: &str, to: &[u8]) -> bool {
    rustix::fs::readlinkat(CWD, link, Vec::new()).is_ok_and(|text| text.to_bytes() == to)
}

/// Returns true if paths of the container lead to the caller's own directory in /proc. A process
/// with another root directory may have something else there.
fn has_links(root: Option<&CallerRoot<'_>>, links: SelfLinks) -> bool {
    let unchanged = || links == SelfLinks::OfProc || is_unchanged("/dev/fd", b"/proc/self/fd");
    let Some(root) = root else { return unchanged() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    root.inside(|| {
        let proc = OpenedFile::of(rustix::fs::openat(CWD, "/proc", flags, Mode::empty())?)?;
        Ok(proc.is_in_proc() && unchanged())
    })
    .unwrap_or(false)
}

impl OpenedFile {
    /// Reads the metadata of a file that is opened as `O_PATH`.
    pub fn of(fd: OwnedFd) -> Result<OpenedFile> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(OpenedFile { fd, stat })
    }

    /// Returns the type of the file.
    pub fn kind(&self) -> FileKind {
        kind(&self.stat)
    }

    /// Returns true if the file is in a procfs.
    pub fn is_in_proc(&self) -> bool {
        rustix::fs::fstatfs(&self.fd).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
    }

    /// Returns the file's record.
    pub fn recorded(&self, owners: &OwnerRecords) -> Option<Recorded> {
        let access = access_time(&self.stat);
        owners.recorded(&SharedProc::path_of(&self.fd), true, self.kind(), self.stat.st_ino, access)
    }

    /// Returns the file's owner; `None` if that is unknown: no record is made of sockets that a
    /// process binds, of its terminals, and of files without a path, such as pipes and memfds.
    pub fn owner(&self, owners: &OwnerRecords) -> Option<UidGid> {
        let recorded = self.recorded(owners);
        let is_unknown = matches!(self.kind(), FileKind::Socket | FileKind::CharDevice) || self.is_nameless();
        if recorded.is_none() && is_unknown { None } else { Some(recorded.unwrap_or_default().owner) }
    }

    /// Returns true for files that never had a path, such as pipes and memfds.
    pub fn is_nameless(&self) -> bool {
        let path = rustix::fs::readlinkat(CWD, SharedProc::path_of(&self.fd), Vec::new());
        path.is_ok_and(|path| {
            let path = path.to_bytes();
            !path.starts_with(b"/") || (self.stat.st_nlink == 0 && path.starts_with(b"/memfd:"))
        })
    }

    /// Returns the file with the owner to report; `None` if there is no record.
    pub fn reported_stat(self, owners: &OwnerRecords) -> Option<(StatFile, ReportedStat)> {
        let recorded = self.recorded(owners)?;
        Some((StatFile::Open(self.fd), reported(recorded)))
    }

    /// Records the file's owner.
    pub fn own(&self, owners: &OwnerRecords, record: Recorded) -> Result<()> {
        match self.kind() {
            FileKind::File | FileKind::Dir => owners.record(&SharedProc::path_of(&self.fd), true, &record),
            _ => {
                let times = record_in_times(record.owner)?;
                rustix::fs::utimensat(&self.fd, c"", &times, AtFlags::EMPTY_PATH)
            }
        }
    }

    /// Returns the group that this directory passes on to new files; `None` if they get their
    /// creator's.
    pub fn group_for_new(&self, owners: &OwnerRecords) -> Option<u32> {
        let set_gid = self.stat.st_mode & SET_GID != 0;
        set_gid.then(|| self.recorded(owners).map_or(0, |recorded| recorded.owner.gid))
    }
}
