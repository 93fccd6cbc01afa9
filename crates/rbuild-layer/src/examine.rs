//! Examination of a layer of unknown origin, before anything refers to it.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::io::Read;
use std::path::Path;

use rbuild_image::{BlobDigest, DiffId, Hashed};
use rbuild_linux::UidGid;

use crate::bounded::Bounded;
use crate::compress::Compression;
use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::limits::Limits;
use crate::read_ahead::with_read_ahead;
use crate::reader::TarReader;
use crate::whiteout::{self, deleted_name, is_whiteout};

/// Maximum length of a name in bytes. The kernel has no longer ones.
const LONGEST_NAME: usize = 255;

/// Properties of a layer that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examined {
    /// Digest of the bytes.
    pub digest: BlobDigest,
    /// Digest of the content without compression.
    pub diff_id: DiffId,
    /// Size without compression in bytes.
    pub unpacked: u64,
    /// The compression.
    pub compression: Compression,
    /// Highest user ID and highest group ID of the entries.
    pub highest_ids: UidGid,
}

/// Reads a layer to its end, and checks that each entry can be unpacked by a user without
/// privileges. Layers that [`pack_exact`](crate::pack_exact) makes of trees without devices pass.
///
/// # Errors
///
/// Fails if the layer cannot be read, is damaged or exceeds a limit, or if an entry cannot be
/// created: it leaves the root, lies below a file, occurs twice, is a device, or is a hard link to
/// something that the layer does not contain.
pub fn examine(source: impl Read + Send, limits: Limits) -> Result<Examined> {
    let mut raw = Hashed::new(source);
    let decoder = Bounded::new(&mut raw, limits).map_err(LayerError::decompressing("the start of the archive"))?;
    let compression = decoder.compression();
    let (decoder, examined, diff_id) = with_read_ahead(decoder, true, |stream| {
        let mut reader = TarReader::with_header_limit(stream, limits.header);
        let mut entries = SeenEntries { limits, ..SeenEntries::default() };
        while let Some(entry) = reader.next_entry()? {
            entries.check(&entry)?;
        }
        reader.drain(limits.tail(entries.bytes))?;
        entries.finish()
    });
    let (unpacked, highest_ids) = (decoder.count(), examined?);
    drop(decoder);
    // The digest also covers bytes that follow the end of the compressed stream.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(LayerError::decompressing("the end of the archive"))?;
    let diff_id = diff_id.ok_or_else(|| LayerError::Damaged("its content was not read".into()))?;
    Ok(Examined { digest: raw.finish().1, diff_id, unpacked, compression, highest_ids })
}

/// The entries that were read so far. Paths are represented by keyed hashes.
#[derive(Default)]
struct SeenEntries {
    limits: Limits,
    count: u64,
    bytes: u64,
    highest: (u32, u32),
    keys: RandomState,
    directories: HashSet<u64>,
    /// Everything else but hard links.
    files: HashSet<u64>,
    links: HashSet<u64>,
    /// Targets of hard links, with the entry of each in messages.
    targets: Vec<(u64, String)>,
}

fn problem(entry: &TarEntry, reason: &str) -> LayerError {
    LayerError::Entry { name: entry.path.to_string_lossy().into_owned(), reason: reason.into() }
}

fn leaves_root(entry: &TarEntry) -> LayerError {
    problem(entry, "leaves the archive's root with `..`")
}

fn is_nameless_whiteout(name: &OsStr) -> bool {
    let is_nameless = |deleted: &OsStr| deleted.is_empty() || deleted == "." || deleted == "..";
    deleted_name(name).is_some_and(|deleted| name != whiteout::OPAQUE && !is_whiteout(deleted) && is_nameless(deleted))
}

impl SeenEntries {
    fn key(&self, path: &Path) -> u64 {
        self.keys.hash_one(path.as_os_str().as_encoded_bytes())
    }

    fn check(&mut self, entry: &TarEntry) -> Result<()> {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(entry.whole_size());
        self.limits.check(entry, self.count, self.bytes)?;
        let path = rbuild_paths::inside(&entry.path).ok_or_else(|| leaves_root(entry))?;
        // The highest ID is invalid.
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else {
            return Err(problem(entry, "has an invalid owner"));
        };
        self.highest = (self.highest.0.max(uid), self.highest.1.max(gid));
        let Some(name) = path.file_name() else {
            return match entry.kind {
                EntryKind::Dir => Ok(()),
                _ => Err(problem(entry, "would replace the root directory")),
            };
        };
        if path.iter().any(|name| name.len() > LONGEST_NAME) {
            return Err(problem(entry, "has a name of more than 255 bytes"));
        }
        if is_nameless_whiteout(name) {
            return Err(problem(entry, "is a whiteout without a name"));
        }
        self.add(entry, &path)?;
        self.check_ancestors(entry, &path)
    }

