//! Writing of destinations that the caller has opened.

use std::fs::File;
use std::io::{BufWriter, Write};

use rbuild_linux::Destination;

use crate::error::{BuildError, Result};

/// Size of the write buffer in bytes. It is smaller than the chunks in which blobs are read, so
/// that these bypass the buffer.
const GATHERED: usize = 128 << 10;

/// Writes a destination from its beginning. The caller, who opened it, publishes it.
pub(crate) fn write(dest: &Destination, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let shown = dest.path();
    let mut out = BufWriter::with_capacity(GATHERED, begin(dest)?);
    let filled = fill(&mut out)
        .and_then(|()| out.flush().map_err(BuildError::io(format!("writing the output {}", shown.display()))));
    filled.map_err(|e| e.writing_to(&shown))
}

/// Returns the file of a destination, positioned at its beginning and emptied where possible.
pub(crate) fn begin(dest: &Destination) -> Result<&File> {
    dest.begin().map_err(BuildError::kernel(format!("the output {}", dest.path().display())))
}
