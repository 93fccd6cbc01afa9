//! Replacement of a file with logins, by one process at a time.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config_error::{ConfigError, FileAction};
use crate::credentials::members::JsonMembers;

/// Maximum time to wait for another process that changes the file.
const LIMIT: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);
/// Maximum number of links to follow.
const MAX_LINKS: usize = 40;

/// An exclusive lock on a credentials file.
pub(super) struct FileLock {
    /// The file itself, with all links resolved.
    path: PathBuf,
    /// Path of the file that is locked.
    beside: PathBuf,
    _lock: File,
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Processes that wait for the lock notice that the file is gone, and create another one.
        let _ = std::fs::remove_file(&self.beside);
    }
}

impl FileLock {
    /// Acquires the lock, waiting for other processes. It is on a file next to the credentials
    /// file, which itself is replaced. The holder removes the file in the end.
    pub(super) fn take(path: &Path) -> Result<FileLock, ConfigError> {
        let path = follow_links(path).map_err(ConfigError::file(FileAction::Read, path))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(ConfigError::file(FileAction::Write, &path))?;
        let beside = dir.join(format!(".{}.lock", name_of(&path)));
        let open = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&beside);
            file.map_err(ConfigError::file(FileAction::Write, &beside))
        };
        let mut lock = open()?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &beside) => return Ok(FileLock { path, beside, _lock: lock }),
                Ok(()) => lock = open()?,
                Err(TryLockError::WouldBlock) if start.elapsed() < LIMIT => std::thread::sleep(TICK),
                Err(TryLockError::WouldBlock) => {
                    return Err(ConfigError::Locked { path: beside, seconds: LIMIT.as_secs() });
                }
                Err(TryLockError::Error(e)) => return Err(ConfigError::file(FileAction::Lock, &beside)(e)),
            }
        }
    }

    /// Replaces the file. Its owner, group and mode are kept, but a file that other users could
    /// access gets mode 600.
    pub(super) fn replace(&self, document: &JsonMembers) -> Result<(), ConfigError> {
        let text = document.text(0) + "\n";
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let temporary = dir.join(format!(".{}.{}.tmp", name_of(&self.path), std::process::id()));
        let replaced = new_file(&temporary).and_then(|mut file| {
            if let Some(old) = present(&self.path)? {
                keep_owner(&file, &old)?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        });
        if replaced.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        replaced.map_err(ConfigError::file(FileAction::Write, &self.path))
    }
}

/// Returns true if the path leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let inode = |found: &Metadata| (found.dev(), found.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(file), Ok(found)) => inode(&file) == inode(&found),
        _ => false,
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Follows links, for example to a file under version control. The file may not exist yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let target = std::fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new(".")).join(target);
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

fn present(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn keep_owner(file: &File, old: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    // A file that others could read was not created for logins.
    let mut mode = if old.mode() & 0o007 == 0 { old.mode() & 0o770 | 0o600 } else { 0o600 };
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        match std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid())) {
            Ok(()) => {}
            // An ordinary user cannot give files to groups of others.
            Err(_) if own.uid() == old.uid() => mode &= 0o700,
            Err(_) => return Err(other_owner(old.uid())),
        }
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

fn other_owner(uid: u32) -> io::Error {
    io::Error::other(format!("the file belongs to user {uid}; its owner cannot be preserved"))
}

fn new_file(path: &Path) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_user_is_reported_as_recorded() {
        rbuild_testkit::assert_recorded!("other-owner", other_owner(1000).to_string());
    }
}
