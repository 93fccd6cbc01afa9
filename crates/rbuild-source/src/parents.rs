//! Sources of `COPY --parents`: matches a pattern below the pivot directories.
//!
//! Patterns do not match through symbolic links; a link that matches is selected as a link.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rbuild_linux::{DirStack, FileKind, Stat};
use rbuild_paths::{Glob, SourcePattern, in_root};

use crate::ignore::Ignore;
use crate::select::{CopiedPart, Selected, SourceError, SourceTree};
use crate::walk::{RulesBelow, names};

/// A directory on the stack of the traversal.
struct ParentsLevel {
    /// Path relative to the pivot.
    relative: PathBuf,
    rules: RulesBelow,
    /// Remaining names, last one first.
    names: Vec<OsString>,
    stat: Stat,
    /// The directory is part of the selection already.
    kept: bool,
    /// The pattern matched this directory or one above it: everything that is not excluded is
    /// selected.
    inside: bool,
}

impl SourceTree<'_> {
    /// Selects the files below the pivots of a `--parents` source. Each is named by its path after
    /// the pivot and preceded by its parent directories up to the pivot. A pattern without a match
    /// selects only the pivot. With `whole`, the pivots themselves are selected with their content.
    pub(crate) fn below_pivots(
        &self,
        source: &SourcePattern,
        pivot: &SourcePattern,
        below: &Glob,
        whole: bool,
    ) -> Result<Vec<Selected>, SourceError> {
        let tree = SourceTree { exclude: None, ..*self };
        let pivots = match pivot.path() {
            Some(_) => vec![tree.pivot(pivot.text()).ok_or_else(|| self.not_there(source))?],
            None => tree.select(pivot)?,
        };
        let mut found = Vec::new();
        for pivot in pivots.into_iter().filter(|pivot| pivot.stat.kind == FileKind::Dir) {
            let take = if whole { CopiedPart::Kept } else { CopiedPart::Above };
            found.push(Selected { name: PathBuf::new(), take, ..pivot.clone() });
            self.match_below(&pivot.path, below, &mut found).map_err(|e| e.of_found(self.root))?;
        }
        Ok(found)
    }

    /// Returns the error for a `--parents` source that selects nothing.
    pub(crate) fn nothing_below(&self, source: &SourcePattern) -> SourceError {
        self.link_on_the_way(source.text()).unwrap_or_else(|| self.not_there(source))
    }

    fn not_there(&self, source: &SourcePattern) -> SourceError {
        self.not_found(source.text(), &in_root(source.text()).into_iter().collect::<PathBuf>())
    }

    fn link_on_the_way(&self, source: &str) -> Option<SourceError> {
        let path: PathBuf = in_root(source).into_iter().collect();
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let is_link = |path: &&Path| self.root.stat(path).is_ok_and(|stat| stat.kind == FileKind::Symlink);
        let link = above.filter(is_link).last()?.to_path_buf();
        Some(SourceError::CrossesLink { path: source.to_string(), link })
    }

    fn pivot(&self, above: &str) -> Option<Selected> {
        self.select_literal(above).ok().filter(|pivot| pivot.stat.kind == FileKind::Dir)
    }

    fn match_below(&self, pivot: &Path, glob: &Glob, found: &mut Vec<Selected>) -> Result<(), SourceError> {
        let negations = [self.ignore, self.exclude].into_iter().flatten().any(Ignore::has_negations);
        let select = |relative: &Path, take, stat: Stat| Selected {
            path: pivot.join(relative),
            name: relative.to_path_buf(),
            take,
            stat,
        };
        let mut dirs = DirStack::new(self.root.sub(pivot)?);
        let mut stack = vec![ParentsLevel {
            names: names(dirs.last())?.into_iter().rev().collect(),
            stat: dirs.last().stat_self()?,
            rules: self.rules_below(pivot, Path::new("")),
            relative: PathBuf::new(),
            kept: true,
            inside: false,
        }];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.pop() else {
                stack.pop();
                dirs.leave()?;
                continue;
            };
            let (relative, mut inside) = (level.relative.join(&name), level.inside);
            let Some((stat, taken)) = self.look(dirs.last(), &level.rules, &name)? else { continue };
            inside |= glob.matches(&relative.to_string_lossy());
            if taken && inside {
                for level in stack.iter_mut().filter(|level| !level.kept) {
                    level.kept = true;
                    found.push(select(&level.relative, CopiedPart::Above, level.stat));
                }
                found.push(select(&relative, CopiedPart::Kept, stat));
                continue;
            }
            let worthwhile = if inside { negations } else { glob.leads_into(&relative.to_string_lossy()) };
            if stat.kind == FileKind::Dir && worthwhile {
                let rules = self.rules_inside(&stack[stack.len() - 1].rules, &name);
                let names = names(dirs.enter(&name)?)?.into_iter().rev().collect();
                stack.push(ParentsLevel { names, stat, rules, relative, kept: false, inside });
            }
        }
        Ok(())
    }
}
