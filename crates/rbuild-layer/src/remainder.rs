//! Metadata of a tree that its layer does not contain.
//!
//! A layer has times of whole seconds and no root directory. Layer and remainder together reproduce
//! the packed tree exactly, as far as commands can see. A tree with sockets or devices, or with
//! attributes that a layer cannot contain, has no remainder.

use rbuild_image::DiffId;
use rbuild_linux::{Timestamp, UidGid};

/// Metadata of a tree beyond its layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remainder {
    /// Owner of the root directory.
    pub root_owner: UidGid,
    /// Mode of the root directory.
    pub root_mode: u32,
    /// Modification time of the root directory.
    pub root_mtime: Timestamp,
    /// Highest user and group ID of the root directory and the layer's entries.
    pub highest_ids: UidGid,
    /// Nanoseconds of the modification times of the layer's entries, in their order.
    pub nanoseconds: Vec<u32>,
}

/// Details of a layer's entry from which a remainder is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryDetails {
    pub uid: u64,
    pub gid: u64,
    /// Nanoseconds of the modification time.
    pub nanoseconds: u32,
}

rbuild_image::id_type! {
    /// Checksum of a file's content.
    key Checksum;
}

const MAGIC: &[u8] = b"rbuild-remainder 2\n";
/// Length of a digest in bytes.
const DIGEST: usize = 32;
/// Length of the fields before the nanoseconds in bytes: three numbers, seconds, nanoseconds, two
/// numbers.
const FIELDS: usize = 3 * 4 + 8 + 4 + 2 * 4;

impl Remainder {
    /// Serializes the remainder of the layer with that diffID for a file next to the tree: a line
    /// of text, the SHA-256 of the rest, the diffID, and the fields in little-endian byte order.
    pub fn to_bytes(&self, diff_id: &DiffId) -> Vec<u8> {
        let mut rest = Vec::with_capacity(DIGEST + FIELDS + 4 * self.nanoseconds.len());
        rest.extend_from_slice(diff_id.bytes());
        let UidGid { uid, gid } = self.root_owner;
        [uid, gid, self.root_mode].iter().for_each(|number| rest.extend_from_slice(&number.to_le_bytes()));
        rest.extend_from_slice(&self.root_mtime.sec.to_le_bytes());
        rest.extend_from_slice(&self.root_mtime.nsec.to_le_bytes());
        let UidGid { uid, gid } = self.highest_ids;
        [uid, gid].iter().for_each(|id| rest.extend_from_slice(&id.to_le_bytes()));
        self.nanoseconds.iter().for_each(|nsec| rest.extend_from_slice(&nsec.to_le_bytes()));
        [MAGIC, Checksum::of(&rest).bytes(), &rest].concat()
    }

    /// Parses the output of [`Remainder::to_bytes`]. Returns `None` if it is damaged, in another
    /// format, or of another layer.
    pub fn from_bytes(bytes: &[u8], diff_id: &DiffId) -> Option<Remainder> {
        let (checksum, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGEST)?;
        let (of, rest_of_fields) = rest.split_at_checked(DIGEST)?;
        if checksum != Checksum::of(rest).bytes() || of != diff_id.bytes() {
            return None;
        }
        let (fields, nanoseconds) = rest_of_fields.split_at_checked(FIELDS)?;
        let number = |at: usize| Some(u32::from_le_bytes(fields.get(at..at + 4)?.try_into().ok()?));
        let sec = i64::from_le_bytes(fields.get(12..20)?.try_into().ok()?);
        Some(Remainder {
            root_owner: UidGid { uid: number(0)?, gid: number(4)? },
            root_mode: number(8)?,
            root_mtime: Timestamp { sec, nsec: number(20)? },
            highest_ids: UidGid { uid: number(24)?, gid: number(28)? },
            nanoseconds: nanoseconds.as_chunks::<4>().0.iter().map(|nsec| u32::from_le_bytes(*nsec)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_that_are_damaged_or_of_another_layer_are_ignored() {
        let remainder = Remainder {
            root_owner: UidGid::new(1, u32::MAX - 1),
            root_mode: 0o1777,
            root_mtime: Timestamp { sec: -7, nsec: 999_999_999 },
            highest_ids: UidGid::new(u32::MAX - 1, 70_000),
            nanoseconds: vec![0, 5, 999_999_999],
        };
        let layer = DiffId::of(b"layer");
        let bytes = remainder.to_bytes(&layer);
        assert_eq!(Remainder::from_bytes(&bytes, &layer), Some(remainder));
        assert_eq!(Remainder::from_bytes(&bytes, &DiffId::of(b"other")), None);
        for length in 0..bytes.len() {
            assert_eq!(Remainder::from_bytes(&bytes[..length], &layer), None, "{length}");
            let mut changed = bytes.clone();
            changed[length] ^= 1;
            assert_eq!(Remainder::from_bytes(&changed, &layer), None, "{length}");
        }
    }
}
