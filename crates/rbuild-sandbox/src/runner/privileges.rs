//! Privileges of a command: capabilities and system calls.

use libcontainer::oci_spec::runtime as oci;
use rbuild_container::Capabilities;
use rbuild_linux::fd_passing::send_fds;
use std::os::fd::{AsFd, BorrowedFd};

use rbuild_linux::process::{Cloned, Exit};
use rbuild_linux::seccomp::{FilterStep, filter_and_listen, filter_calls};
use rbuild_linux::{UidGid, credentials, described, process};

use crate::error::{RunnerProblem, library};
use crate::id_emulation::numbers;
use crate::protocol::CommandRequest;
use crate::seccomp::{self, KeyringRefusal};

/// Capabilities that the container's first process needs in addition to its own, to install the
/// filter and to drop them again.
pub(crate) const FOR_THE_FILTER: [oci::Capability; 2] = [oci::Capability::SysAdmin, oci::Capability::Setpcap];
const OF_THE_FILTER: [caps::Capability; 2] = [caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_SETPCAP];

/// Capabilities that a process needs to switch to the user of its command.
const FOR_THE_USER: [caps::Capability; 2] = [caps::Capability::CAP_SETUID, caps::Capability::CAP_SETGID];

fn caps_of(capabilities: Capabilities) -> caps::CapsHashSet {
    capabilities.names().filter_map(|name| format!("CAP_{name}").parse().ok()).collect()
}

/// Removes other capabilities from the sets of the calling process, except those that switch the
/// user, which remain until [`limit_capabilities`]. Does not add any.
pub(crate) fn bound_capabilities(to: Capabilities) -> Result<(), RunnerProblem> {
    if to == Capabilities::ALL {
        return Ok(());
    }
    let mut kept = caps_of(to);
    let bound = caps::read(None, caps::CapSet::Bounding).map_err(library)?;
    let can_drop = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETPCAP).map_err(library)?;
    for more in bound.difference(&kept).filter(|_| can_drop) {
        caps::drop(None, caps::CapSet::Bounding, *more).map_err(library)?;
    }
    kept.extend(FOR_THE_USER);
    limit_sets(&kept)
}

/// Removes other capabilities from those that the calling process has.
pub(crate) fn limit_capabilities(to: Capabilities) -> Result<(), RunnerProblem> {
    if to == Capabilities::ALL { Ok(()) } else { limit_sets(&caps_of(to)) }
}

fn limit_sets(kept: &caps::CapsHashSet) -> Result<(), RunnerProblem> {
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        let held = caps::read(None, set).map_err(library)?;
        caps::set(None, set, &held.intersection(kept).copied().collect()).map_err(library)?;
    }
    Ok(())
}

/// Leaves the calling process, which has all capabilities of its user namespace, with these, those
/// that switch the user, and those that install the filter.
pub(crate) fn keep_for_the_filter(capabilities: Capabilities) -> Result<(), RunnerProblem> {
    let mut kept = caps_of(capabilities);
    kept.extend(OF_THE_FILTER);
    let bound = caps::read(None, caps::CapSet::Bounding).map_err(library)?;
    for more in bound.difference(&kept) {
        caps::drop(None, caps::CapSet::Bounding, *more).map_err(library)?;
    }
    kept.extend(FOR_THE_USER);
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

/// Installs the filter for insecure commands on the calling process. Calls about owners go to the
/// other end of `socket`, if given.
pub(crate) fn filter_insecure(socket: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
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

/// Installs the filter for other commands, as above.
fn filter_secure(socket: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
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
    Ok(())
}

/// The restrictions of a command's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement {
    /// User ID in the kernel.
    uid: u32,
    insecure: bool,
    capabilities: Capabilities,
    /// True if other users than root have the capabilities, too.
    keeps_capabilities: bool,
    no_new_privileges: bool,
}

impl Confinement {
    pub(crate) fn of(command: &CommandRequest) -> Confinement {
        Confinement {
            uid: command.kernel_ids().uid,
            insecure: command.is_insecure(),
            capabilities: command.capabilities(),
            keeps_capabilities: command.keeps_capabilities(),
            no_new_privileges: command.privileges.no_new_privileges,
        }
    }

    /// Filters the system calls of the calling process, and drops the capabilities that only that
    /// needs. Calls about owners go to the other end of `socket`, if given.
    pub(crate) fn apply(self, socket: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
        if self.insecure {
            filter_insecure(socket)?
        } else {
            filter_secure(socket)?
        }
        let kept = caps_of(self.capabilities);
        if !self.keeps_capabilities {
            for dropped in OF_THE_FILTER.iter().filter(|capability| !kept.contains(capability)) {
                caps::drop(None, caps::CapSet::Bounding, *dropped).map_err(library)?;
            }
            let held = if self.uid == 0 { kept } else { caps::CapsHashSet::new() };
            caps::set(None, caps::CapSet::Effective, &held).map_err(library)?;
            caps::set(None, caps::CapSet::Permitted, &held).map_err(library)?;
        }
        self.forbid_new_privileges()
    }

    /// Keeps set-uid programs from giving privileges, if requested.
    pub(crate) fn forbid_new_privileges(self) -> Result<(), RunnerProblem> {
        if self.no_new_privileges {
            let set = nix::sys::prctl::set_no_new_privs();
            set.map_err(RunnerProblem::of_call("prctl", described("the no_new_privs attribute of the process")))?;
        }
        Ok(())
    }
}

/// Returns those of a command's capabilities that the calling process has: all for a namespace's
/// root, fewer for root of a restricted container.
pub(crate) fn granted(command: &CommandRequest) -> oci::Capabilities {
    let names = command.capabilities().names();
    if !command.is_insecure() {
        return names.filter_map(|name| name.parse().ok()).collect();
    }
    let own = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
    let has = |name: &&str| format!("CAP_{name}").parse().is_ok_and(|capability| own.contains(&capability));
    names.filter(has).filter_map(|name| name.parse().ok()).collect()
}
