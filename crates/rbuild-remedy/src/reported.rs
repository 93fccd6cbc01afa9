//! Errors that another process reports.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Remedy;

/// An error that another process reported. Its causes remain there; what decides about the error
/// and its hint is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedError {
    /// The message, followed by those of the causes, as one sentence.
    pub message: String,
    /// The error number of the kernel, if the kernel refused an operation.
    pub errno: Option<i32>,
    /// The remedy, if there is one.
    pub remedy: Option<Remedy>,
}

impl ReportedError {
    /// Returns an error without an error number and a remedy.
    pub fn new(message: impl Into<String>) -> ReportedError {
        ReportedError { message: message.into(), errno: None, remedy: None }
    }
}

impl fmt::Display for ReportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ReportedError {}
