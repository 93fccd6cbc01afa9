//! Filters of system calls (seccomp(2)), and the interception of other processes' calls
//! (seccomp_unotify(2)).

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::error::{Error, Result, described};
use crate::meta::UidGid;

/// The result of a filter that sends the call to the listener.
pub const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once received, a call is interrupted by
/// fatal signals only.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

/// One instruction of a seccomp filter (struct sock_filter of linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterStep {
    /// The operation.
    pub code: u16,
    /// Number of instructions to skip if the comparison holds.
    pub yes: u8,
    /// Number of instructions to skip if it does not hold.
    pub no: u8,
    /// The operand.
    pub k: u32,
}

/// Converts the instructions to the kernel's form, and returns them with their count.
fn raw_steps(steps: &[FilterStep]) -> Result<(Vec<libc::sock_filter>, u16)> {
    let raw = steps.iter().map(|s| libc::sock_filter { code: s.code, jt: s.yes, jf: s.no, k: s.k }).collect();
    let len = u16::try_from(steps.len())
        .map_err(|_| Error::new("seccomp", described("a seccomp filter"), rustix::io::Errno::INVAL))?;
    Ok((raw, len))
}

/// Permanently filters the system calls of the calling process and all its descendants
/// (seccomp(2)). Requires CAP_SYS_ADMIN in its user namespace.
pub fn filter_calls(steps: &[FilterStep]) -> Result<()> {
    let fail = || Error::new("seccomp", described("a seccomp filter"), std::io::Error::last_os_error());
    let (mut raw, len) = raw_steps(steps)?;
    let program = libc::sock_fprog { len, filter: raw.as_mut_ptr() };
    // SAFETY: `program` points at `len` steps that live past the call; the kernel copies and checks
    // them. The call changes no memory of this process.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } {
        0 => Ok(()),
        _ => Err(fail()),
    }
}

/// Installs a filter like [`filter_calls`], and returns the listener descriptor
/// that receives calls with the result [`NOTIFY`].
pub fn filter_and_listen(steps: &[FilterStep]) -> Result<OwnedFd> {
    let (mut raw, len) = raw_steps(steps)?;
    let program = libc::sock_fprog { len, filter: raw.as_mut_ptr() };
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    for flags in [listen | WAIT_KILLABLE, listen] {
        // SAFETY: `program` points at `len` steps that live past the call; the kernel copies and
        // checks them.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
        if fd >= 0 {
            // SAFETY: the kernel has just created this descriptor for us; nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        let e = std::io::Error::last_os_error();
        if flags == listen || e.raw_os_error() != Some(libc::EINVAL) {
            return Err(Error::new("seccomp", described("a seccomp filter with a listener"), e));
        }
    }
    Err(Error::new("seccomp", described("a seccomp filter with a listener"), Errno::INVAL))
}

/// Makes the kernel switch between caller and supervisor on one processor, which halves the time of
/// an answer. Kernels before 6.6 lack the request, which costs only time.
pub fn use_synchronous_wake_ups(listener: BorrowedFd<'_>) {
    // SAFETY: the request takes a number and no pointer (include/uapi/linux/seccomp.h).
    unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
}

/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`, which is `_IOW('!', 4, __u64)`, and
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`.
const SET_FLAGS: u64 = 0x4008_2104;
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// Returns true if [`receive`] ends when all callers have ended (Linux 6.11); on older kernels it
/// waits forever.
pub fn receiving_ends() -> bool {
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().unwrap_or_default().split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 11)
}

/// An intercepted call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct InterceptedCall {
    id: u64,
    /// Thread ID in this process's PID namespace.
    pub thread: u32,
    /// Number of the system call.
    pub number: i32,
    /// `AUDIT_ARCH_…` value of the call.
    pub architecture: u32,
    /// The arguments.
    pub args: [u64; 6],
}

/// Receives the next call; `None` if its caller has ended in the meantime.
pub fn receive(listener: BorrowedFd<'_>) -> std::io::Result<Option<InterceptedCall>> {
    // SAFETY: all zeros is a valid value of this plain structure, and the kernel requires it.
    let mut notif: libc::seccomp_notif = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the request writes one seccomp_notif, which `notif` is; it lives past the call.
    match unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &mut notif) } {
        0 => Ok(Some(InterceptedCall {
            id: notif.id,
            thread: notif.pid,
            number: notif.data.nr,
            architecture: notif.data.arch,
            args: notif.data.args,
        })),
        _ => match std::io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
            e => Err(e),
        },
    }
}

/// Returns true if the caller still waits for its answer. The thread ID of an ended caller may have
/// been reused.
pub fn still_waits(listener: BorrowedFd<'_>, call: &InterceptedCall) -> bool {
    // SAFETY: the request reads one 64-bit number, which `call.id` is.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &call.id) == 0 }
}

/// The result of an intercepted call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel executes the call.
    Go,
    /// The system call returns this value.
    Value(i64),
    /// The system call fails with this error.
    Fail(Errno),
}

