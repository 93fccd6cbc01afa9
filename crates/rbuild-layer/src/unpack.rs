//! Unpacks a layer or an archive into a directory.
//!
//! The directory acts as the root: the kernel resolves every path, and every target of a hard link,
//! inside it. Modes and times of directories are set at the end, deepest first, so that read-only
//! directories can be filled.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, Hasher};
use rbuild_linux::RootDir;

use crate::bounded::Bounded;
use crate::compress::Compression;
use crate::entry::TarEntry;
use crate::error::{LayerError, Result};
use crate::read_ahead::with_read_ahead;
use crate::reader::TarReader;

mod content;
mod finish;
mod metadata;
mod options;
mod target;

pub use options::{CancelCheck, Owners, Unpacked, Unpacking, Whiteouts};
use target::UnpackTarget;

/// Unpacks a tar archive of any compression into `root`.
///
/// After an error the directory contains part of the archive. Unpack into a private directory, and
/// publish it after comparing the digests.
///
/// # Errors
///
/// Fails if the archive cannot be read, is damaged or exceeds a limit, if an entry cannot be
/// created, or if unpacking is canceled.
pub fn unpack(source: impl Read + Send, root: &RootDir, options: Unpacking<'_>) -> Result<Unpacked> {
    unpack_some(source, root, options, &mut |_| true)
}

/// Unpacks only the entries for which `wants` returns true. The stream is still read and hashed to
/// its end.
///
/// # Errors
///
/// Fails as [`unpack`] does.
pub fn unpack_some(
    source: impl Read + Send,
    root: &RootDir,
    options: Unpacking<'_>,
    wants: &mut dyn FnMut(&TarEntry) -> bool,
) -> Result<Unpacked> {
    let mut raw = Tee { moved: options.moved, ..Tee::new(source, options.known.is_none()) };
    let decoder =
        Bounded::new(&mut raw, options.limits).map_err(LayerError::decompressing("the start of the archive"))?;
    // An uncompressed archive has one digest for both.
    let plain = decoder.compression() == Compression::None;
    let (_, result, diff_id) = with_read_ahead(decoder, !plain, |stream| {
        let mut tee = Tee::new(StoppableReader { stream, stop: options.stop }, false);
        let mut target = UnpackTarget::new(root, options)?;
        let mut reader = TarReader::with_header_limit(&mut tee, options.limits.header);
        let mut nanoseconds = options.nanoseconds.unwrap_or_default().iter();
        while let Some(mut entry) = reader.next_entry()? {
            entry.mtime.nsec = nanoseconds.next().copied().unwrap_or(entry.mtime.nsec);
            if wants(&entry) {
                target.apply(&entry, &mut reader).map_err(|e| e.of_entry(&entry))?;
            }
        }
        reader.drain(options.limits.tail(target.bytes))?;
        let entries = target.entries;
        let lower_refs = target.finish()?;
        Ok::<_, LayerError>((tee.count, entries, lower_refs))
    });
    let (unpacked, entries, lower_refs) = result?;
    // The digest also covers bytes that follow the end of the compressed stream.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(LayerError::decompressing("the end of the archive"))?;
    let digest: BlobDigest = options.known.unwrap_or_else(|| raw.hasher.unwrap_or_default().finish());
    Ok(Unpacked {
        digest,
        size: raw.count,
        diff_id: diff_id.unwrap_or(digest.of_plain_layer()),
        unpacked,
        entries,
        lower_refs,
    })
}

/// Counts the bytes read, also in a shared counter if there is one, and hashes them on request.
struct Tee<'a, R> {
    stream: R,
    hasher: Option<Hasher>,
    count: u64,
    moved: Option<&'a AtomicU64>,
}

impl<R> Tee<'_, R> {
    fn new(stream: R, hashes: bool) -> Self {
        Tee { stream, hasher: hashes.then(Hasher::new), count: 0, moved: None }
    }
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stream.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.count += n as u64;
        if let Some(moved) = self.moved {
            moved.fetch_add(n as u64, Ordering::Relaxed);
        }
        Ok(n)
    }
}

/// Fails reads once unpacking is canceled.
struct StoppableReader<'a, R> {
    stream: R,
    stop: CancelCheck<'a>,
}

impl<R: Read> Read for StoppableReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if (self.stop)() {
            return Err(std::io::Error::other(LayerError::Canceled));
        }
        self.stream.read(buf)
    }
}

#[cfg(test)]
mod tests;
