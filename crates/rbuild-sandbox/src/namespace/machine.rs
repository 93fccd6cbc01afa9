//! Facts about this machine and the calling process that decide which isolation modes are possible.
//! This module only reads them; `isolation` chooses the mode.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, CapsHashSet};
use nix::sys::statvfs::{FsFlags, statvfs};
use rbuild_linux::{UidGid, credentials};

const SET_UID: u32 = 0o4000;

/// The calling process.
#[derive(Debug, Clone)]
pub(crate) struct CallingProcess {
    /// True if /proc is mounted.
    pub has_proc: bool,
    /// Effective user and group ID.
    pub ids: UidGid,
    /// Effective capabilities.
    pub capabilities: CapsHashSet,
    /// Text of /proc/self/uid_map.
    pub uid_map: String,
    /// Text of /proc/self/gid_map.
    pub gid_map: String,
}

/// The means by which an ordinary user maps sub-IDs.
#[derive(Debug, Clone)]
pub(crate) struct SubIdFacts {
    /// Name of the user, if it has one.
    pub user: Option<String>,
    /// newuidmap and newgidmap.
    pub programs: [SubIdProgram; 2],
    /// True if no_new_privs is set, which everything that this process starts inherits.
    pub no_new_privileges: bool,
    /// Text of /etc/subuid.
    pub subuid: String,
    /// Text of /etc/subgid.
    pub subgid: String,
}

/// One of newuidmap and newgidmap.
#[derive(Debug, Clone)]
pub(crate) struct SubIdProgram {
    /// Name of the program.
    pub name: &'static str,
    /// Ability to gain privileges.
    pub state: ProgramState,
}

/// The ability of a program to gain privileges when it is started.
#[derive(Debug, Clone)]
pub(crate) enum ProgramState {
    /// Not in PATH.
    Missing,
    /// On a file system that is mounted with nosuid.
    NoSetUid(PathBuf),
    /// Neither set-uid root nor with capabilities.
    Unprivileged(PathBuf),
    /// Privileged, or of unknown privileges: the actual attempt decides.
    Usable,
}

/// The settings of the kernel, and the surroundings, that can forbid user namespaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelSettings {
    /// `user.max_user_namespaces`
    pub max_user_namespaces: Option<i64>,
    /// `kernel.unprivileged_userns_clone`, of Debian's kernels.
    pub unprivileged_clone: Option<i64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu's kernels.
    pub apparmor_restriction: Option<i64>,
    /// True in a container of Docker or Podman.
    pub in_container: bool,
}

impl CallingProcess {
    /// Reads the facts about the calling process.
    pub fn read() -> CallingProcess {
        CallingProcess {
            has_proc: Path::new("/proc/self/task").exists(),
            ids: credentials::own_ids(),
            capabilities: caps::read(None, CapSet::Effective).unwrap_or_default(),
            uid_map: read("/proc/self/uid_map"),
            gid_map: read("/proc/self/gid_map"),
        }
    }
}

impl SubIdFacts {
    /// Reads the facts about the user with that ID.
    pub fn read(uid: u32) -> SubIdFacts {
        SubIdFacts {
            user: credentials::user_name(uid),
            programs: ["newuidmap", "newgidmap"].map(|name| {
                let state = in_path(name).map_or(ProgramState::Missing, ProgramState::read);
                SubIdProgram { name, state }
            }),
            no_new_privileges: rustix::thread::no_new_privs().unwrap_or(false),
            subuid: read("/etc/subuid"),
            subgid: read("/etc/subgid"),
        }
    }
}

impl ProgramState {
    fn read(path: PathBuf) -> ProgramState {
        if statvfs(&path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID)) {
            return ProgramState::NoSetUid(path);
        }
        let set_uid = std::fs::metadata(&path).map_or(true, |meta| meta.uid() == 0 && meta.mode() & SET_UID != 0);
        let able =
            || File::open(&path).is_ok_and(|file| rbuild_linux::file_xattr(&file, "security.capability").is_some());
        if set_uid || able() { ProgramState::Usable } else { ProgramState::Unprivileged(path) }
    }
}

impl KernelSettings {
    /// Reads the settings of this machine.
    pub fn read() -> KernelSettings {
        let setting = |name: &str| read(&format!("/proc/sys/{name}")).trim().parse().ok();
        KernelSettings {
            max_user_namespaces: setting("user/max_user_namespaces"),
            unprivileged_clone: setting("kernel/unprivileged_userns_clone"),
            apparmor_restriction: setting("kernel/apparmor_restrict_unprivileged_userns"),
            in_container: Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists(),
        }
    }
}

/// Returns the release of the running kernel.
pub(crate) fn kernel_release() -> String {
    read("/proc/sys/kernel/osrelease").trim().to_string()
}

/// Finds a program in the directories of PATH.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Returns the text of a file, empty if it cannot be read.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
pub mod samples_for_tests;