    /// Adds an entry, which must be the first one with that path, unless it is a directory.
    fn add(&mut self, entry: &TarEntry, path: &Path) -> Result<()> {
        let key = self.key(path);
        let mut is_new = !self.files.contains(&key) && !self.links.contains(&key);
        match entry.kind {
            EntryKind::Dir => drop(self.directories.insert(key)),
            EntryKind::Symlink if entry.link.is_empty() => {
                return Err(problem(entry, "is a symbolic link without a target"));
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                return Err(problem(entry, "is a device, which a cache must not contain"));
            }
            EntryKind::HardLink => {
                let target = rbuild_paths::inside(&entry.link).ok_or_else(|| leaves_root(entry))?;
                is_new &= !self.directories.contains(&key) && self.links.insert(key);
                self.targets.push((self.key(&target), entry.path.to_string_lossy().into_owned()));
            }
            EntryKind::File | EntryKind::Symlink | EntryKind::Fifo => {
                is_new &= !self.directories.contains(&key) && self.files.insert(key);
            }
        }
        if is_new { Ok(()) } else { Err(problem(entry, "occurs twice")) }
    }

    /// Checks that an entry is not below a file, and adds the directories that contain it.
    fn check_ancestors(&mut self, entry: &TarEntry, path: &Path) -> Result<()> {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let above = self.key(above);
            if self.files.contains(&above) || self.links.contains(&above) {
                return Err(problem(entry, "lies below something that is not a directory"));
            }
            // Those above it have been checked.
            if !self.directories.insert(above) {
                break;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<UidGid> {
        if let Some((_, name)) = self.targets.into_iter().find(|(target, _)| !self.files.contains(target)) {
            let reason = "is a hard link to something that the layer does not contain";
            return Err(LayerError::Entry { name, reason: reason.into() });
        }
        Ok(UidGid { uid: self.highest.0, gid: self.highest.1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::TarWriter;

    fn entry(path: &str, kind: EntryKind, link: &str) -> TarEntry {
        TarEntry { path: path.into(), kind, link: link.into(), ..TarEntry::plain_file(path, 0) }
    }

    fn examined(entries: &[TarEntry]) -> Result<Examined> {
        let mut tar = TarWriter::new(Vec::new());
        entries.iter().for_each(|entry| tar.entry(entry).unwrap());
        examine(&tar.finish().unwrap()[..], Limits::default())
    }

    #[test]
    fn the_properties_of_a_layer_are_found() {
        let mut owned = entry("d/f", EntryKind::File, "");
        (owned.uid, owned.gid) = (5, 70_000);
        let list = [entry("d", EntryKind::Dir, ""), entry("l", EntryKind::HardLink, "d/f"), owned];
        let found = examined(&list).unwrap();
        assert_eq!((found.highest_ids, found.compression), (UidGid { uid: 5, gid: 70_000 }, Compression::None));
        assert_eq!(found.digest.of_plain_layer(), found.diff_id);
        assert_eq!(found.unpacked % 512, 0);
    }

    #[test]
    fn entries_that_cannot_be_unpacked_are_refused() {
        use EntryKind::{CharDevice, Dir, File, HardLink, Symlink};
        let file = || entry("f", File, "");
        let mut high = file();
        high.uid = u64::from(u32::MAX);
        for (list, want) in [
            (vec![entry("../../x", File, "")], "leaves the archive's root"),
            (vec![entry(".", File, "")], "would replace the root"),
            (vec![file(), entry("f/below", File, "")], "lies below"),
            (vec![entry("f/below", File, ""), file()], "occurs twice"),
            (vec![file(), file()], "occurs twice"),
            (vec![file(), entry("f", Dir, "")], "occurs twice"),
            (vec![entry("l", HardLink, "none")], "is a hard link to something"),
            (vec![entry("l", HardLink, "m"), entry("m", HardLink, "l")], "is a hard link to something"),
            (vec![entry("d", Dir, ""), entry("l", HardLink, "d")], "is a hard link to something"),
            (vec![entry("s", Symlink, "")], "without a target"),
            (vec![entry("n", CharDevice, "")], "is a device"),
            (vec![entry("d/.wh.", File, "")], "whiteout without a name"),
            (vec![entry(&"n".repeat(256), File, "")], "more than 255 bytes"),
            (vec![high], "invalid owner"),
        ] {
            let e = examined(&list).unwrap_err();
            assert!(e.is_of_content() && e.to_string().contains(want), "{want}: {e}");
        }
        assert!(examine(&b"not a tar archive at all"[..], Limits::default()).unwrap_err().is_of_content());
    }
}
