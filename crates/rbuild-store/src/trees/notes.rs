//! Names of the files next to a tree that more than one module reads.

/// References of a layer's tree to lower layers.
pub(crate) const LOWER_REFS: &str = "leaning";
/// Base of a tree that is stored as changes.
pub(crate) const CHANGES_NOTE: &str = "changes.json";
