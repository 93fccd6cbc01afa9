//! Packs a layer from a tree plus files that have not been copied into it. External files are
//! streamed from their source directory, which saves one copy of each of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_linux::{FileStamp, RootDir, Stat, Timestamp, UidGid};

use crate::entry::{EntryKind, TarEntry};
use crate::error::Result;
use crate::item::{PackItem, SMALL, Unchanged, read_small};
use crate::options::Times;
use crate::reuse::EarlierLayer;
use crate::xattrs::keep_in_layer;

/// A regular file of the layer whose content is outside the tree.
#[derive(Debug, Clone)]
pub struct ExternalFile {
    /// File name in the layer.
    pub name: OsString,
    /// File name in the source directory.
    pub source: OsString,
    /// Status of the source file when it was selected. Packing fails if it has changed since.
    pub stat: Stat,
    /// Owner in the layer.
    pub owner: UidGid,
    /// Mode in the layer.
    pub mode: u32,
    /// True if the content is the same as in the earlier layer.
    pub unchanged: bool,
}

/// All external files of a tree, by directory of the tree.
#[derive(Default)]
pub struct ExternalFiles {
    source: Option<RootDir>,
    earlier: Option<EarlierLayer>,
    dirs: HashMap<PathBuf, Vec<SourcedFile>>,
}

/// An external file, with its source directory.
pub(crate) struct SourcedFile {
    pub file: ExternalFile,
    source: Arc<Path>,
}

impl ExternalFiles {
    /// Creates an empty set of files below `source`. `earlier` is the uncompressed layer that
    /// contains the files marked as unchanged; it must have been written by this crate and verified
    /// to be complete.
    pub fn of(source: RootDir, earlier: Option<File>) -> ExternalFiles {
        ExternalFiles { source: Some(source), earlier: earlier.map(EarlierLayer::new), dirs: HashMap::new() }
    }

    /// Adds files of the source directory `source` to the directory `dir` of the tree, which must
    /// not contain any of their names.
    pub fn add(&mut self, dir: &Path, source: &Path, files: impl IntoIterator<Item = ExternalFile>) {
        let source: Arc<Path> = source.into();
        let files = files.into_iter().map(|file| SourcedFile { file, source: source.clone() });
        match self.dirs.get_mut(dir) {
            Some(known) => known.extend(files),
            None => drop(self.dirs.insert(dir.to_path_buf(), files.collect())),
        }
    }

    /// Removes and returns the external files of a directory of the tree.
    pub(crate) fn remove_dir(&mut self, dir: &Path) -> ExternalDir {
        let mut files = if self.dirs.is_empty() { Vec::new() } else { self.dirs.remove(dir).unwrap_or_default() };
        files.sort_by(|a, b| b.file.name.as_bytes().cmp(a.file.name.as_bytes()));
        ExternalDir { files, open: None }
    }
}

/// The external files of one directory, in reverse order of their names.
pub(crate) struct ExternalDir {
    files: Vec<SourcedFile>,
    open: Option<(Arc<Path>, RootDir)>,
}

impl ExternalDir {
    /// Removes and returns the next file if it sorts before the tree's own next entry.
    pub(crate) fn before(&mut self, own: Option<&OsString>) -> Option<SourcedFile> {
        let next = self.files.last()?;
        let first = own.is_none_or(|own| next.file.name.as_bytes() < own.as_bytes());
        if first { self.files.pop() } else { None }
    }

    /// Returns the archive item of a file. Small unchanged files come from the earlier layer if it
    /// has them, all others from the source directory.
    pub(crate) fn item(
        &mut self,
        sourced: &SourcedFile,
        path: &Path,
        times: Times,
        all: &mut ExternalFiles,
    ) -> Result<PackItem> {
        let SourcedFile { file, source } = sourced;
        let mut entry = entry(file, path, times);
        if file.unchanged
            && entry.size <= SMALL
            && let Some((xattrs, content)) =
                all.earlier.as_mut().and_then(|earlier| earlier.file(Path::new(&entry.path), entry.size))
        {
            entry.xattrs = xattrs;
            return Ok(PackItem::Small(entry, content));
        }
        let dir = match &mut self.open {
            Some((open, dir)) if open.as_os_str() == source.as_os_str() => dir,
            other => {
                let root = all.source.as_ref().expect("external files have a source directory");
                &mut other.insert((source.clone(), root.sub(source)?)).1
            }
        };
        read(dir, file, entry)
    }
}

