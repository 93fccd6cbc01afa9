//! File owners in user namespaces that map a single ID: recorded in metadata instead of set.
//!
//! A user namespace without sub-IDs maps only its root, so no file can belong to another user.
//! There the owner of a file or directory is stored in an extended attribute, and a device is an
//! empty file whose attribute holds the device number. Files that cannot have such an attribute
//! (symbolic links, FIFOs, sockets: xattr(7)) store their owner in their access time, which is not
//! otherwise used: the seconds from [`FAR`] on are the group, the nanoseconds the user. The kernel
//! does not update such a time by itself, because it is later than any access (mount(8), relatime)
//! and than any modification time, which [`latest_modification`] limits. A file without a record
//! belongs to root. Devices are recorded this way wherever device nodes cannot be created.
//!
//! Any process can write attributes and times, but only rbuild's own records are valid
//! (`docs/design/0001-authenticated-owner-records.md`). The attribute's name and value are derived
//! from a key of the store. Where owners are recorded, commands cannot set those times and do not
//! see the attribute, whose name cannot be guessed. Elsewhere they see it on files that represent
//! devices; there its value is valid only for the inode that it was written for.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, StatxFlags, StatxTimestamp, Timespec, Timestamps};
use rustix::io::Errno;

use crate::meta::{FileKind, Stat, Timestamp, UidGid};
use crate::random::random_bytes;

/// A time in the year 2242, in seconds since the Unix epoch. It is later than any access, and ext4
/// and xfs (with bigtime) can store it.
const FAR: i64 = 1 << 33;
/// Nanoseconds per second.
const SECOND: u32 = 1_000_000_000;

/// The representation of file owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerMode {
    /// Owners of the file system.
    Given,
    /// Records in metadata ([`Recorded`]).
    Recorded,
}

impl OwnerMode {
    /// Returns the other representation.
    pub fn other(self) -> OwnerMode {
        match self {
            OwnerMode::Given => OwnerMode::Recorded,
            OwnerMode::Recorded => OwnerMode::Given,
        }
    }
}

/// A secret key known to the builder only.
pub type OwnerKey = [u8; 32];

/// The records of a store's files: the representation of owners, and the key that authenticates
/// records. A `RootDir` that has it passes it to the directories opened from it.
#[derive(Clone)]
pub struct OwnerRecords(Arc<OwnerRecordsState>);

struct OwnerRecordsState {
    mode: OwnerMode,
    key: OwnerKey,
    attribute: OsString,
    seen_placeholders: AtomicBool,
}

impl fmt::Debug for OwnerRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnerRecords").field(&self.0.mode).finish()
    }
}

/// The record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    /// The owner.
    pub owner: UidGid,
    /// The device that the file represents.
    pub device: Option<(FileKind, u32, u32)>,
}

/// The scope of a record's authenticator: any file, or one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MacScope {
    /// The kernel copies attributes when it copies a file up, and commands cannot set them.
    AnyFile,
    Inode(u64),
}

/// Length of a record's authenticator, in bytes.
const CODE: usize = 16;

impl Recorded {
    /// Encodes the record in little-endian order: user, group, for a device `c` or `b` and its
    /// numbers; then the authenticator.
    fn value(&self, key: &OwnerKey, scope: MacScope) -> Vec<u8> {
        let mut value = [self.owner.uid.to_le_bytes(), self.owner.gid.to_le_bytes()].concat();
        if let Some((kind, major, minor)) = self.device {
            value.push(if kind == FileKind::CharDevice { b'c' } else { b'b' });
            value.extend([major.to_le_bytes(), minor.to_le_bytes()].concat());
        }
        let code = code(key, &value, scope);
        value.extend(code);
        value
    }

    /// Decodes a record; `None` unless it was written with this key.
    fn of_value(value: &[u8], key: &OwnerKey, scope: MacScope) -> Option<Recorded> {
        let (fields, code_there) = value.split_at_checked(value.len().checked_sub(CODE)?)?;
        // Constant-time comparison: the timing does not reveal how many bytes match.
        if blake3::Hash::from(widened(code_there)?) != blake3::Hash::from(widened(&code(key, fields, scope))?) {
            return None;
        }
        let number = |at: usize| Some(u32::from_le_bytes(fields.get(at..at + 4)?.try_into().ok()?));
        let device = match (fields.get(8), fields.len()) {
            (None, 8) => None,
            (Some(b'c'), 17) => Some((FileKind::CharDevice, number(9)?, number(13)?)),
            (Some(b'b'), 17) => Some((FileKind::BlockDevice, number(9)?, number(13)?)),
            _ => return None,
        };
        Some(Recorded { owner: UidGid::new(number(0)?, number(4)?), device })
    }
}

