//! Directory traversal: sequential for copying, parallel for hashing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_image::Hasher;
use rbuild_linux::parallel::{Tasks, locked};
use rbuild_linux::{DirStack, FileKind, MAX_DEPTH, RootDir, Stat, Timestamp};

use crate::fingerprint::Fingerprint;
use crate::ignore::{Ignore, Inherited};
use crate::select::{Selected, SourceError, SourceTree};

impl SourceTree<'_> {
    /// Visits the entries below the directory `dir` (relative to the root): parents before
    /// children, in order of their names, without excluded paths and the store. Excluded
    /// directories are visited if they contain re-included entries. The visitor receives the open
    /// parent directory, the path relative to `dir`, and the metadata.
    ///
    /// # Errors
    ///
    /// Returns the first error of the visitor or of reading a directory.
    pub fn walk<E: From<SourceError>>(
        &self,
        dir: &Path,
        visit: impl FnMut(&RootDir, &Path, &Stat) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk_as(dir, Path::new(""), visit)
    }

    /// Like [`SourceTree::walk`], for a selected directory.
    pub fn walk_selected<E: From<SourceError>>(
        &self,
        item: &Selected,
        visit: impl FnMut(&RootDir, &Path, &Stat) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk_as(&item.path, item.exclusion_path(), visit)
    }

    fn walk_as<E: From<SourceError>>(
        &self,
        dir: &Path,
        exclusion_path: &Path,
        mut visit: impl FnMut(&RootDir, &Path, &Stat) -> Result<(), E>,
    ) -> Result<(), E> {
        let found = |e: rbuild_linux::Error| SourceError::from(e).of_found(self.root);
        let open = |handle: &RootDir, relative, rules, unseen| -> Result<WalkLevel, SourceError> {
            let mut names = names(handle).map_err(|e| e.of_found(self.root))?;
            names.reverse();
            Ok(WalkLevel { relative, names, rules, unseen })
        };
        let mut dirs = DirStack::new(self.root.sub(dir).map_err(found)?);
        let mut stack = vec![open(dirs.last(), PathBuf::new(), self.rules_below(dir, exclusion_path), None)?];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.pop() else {
                stack.pop();
                dirs.leave().map_err(found)?;
                continue;
            };
            let relative = level.relative.join(&name);
            let Some((stat, taken)) = self.look(dirs.last(), &level.rules, &name)? else { continue };
            if taken {
                visit_above(&mut stack, &dirs, &mut visit)?;
                visit(dirs.last(), &relative, &stat)?;
            }
            if stat.kind == FileKind::Dir {
                let rules = self.rules_inside(&stack[stack.len() - 1].rules, &name);
                let handle = dirs.enter(&name).map_err(found)?;
                stack.push(open(handle, relative, rules, (!taken).then_some(stat))?);
            }
        }
        Ok(())
    }

    /// Returns the most recently changed path of a selection, for diagnostics. If a file and its
    /// directory changed at the same time, returns the file. Unreadable entries are skipped.
    pub fn changed_last(&self, items: &[Selected]) -> Option<PathBuf> {
        let age = |stat: &Stat| (stat.ctime, stat.kind != FileKind::Dir);
        let mut last: Option<((Timestamp, bool), PathBuf)> = None;
        let mut see = |path: PathBuf, stat: &Stat| {
            if last.as_ref().is_none_or(|(known, _)| age(stat) > *known) {
                last = Some((age(stat), path));
            }
        };
        for item in items {
            see(item.path.clone(), &self.root.stat(&item.path).unwrap_or(item.stat));
            if item.stat.kind == FileKind::Dir {
                let _ = self.walk_selected::<SourceError>(item, |_, path, stat| {
                    see(item.path.join(path), stat);
                    Ok(())
                });
            }
        }
        last.map(|(_, path)| path)
    }

    /// Returns the verdicts of the rules for the entries of the directory `dir`. `seen` is its path
    /// for `--exclude`.
    pub(crate) fn rules_below(&self, dir: &Path, seen: &Path) -> RulesBelow {
        let of = |rules: Option<&Ignore>, path: &Path| {
            // Joining an empty path adds a trailing slash.
            let path = path.components().as_path().to_string_lossy().into_owned();
            let inherited = rules.map(|rules| rules.inherited_below(&path)).unwrap_or_default();
            Verdicts { path, inherited }
        };
        RulesBelow { ignore: of(self.ignore, dir), exclude: of(self.exclude, seen) }
    }

    /// Returns the verdicts for the entries of the subdirectory `name`, derived from those of its
    /// parent.
    pub(crate) fn rules_inside(&self, above: &RulesBelow, name: &OsStr) -> RulesBelow {
        let of = |rules: Option<&Ignore>, above: &Verdicts| {
            let path = above.entry(name);
            let inherited = rules.map(|rules| rules.inherited_from(&above.inherited, &path)).unwrap_or_default();
            Verdicts { path, inherited }
        };
        RulesBelow { ignore: of(self.ignore, &above.ignore), exclude: of(self.exclude, &above.exclude) }
    }

    /// Returns the metadata of an entry, and true if it is selected. An excluded directory is
    /// returned with false if it may contain re-included entries. Returns `None` for other excluded
    /// entries, the store, whiteouts, and entries that no longer exist.
    pub(crate) fn look(
        &self,
        parent: &RootDir,
        rules: &RulesBelow,
        name: &OsStr,
    ) -> Result<Option<(Stat, bool)>, SourceError> {
        let excludes = |ignore: Option<&Ignore>, of: &Verdicts| {
            ignore.filter(|ignore| !ignore.is_empty()).is_some_and(|ignore| of.exclude(ignore, name))
        };
        let excluded = excludes(self.ignore, &rules.ignore) || excludes(self.exclude, &rules.exclude);
        if excluded && ![self.ignore, self.exclude].into_iter().flatten().any(Ignore::has_negations) {
            return Ok(None);
        }
        let stat = match parent.stat_name(name) {
            Ok(stat) => stat,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let hidden = (excluded && stat.kind != FileKind::Dir)
            || stat.is_whiteout()
            || self.is_store(&stat, excluded, || PathBuf::from(rules.ignore.entry(name)));
        Ok((!hidden).then_some((stat, !excluded)))
    }

    /// Hashes the entries below a selected directory: for each, its path and the output of
    /// `describe`, in the order of [`SourceTree::walk`]. Uses several threads if there are many
    /// directories; all of them have ended when this function returns.
    pub(crate) fn digest(
        &self,
        item: &Selected,
        hasher: &mut Hasher,
        describe: &Describe<'_>,
    ) -> Result<Fingerprint, SourceError> {
        let (dir, exclusion_path) = (item.path.as_path(), item.exclusion_path());
        let scan = ContentScan { tree: self, dir, describe, parts: Mutex::new(vec![ScanPart::default()]) };
        let rules = Arc::new(self.rules_below(dir, exclusion_path));
        let top = Task { id: 0, relative: PathBuf::new(), rules, names: None, above: None };
        Tasks::run(top, |tasks, task| scan.work(tasks, task)).map_err(|e: SourceError| e.of_found(self.root))?;
        Ok(feed(&scan.parts.into_inner().unwrap_or_else(PoisonError::into_inner), hasher))
    }
}

