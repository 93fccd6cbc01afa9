//! Stacks of trees as lower directories of an overlay.

use rbuild_linux::parallel::locked;
use std::collections::HashSet;
use std::path::PathBuf;

use crate::error::Result;
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::trees::id::TreeId;
use crate::trees::tree::Trees;
use crate::workspace::Workspace;

/// Maximum number of lower directories. `detached_overlay` takes 999, including those that a
/// container adds for its mount points.
const MAX_LOWERS: usize = 900;

/// Number of trees that are merged together if there are more. Stacks that grow by one tree per
/// step share the merged directory for that many steps.
const MERGED: usize = 400;

/// Returns the trees of a stack (lowest first) without duplicates: of several occurrences only the
/// highest is kept. An overlay rejects duplicate directories (ELOOP), and the merged content is the
/// same:
///
/// Lookup of a name proceeds from the highest tree down, at the root and in every merged directory.
/// Wherever it would reach the lower occurrence, it has visited the higher one before, which has
/// the same entry. If that is a whiteout, a file or an opaque directory, the lookup ends there. If
/// it is a plain directory, the lower occurrence contributes no names, and neither owner, mode nor
/// attributes, which come from the highest directory. By induction over the path, the lower
/// occurrence contributes nothing. Hard links never leave their tree.
pub(crate) fn distinct(trees: &[TreeId]) -> Vec<&TreeId> {
    let mut seen = HashSet::new();
    let mut kept: Vec<&TreeId> = trees.iter().rev().filter(|tree| seen.insert(*tree)).collect();
    kept.reverse();
    kept
}

impl Trees<'_> {
    /// Returns the lower directories of an overlay of these trees (lowest first) in overlay order,
    /// highest first. The lowest ones of a very high stack are merged into one directory, which
    /// has hard links to their files.
    ///
    /// # Errors
    ///
    /// Fails if trees cannot be merged.
    pub fn lower_dirs(&self, work: &Workspace, trees: &[TreeId]) -> Result<Vec<PathBuf>> {
        let trees = distinct(trees);
        let too_many = trees.len().saturating_sub(MAX_LOWERS);
        let (lowest, others) = trees.split_at(too_many.next_multiple_of(MERGED));
        let mut lowers: Vec<PathBuf> = others.iter().rev().map(|tree| self.tree_path(tree)).collect();
        if !lowest.is_empty() {
            lowers.push(self.merged_once(work, lowest)?);
        }
        Ok(lowers)
    }

    /// Merges trees into a directory of the workspace, or returns that of an earlier call.
    fn merged_once(&self, work: &Workspace, trees: &[&TreeId]) -> Result<PathBuf> {
        let mut made = locked(&work.merged);
        let key = trees.iter().map(|tree| tree.name()).collect::<Vec<_>>().join(" ");
        if let Some(path) = made.get(&key) {
            return Ok(path.clone());
        }
        let (path, root) = work.new_dir()?;
        for tree in trees {
            merge(&[self.tree(tree)?], &root, MergedFiles::Linked, MergedWhiteouts::Applied)?;
        }
        made.insert(key, path.clone());
        Ok(path)
    }
}

#[cfg(test)]
mod tests;
