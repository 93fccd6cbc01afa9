//! Owners where only one id is mapped: they are written down instead of given.
//!
//! A user namespace without sub-ids holds nobody but its root, so no file can belong to anyone else. There the owner of a
//! file or a directory is an extended attribute, and a device is an empty file whose attribute says which. What can have no
//! such attribute (symbolic links, fifos, sockets: xattr(7)) keeps its owner in the time of its last access, which nobody
//! needs: seconds from [`FAR`] on are the group, the nanoseconds the user. The kernel moves no such time by itself, as it is
//! later than any access (mount(8), relatime), and than any modification, as [`latest_modification`] sees to. A file that says nothing is root's. Devices are written down like that
//! wherever none can be made.
//!
//! Anybody may write attributes and times, and only what rbuild wrote counts (`docs/design/0001-owners-that-count.md`). The
//! attribute's name and value are made with a key of the store. Where owners are written down, commands cannot set those
//! times, and are not shown the attribute, whose name nobody guesses. Elsewhere they see it on files that stand for devices;
//! there its value is of use to the inode alone that it was written for.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, StatxFlags, StatxTimestamp, Timespec, Timestamps};
use rustix::io::Errno;

use crate::meta::{Kind, Stat};
use crate::random::random_bytes;

/// In the year 2242: no file is read then, and ext4 and xfs (with bigtime) still know it.
const FAR: i64 = 1 << 33;
/// Nanoseconds of a timestamp.
const SECOND: u32 = 1_000_000_000;

static RECORDED: AtomicBool = AtomicBool::new(false);

/// From now on owners are written down, by this process and those that it forks.
pub fn record_owners() {
    RECORDED.store(true, Ordering::Relaxed);
}

/// Whether owners are written down in this process.
pub fn owners_are_recorded() -> bool {
    RECORDED.load(Ordering::Relaxed)
}

/// Bytes that nobody but the builder has.
pub type OwnerKey = [u8; 32];

/// Whether this process has had to do with files that stand for devices.
static DEVICES: AtomicBool = AtomicBool::new(false);

/// Whether this process has seen or made a file that stands for a device, where owners are not written down. The attributes of
/// such files are of use to their inodes alone.
pub fn has_met_stand_ins() -> bool {
    DEVICES.load(Ordering::Relaxed)
}

static KEY: OnceLock<Keyed> = OnceLock::new();

struct Keyed {
    key: OwnerKey,
    attribute: String,
}

impl Keyed {
    fn new(key: OwnerKey) -> Keyed {
        let name = blake3::keyed_hash(&key, b"rbuild: the attribute of owners 1");
        let digits: String = name.as_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Keyed { key, attribute: format!("user.rbuild.{digits}") }
    }
}

/// Sets the key with which this process, and those that it forks, write down owners. The first one stays.
pub fn set_owner_key(key: OwnerKey) {
    KEY.get_or_init(|| Keyed::new(key));
}

/// The key that this process was given.
pub fn owner_key() -> Option<OwnerKey> {
    KEY.get().map(|keyed| keyed.key)
}

/// The attribute that tells of owners, which is no part of any image.
pub fn owner_attribute() -> &'static OsStr {
    OsStr::new(&keyed().attribute)
}

/// A process that was given no key has one of its own: what it writes down is for itself alone.
fn keyed() -> &'static Keyed {
    KEY.get_or_init(|| Keyed::new(random_bytes().expect("the kernel has random bytes")))
}

/// What is written down of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    pub uid: u32,
    pub gid: u32,
    /// The device that the file stands for.
    pub device: Option<(Kind, u32, u32)>,
}

/// Whose a value is: that of whatever file has it, or of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// The kernel copies attributes when it copies a file up, and commands cannot.
    ToNothing,
    ToInode(u64),
}

impl Bound {
    fn to(inode: u64) -> Bound {
        if owners_are_recorded() { Bound::ToNothing } else { Bound::ToInode(inode) }
    }
}

/// Bytes of a value's authenticator.
const CODE: usize = 16;

