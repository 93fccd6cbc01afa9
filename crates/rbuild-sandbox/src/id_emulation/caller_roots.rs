//! Root directories of callers. Paths are resolved in the caller's own, and in its mounts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{chroot, fchdir};

use crate::id_emulation::caller::{Caller, Result};

/// The root directory of this process, which is that of the container.
pub struct Roots {
    own: OwnedFd,
    /// True if a caller may have another root directory: after a call of chroot(2), and always in a
    /// container with all capabilities, because its processes can leave the mount namespace.
    pub differ: bool,
}

impl Roots {
    /// Opens the root directory of this process.
    pub fn new(differ: bool) -> Result<Roots> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Roots { own: rustix::fs::openat(CWD, "/", flags, Mode::empty())?, differ })
    }

    /// Returns the root directory of a caller; `None` if it is that of this process.
    pub fn of<'a>(&'a self, caller: &Caller<'a>) -> Result<Option<CallerRoot<'a>>> {
        if !self.differ {
            return Ok(None);
        }
        Ok(Some(CallerRoot { dir: caller.root()?, own: self.own.as_fd(), proc: caller.proc.dir.as_fd() }))
    }
}

/// The root directory of a caller.
pub struct CallerRoot<'a> {
    dir: OwnedFd,
    own: BorrowedFd<'a>,
    /// The working directory of this process.
    proc: BorrowedFd<'a>,
}

impl CallerRoot<'_> {
    /// Runs `act` in a process that has this root directory, so that `..` does not lead out of it
    /// and absolute links start there. The working directory is that of this process.
    pub fn inside<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let entered = fchdir(&self.dir).and_then(|()| chroot("."));
        fchdir(self.proc)?;
        entered?;
        let done = act();
        let left = fchdir(self.own).and_then(|()| chroot(".")).and_then(|()| fchdir(self.proc));
        left.expect("a process that may change its root directory returns to its own");
        done
    }
}
