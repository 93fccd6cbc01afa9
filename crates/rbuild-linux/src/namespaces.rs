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

/// Moves the calling process into the user namespace of the process of a pidfd, and its future
/// children into the PID namespace. `pid` is the ID of that process.
///
/// # Errors
///
/// Fails if the calling process has several threads, or may not enter the namespaces.
pub fn enter_outer_of(pidfd: BorrowedFd<'_>, pid: u32) -> Result<()> {
    enter_others(pidfd, pid, &[("user", ThreadNameSpaceType::USER), ("pid", ThreadNameSpaceType::PROCESS_ID)])
}

/// Moves the calling process into the mount, network, IPC and UTS namespaces of the process of a
/// pidfd. The root of the mount namespace becomes the root directory.
///
/// # Errors
///
/// Fails if the calling process may not enter the namespaces.
pub fn enter_rest_of(pidfd: BorrowedFd<'_>, pid: u32) -> Result<()> {
    let kinds = [
        ("mnt", ThreadNameSpaceType::MOUNT),
        ("net", ThreadNameSpaceType::NETWORK),
        ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ];
    enter_others(pidfd, pid, &kinds)
}

/// Enters those namespaces that differ from the ones of the calling process. A process may not
/// enter its own user namespace, nor the network of the machine from a user namespace.
fn enter_others(pidfd: BorrowedFd<'_>, pid: u32, kinds: &[(&str, ThreadNameSpaceType)]) -> Result<()> {
    let mut wanted = ThreadNameSpaceType::empty();
    for (name, kind) in kinds {
        let namespace = |process: &str| {
            let path = format!("/proc/{process}/ns/{name}");
            std::fs::read_link(&path).map_err(|e| Error::new("readlink", Path::new(&path), e))
        };
        if namespace("self")? != namespace(&pid.to_string())? {
            wanted |= *kind;
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    rustix::thread::move_into_thread_name_spaces(pidfd, wanted)
        .map_err(|e| Error::new("setns", described("the namespaces of the container"), e))
}