impl Recorded {
    /// Numbers in little-endian order: user, group, and of a device `c` or `b` and its numbers; then the authenticator.
    fn value(&self, bound: Bound) -> Vec<u8> {
        let mut value = [self.uid.to_le_bytes(), self.gid.to_le_bytes()].concat();
        if let Some((kind, major, minor)) = self.device {
            value.push(if kind == Kind::CharDevice { b'c' } else { b'b' });
            value.extend([major.to_le_bytes(), minor.to_le_bytes()].concat());
        }
        let code = code(&value, bound);
        value.extend(code);
        value
    }

    /// Reads a value that this key's holder has written.
    fn of_value(value: &[u8], bound: Bound) -> Option<Recorded> {
        let (said, code_there) = value.split_at_checked(value.len().checked_sub(CODE)?)?;
        // Equal in all bytes or not: how many of them are tells nothing that could be tried in time.
        if blake3::Hash::from(widened(code_there)?) != blake3::Hash::from(widened(&code(said, bound))?) {
            return None;
        }
        let number = |at: usize| Some(u32::from_le_bytes(said.get(at..at + 4)?.try_into().ok()?));
        let device = match (said.get(8), said.len()) {
            (None, 8) => None,
            (Some(b'c'), 17) => Some((Kind::CharDevice, number(9)?, number(13)?)),
            (Some(b'b'), 17) => Some((Kind::BlockDevice, number(9)?, number(13)?)),
            _ => return None,
        };
        Some(Recorded { uid: number(0)?, gid: number(4)?, device })
    }
}

fn code(said: &[u8], bound: Bound) -> [u8; CODE] {
    let mut hasher = blake3::Hasher::new_keyed(&keyed().key);
    match bound {
        Bound::ToNothing => hasher.update(b"rbuild: owner 1"),
        Bound::ToInode(inode) => hasher.update(b"rbuild: device 1").update(&inode.to_le_bytes()),
    };
    let mut code = [0; CODE];
    code.copy_from_slice(&hasher.update(said).finalize().as_bytes()[..CODE]);
    code
}

/// As long as the hashes that can be compared in constant time.
fn widened(code: &[u8]) -> Option<[u8; 32]> {
    let mut wide = [0; 32];
    wide.get_mut(..code.len())?.copy_from_slice(code);
    Some(wide)
}

/// Whether what is of that kind can have attributes of its own.
fn takes_attributes(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Dir)
}

/// What is written down of the file at `path` (a link in the last component is followed if `follow`), whose kind, inode and time
/// of last access are known.
pub fn recorded(path: &Path, follow: bool, kind: Kind, inode: u64, access: (i64, u32)) -> Option<Recorded> {
    if !takes_attributes(kind) {
        let gid = u32::try_from(access.0.checked_sub(FAR)?).ok()?;
        return Some(Recorded { uid: access.1, gid, device: None });
    }
    let mut value = [0u8; 64];
    let n = read_value(path, follow, &mut value).ok()?;
    Recorded::of_value(&value[..n], Bound::to(inode))
}

fn read_value(path: &Path, follow: bool, value: &mut [u8]) -> rustix::io::Result<usize> {
    match follow {
        true => rustix::fs::getxattr(path, owner_attribute(), value),
        false => rustix::fs::lgetxattr(path, owner_attribute(), value),
    }
}

/// Writes down what a file or a directory at `path` is.
pub fn record(path: &Path, follow: bool, what: &Recorded) -> rustix::io::Result<()> {
    let name = owner_attribute();
    if *what == Recorded::default() {
        let removed = if follow { rustix::fs::removexattr(path, name) } else { rustix::fs::lremovexattr(path, name) };
        return match removed {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        };
    }
    let flags = rustix::fs::XattrFlags::empty();
    let how = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let inode = match owners_are_recorded() {
        true => 0,
        false => {
            DEVICES.store(true, Ordering::Relaxed);
            rustix::fs::statx(CWD, path, how, StatxFlags::INO)?.stx_ino
        }
    };
    let value = what.value(Bound::to(inode));
    if follow {
        rustix::fs::setxattr(path, name, &value, flags)
    } else {
        rustix::fs::lsetxattr(path, name, &value, flags)
    }
}

