//! Containers of images outside of builds: in the foreground, detached, and commands inside those
//! that run already.

pub(crate) mod arriving;
pub(crate) mod changes;
pub(crate) mod detached;
pub(crate) mod inside;
mod network_files;
pub(crate) mod run;
