//! Owners, modes, times and extended attributes of entries.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, IFlags, Mode, Timespec, Timestamps, Uid, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use crate::error::Result;
use crate::idmap::unmapped_owner;
use crate::meta::{FileKind, Timestamp, UidGid, Xattrs, file_xattrs, xattrs_by};
use crate::recorded_owners::{self, OwnerRecords, Recorded};
use crate::rootdir::dir::{RootDir, one_component, one_component_or_self};

impl RootDir {
    /// Creates an empty file that records the device it represents.
    pub(super) fn create_placeholder(&self, name: &OsStr, kind: FileKind, mode: u32, rdev: (u32, u32)) -> Result<()> {
        drop(self.create_file(name, mode)?);
        self.set_placeholder(name, (kind, rdev.0, rdev.1))
    }

    /// Makes the empty file `name` a placeholder of a device.
    pub fn set_placeholder(&self, name: &OsStr, device: (FileKind, u32, u32)) -> Result<()> {
        one_component(name).map_err(|e| self.err("lsetxattr", Path::new(name), e))?;
        let recorded = Recorded { owner: UidGid::ROOT, device: Some(device) };
        let owners = self.owners().ok_or_else(|| self.err("lsetxattr", Path::new(name), Errno::PERM))?;
        owners.record(&self.proc_path(name), false, &recorded).map_err(|e| self.err("lsetxattr", Path::new(name), e))
    }

