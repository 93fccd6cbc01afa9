//! Listing of the files of a copy, stored with its result. The next copy compares its sources with
//! the listing to report changes, and to write only the changed files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_linux::FileStamp;

use crate::ids::ContentHash;

const MAGIC: &[u8; 18] = b"rbuild-listing 3\n\0";
/// Bytes of an entry before its paths: lengths of both paths, mode, stamp, digest.
const FIXED: usize = 4 + 4 + 4 + FileStamp::LEN + 32;

/// The files, links and directories of one copy, by destination path. Copies of hundreds of
/// thousands of files are common, so the entries are kept in one buffer, in the format that is
/// stored.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    /// Offset of each entry, by the hash of its destination path. After a hash collision the
    /// earlier entry is not found and is treated as new.
    index: HashMap<u64, usize, BuildHasherDefault<PassThrough>>,
}

/// Hasher for keys that are hashes already.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Metadata of an entry's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedSource<'a> {
    /// Path relative to the root of the source.
    pub source: &'a Path,
    /// Mode as copied, with the file type in the bits of `S_IFMT`.
    pub mode: u32,
    /// Stamp of a regular file; `None` if the file may have been written since without a change to
    /// its stamp.
    pub stamp: Option<FileStamp>,
    /// Digest of the content and attributes of a file, or of the target of a link, if known.
    pub digest: Option<ContentHash>,
}

/// Differences between two copies, by source path. Each list is in the order of the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub changed: Vec<String>,
    pub new: Vec<String>,
    pub gone: Vec<String>,
}

impl Changes {
    /// Appends the changes of another copy.
    pub fn and(&mut self, more: Changes) {
        self.changed.extend(more.changed);
        self.new.extend(more.new);
        self.gone.extend(more.gone);
    }

    /// Returns true if there are no changes.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.new.is_empty() && self.gone.is_empty()
    }
}

impl Listing {
    /// Returns an empty listing with capacity for the entries of `other`.
    pub fn as_large_as(other: &Listing) -> Listing {
        let room = |size: usize| size + size / 16;
        let index = HashMap::with_capacity_and_hasher(room(other.index.len()), Default::default());
        Listing { bytes: Vec::with_capacity(room(other.bytes.len())), index }
    }

    /// Adds an entry for the destination `path`. An earlier entry for the same path is hidden.
    pub fn put(&mut self, path: &Path, entry: ListedSource<'_>) {
        let (path, source) = (path.as_os_str().as_bytes(), entry.source.as_os_str().as_bytes());
        self.index.insert(hash(path), self.bytes.len());
        let out = &mut self.bytes;
        out.extend_from_slice(&(path.len() as u32).to_le_bytes());
        out.extend_from_slice(&(source.len() as u32).to_le_bytes());
        out.extend_from_slice(&entry.mode.to_le_bytes());
        out.extend_from_slice(entry.stamp.as_ref().map_or(&[0; FileStamp::LEN][..], |stamp| stamp.bytes()));
        out.extend_from_slice(entry.digest.as_ref().map_or(&[0; 32][..], |digest| digest.bytes()));
        out.extend_from_slice(path);
        out.extend_from_slice(source);
    }

    /// Marks the entry at `path` as overwritten by something other than a source file: its stamp no
    /// longer applies.
    pub fn cover(&mut self, path: &Path) {
        let path = path.as_os_str().as_bytes();
        if let Some(at) = self.index.get(&hash(path))
            && let Some((there, ..)) = entry(&self.bytes, *at)
            && there == path
        {
            forget_stamp(&mut self.bytes, *at);
        }
    }

    /// Marks all entries at and below `dir` as overwritten, as [`Listing::cover`] does.
    pub fn cover_below(&mut self, dir: &Path) {
        let mut at = 0;
        while let Some((path, _, next)) = entry(&self.bytes, at) {
            if Path::new(OsStr::from_bytes(path)).starts_with(dir) {
                forget_stamp(&mut self.bytes, at);
            }
            at = next;
        }
    }

