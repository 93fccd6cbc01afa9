//! Selection of the files that a source of COPY or a mount names.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rbuild_linux::{FileKind, Inode, MAX_DEPTH, RootDir, Stat, UidGid, quoted};
use rbuild_paths::{Glob, SourceForm, SourcePattern, in_root};
use rbuild_remedy::{ExcludingRule, closest_file};

use crate::hashes::HashCache;
use crate::ignore::Ignore;

/// An error of selecting or reading a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file. `path` is as written in the Dockerfile; `similar` is an existing file with a
    /// similar name; `ignored` is the rule that excludes the file if it
    /// exists.
    #[error("`{path}` not found")]
    NotFound { path: String, similar: Option<String>, ignored: Option<Box<ExcludingRule>> },
    /// A symbolic link whose target does not exist inside the root.
    #[error("`{path}` is a symbolic link to {}, which does not exist", quoted(target))]
    DeadLink { path: String, target: PathBuf },
    /// A pattern with a syntax error.
    #[error("invalid pattern `{0}`: a class `[…]` is empty, unclosed, or has a `-` without both ends")]
    BadPattern(String),
    /// A `--parents` source with a symbolic link among its parent directories.
    #[error("`{path}` crosses the symbolic link {}, which --parents does not follow", quoted(link))]
    CrossesLink { path: String, link: PathBuf },
    /// A failed system call.
    #[error(transparent)]
    Kernel(#[from] rbuild_linux::Error),
    /// A file changed between two reads.
    #[error("{} changed while it was being read", quoted(.0))]
    Changed(PathBuf),
    #[error("{} is nested more than {MAX_DEPTH} directories deep", quoted(.0))]
    TooDeep(PathBuf),
    /// The store, or a path in it. The store is never part of a build context.
    #[error("`{0}` is in the store of this build")]
    InStore(String),
}

impl SourceError {
    /// Converts an error from reading something that was found below `root` earlier: if it has
    /// disappeared or is of another type, it has changed.
    pub(crate) fn of_found(self, root: &RootDir) -> SourceError {
        match self {
            SourceError::Kernel(e) if e.is_gone() => match e.object().path() {
                Some(path) => SourceError::Changed(path.strip_prefix(root.label()).unwrap_or(path).to_path_buf()),
                None => SourceError::Kernel(e),
            },
            other => other,
        }
    }
}

/// Owner and mode of copied files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Owned by root. For the build context, where the owner depends on the checkout.
    Root,
    /// Owned by root, with the modes that git stores (644 or 755), independent of the umask.
    RootWithGitModes,
    /// Owner and mode of the source.
    AsIs,
}

impl Owner {
    /// Returns true for files outside the store, which other programs may change while they are
    /// read. Files of stages and images are immutable, except that a copy that shares them changes
    /// their link count and ctime.
    pub fn may_change(self) -> bool {
        self != Owner::AsIs
    }

    /// Returns the user and group of the copied file.
    pub fn ids(self, stat: &Stat) -> UidGid {
        match self {
            Owner::AsIs => stat.owner(),
            Owner::Root | Owner::RootWithGitModes => UidGid::ROOT,
        }
    }

    /// Returns the mode of the copied file.
    pub fn mode(self, stat: &Stat) -> u32 {
        match (self, stat.kind) {
            (Owner::RootWithGitModes, FileKind::Dir) => 0o755,
            (Owner::RootWithGitModes, FileKind::File) if stat.mode & 0o100 == 0 => 0o644,
            (Owner::RootWithGitModes, FileKind::File) => 0o755,
            _ => stat.mode,
        }
    }
}

/// The store of the build. A store below a build context is not part of the context: a build writes
/// to the store, so a copy of it would contain itself.
///
/// It is identified by device and inode, because the context may contain it under any name.
#[derive(Debug)]
pub struct StoreDir {
    inode: Inode,
    found: OnceLock<PathBuf>,
}

impl StoreDir {
    /// Returns the store directory with this inode.
    pub fn new(inode: Inode) -> StoreDir {
        StoreDir { inode, found: OnceLock::new() }
    }

    /// Returns true if the metadata is that of the store.
    pub fn matches(&self, stat: &Stat) -> bool {
        stat.kind == FileKind::Dir && stat.inode() == self.inode
    }

