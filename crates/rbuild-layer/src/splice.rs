//! Makes the layer of a tree that equals an earlier tree except for a small diff. Everything that
//! did not change is copied from the earlier tree's layer. The result has the same bytes as a layer
//! packed from all files of the tree.

use std::fs::File;
use std::io::{BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rbuild_linux::RootDir;

use crate::entry::{EntryKind, TarEntry};
use crate::error::Result;
use crate::external::ExternalFiles;
use crate::item::PackItem;
use crate::options::{LayerForm, Times, WhiteoutEncoding};
use crate::pack::{Packed, TreePacker, pack};
use crate::reader::TarReader;
use crate::remainder::{EntryDetails, Remainder};
use crate::walk::Walk;
use crate::whiteout::{deleted_name, is_whiteout};

/// Size of the buffer for reading headers, in bytes.
const BUFFER: usize = 256 << 10;

/// An earlier layer and a tree of changes, which together form one layer.
///
/// The tree of changes has all directories of the result. Its whiteouts delete entries of the
/// earlier layer, and do not get into the result.
pub struct Splice<'a> {
    changes: &'a RootDir,
    earlier: File,
    parts: Vec<Part>,
}

/// A part of the new layer.
enum Part {
    /// Consecutive entries of the earlier layer.
    Earlier(Entries),
    /// The next entry of the tree of changes.
    Change,
}

/// Entries of the earlier layer.
struct Entries {
    bytes: Range<u64>,
    details: Vec<EntryDetails>,
}

impl<'a> Splice<'a> {
    /// Prepares the layer that consists of an uncompressed layer written by this crate and of
    /// changes to it. `remainder` is that of the earlier layer. Returns `None` if the parts do not
    /// fit together; the tree must then be packed from its files.
    ///
    /// # Errors
    ///
    /// Fails if the tree of changes or the earlier layer cannot be read.
    pub fn new(changes: &'a RootDir, earlier: File, remainder: Option<&Remainder>) -> Result<Option<Splice<'a>>> {
        let mut walk = changes_walk(changes)?;
        let mut reader =
            EarlierEntries::new(earlier.try_clone().map_err(crate::LayerError::reading("the earlier layer"))?);
        let mut parts = SpliceParts::default();
        let mut next = reader.next()?;
        while let Some(item) = walk.next()? {
            let Some(change) = Change::of(&item) else { return Ok(None) };
            while let Some(entry) = next.take_if(|entry| entry.path < change.path) {
                if !entry.is_plain() {
                    return Ok(None);
                }
                parts.keep(entry);
                next = reader.next()?;
            }
            // The change replaces or deletes these entries.
            while next.take_if(|entry| change.covers(&entry.path)).is_some() {
                next = reader.next()?;
            }
            if !change.deletes {
                parts.0.push(Part::Change);
            }
        }
        while let Some(entry) = next {
            if !entry.is_plain() {
                return Ok(None);
            }
            parts.keep(entry);
            next = reader.next()?;
        }
        let SpliceParts(mut parts) = parts;
        if !set_nanoseconds(&mut parts, remainder, reader.count) {
            return Ok(None);
        }
        Ok(Some(Splice { changes, earlier, parts }))
    }

    /// Writes the layer to `out`. Also returns the metadata of the tree that the layer lacks, or
    /// `None` if the layer cannot be completed.
    ///
    /// # Errors
    ///
    /// Fails if the tree of changes or the earlier layer cannot be read, or if `out` fails.
    pub fn pack(&self, form: LayerForm, out: impl Write) -> Result<(Packed, Option<Remainder>)> {
        let mut remainder = None;
        let packed = pack(form, out, |chunks| {
            let mut packer = TreePacker::to(WhiteoutEncoding::Encode, chunks);
            let mut walk = changes_walk(self.changes)?;
            for part in &self.parts {
                match part {
                    Part::Earlier(entries) => {
                        packer.copy_entries(&self.earlier, entries.bytes.clone())?;
                        entries.details.iter().for_each(|details| packer.add_details(*details));
                    }
                    Part::Change => {
                        // Deletions have no part of their own.
                        while let Some(item) = walk.next()? {
                            if Change::of(&item).is_some_and(|change| !change.deletes) {
                                packer.put(item)?;
                                break;
                            }
                        }
                    }
                }
            }
            remainder = packer.remainder(self.changes)?;
            packer.finish()
        })?;
        Ok((packed, remainder))
    }
}

fn changes_walk(changes: &RootDir) -> Result<Walk> {
    Walk::new(changes, Path::new(""), WhiteoutEncoding::Encode, Times::AsIs, ExternalFiles::default())
}

/// Sets the nanoseconds of the times of the kept entries. Returns false if they are not known.
fn set_nanoseconds(parts: &mut [Part], remainder: Option<&Remainder>, count: usize) -> bool {
    let Some(remainder) = remainder.filter(|remainder| remainder.nanoseconds.len() == count) else { return false };
    for part in parts {
        if let Part::Earlier(entries) = part {
            for details in &mut entries.details {
                details.nanoseconds = remainder.nanoseconds[details.nanoseconds as usize];
            }
        }
    }
    true
}

/// An entry of the tree of changes.
struct Change {
    path: PathBuf,
    is_dir: bool,
    deletes: bool,
}

impl Change {
    /// Returns `None` for items that only whole trees have.
    fn of(item: &PackItem) -> Option<Change> {
        let entry = match item {
            PackItem::Header(entry) | PackItem::Small(entry, _) | PackItem::Large(entry, ..) => entry,
            PackItem::Incomplete => return None,
        };
        let path = Path::new(&entry.path);
        let deleted = deleted_name(path.file_name().unwrap_or_default());
        // The mark of an opaque directory.
        if deleted.is_some_and(is_whiteout) {
            return None;
        }
        let path = deleted.map_or_else(|| path.to_path_buf(), |deleted| path.with_file_name(deleted));
        Some(Change { path, is_dir: entry.kind == EntryKind::Dir, deletes: deleted.is_some() })
    }

