//! Detection of the isolation modes that this machine permits, with reasons and remedies.

use std::path::Path;

use caps::{CapSet, Capability};
use rbuild_linux::{
    Error, IdMaps, IdRange, OwnerMode, SubIds, USUAL_COUNT, UidGid, free_range, held_ranges, process,
    subordinate_ranges,
};

use rbuild_remedy::{IdRangeToGrant, IsolationRemedy, MachineRemedy, Remedy, SubIdGrant};

use crate::error::{Refusal, refusal};
use crate::namespace::newuidmap;
use crate::protocol::RunnerMode;

/// The isolation of commands from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Isolation {
    /// A user namespace with sub-IDs, or with root's own IDs.
    Userns(IdMaps),
    /// A user namespace that maps only the caller; file owners are recorded.
    SingleId(IdMaps),
    /// Another root directory and nothing more.
    Chroot,
}

/// The requested isolation mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IsolationRequest {
    /// The strongest mode that this machine permits.
    #[default]
    Auto,
    /// A user namespace with sub-IDs, or with root's own IDs.
    Userns,
    /// A user namespace that maps only the caller; file owners are recorded.
    SingleId,
    /// Another root directory and nothing more. Requires root.
    Chroot,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn setting(path: &str) -> Option<i64> {
    read(path).trim().parse().ok()
}

/// Chooses the isolation mode for the calling user, without trying anything out.
pub fn isolation(request: IsolationRequest) -> Result<Isolation, Refusal> {
    if !Path::new("/proc/self/task").exists() {
        return Err(refusal(
            "/proc is not mounted, and rbuild requires it",
            Remedy::Isolation(IsolationRemedy::MountProc),
        ));
    }
    if request == IsolationRequest::Chroot {
        return bare_isolation();
    }
    let UidGid { uid, gid } = process::own_ids();
    let alone = || Isolation::SingleId(IdMaps::alone(UidGid { uid, gid }));
    let found = match uid {
        _ if request == IsolationRequest::SingleId => return Ok(alone()),
        // Root of a namespace that maps a single ID is in the same position as a user without
        // sub-IDs.
        0 if request == IsolationRequest::Auto
            && matches!(held_ranges(&read("/proc/self/uid_map"))[..], [only] if only.count == 1) =>
        {
            return Ok(alone());
        }
        0 if request == IsolationRequest::Auto && !can_map_ids() && has(Capability::CAP_SETFCAP) => return Ok(alone()),
        0 => root_maps(),
        _ => subordinate_maps(UidGid { uid, gid }),
    };
    match found {
        Ok(maps) => Ok(Isolation::Userns(maps)),
        // No sub-IDs, or no helper programs that grant them.
        Err(_) if request == IsolationRequest::Auto && uid != 0 => Ok(alone()),
        Err(e) => Err(e),
    }
}

impl Isolation {
    /// Returns the name of the mode, as users choose it.
    pub fn name(&self) -> &'static str {
        self.runner_mode().name()
    }

    /// Returns the ID maps of the user namespace; `None` in the `chroot` mode.
    pub fn maps(&self) -> Option<&IdMaps> {
        match self {
            Isolation::Userns(maps) | Isolation::SingleId(maps) => Some(maps),
            Isolation::Chroot => None,
        }
    }

    /// Returns the representation of file owners. They are recorded where only root is mapped.
    pub fn owner_mode(&self) -> OwnerMode {
        match self {
            Isolation::SingleId(_) => OwnerMode::Recorded,
            Isolation::Userns(_) | Isolation::Chroot => OwnerMode::Given,
        }
    }

    /// Returns the way in which commands run.
    pub fn runner_mode(&self) -> RunnerMode {
        match self {
            Isolation::Userns(_) => RunnerMode::Container,
            Isolation::SingleId(_) => RunnerMode::Emulated,
            Isolation::Chroot => RunnerMode::Chroot,
        }
    }
}

/// Returns the `chroot` mode.
pub fn bare_isolation() -> Result<Isolation, Refusal> {
    let uid = process::own_ids().uid;
    let why = "isolation mode chroot requires root with CAP_SYS_CHROOT";
    if uid != 0 {
        return Err(refusal(why, MachineRemedy::OtherMode));
    }
    if !has(Capability::CAP_SYS_CHROOT) {
        return Err(refusal(why, MachineRemedy::BecomeRoot));
    }
    Ok(Isolation::Chroot)
}

fn has(cap: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false)
}

const TO_MAP_IDS: [Capability; 2] = [Capability::CAP_SETUID, Capability::CAP_SETGID];

fn can_map_ids() -> bool {
    TO_MAP_IDS.into_iter().all(has)
}

fn root_maps() -> Result<IdMaps, Refusal> {
    for cap in TO_MAP_IDS {
        if !has(cap) {
            return Err(refusal(
                format!("this process is root without {cap}, so it cannot map IDs"),
                MachineRemedy::GrantCapability,
            ));
        }
    }
    let ranges = |file: &str| match held_ranges(&read(file)) {
        ranges if ranges.is_empty() => {
            Err(refusal(format!("this process is root, but {file} maps no IDs"), MachineRemedy::BecomeOrdinary))
        }
        ranges => Ok(ranges),
    };
    Ok(IdMaps::identity(&ranges("/proc/self/uid_map")?, &ranges("/proc/self/gid_map")?))
}

