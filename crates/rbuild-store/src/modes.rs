//! Modes of what is the store's own and not an image's: the caller's umask decides.

use rbuild_linux::process::by_umask;

pub(crate) fn file() -> u32 {
    by_umask(0o666)
}

pub(crate) fn dir() -> u32 {
    by_umask(0o777)
}

/// Who may open a file may lock it (flock(2)), and have all builds wait: nobody beyond the group.
pub(crate) fn lock() -> u32 {
    by_umask(0o660)
}

/// For what commands print, and for secrets.
pub(crate) fn private_file() -> u32 {
    by_umask(0o600)
}

pub(crate) fn private_dir() -> u32 {
    by_umask(0o700)
}
