//! Detects that owners or attributes of the store's files were lost, because it was copied by a
//! program that does not preserve them, or because its sub-IDs are mapped to other users than
//! before.

use std::ffi::{OsStr, OsString};
use std::io::Write;

use rbuild_linux::{FileKind, OwnerMode, RootDir, UidGid, random_bytes};

use crate::error::{Result, StoreError};
use crate::modes;

const DIR: &str = "owners";
/// Owner of the witness files, which differs from the user who copies a store.
const SOMEBODY: UidGid = UidGid::new(1, 1);
const ATTRIBUTE: &str = "user.rbuild.witness";
/// Content of a witness that has an owner only.
const OWNERS: &[u8] = b"owners\n";
/// Content of a witness that has an owner and an extended attribute.
const OWNERS_AND_ATTRIBUTES: &[u8] = b"owners and attributes\n";

/// Checks the witness files in the store's directory for that representation of owners, creating
/// them if necessary.
pub(crate) fn check(root: &RootDir, owners: OwnerMode) -> Result<()> {
    let dir = root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
    if owners == OwnerMode::Recorded && root.writes_access_times() {
        return Err(StoreError::AccessTimes);
    }
    let names: &[(&str, FileKind)] = match owners {
        OwnerMode::Given => &[("given", FileKind::File)],
        OwnerMode::Recorded => &[("recorded", FileKind::File), ("recorded-link", FileKind::Symlink)],
    };
    for (name, kind) in names {
        let name = OsStr::new(name);
        if !dir.exists(name)? {
            make(&dir, name, *kind)?;
        } else if let Some(lost) = lost(&dir, name)? {
            return Err(StoreError::Stripped(lost));
        }
    }
    Ok(())
}

/// Removes the witness files, after all content they vouch for was removed.
pub(crate) fn remove(root: &RootDir) -> Result<()> {
    Ok(root.remove_all(OsStr::new(DIR))?)
}

fn make(dir: &RootDir, name: &OsStr, kind: FileKind) -> Result<()> {
    let random: [u8; 8] = random_bytes()?;
    let temp = OsString::from(format!(".{:016x}", u64::from_le_bytes(random)));
    if kind == FileKind::Symlink {
        dir.create_symlink(OsStr::new("nowhere"), &temp)?;
    } else {
        let mut file = dir.create_file(&temp, modes::file())?;
        let keeps = dir.set_xattr(&temp, OsStr::new(ATTRIBUTE), b"y").is_ok();
        let says = if keeps { OWNERS_AND_ATTRIBUTES } else { OWNERS };
        file.write_all(says).map_err(|e| dir.error("write", name, e))?;
    }
    match dir.chown(&temp, SOMEBODY) {
        Ok(()) => Ok(dir.rename(&temp, dir, name)?),
        // Without other users, no owner can be lost.
        Err(_) => Ok(dir.remove_file(&temp)?),
    }
}

/// Returns the name of the property that a witness has lost.
fn lost(dir: &RootDir, name: &OsStr) -> Result<Option<&'static str>> {
    let stat = dir.stat_name(name)?;
    if stat.owner() != SOMEBODY {
        return Ok(Some(if stat.kind == FileKind::Symlink { "owners of links" } else { "owners" }));
    }
    if stat.kind != FileKind::File || dir.read(name, 64)? != OWNERS_AND_ATTRIBUTES {
        return Ok(None);
    }
    let there = dir.xattrs(name)?.contains_key(OsStr::new(ATTRIBUTE));
    Ok((!there).then_some("extended attributes"))
}
