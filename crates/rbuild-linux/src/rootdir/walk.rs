//! Visits of all entries below a directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::meta::{FileKind, Stat};
use crate::rootdir::dir::RootDir;
use crate::rootdir::dir_stack::DirStack;

/// Calls `each` for every entry below a directory, directories before their contents, with the
/// directory that contains it, the path of that directory, and its name.
///
/// # Errors
///
/// Fails if an entry cannot be read, or if `each` fails.
pub fn walk(root: &RootDir, mut each: impl FnMut(&RootDir, &Path, &OsStr, &Stat) -> Result<()>) -> Result<()> {
    let mut dirs = DirStack::new(root.try_clone()?);
    let mut levels = vec![root.entries()?];
    let mut path = PathBuf::new();
    while let Some(entries) = levels.last_mut() {
        let Some(entry) = entries.pop() else {
            levels.pop();
            path.pop();
            dirs.leave()?;
            continue;
        };
        let dir = dirs.last();
        let stat = dir.stat_name(&entry.name)?;
        each(dir, &path, &entry.name, &stat)?;
        if stat.kind == FileKind::Dir {
            levels.push(dirs.enter(&entry.name)?.entries()?);
            path.push(&entry.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn every_entry_is_visited_with_its_path() {
        let scratch = Scratch::new();
        std::fs::create_dir_all(scratch.join("a/b")).unwrap();
        std::fs::create_dir(scratch.join("c")).unwrap();
        for path in ["a/b/f", "a/g", "c/h"] {
            std::fs::write(scratch.join(path), "").unwrap();
        }
        let mut found = Vec::new();
        let root = RootDir::open(&scratch).unwrap();
        let visit = |dir: &RootDir, path: &Path, name: &OsStr, _: &Stat| {
            assert!(dir.exists(name)?);
            found.push(path.join(name).to_str().unwrap().to_string());
            Ok(())
        };
        walk(&root, visit).unwrap();
        let at = |path: &str| found.iter().position(|found| found == path).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/f") && at("c") < at("c/h"), "{found:?}");
        found.sort();
        assert_eq!(found, ["a", "a/b", "a/b/f", "a/g", "c", "c/h"]);
    }
}
