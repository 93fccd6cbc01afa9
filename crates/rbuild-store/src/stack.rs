use std::collections::HashSet;
use std::path::PathBuf;

use crate::layout::Store;
use crate::trees::TreeId;

/// Trees that lie on each other, the lowest first, each of them once: where a tree occurs several times, its lower occurrences
/// are left out. An overlay refuses a directory that it has already (ELOOP), and what the trees show together is the same:
///
/// Looking a name up goes from the highest tree down, at the root and in every directory that was merged on the way. Wherever
/// the lower occurrence would be asked for a name, the higher one was asked before it, and has the same entry. If that is a
/// whiteout, a file or an opaque directory, the search ends there and never reaches the lower one. If it is a plain directory,
/// the lower occurrence adds no name to it, and neither owner, mode nor attributes, which are those of the highest. By
/// induction over the path it adds nothing anywhere. Hard links stay within a tree.
pub(crate) fn distinct(trees: &[TreeId]) -> Vec<&TreeId> {
    let mut seen = HashSet::new();
    let mut kept: Vec<&TreeId> = trees.iter().rev().filter(|tree| seen.insert(*tree)).collect();
    kept.reverse();
    kept
}

impl Store {
    /// The lower directories of an overlay of these trees (the lowest first), in the order of overlays: the highest first.
    pub fn lower_dirs(&self, trees: &[TreeId]) -> Vec<PathBuf> {
        distinct(trees).into_iter().rev().map(|tree| self.tree_path(tree)).collect()
    }
}

#[cfg(test)]
mod tests;