fn code(key: &OwnerKey, fields: &[u8], scope: MacScope) -> [u8; CODE] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    match scope {
        MacScope::AnyFile => hasher.update(b"rbuild: owner 1"),
        MacScope::Inode(inode) => hasher.update(b"rbuild: device 1").update(&inode.to_le_bytes()),
    };
    let mut code = [0; CODE];
    code.copy_from_slice(&hasher.update(fields).finalize().as_bytes()[..CODE]);
    code
}

/// Pads the authenticator to the length of a hash, whose comparison takes constant time.
fn widened(code: &[u8]) -> Option<[u8; 32]> {
    let mut wide = [0; 32];
    wide.get_mut(..code.len())?.copy_from_slice(code);
    Some(wide)
}

/// Returns true if files of this type can have user extended attributes.
fn takes_attributes(kind: FileKind) -> bool {
    matches!(kind, FileKind::File | FileKind::Dir)
}

impl OwnerRecords {
    /// Returns the records that are valid with that key.
    pub fn new(mode: OwnerMode, key: OwnerKey) -> OwnerRecords {
        let name = blake3::keyed_hash(&key, b"rbuild: the attribute of owners 1");
        let digits: String = name.as_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let attribute = format!("user.rbuild.{digits}").into();
        OwnerRecords(Arc::new(OwnerRecordsState { mode, key, attribute, seen_placeholders: AtomicBool::new(false) }))
    }

    /// Returns records with a new key, which are valid as long as this value and its clones exist.
    pub fn with_new_key(mode: OwnerMode) -> OwnerRecords {
        OwnerRecords::new(mode, random_bytes().expect("the kernel has random bytes"))
    }

    /// Returns records with the same key and another representation of owners.
    pub fn with_mode(&self, mode: OwnerMode) -> OwnerRecords {
        OwnerRecords::new(mode, self.0.key)
    }

    /// Returns the representation of owners.
    pub fn mode(&self) -> OwnerMode {
        self.0.mode
    }

    /// Returns the key.
    pub fn key(&self) -> OwnerKey {
        self.0.key
    }

    /// Returns the name of the owner attribute, which must not be part of any image.
    pub fn attribute(&self) -> &OsStr {
        &self.0.attribute
    }

    /// Returns true if a placeholder of a device was read or created by this value or a clone
    /// while owners are not recorded. The attributes of such files are valid only for their own
    /// inodes.
    pub fn has_seen_placeholders(&self) -> bool {
        self.0.seen_placeholders.load(Ordering::Relaxed)
    }

    pub(crate) fn are_written(&self) -> bool {
        self.0.mode == OwnerMode::Recorded
    }

    fn mac_scope(&self, inode: u64) -> MacScope {
        if self.are_written() { MacScope::AnyFile } else { MacScope::Inode(inode) }
    }

    /// Returns the record of the file at `path`. A link in the last component is followed if
    /// `follow` is true. `kind`, `inode` and `access` are the type, inode number and access time of
    /// the file.
    pub fn recorded(
        &self,
        path: &Path,
        follow: bool,
        kind: FileKind,
        inode: u64,
        access: Timestamp,
    ) -> Option<Recorded> {
        if !takes_attributes(kind) {
            let gid = u32::try_from(access.sec.checked_sub(FAR)?).ok()?;
            return Some(Recorded { owner: UidGid::new(access.nsec, gid), device: None });
        }
        let mut value = [0u8; 64];
        let n = self.read_value(path, follow, &mut value).ok()?;
        Recorded::of_value(&value[..n], &self.0.key, self.mac_scope(inode))
    }

    pub(crate) fn read_value(&self, path: &Path, follow: bool, value: &mut [u8]) -> rustix::io::Result<usize> {
        if follow {
            rustix::fs::getxattr(path, self.attribute(), value)
        } else {
            rustix::fs::lgetxattr(path, self.attribute(), value)
        }
    }

    /// Stores the record of the file or directory at `path`.
    pub fn record(&self, path: &Path, follow: bool, recorded: &Recorded) -> rustix::io::Result<()> {
        let name = self.attribute();
        if *recorded == Recorded::default() {
            let removed =
                if follow { rustix::fs::removexattr(path, name) } else { rustix::fs::lremovexattr(path, name) };
            return match removed {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                other => other,
            };
        }
        let flags = rustix::fs::XattrFlags::empty();
        let at_flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let inode = if self.are_written() {
            0
        } else {
            self.0.seen_placeholders.store(true, Ordering::Relaxed);
            rustix::fs::statx(CWD, path, at_flags, StatxFlags::INO)?.stx_ino
        };
        let value = recorded.value(&self.0.key, self.mac_scope(inode));
        if follow {
            rustix::fs::setxattr(path, name, &value, flags)
        } else {
            rustix::fs::lsetxattr(path, name, &value, flags)
        }
    }

