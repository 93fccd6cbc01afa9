//! The devices of a container.

use std::path::{Path, PathBuf};

/// Device nodes that every container has, with their numbers.
pub(crate) const DEVICES: [(&str, (u32, u32)); 6] =
    [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

/// The directory of devices, and the links in it that every container has.
const DIRECTORY: &str = "/dev";
const LINKS: [&str; 6] = ["fd", "stdin", "stdout", "stderr", "core", "ptmx"];

/// Returns the directory of devices, or the entry that every container has in it, if `path` is that
/// or is below that entry.
pub(crate) fn device_entry(path: &Path) -> Option<PathBuf> {
    let inside = path.strip_prefix(DIRECTORY).ok()?;
    let Some(name) = inside.components().next() else { return Some(DIRECTORY.into()) };
    let mut names = DEVICES.iter().map(|(name, _)| *name).chain(LINKS);
    names.any(|known| name.as_os_str() == known).then(|| Path::new(DIRECTORY).join(name))
}
