//! Privileges of containers: `--cap-add`, `--cap-drop`, `--privileged`, `--security-opt` and
//! `--read-only`.

use rbuild_plan::{Capabilities, UnknownCapability};
use rbuild_store::SecuritySettings;

use crate::args::ContainerFlags;
use crate::exit::Failure;
use crate::ui::hints::{self, ValueRemedy};

/// Returns the settings that the flags select.
///
/// # Errors
///
/// Fails if a capability or an option is unknown or not supported.
pub fn settings(flags: &ContainerFlags) -> Result<SecuritySettings, Failure> {
    let mut no_new_privileges = false;
    for option in &flags.security_opt {
        if let Some(value) = security_option(option)? {
            no_new_privileges = value;
        }
    }
    // As in docker, a privileged command keeps those that are to be dropped.
    let capabilities = if flags.privileged {
        Capabilities::ALL
    } else {
        Capabilities::changed(&flags.cap_add, &flags.cap_drop).map_err(unknown)?
    };
    Ok(SecuritySettings { privileged: flags.privileged, capabilities, no_new_privileges, read_only: flags.read_only })
}

fn unknown(UnknownCapability(name): UnknownCapability) -> Failure {
    let failure = Failure::usage(format!("`{name}` is not a capability"));
    let upper = name.to_ascii_uppercase();
    let known = Capabilities::all_names();
    match rbuild_dockerfile::closest(upper.strip_prefix("CAP_").unwrap_or(&upper), known.iter().copied()) {
        Some(close) => failure.help(hints::did_you_mean(close)),
        None => failure.help(ValueRemedy::CapabilityForm),
    }
}

/// Parses an option. Returns the value of `no-new-privileges`; `None` for an option that states how
/// every container is: without labels of SELinux and profiles of AppArmor.
fn security_option(option: &str) -> Result<Option<bool>, Failure> {
    let bad = |problem: &str| Failure::usage(format!("--security-opt {option}: {problem}"));
    let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => Ok(Some(true)),
        ("no-new-privileges", "false") => Ok(Some(false)),
        ("label", _) | ("apparmor", "unconfined") => Ok(None),
        ("apparmor", _) => Err(bad("profiles of AppArmor are not supported")
            .help(hints::use_one_of(&["apparmor=unconfined", "no-new-privileges"]))),
        ("seccomp" | "systempaths", "unconfined") => {
            Err(bad("system calls and paths of the kernel are not opened one by one").help(ValueRemedy::Privileged))
        }
        ("seccomp", _) => Err(bad("the filter of system calls is fixed").help(ValueRemedy::Privileged)),
        _ => Err(bad("unknown option").help(hints::suggestion(name, &["no-new-privileges"]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options_are_answered_as_recorded() {
        for (option, expected) in [
            ("no-new-privileges", Some(true)),
            ("no-new-privileges:true", Some(true)),
            ("no-new-privileges=false", Some(false)),
            ("label=disable", None),
            ("label:type:x", None),
            ("apparmor=unconfined", None),
        ] {
            assert_eq!(security_option(option).unwrap(), expected, "{option}");
        }
        let options = ["apparmor=docker-default", "seccomp=unconfined", "seccomp=p.json", "no-new-privilege", "x"];
        let refused = options.map(|option| security_option(option).unwrap_err().text());
        let names = ["sys_admn", "CAP_X"].map(|name| unknown(UnknownCapability(name.into())).text());
        rbuild_testkit::assert_recorded!("security", refused.concat() + &names.concat());
    }
}
