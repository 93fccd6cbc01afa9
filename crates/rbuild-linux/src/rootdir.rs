//! Path resolution inside a root file system.
//!
//! A [`RootDir`] is a directory that serves as `/`. Every path given to it is resolved by the
//! kernel with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS` (openat2(2), Linux 5.6): absolute symbolic
//! links and `..` stop at this root and never escape it, whatever other processes change
//! concurrently. Operations never follow a link in the last component unless their name contains
//! `follow`. Operations that take a name instead of a path accept exactly one component, as the
//! kernel resolves it without regard to the root.

mod dir;
mod dir_stack;
mod long;
mod metadata;
mod removal;
mod walk;

pub(crate) use dir::stat_fd;
pub use dir::{DirEntry, RootDir};
pub use dir_stack::{DirStack, MAX_DEPTH};
pub use long::MAX_SYMLINKS;
pub(crate) use metadata::timestamps;
pub use walk::walk;

#[cfg(test)]
mod tests;
