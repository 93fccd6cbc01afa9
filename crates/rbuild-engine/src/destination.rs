//! Writes to destinations that the caller has opened.

use std::fs::File;

use rbuild_linux::Destination;

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;

/// Returns the file of a destination, positioned at its beginning and emptied where possible.
pub(crate) fn begin(dest: &Destination) -> Result<&File> {
    dest.begin().map_err(BuildError::kernel(ErrorContext::Output(&dest.path())))
}
