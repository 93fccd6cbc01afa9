//! Writing of destinations that the caller has opened.

use std::fs::File;
use std::io::{BufWriter, Write};

use rbuild_linux::{Destination, quoted};

use crate::destination_full::WriteError;
use crate::error::TransportError;

/// Size of the write buffer in bytes. It is smaller than the chunks in which blobs are read, so
/// that these bypass the buffer.
const BUFFER: usize = 128 << 10;

/// Writes a destination from its beginning. The caller, who opened it, publishes it. A full disk is
/// attributed to the destination.
///
/// # Errors
///
/// Fails if `fill` fails or the destination cannot be written.
pub fn write_destination<E: WriteError + From<TransportError>>(
    dest: &Destination,
    fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let shown = dest.path();
    let write = || {
        let file = dest.begin().map_err(TransportError::kernel(format!("the output {}", quoted(&shown))))?;
        let mut out = BufWriter::with_capacity(BUFFER, file);
        fill(&mut out)?;
        Ok(out.flush().map_err(TransportError::io(format!("writing the output {}", quoted(&shown))))?)
    };
    write().map_err(|e: E| e.writing_to(&shown))
}
