//! The files that a call of another process names, and their owners.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_linux::notify::{Guise, Named, number_in, read_memory};
use rbuild_linux::{Kind, Recorded, record, record_in_times, recorded};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

pub type Result<T> = std::result::Result<T, Errno>;

/// `AT_FDCWD`: the working directory.
pub const HERE: i32 = -100;

/// The longest path that the kernel takes, with its end.
const PATH_MAX: usize = 4096;

const PAGE: u64 = 4096;
/// Bytes of another process's memory that are read at a time: most paths are shorter.
const PIECE: u64 = 256;

/// A /proc in which all processes of the container are, and so is this one.
pub struct Proc {
    pub dir: OwnedFd,
    /// It is that of a pid namespace further out, and its numbers are others than this process's.
    pub outer: bool,
}

/// A file that is open for nothing but its metadata.
pub struct Target {
    pub fd: OwnedFd,
    pub stat: Stat,
}

impl Proc {
    fn open(&self, path: &str) -> Result<OwnedFd> {
        rustix::fs::openat(&self.dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// The number that a thread has in it; 0, which nobody has, if it is gone.
    fn number(&self, thread: u32) -> u32 {
        if self.outer { number_in(self.dir.as_fd(), thread).unwrap_or(0) } else { thread }
    }

    /// Directory `fd` of a thread, or its working directory.
    pub fn directory(&self, thread: u32, fd: i32) -> Result<OwnedFd> {
        match fd {
            HERE => self.open(&format!("{}/cwd", self.number(thread))),
            fd => self.file(thread, fd),
        }
    }

    /// What is behind the descriptor `fd` of a thread.
    pub fn file(&self, thread: u32, fd: i32) -> Result<OwnedFd> {
        self.open(&format!("{}/fd/{fd}", self.number(thread)))
    }

    /// Whether the descriptor `fd` of a thread is of the kind that names a file and opens nothing (O_PATH).
    pub fn is_path_only(&self, thread: u32, fd: i32) -> bool {
        let path = format!("{}/fdinfo/{fd}", self.number(thread));
        let info = rustix::fs::openat(&self.dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let text = info.ok().and_then(|fd| std::io::read_to_string(std::fs::File::from(fd)).ok()).unwrap_or_default();
        let flags = text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        flags.is_some_and(|flags| flags & OFlags::PATH.bits() != 0)
    }

    pub fn root(&self, thread: u32) -> Result<OwnedFd> {
        self.open(&format!("{}/root", self.number(thread)))
    }

    /// A path for `fd`, a descriptor of this process, as long as this /proc is the working directory.
    pub fn path_of(fd: impl AsFd) -> PathBuf {
        PathBuf::from(format!("self/fd/{}", fd.as_fd().as_raw_fd()))
    }

    pub fn umask(&self, thread: u32) -> u32 {
        let path = format!("{}/status", self.number(thread));
        let status = rustix::fs::openat(&self.dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let text = status.ok().and_then(|fd| std::io::read_to_string(std::fs::File::from(fd)).ok()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
    }
}

/// A path in the memory of a thread.
pub fn path_at(thread: u32, address: u64) -> Result<CString> {
    let mut bytes = Vec::new();
    // In pieces that end with a page, as the next page may not be there.
    while bytes.len() < PATH_MAX {
        let at = address + bytes.len() as u64;
        let room = (PAGE - at % PAGE).min(PIECE) as usize;
        let start = bytes.len();
        bytes.resize(start + room, 0);
        let n = read_memory(thread, at, &mut bytes[start..]).map_err(|_| Errno::FAULT)?;
        bytes.truncate(start + n);
        if let Some(end) = bytes[start..].iter().position(|b| *b == 0) {
            bytes.truncate(start + end);
            return CString::new(bytes).map_err(|_| Errno::FAULT);
        }
        if n < room {
            return Err(Errno::FAULT);
        }
    }
    Err(Errno::NAMETOOLONG)
}

/// A path for what a thread names, as long as the container's root is this process's, and the builder's /proc its working
/// directory.
fn seen_from_here(proc: &Proc, thread: u32, dir: i32, path: &[u8]) -> Result<CString> {
    if path.starts_with(b"/") {
        return CString::new(path).map_err(|_| Errno::INVAL);
    }
    let thread = proc.number(thread);
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

/// What is written down of files, as they were when that was read: most are asked about many times.
#[derive(Default)]
pub struct Known(HashMap<(u64, u64), Then>);

/// What a file was: the time of its last change, and what was written down.
struct Then {
    changed: (i64, u64),
    says: Option<Recorded>,
}

/// Files that are remembered; after that, from the start.
const MOST_KNOWN: usize = 100_000;

/// A file whose owner is another than the kernel says.
pub enum Guised {
    /// By a path that this process sees it under, and the flags that go with it.
    Seen(CString, AtFlags),
    Open(OwnedFd),
}

impl Guised {
    pub fn named(&self) -> Named<'_> {
        match self {
            Guised::Seen(path, flags) => Named { dir: CWD, path, flags: *flags },
            Guised::Open(fd) => Named { dir: fd.as_fd(), path: c"", flags: AtFlags::EMPTY_PATH },
        }
    }
}

impl Known {
    /// What is written down of the file that a thread names, which is asked without opening it. No process of the container has
    /// changed its root.
    pub fn look(&mut self, proc: &Proc, thread: u32, dir: i32, path: &CStr, flags: AtFlags) -> Option<(Guised, Guise)> {
        let seen = seen_from_here(proc, thread, dir, path.to_bytes()).ok()?;
        // What has no path is what the link in /proc leads to.
        let follow = path.is_empty() || !flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        let how = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        // Where this process finds nothing, the kernel may find something for the other.
        let stat = rustix::fs::statat(CWD, &seen, how).ok()?;
        // Writing something down changes the file, if only at the pace of a clock: `forget` is for the rest.
        let (file, changed) = ((stat.st_dev, stat.st_ino), (stat.st_ctime, stat.st_ctime_nsec));
        let says = match self.0.get(&file) {
            Some(then) if then.changed == changed => then.says,
            _ => {
                let access = (stat.st_atime, stat.st_atime_nsec as u32);
                let says = recorded(Path::new(OsStr::from_bytes(seen.to_bytes())), follow, kind(&stat), access);
                if self.0.len() >= MOST_KNOWN {
                    self.0.clear();
                }
                self.0.insert(file, Then { changed, says });
                says
            }
        };
        Some((Guised::Seen(seen, how), guise(says?)))
    }

    /// Something has just been written down of that file.
    pub fn forget(&mut self, target: &Target) -> Result<()> {
        let stat = rustix::fs::fstat(&target.fd)?;
        self.0.remove(&(stat.st_dev, stat.st_ino));
        Ok(())
    }
}

fn guise(Recorded { uid, gid, device }: Recorded) -> Guise {
    Guise { uid, gid, node: device.map(|(kind, major, minor)| (kind.bits(), major, minor)) }
}

/// Whether the directory that a path of a thread is made in hands its group on, likewise.
pub fn hands_on_group(proc: &Proc, thread: u32, dir: i32, path: &CStr) -> bool {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let above = path.parent().unwrap_or(Path::new(""));
    let Ok(seen) = seen_from_here(proc, thread, dir, above.as_os_str().as_bytes()) else { return true };
    rustix::fs::stat(&seen).is_ok_and(|stat| stat.st_mode & SET_GID != 0)
}

const SET_GID: u32 = 0o2000;

fn kind(stat: &Stat) -> Kind {
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => Kind::Dir,
        rustix::fs::FileType::Symlink => Kind::Symlink,
        rustix::fs::FileType::CharacterDevice => Kind::CharDevice,
        rustix::fs::FileType::BlockDevice => Kind::BlockDevice,
        rustix::fs::FileType::Fifo => Kind::Fifo,
        rustix::fs::FileType::Socket => Kind::Socket,
        _ => Kind::File,
    }
}

/// Where a call looks for a path.
pub struct Place {
    /// `None` for the working directory of this process, for absolute paths of the common root.
    base: Option<OwnedFd>,
    /// The caller has a root directory of its own.
    rooted: bool,
    pub path: CString,
}

impl Place {
    /// Of a path that a thread gave together with a directory. `chrooted`: some process of the container changed its root.
    pub fn of(proc: &Proc, thread: u32, dir: i32, path: CString, chrooted: bool) -> Result<Place> {
        let absolute = path.to_bytes().starts_with(b"/");
        if absolute && chrooted {
            return Ok(Place { base: Some(proc.root(thread)?), rooted: true, path });
        }
        let base = if absolute { None } else { Some(proc.directory(thread, dir)?) };
        Ok(Place { base, rooted: false, path })
    }

    fn base(&self) -> BorrowedFd<'_> {
        self.base.as_ref().map_or(CWD, |fd| fd.as_fd())
    }

    pub fn open(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.rooted {
            return rustix::fs::openat2(self.base(), &self.path, flags, mode, ResolveFlags::IN_ROOT);
        }
        rustix::fs::openat(self.base(), &self.path, flags, mode)
    }

    /// The file that is there.
    pub fn target(&self, follow: bool) -> Result<Target> {
        let link = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        Target::of(self.open(OFlags::PATH | link, Mode::empty())?)
    }

    /// The directory that holds the last part, and that part.
    pub fn parent(&self) -> Result<(Target, CString)> {
        let path = Path::new(OsStr::from_bytes(self.path.to_bytes()));
        let name = path.file_name().ok_or(Errno::EXIST)?;
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let text = CString::new(above.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        let base = self.base.as_ref().map(|fd| fd.try_clone()).transpose().map_err(|_| Errno::MFILE)?;
        let dir =
            Place { base, rooted: self.rooted, path: text }.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((Target::of(dir)?, CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?))
    }
}

impl Target {
    pub fn of(fd: OwnedFd) -> Result<Target> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Target { fd, stat })
    }

    pub fn kind(&self) -> Kind {
        kind(&self.stat)
    }

    /// What is written down of it.
    pub fn recorded(&self) -> Option<Recorded> {
        let access = (self.stat.st_atime, self.stat.st_atime_nsec as u32);
        recorded(&Proc::path_of(&self.fd), true, self.kind(), access)
    }

    /// The same with how it is to look; `None` if as it does.
    pub fn guised(self) -> Option<(Guised, Guise)> {
        let recorded = self.recorded()?;
        Some((Guised::Open(self.fd), guise(recorded)))
    }

    /// Gives it an owner.
    pub fn own(&self, uid: u32, gid: u32, device: Option<(Kind, u32, u32)>) -> Result<()> {
        match self.kind() {
            Kind::File | Kind::Dir => record(&Proc::path_of(&self.fd), true, &Recorded { uid, gid, device }),
            _ => {
                let times = record_in_times(uid, gid)?;
                rustix::fs::utimensat(&self.fd, c"", &times, AtFlags::EMPTY_PATH)
            }
        }
    }

    /// The group that new files in this directory get, if it is not their maker's.
    pub fn group_for_new(&self) -> Option<u32> {
        let set_gid = self.stat.st_mode & SET_GID != 0;
        set_gid.then(|| self.recorded().map_or(0, |owner| owner.gid))
    }
}
