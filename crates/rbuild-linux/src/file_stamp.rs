//! File stamps: stat(2) metadata that identify the content of a file.

use std::hash::Hasher;

use crate::meta::Stat;

/// Device, inode, size, modification time and change time of a file. While they are unchanged, so
/// are its content, mode and attributes (within the granularity of the file system's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp([u8; FileStamp::LEN]);

impl FileStamp {
    /// Length in bytes.
    pub const LEN: usize = 48;
    /// Position of the size, after device and inode.
    const SIZE: usize = 16;

    /// Returns the stamp of a file. Numbers are big-endian, so that stamps sort by device and
    /// inode.
    pub fn of(stat: &Stat) -> FileStamp {
        let mut out = [0; FileStamp::LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&stat.dev.0.to_be_bytes());
        put(&stat.dev.1.to_be_bytes());
        put(&stat.ino.to_be_bytes());
        put(&stat.size.to_be_bytes());
        for time in [stat.mtime, stat.ctime] {
            put(&time.sec.to_be_bytes());
            put(&time.nsec.to_be_bytes());
        }
        FileStamp(out)
    }

    /// Returns the stored form.
    pub fn bytes(&self) -> &[u8; FileStamp::LEN] {
        &self.0
    }

    /// Reads the stored form; `None` if the length differs.
    pub fn from_bytes(bytes: &[u8]) -> Option<FileStamp> {
        Some(FileStamp(bytes.try_into().ok()?))
    }

    /// Returns the size and the times. Some file systems assign a new inode number at every lookup;
    /// removing or replacing a file changes its change time anyway.
    fn version(&self) -> &[u8] {
        &self.0[FileStamp::SIZE..]
    }

    /// Returns true if a file that was found at the same path is unchanged: size and times are the
    /// same.
    pub fn is_unchanged(&self, now: &FileStamp) -> bool {
        self.version() == now.version()
    }

    /// Returns a hash of size and times, for order-independent sums over files. It detects
    /// concurrent changes, but is not collision resistant.
    pub fn sum(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(self.version());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{Timestamp, file_stat};

    #[test]
    fn stamps_change_with_size_and_times_only() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let was = file_stat(&file).unwrap();
        let later = |t: Timestamp| Timestamp { nsec: t.nsec ^ 1, ..t };
        let table = [
            (was, true, true),
            (Stat { ino: was.ino + 1, ..was }, true, false),
            (Stat { dev: (was.dev.0, was.dev.1 + 1), ..was }, true, false),
            (Stat { size: was.size + 1, ..was }, false, false),
            (Stat { mtime: later(was.mtime), ..was }, false, false),
            (Stat { ctime: later(was.ctime), ..was }, false, false),
        ];
        let stamp = FileStamp::of(&was);
        for (now, unchanged, same) in table {
            let now = FileStamp::of(&now);
            assert_eq!((stamp.is_unchanged(&now), stamp == now), (unchanged, same), "{now:?}");
            assert_eq!(stamp.sum() == now.sum(), unchanged, "{now:?}");
        }
        assert_eq!(FileStamp::from_bytes(stamp.bytes()), Some(stamp));
        assert_eq!(FileStamp::from_bytes(&[0; 47]), None);
    }
}
