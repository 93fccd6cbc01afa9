//! Directories that a step creates on the way to its destination.

use std::path::PathBuf;

use rbuild_linux::{Result, RootDir, UidGid};

/// Set-group-ID bit of a mode.
const SETGID: u32 = 0o2000;

/// Gives new directories, parents first, the bit and the group of a parent directory with the
/// set-group-ID bit, as mkdir(2) does. An owner that was set explicitly is kept.
pub(crate) fn inherit_group(root: &RootDir, made: &[PathBuf], owner: Option<UidGid>) -> Result<()> {
    for path in made {
        let (dir, name) = root.parent(path)?;
        let above = dir.stat_self()?;
        if above.mode & SETGID == 0 {
            continue;
        }
        let new = dir.stat_name(&name)?;
        if owner.is_none() {
            dir.chown(&name, UidGid::new(new.owner().uid, above.owner().gid))?;
        }
        dir.chmod(&name, new.mode | SETGID)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn new_directories_inherit_the_set_group_id_bit() {
        let dir = rbuild_testkit::Scratch::new();
        let root = RootDir::open(&dir).unwrap();
        for (parent, mode, want) in [("plain", 0o755, 0o700), ("shared", 0o2755, 0o2700)] {
            std::fs::create_dir(dir.join(parent)).unwrap();
            std::fs::set_permissions(dir.join(parent), Permissions::from_mode(mode)).unwrap();
            let mut made = Vec::new();
            let path = format!("{parent}/a/b");
            root.create_dir_all(&path, 0o700, None, |p| made.push(p.to_path_buf())).unwrap();
            inherit_group(&root, &made, None).unwrap();
            for path in [path.as_str(), &format!("{parent}/a")] {
                let new = std::fs::metadata(dir.join(path)).unwrap();
                let above = std::fs::metadata(dir.join(parent)).unwrap();
                assert_eq!((new.mode() & 0o7777, new.gid()), (want, above.gid()), "{path}");
            }
        }
    }
}
