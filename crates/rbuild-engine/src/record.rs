//! The record of a build: its log, the tails of step logs, and the journal of events.

pub(crate) mod build_log;
pub(crate) mod journal;
pub(crate) mod log_tail;
