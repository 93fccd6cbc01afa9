//! The directories and files at the top of a store, by which it is recognized.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_linux::{RootDir, is_unpublished};

use crate::error::{Result, StoreError};

/// Lock file with one byte for each step and each cache mount.
pub(crate) const STEPS: &str = "steps.lock";

/// File of the key that names the attribute of recorded owners.
pub(crate) const OWNER_KEY: &str = "owners.key";

/// Directories that each store has, parents first.
pub(crate) const DIRS: [&str; 9] =
    ["blobs", "blobs/sha256", "trees", "layers", "records", "results", "builds", "mounts", "tmp"];

/// Directories without documents that are created when they are needed.
const OTHER_DIRS: [&str; 4] = ["owners", "logs", "partial", "runs"];

/// Directories with files of images, commands and build contexts, in trees or in layers.
const FOREIGN_DIRS: [&str; 4] = ["blobs", "trees", "mounts", "tmp"];

/// Directories in which `Store::write`, `Store::write_durable` and the writers of notes create
/// files.
pub(crate) const DIRS_OF_DOCUMENTS: [&str; 13] = [
    ".",
    "records",
    "results",
    "builds",
    "layers",
    "accounts",
    "ledgers",
    "containers",
    "hashes",
    "pulled",
    "pushed",
    "downloads",
    "mount-ids",
];

/// Returns all directories of a store, parents first, including those that it may lack.
pub(crate) fn all_dirs() -> impl Iterator<Item = &'static str> {
    let optional = DIRS_OF_DOCUMENTS.into_iter().filter(|dir| *dir != "." && !DIRS.contains(dir));
    DIRS.into_iter().chain(optional).chain(OTHER_DIRS)
}

/// Fails if a directory that is not a store contains files. Allowed are those of a store that lost
/// its format and perhaps more, and those of one that was not created completely, whose first
/// directory is that of the blobs. An OCI layout has some of the same files: of a store,
/// `oci-layout` is written after the directories.
pub(crate) fn refuse_other_directory(root: &RootDir, path: &Path) -> Result<()> {
    // All conditions are of one moment: another process may be creating the store.
    let entries = root.entries()?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    let is_own = |name: &OsStr| {
        let files = ["index.json", "index.lock", "lock", "alone.lock", "secrets.key", "lost+found"];
        files.into_iter().chain(all_dirs()).any(|own| name == own) || is_unpublished(name)
    };
    let is_new = entries.iter().all(|entry| entry.name == "lost+found");
    match entries.iter().find(|entry| !is_own(&entry.name) && entry.name != "oci-layout") {
        _ if is_new || has(OWNER_KEY) || has(STEPS) => Ok(()),
        // Another process has just created the store.
        _ if has("format.json") => Ok(()),
        // Both names are usual ones: they count only if there is nothing else.
        None if has("trees") && has("records") => Ok(()),
        None if has(DIRS[0]) && !has("oci-layout") => Ok(()),
        _ if has("oci-layout") && has("index.json") => Err(StoreError::OciLayout(path.to_path_buf())),
        other => {
            let entry = other.or(entries.first()).map(|entry| entry.name.clone()).unwrap_or_default();
            Err(StoreError::OtherDirectory { path: path.to_path_buf(), entry })
        }
    }
}

/// Restricts the directories with foreign files to the store's owner. Otherwise any user could run
/// an image's set-user-ID program with the privileges of the store's owner. Earlier versions
/// created the directories without this protection.
pub(crate) fn restrict_directories(root: &RootDir) -> Result<()> {
    for dir in FOREIGN_DIRS {
        let dir = OsStr::new(dir);
        // `Gc::check` creates missing directories.
        if root.exists(dir)? && root.stat_name(dir)?.mode & 0o077 != 0 {
            // A directory that cannot be changed can still be read.
            let _ = root.chmod(dir, 0o700);
        }
    }
    Ok(())
}
