//! Errors of this crate.

use std::fmt;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Kernel(#[from] rbuild_linux::Error),
    #[error("the runner process failed: {0}")]
    Runner(String),
    /// One of rbuild's own processes was killed in the middle of its work.
    #[error("{0} was killed")]
    Killed(&'static str),
    /// The command's output could not be delivered.
    #[error("the command's output could not be written: {0}")]
    Output(std::io::Error),
}

/// The reason why this machine cannot isolate, and the command that changes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    pub reason: String,
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

pub(crate) fn refusal(reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), remedy: remedy.into() }
}

/// Formats an error as a sentence of a runner.
pub(crate) fn text(e: impl fmt::Display) -> String {
    e.to_string()
}
