//! The copy of one step: its state, and the writing of selected items.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use rbuild_layer::Limits;
use rbuild_linux::{Kind, RootDir, Timestamp};
use rbuild_plan::{Chmod, CopyStep};
use rbuild_sandbox::Cancel;
use rbuild_source::{Details, Selected, SourceTree, Take};

use crate::cache::key;
use crate::ops::copy::destination::{Dir, Links};
use crate::ops::copy_error::{CopyError, Reason};
use crate::ops::incremental_copy::Track;
use crate::ops::users;

/// Settings of a copy that are not part of its step.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// Modification time of files and directories that have none in the source; seconds since 1970.
    pub now: i64,
    /// Limits on archives that ADD unpacks.
    pub limits: Limits,
    /// Cancels the copy.
    pub cancel: &'a Cancel,
}

impl Terms<'_> {
    pub(super) fn check(&self) -> Result<(), Reason> {
        if self.cancel.is_cancelled() { Err(Reason::Stopped) } else { Ok(()) }
    }
}

/// Copies the files that the step selects from `source` into `root`. With a `track`, files that are
/// unchanged since an earlier copy are left to it. Returns the number of files written to the
/// destination path itself, where each one replaces the previous one.
pub fn copy(
    step: &CopyStep,
    source: Option<&SourceTree<'_>>,
    root: &RootDir,
    terms: Terms<'_>,
    track: Option<&mut Track>,
) -> Result<usize, CopyError> {
    let general = |reason: Reason| CopyError { index: None, reason };
    let chown = match &step.chown {
        Some(spec) => Some(users::owner(&users::in_root(root), spec).map_err(|e| general(e.into()))?),
        None => None,
    };
    let (times, links, made) = (HashMap::new(), Links::default(), HashSet::new());
    let (defers, at_dest) = (Defers::Nothing, 0);
    let mut copier = Copier { step, root, chown, terms, times, links, made, track, defers, at_dest };
    let others = step.sources.len() > 1;
    copier.no_file_for_several().map_err(|reason| CopyError { index: others.then_some(0), reason })?;
    if let Some(tree) = source {
        for (i, pattern) in step.sources.iter().enumerate() {
            let at = |reason: Reason| CopyError { index: Some(i), reason };
            let items = key::select(tree, step, pattern).map_err(|e| at(e.into()))?;
            copier.defers = match others || items.len() > 1 {
                _ if !step.inline.is_empty() => Defers::Nothing,
                false => Defers::Plain,
                // Files from archives are not tracked.
                true if step.unpack => Defers::Nothing,
                true => Defers::Tracked,
            };
            copier.links.clear();
            for item in items {
                if item.take == Take::Content {
                    copier.links.clear();
                }
                copier.item(tree, &item).map_err(at)?;
            }
        }
    }
    for file in &step.inline {
        copier.inline(&file.name, file.content.as_bytes()).map_err(general)?;
    }
    copier.finish_dirs().map_err(general)?;
    Ok(copier.at_dest)
}

/// State of one copy. All stored paths are resolved and relative to the root, because symbolic
/// links in the image can lead from several names to the same place.
pub(super) struct Copier<'a> {
    pub(super) step: &'a CopyStep,
    pub(super) root: &'a RootDir,
    pub(super) chown: Option<(u32, u32)>,
    pub(super) terms: Terms<'a>,
    /// Modification times of directories, set after their contents have been written.
    pub(super) times: HashMap<PathBuf, Timestamp>,
    pub(super) links: Links,
    /// Directories that this copy created.
    pub(super) made: HashSet<PathBuf>,
    pub(super) track: Option<&'a mut Track>,
    pub(super) defers: Defers,
    /// Files written to the destination path itself.
    pub(super) at_dest: usize,
}

/// The files whose writing may be deferred.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Defers {
    Nothing,
    /// The step copies a single item, and no symbolic link of the image has been met below the
    /// destination: no two entries have the same destination path.
    Plain,
    /// A later entry may have the same destination path and replace the earlier one.
    Tracked,
}

