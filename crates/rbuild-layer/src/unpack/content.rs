//! Writes the content of archive files, preserving holes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rbuild_linux::quoted;

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};
use crate::reader::TarReader;

/// Appends the content of a file to `to`.
pub(super) fn read_content<R: Read>(entry: &TarEntry, tar: &mut TarReader<R>, to: &mut Vec<u8>) -> Result<()> {
    let start = to.len();
    to.resize(start + entry.size as usize, 0);
    match fill(tar, &mut to[start..]) {
        Ok(_) => Ok(()),
        Err(e) => {
            to.truncate(start);
            Err(e)
        }
    }
}

/// Writes the content of a file. The file gets holes where the archive has them, and in place of
/// long runs of zeros.
pub(super) fn write_content<R: Read>(
    file: &File,
    path: &Path,
    entry: &TarEntry,
    tar: &mut TarReader<R>,
    buffer: &mut [u8],
) -> Result<()> {
    let failed = |e| LayerError::io(format!("writing {}", quoted(path)))(e);
    let whole = [(0, entry.size)];
    let (regions, size) = match &entry.sparse {
        Some((regions, size)) => (&regions[..], *size),
        None => (&whole[..], entry.size),
    };
    let mut end = 0;
    for (offset, length) in regions {
        let mut at = *offset;
        let mut left = *length;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = fill(tar, &mut buffer[..want])?;
            for (start, run) in data_runs(&buffer[..n]) {
                let offset = at + start as u64;
                file.write_all_at(run, offset).map_err(failed)?;
                end = offset + run.len() as u64;
            }
            at += n as u64;
            left -= n as u64;
        }
    }
    if end < size {
        file.set_len(size).map_err(failed)?;
    }
    Ok(())
}

/// Minimum length in bytes of a run of zeros that becomes a hole.
const HOLE: usize = 64 * 1024;

/// Returns the runs that contain data, with their offsets.
fn data_runs(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    const ZEROS: [u8; 256] = [0; 256];
    let is_hole = |block: &[u8]| block.len() == HOLE && block.chunks(ZEROS.len()).all(|c| c == ZEROS);
    let mut runs: Vec<(usize, &[u8])> = Vec::new();
    for (i, block) in bytes.chunks(HOLE).enumerate() {
        let start = i * HOLE;
        match runs.last_mut() {
            _ if is_hole(block) => {}
            Some((first, run)) if *first + run.len() == start => *run = &bytes[*first..start + block.len()],
            _ => runs.push((start, block)),
        }
    }
    runs
}

fn fill<R: Read>(tar: &mut TarReader<R>, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match tar.read_content(&mut buffer[filled..])? {
            0 => return Err(LayerError::Truncated(tar.content_name())),
            n => filled += n,
        }
    }
    Ok(filled)
}
