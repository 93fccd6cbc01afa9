//! What a command may do: capabilities and system calls.

use libcontainer::oci_spec::runtime as oci;
use std::os::fd::{AsFd, BorrowedFd};

use rbuild_linux::{notify, process};

use crate::owners::numbers;
use crate::seccomp;
use crate::zygote::send_fds;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Docker's default capabilities (moby profiles, 2026): what a build may do as root of its container.
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

/// What the container's first process needs beyond that to narrow itself.
pub(crate) const FOR_THE_FILTER: [oci::Capability; 2] = [oci::Capability::SysAdmin, oci::Capability::Setpcap];

/// Takes capabilities beyond Docker's out of the calling process's reach, and its programs'; fewer stay fewer.
pub(crate) fn bound_capabilities(insecure: bool) -> Result<(), String> {
    if insecure {
        return Ok(());
    }
    let kept: caps::CapsHashSet = CAPABILITIES.iter().filter_map(|c| format!("CAP_{c}").parse().ok()).collect();
    let bound = caps::read(None, caps::CapSet::Bounding).map_err(text)?;
    let can_drop = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETPCAP).map_err(text)?;
    for more in bound.difference(&kept).filter(|_| can_drop) {
        caps::drop(None, caps::CapSet::Bounding, *more).map_err(text)?;
    }
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        let held = caps::read(None, set).map_err(text)?;
        caps::set(None, set, &held.intersection(&kept).copied().collect()).map_err(text)?;
    }
    Ok(())
}

/// Has the calls of the calling process that are about owners answered by whoever is at the other end of the socket.
/// Nothing else is filtered.
pub(crate) fn have_answers(socket: BorrowedFd<'_>) -> Result<(), String> {
    let filter = seccomp::only_ask(&numbers()).ok_or("owners are written down on x86_64 and aarch64 only")?;
    listen(&filter, socket)
}

fn listen(filter: &[process::FilterStep], socket: BorrowedFd<'_>) -> Result<(), String> {
    // Who answers looks at this process, whose memory is the launcher's until it executes something: without that, only
    // somebody with rights where the launcher is could look.
    nix::sys::prctl::set_dumpable(true).map_err(text)?;
    let listener = notify::filter_and_listen(filter).map_err(text)?;
    send_fds(socket, &[listener.as_fd()]).map_err(|e| format!("passing on the listener: {e}"))
}

/// Filters the system calls of the calling process, and gives up what that took: for a command of root its capabilities
/// are Docker's, for another none. Calls about owners are answered at the other end of `socket`, if there is one.
pub(crate) fn narrow(uid: u32, socket: Option<BorrowedFd<'_>>) -> Result<(), String> {
    match socket {
        Some(socket) => {
            let filter = seccomp::filter_that_asks(&numbers());
            listen(&filter.ok_or("owners are written down on x86_64 and aarch64 only")?, socket)?;
        }
        None => {
            if let Some(filter) = seccomp::filter() {
                process::filter_calls(&filter).map_err(text)?;
            }
        }
    }
    let kept: caps::CapsHashSet = CAPABILITIES.iter().filter_map(|c| format!("CAP_{c}").parse().ok()).collect();
    caps::drop(None, caps::CapSet::Bounding, caps::Capability::CAP_SYS_ADMIN).map_err(text)?;
    let held = if uid == 0 { kept } else { caps::CapsHashSet::new() };
    caps::set(None, caps::CapSet::Effective, &held).map_err(text)?;
    caps::set(None, caps::CapSet::Permitted, &held).map_err(text)
}

/// All that the builder itself has: a namespace's root holds them all, root of a narrow container fewer.
pub(crate) fn process_capabilities() -> oci::Capabilities {
    caps::read(None, caps::CapSet::Permitted)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|c| c.to_string().strip_prefix("CAP_").and_then(|name| name.parse().ok()))
        .collect()
}
