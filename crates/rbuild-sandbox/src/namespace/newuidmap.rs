//! Checks of newuidmap and newgidmap, the programs that grant sub-IDs, before they are run.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use rbuild_remedy::{MachineRemedy, SubIdObstacle};

use crate::error::{Refusal, refusal};

const SET_UID: u32 = 0o4000;

/// Fails with the reason if `newuidmap` and `newgidmap` cannot work for the named user.
pub(crate) fn usable(shown: &str) -> Result<(), Refusal> {
    for helper in ["newuidmap", "newgidmap"] {
        let Some(path) = in_path(helper) else {
            return Err(refusal(
                format!("{helper} is not installed, so user {shown} cannot use sub-IDs"),
                MachineRemedy::InstallSubIdHelpers,
            ));
        };
        privileged(&path)?;
    }
    // The flag is inherited by everything that this process starts.
    if rustix::thread::no_new_privs().unwrap_or(false) {
        return Err(refusal(
            "no_new_privs is set, so newuidmap cannot map sub-IDs",
            MachineRemedy::OrSingleId(SubIdObstacle::NoNewPrivileges),
        ));
    }
    Ok(())
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Checks that a program gains privileges when it is started. If that cannot be determined,
/// succeeds and leaves the answer to the actual attempt.
fn privileged(path: &Path) -> Result<(), Refusal> {
    let shown = path.display();
    if statvfs(path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID)) {
        return Err(refusal(
            format!("{shown} is on a file system mounted with nosuid, so it cannot map sub-IDs"),
            MachineRemedy::OrSingleId(SubIdObstacle::NoSetUid),
        ));
    }
    let set_uid = std::fs::metadata(path).map_or(true, |meta| meta.uid() == 0 && meta.mode() & SET_UID != 0);
    let able = || File::open(path).is_ok_and(|file| rbuild_linux::file_xattr(&file, "security.capability").is_some());
    if !set_uid && !able() {
        return Err(refusal(
            format!("{shown} is neither set-uid root nor has capabilities, so it cannot map sub-IDs"),
            MachineRemedy::RestoreSetUid { program: path.to_path_buf() },
        ));
    }
    Ok(())
}
