//! Users and groups of the calling process.

use crate::error::{Error, Result, described};
use crate::meta::UidGid;

/// Returns the effective IDs of this process.
pub fn own_ids() -> UidGid {
    UidGid { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

/// Switches to user and group 0 of the calling process's user namespace, without supplementary
/// groups.
pub fn become_root() -> Result<()> {
    let fail = |call, e: nix::errno::Errno| Error::new(call, described("user and group 0"), std::io::Error::from(e));
    match nix::unistd::setgroups(&[]) {
        // The supplementary groups cannot be changed in this case.
        Err(nix::errno::Errno::EPERM) if setgroups_denied() => {}
        other => other.map_err(|e| fail("setgroups", e))?,
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("setresgid", e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("setresuid", e))
}

/// Switches permanently to that user: groups first, then IDs.
pub fn become_user(user: UidGid, groups: &[u32]) -> Result<()> {
    let UidGid { uid, gid } = user;
    let fail = |call, e: nix::errno::Errno| {
        Error::new(call, described(format!("user {uid} and group {gid}")), std::io::Error::from(e))
    };
    let groups: Vec<nix::unistd::Gid> = groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    match nix::unistd::setgroups(&groups) {
        Err(nix::errno::Errno::EPERM) if setgroups_denied() => {}
        other => other.map_err(|e| fail("setgroups", e))?,
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("setresgid", e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("setresuid", e))
}

/// Returns true if this namespace or one of its ancestors has permanently disabled setgroups(2)
/// (user_namespaces(7)).
pub fn setgroups_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|s| s.trim() == "deny")
}

/// Returns the user's name from /etc/passwd. Name services are not queried: they would load code at
/// run time, and the helpers that read subuid(5) files accept numbers as well.
pub fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_string())
    })
}
