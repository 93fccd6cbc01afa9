//! Sources of `COPY --parents`: matches a pattern below the pivot directories.
//!
//! Patterns do not match through symbolic links; a link that matches is selected as a link.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, Stat, Trail};
use rbuild_paths::{in_root, is_pattern};

use crate::glob::Glob;
use crate::ignore::Ignore;
use crate::select::{Selected, SourceError, SourceTree, Take};
use crate::walk::{RulesBelow, names};

/// A directory on the stack of the traversal.
struct Level {
    /// Path relative to the pivot.
    relative: PathBuf,
    rules: RulesBelow,
    /// Remaining names, last one first.
    names: Vec<OsString>,
    stat: Stat,
    /// The directory is part of the selection already.
    kept: bool,
    /// The pattern matched this directory or one above: everything not excluded is selected.
    inside: bool,
}

impl SourceTree<'_> {
    /// Selects the files of a `--parents` source. Each is named by its path after the pivot `/./`,
    /// or by its whole path, and preceded by its parent directories up to the pivot. A pattern
    /// without a match selects only the pivot.
    pub fn select_with_parents(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let (above, kept) = source.split_once("/./").unwrap_or(("", source));
        let pattern = in_root(kept).join("/");
        let bad = || SourceError::BadPattern(source.to_string());
        let glob = Glob::new(&pattern, true).ok_or_else(bad)?;
        let not_there = || self.not_found(source, &in_root(source).into_iter().collect::<PathBuf>());
        let mut found = Vec::new();
        let pivots = SourceTree { exclude: None, ..*self };
        let pivots =
            if is_pattern(above) { pivots.select(above)? } else { vec![pivots.pivot(above).ok_or_else(not_there)?] };
        for pivot in pivots {
            if pivot.stat.kind == Kind::Dir {
                let take = if pattern.is_empty() { Take::Kept } else { Take::Above };
                found.push(Selected { name: PathBuf::new(), take, ..pivot.clone() });
                self.match_below(&pivot.path, &glob, &mut found).map_err(|e| e.of_found(self.root))?;
            }
        }
        let required = !is_pattern(above) && !is_pattern(kept) && !pattern.is_empty();
        if required && found.iter().all(|item| item.take == Take::Above) {
            return Err(self.link_on_the_way(source).unwrap_or_else(not_there));
        }
        Ok(found)
    }

    fn link_on_the_way(&self, source: &str) -> Option<SourceError> {
        let path: PathBuf = in_root(source).into_iter().collect();
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let is_link = |path: &&Path| self.root.stat(path).is_ok_and(|stat| stat.kind == Kind::Symlink);
        let link = above.filter(is_link).last()?.to_path_buf();
        Some(SourceError::BehindLink { path: source.to_string(), link })
    }

    fn pivot(&self, above: &str) -> Option<Selected> {
        self.select_literal(above).ok().filter(|pivot| pivot.stat.kind == Kind::Dir)
    }

    fn match_below(&self, pivot: &Path, glob: &Glob, found: &mut Vec<Selected>) -> Result<(), SourceError> {
        let negations = [self.ignore, self.exclude].into_iter().flatten().any(Ignore::has_negations);
        let select = |relative: &Path, take, stat: Stat| Selected {
            path: pivot.join(relative),
            name: relative.to_path_buf(),
            take,
            stat,
        };
        let mut trail = Trail::new(self.root.sub(pivot)?);
        let mut stack = vec![Level {
            names: names(trail.last())?.into_iter().rev().collect(),
            stat: trail.last().stat_self()?,
            rules: self.rules_below(pivot, Path::new("")),
            relative: PathBuf::new(),
            kept: true,
            inside: false,
        }];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.pop() else {
                stack.pop();
                trail.leave()?;
                continue;
            };
            let (relative, mut inside) = (level.relative.join(&name), level.inside);
            let Some((stat, taken)) = self.look(trail.last(), &level.rules, &name)? else { continue };
            inside |= glob.matches(&relative.to_string_lossy());
            if taken && inside {
                for level in stack.iter_mut().filter(|level| !level.kept) {
                    level.kept = true;
                    found.push(select(&level.relative, Take::Above, level.stat));
                }
                found.push(select(&relative, Take::Kept, stat));
                continue;
            }
            let worthwhile = if inside { negations } else { glob.leads_into(&relative.to_string_lossy()) };
            if stat.kind == Kind::Dir && worthwhile {
                let rules = self.rules_inside(&stack[stack.len() - 1].rules, &name);
                let names = names(trail.enter(&name)?)?.into_iter().rev().collect();
                stack.push(Level { names, stat, rules, relative, kept: false, inside });
            }
        }
        Ok(())
    }
}
