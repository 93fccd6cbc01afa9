//! Resolves references of layers to lower layers ([`LowerRefs`]). A layer's tree is shared between
//! images, so it is never modified. Instead, a small fix-up tree is generated for each stack and
//! placed directly above the layer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_image::Hasher;
use rbuild_layer::{LayerError, LowerRefs, OPAQUE, ORIGIN, keep_in_tree, marks_opaque};
use rbuild_linux::{FileKind, RootDir, Stat, Timestamp};

use crate::error::{Result, StoreError};
use crate::once::Lock;
use crate::session::Session;
use crate::trees::copies::copy_tree_entry;
use crate::trees::id::TreeId;
use crate::trees::notes::LOWER_REFS;
use crate::trees::union::{FoundEntry, ImageTrees, UnionView};

/// Maximum length of a chain of hard links.
const MAX_LINK_CHAIN: usize = 40;

impl ImageTrees<'_> {
    /// Returns the trees of an image's layers, lowest first, each followed by its fix-up tree if it
    /// needs one.
    pub(crate) fn with_fixups(&self, session: Session<'_>, layers: Vec<TreeId>) -> Result<Vec<TreeId>> {
        let mut trees = Vec::new();
        for layer in layers {
            let note = self.store.trees().tree_note(&layer, LOWER_REFS)?;
            // An overlay ignores the opaque mark on root directories, so the trees below are
            // dropped here.
            if is_opaque(&self.store.trees().tree(&layer)?)? {
                trees.clear();
            }
            trees.push(layer);
            if !note.is_empty() {
                let damaged = StoreError::damaged(format!("tree {}", trees[trees.len() - 1].name()));
                let lower_refs = LowerRefs::from_bytes(&note)
                    .ok_or_else(|| damaged("its list of references to lower layers is invalid"))?;
                trees.extend(self.fixup(session, &trees, &lower_refs)?);
            }
        }
        Ok(trees)
    }

    /// Returns the fix-up tree of the last of `trees` above the others, creating it once. Returns
    /// `None` if none is needed.
    #[tracing::instrument(target = "store", name = "fixup", level = "debug", skip_all)]
    fn fixup(&self, session: Session<'_>, trees: &[TreeId], lower_refs: &LowerRefs) -> Result<Option<TreeId>> {
        let [below @ .., layer] = trees else { return Ok(None) };
        let layer = self.store.trees().tree(layer)?;
        if lower_refs.is_empty()
            && below.last().map_or(Ok(true), |below| same_dir(&self.store.trees().tree(below)?, &layer))?
        {
            return Ok(None);
        }
        let mut hasher = Hasher::new();
        hasher.field("mend 2");
        for tree in trees {
            hasher.field(tree.name());
        }
        let key = hasher.finish();
        let fill = |dir: &RootDir| {
            let open = trees.iter().map(|tree| self.store.trees().tree(tree)).collect::<Result<Vec<_>>>()?;
            FixupBuilder::new(open, lower_refs, dir.sub("fs")?)?.fixup()
        };
        let id = session.tree_once(Lock::Fixup, &key, fill)?.into_inner();
        let tree = self.store.trees().tree(&id)?;
        Ok((!tree.entries()?.is_empty() || !same_dir(&tree, &layer)?).then_some(id))
    }
}

struct FixupBuilder<'a> {
    lower_refs: &'a LowerRefs,
    implied: BTreeSet<&'a Path>,
    layer: RootDir,
    /// The tree whose root directory provides the metadata of the root.
    root: RootDir,
    /// The trees below the layer.
    below: UnionView,
    /// The layer and the trees below it.
    all: UnionView,
    /// The fix-up tree being created.
    fixup: RootDir,
    /// Directories of the layer at paths where the lower trees have a symbolic link, and the link's
    /// target.
    moved: BTreeMap<PathBuf, PathBuf>,
    /// Times of the directories created, set at the end.
    times: Vec<(PathBuf, Timestamp)>,
}