/// Appends the hashed form of an entry to the buffer and returns its fingerprint. Receives the open
/// parent, the path relative to the scanned directory, and the metadata.
pub(crate) type Describe<'a> =
    dyn Fn(&mut Vec<u8>, &RootDir, &Path, &Stat) -> Result<Fingerprint, SourceError> + Sync + 'a;

/// Maximum number of names in one task.
const CHUNK: usize = 1000;

/// Verdicts of the ignore file and of `--exclude` that the entries of one directory inherit.
pub(crate) struct RulesBelow {
    ignore: Verdicts,
    exclude: Verdicts,
}

struct Verdicts {
    /// Path of the directory that these rules are matched against.
    path: String,
    inherited: Inherited,
}

impl Verdicts {
    /// Returns the path of an entry.
    fn entry(&self, name: &OsStr) -> String {
        let name = name.to_string_lossy();
        if self.path.is_empty() { name.into_owned() } else { format!("{}/{name}", self.path) }
    }

    fn exclude(&self, rules: &Ignore, name: &OsStr) -> bool {
        rules.excludes_entry(&self.inherited, &self.entry(name))
    }
}

struct WalkLevel {
    relative: PathBuf,
    names: Vec<OsString>,
    rules: RulesBelow,
    /// Metadata of an excluded directory that has not been visited yet.
    unseen: Option<Stat>,
}

