//! Choice of the isolation mode from the facts of `machine`, with reasons and remedies.

use caps::Capability;
use rbuild_linux::{Error, IdMaps, IdRange, OwnerMode, SubIds, free_range, held_ranges, quoted, subordinate_ranges};
use rbuild_remedy::{IdRangeToGrant, IsolationRemedy, MachineRemedy, Remedy, SubIdGrant, SubIdObstacle};

use crate::error::{Refusal, refusal};
use crate::namespace::machine::{CallingProcess, KernelSettings, ProgramState, SubIdFacts, SubIdProgram};
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

/// Chooses the isolation mode for the calling user from facts, without testing the mode.
pub fn isolation(request: IsolationRequest) -> Result<Isolation, Refusal> {
    let caller = CallingProcess::read();
    choose(request, &caller, || SubIdFacts::read(caller.ids.uid))
}

/// Chooses the isolation mode. `sub_ids` is called only if the answer depends on it.
pub(crate) fn choose(
    request: IsolationRequest,
    caller: &CallingProcess,
    sub_ids: impl FnOnce() -> SubIdFacts,
) -> Result<Isolation, Refusal> {
    if !caller.has_proc {
        return Err(refusal(
            "`/proc` is not mounted, and rbuild requires it",
            Remedy::Isolation(IsolationRemedy::MountProc),
        ));
    }
    if request == IsolationRequest::Chroot {
        return bare_isolation(caller);
    }
    let single = || Isolation::SingleId(IdMaps::single(caller.ids));
    let automatic = request == IsolationRequest::Auto;
    let found = match caller.ids.uid {
        _ if request == IsolationRequest::SingleId => return Ok(single()),
        // Root of a namespace that maps a single ID is in the same position as a user without
        // sub-IDs.
        0 if automatic && matches!(held_ranges(&caller.uid_map)[..], [only] if only.count == 1) => return Ok(single()),
        0 if automatic && missing_capability(caller).is_some() && has(caller, Capability::CAP_SETFCAP) => {
            return Ok(single());
        }
        0 => root_maps(caller),
        _ => subordinate_maps(caller, &sub_ids()),
    };
    match found {
        Ok(maps) => Ok(Isolation::Userns(maps)),
        // No sub-IDs, or no helper programs that grant them.
        Err(_) if automatic && caller.ids.uid != 0 => Ok(single()),
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
pub(crate) fn bare_isolation(caller: &CallingProcess) -> Result<Isolation, Refusal> {
    let reason = "isolation mode `chroot` requires root with CAP_SYS_CHROOT";
    if caller.ids.uid != 0 {
        return Err(refusal(reason, MachineRemedy::OtherMode));
    }
    if !has(caller, Capability::CAP_SYS_CHROOT) {
        return Err(refusal(reason, MachineRemedy::BecomeRoot));
    }
    Ok(Isolation::Chroot)
}

fn has(caller: &CallingProcess, cap: Capability) -> bool {
    caller.capabilities.contains(&cap)
}

/// Returns the first capability for mapping IDs that the caller lacks.
fn missing_capability(caller: &CallingProcess) -> Option<Capability> {
    [Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().find(|cap| !has(caller, *cap))
}

fn root_maps(caller: &CallingProcess) -> Result<IdMaps, Refusal> {
    if let Some(cap) = missing_capability(caller) {
        return Err(refusal(
            format!("this process is root without {cap}, so it cannot map IDs"),
            MachineRemedy::GrantCapability,
        ));
    }
    let ranges = |file: &str, map: &str| match held_ranges(map) {
        ranges if ranges.is_empty() => {
            Err(refusal(format!("this process is root, but `{file}` maps no IDs"), MachineRemedy::BecomeOrdinary))
        }
        ranges => Ok(ranges),
    };
    let uids = ranges("/proc/self/uid_map", &caller.uid_map)?;
    Ok(IdMaps::identity(&uids, &ranges("/proc/self/gid_map", &caller.gid_map)?))
}

/// Returns the name of the user, or its ID if it has none.
pub(crate) fn name_or_id(caller: &CallingProcess, sub_ids: &SubIdFacts) -> String {
    sub_ids.user.clone().unwrap_or_else(|| caller.ids.uid.to_string())
}

fn subordinate_maps(caller: &CallingProcess, facts: &SubIdFacts) -> Result<IdMaps, Refusal> {
    let user = facts.user.as_ref().map_or_else(|| caller.ids.uid.to_string(), quoted);
    check_programs(&user, facts)?;
    let ranges = |text: &str| subordinate_ranges(text, facts.user.as_deref(), caller.ids.uid);
    let sub = SubIds { uids: ranges(&facts.subuid), gids: ranges(&facts.subgid) };
    for (file, found) in [("/etc/subuid", &sub.uids), ("/etc/subgid", &sub.gids)] {
        if found.is_empty() {
            let missing = [sub.uids.is_empty(), sub.gids.is_empty()];
            return Err(refusal(
                format!("`{file}` grants user {user} no sub-IDs"),
                MachineRemedy::GrantSubIds(granting(missing, &name_or_id(caller, facts), facts)),
            ));
        }
    }
    Ok(IdMaps::subordinate(caller.ids, &sub))
}

/// Fails with the reason if newuidmap or newgidmap cannot map sub-IDs. `user` is quoted for
/// messages.
fn check_programs(user: &str, facts: &SubIdFacts) -> Result<(), Refusal> {
    for SubIdProgram { name, state } in &facts.programs {
        return Err(match state {
            ProgramState::Usable => continue,
            ProgramState::Missing => refusal(
                format!("`{name}` is not installed, so user {user} cannot use sub-IDs"),
                MachineRemedy::InstallSubIdHelpers,
            ),
            ProgramState::NoSetUid(path) => refusal(
                format!("{} is on a file system mounted with nosuid, so it cannot map sub-IDs", quoted(path)),
                MachineRemedy::OrSingleId(SubIdObstacle::NoSetUid),
            ),
            ProgramState::Unprivileged(path) => refusal(
                format!("{} is neither set-uid root nor has capabilities, so it cannot map sub-IDs", quoted(path)),
                MachineRemedy::RestoreSetUid { program: path.clone() },
            ),
        });
    }
    if facts.no_new_privileges {
        return Err(refusal(
            "no_new_privs is set, so `newuidmap` cannot map sub-IDs",
            MachineRemedy::OrSingleId(SubIdObstacle::NoNewPrivileges),
        ));
    }
    Ok(())
}

/// Returns a grant of the usual number of user IDs, group IDs or both to a user, from an unassigned
/// range.
pub(crate) fn granting([uids, gids]: [bool; 2], user: &str, facts: &SubIdFacts) -> SubIdGrant {
    let range = |text| match free_range(text) {
        Some(IdRange { start, count }) => IdRangeToGrant::Free(start, start + (count - 1)),
        None => IdRangeToGrant::Unknown,
    };
    SubIdGrant {
        user: user.to_string(),
        uids: uids.then(|| range(&facts.subuid)),
        gids: gids.then(|| range(&facts.subgid)),
    }
}

/// A setting of the kernel that can forbid user namespaces.
pub(crate) struct Restriction {
    /// Name of the setting.
    pub name: &'static str,
    /// Returns the value of the setting, if the kernel has it.
    pub value: fn(&KernelSettings) -> Option<i64>,
    /// The value that forbids user namespaces.
    pub forbids: i64,
    /// The assignment that permits them, as sysctl(8) takes it.
    permitting: &'static str,
}

const MAX_USER_NAMESPACES: Restriction = Restriction {
    name: "user.max_user_namespaces",
    value: |settings| settings.max_user_namespaces,
    forbids: 0,
    permitting: "user.max_user_namespaces=15000",
};
const UNPRIVILEGED_CLONE: Restriction = Restriction {
    name: "kernel.unprivileged_userns_clone",
    value: |settings| settings.unprivileged_clone,
    forbids: 0,
    permitting: "kernel.unprivileged_userns_clone=1",
};
const APPARMOR: Restriction = Restriction {
    name: "kernel.apparmor_restrict_unprivileged_userns",
    value: |settings| settings.apparmor_restriction,
    forbids: 1,
    permitting: "kernel.apparmor_restrict_unprivileged_userns=0",
};

/// All settings that can forbid user namespaces.
pub(crate) const RESTRICTIONS: [Restriction; 3] = [MAX_USER_NAMESPACES, UNPRIVILEGED_CLONE, APPARMOR];

impl Restriction {
    fn applies(&self, settings: &KernelSettings) -> bool {
        (self.value)(settings) == Some(self.forbids)
    }

    /// Returns the remedy that permits user namespaces.
    pub fn remedy(&self) -> Remedy {
        Remedy::Isolation(IsolationRemedy::PermitNamespaces { setting: self.permitting.into() })
    }
}

const NO_USERNS: &str = "cannot create a user namespace";

/// Explains why the kernel denied a user namespace.
pub(crate) fn userns_refused(e: Error, settings: &KernelSettings) -> Refusal {
    let forbidding = [MAX_USER_NAMESPACES, UNPRIVILEGED_CLONE].into_iter().find(|setting| setting.applies(settings));
    let refused = if let Some(setting) = forbidding {
        refusal(NO_USERNS, setting.remedy())
    } else if e.errno() == Some(nix::errno::Errno::ENOSYS as i32) {
        refusal(NO_USERNS, MachineRemedy::PermitClone)
    } else if settings.in_container {
        let reason = format!("{NO_USERNS}, which the container's seccomp profile may deny");
        refusal(reason, Remedy::Isolation(IsolationRemedy::UnconfineSeccomp))
    } else {
        refusal(NO_USERNS, Remedy::Isolation(IsolationRemedy::FindDenial))
    };
    refused.because(e)
}

/// Explains why the ID maps could not be written.
pub(crate) fn maps_refused(e: Error, settings: &KernelSettings) -> Refusal {
    let remedy =
        if APPARMOR.applies(settings) { APPARMOR.remedy() } else { Remedy::Isolation(IsolationRemedy::CheckSubIds) };
    refusal("cannot write the ID maps of the user namespace", remedy).because(e)
}

/// Explains why commands can have neither a /proc of their own nor the existing one.
pub(crate) fn proc_refused(e: Error) -> Refusal {
    refusal(
        "cannot mount a new `/proc` or expose the existing one to commands",
        Remedy::Isolation(IsolationRemedy::UnmaskProc),
    )
    .because(e)
}

#[cfg(test)]
mod tests {
    use caps::CapsHashSet;
    use rbuild_linux::described;
    use rbuild_testkit::{assert_recorded, variants};
    use rustix::io::Errno;

    use super::*;
    use crate::namespace::machine::samples_for_tests::{ordinary, root, usable};

    fn with_newgidmap(state: ProgramState) -> SubIdFacts {
        let mut facts = usable();
        facts.programs[1].state = state;
        facts
    }

    fn without(cap: Capability) -> CallingProcess {
        let mut caller = root();
        caller.capabilities.remove(&cap);
        caller
    }

    const AUTO: IsolationRequest = IsolationRequest::Auto;
    const USERNS: IsolationRequest = IsolationRequest::Userns;
    const SINGLE_ID: IsolationRequest = IsolationRequest::SingleId;
    const CHROOT: IsolationRequest = IsolationRequest::Chroot;

    #[test]
    fn the_strongest_possible_mode_is_chosen() {
        let one_id = CallingProcess { uid_map: "0 1000 1\n".into(), ..root() };
        let weak = || without(Capability::CAP_SETGID);
        let bare = CallingProcess { capabilities: CapsHashSet::new(), ..root() };
        let cases = [
            (AUTO, ordinary(), usable(), Some("userns")),
            (AUTO, ordinary(), with_newgidmap(ProgramState::Missing), Some("single-id")),
            (AUTO, ordinary(), SubIdFacts { subgid: String::new(), ..usable() }, Some("single-id")),
            (AUTO, root(), usable(), Some("userns")),
            (AUTO, one_id.clone(), usable(), Some("single-id")),
            (AUTO, weak(), usable(), Some("single-id")),
            (AUTO, bare.clone(), usable(), None),
            (USERNS, ordinary(), with_newgidmap(ProgramState::Missing), None),
            (USERNS, one_id, usable(), Some("userns")),
            (USERNS, weak(), usable(), None),
            (SINGLE_ID, ordinary(), usable(), Some("single-id")),
            (SINGLE_ID, bare.clone(), usable(), Some("single-id")),
            (CHROOT, root(), usable(), Some("chroot")),
            (CHROOT, bare, usable(), None),
            (CHROOT, ordinary(), usable(), None),
        ];
        for (request, caller, sub_ids, expected) in cases {
            let chosen = choose(request, &caller, || sub_ids.clone());
            let name = chosen.as_ref().ok().map(Isolation::name);
            assert_eq!(name, expected, "{request:?} for {caller:?} with {sub_ids:?}: {chosen:?}");
        }
    }

    #[test]
    fn root_needs_no_facts_about_sub_ids() {
        choose(AUTO, &root(), || panic!("sub-IDs are read")).unwrap();
    }

    fn rows(cases: Vec<(&str, Refusal)>) -> String {
        let row = |(label, e): (&str, Refusal)| {
            let table = variants!(Refusal).table(&[e], |e| e, |e: &Refusal| Some(e.remedy.clone()));
            format!("=== {label}\n{table}")
        };
        cases.into_iter().map(row).collect()
    }

    #[test]
    fn refusals_are_as_recorded() {
        let of =
            |request, caller: CallingProcess, sub_ids: SubIdFacts| choose(request, &caller, || sub_ids).unwrap_err();
        let program = || "/usr/bin/newgidmap".into();
        let nameless = SubIdFacts { user: None, ..usable() };
        let full = SubIdFacts { subuid: "build:100000:4294867295\n".into(), ..usable() };
        let cases = vec![
            ("no /proc", of(AUTO, CallingProcess { has_proc: false, ..ordinary() }, usable())),
            ("chroot for an ordinary user", of(CHROOT, ordinary(), usable())),
            ("chroot for a root without capabilities", of(CHROOT, without(Capability::CAP_SYS_CHROOT), usable())),
            ("root without CAP_SETUID", of(USERNS, without(Capability::CAP_SETUID), usable())),
            ("root without CAP_SETGID", of(USERNS, without(Capability::CAP_SETGID), usable())),
            (
                "root in a namespace without user IDs",
                of(AUTO, CallingProcess { uid_map: "".into(), ..root() }, usable()),
            ),
            (
                "root in a namespace without group IDs",
                of(AUTO, CallingProcess { gid_map: "".into(), ..root() }, usable()),
            ),
            ("newgidmap is missing", of(USERNS, ordinary(), with_newgidmap(ProgramState::Missing))),
            ("a nosuid mount", of(USERNS, ordinary(), with_newgidmap(ProgramState::NoSetUid(program())))),
            ("no set-uid bit", of(USERNS, ordinary(), with_newgidmap(ProgramState::Unprivileged(program())))),
            ("no_new_privs", of(USERNS, ordinary(), SubIdFacts { no_new_privileges: true, ..usable() })),
            ("no sub-UIDs", of(USERNS, ordinary(), SubIdFacts { subuid: "db:100000:65536".into(), ..usable() })),
            ("no sub-GIDs", of(USERNS, ordinary(), SubIdFacts { subgid: String::new(), ..usable() })),
            ("no sub-UIDs, and none are free", of(USERNS, ordinary(), full)),
            ("no sub-IDs for a user without a name", of(USERNS, ordinary(), nameless)),
        ];
        assert_recorded!("isolation", rows(cases));
    }

    #[test]
    fn refusals_of_the_kernel_are_as_recorded() {
        let denied = || Error::new("clone3", described("a process in namespaces"), Errno::PERM);
        let unknown = Error::new("clone3", described("a process in namespaces"), Errno::NOSYS);
        let maps = || Error::new("write", std::path::Path::new("/proc/4711/uid_map"), Errno::PERM);
        let proc = Error::new("fsmount", described("a file system of type proc"), Errno::PERM);
        let none = KernelSettings { max_user_namespaces: Some(0), ..KernelSettings::default() };
        let debian = KernelSettings { unprivileged_clone: Some(0), ..KernelSettings::default() };
        let ubuntu = KernelSettings { apparmor_restriction: Some(1), ..KernelSettings::default() };
        let container = KernelSettings { in_container: true, ..KernelSettings::default() };
        let cases = vec![
            ("user.max_user_namespaces=0", userns_refused(denied(), &none)),
            ("kernel.unprivileged_userns_clone=0", userns_refused(denied(), &debian)),
            ("no clone3", userns_refused(unknown, &container)),
            ("in a container", userns_refused(denied(), &container)),
            ("another reason", userns_refused(denied(), &KernelSettings::default())),
            ("ID maps, kernel.apparmor_restrict_unprivileged_userns=1", maps_refused(maps(), &ubuntu)),
            ("ID maps, another reason", maps_refused(maps(), &KernelSettings::default())),
            ("a masked /proc", proc_refused(proc)),
        ];
        assert_recorded!("isolation-kernel", rows(cases));
    }
}