impl<'a> FixupBuilder<'a> {
    /// Creates the state for the last of `trees`, the layer, above the others.
    fn new(mut trees: Vec<RootDir>, lower_refs: &'a LowerRefs, fixup: RootDir) -> Result<FixupBuilder<'a>> {
        let copies = trees.iter().map(RootDir::try_clone).collect::<std::result::Result<Vec<_>, _>>()?;
        let all = UnionView::new(copies.into_iter());
        let layer = trees.pop().expect("there is a layer");
        let implied = lower_refs.dirs.iter().map(PathBuf::as_path).collect();
        let root = trees.last().filter(|_| lower_refs.root).unwrap_or(&layer).try_clone()?;
        let below = UnionView::new(trees.into_iter());
        Ok(FixupBuilder {
            lower_refs,
            implied,
            layer,
            root,
            below,
            all,
            fixup,
            moved: BTreeMap::new(),
            times: Vec::new(),
        })
    }

    fn fixup(mut self) -> Result<()> {
        let root = copy_metadata(&self.root, &self.fixup)?;
        self.times.push((PathBuf::new(), root));
        for dir in &self.lower_refs.dirs {
            self.describe(dir)?;
        }
        let targets: BTreeMap<_, _> = self.lower_refs.links.iter().map(|(name, file)| (name, file)).collect();
        for (name, file) in &self.lower_refs.links {
            let mut end = file;
            // The target may be such a link itself. A cycle ends at a path where nothing is found.
            for _ in 0..MAX_LINK_CHAIN {
                end = targets.get(end).copied().unwrap_or(end);
            }
            self.link(name, end)?;
        }
        for (path, mtime) in self.times.iter().rev() {
            self.fixup.sub(path)?.set_own_mtime(*mtime)?;
        }
        Ok(())
    }

    /// Gives an undescribed directory the metadata of the lower trees. If they have a symbolic link
    /// there, moves the directory's content to the link's target.
    fn describe(&mut self, dir: &Path) -> Result<()> {
        if dir.ancestors().skip(1).any(|above| self.moved.contains_key(above)) || self.is_alone(dir)? {
            return Ok(());
        }
        let Some(FoundEntry { dir: from, name, stat }) = self.below.find(dir)? else { return Ok(()) };
        match stat.kind {
            FileKind::Dir => drop(self.dir(dir)?),
            FileKind::Symlink => {
                let to = self.below.resolve(dir)?;
                self.move_all(dir, &to)?;
                let above = self.dir(dir.parent().unwrap_or(Path::new("")))?;
                // Moved content may have been placed at the link's own path.
                if !above.exists(&name)? {
                    put(&from, &name, &stat, &above, &name)?;
                }
                self.moved.insert(dir.to_path_buf(), to);
            }
            // The directory replaces it.
            _ => {}
        }
        Ok(())
    }

    /// Returns true if an opaque parent directory in the layer hides the lower trees at that path.
    /// A directory that is opaque itself keeps its own metadata.
    fn is_alone(&self, path: &Path) -> Result<bool> {
        for above in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if is_opaque(&self.layer.sub(above)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns a directory of the fix-up tree, creating it and its parents with the metadata they
    /// should have.
    fn dir(&mut self, path: &Path) -> Result<RootDir> {
        let mut above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        above.into_iter().try_for_each(|dir| self.one_dir(dir, dir))?;
        Ok(self.fixup.sub(path)?)
    }

    /// Creates one such directory. Its metadata comes from the layer's directory at `own` if the
    /// layer describes it, else from the lower trees, or from `own` if they have no such directory.
    fn one_dir(&mut self, path: &Path, own: &Path) -> Result<()> {
        if self.fixup.exists(path)? {
            return Ok(());
        }
        let mine = || self.layer.sub(own).ok();
        let found = |f: FoundEntry| (f.stat.kind == FileKind::Dir).then(|| f.dir.sub(&f.name)).transpose();
        // The layer may also describe it under its own path.
        let described = [own, path].into_iter().find(|dir| !self.implied.contains(*dir) && self.is_own_dir(dir));
        let source = described.and_then(|dir| self.layer.sub(dir).ok());
        let source = match source {
            Some(dir) => Some(dir),
            None => self.below.find(path)?.map_or(Ok(None), found)?.or_else(mine),
        };
        let (dir, name) = self.fixup.parent(path)?;
        dir.create_dir(&name, 0o755)?;
        let made = dir.sub(&name)?;
        if let Some(source) = source {
            self.times.push((path.to_path_buf(), copy_metadata(&source, &made)?));
        }
        Ok(())
    }

    /// Returns true if the layer itself has a directory at the path, without a symbolic link on the
    /// way.
    fn is_own_dir(&self, path: &Path) -> bool {
        let mut steps = path.ancestors().filter(|p| !p.as_os_str().is_empty());
        steps.all(|step| matches!(self.layer.stat(step), Ok(stat) if stat.kind == FileKind::Dir))
    }

    /// Recreates the layer's content below `from` at the target of a symbolic link, `to`.
    fn move_all(&mut self, from: &Path, to: &Path) -> Result<()> {
        let mut stack = vec![(from.to_path_buf(), to.to_path_buf())];
        while let Some((own, path)) = stack.pop() {
            let path = if self.implied.contains(&*own) { self.below.resolve(&path)? } else { path };
            self.dir(path.parent().unwrap_or(Path::new("")))?;
            self.one_dir(&path, &own)?;
            let (source, dest) = (self.layer.sub(&own)?, self.fixup.sub(&path)?);
            if is_opaque(&source)? {
                dest.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
            }
            for entry in source.entries()? {
                let stat = source.stat_name(&entry.name)?;
                if source.is_whiteout(&entry.name, &stat)? {
                    dest.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
                    dest.create_whiteout(&entry.name)?;
                } else if stat.kind == FileKind::Dir {
                    stack.push((own.join(&entry.name), path.join(&entry.name)));
                } else {
                    put(&source, &entry.name, &stat, &dest, &entry.name)?;
                }
            }
        }
        Ok(())
    }

    /// Creates a hard link to a file of a lower layer. Both names are created in the fix-up tree,
    /// because hard links cannot span trees.
    fn link(&mut self, name: &Path, file: &Path) -> Result<()> {
        let (name, file) = (self.after_moves(name), self.after_moves(file));
        let (above, file_name) = (file.parent().unwrap_or(Path::new("")), file.file_name().unwrap_or_default());
        let file = self.all.resolve(above)?.join(file_name);
        let wrong = |reason: &str| {
            let reason = format!("is a hard link to {}, {reason}", rbuild_linux::quoted(&file));
            StoreError::from(LayerError::Entry { name: name.to_string_lossy().into_owned(), reason })
        };
        let (found, stays) = match self.all.find(&file)? {
            Some(found) => (Some(found), true),
            // The layer links the file and deletes its original name.
            None => (self.below.find(&file)?, false),
        };
        let found = found.ok_or_else(|| wrong("which is neither in its layer nor in a lower one"))?;
        if found.stat.kind == FileKind::Dir {
            return Err(wrong("which is a directory"));
        }
        if !stays {
            let to = self.dir(name.parent().unwrap_or(Path::new("")))?;
            let to_name = name.file_name().unwrap_or_default();
            to.remove_all(to_name)?;
            return put(&found.dir, &found.name, &found.stat, &to, to_name);
        }
        let from = self.dir(file.parent().unwrap_or(Path::new("")))?;
        let file_name = file.file_name().unwrap_or_default();
        if !from.exists(file_name)? {
            put(&found.dir, &found.name, &found.stat, &from, file_name)?;
        }
        let to = self.dir(name.parent().unwrap_or(Path::new("")))?;
        let to_name = name.file_name().unwrap_or_default();
        to.remove_all(to_name)?;
        Ok(to.hard_link(&from, file_name, to_name)?)
    }

    fn after_moves(&self, path: &Path) -> PathBuf {
        let moved = path.ancestors().find_map(|above| Some((above, self.moved.get(above)?)));
        moved.map_or_else(|| path.to_path_buf(), |(above, to)| to.join(path.strip_prefix(above).unwrap_or(path)))
    }
}

/// Copies owner, mode and attributes to a directory, and returns the time to set once it is
/// complete.
fn copy_metadata(like: &RootDir, dir: &RootDir) -> Result<Timestamp> {
    let stat = like.stat_self()?;
    dir.set_own_meta(stat.owner(), stat.mode, stat.mtime)?;
    for (attr, value) in kept(like)? {
        dir.set_xattr(OsStr::new(""), &attr, &value)?;
    }
    Ok(stat.mtime)
}

/// Returns true if two directories have the same metadata except for their times.
fn same_dir(a: &RootDir, b: &RootDir) -> Result<bool> {
    let described = |stat: Stat| (stat.owner(), stat.mode);
    Ok(described(a.stat_self()?) == described(b.stat_self()?) && kept(a)? == kept(b)?)
}

fn kept(dir: &RootDir) -> Result<BTreeMap<OsString, Vec<u8>>> {
    Ok(dir.xattrs(OsStr::new(""))?.into_iter().filter(|(attr, _)| keep_in_tree(attr)).collect())
}

fn is_opaque(dir: &RootDir) -> Result<bool> {
    Ok(marks_opaque(&dir.xattrs(OsStr::new(""))?))
}

/// Hard-links a file of another tree, or copies it if that is impossible. Linking is safe because
/// files of trees are never written to.
fn put(from: &RootDir, name: &OsStr, stat: &Stat, to: &RootDir, to_name: &OsStr) -> Result<()> {
    match to.hard_link(from, name, to_name) {
        Ok(()) => Ok(()),
        Err(_) => Ok(copy_tree_entry(from, name, stat, to, to_name)?),
    }
}

#[cfg(test)]
mod tests;
