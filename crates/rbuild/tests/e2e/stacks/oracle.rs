//! The expected result of a stack of layers, computed by applying entry after entry to a list of
//! nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use crate::forge::Meta;

pub type Xattrs = Vec<(String, Vec<u8>)>;

/// A byte and its number of repetitions.
pub type Content = (u8, usize);

/// An entry of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    File(PathBuf, Content, Meta, Xattrs),
    Dir(PathBuf, Meta, Xattrs),
    Symlink(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    Whiteout(PathBuf),
    Opaque(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Dir(Meta, Xattrs, /* no entry describes it */ bool),
    /// Equal numbers are hard links to one file, also across repetitions of a layer.
    File(u64, Content, Meta, Xattrs),
    Symlink(PathBuf),
}

/// The oracle: the file system after some layers.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    pub nodes: BTreeMap<PathBuf, Node>,
    pub files: u64,
    pub numbers: BTreeMap<String, u64>,
}

/// The maximum number of symlinks in the resolution of a path, as in the kernel.
const MAX_SYMLINKS: usize = 40;

impl Tree {
    pub fn paths(&self) -> Vec<PathBuf> {
        self.nodes.keys().cloned().collect()
    }

    pub fn files(&self) -> Vec<PathBuf> {
        self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(..))).map(|(path, _)| path.clone()).collect()
    }

    pub fn dirs(&self) -> Vec<PathBuf> {
        self.nodes.iter().filter(|(_, node)| !matches!(node, Node::File(..))).map(|(path, _)| path.clone()).collect()
    }

    /// Returns the path with all links resolved, or `None` for a loop of links. Components that do
    /// not exist are kept.
    pub fn resolve(&self, path: &Path) -> Option<PathBuf> {
        let parts = |path: &Path| -> Vec<PathBuf> {
            path.components()
                .filter(|c| matches!(c, Component::Normal(_)))
                .map(|c| c.as_os_str().into())
                .rev()
                .collect()
        };
        let (mut done, mut todo, mut links) = (PathBuf::new(), parts(path), 0);
        while let Some(part) = todo.pop() {
            done.push(part);
            if let Some(Node::Symlink(to)) = self.nodes.get(&done) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return None;
                }
                done.pop();
                if to.is_absolute() {
                    done.clear();
                }
                todo.extend(parts(to));
            }
        }
        Some(done)
    }

    pub fn remove(&mut self, path: &Path) {
        self.nodes.retain(|p, _| !p.starts_with(path));
    }

    /// Creates the missing parents of an entry. Returns the resolved path of the entry, or `None`
    /// if it cannot exist there.
    pub fn make_above(&mut self, path: &Path, mtime: u64, own: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
        let above = self.resolve(path.parent()?)?;
        let mut dirs: Vec<&Path> = above.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        dirs.reverse();
        for dir in dirs {
            match self.nodes.get(dir) {
                Some(Node::Dir(..)) => {}
                // An entry below a file of the same layer is invalid.
                Some(_) if own.contains(dir) => return None,
                _ => {
                    self.remove(dir);
                    let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime };
                    self.nodes.insert(dir.to_path_buf(), Node::Dir(meta, Vec::new(), true));
                }
            }
            own.insert(dir.to_path_buf());
        }
        Some(above.join(path.file_name()?))
    }

    /// Returns true if a layer has an entry below a link and the same entry under its own name. The
    /// entries of a layer are a set of paths, so the order of such entries is not defined.
    pub fn overlaps_itself(&self, entries: &[Entry]) -> Option<bool> {
        let place = |entry: &Entry| match entry {
            Entry::File(path, ..) | Entry::Symlink(path, _) | Entry::HardLink(path, _) | Entry::Dir(path, ..) => {
                Some((self.resolve(path.parent()?)?.join(path.file_name()?), path.clone()))
            }
            Entry::Whiteout(path) => Some((self.resolve(path.parent()?)?, path.parent()?.to_path_buf())),
            Entry::Opaque(path) => Some((self.resolve(path)?, path.clone())),
        };
        let places = entries.iter().map(place).collect::<Option<Vec<_>>>()?;
        let (linked, own): (Vec<_>, Vec<_>) = places.iter().partition(|(real, written)| real != written);
        let overlaps = |(real, _): &&(PathBuf, PathBuf)| {
            own.iter().any(|(other, _)| other.starts_with(real) || real.starts_with(other))
                || linked.iter().any(|(other, _)| other != real && other.starts_with(real))
        };
        Some(linked.iter().any(overlaps))
    }

    /// Applies a layer; returns `None` if no file system has such a layer.
    pub fn apply(&mut self, entries: &[Entry]) -> Option<()> {
        if self.overlaps_itself(entries)? {
            return None;
        }
        self.apply_whiteouts(entries)?;
        // Paths created by this layer.
        let mut own = BTreeSet::new();
        // Files of lower layers that this layer links to and does not replace afterwards, because
        // the order of such entries is not defined.
        let mut linked: BTreeSet<PathBuf> = BTreeSet::new();
        for (at, entry) in entries.iter().enumerate() {
            match entry {
                Entry::HardLink(path, to) => linked.extend(self.link(path, to, &mut own)?),
                _ => self.apply_entry(entries, at, &mut own)?,
            }
            let is_dir = |path: &Path| matches!(self.nodes.get(path), Some(Node::Dir(..)));
            let replaced =
                |to: &PathBuf| own.contains(to) || to.ancestors().skip(1).any(|p| own.contains(p) && !is_dir(p));
            if linked.iter().any(replaced) {
                return None;
            }
        }
        let valid = !self.overlaps_itself(entries)? && !repeats_itself(entries) && !marks_below_a_leaf(entries)?;
        valid.then_some(())
    }

    /// Applies the whiteouts and opaque markers to the lower layers, wherever they occur in the
    /// archive.
    fn apply_whiteouts(&mut self, entries: &[Entry]) -> Option<()> {
        for entry in entries {
            match entry {
                Entry::Whiteout(path) => {
                    let path = self.resolve(path.parent()?)?.join(path.file_name()?);
                    self.remove(&path);
                }
                Entry::Opaque(path) => {
                    let path = self.resolve(path)?;
                    self.nodes.retain(|p, _| p == &path || !p.starts_with(&path));
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Applies an entry that is not a hard link, and adds its path to `own`.
    fn apply_entry(&mut self, entries: &[Entry], at: usize, own: &mut BTreeSet<PathBuf>) -> Option<()> {
        match &entries[at] {
            Entry::File(path, content, meta, xattrs) => {
                let path = self.make_above(path, meta.mtime, own)?;
                self.remove(&path);
                let number = self.number(entries, at);
                self.nodes.insert(path.clone(), Node::File(number, *content, meta.clone(), xattrs.clone()));
                own.insert(path);
            }
            Entry::Dir(path, meta, xattrs) => {
                let path = self.make_above(path, meta.mtime, own)?;
                let mut all = xattrs.clone();
                match self.nodes.get(&path) {
                    // A second entry for a directory of the same layer removes nothing.
                    Some(Node::Dir(_, before, _)) if own.contains(&path) && all.is_empty() => all = before.clone(),
                    Some(Node::Dir(..)) => {}
                    _ => self.remove(&path),
                }
                self.nodes.insert(path.clone(), Node::Dir(meta.clone(), all, false));
                own.insert(path);
            }
            Entry::Symlink(path, to) => {
                let path = self.make_above(path, 1_000_000, own)?;
                self.remove(&path);
                self.nodes.insert(path.clone(), Node::Symlink(to.clone()));
                own.insert(path);
            }
            Entry::Opaque(path) => {
                let path = self.make_above(&path.join("x"), 0, own)?.parent()?.to_path_buf();
                if !matches!(self.nodes.get(&path), Some(Node::Dir(..))) {
                    return None;
                }
            }
            // The parent directory must exist, too.
            Entry::Whiteout(path) => drop(self.make_above(path, 0, own)?),
            Entry::HardLink(..) => unreachable!("applied by `link`"),
        }
        Some(())
    }

    /// Applies a hard link. Returns its target in a list if that is a file of a lower layer.
    fn link(&mut self, path: &Path, to: &Path, own: &mut BTreeSet<PathBuf>) -> Option<Vec<PathBuf>> {
        let to = self.resolve(to.parent()?)?.join(to.file_name()?);
        let path = self.make_above(path, 1_000_000, own)?;
        if path == to || to.starts_with(&path) {
            return None;
        }
        let node = self.nodes.get(&to)?.clone();
        if matches!(node, Node::Dir(..)) {
            return None;
        }
        let lower = if own.contains(&to) { Vec::new() } else { vec![to] };
        self.remove(&path);
        self.nodes.insert(path.clone(), node);
        own.insert(path);
        Some(lower)
    }

    /// Returns the number of a file, derived from its layer and its position there.
    pub fn number(&mut self, layer: &[Entry], at: usize) -> u64 {
        let next = self.numbers.len() as u64;
        *self.numbers.entry(format!("{at} {layer:?}")).or_insert(next)
    }

    /// Returns one line for each path.
    pub fn lines(&self) -> Vec<String> {
        let mut first: BTreeMap<u64, &Path> = BTreeMap::new();
        let line = |(path, node): (&'_ PathBuf, &'_ Node)| match node {
            Node::Dir(meta, xattrs, implied) => {
                let mtime = if *implied { "-".into() } else { meta.mtime.to_string() };
                format!("{path:?} dir {:o} {}:{} {mtime} {xattrs:?}", meta.mode, meta.uid, meta.gid)
            }
            Node::Symlink(to) => format!("{path:?} -> {to:?}"),
            Node::File(..) => String::new(),
        };
        let mut lines = Vec::new();
        for (path, node) in &self.nodes {
            let Node::File(number, content, meta, xattrs) = node else {
                lines.push(line((path, node)));
                continue;
            };
            let same = *first.entry(*number).or_insert(path);
            let mut text = format!("{path:?} {:o} {}:{} {} {xattrs:?}", meta.mode, meta.uid, meta.gid, meta.mtime);
            write!(text, " {}x{} as {same:?}", content.1, content.0).unwrap();
            lines.push(text);
        }
        lines
    }
}

/// Returns true if a whiteout or an opaque marker is below a path that is not a directory after the
/// layer was applied.
fn marks_below_a_leaf(entries: &[Entry]) -> Option<bool> {
    let leaf = |entry: &Entry| match entry {
        Entry::File(path, ..) | Entry::Symlink(path, _) | Entry::HardLink(path, _) => Some(path.clone()),
        _ => None,
    };
    let leaves: Vec<PathBuf> = entries.iter().filter_map(leaf).collect();
    for entry in entries {
        let dir = match entry {
            Entry::Whiteout(path) => path.parent()?,
            Entry::Opaque(path) => path,
            _ => continue,
        };
        if leaves.iter().any(|leaf| dir.starts_with(leaf)) {
            return Some(true);
        }
    }
    Some(false)
}

/// Returns true if a layer has two entries for one path, or an entry for a parent after its
/// children. No archive of a file system has either.
fn repeats_itself(entries: &[Entry]) -> bool {
    let path = |entry: &Entry| match entry {
        Entry::File(path, ..) | Entry::Symlink(path, _) | Entry::HardLink(path, _) | Entry::Dir(path, ..) => {
            path.clone()
        }
        Entry::Whiteout(path) => path.with_file_name(".wh"),
        Entry::Opaque(path) => path.join(".wh"),
    };
    let paths: Vec<PathBuf> = entries.iter().map(path).collect();
    let is_mark = |path: &Path| path.file_name() == Some(std::ffi::OsStr::new(".wh"));
    paths
        .iter()
        .enumerate()
        .any(|(i, path)| paths[i + 1..].iter().any(|later| path.starts_with(later) && !is_mark(later)))
}
