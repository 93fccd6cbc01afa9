//! Privileges of a command: capabilities and system calls.

use libcontainer::oci_spec::runtime as oci;
use rbuild_linux::fd_passing::send_fds;
use std::os::fd::{AsFd, BorrowedFd};

use rbuild_linux::process::{Cloned, Exit};
use rbuild_linux::seccomp::{FilterStep, filter_and_listen, filter_calls};
use rbuild_linux::{UidGid, credentials, described, process};

use crate::error::{RunnerProblem, library};
use crate::id_emulation::numbers;
use crate::seccomp::{self, KeyringRefusal};

/// Docker's default capabilities (moby profiles, 2026), granted to a build as root of its
/// container.
pub(crate) const CAPABILITIES: [oci::Capability; 14] = [
    oci::Capability::Chown,
    oci::Capability::DacOverride,
    oci::Capability::Fsetid,
    oci::Capability::Fowner,
    oci::Capability::Mknod,
    oci::Capability::NetRaw,
    oci::Capability::Setgid,
    oci::Capability::Setuid,
    oci::Capability::Setfcap,
    oci::Capability::Setpcap,
    oci::Capability::NetBindService,
    oci::Capability::SysChroot,
    oci::Capability::Kill,
    oci::Capability::AuditWrite,
];

/// Additional capabilities that the container's first process needs to install the filter.
pub(crate) const FOR_THE_FILTER: [oci::Capability; 2] = [oci::Capability::SysAdmin, oci::Capability::Setpcap];

/// Removes capabilities beyond Docker's from the bounding set of the calling process. Does not add
/// any.
pub(crate) fn bound_capabilities(insecure: bool) -> Result<(), RunnerProblem> {
    if insecure {
        return Ok(());
    }
    let kept: caps::CapsHashSet = CAPABILITIES.iter().filter_map(|c| format!("CAP_{c}").parse().ok()).collect();
    let bound = caps::read(None, caps::CapSet::Bounding).map_err(library)?;
    let can_drop = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETPCAP).map_err(library)?;
    for more in bound.difference(&kept).filter(|_| can_drop) {
        caps::drop(None, caps::CapSet::Bounding, *more).map_err(library)?;
    }
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        let held = caps::read(None, set).map_err(library)?;
        caps::set(None, set, &held.intersection(&kept).copied().collect()).map_err(library)?;
    }
    Ok(())
}

/// Leaves the calling process, which has all capabilities of its user namespace, with those of
/// Docker and those that install the filter.
pub(crate) fn keep_for_the_filter() -> Result<(), RunnerProblem> {
    let kept: caps::CapsHashSet =
        CAPABILITIES.iter().chain(&FOR_THE_FILTER).filter_map(|c| format!("CAP_{c}").parse().ok()).collect();
    let bound = caps::read(None, caps::CapSet::Bounding).map_err(library)?;
    for more in bound.difference(&kept) {
        caps::drop(None, caps::CapSet::Bounding, *more).map_err(library)?;
    }
    let held = caps::read(None, caps::CapSet::Permitted).map_err(library)?.intersection(&kept).copied().collect();
    caps::clear(None, caps::CapSet::Ambient).map_err(library)?;
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::set(None, set, &held).map_err(library)?;
    }
    caps::clear(None, caps::CapSet::Inheritable).map_err(library)
}

/// Switches the calling process to `user`. It keeps its capabilities and passes them on to all
/// programs that it executes.
pub(crate) fn become_privileged(user: UidGid, groups: &[u32]) -> Result<(), RunnerProblem> {
    rustix::thread::set_keep_capabilities(true)
        .map_err(RunnerProblem::of_call("prctl", described("the flag that keeps capabilities")))?;
    credentials::become_user(user, groups)?;
    let held = caps::read(None, caps::CapSet::Permitted).map_err(library)?;
    for set in [caps::CapSet::Effective, caps::CapSet::Inheritable, caps::CapSet::Ambient] {
        caps::set(None, set, &held).map_err(library)?;
    }
    Ok(())
}

