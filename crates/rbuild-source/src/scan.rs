//! Parallel hashing of the entries below a directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_image::Hasher;
use rbuild_linux::parallel::{Tasks, locked};
use rbuild_linux::{FileKind, MAX_DEPTH, RootDir, Stat};

use crate::fingerprint::Fingerprint;
use crate::ids::ContentHash;
use crate::select::{Selected, SourceError, SourceTree};
use crate::walk::{RulesBelow, names};

/// Hashes the entries below a selected directory: for each, its path and the output of `describe`.
/// The entries of each directory are hashed in order of their names, and these hashes in the order
/// of [`SourceTree::walk`]. Uses several threads if there are many directories; all of them have
/// ended when this function returns.
pub(crate) fn hash_entries(
    tree: &SourceTree<'_>,
    item: &Selected,
    hasher: &mut Hasher,
    describe: &Describe<'_>,
) -> Result<Fingerprint, SourceError> {
    let (dir, exclusion_path) = (item.path.as_path(), item.exclusion_path());
    // Joining an empty path adds the slash before the names.
    let prefix = dir.join("").as_os_str().len();
    let scan = ContentScan { tree, dir, prefix, describe, parts: Mutex::new(vec![ScanPart::default()]) };
    let rules = Arc::new(tree.rules_below(dir, exclusion_path));
    let top = Task { id: 0, relative: PathBuf::new(), rules, names: None, above: None };
    Tasks::run(top, |tasks, task| scan.work(tasks, task)).map_err(|e: SourceError| e.of_found(tree.root))?;
    Ok(feed(&scan.parts.into_inner().unwrap_or_else(PoisonError::into_inner), hasher))
}

/// Appends the hashed form of an entry to the buffer and returns its fingerprint.
pub(crate) type Describe<'a> = dyn Fn(&mut Vec<u8>, &Entry<'_>) -> Result<Fingerprint, SourceError> + Sync + 'a;

/// A file or directory of a source.
pub(crate) struct Entry<'a> {
    pub(crate) parent: &'a RootDir,
    /// Path relative to the root of the source.
    pub(crate) path: &'a Path,
    /// Last component of the path.
    pub(crate) name: &'a OsStr,
    pub(crate) stat: &'a Stat,
}

/// Maximum number of names in one task.
const CHUNK: usize = 1000;

/// A directory to read, or a part of it (`names`).
struct Task {
    id: usize,
    relative: PathBuf,
    rules: Arc<RulesBelow>,
    names: Option<Vec<OsString>>,
    above: Option<Described>,
}

/// The result of a task: the selected entries of a directory, without those of its subdirectories.
#[derive(Default)]
struct ScanPart {
    /// Hashed form of an excluded directory; used only if it contains re-included entries.
    above: Option<Described>,
    own: OwnEntries,
    fingerprint: Fingerprint,
    /// Parts of the subdirectories, in order.
    inner: Vec<usize>,
}

enum OwnEntries {
    /// Hash of the hashed forms; `None` if no entry is selected.
    Hash(Option<ContentHash>),
    /// Hashed forms of a chunk of the entries.
    Chunk(Vec<u8>),
    /// Parts with the chunks. The hash is that of the whole directory: chunks also count names that
    /// are not selected.
    Chunks(Vec<usize>),
}

impl Default for OwnEntries {
    fn default() -> OwnEntries {
        OwnEntries::Hash(None)
    }
}

#[derive(Default)]
struct Described {
    bytes: Vec<u8>,
    fingerprint: Fingerprint,
}

/// A scan of a directory by several threads. They add the result of each task to `parts`, where a
/// part has a lower index than the parts inside it.
struct ContentScan<'a> {
    tree: &'a SourceTree<'a>,
    dir: &'a Path,
    /// Length in bytes of the path of the directory with a slash.
    prefix: usize,
    describe: &'a Describe<'a>,
    parts: Mutex<Vec<ScanPart>>,
}

