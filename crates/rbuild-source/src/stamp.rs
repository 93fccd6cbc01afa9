//! File stamps: stat(2) metadata that identify the content of a file.

use std::hash::Hasher;

use rbuild_linux::Stat;

/// Device, inode, size, modification time and change time of a file. While they are unchanged, so
/// are its content, mode and attributes (within the granularity of the file system's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; Stamp::LEN]);

impl Stamp {
    pub(crate) const LEN: usize = 48;

    /// Returns the stamp of a file. Numbers are big-endian, so that stamps sort by device and
    /// inode.
    pub fn of(stat: &Stat) -> Stamp {
        let mut out = [0; Stamp::LEN];
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
        Stamp(out)
    }

    pub(crate) fn bytes(&self) -> &[u8; Stamp::LEN] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Stamp> {
        Some(Stamp(bytes.try_into().ok()?))
    }

    /// Returns a hash of size and times, for order-independent sums over files. Inode numbers are
    /// not included: some file systems assign new ones at every lookup. The hash detects concurrent
    /// changes, but is not collision resistant.
    pub fn sum(&self) -> u64 {
        const SIZE: usize = 16;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&self.0[SIZE..]);
        hasher.finish()
    }
}
