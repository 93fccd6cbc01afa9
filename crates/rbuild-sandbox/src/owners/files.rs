//! The files that a call of another process names, and their owners.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_linux::notify::{Guise, Named};
use rbuild_linux::{Kind, Recorded, record, record_in_times, recorded};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::caller::{Caller, Proc, Result};
use super::decode::HERE;

/// A file that is open for nothing but its metadata.
pub struct Target {
    pub fd: OwnedFd,
    pub stat: Stat,
}

/// A path for what a caller names, as long as the container's root is this process's, and the builder's /proc its working
/// directory. Only where no path of the container leads into a /proc in which this process is (see [`Proc::outer`]): links of
/// that one are followed with this process's rights.
fn seen_from_here(caller: &Caller<'_>, dir: i32, path: &[u8]) -> Result<CString> {
    if path.starts_with(b"/") {
        return CString::new(path).map_err(|_| Errno::INVAL);
    }
    let thread = caller.number();
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
    /// What is written down of the file that a caller names, which is asked without opening it. No process of the container has
    /// changed its root, and this process is in no /proc that the container sees.
    pub fn look(&mut self, caller: &Caller<'_>, dir: i32, path: &CStr, flags: AtFlags) -> Option<(Guised, Guise)> {
        let (seen, how) = seen(caller, dir, path, flags).ok()?;
        let follow = how.is_empty();
        // Where this process finds nothing, the kernel may find something for the other.
        let stat = rustix::fs::statat(CWD, &seen, how).ok()?;
        // Writing something down changes the file, if only at the pace of a clock: `forget` is for the rest.
        let (file, changed) = ((stat.st_dev, stat.st_ino), (stat.st_ctime, stat.st_ctime_nsec));
        let says = match self.0.get(&file) {
            Some(then) if then.changed == changed => then.says,
            _ => {
                let access = (stat.st_atime, stat.st_atime_nsec as u32);
                let says =
                    recorded(Path::new(OsStr::from_bytes(seen.to_bytes())), follow, kind(&stat), stat.st_ino, access);
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

/// A path for a file that a caller names, likewise, and the flags that go with it.
fn seen(caller: &Caller<'_>, dir: i32, path: &CStr, flags: AtFlags) -> Result<(CString, AtFlags)> {
    // What has no path is what the link in /proc leads to.
    let follow = path.is_empty() || !flags.contains(AtFlags::SYMLINK_NOFOLLOW);
    let how = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    Ok((seen_from_here(caller, dir, path.to_bytes())?, how))
}

/// Whether the directory that a path of a caller is made in hands its group on.
pub fn hands_on_group(caller: &Caller<'_>, dir: i32, path: &CStr) -> bool {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let above = path.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
    let mode = if caller.proc.outer {
        let above = if above.is_empty() { c".".into() } else { CString::new(above).unwrap_or_default() };
        Place::of(caller, dir, above, false).and_then(|place| place.target(true)).map(|dir| dir.stat.st_mode)
    } else {
        seen_from_here(caller, dir, above).and_then(|seen| rustix::fs::stat(&seen)).map(|stat| stat.st_mode)
    };
    mode.map_or(true, |mode| mode & SET_GID != 0)
}

const NO_LINKS_OF_PROC: ResolveFlags = ResolveFlags::NO_MAGICLINKS;

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

/// Where a call looks for a path. The path is walked by this process and with its rights, so a link of /proc on the way (to
/// descriptors, root and working directories of any process) is not followed, as it could lead out of the container.
pub struct Place {
    /// `None` for the working directory of this process, for absolute paths of the common root.
    base: Option<OwnedFd>,
    path: CString,
    how: ResolveFlags,
}

impl Place {
    /// Of a path that a caller gave together with a directory. `chrooted`: some process of the container changed its root.
    pub fn of(caller: &Caller<'_>, dir: i32, path: CString, chrooted: bool) -> Result<Place> {
        let absolute = path.to_bytes().starts_with(b"/");
        if absolute && chrooted {
            return Ok(Place { base: Some(caller.root()?), path, how: ResolveFlags::IN_ROOT | NO_LINKS_OF_PROC });
        }
        if let Some(own) = caller.own_path(path.to_bytes())? {
            let path = CString::new(own.rest).map_err(|_| Errno::INVAL)?;
            let how = if own.is_link { ResolveFlags::empty() } else { NO_LINKS_OF_PROC };
            return Ok(Place { base: Some(own.base), path, how });
        }
        let base = if absolute { None } else { Some(caller.directory(dir)?) };
        Ok(Place { base, path, how: NO_LINKS_OF_PROC })
    }

    /// The same, resolved as the caller wants it besides (openat2(2)).
    pub fn resolved(
        caller: &Caller<'_>,
        dir: i32,
        path: CString,
        chrooted: bool,
        resolve: ResolveFlags,
    ) -> Result<Place> {
        if resolve.intersects(ResolveFlags::BENEATH | ResolveFlags::IN_ROOT) {
            return Ok(Place { base: Some(caller.directory(dir)?), path, how: resolve | NO_LINKS_OF_PROC });
        }
        let place = Place::of(caller, dir, path, chrooted)?;
        Ok(Place { how: place.how | resolve, ..place })
    }

    fn base(&self) -> BorrowedFd<'_> {
        self.base.as_ref().map_or(CWD, |fd| fd.as_fd())
    }

    fn open(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(self.base(), path, flags, Mode::empty(), self.how)
    }

    /// The file that is there.
    pub fn target(&self, follow: bool) -> Result<Target> {
        let link = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        Target::of(self.open(&self.path, link)?)
    }

    /// Whether the path can be nothing but a directory's.
    pub fn names_directory(&self) -> bool {
        self.path.to_bytes().ends_with(b"/")
    }

    /// Where a link leads that is in `dir`.
    pub fn behind(&self, caller: &Caller<'_>, dir: Target, text: CString, chrooted: bool) -> Result<Place> {
        match text.to_bytes().starts_with(b"/") {
            true => Place::of(caller, HERE, text, chrooted),
            false => Ok(Place { base: Some(dir.fd), path: text, how: NO_LINKS_OF_PROC }),
        }
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
        let dir = self.open(&text, OFlags::DIRECTORY)?;
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

    /// Whether it is part of a /proc.
    pub fn is_in_proc(&self) -> bool {
        rustix::fs::fstatfs(&self.fd).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
    }

    /// What is written down of it.
    pub fn recorded(&self) -> Option<Recorded> {
        let access = (self.stat.st_atime, self.stat.st_atime_nsec as u32);
        recorded(&Proc::path_of(&self.fd), true, self.kind(), self.stat.st_ino, access)
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
