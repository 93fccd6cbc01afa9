//! System calls that none of the libraries in use wraps.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Error, Result, described};

/// Makes a detached mount and all mounts in it read-only: neither data nor metadata can be changed
/// through it. Device nodes stay writable as devices (Linux 5.12).
pub fn make_read_only(mount: impl AsFd) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the length of the call, the path is an empty C string
    // (AT_EMPTY_PATH: the mount itself), and `attributes` is a live mount_attr of the given size.
    // The kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Error::new("mount_setattr", described("a mount"), std::io::Error::last_os_error()))
    }
}

/// Replaces the session keyring of the process that started this one by a new, empty one
/// (keyctl(2)), so that no descendant possesses the caller's keys. If keyrings are unavailable (no
/// CONFIG_KEYS, or a seccomp filter denies the call), descendants cannot use any either.
pub fn join_new_session_keyring() {
    // SAFETY: the call takes an operation and a null name, which requests an anonymous keyring; it
    // reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}