fn entry(file: &ExternalFile, path: &Path, times: Times) -> TarEntry {
    let ExternalFile { name, stat, owner, mode, .. } = file;
    TarEntry {
        path: path.join(name).into_os_string(),
        kind: EntryKind::File,
        mode: *mode,
        uid: u64::from(owner.uid),
        gid: u64::from(owner.gid),
        mtime: Timestamp { sec: times.of(stat.mtime.sec), ..stat.mtime },
        size: stat.size,
        link: OsString::new(),
        rdev: (0, 0),
        xattrs: Default::default(),
        sparse: None,
    }
}

fn read(dir: &RootDir, file: &ExternalFile, mut entry: TarEntry) -> Result<PackItem> {
    let ExternalFile { source, stat, .. } = file;
    let open = dir.open_name(source)?;
    entry.xattrs = dir.file_xattrs(&open)?.into_iter().filter(|(attr, _)| keep_in_layer(attr)).collect();
    let unchanged = Unchanged { stamp: FileStamp::of(stat), path: dir.label().join(source) };
    if entry.size > SMALL {
        return Ok(PackItem::Large(entry, open, Some(unchanged)));
    }
    let content = read_small(&open, &entry);
    unchanged.check(&open)?;
    Ok(PackItem::Small(entry, content?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerError, LayerForm, pack_layer, pack_with_external};
    use rbuild_linux::file_stat;
    use rbuild_testkit::Scratch;
    use std::ffi::OsStr;

    /// Half of the tree's files are external, under other names; the layer lists the same entries
    /// as that of the whole tree.
    #[test]
    fn a_layer_with_external_files_equals_that_of_the_full_tree() {
        let top = Scratch::new();
        let (whole, part, source) = (top.join("whole"), top.join("part"), top.join("source/from"));
        for dir in [&whole, &part] {
            std::fs::create_dir_all(dir.join("a/b")).unwrap();
        }
        std::fs::create_dir_all(&source).unwrap();
        let mut external = ExternalFiles::of(RootDir::open(top.join("source")).unwrap(), None);
        for dir in ["", "a", "a/b"] {
            let mut files = Vec::new();
            for i in 0..150 {
                let name = format!("{}{i}", if i % 3 == 0 { "B" } else { "b" });
                let content = vec![i as u8; if i == 7 { 100_000 } else { i }];
                std::fs::write(whole.join(dir).join(&name), &content).unwrap();
                let at =
                    if i % 2 == 0 { part.join(dir).join(&name) } else { source.join(format!("{i}-{}", dir.len())) };
                std::fs::write(&at, &content).unwrap();
                if i % 2 == 1 {
                    let (owner, mode) = (UidGid::ROOT, 0o640);
                    let source_name = at.file_name().unwrap().to_os_string();
                    let stat = file_stat(&File::open(&at).unwrap()).unwrap();
                    files.push(ExternalFile {
                        name: name.clone().into(),
                        source: source_name,
                        stat,
                        owner,
                        mode,
                        unchanged: false,
                    });
                }
            }
            // Unsorted, and in two calls.
            files.reverse();
            let rest = files.split_off(20);
            external.add(Path::new(dir), Path::new("from"), files);
            external.add(Path::new(dir), Path::new("from"), rest);
        }
        let form = LayerForm::Uncompressed;
        let names = |bytes: &[u8]| -> Vec<(String, u64, u64)> {
            let mut archive = tar::Archive::new(bytes);
            let entries = archive.entries().unwrap().map(|e| e.unwrap());
            entries
                .map(|e| (e.path().unwrap().display().to_string(), e.size(), e.header().mode().map_or(0, u64::from)))
                .collect()
        };
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        pack_layer(&RootDir::open(&whole).unwrap(), form, Times::AsIs, &mut expected).unwrap();
        pack_with_external(&RootDir::open(&part).unwrap(), external, form, &mut got).unwrap();
        let (expected, got) = (names(&expected), names(&got));
        assert_eq!(expected.len(), 452);
        let without_modes = |list: &[(String, u64, u64)]| list.iter().map(|e| (e.0.clone(), e.1)).collect::<Vec<_>>();
        assert_eq!(without_modes(&got), without_modes(&expected));
        assert_eq!(got.iter().filter(|e| e.2 == 0o640).count(), 225);
    }

    /// Unchanged files come from the earlier layer regardless of its other entries, and from the
    /// source directory if the earlier layer lacks them.
    #[test]
    fn unchanged_files_come_from_the_earlier_layer() {
        let top = Scratch::new();
        let (old, source) = (top.join("old"), top.join("source"));
        for dir in ["a/b", "a.b", "gone"] {
            std::fs::create_dir_all(old.join(dir)).unwrap();
            std::fs::create_dir_all(source.join(dir)).unwrap();
        }
        let files = [("a/b/1", 5), ("a/b/large", 300_000), ("a/c", 0), ("a.b/x", 700), ("gone/y", 9), ("z", 40_000)];
        for (name, size) in files {
            std::fs::write(old.join(name), vec![b'o'; size]).unwrap();
            std::fs::write(source.join(name), vec![b's'; size]).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", old.join("a/a-link")).unwrap();
        std::fs::write(source.join("a/b/new"), "new").unwrap();
        let form = LayerForm::Uncompressed;
        let layer = top.join("layer");
        let written = std::fs::File::create(&layer).unwrap();
        pack_layer(&RootDir::open(&old).unwrap(), form, Times::AsIs, written).unwrap();
        // The first byte identifies the origin of each file.
        let packed = |layer: &Path| -> Vec<(String, u8)> {
            let mut external = ExternalFiles::of(RootDir::open(&source).unwrap(), Some(File::open(layer).unwrap()));
            for (name, unchanged) in
                [("a/b/1", true), ("a/b/large", true), ("a/b/new", true), ("a/c", true), ("a.b/x", false), ("z", true)]
            {
                let path = Path::new(name);
                let stat = file_stat(&File::open(source.join(path)).unwrap()).unwrap();
                let name = path.file_name().unwrap().to_os_string();
                let file =
                    ExternalFile { source: name.clone(), name, stat, owner: UidGid::ROOT, mode: 0o600, unchanged };
                let dir = path.parent().unwrap();
                external.add(dir, dir, [file]);
            }
            let tree = top.join("tree");
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            std::fs::create_dir_all(tree.join("a.b")).unwrap();
            let mut bytes = Vec::new();
            pack_with_external(&RootDir::open(&tree).unwrap(), external, form, &mut bytes).unwrap();
            let mut archive = tar::Archive::new(&bytes[..]);
            let entries = archive.entries().unwrap().map(|e| e.unwrap());
            let held = entries.filter(|e| e.header().entry_type().is_file()).map(|mut e| {
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut e, &mut content).unwrap();
                assert_eq!(e.header().mode().unwrap(), 0o600);
                (e.path().unwrap().display().to_string(), content.first().copied().unwrap_or(b'-'))
            });
            held.collect()
        };
        let expected = |small: u8| {
            [("a/b/1", small), ("a/b/large", b's'), ("a/b/new", b'n'), ("a/c", b'-'), ("a.b/x", b's'), ("z", small)]
                .map(|(name, byte)| (name.to_string(), byte))
        };
        assert_eq!(packed(&layer), expected(b'o'));
        // Earlier layers that are truncated or not archives at all.
        std::fs::write(top.join("junk"), vec![b'j'; 10_000]).unwrap();
        std::fs::write(top.join("empty"), "").unwrap();
        for broken in ["junk", "empty"] {
            assert_eq!(packed(&top.join(broken)), expected(b's'), "{broken}");
        }
    }

    #[test]
    fn a_file_that_changed_is_an_error() {
        let top = Scratch::new();
        std::fs::create_dir_all(top.join("tree")).unwrap();
        let form = LayerForm::Uncompressed;
        for size in [10, 1_000_000] {
            std::fs::write(top.join("f"), vec![1; size]).unwrap();
            let stat = file_stat(&File::open(top.join("f")).unwrap()).unwrap();
            for now in [size / 2, size + 1] {
                std::fs::write(top.join("f"), vec![2; now]).unwrap();
                let mut external = ExternalFiles::of(RootDir::open(&top).unwrap(), None);
                let name = || OsStr::new("f").to_os_string();
                let file = ExternalFile {
                    name: name(),
                    source: name(),
                    stat,
                    owner: UidGid::ROOT,
                    mode: 0o644,
                    unchanged: false,
                };
                external.add(Path::new(""), Path::new(""), [file]);
                let tree = RootDir::open(top.join("tree")).unwrap();
                let got = pack_with_external(&tree, external, form, Vec::new());
                assert!(matches!(got, Err(LayerError::Changed(_))), "{size} {now}: {got:?}");
            }
        }
    }
}
