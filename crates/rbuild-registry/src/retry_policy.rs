//! Timeouts and retry counts.

use std::time::Duration;

/// Times and numbers of attempts.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Time for a connection.
    pub connect: Duration,
    /// Time without a byte, also for the first one.
    pub idle: Duration,
    /// Time for an operation that transfers no blob, with all its redirects and repetitions.
    pub whole: Duration,
    /// Wait before the second attempt; doubled each time.
    pub first_wait: Duration,
    /// Number of attempts without progress.
    pub tries: u32,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        let seconds = Duration::from_secs;
        RetryPolicy { connect: seconds(30), idle: seconds(60), whole: seconds(300), first_wait: seconds(1), tries: 5 }
    }
}
