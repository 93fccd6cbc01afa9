//! Cache keys, the explanation of misses, and results that a build may not use.

pub(crate) mod buildkit_keys;
pub(crate) mod explain;
pub(crate) mod key;
pub(crate) mod miss;
pub(crate) mod notes;
pub(crate) mod portable;
pub(crate) mod refusal;
pub(crate) mod whole_store;
