//! The items of a copy: files and directories that its sources select, downloaded files, and
//! here-documents.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, RootDir, Timestamp};
use rbuild_plan::{CopyItem, CopyStep};
use rbuild_source::{CopiedPart, Details, Selected, SourceTree};

use crate::ops::copy::archive::unpack_selected;
use crate::ops::copy::copier::{Copier, CopySettings, Defers};
use crate::ops::copy::destination::{DestDir, Links};
use crate::ops::copy::downloaded::downloaded;
use crate::ops::copy::entry::{DestEntry, Origin};
use crate::ops::copy_error::{CopyError, CopyProblem};
use crate::ops::incremental_copy::IncrementalCopy;
use crate::ops::users;

/// The files to copy.
#[derive(Clone, Copy)]
pub struct SelectedFiles<'a> {
    /// The tree that they are in.
    pub tree: &'a SourceTree<'a>,
    /// The selected files of each source of the step; empty for a source that is downloaded.
    pub selected: &'a [Vec<Selected>],
}

/// Copies the selected and the downloaded files, and the step's here-documents, into `root`. With
/// `incremental`, the writing of files is deferred to it where possible. Returns the number of
/// files written to the destination path itself; each of them replaced the previous one.
pub fn copy(
    step: &CopyStep,
    files: Option<SelectedFiles<'_>>,
    root: &RootDir,
    settings: CopySettings<'_>,
    mut incremental: Option<&mut IncrementalCopy>,
) -> Result<usize, CopyError> {
    let general = |problem: CopyProblem| CopyError { index: None, problem };
    let chown = match &step.chown {
        Some(spec) => Some(users::owner(&users::in_root(root), spec).map_err(|e| general(e.into()))?),
        None => None,
    };
    if let (Some(incremental), Some(SelectedFiles { tree, .. })) = (&mut incremental, files) {
        incremental.source_stays = !tree.owner.may_change();
    }
    let (times, links, made) = (HashMap::new(), Links::default(), HashSet::new());
    let (defers, at_dest) = (Defers::Nothing, 0);
    let mut copier = Copier { step, root, chown, settings, times, links, made, incremental, defers, at_dest };
    let others = step.sources.len() > 1;
    copier.no_file_for_several().map_err(|problem| CopyError { index: others.then_some(0), problem })?;
    for (i, source) in step.sources.iter().enumerate() {
        let copied = match &source.item {
            CopyItem::Files(_) => match files {
                Some(SelectedFiles { tree, selected }) => items(&mut copier, tree, &selected[i]),
                None => Ok(()),
            },
            CopyItem::Download { file, unpack } => downloaded(&mut copier, file, *unpack),
        };
        copied.map_err(|problem| CopyError { index: Some(i), problem })?;
    }
    for file in &step.inline {
        inline(&mut copier, &file.name, file.content.as_bytes()).map_err(general)?;
    }
    finish_dirs(&mut copier).map_err(general)?;
    Ok(copier.at_dest)
}

/// Copies the items of one source.
fn items(copier: &mut Copier<'_>, tree: &SourceTree<'_>, items: &[Selected]) -> Result<(), CopyProblem> {
    let step = copier.step;
    let is_mixed = !step.inline.is_empty() || step.sources.iter().any(|source| source.download().is_some());
    copier.defers = if is_mixed {
        Defers::Nothing
    } else if step.sources.len() <= 1 && items.len() <= 1 {
        Defers::Plain
    } else if step.unpack {
        // Files from archives are not tracked.
        Defers::Nothing
    } else {
        Defers::Tracked
    };
    copier.links.clear();
    for item in items {
        if item.take == CopiedPart::Content {
            copier.links.clear();
        }
        self::item(copier, tree, item)?;
    }
    Ok(())
}

fn item(copier: &mut Copier<'_>, tree: &SourceTree<'_>, item: &Selected) -> Result<(), CopyProblem> {
    copier.add_fingerprint(item.fingerprint());
    let dest = Path::new(&copier.step.dest);
    if item.take != CopiedPart::Content {
        return kept_item(copier, tree, item, dest);
    }
    if item.stat.kind == FileKind::Dir {
        let dir = copier.dir(dest, copier.parent_mode())?;
        // As in BuildKit, the root directory of a tree is copied with the time of the build, and
        // other directories with their own times.
        let inner = !item.path.as_os_str().is_empty();
        copier.times.insert(dir.real.clone(), if inner { item.stat.mtime } else { copier.now() });
        return directory(copier, tree, item, dir);
    }
    if copier.step.unpack && item.stat.kind == FileKind::File && unpack_selected(copier, tree, item, dest)? {
        return Ok(());
    }
    let (dir, name) = copier.file_place(item.name.as_os_str())?;
    copier.written_to(&dir);
    single(copier, tree, item, &dir, &name)
}

