//! Capabilities of commands.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The names of all capabilities, without `CAP_`. The index is the number of the kernel
/// (capabilities(7)).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The word for all capabilities.
const ALL: &str = "ALL";

/// A set of capabilities. Bit N is the capability with the number N.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(u64);

/// A text that is not the name of a capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCapability(pub String);

impl Capabilities {
    /// Docker's default (moby profiles, 2026).
    pub const DOCKER: Capabilities = Capabilities(0xa804_25fb);

    /// All capabilities.
    pub const ALL: Capabilities = Capabilities((1 << NAMES.len()) - 1);

    /// Those that give a command no power over other processes of its user namespace: Docker's, and
    /// the administration of its network.
    const HARMLESS: Capabilities = Capabilities(Capabilities::DOCKER.0 | 1 << 11 | 1 << 12);

    /// Returns Docker's default with the changes of `--cap-add` and `--cap-drop`, as docker
    /// combines them.
    ///
    /// # Errors
    ///
    /// Fails with the first text that is neither the name of a capability, in any case and with or
    /// without `CAP_`, nor `ALL`.
    pub fn changed(add: &[String], drop: &[String]) -> Result<Capabilities, UnknownCapability> {
        let (added, adds_all) = parse(add)?;
        let (dropped, drops_all) = parse(drop)?;
        Ok(Capabilities(match (adds_all, drops_all) {
            (true, _) => Capabilities::ALL.0 & !dropped,
            (false, true) => added,
            (false, false) => Capabilities::DOCKER.0 & !dropped | added,
        }))
    }

    /// Returns the capabilities that are in both sets.
    pub fn intersection(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }

    /// Returns true if the set gives a command no power over other processes of its user namespace.
    pub fn is_harmless(self) -> bool {
        self.0 & !Capabilities::HARMLESS.0 == 0
    }

    /// Returns the names, without `CAP_`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(number, _)| self.0 & 1 << number != 0).map(|(_, name)| *name)
    }

    /// Returns the names of all capabilities, without `CAP_`.
    pub fn all_names() -> &'static [&'static str] {
        &NAMES
    }
}

/// Returns the bits of names, and true if `ALL` is among them.
fn parse(texts: &[String]) -> Result<(u64, bool), UnknownCapability> {
    let (mut bits, mut all) = (0, false);
    for text in texts {
        let name = text.to_ascii_uppercase();
        if name == ALL {
            all = true;
            continue;
        }
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let number = NAMES.iter().position(|known| *known == name);
        bits |= 1 << number.ok_or_else(|| UnknownCapability(text.clone()))?;
    }
    Ok((bits, all))
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_changed_as_by_docker() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let without_chown = Capabilities(Capabilities::DOCKER.0 & !1);
        for (add, drop, expected, is_harmless) in [
            ("", "", Capabilities::DOCKER, true),
            ("", "chown", without_chown, true),
            ("CAP_CHOWN", "CHOWN", Capabilities::DOCKER, true),
            ("cap_net_admin", "all", Capabilities(1 << 12), true),
            ("", "ALL", Capabilities(0), true),
            ("SYS_ADMIN", "ALL", Capabilities(1 << 21), false),
            ("ALL", "CHOWN", Capabilities(Capabilities::ALL.0 & !1), false),
            ("ALL", "ALL", Capabilities::ALL, false),
            ("SYS_PTRACE", "", Capabilities(Capabilities::DOCKER.0 | 1 << 19), false),
        ] {
            let changed = Capabilities::changed(&words(add), &words(drop)).unwrap();
            assert_eq!((changed, changed.is_harmless()), (expected, is_harmless), "+{add} -{drop}");
        }
        for wrong in ["", "CAP_", "CAP_ALL", "CHMOD", "CAP_CAP_CHOWN"] {
            let unknown = Err(UnknownCapability(wrong.into()));
            assert_eq!(Capabilities::changed(&[wrong.into()], &[]), unknown);
            assert_eq!(Capabilities::changed(&[], &[wrong.into()]), unknown);
        }
        let names: Vec<&str> = Capabilities(1 | 1 << 40).names().collect();
        assert_eq!(names, ["CHOWN", "CHECKPOINT_RESTORE"]);
        assert_eq!(Capabilities::ALL.names().count(), Capabilities::all_names().len());
    }
}
