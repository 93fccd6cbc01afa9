//! The duration of several requests together.

use std::time::{Duration, Instant};

use crate::reply_fault::ReplyFault;

/// The duration of several requests together, with their repetitions and the waits between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimit {
    start: Instant,
    time: Duration,
}

impl TimeLimit {
    /// Returns a limit that begins now.
    pub(crate) fn from_now(time: Duration) -> TimeLimit {
        TimeLimit { start: Instant::now(), time }
    }

    /// Returns the rest of the time; `None` if it is over.
    pub(crate) fn left(self) -> Option<Duration> {
        self.time.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero())
    }

    /// Returns the fault of a server that took longer.
    pub(crate) fn exceeded(self) -> ReplyFault<'static> {
        ReplyFault::Late { seconds: self.time.as_secs() }
    }
}
