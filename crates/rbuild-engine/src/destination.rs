//! Writing of destinations that the caller has opened.

use std::fs::File;

use rbuild_linux::Destination;

use crate::error::{BuildError, Result};

/// Returns the file of a destination, positioned at its beginning and emptied where possible.
pub(crate) fn begin(dest: &Destination) -> Result<&File> {
    dest.begin().map_err(BuildError::kernel(format!("the output {}", rbuild_linux::quoted(dest.path()))))
}
