//! Outcomes of the cache lookup.

use rbuild_store::{CacheKey, ForeignRecord, Record, ResultId, TreeId};
use rbuild_transport::{ImportedCaches, ImportedStep};

/// The state of a vertex before anything runs.
#[derive(Debug, Clone)]
pub(crate) enum VertexState {
    /// Scratch or an image. It has a result, and its files are available.
    Source(ResultId),
    /// A cache hit.
    Hit(CacheKey, Record),
    /// A cache hit whose files have the other kind of owners and are not needed.
    Foreign(CacheKey, ForeignRecord),
    /// A hit in a cache besides the store, whose files are not needed.
    Imported(CacheKey, ImportedStep),
    /// Must run, or cannot be looked up before its inputs have run.
    Open,
}

impl VertexState {
    pub(crate) fn result(&self) -> Option<ResultId> {
        match self {
            VertexState::Source(result) => Some(*result),
            VertexState::Hit(_, record) => Some(record.result),
            VertexState::Foreign(_, record) => Some(record.result()),
            VertexState::Imported(_, found) => Some(found.step.result),
            VertexState::Open => None,
        }
    }

    /// Returns the key of a cached step.
    pub(crate) fn key(&self) -> Option<CacheKey> {
        match self {
            VertexState::Hit(key, _) | VertexState::Foreign(key, _) | VertexState::Imported(key, _) => Some(*key),
            VertexState::Source(_) | VertexState::Open => None,
        }
    }

    /// Returns the name of the cache besides the store that a result comes from, and that of the
    /// machine that made it, if it is known.
    pub(crate) fn origin<'a>(&'a self, caches: &'a ImportedCaches) -> Option<(&'a str, Option<&'a str>)> {
        let recorded = match self {
            VertexState::Hit(_, record) => record.origin.as_ref(),
            VertexState::Foreign(_, record) => record.origin(),
            VertexState::Imported(_, found) => {
                return Some((caches.origin_of(found), found.step.runner.as_deref()));
            }
            VertexState::Source(_) | VertexState::Open => None,
        };
        recorded.map(|origin| (&*origin.cache, origin.runner.as_deref()))
    }

    /// Returns the tree under which notes about a cached step are stored.
    pub(crate) fn tree_of_notes(&self) -> Option<&TreeId> {
        match self {
            VertexState::Hit(_, record) => Some(&record.tree),
            VertexState::Foreign(_, record) => Some(record.tree_of_notes()),
            VertexState::Source(_) | VertexState::Imported(..) | VertexState::Open => None,
        }
    }
}
