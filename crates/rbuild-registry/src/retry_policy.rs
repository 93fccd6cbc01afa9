//! Timeouts and retry counts.

use std::time::Duration;

/// Timeouts and number of attempts.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Timeout of connecting.
    pub connect: Duration,
    /// Maximum time without progress of a transfer, including the time until the first byte.
    pub idle: Duration,
    /// Timeout of an operation that transfers no blob, including its redirects and retries.
    pub whole: Duration,
    /// Wait before the second attempt; doubled each time.
    pub first_wait: Duration,
    /// Maximum number of attempts without progress.
    pub tries: u32,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        let seconds = Duration::from_secs;
        RetryPolicy { connect: seconds(30), idle: seconds(60), whole: seconds(300), first_wait: seconds(1), tries: 5 }
    }
}

/// The repetition of requests that fail temporarily.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryMode {
    /// As the [`RetryPolicy`] says.
    #[default]
    Standard,
    /// Once more at most, at once, and not if content is damaged: for content that the caller can
    /// do without.
    Quick,
}