/// Visits the excluded directories on the stack, before the first re-included entry in them.
fn visit_above<E: From<SourceError>>(
    stack: &mut [WalkLevel],
    dirs: &DirStack,
    visit: &mut impl FnMut(&RootDir, &Path, &Stat) -> Result<(), E>,
) -> Result<(), E> {
    for (at, level) in stack.iter_mut().enumerate().skip(1) {
        if let Some(stat) = level.unseen.take() {
            visit(&dirs.nth(at - 1).map_err(SourceError::from)?, &level.relative, &stat)?;
        }
    }
    Ok(())
}

pub(crate) fn names(dir: &RootDir) -> Result<Vec<OsString>, SourceError> {
    Ok(dir.entries()?.into_iter().map(|e| e.name).collect())
}

/// A directory to read, or a part of it (`names`).
struct Task {
    id: usize,
    relative: PathBuf,
    rules: Arc<RulesBelow>,
    names: Option<Vec<OsString>>,
    above: Option<Described>,
}

/// Hashed form of the entries of a directory, and the positions of other parts in it.
#[derive(Default)]
struct ScanPart {
    /// Hashed form of an excluded directory; used only if it contains re-included entries.
    above: Option<Described>,
    described: Described,
    inner: Vec<(usize, usize)>,
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
    describe: &'a Describe<'a>,
    parts: Mutex<Vec<ScanPart>>,
}

impl ContentScan<'_> {
    fn work(&self, tasks: &Tasks<Task, SourceError>, task: Task) -> Result<(), SourceError> {
        let id = task.id;
        let part = self.read(tasks, task)?;
        locked(&self.parts)[id] = part;
        Ok(())
    }

    fn read(&self, tasks: &Tasks<Task, SourceError>, task: Task) -> Result<ScanPart, SourceError> {
        let mut part = ScanPart { above: task.above, ..ScanPart::default() };
        let handle = self.tree.root.sub(self.dir.join(&task.relative))?;
        let names = match task.names {
            Some(names) => names,
            None => {
                let names = names(&handle)?;
                if names.len() > CHUNK {
                    for chunk in names.chunks(CHUNK) {
                        let (relative, rules) = (task.relative.clone(), task.rules.clone());
                        let names = Some(chunk.to_vec());
                        self.later(tasks, &mut part, Task { id: 0, relative, rules, names, above: None });
                    }
                    return Ok(part);
                }
                names
            }
        };
        for name in &names {
            let relative = task.relative.join(name);
            let Some((stat, taken)) = self.tree.look(&handle, &task.rules, name)? else { continue };
            if taken {
                self.describe(&mut part.described, &handle, &relative, &stat)?;
            }
            if stat.kind == FileKind::Dir {
                if relative.components().count() > MAX_DEPTH {
                    return Err(SourceError::TooDeep(self.dir.join(&relative)));
                }
                let mut above = (!taken).then(Described::default);
                above.iter_mut().try_for_each(|described| self.describe(described, &handle, &relative, &stat))?;
                let rules = Arc::new(self.tree.rules_inside(&task.rules, name));
                self.later(tasks, &mut part, Task { id: 0, relative, rules, names: None, above });
            }
        }
        Ok(part)
    }

    fn describe(
        &self,
        described: &mut Described,
        parent: &RootDir,
        relative: &Path,
        stat: &Stat,
    ) -> Result<(), SourceError> {
        let path = relative.as_os_str().as_encoded_bytes();
        described.bytes.extend_from_slice(&(path.len() as u64).to_le_bytes());
        described.bytes.extend_from_slice(path);
        described.fingerprint += (self.describe)(&mut described.bytes, parent, relative, stat)?;
        Ok(())
    }

    /// Queues a task under a new ID. Its result is inserted at the current position of `part`.
    fn later(&self, tasks: &Tasks<Task, SourceError>, part: &mut ScanPart, task: Task) {
        let id = {
            let mut parts = locked(&self.parts);
            parts.push(ScanPart::default());
            parts.len() - 1
        };
        part.inner.push((part.described.bytes.len(), id));
        tasks.add(Task { id, ..task });
    }
}