    /// Returns the entry at a destination path.
    pub fn get(&self, path: &Path) -> Option<ListedSource<'_>> {
        let path = path.as_os_str().as_bytes();
        let (there, entry, _) = entry(&self.bytes, *self.index.get(&hash(path))?)?;
        (there == path).then_some(entry)
    }

    /// Returns true if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Serializes the listing.
    pub fn to_bytes(&self) -> Vec<u8> {
        [MAGIC, &self.bytes[..]].concat()
    }

    /// Loads a listing from the output of [`Listing::to_bytes`]. Invalid input yields an empty
    /// listing.
    pub fn from_bytes(bytes: &[u8]) -> Listing {
        let Some(bytes) = bytes.strip_prefix(MAGIC) else { return Listing::default() };
        let mut index = HashMap::with_capacity_and_hasher(bytes.len() / (2 * FIXED), Default::default());
        let mut at = 0;
        while at < bytes.len() {
            let Some((path, _, next)) = entry(bytes, at) else { return Listing::default() };
            index.insert(hash(path), at);
            at = next;
        }
        Listing { bytes: bytes.to_vec(), index }
    }

    /// Iterates over paths and entries in the order in which they were added.
    fn iter(&self) -> impl Iterator<Item = (&[u8], ListedSource<'_>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                let (path, entry, next) = entry(&self.bytes, at)?;
                let hidden = self.index.get(&hash(path)) != Some(&at);
                at = next;
                if !hidden {
                    return Some((path, entry));
                }
            }
        })
    }

    /// Returns the differences from an earlier copy.
    pub fn changes_since(&self, earlier: &Listing) -> Changes {
        let mut changes = Changes::default();
        let name = |entry: &ListedSource<'_>| entry.source.to_string_lossy().into_owned();
        let mut found = 0;
        for (path, entry) in self.iter() {
            match earlier.get(Path::new(OsStr::from_bytes(path))) {
                None => changes.new.push(name(&entry)),
                Some(before) => {
                    found += 1;
                    if let Some(difference) = entry.difference(&before) {
                        changes.changed.push(format!("{}{difference}", name(&entry)));
                    }
                }
            }
        }
        if found < earlier.index.len() {
            let gone = earlier.iter().filter(|(path, _)| self.get(Path::new(OsStr::from_bytes(path))).is_none());
            changes.gone = gone.map(|(_, entry)| name(&entry)).collect();
        }
        changes
    }
}

impl ListedSource<'_> {
    /// Returns a description of the difference from `before`, empty for changed content. `None` if
    /// the entries are the same, except for times of directories.
    fn difference(&self, before: &ListedSource<'_>) -> Option<String> {
        const KIND: u32 = 0o170000;
        if self.mode & KIND != before.mode & KIND {
            return Some(" (file type changed)".into());
        }
        if self.mode != before.mode {
            return Some(format!(" (mode {:o} → {:o})", before.mode & !KIND, self.mode & !KIND));
        }
        let differs = match (&self.digest, &before.digest) {
            (Some(now), Some(then)) => now != then,
            _ => self.stamp.is_none() || self.stamp != before.stamp,
        };
        (differs && self.mode & KIND != 0o040000).then(String::new)
    }
}

fn hash(path: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(path);
    hasher.finish()
}

/// Offset of the stamp in an entry.
const STAMP: usize = 12;

fn forget_stamp(bytes: &mut [u8], at: usize) {
    bytes[at + STAMP..at + STAMP + FileStamp::LEN].fill(0);
}

