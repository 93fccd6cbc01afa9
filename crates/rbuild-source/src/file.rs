//! The hash of one file: extended attributes, size and content.
//!
//! The hash is only used in cache keys, so it does not have to be a SHA-256: BLAKE3 is several
//! times as fast. Large files are split into chunks that several threads read and hash.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blake3::Hasher;
use rbuild_layer::keep_in_layer;
use rbuild_linux::parallel::{MAX_FILE_THREADS, cores, try_map};
use rbuild_linux::{RootDir, Stat};

use crate::ids::ContentHash;
use crate::select::SourceError;

/// Chunk size in bytes. Changing it changes the digests of files larger than one chunk.
const CHUNK: u64 = 4 << 20;
/// Buffer size in bytes.
const READ: u64 = 256 << 10;

/// Returns the hash of the child `name` of `dir`. `stat` is its expected metadata; `path` is used
/// in errors. Fails with [`SourceError::Changed`] if the size differs.
pub(crate) fn file_hash(dir: &RootDir, name: &OsStr, path: &Path, stat: &Stat) -> Result<ContentHash, SourceError> {
    // `stat` is that of a regular file, so an error without an errno means that the file was
    // replaced by one of another kind.
    let is_other = |e: &rbuild_linux::Error| e.errno().is_none();
    let file = dir
        .open_name(name)
        .map_err(|e| if is_other(&e) { SourceError::Changed(path.to_path_buf()) } else { e.into() })?;
    let mut hasher = Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (attr, value) in dir.file_xattrs(&file)?.iter().filter(|(attr, _)| keep_in_layer(attr)) {
        field(attr.as_bytes());
        field(value);
    }
    hasher.update(&stat.size.to_le_bytes());
    let reading = Reading { file: &file, path, size: stat.size };
    if stat.size <= CHUNK {
        reading.chunk(0, &mut hasher)?;
    } else {
        for digest in reading.chunks()? {
            hasher.update(&digest);
        }
    }
    Ok(ContentHash::from(hasher.finalize()))
}

struct Reading<'a> {
    file: &'a File,
    path: &'a Path,
    /// Expected size in bytes.
    size: u64,
}

impl Reading<'_> {
    /// Returns the digests of all chunks, in order.
    fn chunks(&self) -> Result<Vec<[u8; 32]>, SourceError> {
        let numbers: Vec<u64> = (0..self.size.div_ceil(CHUNK)).collect();
        try_map(cores().min(MAX_FILE_THREADS), &numbers, |number| {
            let mut hasher = Hasher::new();
            self.chunk(*number, &mut hasher)?;
            Ok(hasher.finalize().into())
        })
    }

    /// Hashes one chunk. The last chunk must end at the end of the file.
    fn chunk(&self, number: u64, hasher: &mut Hasher) -> Result<(), SourceError> {
        let mut at = number * CHUNK;
        let end = self.size.min(at + CHUNK);
        // Request one byte more than expected: if it can be read, the file has grown.
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
    use rbuild_testkit::Scratch;

    use super::*;

    /// Checks that a change of any byte changes the digest, at all sizes around the chunk size.
    #[test]
    fn every_byte_changes_the_digest() {
        let dir = Scratch::new();
        let root = RootDir::open(&dir).unwrap();
        let name = OsStr::new("f");
        let digest = |size: u64| {
            let stat = Stat { size, ..root.stat_name(name).unwrap() };
            file_hash(&root, name, Path::new("f"), &stat)
        };
        let chunk = CHUNK as usize;
        let mut seen = std::collections::HashSet::new();
        for size in [0, 1, 1000, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 5] {
            let mut bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            for at in [None, Some(0), Some(size / 2), Some(chunk), Some(size.wrapping_sub(1))] {
                if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
                    *byte = byte.wrapping_add(1);
                } else if at.is_some() {
                    continue;
                }
                std::fs::write(dir.join("f"), &bytes).unwrap();
                let got = digest(size as u64).unwrap();
                assert_eq!(got, digest(size as u64).unwrap());
                assert!(seen.insert(got), "{size} {at:?} collides");
            }
            for wrong in [size as u64 + 1, (size as u64).wrapping_sub(1)] {
                assert!(wrong == u64::MAX || matches!(digest(wrong), Err(SourceError::Changed(_))), "{size} {wrong}");
            }
        }
    }
}
