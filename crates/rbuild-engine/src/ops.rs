//! The operations of a build (RUN, COPY, WORKDIR), and their mounts, users and SSH agents.

pub(crate) mod container;
pub(crate) mod copy;
pub(crate) mod copy_error;
pub(crate) mod copy_file;
pub(crate) mod copy_step;
pub(crate) mod incremental_copy;
pub(crate) mod new_dirs;
pub(crate) mod run;
pub(crate) mod run_mounts;
pub(crate) mod shared_caches;
pub(crate) mod ssh_agent;
pub(crate) mod step_error;
pub(crate) mod users;
pub(crate) mod workdir;
