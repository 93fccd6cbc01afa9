//! Output files named by the caller, located and opened before any work is done. A regular file is
//! replaced atomically; anything else is written in place and never replaced.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

use crate::atomic_file::temporary_name;
use crate::error::{Error, Result};
use crate::rootdir::RootDir;

mod error;
mod find;

pub use error::DestinationError;
use find::{FoundPlace, find};

/// An open output.
#[derive(Debug)]
pub enum Destination {
    /// A regular file, which is replaced atomically.
    Regular(RegularFile),
    /// Anything else, which is written in place.
    Stream(StreamFile),
}

/// A regular file that gets its name when it is complete. Until then it is unnamed (`O_TMPFILE`)
/// or, on file systems without unnamed files, has a temporary name that is removed on drop.
#[derive(Debug)]
pub struct RegularFile {
    file: File,
    base: RootDir,
    /// Path below `base`. Missing directories are created when the file is published.
    rest: PathBuf,
    /// Temporary name in `base`.
    temp: Option<OsString>,
    /// ID of the process that opened the file. Forked children share the file but must not remove
    /// its temporary name.
    opener: u32,
    published: AtomicBool,
}

/// A device, a FIFO, a descriptor of this process, or a file that cannot be replaced. Written in
/// place.
#[derive(Debug)]
pub struct StreamFile {
    file: File,
    shown: PathBuf,
    /// True for a regular file, which is truncated before it is written.
    truncates: bool,
}

/// An output directory named by the caller and checked to be writable. Missing components are
/// created when it is written.
#[derive(Debug)]
pub struct Directory {
    /// The deepest directory of the path that exists.
    pub base: RootDir,
    /// Path below `base`, of directories that do not exist yet.
    pub rest: PathBuf,
}

impl Destination {
    /// Opens the file at `path`. A symbolic link is followed and kept; an existing regular file
    /// keeps its mode and owner. Opening a FIFO blocks until it has a reader.
    pub fn open(path: &Path) -> std::result::Result<Destination, DestinationError> {
        match find(path)? {
            FoundPlace::Descriptor(fd) => StreamFile::of_descriptor(&fd, path).map(Destination::Stream),
            FoundPlace::Existing(path) => existing(&path),
            FoundPlace::Missing { .. } if path.as_os_str().as_bytes().ends_with(b"/") => {
                Err(DestinationError::EndsWithSlash(path.to_path_buf()))
            }
            FoundPlace::Missing { base, rest } => {
                let base = RootDir::open(base)?;
                writable(&base)?;
                let (file, temp) = nameless(&base, 0o666).map_err(not_writable(&base))?;
                Ok(Destination::Regular(RegularFile::new(file, base, rest, temp)))
            }
        }
    }

    /// Wraps an open file that is written in place, such as standard output.
    pub fn of_file(file: File, shown: impl Into<PathBuf>) -> Destination {
        Destination::Stream(StreamFile { file, shown: shown.into(), truncates: false })
    }

    /// Returns the file, positioned at its beginning. Discards everything that was written and not
    /// published.
    pub fn begin(&self) -> Result<&File> {
        let (file, truncates) = match self {
            Destination::Regular(regular) => (&regular.file, true),
            Destination::Stream(stream) => (&stream.file, stream.truncates),
        };
        if truncates {
            let emptied = file.set_len(0).and_then(|()| (&*file).rewind());
            emptied.map_err(|e| Error::new("ftruncate", self.path(), e))?;
        }
        Ok(file)
    }

    /// Gives a regular file its name. Must be called by the process that opened it.
    pub fn publish(&self) -> Result<()> {
        match self {
            Destination::Regular(regular) => regular.publish(),
            Destination::Stream(_) => Ok(()),
        }
    }

