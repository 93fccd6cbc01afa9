//! Directory entries tracked by inode, independent of their names.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::error::{Error, Object, Result};
use crate::meta::{FileKind, Inode, Stat};
use crate::recorded_owners::OwnerRecords;
use crate::rootdir::{RootDir, stat_fd};

/// A directory entry pinned by a descriptor: while this value lives, its inode number is not
/// reused, even after the last name is removed.
#[derive(Debug)]
pub struct PinnedEntry {
    fd: OwnedFd,
    inode: Inode,
    owners: Option<OwnerRecords>,
    /// Used in error messages only.
    object: Object,
}

impl PinnedEntry {
    /// Pins the direct child `name` of any type, without following it.
    pub fn of(dir: &RootDir, name: &OsStr) -> Result<PinnedEntry> {
        let fd = dir.hold(name)?;
        let object = dir.object(dir.label().join(name));
        let owners = dir.owners().cloned();
        let stat = stat_fd(fd.as_fd(), owners.as_ref()).map_err(|e| Error::new("statx", object.clone(), e))?;
        Ok(PinnedEntry { fd, inode: stat.inode(), owners, object })
    }

    /// Returns the inode's identity, as [`Stat::inode`] does.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// Returns the current metadata.
    pub fn stat(&self) -> Result<Stat> {
        stat_fd(self.fd.as_fd(), self.owners.as_ref()).map_err(|e| Error::new("statx", self.object.clone(), e))
    }

    /// Returns true if the direct child `name` of `dir` is this entry.
    pub fn matches(&self, dir: &RootDir, name: &OsStr) -> bool {
        dir.stat_name(name).is_ok_and(|stat| stat.inode() == self.inode)
    }

    /// Truncates a regular file to zero bytes, whatever its names are.
    pub fn truncate(&self) -> Result<()> {
        if self.stat()?.kind != FileKind::File {
            return Err(Error::new("ftruncate", self.object.clone(), rustix::io::Errno::INVAL));
        }
        // An `O_PATH` descriptor cannot be written to; its link in /proc opens the file itself.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let opened = OpenOptions::new().write(true).truncate(true).open(path);
        opened.map(drop).map_err(|e| Error::new("openat", self.object.clone(), e))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use std::path::Path;

    fn write(path: &Path, content: &str) {
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn an_entry_is_identified_under_any_name() {
        let path = Scratch::new();
        let dir = RootDir::open(&path).unwrap();
        write(&path.join("a"), "secret");
        let held = PinnedEntry::of(&dir, OsStr::new("a")).unwrap();
        std::fs::hard_link(path.join("a"), path.join("b")).unwrap();
        std::fs::rename(path.join("a"), path.join("c")).unwrap();
        assert!(
            held.matches(&dir, OsStr::new("b"))
                && held.matches(&dir, OsStr::new("c"))
                && !held.matches(&dir, OsStr::new("a"))
        );
        assert_eq!(held.stat().unwrap().nlink, 2);
        held.truncate().unwrap();
        assert_eq!(std::fs::read(path.join("b")).unwrap(), b"");
        for name in ["b", "c"] {
            std::fs::remove_file(path.join(name)).unwrap();
        }
        assert_eq!(held.stat().unwrap().nlink, 0);
        for n in 0..100 {
            let name = format!("new-{n}");
            write(&path.join(&name), "");
            assert!(!held.matches(&dir, OsStr::new(&name)));
        }
    }

    #[test]
    fn a_symlink_itself_is_pinned_not_its_target() {
        let path = Scratch::new();
        let dir = RootDir::open(&path).unwrap();
        write(&path.join("file"), "kept");
        std::os::unix::fs::symlink("file", path.join("link")).unwrap();
        let held = PinnedEntry::of(&dir, OsStr::new("link")).unwrap();
        assert!(!held.matches(&dir, OsStr::new("file")) && held.truncate().is_err());
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"kept");
    }
}