/// Answers a call. Does nothing if the caller has ended.
pub fn answer(listener: BorrowedFd<'_>, call: &InterceptedCall, answer: Answer) {
    let mut response = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
    match answer {
        Answer::Go => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        Answer::Value(value) => response.val = value,
        Answer::Fail(errno) => response.error = -errno.raw_os_error(),
    }
    // SAFETY: the request reads one seccomp_notif_resp, which `response` is.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &mut response) };
}

/// Installs a duplicate of `fd` in the caller and returns its number as the result of the call.
pub fn answer_with_fd(
    listener: BorrowedFd<'_>,
    call: &InterceptedCall,
    fd: impl AsFd,
    close_on_exec: bool,
) -> std::io::Result<()> {
    let mut add = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: fd.as_fd().as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the request reads one seccomp_notif_addfd, which `add` is; `fd` is open for the
    // length of the call.
    match unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &mut add) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the bytes of a plain structure in the kernel's layout for this architecture.
fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: the reference covers size_of::<T>() initialized bytes: the callers below pass
    // structures that the C library filled over zeros, padding included.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The owner and device of a file as reported to callers, in place of the real ones.
#[derive(Debug, Clone, Copy)]
pub struct ReportedStat {
    /// The owner.
    pub owner: UidGid,
    /// File type bits, and the major and minor device number.
    pub node: Option<(u32, u32, u32)>,
}

/// A file named by a directory, a path and flags, as for fstatat(2).
#[derive(Debug, Clone, Copy)]
pub struct StatTarget<'a> {
    /// The directory that a relative path starts from.
    pub dir: BorrowedFd<'a>,
    /// The path.
    pub path: &'a CStr,
    /// The flags, such as `AT_SYMLINK_NOFOLLOW`.
    pub flags: rustix::fs::AtFlags,
}

/// The structure that a call fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `struct stat` of this architecture.
    Native,
    /// `struct stat64` of i386 (arch/x86/include/uapi/asm/stat.h).
    I386,
}

/// Returns a file's metadata as stat(2) would write it, with the owner and device of `reported`.
pub fn stat_bytes(file: StatTarget<'_>, reported: &ReportedStat, layout: Layout) -> std::io::Result<Vec<u8>> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut stat: libc::stat = unsafe { MaybeUninit::zeroed().assume_init() };
    let (dir, path, flags) = (file.dir.as_raw_fd(), file.path.as_ptr(), file.flags.bits() as i32);
    // SAFETY: the path is a C string that lives past the call, `stat` is one stat structure that
    // the call fills.
    if unsafe { libc::fstatat(dir, path, &mut stat, flags) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    (stat.st_uid, stat.st_gid) = (reported.owner.uid, reported.owner.gid);
    if let Some((kind, major, minor)) = reported.node {
        stat.st_mode = (stat.st_mode & 0o7777) | kind;
        stat.st_rdev = libc::makedev(major, minor);
    }
    Ok(match layout {
        Layout::Native => bytes_of(&stat).to_vec(),
        Layout::I386 => i386_stat64(&stat),
    })
}

fn i386_stat64(stat: &libc::stat) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    let mut put = |piece: &[u8]| bytes.extend_from_slice(piece);
    put(&stat.st_dev.to_le_bytes());
    put(&[0; 4]);
    for word in [stat.st_ino as u32, stat.st_mode, stat.st_nlink as u32, stat.st_uid, stat.st_gid] {
        put(&word.to_le_bytes());
    }
    put(&stat.st_rdev.to_le_bytes());
    put(&[0; 4]);
    put(&stat.st_size.to_le_bytes());
    put(&(stat.st_blksize as u32).to_le_bytes());
    put(&stat.st_blocks.to_le_bytes());
    for (seconds, nanoseconds) in
        [(stat.st_atime, stat.st_atime_nsec), (stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)]
    {
        put(&(seconds as u32).to_le_bytes());
        put(&(nanoseconds as u32).to_le_bytes());
    }
    put(&stat.st_ino.to_le_bytes());
    bytes
}

/// Like [`stat_bytes`], as statx(2) would write it for that mask.
pub fn statx_bytes(file: StatTarget<'_>, mask: u32, reported: &ReportedStat) -> std::io::Result<Vec<u8>> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut statx: libc::statx = unsafe { MaybeUninit::zeroed().assume_init() };
    let (dir, path, flags) = (file.dir.as_raw_fd(), file.path.as_ptr(), file.flags.bits() as i32);
    // SAFETY: the path is a C string that lives past the call, `statx` is one statx structure that
    // the call fills.
    if unsafe { libc::statx(dir, path, flags, mask, &mut statx) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    (statx.stx_uid, statx.stx_gid) = (reported.owner.uid, reported.owner.gid);
    if let Some((kind, major, minor)) = reported.node {
        statx.stx_mode = (statx.stx_mode & 0o7777) | kind as u16;
        (statx.stx_rdev_major, statx.stx_rdev_minor) = (major, minor);
    }
    Ok(bytes_of(&statx).to_vec())
}