fn single(
    copier: &mut Copier<'_>,
    tree: &SourceTree<'_>,
    item: &Selected,
    dir: &DestDir,
    name: &OsStr,
) -> Result<(), CopyProblem> {
    let (source_dir, _) = tree.root.parent(&item.path)?;
    let source_name = item.path.file_name().unwrap_or_default();
    let origin = Origin { dir: &source_dir, name: source_name, path: &item.path, may_change: tree.owner.may_change() };
    copier.entry(tree, origin, &item.stat, DestEntry { dir, name })
}

/// Copies an item whose parent directories `--parents` keeps, or one of these parents. Parents
/// are selected before their contents.
fn kept_item(copier: &mut Copier<'_>, tree: &SourceTree<'_>, item: &Selected, dest: &Path) -> Result<(), CopyProblem> {
    let top = copier.dir(dest, copier.parent_mode())?;
    let whole = item.stat.kind == FileKind::Dir && item.take == CopiedPart::Kept;
    let (Some(parent), Some(name)) = (item.name.parent(), item.name.file_name()) else {
        return if whole { directory(copier, tree, item, top) } else { Ok(()) };
    };
    let dir = copier.member_dir(&top.real.join(parent))?;
    if item.take == CopiedPart::Above && copier.is_dir(&dir.real.join(name))? {
        return keep_mode(copier, tree, item, &dir, name);
    }
    single(copier, tree, item, &dir, name)?;
    if !whole {
        return Ok(());
    }
    let dir = copier.member_dir(&top.real.join(&item.name))?;
    directory(copier, tree, item, dir)
}

/// Handles a kept parent directory that already exists: only its mode is taken from the source.
fn keep_mode(
    copier: &mut Copier<'_>,
    tree: &SourceTree<'_>,
    item: &Selected,
    dir: &DestDir,
    name: &OsStr,
) -> Result<(), CopyProblem> {
    let (source, source_name) = tree.root.parent(&item.path)?;
    let details = Details::read(&source, &source_name, &item.stat)?;
    copier.note(tree, &item.path, &item.stat, &details, DestEntry { dir, name });
    let is_link = dir.handle.stat_name(name)?.kind == FileKind::Symlink;
    if !is_link && !copier.made.contains(&dir.real.join(name)) {
        dir.handle.chmod(name, tree.owner.mode(&item.stat))?;
    }
    Ok(())
}

fn directory(
    copier: &mut Copier<'_>,
    tree: &SourceTree<'_>,
    item: &Selected,
    dest: DestDir,
) -> Result<(), CopyProblem> {
    let top = dest.real.clone();
    let mut open = (PathBuf::new(), dest);
    tree.walk_selected::<CopyProblem>(item, |source, path, stat| {
        let parent = path.parent().unwrap_or(Path::new(""));
        if open.0.as_os_str() != parent.as_os_str() {
            open = (parent.to_path_buf(), copier.member_dir(&top.join(parent))?);
        }
        let name = path.file_name().unwrap_or_default();
        let origin = Origin { dir: source, name, path: &item.path.join(path), may_change: tree.owner.may_change() };
        copier.entry(tree, origin, stat, DestEntry { dir: &open.1, name })
    })
}

/// Writes a here-document as a file.
fn inline(copier: &mut Copier<'_>, name: &str, content: &[u8]) -> Result<(), CopyProblem> {
    let (dir, name) = copier.file_place(OsStr::new(name))?;
    let place = dir.real.join(&name);
    copier.written_to(&dir);
    copier.clear_place(&dir, &name)?;
    if let Some(incremental) = &mut copier.incremental {
        incremental.listing.cover(&place);
    }
    let mut file = dir.handle.create_file(&name, 0o644)?;
    file.write_all(content).map_err(|e| rbuild_linux::Error::new("write", &place, e))?;
    dir.handle.chown(&name, copier.chown.unwrap_or_default())?;
    dir.handle.chmod(&name, copier.mode(0o644, false))?;
    Ok(dir.handle.set_mtime(&name, copier.now())?)
}

fn finish_dirs(copier: &mut Copier<'_>) -> Result<(), CopyProblem> {
    // An archive may have replaced directories, or their parents, by links or files.
    let step = copier.step;
    let unpacks =
        step.unpack || step.sources.iter().any(|source| matches!(source.item, CopyItem::Download { unpack: true, .. }));
    let replaces = unpacks && step.sources.len() > 1;
    for (path, mtime) in std::mem::take(&mut copier.times) {
        match finish_dir(copier.root, &path, mtime, replaces) {
            Err(e) if replaces && e.is_gone() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Sets the time of a directory if it still is one. With `replaces`, the path may lead through
/// symbolic links to a directory that this copy did not create; that one is left unchanged.
fn finish_dir(root: &RootDir, path: &Path, mtime: Timestamp, replaces: bool) -> rbuild_linux::Result<()> {
    let relative = |path: &Path| path.strip_prefix("/").map_or_else(|_| path.to_path_buf(), Path::to_path_buf);
    if replaces && relative(&root.resolve(path)?) != relative(path) {
        return Ok(());
    }
    let (dir, name) = root.parent(path)?;
    if !name.is_empty() && dir.stat_name(&name)?.kind == FileKind::Dir {
        dir.set_mtime(&name, mtime)?;
    }
    Ok(())
}
