//! The digest of one file: its attributes, its size and its bytes.
//!
//! It serves cache keys only and is never seen outside, so it need not be the SHA-256 of images: BLAKE3 is several times as
//! fast, and large files are read and hashed in pieces by several threads.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blake3::Hasher;
use rbuild_image::Digest;
use rbuild_layer::keep_in_layer;
use rbuild_linux::{RootDir, Stat, file_xattrs};

use crate::select::SourceError;

/// Bytes of a file that are hashed in one go; part of the definition of the digest of larger files.
const PIECE: u64 = 4 << 20;
/// Bytes that are read at a time.
const READ: u64 = 256 << 10;
const MOST_THREADS: usize = 8;

/// The digest of the child `name` of `dir`, which had these metadata; `path` is for errors.
pub(crate) fn file_digest(dir: &RootDir, name: &OsStr, path: &Path, stat: &Stat) -> Result<Digest, SourceError> {
    let file = dir.open_name(name)?;
    let mut hasher = Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (attr, value) in file_xattrs(&file)?.iter().filter(|(attr, _)| keep_in_layer(attr)) {
        field(attr.as_bytes());
        field(value);
    }
    hasher.update(&stat.size.to_le_bytes());
    let reading = Reading { file: &file, path, size: stat.size };
    if stat.size <= PIECE {
        reading.piece(0, &mut hasher)?;
    } else {
        for digest in reading.pieces()? {
            hasher.update(&digest);
        }
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

struct Reading<'a> {
    file: &'a File,
    path: &'a Path,
    /// In bytes, as it has to be.
    size: u64,
}

impl Reading<'_> {
    /// The digests of all pieces, in order.
    fn pieces(&self) -> Result<Vec<[u8; 32]>, SourceError> {
        let count = self.size.div_ceil(PIECE) as usize;
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            let mut done = Vec::new();
            while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < count) {
                let mut hasher = Hasher::new();
                if let Err(e) = self.piece(i, &mut hasher) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    next.store(count, Ordering::Relaxed);
                }
                done.push((i, hasher.finalize().into()));
            }
            done
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS).min(count);
        let mut digests: Vec<(usize, [u8; 32])> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut all = work();
            for other in others {
                all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            all
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => {
                digests.sort_unstable();
                Ok(digests.into_iter().map(|(_, digest)| digest).collect())
            }
        }
    }

    /// Reads one piece; the last one has to end where the file does.
    fn piece(&self, number: usize, hasher: &mut Hasher) -> Result<(), SourceError> {
        let mut at = number as u64 * PIECE;
        let end = self.size.min(at + PIECE);
        // One byte more than there should be: a file that fills it has grown, and one that does not is at its end.
        let probe = u64::from(end == self.size);
        let mut buffer = vec![0; (end - at + probe).min(READ) as usize];
        loop {
            let want = (end - at + probe).min(READ) as usize;
            let n = match self.file.read_at(&mut buffer[..want], at) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| rbuild_linux::Error::new("read", self.path, e))?,
            };
            let left = (end - at).checked_sub(n as u64).ok_or_else(|| self.changed())?;
            hasher.update(&buffer[..n]);
            at += n as u64;
            match (n, left) {
                (_, 0) if n < want || probe == 0 => return Ok(()),
                (0, _) => return Err(self.changed()),
                _ => {}
            }
        }
    }

    fn changed(&self) -> SourceError {
        SourceError::Changed(self.path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte counts, wherever it is, and nothing else does.
    #[test]
    fn a_digest_tells_each_byte_of_files_of_every_size() {
        let dir = std::env::temp_dir().join(format!("rbuild-file-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let root = RootDir::open(&dir).unwrap();
        let name = OsStr::new("f");
        let digest = |size: u64| {
            let stat = Stat { size, ..root.stat_name(name).unwrap() };
            file_digest(&root, name, Path::new("f"), &stat)
        };
        let piece = PIECE as usize;
        let mut seen = std::collections::HashSet::new();
        for size in [0, 1, 1000, piece - 1, piece, piece + 1, 2 * piece, 3 * piece + 5] {
            let mut bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            for at in [None, Some(0), Some(size / 2), Some(piece), Some(size.wrapping_sub(1))] {
                if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
                    *byte = byte.wrapping_add(1);
                } else if at.is_some() {
                    continue;
                }
                std::fs::write(dir.join("f"), &bytes).unwrap();
                let got = digest(size as u64).unwrap();
                assert_eq!(got, digest(size as u64).unwrap());
                assert!(seen.insert(got), "{size} {at:?} is like another");
            }
            for wrong in [size as u64 + 1, (size as u64).wrapping_sub(1)] {
                assert!(wrong == u64::MAX || matches!(digest(wrong), Err(SourceError::Changed(_))), "{size} {wrong}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
