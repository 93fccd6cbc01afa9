//! Machines and users for tests.

use caps::CapsHashSet;
use rbuild_linux::UidGid;

use crate::namespace::machine::{CallingProcess, ProgramState, SubIdFacts, SubIdProgram};

/// An ordinary user without capabilities.
pub(crate) fn ordinary() -> CallingProcess {
    CallingProcess {
        has_proc: true,
        ids: UidGid::new(1000, 1000),
        capabilities: CapsHashSet::new(),
        uid_map: "0 0 4294967295\n".into(),
        gid_map: "0 0 4294967295\n".into(),
    }
}

/// Root of the machine.
pub(crate) fn root() -> CallingProcess {
    CallingProcess { ids: UidGid::ROOT, capabilities: caps::all(), ..ordinary() }
}

/// A user that can use sub-IDs.
pub(crate) fn usable() -> SubIdFacts {
    SubIdFacts {
        user: Some("web".into()),
        programs: ["newuidmap", "newgidmap"].map(|name| SubIdProgram { name, state: ProgramState::Usable }),
        no_new_privileges: false,
        subuid: "web:100000:65536\n".into(),
        subgid: "web:100000:65536\n".into(),
    }
}
