//! The running program as a file that cannot be modified through a process that executes it.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, described};
use crate::mount::bind_clone;
use crate::syscalls::make_read_only;

const RUNNING: &str = "/proc/self/exe";

/// Returns the calling process's program for execution by descriptor: as a read-only mount of its
/// file, so that its bytes, mode, owner, times and attributes cannot be changed through
/// `/proc/PID/exe`; or, if the file is no longer at its path or cannot be mounted, as a sealed copy
/// in memory.
pub fn sealed_program() -> Result<OwnedFd> {
    mounted_program().or_else(|_| copied_program())
}

fn mounted_program() -> Result<OwnedFd> {
    let path = std::fs::read_link(RUNNING).map_err(|e| Error::new("readlink", described("the running program"), e))?;
    let mount = bind_clone(&path)?;
    let stat = |of: &OwnedFd| rustix::fs::fstat(of).map_err(|e| Error::new("fstat", &path, e));
    let running = rustix::fs::openat(CWD, RUNNING, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::new("openat", described("the running program"), e))?;
    let (found, runs) = (stat(&mount)?, stat(&running)?);
    // An update may have put another program at the path.
    if (found.st_dev, found.st_ino) != (runs.st_dev, runs.st_ino) {
        return Err(Error::new("openat", &path, Errno::STALE));
    }
    make_read_only(&mount)?;
    Ok(mount)
}

fn copied_program() -> Result<OwnedFd> {
    let fail = |call, e: Errno| Error::new(call, described("the running program"), e);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("rbuild", flags).map_err(|e| fail("memfd_create", e))?;
    let mut program = File::open(RUNNING).map_err(|e| Error::new("openat", described("the running program"), e))?;
    let mut copy = File::from(memory);
    std::io::copy(&mut program, &mut copy).map_err(|e| Error::new("write", described("a copy of the program"), e))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals).map_err(|e| fail("fcntl(F_ADD_SEALS)", e))?;
    // A file that is open for writing cannot be executed (execve(2), ETXTBSY).
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    rustix::fs::openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| fail("openat", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_copy_of_the_program_is_complete_and_read_only() {
        let copy = copied_program().unwrap();
        let (mut copied, mut running) = (Vec::new(), Vec::new());
        let mut file = File::from(copy);
        file.read_to_end(&mut copied).unwrap();
        File::open(RUNNING).unwrap().read_to_end(&mut running).unwrap();
        assert!(copied == running);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let written = File::options().write(true).open(path).and_then(|file| file.set_len(0));
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
