//! Caches of steps outside the store (docs/formats/cache.md).

pub(crate) mod archive;
pub(crate) mod artifact;
pub(crate) mod buildkit;
pub(crate) mod claim;
pub(crate) mod imported;
pub(crate) mod inline;
pub(crate) mod local;
pub(crate) mod merge;
pub(crate) mod records;
pub(crate) mod remote;
pub(crate) mod shards;
