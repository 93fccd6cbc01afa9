//! Caches that several machines share.

use rbuild_image::Reference;

use crate::cache::actions::GithubCache;
use crate::cache::object_cache::ObjectCache;
use crate::cache::shards::RemoteCache;

/// A cache that several machines share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedCache {
    /// A cache in a repository of a registry.
    Registry(RemoteCache),
    /// A cache in an object store.
    Objects(ObjectCache),
    /// A cache in the cache service of GitHub Actions.
    Github(GithubCache),
}

impl SharedCache {
    /// Returns the name of the cache in messages.
    pub fn name(&self) -> String {
        match self {
            SharedCache::Registry(cache) => cache.name().familiar(),
            SharedCache::Objects(cache) => cache.to_string(),
            SharedCache::Github(cache) => cache.to_string(),
        }
    }

    /// Returns the cache in a registry, if it is one.
    pub fn registry(&self) -> Option<&RemoteCache> {
        match self {
            SharedCache::Registry(cache) => Some(cache),
            SharedCache::Objects(_) | SharedCache::Github(_) => None,
        }
    }

    /// Returns true if both have the same layers and records, whatever the number of shards.
    pub fn is_same_place(&self, other: &SharedCache) -> bool {
        match (self, other) {
            (SharedCache::Registry(own), SharedCache::Registry(other)) => own.name() == other.name(),
            (SharedCache::Objects(own), SharedCache::Objects(other)) => own.is_same_place(other),
            (SharedCache::Github(own), SharedCache::Github(other)) => {
                own.place == other.place && own.scope == other.scope
            }
            _ => false,
        }
    }

    /// Returns true if both have the same documents.
    pub fn has_same_documents(&self, other: &SharedCache) -> bool {
        self.is_same_place(other)
            && self.registry().map(RemoteCache::shards) == other.registry().map(RemoteCache::shards)
    }

    /// Returns true if a build must not fail because the cache cannot be written.
    pub fn is_best_effort(&self) -> bool {
        matches!(self, SharedCache::Github(_))
    }

    /// Returns the name in a registry, if the cache is in one.
    pub fn reference(&self) -> Option<&Reference> {
        self.registry().map(RemoteCache::name)
    }
}
