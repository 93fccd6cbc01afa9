//! Locks between processes that the kernel lets go of when their holder dies.

use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};

/// A lock on one key of a lock file; let go on drop. Threads exclude each other as processes do.
///
/// Its file must be the lock's own open of the lock file: the lock belongs to the open file description (fcntl(2),
/// F_OFD_SETLK), and is one byte at an offset made of the key. Keys that share their first 62 bits stand in each
/// other's way, which costs time and nothing else.
pub struct KeyLock {
    _file: File,
}

/// Time between two tries at most.
const LOOK: Duration = Duration::from_millis(16);

/// Whether others may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    Shared,
    Exclusive,
}

impl KeyLock {
    /// Waits until nobody else holds `key`, or `stop` says that it is to wait no longer. The kernel's own wait could not be
    /// ended from another thread, so the lock is tried again and again, at most [`LOOK`] apart.
    pub fn wait(file: File, key: [u8; 8], stop: &dyn Fn() -> bool) -> Result<Option<KeyLock>> {
        let lock = flock(LockKind::Exclusive, key);
        let mut pause = Duration::from_millis(1);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => return Ok(Some(KeyLock { _file: file })),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if stop() => return Ok(None),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => std::thread::sleep(pause),
                Err(e) => return Err(Error::new("fcntl(F_OFD_SETLK)", "lock file", std::io::Error::from(e))),
            }
            pause = (pause * 2).min(LOOK);
        }
    }

    /// The lock if it can be had at once.
    pub fn try_now(file: File, key: [u8; 8], kind: LockKind) -> Result<Option<KeyLock>> {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&flock(kind, key))) {
            Ok(_) => Ok(Some(KeyLock { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(e) => Err(Error::new("fcntl(F_OFD_SETLK)", "lock file", std::io::Error::from(e))),
        }
    }
}

fn flock(kind: LockKind, key: [u8; 8]) -> libc::flock {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (u64::from_le_bytes(key) >> 2) as i64,
        l_len: 1,
        l_pid: 0,
    }
}