    /// Returns the path of the store relative to the context, if a selection or a walk has skipped
    /// the store there.
    pub fn skipped_path(&self) -> Option<&Path> {
        self.found.get().map(PathBuf::as_path)
    }

    fn record_skipped(&self, path: impl FnOnce() -> PathBuf) {
        self.found.get_or_init(path);
    }
}

/// A directory from which steps read files.
pub struct SourceTree<'a> {
    /// All paths are resolved inside this directory.
    pub root: &'a RootDir,
    /// Rules of the ignore file, relative to the root.
    pub ignore: Option<&'a Ignore>,
    /// `--exclude` rules, relative to each source (for a file, its name).
    pub exclude: Option<&'a Ignore>,
    /// A directory that is not part of the tree.
    pub store: Option<&'a StoreDir>,
    /// Owner and mode of copied files.
    pub owner: Owner,
    /// Digests of files that were read before.
    pub hashes: Option<&'a HashCache>,
}

/// One file or directory that a source selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Path relative to the root, with links resolved.
    pub path: PathBuf,
    /// Name at the destination; with `--parents`, the path after the pivot.
    pub name: PathBuf,
    /// The part that is copied.
    pub take: CopiedPart,
    /// Metadata of the file.
    pub stat: Stat,
}

/// The part of a selected file or directory that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedPart {
    /// A file under its base name, or the content of a directory.
    Content,
    /// The file, or the directory with its content, under its full name.
    Kept,
    /// Only the directory, as parent of kept files. The name of the pivot is empty.
    Above,
}

impl Selected {
    /// Returns the path against which exclusions below this entry are matched.
    pub(crate) fn exclusion_path(&self) -> &Path {
        match self.take {
            CopiedPart::Content => Path::new(""),
            CopiedPart::Kept | CopiedPart::Above => &self.name,
        }
    }

    /// Returns true if the entry itself is copied, and not only its content.
    pub fn copies_entry(&self) -> bool {
        self.stat.kind != FileKind::Dir || (self.take != CopiedPart::Content && !self.name.as_os_str().is_empty())
    }
}

impl<'a> SourceTree<'a> {
    /// Returns the tree of all files of a directory.
    pub fn whole(root: &'a RootDir, owner: Owner) -> SourceTree<'a> {
        SourceTree { root, ignore: None, exclude: None, store: None, owner, hashes: None }
    }
}

impl SourceTree<'_> {
    /// Selects the files that match the pattern or path `source`, in order of their names. A
    /// selected link is followed inside the root; links in the part matched by wildcards are not
    /// followed. With `--parents`, files are selected with their parent directories.
    ///
    /// # Errors
    ///
    /// Returns an error if a path does not exist or is in the store, or if a pattern is invalid or
    /// matches a dangling link. A pattern without a match is not an error.
    pub fn select(&self, source: &SourcePattern) -> Result<Vec<Selected>, SourceError> {
        let mut found = match source.form() {
            SourceForm::Path(path) => vec![self.at(source.text(), path)?],
            SourceForm::Glob { start, components } => self.matching(source.text(), start, components)?,
            SourceForm::Parents { pivot, below, whole, required } => {
                let found = self.below_pivots(source, pivot, below, *whole)?;
                let is_missing = *required && found.iter().all(|item| item.take == CopiedPart::Above);
                return if is_missing { Err(self.nothing_below(source)) } else { Ok(found) };
            }
            SourceForm::Invalid => return Err(SourceError::BadPattern(source.text().to_string())),
        };
        // Exclusions match a file by its name; below directories they apply during the walk.
        found
            .retain(|s| s.stat.kind == FileKind::Dir || !self.exclude.is_some_and(|e| e.excludes(&base_name(&s.name))));
        Ok(found)
    }

    /// Selects the file at the path `source`; no character is special.
    pub fn select_literal(&self, source: &str) -> Result<Selected, SourceError> {
        self.at(source, &in_root(source).into_iter().collect::<PathBuf>())
    }

    fn at(&self, source: &str, path: &Path) -> Result<Selected, SourceError> {
        let found = self.named(path)?.filter(|found| !self.is_in_store(&found.path));
        found.ok_or_else(|| self.not_found(source, path))
    }

