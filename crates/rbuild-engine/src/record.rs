//! Records of a build: its log, the last lines of step output, and the journal of events.

pub(crate) mod build_log;
pub(crate) mod escapes;
pub(crate) mod journal;
pub(crate) mod log_tail;