impl ContentScan<'_> {
    fn work(&self, tasks: &Tasks<'_, Task, SourceError>, task: Task) -> Result<(), SourceError> {
        let id = task.id;
        let part = self.read(tasks, task)?;
        locked(&self.parts)[id] = part;
        Ok(())
    }

    fn read(&self, tasks: &Tasks<'_, Task, SourceError>, task: Task) -> Result<ScanPart, SourceError> {
        let mut part = ScanPart { above: task.above, ..ScanPart::default() };
        let handle = self.tree.root.sub(self.dir.join(&task.relative))?;
        let is_chunk = task.names.is_some();
        let names = match task.names {
            Some(names) => names,
            None => names(&handle)?,
        };
        if !is_chunk && names.len() > CHUNK {
            let later = |chunk: &[OsString]| {
                let (relative, rules) = (task.relative.clone(), task.rules.clone());
                self.later(tasks, Task { id: 0, relative, rules, names: Some(chunk.to_vec()), above: None })
            };
            part.own = OwnEntries::Chunks(names.chunks(CHUNK).map(later).collect());
            return Ok(part);
        }
        let mut own = Described::default();
        // Paths are assembled in one buffer: an allocation for each file would be noticeable.
        let mut path = self.dir.join(&task.relative).into_os_string().into_vec();
        // Joining an empty path has added a slash.
        if path.last().is_some_and(|last| *last != b'/') {
            path.push(b'/');
        }
        let parent_length = path.len();
        for name in &names {
            let Some((stat, taken)) = self.tree.look(&handle, &task.rules, name)? else { continue };
            path.truncate(parent_length);
            path.extend_from_slice(name.as_bytes());
            let entry = Entry { parent: &handle, path: Path::new(OsStr::from_bytes(&path)), name, stat: &stat };
            if taken {
                self.describe(&mut own, &entry)?;
            }
            if stat.kind == FileKind::Dir {
                let relative = task.relative.join(name);
                if relative.components().count() > MAX_DEPTH {
                    return Err(SourceError::TooDeep(entry.path.to_path_buf()));
                }
                let mut above = (!taken).then(Described::default);
                above.iter_mut().try_for_each(|described| self.describe(described, &entry))?;
                let rules = Arc::new(self.tree.rules_inside(&task.rules, name));
                part.inner.push(self.later(tasks, Task { id: 0, relative, rules, names: None, above }));
            }
        }
        part.fingerprint = own.fingerprint;
        part.own = if is_chunk {
            OwnEntries::Chunk(own.bytes)
        } else {
            OwnEntries::Hash((!own.bytes.is_empty()).then(|| blake3::hash(&own.bytes).into()))
        };
        Ok(part)
    }

    /// Appends the path of an entry, relative to the scanned directory, and its hashed form.
    fn describe(&self, described: &mut Described, entry: &Entry<'_>) -> Result<(), SourceError> {
        let path = &entry.path.as_os_str().as_bytes()[self.prefix..];
        described.bytes.extend_from_slice(&(path.len() as u64).to_le_bytes());
        described.bytes.extend_from_slice(path);
        described.fingerprint += (self.describe)(&mut described.bytes, entry)?;
        Ok(())
    }

    /// Queues a task, and returns the index of its part.
    fn later(&self, tasks: &Tasks<'_, Task, SourceError>, task: Task) -> usize {
        let id = {
            let mut parts = locked(&self.parts);
            parts.push(ScanPart::default());
            parts.len() - 1
        };
        tasks.add(Task { id, ..task });
        id
    }
}

/// Adds the hashes of the directories to `hasher` in traversal order, and returns the sum of the
/// fingerprints. As the hashed form of an entry begins with its path, these hashes determine the
/// tree. Uses an explicit stack, because directories may be nested very deeply.
fn feed(parts: &[ScanPart], hasher: &mut Hasher) -> Fingerprint {
    let nonempty = nonempty(parts);
    let mut fingerprint = Fingerprint::default();
    let mut stack = vec![0];
    while let Some(id) = stack.pop() {
        let part = &parts[id];
        if let Some(above) = part.above.as_ref().filter(|_| nonempty[id]) {
            hasher.field("excluded directory").field(&above.bytes);
            fingerprint += above.fingerprint;
        }
        let chunks = match &part.own {
            OwnEntries::Chunks(chunks) => chunks.as_slice(),
            OwnEntries::Hash(_) | OwnEntries::Chunk(_) => &[],
        };
        if let Some(hash) = own_hash(parts, &part.own) {
            hasher.field("entries").field(hash.bytes());
        }
        let pieces = || chunks.iter().map(|chunk| &parts[*chunk]).chain([part]);
        pieces().for_each(|piece| fingerprint += piece.fingerprint);
        let inner: Vec<usize> = pieces().flat_map(|piece| piece.inner.iter().copied()).collect();
        stack.extend(inner.into_iter().rev());
    }
    fingerprint
}

/// Returns, for each part, whether it contains selected entries, also in its subdirectories.
fn nonempty(parts: &[ScanPart]) -> Vec<bool> {
    let mut nonempty = vec![false; parts.len()];
    // A part has a lower index than the parts inside it.
    for (id, part) in parts.iter().enumerate().rev() {
        let any = |inner: &[usize]| inner.iter().any(|inner| nonempty[*inner]);
        nonempty[id] = any(&part.inner)
            || match &part.own {
                OwnEntries::Hash(hash) => hash.is_some(),
                OwnEntries::Chunk(bytes) => !bytes.is_empty(),
                OwnEntries::Chunks(chunks) => any(chunks),
            };
    }
    nonempty
}

