//! System calls that no library here wraps.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Error, Result};

/// Makes a detached mount read-only: neither the data nor the metadata of what it shows can be changed through it. Device
/// nodes stay writable as devices (Linux 5.12).
pub fn make_read_only(mount: impl AsFd) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the length of the call, the path is an empty C string (AT_EMPTY_PATH: the mount
    // itself), and `attributes` is a live mount_attr of the size that is given. The kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Error::new("mount_setattr", "a mount", std::io::Error::last_os_error())) }
}

/// Leaves the session keyring of whoever started the process for a new, empty one (keyctl(2)), so that no descendant possesses the
/// caller's keys. Where keyrings are not to be had (no CONFIG_KEYS, or a filter refuses the call), descendants cannot reach any
/// either.
pub fn join_new_session_keyring() {
    // SAFETY: the call takes an operation and a null name, which asks for an anonymous keyring; it reads and writes no memory of
    // this process.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}
