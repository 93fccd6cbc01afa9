//! Owners where only one id is mapped: they are written down instead of given.
//!
//! A user namespace without sub-ids holds nobody but its root, so no file can belong to anyone else. There the owner of a
//! file or a directory is an extended attribute, `UID:GID`, and a device is an empty file whose attribute says which,
//! `UID:GID:c:MAJOR:MINOR`. What can have no such attribute (symbolic links, fifos, sockets: xattr(7)) keeps its owner in
//! the time of its last access, which nobody needs: seconds from [`FAR`] on are the group, the nanoseconds the user. The
//! kernel moves no such time by itself, as it is later than any access (mount(8), relatime). A file that says nothing is
//! root's. Devices are written down like that wherever none can be made.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, StatxTimestamp, Timespec, Timestamps};
use rustix::io::Errno;

use crate::meta::{Kind, Stat};

const OWNER: &str = "user.rbuild.owner";
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

/// What is written down of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    pub uid: u32,
    pub gid: u32,
    /// The device that the file stands for.
    pub device: Option<(Kind, u32, u32)>,
}

impl Recorded {
    fn parse(text: &[u8]) -> Option<Recorded> {
        let mut parts = std::str::from_utf8(text).ok()?.split(':');
        let mut number = || parts.next()?.parse().ok();
        let (uid, gid) = (number()?, number()?);
        let device = match parts.next() {
            None => None,
            Some(kind) => {
                let kind = if kind == "c" { Kind::CharDevice } else { Kind::BlockDevice };
                Some((kind, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
            }
        };
        Some(Recorded { uid, gid, device })
    }

    fn text(&self) -> String {
        let device = self.device.map_or(String::new(), |(kind, major, minor)| {
            format!(":{}:{major}:{minor}", if kind == Kind::CharDevice { "c" } else { "b" })
        });
        format!("{}:{}{device}", self.uid, self.gid)
    }
}

/// Whether what is of that kind can have attributes of its own.
fn takes_attributes(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Dir)
}

/// What is written down of the file at `path` (a link in the last component is followed if `follow`), whose kind and time of
/// last access are known.
pub fn recorded(path: &Path, follow: bool, kind: Kind, access: (i64, u32)) -> Option<Recorded> {
    if !takes_attributes(kind) {
        let gid = u32::try_from(access.0.checked_sub(FAR)?).ok()?;
        return Some(Recorded { uid: access.1, gid, device: None });
    }
    let mut value = [0u8; 64];
    let got = if follow {
        rustix::fs::getxattr(path, OWNER, &mut value[..])
    } else {
        rustix::fs::lgetxattr(path, OWNER, &mut value[..])
    };
    Recorded::parse(&value[..got.ok()?])
}

/// Writes down what a file or a directory at `path` is.
pub fn record(path: &Path, follow: bool, what: &Recorded) -> rustix::io::Result<()> {
    if *what == Recorded::default() {
        let removed = if follow { rustix::fs::removexattr(path, OWNER) } else { rustix::fs::lremovexattr(path, OWNER) };
        return match removed {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        };
    }
    let flags = rustix::fs::XattrFlags::empty();
    let text = what.text();
    if follow {
        rustix::fs::setxattr(path, OWNER, text.as_bytes(), flags)
    } else {
        rustix::fs::lsetxattr(path, OWNER, text.as_bytes(), flags)
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
        let found = recorded(&path, follow, self.kind, (access.tv_sec, access.tv_nsec));
        let Some(Recorded { uid, gid, device }) = found else { return self };
        if owners {
            (self.uid, self.gid) = (uid, gid);
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
    fn what_is_written_down_is_read_again() {
        for device in [None, Some((Kind::CharDevice, 1, 3)), Some((Kind::BlockDevice, 259, 70000))] {
            let what = Recorded { uid: 33, gid: 4_000_000_000, device };
            assert_eq!(Recorded::parse(what.text().as_bytes()), Some(what));
        }
        for junk in ["", "1", "a:b", "1:2:c", "1:2:c:x:y"] {
            assert_eq!(Recorded::parse(junk.as_bytes()), None, "{junk}");
        }
        let times = record_in_times(33, 34).unwrap().last_access;
        let found = recorded(Path::new(""), false, Kind::Symlink, (times.tv_sec, times.tv_nsec as u32));
        assert_eq!(found, Some(Recorded { uid: 33, gid: 34, device: None }));
        assert_eq!(recorded(Path::new(""), false, Kind::Symlink, (1_700_000_000, 5)), None);
    }
}
