//! Sequential directory traversal.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_linux::{DirStack, FileKind, RootDir, Stat, Timestamp};

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
}

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