    /// Returns true if the earlier entry at `path` is not in the result, or is another one there.
    fn covers(&self, path: &Path) -> bool {
        if self.is_dir { path == self.path } else { path.starts_with(&self.path) }
    }
}

#[derive(Default)]
struct SpliceParts(Vec<Part>);

impl SpliceParts {
    fn keep(&mut self, entry: EarlierEntry) {
        match self.0.last_mut() {
            Some(Part::Earlier(entries)) if entries.bytes.end == entry.bytes.start => {
                entries.bytes.end = entry.bytes.end;
                entries.details.push(entry.details);
            }
            _ => self.0.push(Part::Earlier(Entries { bytes: entry.bytes, details: vec![entry.details] })),
        }
    }
}

struct EarlierEntry {
    path: PathBuf,
    kind: EntryKind,
    is_mark: bool,
    bytes: Range<u64>,
    /// The number of the entry is in place of the nanoseconds.
    details: EntryDetails,
}

impl EarlierEntry {
    /// Returns true if the entry means the same in every layer. The tree of changes has all
    /// directories, and files with several names.
    fn is_plain(&self) -> bool {
        !self.is_mark && !matches!(self.kind, EntryKind::Dir | EntryKind::HardLink)
    }
}

struct EarlierEntries {
    reader: TarReader<BufReader<File>>,
    count: usize,
}

impl EarlierEntries {
    fn new(layer: File) -> EarlierEntries {
        EarlierEntries { reader: TarReader::new(BufReader::with_capacity(BUFFER, layer)), count: 0 }
    }

