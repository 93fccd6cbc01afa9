//! Checks of `doctor` that have no side effects: kernel, user, sub-IDs, settings.

use rbuild_linux::{IdMaps, USUAL_COUNT, UidGid};
use rbuild_remedy::{MachineRemedy, Remedy};

use crate::namespace::isolation::{IsolationRequest, RESTRICTIONS, choose, granting, name_or_id};
use crate::namespace::machine::{CallingProcess, KernelSettings, SubIdFacts, kernel_release};

/// One line of `rbuild doctor`.
#[derive(Debug, Clone)]
pub struct Check {
    /// Name of the checked property.
    pub name: &'static str,
    /// The finding.
    pub found: String,
    /// The remedy if something is missing.
    pub remedy: Option<Remedy>,
}

/// Runs the checks that have no side effects.
pub fn checks() -> Vec<Check> {
    let caller = CallingProcess::read();
    let sub_ids = SubIdFacts::read(caller.ids.uid);
    checks_of(kernel_release(), &caller, &sub_ids, &KernelSettings::read())
}

fn checks_of(kernel: String, caller: &CallingProcess, sub_ids: &SubIdFacts, settings: &KernelSettings) -> Vec<Check> {
    let uid = format!("uid {}", caller.ids.uid);
    let user = sub_ids.user.as_ref().map_or(uid.clone(), |user| format!("{user} ({uid})"));
    let mut list = vec![
        Check { name: "kernel", remedy: old_kernel(&kernel), found: kernel },
        Check { name: "user", found: user, remedy: None },
        ids(caller, sub_ids),
    ];
    for restriction in RESTRICTIONS {
        if let Some(value) = (restriction.value)(settings) {
            let remedy = (value == restriction.forbids).then(|| restriction.remedy());
            list.push(Check { name: restriction.name, found: value.to_string(), remedy });
        }
    }
    list
}

fn ids(caller: &CallingProcess, sub_ids: &SubIdFacts) -> Check {
    match choose(IsolationRequest::Userns, caller, || sub_ids.clone()) {
        Ok(isolation) => {
            let UidGid { uid, gid } = isolation.maps().map_or_else(UidGid::default, IdMaps::highest);
            let small = [uid, gid].map(|top| top < USUAL_COUNT - 1);
            let remedy = small.contains(&true).then(|| {
                let grant = granting(small, &name_or_id(caller, sub_ids), sub_ids);
                MachineRemedy::GrantMoreSubIds { count: USUAL_COUNT, grant }.into()
            });
            Check { name: "ids", found: format!("users up to {uid}, groups up to {gid}"), remedy }
        }
        Err(r) => Check { name: "ids", found: rbuild_remedy::sentence(&r), remedy: Some(r.remedy) },
    }
}

fn old_kernel(release: &str) -> Option<Remedy> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (parts.next()?, parts.next()?);
    (version < (5, 12)).then(|| MachineRemedy::UpgradeKernel.into())
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;
    use crate::namespace::machine::samples_for_tests::{ordinary, root, usable};

    #[test]
    fn checks_are_as_recorded() {
        let free = KernelSettings { max_user_namespaces: Some(15000), ..KernelSettings::default() };
        let strict = KernelSettings {
            max_user_namespaces: Some(0),
            unprivileged_clone: Some(0),
            apparmor_restriction: Some(1),
            in_container: false,
        };
        let few = SubIdFacts { subuid: "web:100000:1000\n".into(), ..usable() };
        let none = SubIdFacts { user: None, subuid: String::new(), ..usable() };
        let cases = [
            ("an ordinary user", "6.12.1-amd64", ordinary(), usable(), &free),
            ("root", "6.12.1-amd64", root(), SubIdFacts { user: Some("root".into()), ..usable() }, &free),
            ("few sub-IDs", "5.12.0", ordinary(), few, &free),
            ("a user without a name and sub-IDs, an old kernel", "5.11.22", ordinary(), none, &free),
            ("settings that forbid user namespaces", "6.8.0-45-generic", ordinary(), usable(), &strict),
        ];
        let mut table = String::new();
        for (label, kernel, caller, sub_ids, settings) in cases {
            table += &format!("=== {label}\n");
            for check in checks_of(kernel.into(), &caller, &sub_ids, settings) {
                table += &format!("{}: {}\n", check.name, check.found);
                table += &check.remedy.map_or(String::new(), |remedy| format!("  remedy: {remedy:?}\n"));
            }
        }
        assert_recorded!("checks", table);
    }
}