    /// Records the owner of the entry `name` of `dir`, which has the metadata `stat`. `path` refers
    /// to the same entry.
    pub(crate) fn chown(
        &self,
        dir: impl AsFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        owner: UidGid,
    ) -> rustix::io::Result<()> {
        if takes_attributes(stat.kind) || stat.device.is_some() {
            return self.record(path, false, &Recorded { owner, device: stat.device });
        }
        rustix::fs::utimensat(dir, name, &record_in_times(owner)?, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Replaces owner and type in `stat` by those recorded at `path`.
    pub(crate) fn applied(
        &self,
        mut stat: Stat,
        path: impl FnOnce() -> PathBuf,
        follow: bool,
        access: StatxTimestamp,
    ) -> Stat {
        // Elsewhere only empty regular files can be placeholders of devices.
        if !self.are_written() && (stat.kind != FileKind::File || stat.size > 0) {
            return stat;
        }
        // Where the access time holds the record, the path is not used.
        let path = if takes_attributes(stat.kind) { path() } else { Default::default() };
        let access = Timestamp { sec: access.tv_sec, nsec: access.tv_nsec };
        let found = self.recorded(&path, follow, stat.kind, stat.ino, access);
        let Some(Recorded { owner, device }) = found else { return stat };
        if self.are_written() {
            (stat.uid, stat.gid) = (owner.uid, owner.gid);
        } else {
            self.0.seen_placeholders.store(true, Ordering::Relaxed);
        }
        if let Some((kind, major, minor)) = device {
            (stat.kind, stat.rdev, stat.device) = (kind, (major, minor), device);
        }
        stat
    }
}

/// Returns the timestamps that record the owner of a file that cannot have attributes.
pub fn record_in_times(owner: UidGid) -> rustix::io::Result<Timestamps> {
    if owner.uid >= SECOND {
        return Err(Errno::INVAL);
    }
    let access = match owner {
        UidGid::ROOT => Timespec { tv_sec: 0, tv_nsec: 0 },
        UidGid { uid, gid } => Timespec { tv_sec: FAR + i64::from(gid), tv_nsec: uid.into() },
    };
    Ok(Timestamps { last_access: access, last_modification: OMITTED })
}

/// Returns the latest permitted modification time, in seconds, of a file of this type. After a
/// later one, the next read would update the access time that records the owner.
pub fn latest_modification(kind: FileKind) -> i64 {
    if takes_attributes(kind) { i64::MAX } else { FAR - 1 }
}

pub(crate) const OMITTED: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_made_with_the_key_are_read() {
        for device in [None, Some((FileKind::CharDevice, 1, 3)), Some((FileKind::BlockDevice, 259, 70000))] {
            let recorded = Recorded { owner: UidGid::new(33, 4_000_000_000), device };
            for scope in [MacScope::AnyFile, MacScope::Inode(7), MacScope::Inode(8)] {
                let value = recorded.value(&[7; 32], scope);
                assert!(value.len() <= 33);
                for other in [MacScope::AnyFile, MacScope::Inode(7), MacScope::Inode(8)] {
                    assert_eq!(Recorded::of_value(&value, &[7; 32], other), (scope == other).then_some(recorded));
                }
                for at in 0..value.len() {
                    let mut changed = value.clone();
                    changed[at] ^= 1;
                    assert_eq!(Recorded::of_value(&changed, &[7; 32], scope), None, "{at}");
                    assert_eq!(Recorded::of_value(&value[..at], &[7; 32], scope), None, "{at}");
                }
            }
        }
        for junk in ["", "0:0", "0:0:b:8:0", "1:2:c:x:y and so on until it is long"] {
            assert_eq!(Recorded::of_value(junk.as_bytes(), &[7; 32], MacScope::AnyFile), None, "{junk}");
        }
        let records = OwnerRecords::new(OwnerMode::Recorded, [7; 32]);
        let recorded = |kind, access| records.recorded(Path::new(""), false, kind, 0, access);
        let times = record_in_times(UidGid::new(33, 34)).unwrap().last_access;
        let found = recorded(FileKind::Symlink, Timestamp { sec: times.tv_sec, nsec: times.tv_nsec as u32 });
        assert_eq!(found, Some(Recorded { owner: UidGid::new(33, 34), device: None }));
        assert_eq!(recorded(FileKind::Symlink, Timestamp { sec: 1_700_000_000, nsec: 5 }), None);
    }

    #[test]
    fn each_key_has_its_own_attribute() {
        let [one, other] = [[1; 32], [2; 32]].map(|key| OwnerRecords::new(OwnerMode::Given, key));
        let name = one.attribute().to_str().unwrap();
        assert!(name.starts_with("user.rbuild.") && name.len() == 44 && name != other.attribute(), "{name}");
        assert_eq!(format!("{one:?}"), "OwnerRecords(Given)", "the key is not shown");
    }
}