fn subordinate_maps(caller: UidGid) -> Result<IdMaps, Refusal> {
    let uid = caller.uid;
    let name = process::user_name(uid);
    let shown = name.clone().unwrap_or_else(|| uid.to_string());
    newuidmap::usable(&shown)?;
    let ranges = |file: &str| subordinate_ranges(&read(file), name.as_deref(), uid);
    let sub = SubIds { uids: ranges("/etc/subuid"), gids: ranges("/etc/subgid") };
    for (file, found) in [("/etc/subuid", &sub.uids), ("/etc/subgid", &sub.gids)] {
        if found.is_empty() {
            let missing = [sub.uids.is_empty(), sub.gids.is_empty()];
            return Err(refusal(
                format!("{file} grants user {shown} no sub-IDs"),
                MachineRemedy::GrantSubIds(granting(missing, &shown)),
            ));
        }
    }
    Ok(IdMaps::subordinate(caller, &sub))
}

/// Returns a grant of the usual number of user IDs, group IDs or both to a user, from an unassigned
/// range.
fn granting([uids, gids]: [bool; 2], user: &str) -> SubIdGrant {
    let range = |file| match free_range(&read(file)) {
        Some(IdRange { start, count }) => IdRangeToGrant::Free(start, start + (count - 1)),
        None => IdRangeToGrant::Unknown,
    };
    SubIdGrant {
        user: user.to_string(),
        uids: uids.then(|| range("/etc/subuid")),
        gids: gids.then(|| range("/etc/subgid")),
    }
}

const NO_USERNS: &str = "cannot create a user namespace";

/// Explains why the kernel denied a user namespace.
pub fn userns_refused(e: Error) -> Refusal {
    let refused = if setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        refusal(NO_USERNS, permit_namespaces("user.max_user_namespaces=15000"))
    } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        refusal(NO_USERNS, permit_namespaces("kernel.unprivileged_userns_clone=1"))
    } else if e.errno() == Some(nix::errno::Errno::ENOSYS as i32) {
        refusal(NO_USERNS, MachineRemedy::PermitClone)
    } else if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
        let reason = format!("{NO_USERNS}, which the container's seccomp profile may deny");
        refusal(reason, Remedy::Isolation(IsolationRemedy::UnconfineSeccomp))
    } else {
        refusal(NO_USERNS, Remedy::Isolation(IsolationRemedy::FindDenial))
    };
    refused.because(e)
}

/// Explains why the ID maps could not be written.
pub fn maps_refused(e: Error) -> Refusal {
    let restricted = setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    let remedy: Remedy = if restricted {
        permit_namespaces("kernel.apparmor_restrict_unprivileged_userns=0")
    } else {
        Remedy::Isolation(IsolationRemedy::CheckSubIds)
    };
    refusal("cannot write the ID maps of the user namespace", remedy).because(e)
}

fn permit_namespaces(setting: &'static str) -> Remedy {
    Remedy::Isolation(IsolationRemedy::PermitNamespaces { setting })
}

pub(crate) fn proc_refused(e: Error) -> Refusal {
    refusal(
        "cannot mount a new /proc or expose the existing one to commands",
        Remedy::Isolation(IsolationRemedy::UnmaskProc),
    )
    .because(e)
}

/// One line of `rbuild doctor`.
#[derive(Debug, Clone)]
pub struct Check {
    pub name: &'static str,
    pub found: String,
    /// The remedy if something is missing.
    pub remedy: Option<Remedy>,
}

/// Runs the checks that have no side effects: kernel, user, sub-IDs, settings.
pub fn checks() -> Vec<Check> {
    let uid = process::own_ids().uid;
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_string();
    let mut list = vec![Check { name: "kernel", remedy: old_kernel(&kernel), found: kernel }];
    let user = process::user_name(uid).unwrap_or_else(|| "?".into());
    list.push(Check { name: "user", found: format!("{user} (uid {uid})"), remedy: None });
    list.push(match isolation(IsolationRequest::Userns) {
        Ok(isolation) => {
            let UidGid { uid: top_uid, gid: top_gid } = isolation.maps().map_or_else(UidGid::default, IdMaps::highest);
            let small = [top_uid, top_gid].map(|top| top < USUAL_COUNT - 1);
            let remedy = small.contains(&true).then(|| {
                let grant = granting(small, &process::user_name(uid).unwrap_or_else(|| uid.to_string()));
                MachineRemedy::GrantMoreSubIds { count: USUAL_COUNT, grant }.into()
            });
            Check { name: "ids", found: format!("users up to {top_uid}, groups up to {top_gid}"), remedy }
        }
        Err(r) => Check { name: "ids", found: rbuild_remedy::sentence(&r), remedy: Some(r.remedy) },
    });
    for (name, path, bad, fix) in SETTINGS {
        if let Some(value) = setting(path) {
            let remedy =
                (value == bad).then_some(Remedy::Isolation(IsolationRemedy::PermitNamespaces { setting: fix }));
            list.push(Check { name, found: value.to_string(), remedy });
        }
    }
    list
}

/// Name, file, value that forbids user namespaces, and setting that permits them.
const SETTINGS: [(&str, &str, i64, &str); 3] = [
    ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", 0, "user.max_user_namespaces=15000"),
    (
        "kernel.unprivileged_userns_clone",
        "/proc/sys/kernel/unprivileged_userns_clone",
        0,
        "kernel.unprivileged_userns_clone=1",
    ),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        1,
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

fn old_kernel(release: &str) -> Option<Remedy> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (parts.next()?, parts.next()?);
    (version < (5, 12)).then(|| MachineRemedy::UpgradeKernel.into())
}
