//! Cgroup, network and mount namespaces.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::thread::ThreadNameSpaceType;

use crate::error::{Error, Result, described};
use crate::syscalls::bring_up_loopback;

/// Forbids new cgroup namespaces in the calling process's user namespace and its descendants
/// (namespaces(7)). Fails if /proc/sys is read-only.
pub fn forbid_cgroup_namespaces() -> Result<()> {
    let setting = Path::new("/proc/sys/user/max_cgroup_namespaces");
    std::fs::write(setting, "0").map_err(|e| Error::new("write", setting, e))
}

/// Moves the calling process into a new network namespace with an active loopback interface.
pub fn enter_loopback_network() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::new("unshare", described("a network namespace"), std::io::Error::from(e)))?;
    let fail = |call, e: std::io::Error| Error::new(call, described("the loopback interface"), e);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(|e| fail("socket", e))?;
    bring_up_loopback(&socket).map_err(|e| fail("ioctl(SIOCSIFFLAGS)", e))
}

/// Moves the calling process into the mount namespace of the process of a pidfd. The root of that
/// namespace becomes the root directory of the calling process.
pub fn enter_mounts_of(pidfd: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::MOUNT)
        .map_err(|e| Error::new("setns", described("the container's mount namespace"), e))
}