    /// Selects the files below `start`, which is resolved as a path, whose components match. As in
    /// BuildKit, `start` must exist.
    fn matching(&self, source: &str, start: &Path, components: &[Glob]) -> Result<Vec<Selected>, SourceError> {
        if let Some(inside) = self.visible(start)?.filter(|path| self.is_in_store(path)) {
            return Err(SourceError::InStore(inside.to_string_lossy().into_owned()));
        }
        let mut found = match self.named(start)? {
            Some(start) => vec![start.path],
            None => return Err(self.not_found(source, start)),
        };
        for glob in components {
            let mut next = Vec::new();
            for dir in &found {
                let is_open = |stat: Stat| stat.kind == FileKind::Dir && !self.skips_store(&stat, || dir.clone());
                if !dir.as_os_str().is_empty() && !self.root.stat(dir).is_ok_and(is_open) {
                    continue;
                }
                let dir_of = |e: rbuild_linux::Error| SourceError::from(e).of_found(self.root);
                for entry in self.root.sub(dir).and_then(|dir| dir.entries()).map_err(dir_of)? {
                    // Bytes that are not UTF-8 match as one character each.
                    if glob.matches(&entry.name.to_string_lossy()) {
                        next.push(dir.join(&entry.name));
                    }
                }
            }
            found = next;
        }
        let mut selected = Vec::new();
        for path in &found {
            match self.named(path)? {
                Some(found) => selected.push(found),
                // A matching link selects its target, so a dangling one is an error. A link into
                // the store is skipped, like the store itself.
                None if self
                    .link_target(path)
                    .is_some_and(|target| !self.is_in_store(target.strip_prefix("/").unwrap_or(&target)))
                    && !self.exclude.is_some_and(|e| e.excludes(&base_name(path))) =>
                {
                    return Err(self.not_found(&path.to_string_lossy(), path));
                }
                None => {}
            }
        }
        Ok(selected)
    }

    /// Returns the target of a link, unless the link is ignored.
    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name()?);
        let real = self.visible(dir).ok()??.join(name);
        let is_link = !self.ignored(&real) && self.root.stat(&real).is_ok_and(|stat| stat.kind == FileKind::Symlink);
        is_link.then(|| self.root.resolve(&real).ok()).flatten()
    }

    /// Selects the file at `path`; `None` if it does not exist, is ignored or is the store. A file
    /// inside the store is found only if the path leads to it without a symbolic link.
    fn named(&self, path: &Path) -> Result<Option<Selected>, SourceError> {
        let Some(real) = self.visible(path)? else { return Ok(None) };
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        let stat = match self.root.stat(&real) {
            Ok(stat) if stat.is_whiteout() => return Ok(None),
            Ok(stat) => stat,
            Err(e) if e.is_not_found() || e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if self.skips_store(&stat, || real.clone()) || (real != path && self.is_in_store(&real)) {
            return Ok(None);
        }
        // An ignored directory exists only if a negated rule re-includes something in it.
        let there = !self.ignored(&real) || (stat.kind == FileKind::Dir && self.has_reincluded(&real)?);
        Ok(there.then_some(Selected { path: real, name, take: CopiedPart::Content, stat }))
    }

    /// Resolves links in `path`. Returns a path relative to the root, or `None` if a link on the
    /// way is ignored.
    pub(crate) fn visible(&self, path: &Path) -> Result<Option<PathBuf>, SourceError> {
        let real = self
            .root
            .resolve_by(path, |link| !self.ignored(link))
            .map_err(|e| if e.is_not_found() { SourceError::from(e).of_found(self.root) } else { e.into() })?;
        Ok(real.map(|real| real.strip_prefix("/").map(Path::to_path_buf).unwrap_or(real)))
    }

    /// Returns true if a negated rule re-includes anything below an ignored directory.
    fn has_reincluded(&self, dir: &Path) -> Result<bool, SourceError> {
        enum SelectionEnd {
            Found,
            Failed(SourceError),
        }
        impl From<SourceError> for SelectionEnd {
            fn from(e: SourceError) -> SelectionEnd {
                SelectionEnd::Failed(e)
            }
        }
        if !self.ignore.is_some_and(Ignore::has_negations) {
            return Ok(false);
        }
        match (SourceTree { exclude: None, ..*self }).walk(dir, |_, _, _| Err(SelectionEnd::Found)) {
            Ok(()) => Ok(false),
            Err(SelectionEnd::Found) => Ok(true),
            Err(SelectionEnd::Failed(e)) => Err(e),
        }
    }

    /// Returns true if the metadata is that of the store, and records its path.
    pub(crate) fn skips_store(&self, stat: &Stat, path: impl FnOnce() -> PathBuf) -> bool {
        let Some(store) = self.store.filter(|store| store.matches(stat)) else { return false };
        store.record_skipped(path);
        true
    }

    /// Returns true if the metadata is that of the store. Records its path unless the ignore file
    /// excludes it anyway.
    pub(crate) fn is_store(&self, stat: &Stat, excluded: bool, path: impl FnOnce() -> PathBuf) -> bool {
        if excluded { self.store.is_some_and(|store| store.matches(stat)) } else { self.skips_store(stat, path) }
    }

    /// Returns true if a path without links is the store or is inside it.
    fn is_in_store(&self, real: &Path) -> bool {
        let Some(store) = self.store else { return false };
        let mut above = real.ancestors().filter(|path| !path.as_os_str().is_empty());
        above.any(|path| self.root.stat(path).is_ok_and(|stat| store.matches(&stat)))
    }

    pub(crate) fn ignored(&self, path: &Path) -> bool {
        match self.ignore {
            Some(ignore) if !ignore.is_empty() && !path.as_os_str().is_empty() => {
                ignore.excludes(&path.to_string_lossy())
            }
            _ => false,
        }
    }

    pub(crate) fn not_found(&self, source: &str, path: &Path) -> SourceError {
        let is_in_store = |real: PathBuf| !self.ignored(&real) && self.is_in_store(&real);
        if self.visible(path).ok().flatten().is_some_and(is_in_store) {
            return SourceError::InStore(source.to_string());
        }
        // Look again without the ignore file.
        let seen = |tree: &SourceTree<'_>| tree.named(path).is_ok_and(|found| found.is_some());
        let is_ignored = !seen(self) && seen(&SourceTree { ignore: None, ..*self });
        let ignored = if is_ignored { self.excluding_rule(path) } else { None };
        if let Some(target) = self.link_target(path).filter(|_| !is_ignored) {
            return SourceError::DeadLink { path: source.to_string(), target };
        }
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let names: Vec<String> = self
            .root
            .sub(dir)
            .and_then(|d| d.entries())
            .unwrap_or_default()
            .iter()
            .filter(|e| !self.ignored(&dir.join(&e.name)))
            .filter_map(|e| e.name.to_str().map(str::to_string))
            .collect();
        let wanted = name.to_string_lossy();
        let similar = closest_file(&wanted, &names).map(|n| dir.join(n).to_string_lossy().into_owned());
        SourceError::NotFound { path: source.to_string(), similar, ignored }
    }
}

