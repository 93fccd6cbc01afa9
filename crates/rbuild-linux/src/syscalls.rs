//! System calls that no library in use wraps safely.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

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

/// Duplicates the open descriptor with that number in this process.
pub(crate) fn duplicate(number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number, and fails with EBADF if it is not open.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just allocated this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of an inherited descriptor that has no owner in this program yet. Executed
/// programs do not inherit it.
pub(crate) fn take_inherited(number: i32) -> std::io::Result<OwnedFd> {
    let taken = duplicate(number)?;
    // SAFETY: close takes any number. No owner in this process relies on this one: it was open when
    // the program started, and the caller takes each number once, before other files are opened.
    unsafe { libc::close(number) };
    Ok(taken)
}

/// Sets close-on-exec on a descriptor. Does nothing if the descriptor is not open.
pub(crate) fn close_on_exec(number: i32) {
    // SAFETY: fcntl takes any number; only the close-on-exec flag of the descriptor changes.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Activates the loopback interface of the network namespace that the socket belongs to.
pub(crate) fn bring_up_loopback(socket: impl AsFd) -> std::io::Result<()> {
    // SAFETY: all bytes zero is a valid `ifreq` (a C struct of an array and a union of plain data).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is an open socket, and SIOCSIFFLAGS reads one `ifreq`, which lives
    // past the call and contains a name that ends in a zero byte.
    let set = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Returns true if two threads share their root and working directory (clone(2), `CLONE_FS`).
/// Returns false if the kernel was built without kcmp(2).
pub fn share_directories(one: u32, other: u32) -> bool {
    // `KCMP_FS` (include/uapi/linux/kcmp.h).
    const DIRECTORIES: libc::c_int = 3;
    // SAFETY: the call takes numbers and no pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, DIRECTORIES, 0, 0) == 0 }
}

/// Returns true if a thread can open one more descriptor: one of the numbers below the soft limit
/// (`RLIMIT_NOFILE`) is unused. Also returns true if the kernel was built without kcmp(2).
pub fn has_free_descriptor(thread: u32) -> bool {
    // `KCMP_FILE` (include/uapi/linux/kcmp.h): fails with EBADF for a number that is not in use.
    const FILE: libc::c_int = 0;
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit only queries; `limit` is one rlimit64, which the call fills.
    if unsafe { libc::prlimit64(thread as i32, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) } != 0 {
        return true;
    }
    let is_in_use = |number: u64| {
        // SAFETY: the call takes numbers and no pointers.
        let compared = unsafe { libc::syscall(libc::SYS_kcmp, thread, thread, FILE, number, number) };
        compared >= 0
    };
    // Descriptors are numbered from zero, so the highest is the first that is likely to be unused.
    !(0..limit.rlim_cur.min(i32::MAX as u64)).rev().all(is_in_use)
}

/// Reads the memory of another process at `address`. Returns the number of bytes read, which is
/// smaller than requested if the rest is not mapped.
pub fn read_memory(thread: u32, address: u64, into: &mut [u8]) -> std::io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` is the whole of `into`, to which this function has the only reference; the
    // kernel checks the other side.
    match unsafe { libc::process_vm_readv(thread as i32, &local, 1, &remote, 1, 0) } {
        -1 => Err(std::io::Error::last_os_error()),
        n => Ok(n as usize),
    }
}

/// Writes all of `bytes` into the memory of another process at `address`.
pub fn write_memory(thread: u32, address: u64, bytes: &[u8]) -> std::io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel only reads `local`, which is the whole of `bytes`; it checks the other
    // side.
    match unsafe { libc::process_vm_writev(thread as i32, &local, 1, &remote, 1, 0) } {
        n if n == bytes.len() as isize => Ok(()),
        -1 => Err(std::io::Error::last_os_error()),
        _ => Err(Errno::FAULT.into()),
    }
}

/// Returns the soft and hard limit on the size of another process's message queues in bytes
/// (`RLIMIT_MSGQUEUE`).
pub fn queue_limit(thread: u32) -> std::io::Result<(u64, u64)> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit only queries; `old` is one rlimit64, which the call fills.
    match unsafe { libc::prlimit64(thread as i32, libc::RLIMIT_MSGQUEUE, std::ptr::null(), &mut old) } {
        0 => Ok((old.rlim_cur, old.rlim_max)),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sets the soft and hard limit on the size of another process's message queues in bytes.
pub fn set_queue_limit(thread: u32, soft: u64, hard: u64) -> std::io::Result<()> {
    let bound = |limit: u64| (limit != libc::RLIM64_INFINITY).then_some(limit);
    let pid = Pid::from_raw(thread as i32).ok_or(Errno::SRCH)?;
    let limits = Rlimit { current: bound(soft), maximum: bound(hard) };
    Ok(rustix::process::prlimit(Some(pid), Resource::Msgqueue, limits).map(drop)?)
}
