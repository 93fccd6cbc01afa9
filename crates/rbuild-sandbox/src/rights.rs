//! What a command may do: capabilities and system calls.

use libcontainer::oci_spec::runtime as oci;
use rbuild_linux::process;

use crate::seccomp;

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

/// Filters the system calls of the calling process, and gives up what that took: for a command of root its capabilities
/// are Docker's, for another none.
pub(crate) fn narrow(uid: u32) -> Result<(), String> {
    if let Some(filter) = seccomp::filter() {
        process::filter_calls(&filter).map_err(text)?;
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
