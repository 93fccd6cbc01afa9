//! What a copy took from where: kept beside its result, so that the next one can tell what changed, and needs to write
//! only that.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::Digest;

use crate::stamp::Stamp;

const MAGIC: &[u8; 18] = b"rbuild-listing 1\n\0";
/// Lengths of the two paths, mode, stamp, digest.
const FIXED: usize = 4 + 4 + 4 + Stamp::LEN + 32;

/// The files, links and directories of one copy, by where they went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    entries: HashMap<PathBuf, Listed>,
}

/// One entry as its source was.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Relative to the root of the source.
    pub source: PathBuf,
    /// What it counted as, its kind in the bits of `S_IFMT`.
    pub mode: u32,
    /// Of a file; none where it would not tell whether the file was written since.
    pub stamp: Option<Stamp>,
    /// Of a file's content with its attributes, or of a link's target, if it was known.
    pub digest: Option<Digest>,
}

/// What is different in a copy, by path in the source. Each list is sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub changed: Vec<String>,
    pub new: Vec<String>,
    pub gone: Vec<String>,
}

impl Listing {
    /// What went to that path; what came there before is covered.
    pub fn put(&mut self, path: PathBuf, entry: Listed) {
        self.entries.insert(path, entry);
    }

    pub fn get(&self, path: &Path) -> Option<&Listed> {
        self.entries.get(path)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAGIC.len() + self.entries.len() * (FIXED + 64));
        out.extend_from_slice(MAGIC);
        for (path, entry) in &self.entries {
            let (path, source) = (path.as_os_str().as_bytes(), entry.source.as_os_str().as_bytes());
            out.extend_from_slice(&(path.len() as u32).to_le_bytes());
            out.extend_from_slice(&(source.len() as u32).to_le_bytes());
            out.extend_from_slice(&entry.mode.to_le_bytes());
            out.extend_from_slice(entry.stamp.as_ref().map_or(&[0; Stamp::LEN][..], |stamp| stamp.bytes()));
            out.extend_from_slice(entry.digest.as_ref().map_or(&[0; 32][..], |digest| digest.bytes()));
            out.extend_from_slice(path);
            out.extend_from_slice(source);
        }
        out
    }

    /// From the bytes that [`Listing::to_bytes`] gave; anything else is an empty listing.
    pub fn from_bytes(bytes: &[u8]) -> Listing {
        read(bytes).unwrap_or_default()
    }

    /// How the copy differs from an earlier one.
    pub fn changes_since(&self, earlier: &Listing) -> Changes {
        let by_source = |listing: &Listing| -> BTreeMap<PathBuf, Listed> {
            listing.entries.values().map(|entry| (entry.source.clone(), entry.clone())).collect()
        };
        let (mut old, new) = (by_source(earlier), by_source(self));
        let mut changes = Changes::default();
        for (path, entry) in new {
            let name = path.to_string_lossy().into_owned();
            match old.remove(&path) {
                None => changes.new.push(name),
                Some(before) => {
                    if let Some(how) = entry.difference(&before) {
                        changes.changed.push(format!("{name}{how}"));
                    }
                }
            }
        }
        changes.gone = old.into_keys().map(|path| path.to_string_lossy().into_owned()).collect();
        changes
    }
}

impl Listed {
    /// In what an entry differs from what it was; `None` if not in anything that counts.
    fn difference(&self, before: &Listed) -> Option<String> {
        const KIND: u32 = 0o170000;
        if self.mode & KIND != before.mode & KIND {
            return Some(" (is of another kind)".into());
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

fn read(bytes: &[u8]) -> Option<Listing> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut listing = Listing::default();
    while !rest.is_empty() {
        let number = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (path_len, source_len) = (number(0)? as usize, number(4)? as usize);
        let stamp = Stamp::from_bytes(rest.get(12..12 + Stamp::LEN)?)?;
        let digest: [u8; 32] = rest.get(12 + Stamp::LEN..FIXED)?.try_into().ok()?;
        let path = rest.get(FIXED..FIXED.checked_add(path_len)?)?;
        let end = (FIXED + path_len).checked_add(source_len)?;
        let source = rest.get(FIXED + path_len..end)?;
        let entry = Listed {
            source: PathBuf::from(OsStr::from_bytes(source)),
            mode: number(8)?,
            stamp: (*stamp.bytes() != [0; Stamp::LEN]).then_some(stamp),
            digest: (digest != [0; 32]).then(|| Digest::from_bytes(digest)),
        };
        listing.put(PathBuf::from(OsStr::from_bytes(path)), entry);
        rest = &rest[end..];
    }
    Some(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(source: &str, text: &str, mode: u32) -> Listed {
        Listed { source: source.into(), mode: 0o100000 | mode, stamp: None, digest: Some(Digest::of(text.as_bytes())) }
    }

    fn listing(entries: &[(&str, &str, u32)]) -> Listing {
        let mut listing = Listing::default();
        for (source, text, mode) in entries {
            listing.put(Path::new("app").join(source), file(source, text, *mode));
        }
        listing
    }

    #[test]
    fn changes_are_named_by_what_changed() {
        let old = listing(&[("a", "1", 0o644), ("b", "2", 0o644), ("c", "3", 0o644), ("d", "4", 0o644)]);
        let new = listing(&[("a", "1", 0o644), ("b", "x", 0o644), ("c", "3", 0o755), ("e", "5", 0o644)]);
        let changes = new.changes_since(&old);
        assert_eq!(changes.changed, ["b", "c (mode 644 → 755)"]);
        assert_eq!((changes.new, changes.gone), (vec!["e".to_string()], vec!["d".to_string()]));
        assert_eq!(old.changes_since(&old), Changes::default());
    }

    #[test]
    fn listings_survive_the_disk_and_junk_is_an_empty_one() {
        let whole = listing(&[("a", "1", 0o644), ("b/c", "2", 0o600)]);
        let bytes = whole.to_bytes();
        assert_eq!(Listing::from_bytes(&bytes), whole);
        for cut in 0..bytes.len() {
            let some = Listing::from_bytes(&bytes[..cut]);
            assert!(some.is_empty() || some.entries.len() < 2, "{cut}");
        }
        assert!(Listing::from_bytes(b"junk").is_empty());
        let mut lying = bytes.clone();
        lying[18..22].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Listing::from_bytes(&lying).is_empty());
    }
}