/// The times that write down the owner of what takes no attributes.
pub fn record_in_times(uid: u32, gid: u32) -> rustix::io::Result<Timestamps> {
    if uid >= SECOND {
        return Err(Errno::INVAL);
    }
    let access = match (uid, gid) {
        (0, 0) => Timespec { tv_sec: 0, tv_nsec: 0 },
        _ => Timespec { tv_sec: FAR + i64::from(gid), tv_nsec: uid.into() },
    };
    Ok(Timestamps { last_access: access, last_modification: OMITTED })
}

/// The latest time of modification, in seconds, of a file of that kind: with a later one, the next reading would move the time of
/// access that tells the owner.
pub fn latest_modification(kind: Kind) -> i64 {
    if takes_attributes(kind) { i64::MAX } else { FAR - 1 }
}

pub(crate) const OMITTED: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };

/// Writes down the owner of the entry at `name` of `dir`, whose kind is known; `path` is the same by another way.
pub(crate) fn chown(
    dir: impl std::os::fd::AsFd,
    name: &std::ffi::OsStr,
    path: &Path,
    stat: &Stat,
    (uid, gid): (u32, u32),
) -> rustix::io::Result<()> {
    if takes_attributes(stat.kind) || stat.device.is_some() {
        return record(path, false, &Recorded { uid, gid, device: stat.device });
    }
    rustix::fs::utimensat(dir, name, &record_in_times(uid, gid)?, AtFlags::SYMLINK_NOFOLLOW)
}

impl Stat {
    /// Has the owner, and the kind, that are written down at `path`.
    pub(crate) fn as_recorded(
        mut self,
        path: impl FnOnce() -> std::path::PathBuf,
        follow: bool,
        access: StatxTimestamp,
    ) -> Stat {
        let owners = owners_are_recorded();
        // Elsewhere only files without content may be something else: what stands for a device.
        if !owners && (self.kind != Kind::File || self.size > 0) {
            return self;
        }
        // Where the time of access tells, nobody looks at the path.
        let path = if takes_attributes(self.kind) { path() } else { Default::default() };
        let found = recorded(&path, follow, self.kind, self.ino, (access.tv_sec, access.tv_nsec));
        let Some(Recorded { uid, gid, device }) = found else { return self };
        if owners {
            (self.uid, self.gid) = (uid, gid);
        } else {
            DEVICES.store(true, Ordering::Relaxed);
        }
        if let Some((kind, major, minor)) = device {
            (self.kind, self.rdev, self.device) = (kind, (major, minor), device);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again_and_nothing_else() {
        for device in [None, Some((Kind::CharDevice, 1, 3)), Some((Kind::BlockDevice, 259, 70000))] {
            let what = Recorded { uid: 33, gid: 4_000_000_000, device };
            for bound in [Bound::ToNothing, Bound::ToInode(7), Bound::ToInode(8)] {
                let value = what.value(bound);
                assert!(value.len() <= 33);
                for other in [Bound::ToNothing, Bound::ToInode(7), Bound::ToInode(8)] {
                    assert_eq!(Recorded::of_value(&value, other), (bound == other).then_some(what));
                }
                for at in 0..value.len() {
                    let mut changed = value.clone();
                    changed[at] ^= 1;
                    assert_eq!(Recorded::of_value(&changed, bound), None, "{at}");
                    assert_eq!(Recorded::of_value(&value[..at], bound), None, "{at}");
                }
            }
        }
        for junk in ["", "0:0", "0:0:b:8:0", "1:2:c:x:y and so on until it is long"] {
            assert_eq!(Recorded::of_value(junk.as_bytes(), Bound::ToNothing), None, "{junk}");
        }
        let times = record_in_times(33, 34).unwrap().last_access;
        let found = recorded(Path::new(""), false, Kind::Symlink, 0, (times.tv_sec, times.tv_nsec as u32));
        assert_eq!(found, Some(Recorded { uid: 33, gid: 34, device: None }));
        assert_eq!(recorded(Path::new(""), false, Kind::Symlink, 0, (1_700_000_000, 5)), None);
    }

    #[test]
    fn each_key_has_an_attribute_of_its_own() {
        let [one, other] = [[1; 32], [2; 32]].map(|key| Keyed::new(key).attribute);
        assert!(one.starts_with("user.rbuild.") && one.len() == 44 && one != other, "{one} {other}");
    }
}
