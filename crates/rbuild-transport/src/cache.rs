//! Caches of steps outside the store (docs/formats/cache.md).

pub(crate) mod actions;
pub(crate) mod archive;
pub(crate) mod artifact;
pub(crate) mod buildkit;
pub(crate) mod claim;
pub(crate) mod extend;
pub(crate) mod imported;
pub(crate) mod inline;
pub(crate) mod listed_shards;
pub(crate) mod local;
pub(crate) mod memory;
pub(crate) mod merge;
pub(crate) mod object_cache;
pub(crate) mod place;
pub(crate) mod record_budget;
pub(crate) mod records;
pub(crate) mod remote;
pub(crate) mod remote_documents;
pub(crate) mod remote_read;
pub(crate) mod shards;
pub(crate) mod shared;
pub(crate) mod shared_cache;
pub(crate) mod signature;
pub(crate) mod step_count;
pub(crate) mod tag;
pub(crate) mod top;
