//! The operations of a build (RUN, COPY, WORKDIR), and their mounts, users, keys and redaction.

pub(crate) mod container;
pub(crate) mod copy;
pub(crate) mod copy_error;
pub(crate) mod copy_file;
pub(crate) mod copy_step;
pub(crate) mod copy_warnings;
pub(crate) mod incremental_copy;
pub(crate) mod new_dirs;
pub(crate) mod redact;
pub(crate) mod run;
pub(crate) mod run_mounts;
pub(crate) mod selection;
pub(crate) mod shared_caches;
pub(crate) mod source_errors;
pub(crate) mod ssh_agent;
pub(crate) mod ssh_keys;
pub(crate) mod step_error;
pub(crate) mod users;
pub(crate) mod workdir;