/// Returns the hash of the selected entries of a directory; `None` if there are none.
fn own_hash(parts: &[ScanPart], own: &OwnEntries) -> Option<ContentHash> {
    match own {
        OwnEntries::Hash(hash) => *hash,
        OwnEntries::Chunk(_) => None,
        OwnEntries::Chunks(chunks) => {
            let mut hasher = blake3::Hasher::new();
            for chunk in chunks {
                if let OwnEntries::Chunk(bytes) = &parts[*chunk].own {
                    hasher.update(bytes);
                }
            }
            (hasher.count() > 0).then(|| hasher.finalize().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use std::collections::BTreeSet;

    use super::*;
    use crate::fingerprint::Details;
    use crate::ids::SelectionHash;
    use crate::{Ignore, Owner};

    fn scanned(root: &RootDir, ignore: &Ignore) -> (SelectionHash, Fingerprint) {
        let tree = SourceTree { ignore: Some(ignore), ..SourceTree::whole(root, Owner::Root) };
        let describe = |out: &mut Vec<u8>, entry: &Entry<'_>| {
            out.extend_from_slice(&entry.stat.ino.to_le_bytes());
            Ok(fingerprint(entry.path, entry.stat))
        };
        let mut hasher = Hasher::new();
        let sum = hash_entries(&tree, &tree.select_literal("").unwrap(), &mut hasher, &describe).unwrap();
        (hasher.finish(), sum)
    }

    fn fingerprint(path: &Path, stat: &Stat) -> Fingerprint {
        Fingerprint::of_entry(path, Owner::Root, stat, &Details::None)
    }

    /// Checks that the parallel scan finds the same entries as the sequential walk, and returns the
    /// same digest each time.
    #[test]
    fn scan_and_walk_find_the_same_entries() {
        let dir = Scratch::new();
        for d in 0..40 {
            let inner = dir.join(format!("d{d}/e/f"));
            std::fs::create_dir_all(&inner).unwrap();
            (0..20).for_each(|f| std::fs::write(inner.join(format!("{f}.txt")), "x").unwrap());
            std::fs::write(dir.join(format!("d{d}/e.skip")), "").unwrap();
        }
        std::fs::create_dir_all(dir.join("flat/z")).unwrap();
        (0..2500).for_each(|f| std::fs::write(dir.join(format!("flat/{f}")), "").unwrap());
        std::fs::write(dir.join("flat/z/99"), "").unwrap();
        let root = RootDir::open(&dir).unwrap();
        let mut digests = BTreeSet::new();
        let table = ["", "**/*.skip\nd3", "*\n!d5/e/f/7.txt\n!d6/e/none", "flat\n!flat/99", "flat\n!flat/z/99"];
        for ignored in table {
            let ignore = Ignore::parse(ignored).unwrap();
            let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
            let mut walked = Fingerprint::default();
            tree.walk::<SourceError>(Path::new(""), |_, path, stat| {
                walked += fingerprint(path, stat);
                Ok(())
            })
            .unwrap();
            let first = scanned(&root, &ignore);
            assert_eq!(first.1, walked, "{ignored:?}");
            (0..5).for_each(|_| assert_eq!(scanned(&root, &ignore), first, "{ignored:?}"));
            digests.insert(first.0);
        }
        assert_eq!(digests.len(), table.len());
    }

    /// The entries of a large directory are hashed in chunks of its names, including excluded ones.
    #[test]
    fn excluded_names_do_not_change_the_digest() {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join("flat/m")).unwrap();
        (0..900).for_each(|f| std::fs::write(dir.join(format!("flat/{f}")), "").unwrap());
        std::fs::write(dir.join("flat/m/x"), "").unwrap();
        let root = RootDir::open(&dir).unwrap();
        for ignored in ["**/*.log", "**/*.log\n**/8*", "flat\n!flat/m/x", "flat\n!flat/7?"] {
            let ignore = Ignore::parse(ignored).unwrap();
            let few = scanned(&root, &ignore).0;
            (0..1300).for_each(|f| std::fs::write(dir.join(format!("flat/{f}.log")), "").unwrap());
            let many = scanned(&root, &ignore).0;
            (0..1300).for_each(|f| std::fs::remove_file(dir.join(format!("flat/{f}.log"))).unwrap());
            assert_eq!(few, many, "{ignored:?}");
        }
    }
}
