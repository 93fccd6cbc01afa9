//! Disk usage of directories.

use std::collections::HashSet;
use std::ffi::OsStr;

use rbuild_linux::{FileKind, RootDir, Stat};

/// Returns the disk usage below a directory in bytes, counting each inode once and ignoring
/// unreadable entries.
pub(crate) fn tree_bytes(dir: &RootDir) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    each_below(dir, &mut |stat| {
        if stat.nlink < 2 || stat.kind == FileKind::Dir || seen.insert(stat.inode()) {
            bytes += stat.blocks * 512;
        }
    });
    bytes
}

/// Calls `look` for every entry below a directory, skipping unreadable ones.
pub(crate) fn each_below(dir: &RootDir, look: &mut dyn FnMut(&Stat)) {
    let mut stack = vec![dir.sub(OsStr::new("."))];
    while let Some(dir) = stack.pop() {
        let Ok(dir) = dir else { continue };
        for entry in dir.entries().unwrap_or_default() {
            let Ok(stat) = dir.stat_name(&entry.name) else { continue };
            look(&stat);
            if stat.kind == FileKind::Dir {
                stack.push(dir.sub(&entry.name));
            }
        }
    }
}