    /// Writes and publishes a small file.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut file = self.begin()?;
        file.write_all(bytes).and_then(|()| file.flush()).map_err(|e| Error::new("write", self.path(), e))?;
        self.publish()
    }

    /// Removes the existing file that will be replaced, or empties a regular file that is written
    /// in place. Has no effect on other streams, and on files that do not exist.
    pub fn remove_old(&self) -> Result<()> {
        match self {
            Destination::Regular(regular) if regular.base.exists(&regular.rest)? => {
                regular.base.remove_file(regular.rest.as_os_str())
            }
            Destination::Regular(_) => Ok(()),
            Destination::Stream(StreamFile { truncates: true, .. }) => self.begin().map(drop),
            Destination::Stream(_) => Ok(()),
        }
    }

    /// Sets the mode of a regular file; has no effect on a stream.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let Destination::Regular(regular) = self else { return Ok(()) };
        let changed = rustix::fs::fchmod(&regular.file, Mode::from_raw_mode(mode));
        changed.map_err(|e| Error::new("fchmod", self.path(), e))
    }

    /// Returns the base directory of a regular file and its path below it. Directories of that path
    /// may not exist yet. Returns `None` for a stream.
    pub fn place(&self) -> Option<(&RootDir, &Path)> {
        match self {
            Destination::Regular(regular) => Some((&regular.base, &regular.rest)),
            Destination::Stream(_) => None,
        }
    }

    /// Returns true if the output is a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Destination::Stream(stream) if std::io::IsTerminal::is_terminal(&stream.file))
    }

    /// Returns the file's path for messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Destination::Regular(regular) => regular.base.label().join(&regular.rest),
            Destination::Stream(stream) => stream.shown.clone(),
        }
    }
}

impl Directory {
    /// Locates the directory at `path`, or the place where it will be created.
    pub fn find(path: &Path) -> std::result::Result<Directory, DestinationError> {
        let (base, rest) = match find(path)? {
            FoundPlace::Existing(path) => (path, PathBuf::new()),
            FoundPlace::Missing { base, rest } => (base, rest),
            FoundPlace::Descriptor(_) => return Err(DestinationError::NotDirectory(path.to_path_buf())),
        };
        if !base.is_dir() {
            return Err(DestinationError::NotDirectory(base));
        }
        let base = RootDir::open(base)?;
        writable(&base)?;
        Ok(Directory { base, rest })
    }

    /// Returns the directory's path for messages.
    pub fn path(&self) -> PathBuf {
        self.base.label().join(&self.rest)
    }
}

fn not_writable(dir: &RootDir) -> impl FnOnce(Errno) -> DestinationError + '_ {
    |e| DestinationError::NotWritable(dir.label().to_path_buf(), e)
}

fn writable(dir: &RootDir) -> std::result::Result<(), DestinationError> {
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(dir.fd(), c".", wanted, AtFlags::EACCESS).map_err(not_writable(dir))
}

