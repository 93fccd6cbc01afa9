//! Separates files from their hard links outside a tree.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use rbuild_linux::{FileKind, Result, RootDir, Stat, walk};

use crate::trees::copies::merge::copy_tree_entry;

/// Gives each entry of `tree` that has hard links outside of it a new inode, so that the
/// tree cannot be changed through those. Links within the tree are preserved. The tree must not be
/// modified concurrently.
///
/// # Errors
///
/// Fails if an entry cannot be copied or linked.
pub fn cut_links(tree: &RootDir) -> Result<()> {
    for LinkedInode { stat, names } in linked_entries(tree)? {
        if names.len() as u64 == u64::from(stat.nlink) {
            continue;
        }
        let (first_dir, first) = tree.parent(&names[0])?;
        let own = free_name(&first_dir)?;
        preserving_mtime(&first_dir, || {
            copy_tree_entry(&first_dir, &first, &stat, &first_dir, &own)?;
            first_dir.rename(&own, &first_dir, &first)
        })?;
        for other in &names[1..] {
            let (dir, name) = tree.parent(other)?;
            preserving_mtime(&dir, || {
                dir.remove_file(&name)?;
                dir.hard_link(&first_dir, &first, &name)
            })?;
        }
    }
    Ok(())
}

/// An inode with several links, and those of its paths that are in the tree.
struct LinkedInode {
    stat: Stat,
    names: Vec<PathBuf>,
}

fn linked_entries(tree: &RootDir) -> Result<Vec<LinkedInode>> {
    let mut linked: HashMap<_, LinkedInode> = HashMap::new();
    walk(tree, |_, path, name, stat| {
        if stat.kind != FileKind::Dir && stat.nlink > 1 {
            let inode = linked.entry(stat.inode());
            inode.or_insert_with(|| LinkedInode { stat: *stat, names: Vec::new() }).names.push(path.join(name));
        }
        Ok(())
    })?;
    Ok(linked.into_values().collect())
}

fn free_name(dir: &RootDir) -> Result<OsString> {
    let mut serial = 0;
    loop {
        let name = OsString::from(format!(".own-{serial}"));
        if !dir.exists(&name)? {
            return Ok(name);
        }
        serial += 1;
    }
}

/// Runs `work` and restores the modification time of the directory.
fn preserving_mtime(dir: &RootDir, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let mtime = dir.stat_self()?.mtime;
    work()?;
    dir.set_own_mtime(mtime)
}
