//! Commands on images outside of builds: import, copy out, compare.

pub(crate) mod copy_out;
pub(crate) mod diff;
pub(crate) mod import;
