//! Modes of the store's own files, which follow the caller's umask.

use rbuild_linux::umask::by_umask;

/// Mode of ordinary files.
pub(crate) fn file() -> u32 {
    by_umask(0o666)
}

/// Mode of directories.
pub(crate) fn dir() -> u32 {
    by_umask(0o777)
}

/// Mode of lock files. A process that can open a file can lock it (flock(2)) and block all builds,
/// so access is limited to the group.
pub(crate) fn lock() -> u32 {
    by_umask(0o660)
}

/// Mode of files with the output of commands, or with secrets.
pub(crate) fn private_file() -> u32 {
    by_umask(0o600)
}

/// Mode of directories with such files.
pub(crate) fn private_dir() -> u32 {
    by_umask(0o700)
}
