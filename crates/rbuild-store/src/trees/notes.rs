//! Names of the files next to a tree that more than one module reads.

/// References of a layer's tree to lower layers.
pub(crate) const LOWER_REFS: &str = "leaning";
