//! Reads and writes caches that several machines share.

use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, Repository};
use rbuild_store::{CacheKey, Store, Workspace};

use crate::blobs::BlobSource;
use crate::cache::actions::OpenGithubCache;
use crate::cache::extend::{OtherSteps, extend};
use crate::cache::imported::{WantedLayer, fetch_layer};
use crate::cache::merge::{OwnSteps, WrittenCache};
use crate::cache::object_cache::OpenObjects;
use crate::cache::place::CONNECTIONS;
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::RemoteSteps;
use crate::cache::remote::write_remote_cache;
use crate::cache::remote_read::read_remote_cache;
use crate::cache::shared_cache::SharedCache;
use crate::cache::signature::RecordKeys;
use crate::error::Result;

/// Reads the records of a cache, without its layers. Documents that the store kept from the last
/// time are not requested again. `budget` is that of all caches together. Returns `None` if there
/// is no such cache.
///
/// # Errors
///
/// Fails if the server fails or refuses, or if a document is damaged, and nothing could be read.
pub fn read_shared_cache(
    store: &Store,
    client: &Client,
    cache: &SharedCache,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<Option<RemoteSteps>> {
    match cache {
        SharedCache::Registry(cache) => read_remote_cache(store, client, cache, keys, budget),
        SharedCache::Objects(cache) => cache.open(client)?.read(store, keys, budget),
        SharedCache::Github(cache) => cache.open(client)?.read(store, keys, budget),
    }
}

/// A cache that a machine writes to.
#[derive(Debug, Clone, Copy)]
pub struct SharedTarget<'a> {
    /// The cache.
    pub cache: &'a SharedCache,
    /// Name of the machine, which determines its shard.
    pub machine: &'a str,
    /// The step that other machines may wait for.
    pub awaited: Option<CacheKey>,
}

/// Adds the steps of a build to a cache: uploads the layers that its place lacks, and the documents
/// if they change. If another machine writes meanwhile, its steps stay. Layers that neither the
/// store nor the place has are left out with their steps.
///
/// # Errors
///
/// Fails if the server fails or refuses.
pub fn write_shared_cache(
    store: &Store,
    client: &Client,
    target: SharedTarget<'_>,
    ours: &OwnSteps<'_>,
) -> Result<WrittenCache> {
    let SharedTarget { cache, machine, awaited } = target;
    match cache {
        SharedCache::Registry(cache) => write_remote_cache(store, client, cache, machine, awaited, ours),
        SharedCache::Objects(cache) => Ok(extend(store, &cache.open(client)?, ours, &no_others)?.written),
        SharedCache::Github(cache) => Ok(extend(store, &cache.open(client)?, ours, &no_others)?.written),
    }
}

/// A cache that is one document takes over no other.
fn no_others(_: Option<&[u8]>) -> Result<OtherSteps> {
    Ok(OtherSteps::default())
}

/// An open source of layers.
enum LayerSource {
    Registry(Repository),
    Objects(OpenObjects),
    Github(OpenGithubCache),
}

impl LayerSource {
    fn open(client: &Client, cache: &SharedCache) -> Result<LayerSource> {
        match cache {
            SharedCache::Registry(cache) => Ok(LayerSource::Registry(client.repository(cache.name())?)),
            SharedCache::Objects(cache) => Ok(LayerSource::Objects(cache.open(client)?)),
            SharedCache::Github(cache) => Ok(LayerSource::Github(cache.open(client)?)),
        }
    }

    fn blobs(&self) -> &dyn BlobSource {
        match self {
            LayerSource::Registry(repository) => repository,
            LayerSource::Objects(objects) => objects,
            LayerSource::Github(cache) => cache,
        }
    }
}

/// Downloads layers of caches into the store. Returns for each the reason why it cannot be used, if
/// it cannot.
///
/// # Errors
///
/// Fails if the store cannot be written.
pub fn fetch_shared_layers(store: &Store, client: &Client, wanted: &[WantedLayer]) -> Result<Vec<Option<String>>> {
    let work = Workspace::open(store)?;
    let mut sources: Vec<(&SharedCache, Result<LayerSource>)> = Vec::new();
    for WantedLayer { cache, .. } in wanted {
        if !sources.iter().any(|(known, _)| *known == cache) {
            sources.push((cache, LayerSource::open(client, cache)));
        }
    }
    try_map(CONNECTIONS, wanted, |layer| {
        let source = sources.iter().find(|(known, _)| **known == layer.cache).map(|(_, source)| source);
        let fetched = match source {
            Some(Ok(source)) => fetch_layer(store, &work, source.blobs(), &layer.blob).map_err(|e| e.message()),
            Some(Err(e)) => Err(e.message()),
            None => Err("its cache is not open".into()),
        };
        Ok(fetched.err())
    })
}
