use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, described};

/// The type of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// Device (major and minor) and inode number of a file: its identity within this boot.
pub type Inode = (u32, u32, u64);

impl FileKind {
    /// Returns the name of the type for messages.
    pub fn noun(self) -> &'static str {
        match self {
            FileKind::File => "a file",
            FileKind::Dir => "a directory",
            FileKind::Symlink => "a symbolic link",
            FileKind::CharDevice | FileKind::BlockDevice => "a device",
            FileKind::Fifo => "a FIFO",
            FileKind::Socket => "a socket",
        }
    }

    /// Returns the `S_IFMT` bits of stat(2).
    pub fn bits(self) -> u32 {
        let kind = match self {
            FileKind::File => FileType::RegularFile,
            FileKind::Dir => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
        };
        kind.as_raw_mode()
    }
}

/// A point in time, in seconds and nanoseconds since the epoch; seconds may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Timestamp {
    /// Returns the current time; the epoch if the clock is before it.
    pub fn now() -> Timestamp {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Timestamp { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
    }
}

/// Extended attributes by full name, ordered by name.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// The metadata of one entry, as returned by statx(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Type of the entry.
    pub kind: FileKind,
    /// Permission bits including set-id and sticky: at most `0o7777`.
    pub mode: u32,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Size of the content in bytes.
    pub size: u64,
    /// Space in use, in units of 512 bytes.
    pub blocks: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time of the inode.
    pub ctime: Timestamp,
    /// Creation time of the inode, if requested and supported by the file system. It distinguishes
    /// inodes that reuse a number.
    pub btime: Option<Timestamp>,
    /// Inode number.
    pub ino: u64,
    /// Number of hard links.
    pub nlink: u32,
    /// Device that the entry is on, (major, minor).
    pub dev: (u32, u32),
    /// Device number of a device node, (major, minor).
    pub rdev: (u32, u32),
    /// The device that a placeholder represents where device nodes cannot be created.
    pub device: Option<(FileKind, u32, u32)>,
}

/// A user ID and a group ID: of a file, or of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UidGid {
    /// The user ID.
    pub uid: u32,
    /// The group ID.
    pub gid: u32,
}

impl UidGid {
    /// Root and its group.
    pub const ROOT: UidGid = UidGid::new(0, 0);

    /// Returns the pair of both IDs.
    pub const fn new(uid: u32, gid: u32) -> UidGid {
        UidGid { uid, gid }
    }

    /// Returns the higher user ID and the higher group ID of both.
    pub fn max(self, other: UidGid) -> UidGid {
        UidGid { uid: self.uid.max(other.uid), gid: self.gid.max(other.gid) }
    }
}

impl Stat {
    /// Returns the owner.
    pub fn owner(&self) -> UidGid {
        UidGid { uid: self.uid, gid: self.gid }
    }

    pub(crate) fn from_statx(x: &Statx) -> Stat {
        let raw = u32::from(x.stx_mode);
        let kind = match FileType::from_raw_mode(raw) {
            FileType::Directory => FileKind::Dir,
            FileType::Symlink => FileKind::Symlink,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            _ => FileKind::File,
        };
        Stat {
            kind,
            mode: raw & 0o7777,
            uid: x.stx_uid,
            gid: x.stx_gid,
            size: x.stx_size,
            blocks: x.stx_blocks,
            mtime: Timestamp { sec: x.stx_mtime.tv_sec, nsec: x.stx_mtime.tv_nsec },
            ctime: Timestamp { sec: x.stx_ctime.tv_sec, nsec: x.stx_ctime.tv_nsec },
            btime: StatxFlags::from_bits_retain(x.stx_mask)
                .contains(StatxFlags::BTIME)
                .then_some(Timestamp { sec: x.stx_btime.tv_sec, nsec: x.stx_btime.tv_nsec }),
            ino: x.stx_ino,
            nlink: x.stx_nlink,
            dev: (x.stx_dev_major, x.stx_dev_minor),
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            device: None,
        }
    }

    /// Returns true for an overlay whiteout: a character device with number 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == FileKind::CharDevice && self.rdev == (0, 0)
    }

    /// Returns the identity of the file.
    pub fn inode(&self) -> Inode {
        (self.dev.0, self.dev.1, self.ino)
    }
}

/// Returns a short extended attribute (at most 256 bytes) of an open file, or `None` if it cannot
/// be read.
pub fn file_xattr(file: &File, attr: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::fgetxattr(file, attr, value.as_mut_slice()).ok()?;
    value.truncate(n);
    Some(value)
}

/// Returns all extended attributes of an open file.
pub fn file_xattrs(file: &File) -> Result<Xattrs> {
    let found =
        xattrs_by(|names| rustix::fs::flistxattr(file, names), |attr, value| rustix::fs::fgetxattr(file, attr, value));
    found.map_err(|(call, e)| Error::new(call, described("an open file"), std::io::Error::from(e)))
}

/// Returns the metadata of an open file.
pub fn file_stat(file: &File) -> Result<Stat> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let x = rustix::fs::statx(file, c"", flags, StatxFlags::BASIC_STATS)
        .map_err(|e| Error::new("statx", described("an open file"), std::io::Error::from(e)))?;
    Ok(Stat::from_statx(&x))
}

/// Collects attributes with the given list and get calls; an error carries the name of the failed
/// call.
pub(crate) fn xattrs_by(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> std::result::Result<Xattrs, (&'static str, Errno)> {
    let mut found = Xattrs::new();
    // Most files have no attributes, and thousands of files are queried.
    let mut few = [0u8; 512];
    let mut many = Vec::new();
    let names = match list(&mut few) {
        Ok(n) => &few[..n],
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(Errno::RANGE) => {
            many.resize(MAX_XATTR, 0);
            let n = list(&mut many).map_err(|e| ("listxattr", e))?;
            &many[..n]
        }
        Err(e) => return Err(("listxattr", e)),
    };
    for attr in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let attr = OsStr::from_bytes(attr);
        let mut value = vec![0u8; 1024];
        let n = loop {
            match get(attr, &mut value) {
                Ok(n) => break n,
                Err(Errno::RANGE) if value.len() < MAX_XATTR => value.resize(MAX_XATTR, 0),
                // Removed in the meantime, or unreadable (trusted.* in a user namespace).
                Err(Errno::NODATA | Errno::PERM) => break usize::MAX,
                // The kernel accepts an empty value of this one, which has no effect, and then does
                // not return it (cap_inode_getsecurity, Linux 6.18).
                Err(Errno::INVAL) if attr == "security.capability" => break usize::MAX,
                Err(e) => return Err(("getxattr", e)),
            }
        };
        if n != usize::MAX {
            value.truncate(n);
            found.insert(attr.to_os_string(), value);
        }
    }
    Ok(found)
}

/// The kernel's limit for a list of names and for a value, in bytes (xattr(7)).
const MAX_XATTR: usize = 64 * 1024;

/// Sets an extended attribute that is only an optimization. Errors are ignored.
pub fn set_file_xattr(file: &File, attr: &str, value: &[u8]) {
    let _ = rustix::fs::fsetxattr(file, attr, value, rustix::fs::XattrFlags::empty());
}
