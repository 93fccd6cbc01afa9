//! Records of a build: its log, and the last lines of step output.

pub(crate) mod build_log;
pub(crate) mod log_tail;
