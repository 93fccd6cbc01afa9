//! Detects that owners or attributes of the store's files were lost, because it was copied by a
//! program that does not preserve them, or because its sub-IDs are mapped to other users than
//! before.

use std::ffi::{OsStr, OsString};
use std::io::Write;

use rbuild_linux::{FileKind, OwnerMode, RootDir, UidGid, random_bytes};

use crate::error::{Result, StoreError};
use crate::modes;

const DIR: &str = "owners";
/// Owner of the sentinel files, which differs from the user who copies a store.
const SENTINEL_OWNER: UidGid = UidGid::new(1, 1);
const ATTRIBUTE: &str = "user.rbuild.witness";
/// Content of a sentinel that has an owner only.
const OWNERS: &[u8] = b"owners\n";
/// Content of a sentinel that has an owner and an extended attribute.
const OWNERS_AND_ATTRIBUTES: &[u8] = b"owners and attributes\n";

/// Checks the sentinel files in the store's directory for that representation of owners, creating
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
            return Err(StoreError::LostMetadata(lost));
        }
    }
    Ok(())
}

/// Removes the sentinel files, after all content that they stand for was removed.
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
        let content = if keeps { OWNERS_AND_ATTRIBUTES } else { OWNERS };
        file.write_all(content).map_err(|e| dir.error("write", name, e))?;
    }
    match dir.chown(&temp, SENTINEL_OWNER) {
        Ok(()) => Ok(dir.rename(&temp, dir, name)?),
        // Without other users, no owner can be lost.
        Err(_) => Ok(dir.remove_file(&temp)?),
    }
}

/// Returns the name of the property that a sentinel has lost.
fn lost(dir: &RootDir, name: &OsStr) -> Result<Option<&'static str>> {
    let stat = dir.stat_name(name)?;
    if stat.owner() != SENTINEL_OWNER {
        return Ok(Some(if stat.kind == FileKind::Symlink { "owners of links" } else { "owners" }));
    }
    if stat.kind != FileKind::File || dir.read(name, 64)? != OWNERS_AND_ATTRIBUTES {
        return Ok(None);
    }
    let there = dir.xattrs(name)?.contains_key(OsStr::new(ATTRIBUTE));
    Ok((!there).then_some("extended attributes"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rbuild_linux::OwnerRecords;
    use rbuild_testkit::{Scratch, assert_recorded, message_row};

    use super::*;

    /// Each row has the sentinel that is changed, and the change.
    #[test]
    fn lost_properties_are_worded_as_recorded() {
        type Change<'a> = &'a dyn Fn(&RootDir, &OsStr);
        let copied_file: Change<'_> = &|dir, name| {
            dir.remove_file(name).unwrap();
            dir.create_file(name, 0o600).unwrap().write_all(OWNERS_AND_ATTRIBUTES).unwrap();
        };
        let copied_link: Change<'_> = &|dir, name| {
            dir.remove_file(name).unwrap();
            dir.create_symlink(OsStr::new("nowhere"), name).unwrap();
        };
        let no_attribute: Change<'_> = &|dir, name| dir.remove_xattr(name, OsStr::new(ATTRIBUTE)).unwrap();
        let rows = [("recorded", copied_file), ("recorded-link", copied_link), ("recorded", no_attribute)];
        let rows = rows.into_iter().map(|(name, change)| {
            let place = Scratch::new();
            let root = RootDir::open(&place).unwrap().with_owners(&OwnerRecords::with_new_key(OwnerMode::Recorded));
            check(&root, OwnerMode::Recorded).unwrap();
            check(&root, OwnerMode::Recorded).unwrap();
            change(&root.sub(Path::new(DIR)).unwrap(), OsStr::new(name));
            let e = check(&root, OwnerMode::Recorded).unwrap_err();
            message_row(name, &e, e.remedy())
        });
        assert_recorded!("sentinels", rows.collect::<String>());
    }
}