/// Installs the filter for insecure commands on the calling process, which keeps all its
/// capabilities. Calls about owners go to the other end of `socket`, if given.
pub(crate) fn confine_insecure(socket: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
    let about = if socket.is_some() { numbers() } else { Default::default() };
    match (seccomp::filter_for_insecure(&about, KeyringRefusal::Missing), socket) {
        (Some(filter), Some(socket)) => listen(&filter, socket),
        (Some(filter), None) => Ok(filter_calls(&filter)?),
        (None, Some(_)) => Err(RunnerProblem::NoEmulation),
        (None, None) => Ok(()),
    }
}

/// Installs the filter for commands without namespaces on the calling process. The kernel accepts a
/// filter only from a process with CAP_SYS_ADMIN or with `no_new_privs`, under which set-id
/// programs would fail. Without CAP_SYS_ADMIN, only the filter of the surrounding container
/// applies.
pub(crate) fn confine_bare(insecure: bool) {
    let keys = if insecure { KeyringRefusal::Missing } else { KeyringRefusal::Forbidden };
    if let Some(filter) = seccomp::filter_for_insecure(&Default::default(), keys) {
        let _ = filter_calls(&filter);
    }
}

fn of_listener(e: rbuild_linux::Error) -> RunnerProblem {
    match e.errno() {
        Some(errno) if errno == nix::errno::Errno::EBUSY as i32 => RunnerProblem::AlreadyIntercepted,
        _ => e.into(),
    }
}

/// Fails if the kernel refuses commands a filter with a listener. The caller must be
/// single-threaded.
pub(crate) fn check_interception() -> Result<(), RunnerProblem> {
    const REFUSED: i32 = 1;
    // A filter stays with the process that installs it.
    match process::fork()? {
        Cloned::Child => {
            let made = filter_and_listen(&[seccomp::allowing()]).map_err(of_listener);
            std::process::exit(if matches!(made, Err(RunnerProblem::AlreadyIntercepted)) { REFUSED } else { 0 })
        }
        Cloned::Parent { child } => match process::wait(child)? {
            Exit::Code(REFUSED) => Err(RunnerProblem::AlreadyIntercepted),
            _ => Ok(()),
        },
    }
}

fn listen(filter: &[FilterStep], socket: BorrowedFd<'_>) -> Result<(), RunnerProblem> {
    // The supervisor inspects this process, whose memory is a copy of the launcher's until it
    // executes a program. While it is not dumpable, that would require privileges in the launcher's
    // user namespace.
    nix::sys::prctl::set_dumpable(true)
        .map_err(RunnerProblem::of_call("prctl", described("the dumpable attribute of the process")))?;
    let listener = filter_and_listen(filter).map_err(of_listener)?;
    send_fds(socket, &[listener.as_fd()]).map_err(RunnerProblem::of_call("sendmsg", described("the supervisor")))
}

/// Filters the system calls of the calling process, and drops the capabilities needed for that:
/// root keeps Docker's, other users none. Calls about owners go to the other end of `socket`, if
/// given.
pub(crate) fn confine(uid: u32, socket: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
    match socket {
        Some(socket) => {
            let filter = seccomp::filter_with_supervisor(&numbers());
            listen(&filter.ok_or(RunnerProblem::NoEmulation)?, socket)?;
        }
        None => {
            if let Some(filter) = seccomp::filter() {
                filter_calls(&filter)?;
            }
        }
    }
    let kept: caps::CapsHashSet = CAPABILITIES.iter().filter_map(|c| format!("CAP_{c}").parse().ok()).collect();
    caps::drop(None, caps::CapSet::Bounding, caps::Capability::CAP_SYS_ADMIN).map_err(library)?;
    let held = if uid == 0 { kept } else { caps::CapsHashSet::new() };
    caps::set(None, caps::CapSet::Effective, &held).map_err(library)?;
    caps::set(None, caps::CapSet::Permitted, &held).map_err(library)
}

/// Returns the builder's own capabilities: all for a namespace's root, fewer for root of a
/// restricted container.
pub(crate) fn process_capabilities() -> oci::Capabilities {
    caps::read(None, caps::CapSet::Permitted)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|c| c.to_string().strip_prefix("CAP_").and_then(|name| name.parse().ok()))
        .collect()
}