    /// Returns the attribute of the direct child `name` that holds its record, as it is stored.
    pub fn owner_record(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        one_component(name).map_err(|e| self.err("lgetxattr", Path::new(name), e))?;
        let Some(owners) = self.owners() else { return Ok(None) };
        let mut value = vec![0; 64];
        match owners.read_value(&self.proc_path(name), false, &mut value) {
            Ok(n) => Ok(Some(value[..n].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
            Err(e) => Err(self.err("lgetxattr", Path::new(name), e)),
        }
    }

    /// Marks this directory as the top of unrelated trees (chattr(1), `+T`). The file system then
    /// allocates the inodes of each new subdirectory in a block group with many free ones, and not
    /// next to those of its siblings. Returns true if it is marked, which ext2 to ext4 support.
    ///
    /// Without a journal, ext4 does not reuse an inode for 60 to 360 s after its deletion, and
    /// every creation examines all such inodes of the block group one by one (`recently_deleted` in
    /// fs/ext4/ialloc.c). Near a tree that was just deleted, creating a file takes up to 40 times
    /// as long.
    pub fn mark_top_of_trees(&self) -> bool {
        let Ok(flags) = ioctl_getflags(self.fd()) else { return false };
        flags.contains(IFlags::TOPDIR) || ioctl_setflags(self.fd(), flags | IFlags::TOPDIR).is_ok()
    }

    /// Sets the owner of the direct child `name`, without following it.
    pub fn chown(&self, name: &OsStr, owner: UidGid) -> Result<()> {
        if let Some(owners) = self.written_owners() {
            let stat = self.stat_name(name)?;
            return owners
                .chown(self.fd(), name, &self.proc_path(name), &stat, owner)
                .map_err(|e| self.err("recording the owner", Path::new(name), e));
        }
        let (user, group) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        one_component(name)
            .and_then(|name| rustix::fs::chownat(self.fd(), name, user, group, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| self.err("fchownat", Path::new(name), e).because(unmapped_owner(e, owner)))
    }

    /// Sets the permission bits of the direct child `name`, which must not be a symbolic link.
    pub fn chmod(&self, name: &OsStr, mode: u32) -> Result<()> {
        one_component(name)
            .and_then(|name| rustix::fs::chmodat(self.fd(), name, Mode::from_raw_mode(mode), AtFlags::empty()))
            .map_err(|e| self.err("fchmodat", Path::new(name), e))
    }

    /// Sets the modification time of `name`, and its access time to the same, without following it.
    pub fn set_mtime(&self, name: &OsStr, mtime: Timestamp) -> Result<()> {
        let mut times = timestamps(self.owners(), mtime);
        if self.written_owners().is_some() && mtime.sec > recorded_owners::latest_modification(FileKind::Symlink) {
            let latest = recorded_owners::latest_modification(self.stat(name)?.kind);
            times.last_modification.tv_sec = times.last_modification.tv_sec.min(latest);
        }
        one_component(name)
            .and_then(|name| rustix::fs::utimensat(self.fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|e| self.err("utimensat", Path::new(name), e))
    }

    /// Sets the owner, mode and modification time of this directory itself.
    pub fn set_own_meta(&self, owner: UidGid, mode: u32, mtime: Timestamp) -> Result<()> {
        let here = Path::new("");
        if let Some(owners) = self.written_owners() {
            let recorded = Recorded { owner, device: None };
            owners
                .record(&self.proc_path(OsStr::new("")), true, &recorded)
                .map_err(|e| self.err("setxattr", here, e))?;
        } else {
            rustix::fs::fchown(self.fd(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
                .map_err(|e| self.err("fchown", here, e).because(unmapped_owner(e, owner)))?;
        }
        rustix::fs::fchmod(self.fd(), Mode::from_raw_mode(mode)).map_err(|e| self.err("fchmod", here, e))?;
        rustix::fs::futimens(self.fd(), &timestamps(self.owners(), mtime)).map_err(|e| self.err("futimens", here, e))
    }

    /// Sets the modification time of this directory itself.
    pub fn set_own_mtime(&self, mtime: Timestamp) -> Result<()> {
        rustix::fs::futimens(self.fd(), &timestamps(self.owners(), mtime))
            .map_err(|e| self.err("futimens", Path::new(""), e))
    }

    /// Returns the extended attributes of the direct child `name` (not followed), or of the
    /// directory itself if empty, without the one that holds owner records.
    ///
    /// Before Linux 6.13 there is no `*at` form, so the path goes through the descriptor's link in
    /// /proc; only the last component is looked up there, and it is not followed.
    pub fn xattrs(&self, name: &OsStr) -> Result<Xattrs> {
        one_component_or_self(name).map_err(|e| self.err("llistxattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let found = if name.is_empty() {
            xattrs_by(
                |names| rustix::fs::listxattr(&path, names),
                |attr, value| rustix::fs::getxattr(&path, attr, value),
            )
        } else {
            xattrs_by(
                |names| rustix::fs::llistxattr(&path, names),
                |attr, value| rustix::fs::lgetxattr(&path, attr, value),
            )
        };
        found.map(|found| self.without_records(found)).map_err(|(call, e)| self.err(call, Path::new(name), e))
    }

    /// Returns the extended attributes of an open file of this directory, as [`RootDir::xattrs`]
    /// does.
    pub fn file_xattrs(&self, file: &File) -> Result<Xattrs> {
        Ok(self.without_records(file_xattrs(file)?))
    }

    fn without_records(&self, mut xattrs: Xattrs) -> Xattrs {
        if let Some(owners) = self.owners() {
            xattrs.remove(owners.attribute());
        }
        xattrs
    }

    /// Sets an extended attribute of the direct child `name` (not followed), or of the directory if
    /// empty. The attribute of owner records is left as it is.
    pub fn set_xattr(&self, name: &OsStr, attr: &OsStr, value: &[u8]) -> Result<()> {
        if self.owners().is_some_and(|owners| owners.attribute() == attr) {
            return Ok(());
        }
        one_component_or_self(name).map_err(|e| self.err("lsetxattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let flags = rustix::fs::XattrFlags::empty();
        if name.is_empty() {
            rustix::fs::setxattr(&path, attr, value, flags)
        } else {
            rustix::fs::lsetxattr(&path, attr, value, flags)
        }
        .map_err(|e| self.err("lsetxattr", Path::new(name), e))
    }

    /// Removes an extended attribute of the direct child `name` (not followed), or of the directory
    /// if empty.
    pub fn remove_xattr(&self, name: &OsStr, attr: &OsStr) -> Result<()> {
        one_component_or_self(name).map_err(|e| self.err("lremovexattr", Path::new(name), e))?;
        let path = self.proc_path(name);
        let removed =
            if name.is_empty() { rustix::fs::removexattr(&path, attr) } else { rustix::fs::lremovexattr(&path, attr) };
        removed.map_err(|e| self.err("lremovexattr", Path::new(name), e))
    }
}

/// Returns the times to set for a modification time: the access time is the same, unless it may
/// hold an owner record.
pub(crate) fn timestamps(owners: Option<&OwnerRecords>, mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) };
    let access = if owners.is_some_and(OwnerRecords::are_written) { recorded_owners::OMITTED } else { time };
    Timestamps { last_access: access, last_modification: time }
}