impl Copier<'_> {
    /// Returns the mode of directories created for the destination path. A symbolic `--chmod` does
    /// not apply to them, and of an octal one only the permission bits do.
    pub(super) fn parent_mode(&self) -> u32 {
        match self.step.chmod {
            Some(Chmod::Octal(mode)) => mode & 0o777,
            _ => 0o755,
        }
    }

    fn item(&mut self, tree: &SourceTree<'_>, item: &Selected) -> Result<(), Reason> {
        self.see(item.sight());
        let dest = Path::new(&self.step.dest);
        if item.take != Take::Content {
            return self.kept_item(tree, item, dest);
        }
        if item.stat.kind == Kind::Dir {
            let dir = self.dir(dest, self.parent_mode())?;
            return self.directory(tree, item, dir);
        }
        if self.step.unpack && item.stat.kind == Kind::File && self.unpack_archive(tree, item, dest)? {
            return Ok(());
        }
        let (dir, name) = self.file_place(item.name.as_os_str())?;
        self.single(tree, item, &dir, &name)
    }

    fn single(&mut self, tree: &SourceTree<'_>, item: &Selected, dir: &Dir, name: &OsStr) -> Result<(), Reason> {
        let (source_dir, _) = tree.root.parent(&item.path)?;
        let source_name = item.path.file_name().unwrap_or_default();
        self.entry(tree, (&source_dir, source_name, &item.path), &item.stat, (dir, name))
    }

    /// Copies an item whose parent directories `--parents` keeps, or one of these parents. Parents
    /// are selected before their contents.
    fn kept_item(&mut self, tree: &SourceTree<'_>, item: &Selected, dest: &Path) -> Result<(), Reason> {
        let top = self.dir(dest, self.parent_mode())?;
        let whole = item.stat.kind == Kind::Dir && item.take == Take::Kept;
        let (Some(parent), Some(name)) = (item.name.parent(), item.name.file_name()) else {
            return if whole { self.directory(tree, item, top) } else { Ok(()) };
        };
        let dir = self.member_dir(&top.real.join(parent))?;
        if item.take == Take::Above && self.is_dir(&dir.real.join(name))? {
            return self.keep_mode(tree, item, &dir, name);
        }
        self.single(tree, item, &dir, name)?;
        if !whole {
            return Ok(());
        }
        let dir = self.member_dir(&top.real.join(&item.name))?;
        self.directory(tree, item, dir)
    }

    /// Handles a kept parent directory that already exists: takes only the mode from the source.
    fn keep_mode(&mut self, tree: &SourceTree<'_>, item: &Selected, dir: &Dir, name: &OsStr) -> Result<(), Reason> {
        let (source, source_name) = tree.root.parent(&item.path)?;
        let details = Details::read(&source, &source_name, &item.stat)?;
        self.note(tree, &item.path, &item.stat, &details, (dir, name));
        let is_link = dir.handle.stat_name(name)?.kind == Kind::Symlink;
        if !is_link && !self.made.contains(&dir.real.join(name)) {
            dir.handle.chmod(name, tree.owner.mode(&item.stat))?;
        }
        Ok(())
    }

    fn directory(&mut self, tree: &SourceTree<'_>, item: &Selected, dest: Dir) -> Result<(), Reason> {
        let top = dest.real.clone();
        let mut open = (PathBuf::new(), dest);
        tree.walk_selected::<Reason>(item, |source, path, stat| {
            let parent = path.parent().unwrap_or(Path::new(""));
            if open.0.as_os_str() != parent.as_os_str() {
                open = (parent.to_path_buf(), self.member_dir(&top.join(parent))?);
            }
            let name = path.file_name().unwrap_or_default();
            self.entry(tree, (source, name, &item.path.join(path)), stat, (&open.1, name))
        })
    }

    /// Writes a here-document as a file.
    fn inline(&mut self, name: &str, content: &[u8]) -> Result<(), Reason> {
        let (dir, name) = self.file_place(OsStr::new(name))?;
        let place = dir.real.join(&name);
        self.clear_place(&dir, &name)?;
        if let Some(track) = &mut self.track {
            track.listing.cover(&place);
        }
        let mut file = dir.handle.create_file(&name, 0o644)?;
        file.write_all(content).map_err(|e| rbuild_linux::Error::new("write", &place, e))?;
        let (uid, gid) = self.chown.unwrap_or((0, 0));
        dir.handle.chown(&name, uid, gid)?;
        dir.handle.chmod(&name, self.mode(0o644, false))?;
        Ok(dir.handle.set_mtime(&name, self.now())?)
    }

    pub(super) fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        self.step.chmod.as_ref().map_or(mode, |c| c.apply(mode, is_dir))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp { sec: self.terms.now, nsec: 0 }
    }

    fn finish_dirs(&mut self) -> Result<(), Reason> {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let (dir, name) = self.root.parent(&path)?;
            // An archive may have replaced the directory with something else.
            if !name.is_empty() && dir.stat_name(&name)?.kind == Kind::Dir {
                dir.set_mtime(&name, mtime)?;
            }
        }
        Ok(())
    }
}
