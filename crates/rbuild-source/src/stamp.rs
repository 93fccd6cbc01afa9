use std::hash::Hasher;

use rbuild_linux::Stat;

/// Device, inode, size, modification and change time of a file: while they stay, so do its bytes, its mode and its
/// attributes (within what the clock of the file system resolves).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; Stamp::LEN]);

impl Stamp {
    pub(crate) const LEN: usize = 48;

    /// Numbers are big-endian, so that stamps sort by device and inode as bytes.
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

    /// A number to add up: two looks at the same files give the same sum in any order. Of size and times alone, as some file
    /// systems number their files anew at every look. Against files that change meanwhile, not against somebody who wants it
    /// to be equal.
    pub fn sum(&self) -> u64 {
        const SIZE: usize = 16;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&self.0[SIZE..]);
        hasher.finish()
    }
}