/// Hashes the parts in traversal order and returns the sum of their fingerprints. Uses an explicit
/// stack, because directories may be nested very deeply.
fn feed(parts: &[ScanPart], hasher: &mut Hasher) -> Fingerprint {
    // A part has a lower index than the parts inside it.
    let mut nonempty = vec![false; parts.len()];
    for (id, part) in parts.iter().enumerate().rev() {
        nonempty[id] = !part.described.bytes.is_empty() || part.inner.iter().any(|(_, inner)| nonempty[*inner]);
    }
    let mut fingerprint = Fingerprint::default();
    let mut stack = vec![(0, 0, 0)];
    while let Some((id, described, inner)) = stack.pop() {
        let part: &ScanPart = &parts[id];
        if inner == 0 {
            fingerprint += part.described.fingerprint;
            if let Some(above) = part.above.as_ref().filter(|_| nonempty[id]) {
                hasher.update(&above.bytes);
                fingerprint += above.fingerprint;
            }
        }
        let Some((end, child)) = part.inner.get(inner) else {
            hasher.update(&part.described.bytes[described..]);
            continue;
        };
        hasher.update(&part.described.bytes[described..*end]);
        stack.push((id, *end, inner + 1));
        stack.push((*child, 0, 0));
    }
    fingerprint
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::Owner;
    use crate::ids::SelectionHash;
    use std::os::unix::ffi::OsStrExt;

    /// Checks that the parallel scan finds the same entries in the same order as the sequential
    /// walk.
    #[test]
    fn scan_and_walk_find_the_same_entries() {
        let dir = Scratch::new();
        for d in 0..40 {
            let inner = dir.join(format!("d{d}/e/f"));
            std::fs::create_dir_all(&inner).unwrap();
            (0..20).for_each(|f| std::fs::write(inner.join(format!("{f}.txt")), "x").unwrap());
            std::fs::write(dir.join(format!("d{d}/e.skip")), "").unwrap();
        }
        std::fs::create_dir_all(dir.join("flat")).unwrap();
        (0..2500).for_each(|f| std::fs::write(dir.join(format!("flat/{f}")), "").unwrap());
        let root = RootDir::open(&dir).unwrap();
        for ignored in ["", "**/*.skip\nd3", "*\n!d5/e/f/7.txt\n!d6/e/none", "flat\n!flat/99"] {
            let ignore = Ignore::parse(ignored).unwrap();
            let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
            let mut walked = Hasher::new();
            let mut count = 0;
            tree.walk::<SourceError>(Path::new(""), |_, path, stat| {
                walked.field(path.as_os_str().as_bytes());
                walked.update(&stat.ino.to_le_bytes());
                count += 1;
                Ok(())
            })
            .unwrap();
            let walked = walked.finish::<SelectionHash>();
            let whole = tree.select_literal("").unwrap();
            for _ in 0..5 {
                let mut scanned = Hasher::new();
                let describe = |out: &mut Vec<u8>, _: &RootDir, _: &Path, stat: &Stat| {
                    out.extend_from_slice(&stat.ino.to_le_bytes());
                    Ok(Fingerprint::default())
                };
                tree.digest(&whole, &mut scanned, &describe).unwrap();
                assert_eq!(scanned.finish::<SelectionHash>(), walked, "{ignored:?}, {count} entries");
            }
        }
    }
}