/// Decodes the entry at offset `at`. Returns its path, the entry, and the offset of the next one;
/// `None` if it is truncated.
fn entry(bytes: &[u8], at: usize) -> Option<(&[u8], ListedSource<'_>, usize)> {
    let rest = bytes.get(at..)?;
    let number = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let (path_len, source_len) = (number(0)? as usize, number(4)? as usize);
    let stamp = FileStamp::from_bytes(rest.get(STAMP..STAMP + FileStamp::LEN)?)?;
    let digest: [u8; 32] = rest.get(STAMP + FileStamp::LEN..FIXED)?.try_into().ok()?;
    let path = rest.get(FIXED..FIXED + path_len)?;
    let end = FIXED + path_len + source_len;
    let source = rest.get(FIXED + path_len..end)?;
    let entry = ListedSource {
        source: Path::new(OsStr::from_bytes(source)),
        mode: number(8)?,
        stamp: (*stamp.bytes() != [0; FileStamp::LEN]).then_some(stamp),
        digest: (digest != [0; 32]).then(|| ContentHash::from_bytes(digest)),
    };
    Some((path, entry, at + end))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    fn listing(entries: &[(&str, &str, u32)]) -> Listing {
        let mut listing = Listing::default();
        for (source, text, mode) in entries {
            let digest = Some(ContentHash::of_link_target(text.as_bytes()));
            // A mode without a file type belongs to a regular file.
            let mode = if *mode > 0o7777 { *mode } else { 0o100000 | mode };
            let entry = ListedSource { source: Path::new(source), mode, stamp: None, digest };
            listing.put(&Path::new("app").join(source), entry);
        }
        listing
    }

    #[test]
    fn changes_are_listed_by_kind() {
        let same = [("a", "1", 0o644), ("dir", "", 0o040755)];
        let old = [("b", "2", 0o644), ("c", "3", 0o644), ("d", "4", 0o644), ("f", "6", 0o644)];
        let new = [("b", "x", 0o644), ("c", "3", 0o755), ("e", "5", 0o644), ("f", "6", 0o120777)];
        let [old, new] = [old, new].map(|entries| listing(&[&same[..], &entries].concat()));
        let Changes { changed, new: added, gone } = new.changes_since(&old);
        let rows = [("changed", changed), ("new", added), ("gone", gone)];
        assert_recorded!("changes", rows.map(|(kind, names)| format!("{kind}: {}\n", names.join(", "))).concat());
        assert_eq!(old.changes_since(&old), Changes::default());
    }

    #[test]
    fn listings_round_trip_and_invalid_bytes_yield_an_empty_one() {
        let whole = listing(&[("a", "1", 0o644), ("b/c", "2", 0o600)]);
        let bytes = whole.to_bytes();
        let again = Listing::from_bytes(&bytes);
        assert_eq!(again.iter().collect::<Vec<_>>(), whole.iter().collect::<Vec<_>>());
        assert_eq!(again.get(Path::new("app/b/c")).unwrap().source, Path::new("b/c"));
        for cut in 0..bytes.len() {
            assert!(Listing::from_bytes(&bytes[..cut]).iter().count() < 2, "{cut}");
        }
        assert!(Listing::from_bytes(b"junk").is_empty());
        let mut lying = bytes.clone();
        lying[18..22].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Listing::from_bytes(&lying).is_empty());
    }

    #[test]
    fn overwritten_entries_lose_their_stamp() {
        let stamp = FileStamp::from_bytes(&[7; FileStamp::LEN]);
        fn of(path: &str, stamp: Option<FileStamp>) -> ListedSource<'_> {
            let digest = Some(ContentHash::of_link_target(path.as_bytes()));
            ListedSource { source: Path::new(path), mode: 0o100644, stamp, digest }
        }
        // The operation, and the paths that still have a stamp after it.
        let all = ["d", "d/a", "d/b/c", "d-e", "f"];
        type Cover = fn(&mut Listing);
        let cases: [(Cover, &[&str]); 5] = [
            (|_| (), &all),
            (|l| l.cover(Path::new("d/a")), &["d", "d/b/c", "d-e", "f"]),
            (|l| l.cover(Path::new("none")), &all),
            (|l| l.cover_below(Path::new("d")), &["d-e", "f"]),
            (|l| l.cover_below(Path::new("")), &[]),
        ];
        for (number, (cover, kept)) in cases.iter().enumerate() {
            let mut listing = Listing::default();
            all.iter().for_each(|path| listing.put(Path::new(path), of(path, stamp)));
            cover(&mut listing);
            let again = Listing::from_bytes(&listing.to_bytes());
            let stamped = all.iter().filter(|path| again.get(Path::new(path)).unwrap().stamp.is_some());
            assert_eq!(stamped.copied().collect::<Vec<_>>(), *kept, "case {number}");
            assert_eq!(again.changes_since(&listing), Changes::default());
        }
    }

    #[test]
    fn a_later_entry_hides_an_earlier_one() {
        let mut twice = listing(&[("a", "1", 0o644)]);
        let digest = Some(ContentHash::of_link_target(b"2"));
        let entry = ListedSource { source: Path::new("other/a"), digest, mode: 0o100644, stamp: None };
        twice.put(Path::new("app/a"), entry);
        assert_eq!(twice.iter().count(), 1);
        assert_eq!(twice.changes_since(&listing(&[("a", "1", 0o644)])).changed, ["other/a"]);
    }
}
