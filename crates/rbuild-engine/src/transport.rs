//! Images on their way between the store, OCI layouts and archives.

pub(crate) mod load;
pub(crate) mod save;
