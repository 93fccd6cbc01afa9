//! Cache keys, the explanation of misses, and the form of steps in other caches.

pub(crate) mod buildkit_keys;
pub(crate) mod explain;
pub(crate) mod key;
pub(crate) mod miss;
pub(crate) mod notes;
pub(crate) mod portable;
