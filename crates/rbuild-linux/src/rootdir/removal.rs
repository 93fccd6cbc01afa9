//! Removal of directories with their content.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Result;
use crate::idmap::unmapped;
use crate::meta::{FileKind, UidGid};
use crate::rootdir::dir::RootDir;
use crate::rootdir::dir_stack::DirStack;

impl RootDir {
    /// Removes the direct child `name` of any type, with everything below it. Succeeds if it does
    /// not exist.
    pub fn remove_all(&self, name: &OsStr) -> Result<()> {
        match self.remove_file(name) {
            Ok(()) => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) if matches!(e.errno(), Some(libc::EISDIR) | Some(libc::EPERM)) => {}
            Err(e) => return Err(e),
        }
        self.remove_dir_tree(name)
    }

    /// Removes directory trees with an explicit stack, so that depth consumes heap and not call
    /// stack.
    fn remove_dir_tree(&self, name: &OsStr) -> Result<()> {
        let open = |dir: &RootDir, name: &OsStr| -> Result<RootDir> {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let try_open = || rustix::fs::openat(dir.fd(), name, flags, Mode::empty());
            let fd = match try_open() {
                Err(Errno::ACCESS) => {
                    // Our own directory without read or search permission: add them and retry.
                    let _ = rustix::fs::chmodat(dir.fd(), name, Mode::from_raw_mode(0o700), AtFlags::empty());
                    try_open()
                }
                other => other,
            }
            .map_err(|e| dir.err("openat", Path::new(name), e))?;
            Ok(dir.with_fd_and_place(fd, dir.label().join(name)))
        };
        let mut dirs = DirStack::endless(self.try_clone()?);
        let mut names = vec![name.to_os_string()];
        dirs.push(open(self, name)?)?;
        while !names.is_empty() {
            let dir = dirs.last();
            if let Some(name) = dir.empty_up_to_directory()? {
                let below = open(dir, &name)?;
                dirs.push(below)?;
                names.push(name);
                continue;
            }
            let Some(name) = names.pop() else { break };
            dirs.leave()?;
            match dirs.last().remove_dir(&name) {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns true if this process may remove `name` and everything below it, as far as the owners
    /// and modes of directories indicate.
    pub fn is_removable(&self, name: &OsStr) -> Result<bool> {
        let mut dirs = DirStack::endless(self.try_clone()?);
        let mut todo = vec![vec![name.to_os_string()]];
        while let Some(names) = todo.last_mut() {
            let Some(name) = names.pop() else {
                todo.pop();
                dirs.leave()?;
                continue;
            };
            let entries = match dirs.last().sub(&name) {
                Ok(below) => {
                    dirs.push(below)?;
                    dirs.last().entries()
                }
                // Not a directory, or removed meanwhile.
                Err(e) if e.is_gone() => continue,
                Err(e) => Err(e),
            };
            match entries {
                Ok(entries) if entries.is_empty() || dirs.last().may_remove_entries()? => {
                    let dir = dirs.last();
                    let is_dir = |name: &OsStr| dir.stat_name(name).is_ok_and(|stat| stat.kind == FileKind::Dir);
                    let dirs = entries.into_iter().filter(|entry| match entry.kind {
                        Some(kind) => kind == FileKind::Dir,
                        None => is_dir(&entry.name),
                    });
                    todo.push(dirs.map(|entry| entry.name).collect());
                }
                Ok(_) => return Ok(false),
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Returns true if this process may remove the entries of this directory, or give itself the
    /// permission.
    fn may_remove_entries(&self) -> Result<bool> {
        let fail = |call: &'static str| move |e: Errno| self.err(call, Path::new(""), e);
        let stat = rustix::fs::fstat(self.fd()).map_err(fail("fstat"))?;
        if stat.st_uid == rustix::process::geteuid().as_raw() {
            return Ok(true);
        }
        let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        match rustix::fs::accessat(self.fd(), c".", wanted, AtFlags::EACCESS) {
            // Entries of a sticky directory may be removed by their owners and by processes with
            // power over them.
            Ok(()) => Ok(stat.st_mode & 0o1000 == 0 || unmapped(UidGid::new(stat.st_uid, stat.st_gid)).is_none()),
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Ok(false),
            Err(e) => Err(fail("faccessat")(e)),
        }
    }

    /// Removes the contents of this directory up to the first non-empty directory, and returns the
    /// name of that directory.
    fn empty_up_to_directory(&self) -> Result<Option<OsString>> {
        for entry in self.entries()? {
            match self.remove_file(&entry.name) {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) if matches!(e.errno(), Some(libc::EISDIR) | Some(libc::EPERM)) => {
                    match self.remove_dir(&entry.name) {
                        Ok(()) => {}
                        Err(e) if e.errno() == Some(libc::ENOTEMPTY) => return Ok(Some(entry.name)),
                        Err(e) => return Err(e),
                    }
                }
                Err(e) if e.errno() == Some(libc::EACCES) => {
                    // Our own directory without write permission.
                    rustix::fs::fchmod(self.fd(), Mode::from_raw_mode(0o700))
                        .map_err(|e| self.err("fchmod", Path::new(""), e))?;
                    match self.remove_file(&entry.name) {
                        Ok(()) => {}
                        Err(e) if matches!(e.errno(), Some(libc::EISDIR) | Some(libc::EPERM)) => {
                            return Ok(Some(entry.name));
                        }
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}
