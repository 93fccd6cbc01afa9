//! Images on their way between the store, registries, OCI layouts and archives.

pub(crate) mod blobs;
pub(crate) mod load;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod put_layer;
pub(crate) mod save;
