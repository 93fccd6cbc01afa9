//! The files that a call of another process names, and their owners.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_linux::notify::{Guise, read_memory};
use rbuild_linux::{Kind, Recorded, record, record_in_times, recorded};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

pub type Result<T> = std::result::Result<T, Errno>;

/// `AT_FDCWD`: the working directory.
pub const HERE: i32 = -100;

/// The longest path that the kernel takes, with its end.
const PATH_MAX: usize = 4096;

/// The builder's /proc, where all processes of the container are, and so is this one.
pub struct Proc(pub OwnedFd);

/// A file that is open for nothing but its metadata.
pub struct Target {
    pub fd: OwnedFd,
    pub stat: Stat,
}

impl Proc {
    fn open(&self, path: &str) -> Result<OwnedFd> {
        rustix::fs::openat(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// Directory `fd` of a thread, or its working directory.
    pub fn directory(&self, thread: u32, fd: i32) -> Result<OwnedFd> {
        match fd {
            HERE => self.open(&format!("{thread}/cwd")),
            fd => self.file(thread, fd),
        }
    }

    /// What is behind the descriptor `fd` of a thread.
    pub fn file(&self, thread: u32, fd: i32) -> Result<OwnedFd> {
        self.open(&format!("{thread}/fd/{fd}"))
    }

    pub fn root(&self, thread: u32) -> Result<OwnedFd> {
        self.open(&format!("{thread}/root"))
    }

    /// A path for `fd`, a descriptor of this process, as long as this /proc is the working directory.
    pub fn path_of(fd: impl AsFd) -> PathBuf {
        PathBuf::from(format!("self/fd/{}", fd.as_fd().as_raw_fd()))
    }

    pub fn umask(&self, thread: u32) -> u32 {
        let status =
            rustix::fs::openat(&self.0, format!("{thread}/status"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
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
        let room = (256 - (at % 256)) as usize;
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
        match rustix::fs::FileType::from_raw_mode(self.stat.st_mode) {
            rustix::fs::FileType::Directory => Kind::Dir,
            rustix::fs::FileType::Symlink => Kind::Symlink,
            rustix::fs::FileType::CharacterDevice => Kind::CharDevice,
            rustix::fs::FileType::BlockDevice => Kind::BlockDevice,
            rustix::fs::FileType::Fifo => Kind::Fifo,
            rustix::fs::FileType::Socket => Kind::Socket,
            _ => Kind::File,
        }
    }

    /// What is written down of it.
    pub fn recorded(&self) -> Option<Recorded> {
        let access = (self.stat.st_atime, self.stat.st_atime_nsec as u32);
        recorded(&Proc::path_of(&self.fd), true, self.kind(), access)
    }

    /// How it is to look; `None` if as it does.
    pub fn guise(&self) -> Option<Guise> {
        let Recorded { uid, gid, device } = self.recorded()?;
        let node = device.map(|(kind, major, minor)| (kind.bits(), major, minor));
        Some(Guise { uid, gid, node })
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
        let set_gid = self.stat.st_mode & 0o2000 != 0;
        set_gid.then(|| self.recorded().map_or(0, |owner| owner.gid))
    }
}
