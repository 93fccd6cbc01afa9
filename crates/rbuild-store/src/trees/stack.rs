//! Stacks of trees as lower directories of an overlay.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::store::Store;
use crate::trees::tree::TreeId;

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

impl Store {
    /// Returns the lower directories of an overlay of these trees (lowest first) in overlay order,
    /// highest first.
    pub fn lower_dirs(&self, trees: &[TreeId]) -> Vec<PathBuf> {
        distinct(trees).into_iter().rev().map(|tree| self.tree_path(tree)).collect()
    }
}

#[cfg(test)]
mod tests;