    fn next(&mut self) -> Result<Option<EarlierEntry>> {
        let start = self.reader.offset();
        let Some(entry) = self.reader.next_entry()? else { return Ok(None) };
        self.reader.pass_over()?;
        let bytes = start..self.reader.offset();
        let TarEntry { path, kind, uid, gid, .. } = entry;
        let path: PathBuf = Path::new(&path).components().collect();
        let is_mark = path.file_name().is_some_and(is_whiteout);
        let number = u32::try_from(self.count).unwrap_or(u32::MAX);
        self.count += 1;
        let details = EntryDetails { uid, gid, nanoseconds: number };
        Ok(Some(EarlierEntry { path, kind, is_mark, bytes, details }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack_exact;
    use rbuild_linux::Timestamp;
    use rbuild_testkit::{Scratch, assert_recorded, message_row};

    const PLAIN: LayerForm = LayerForm::Uncompressed;

    /// A directory for the trees of a test.
    struct Scene(Scratch);

    impl Scene {
        fn new() -> Scene {
            Scene(Scratch::new())
        }

        /// Makes a tree. A path with a slash at its end is a directory, `@` precedes the target of
        /// a symbolic link, `=` that of a hard link, and `!` is a whiteout; other text is content.
        fn tree(&self, name: &str, entries: &[(&str, &str)]) -> RootDir {
            let top = self.0.join(name);
            std::fs::create_dir_all(&top).unwrap();
            for (path, text) in entries {
                let place = top.join(path);
                match (path.ends_with('/'), text.as_bytes().first()) {
                    (true, _) => std::fs::create_dir(&place).unwrap(),
                    (_, Some(b'@')) => std::os::unix::fs::symlink(&text[1..], &place).unwrap(),
                    (_, Some(b'=')) => std::fs::hard_link(top.join(&text[1..]), &place).unwrap(),
                    (_, Some(b'!')) => RootDir::open(place.parent().unwrap())
                        .unwrap()
                        .create_whiteout(place.file_name().unwrap())
                        .unwrap(),
                    _ => std::fs::write(&place, text).unwrap(),
                }
            }
            let dir = RootDir::open(&top).unwrap();
            // Times depend on nothing but path and content, and have nanoseconds.
            for (path, text) in entries.iter().rev().filter(|(_, text)| !text.starts_with(['!', '='])) {
                let mtime = Timestamp { sec: 1_000_000_000 + path.len() as i64, nsec: 7 + text.len() as u32 };
                let (above, name) = dir.parent(path.trim_end_matches('/')).unwrap();
                above.set_mtime(&name, mtime).unwrap();
            }
            dir.set_own_mtime(Timestamp { sec: 999_999_999, nsec: 5 }).unwrap();
            dir
        }

        fn layer(&self, tree: &RootDir) -> (File, Option<Remainder>, Vec<u8>) {
            let mut bytes = Vec::new();
            let (_, remainder) = pack_exact(tree, PLAIN, &mut bytes).unwrap();
            let place = self.0.join("layer");
            std::fs::write(&place, &bytes).unwrap();
            (File::open(place).unwrap(), remainder, bytes)
        }
    }

    const BASE: &[(&str, &str)] = &[
        ("a/", ""),
        ("a/b/", ""),
        ("a/b/1", "one"),
        ("a/b/2", "two"),
        ("a/x", "@nowhere"),
        ("a.b", "sorts before the contents of a/ as text, after them as a path"),
        ("gone/", ""),
        ("gone/1", "deep"),
        ("gone/d/", ""),
        ("gone/d/2", "deeper"),
        ("z", "last"),
        (
            "é-name-of-more-than-a-hundred-bytes-0123456789012345678901234567890123456789012345678901234567890123456789",
            "pax",
        ),
    ];

    type Tree = &'static [(&'static str, &'static str)];

    /// Packs `base`, and splices its layer with the changes.
    fn splice(scene: &Scene, base: &[(&str, &str)], changes: &[(&str, &str)]) -> (Vec<u8>, Option<Remainder>) {
        let (layer, remainder, _) = scene.layer(&scene.tree("base", base));
        let tree = scene.tree("changes", changes);
        let splice = Splice::new(&tree, layer, remainder.as_ref()).unwrap().unwrap();
        let mut bytes = Vec::new();
        let (packed, remainder) = splice.pack(PLAIN, &mut bytes).unwrap();
        assert_eq!(packed.size, bytes.len() as u64);
        (bytes, remainder)
    }

    #[test]
    fn a_spliced_layer_has_the_bytes_of_the_whole_tree() {
        let dirs: Tree = &[("a/", ""), ("a/b/", ""), ("gone/", ""), ("gone/d/", "")];
        let cases: [(&str, Tree); 5] = [
            ("nothing", &[]),
            ("changed", &[("a/b/1", "changed"), ("z", "LAST")]),
            ("new", &[("0", "first"), ("a/b/10", "new"), ("a/c", "new"), ("zz", "end")]),
            ("linked", &[("a/b/1", "same"), ("a/b/3", "=a/b/1"), ("z", "=a/b/1"), ("a/x", "@elsewhere")]),
            ("gone", &[("a/b/2", "!"), ("z", "!"), ("a/x", "!")]),
        ];
        for (name, changes) in cases {
            let scene = Scene::new();
            let (spliced, remainder) = splice(&scene, BASE, &[dirs, changes].concat());
            let is_changed = |path: &str| changes.iter().any(|(changed, _)| *changed == path);
            let mut whole: Vec<_> = BASE.iter().copied().filter(|(path, _)| !is_changed(path)).collect();
            whole.extend(changes.iter().copied().filter(|(_, text)| *text != "!"));
            let (_, wanted_remainder, wanted) = scene.layer(&scene.tree("whole", &whole));
            assert!(spliced == wanted, "{name}: other bytes");
            assert!(remainder.is_some() && remainder == wanted_remainder, "{name}");
        }
    }

    #[test]
    fn a_deleted_directory_takes_everything_in_it() {
        let scene = Scene::new();
        let (spliced, _) = splice(&scene, BASE, &[("a/", ""), ("a/b/", ""), ("gone", "!")]);
        let whole: Vec<_> = BASE.iter().copied().filter(|(path, _)| !path.starts_with("gone")).collect();
        let (_, _, wanted) = scene.layer(&scene.tree("whole", &whole));
        assert!(spliced == wanted);
    }

    #[test]
    fn a_layer_that_fails_after_its_headers_were_read_is_worded_as_recorded() {
        let scene = Scene::new();
        let (layer, remainder, _) = scene.layer(&scene.tree("base", &[("f", "text")]));
        let (place, tree) = (scene.0.join("layer"), scene.tree("changes", &[]));
        let mut splice = Splice::new(&tree, layer, remainder.as_ref()).unwrap().unwrap();
        let row = |name: &str, splice: &Splice<'_>| {
            let e = splice.pack(PLAIN, &mut Vec::new()).map(drop).unwrap_err();
            message_row(name, &e, e.remedy())
        };
        File::options().write(true).open(&place).unwrap().set_len(512).unwrap();
        let cut = row("a cut layer", &splice);
        splice.earlier = File::options().write(true).open(&place).unwrap();
        assert_recorded!("splice", cut + &row("an unreadable layer", &splice));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let all: Tree = &[("a/", ""), ("a/b/", ""), ("gone/", ""), ("gone/d/", "")];
        let cases: [(&str, Tree, Tree, bool); 4] = [
            ("a directory is missing", BASE, &[("a/", ""), ("a/b/", ""), ("gone/", "")], true),
            ("a kept hard link", &[("f", "text"), ("g", "=f")], &[("g2", "new")], true),
            ("a kept whiteout", &[("f", "text"), ("g", "!")], &[("f", "new")], true),
            ("no remainder", BASE, all, false),
        ];
        for (case, base, changes, complete) in cases {
            let scene = Scene::new();
            let (layer, remainder, _) = scene.layer(&scene.tree("base", base));
            let tree = scene.tree("changes", changes);
            let remainder = remainder.filter(|_| complete);
            assert!(Splice::new(&tree, layer, remainder.as_ref()).unwrap().is_none(), "{case}");
        }
    }
}