impl SourceTree<'_> {
    /// Returns the rule that excludes a file, or the first link on the way to it that one excludes.
    fn excluding_rule(&self, path: &Path) -> Option<Box<ExcludingRule>> {
        let ignore = self.ignore?;
        let rule = |path: &Path| ignore.excluding_rule(&path.strip_prefix("/").unwrap_or(path).to_string_lossy());
        let of_link = OnceCell::new();
        let real = self.root.resolve_by(path, |link| {
            if let Some(found) = rule(link) {
                let _ = of_link.set(found);
            }
            true
        });
        of_link.into_inner().or_else(|| rule(&real.ok()??)).map(Box::new)
    }
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let rule = || Box::new(ExcludingRule { file: ".dockerignore".into(), line: 3, pattern: "*.py".into() });
        let not_found = |similar: Option<&str>, ignored| SourceError::NotFound {
            path: "app.py".into(),
            similar: similar.map(Into::into),
            ignored,
        };
        let errors = [
            not_found(None, None),
            not_found(Some("App.py"), None),
            not_found(None, Some(rule())),
            SourceError::DeadLink { path: "a".into(), target: "/b".into() },
            SourceError::BadPattern("a[".into()),
            SourceError::CrossesLink { path: "a/b".into(), link: "a".into() },
            SourceError::Kernel(rbuild_linux::Error::new(
                "openat",
                Path::new("a"),
                std::io::Error::from_raw_os_error(13),
            )),
            SourceError::Changed("a".into()),
            SourceError::TooDeep("a".into()),
            SourceError::InStore("cache/blobs".into()),
        ];
        let variants =
            variants!(SourceError { NotFound, DeadLink, BadPattern, CrossesLink, Kernel, Changed, TooDeep, InStore });
        assert_recorded!("SourceError", variants.table(&errors, |e| e, no_remedy));
    }
}
