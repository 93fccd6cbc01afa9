//! Locks between processes that the kernel lets go of when their holder dies.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};

/// An exclusive lock on one key of a lock file; let go on drop. Threads exclude each other as processes do.
pub struct KeyLock {
    _file: File,
}

impl KeyLock {
    /// Waits for the lock on `key` in the lock file `file`, which must be this lock's own open of that file: the
    /// lock belongs to the open file description (fcntl(2), F_OFD_SETLKW), and is one byte at an offset made of
    /// the key. Keys that share their first 62 bits wait for each other, which costs time and nothing else.
    pub fn wait(file: File, key: [u8; 8]) -> Result<KeyLock> {
        let offset = (u64::from_le_bytes(key) >> 2) as i64;
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: offset,
            l_len: 1,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&lock)) {
                Ok(_) => return Ok(KeyLock { _file: file }),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(Error::new("fcntl(F_OFD_SETLKW)", "lock file", std::io::Error::from(e))),
            }
        }
    }
}
