//! Writing of destinations that the caller has opened.

use std::fs::File;
use std::io::BufWriter;

use rbuild_linux::Destination;
use rbuild_transport::write_destination;

use crate::error::{BuildError, Result};

/// Writes a destination from its beginning. The caller, who opened it, publishes it.
pub(crate) fn write(dest: &Destination, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    write_destination(dest, fill).map_err(|e: BuildError| e.writing_to(&dest.path()))
}

/// Returns the file of a destination, positioned at its beginning and emptied where possible.
pub(crate) fn begin(dest: &Destination) -> Result<&File> {
    dest.begin().map_err(BuildError::kernel(format!("the output {}", dest.path().display())))
}
