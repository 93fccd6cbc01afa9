//! The runner: the process that sets up one command, by libcontainer or by chroot.

pub(crate) mod chroot;
pub(crate) mod container;
pub(crate) mod devices;
pub(crate) mod exec;
pub(crate) mod library_log;
pub(crate) mod mount_checks;
pub(crate) mod mount_points;
pub(crate) mod mounts;
pub(crate) mod privileges;
pub(crate) mod runner_context;
pub(crate) mod terminal;
pub(crate) mod working_directory;
pub(crate) mod zygote;