/// Opens an existing file.
fn existing(path: &Path) -> std::result::Result<Destination, DestinationError> {
    let stat = rustix::fs::stat(path).map_err(|e| Error::new("stat", path, e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(DestinationError::IsDirectory(path.to_path_buf())),
        FileType::Socket => Err(DestinationError::Socket(path.to_path_buf())),
        FileType::RegularFile => match replacement(path, &stat)? {
            Some(regular) => Ok(Destination::Regular(regular)),
            None => StreamFile::open(path, true).map(Destination::Stream),
        },
        _ => StreamFile::open(path, false).map(Destination::Stream),
    }
}

/// Opens the replacement of a regular file. Returns `None` if replacing it would change its owner
/// or group, or is impossible.
fn replacement(path: &Path, old: &rustix::fs::Stat) -> std::result::Result<Option<RegularFile>, DestinationError> {
    let real = std::fs::canonicalize(path).map_err(|e| Error::new("realpath", path, e))?;
    let (Some(above), Some(name)) = (real.parent(), real.file_name()) else { return Ok(None) };
    let base = RootDir::open(above)?;
    let x = rustix::fs::statx(base.fd(), name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    if x.is_ok_and(|x| x.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return Ok(None);
    }
    let Ok((file, temp)) = nameless(&base, 0o600) else { return Ok(None) };
    let new = RegularFile::new(file, base, PathBuf::from(name), temp);
    let stat = rustix::fs::fstat(&new.file).map_err(|e| Error::new("fstat", &real, e))?;
    let uid = (stat.st_uid != old.st_uid).then(|| Uid::from_raw(old.st_uid));
    let gid = (stat.st_gid != old.st_gid).then(|| Gid::from_raw(old.st_gid));
    if (uid.is_some() || gid.is_some()) && rustix::fs::fchown(&new.file, uid, gid).is_err() {
        return Ok(None);
    }
    let mode = Mode::from_raw_mode(old.st_mode & 0o7777);
    rustix::fs::fchmod(&new.file, mode).map_err(|e| Error::new("fchmod", &real, e))?;
    Ok(Some(new))
}

impl StreamFile {
    fn open(path: &Path, truncates: bool) -> std::result::Result<StreamFile, DestinationError> {
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::new("open", path, e))?;
        Ok(StreamFile { file: File::from(fd), shown: path.to_path_buf(), truncates })
    }

    /// Opens the file that a link such as /dev/stdout leads to, in the mode in which the caller
    /// opened it and at its current position.
    fn of_descriptor(fd: &File, shown: &Path) -> std::result::Result<StreamFile, DestinationError> {
        let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| Error::new("fcntl", shown, e))?;
        if flags & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(DestinationError::NotForWriting(shown.to_path_buf()));
        }
        let file = fd.try_clone().map_err(|e| Error::new("dup", shown, e))?;
        Ok(StreamFile { file, shown: shown.to_path_buf(), truncates: false })
    }
}

/// Creates a file in `dir`: unnamed if possible, otherwise with a temporary name, which is
/// returned.
fn nameless(dir: &RootDir, mode: u32) -> rustix::io::Result<(File, Option<OsString>)> {
    let mode = Mode::from_raw_mode(mode);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    // Linking an unnamed file requires /proc.
    if Path::new("/proc/self/fd").is_dir()
        && let Ok(fd) = rustix::fs::openat(dir.fd(), c".", flags | OFlags::TMPFILE, mode)
    {
        return Ok((File::from(fd), None));
    }
    let name = temporary_name();
    let fd = rustix::fs::openat(dir.fd(), &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    Ok((File::from(fd), Some(name)))
}

impl RegularFile {
    fn new(file: File, base: RootDir, rest: PathBuf, temp: Option<OsString>) -> RegularFile {
        let opener = std::process::id();
        RegularFile { file, base, rest, temp, opener, published: AtomicBool::new(false) }
    }

    fn publish(&self) -> Result<()> {
        let above = self.rest.parent().unwrap_or(Path::new(""));
        let name = self.rest.file_name().unwrap_or_default();
        let dir = self.base.create_dir_all(above, 0o755, None, |_| ())?;
        // A file of another type created since the destination was opened is not replaced either.
        let taken = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        if taken.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile) {
            return Err(Error::new("rename", dir.label().join(name), Errno::EXIST));
        }
        match &self.temp {
            Some(temp) => self.base.rename(temp, &dir, name)?,
            None => self.link_over(&dir, name)?,
        }
        self.published.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Links the unnamed file under `name`, replacing an existing file of that name.
    fn link_over(&self, dir: &RootDir, name: &OsStr) -> Result<()> {
        let own = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let link = |name: &OsStr| {
            let linked = rustix::fs::linkat(CWD, &own, dir.fd(), name, AtFlags::SYMLINK_FOLLOW);
            linked.map_err(|e| Error::new("linkat", dir.label().join(name), e))
        };
        if link(name).is_ok() {
            return Ok(());
        }
        let temp = temporary_name();
        link(&temp)?;
        let renamed = dir.rename(&temp, dir, name);
        if renamed.is_err() {
            let _ = dir.remove_file(&temp);
        }
        renamed
    }
}

impl Drop for RegularFile {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp
            && !self.published.load(Ordering::Relaxed)
            && self.opener == std::process::id()
        {
            let _ = self.base.remove_file(temp);
        }
    }
}

#[cfg(test)]
mod tests;
