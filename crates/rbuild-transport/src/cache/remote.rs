//! Caches in repositories of registries.

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, RegistryError, RegistryProblem, Repository, ResolvedTag};
use rbuild_store::{Store, Workspace};

use crate::cache::artifact::check_type;
use crate::cache::buildkit::BuildKitCache;
use crate::cache::extend::extend;
use crate::cache::merge::{OwnSteps, WrittenCache, own_share};
use crate::cache::records::{CacheRecords, RemoteSteps, read_any};
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::shards::{RemoteCache, union};
use crate::cache::tag::{CacheTag, tag_of};
use crate::error::{Result, TransportError};

/// Reads the records of a cache in a registry, without its layers; all shards at once. Documents
/// that the store kept from the last time are not requested again. Returns `None` if there is no
/// such cache.
///
/// # Errors
///
/// Fails if the registry fails or refuses, or if a document is damaged, and nothing could be read.
#[tracing::instrument(target = "transport", name = "cache", level = "debug", skip_all, fields(name = %cache.name()))]
pub(crate) fn read_remote_cache(store: &Store, client: &Client, cache: &RemoteCache) -> Result<Option<RemoteSteps>> {
    let (mut found, mut failure) = (Vec::new(), None);
    let (mut faults, mut buildkit) = (Vec::new(), None);
    for shard in shards(store, client, &cache.names())? {
        match shard {
            Ok(Some(records)) => {
                found.push(records.steps);
                buildkit = match (buildkit, records.buildkit) {
                    (Some(known), Some(more)) => Some(BuildKitCache::joined(known, more)),
                    (known, more) => known.or(more),
                };
            }
            Ok(None) => {}
            Err(e) => {
                faults.push(e.message());
                failure = failure.or(Some(e));
            }
        }
    }
    match (found.is_empty(), failure) {
        (true, Some(e)) => Err(e),
        (true, None) => Ok(None),
        (false, _) => {
            faults.dedup();
            Ok(Some(RemoteSteps { steps: union(found).into_values().collect(), buildkit, faults }))
        }
    }
}

/// Reads the steps of several tags at once.
fn shards(store: &Store, client: &Client, names: &[Reference]) -> Result<Vec<Result<Option<CacheRecords>>>> {
    try_map(names.len().max(1), names, |name| {
        let repository = client.repository(name).map_err(TransportError::from);
        Ok(repository.and_then(|repository| current(store, &repository, name)))
    })
}

/// Returns the records of a tag, `None` if there is no such cache.
fn current(store: &Store, repository: &Repository, name: &Reference) -> Result<Option<CacheRecords>> {
    let digest = match name.digest() {
        Some(digest) => digest.blob(),
        None => match resolved(repository, name)? {
            Some(digest) => digest,
            None => return Ok(None),
        },
    };
    let documents = RemoteDocuments { store, blobs: repository, work: &Workspace::open(store)? };
    let manifest = match documents.manifest(&digest) {
        Err(e) if e.is_missing() => return Ok(None),
        manifest => manifest?,
    };
    let blobs = match check_type(&manifest) {
        Ok(()) => documents.prefetched(&manifest)?,
        Err(_) => documents.of_others(&manifest)?,
    };
    read_any(&manifest, &blobs).map(Some)
}

fn resolved(repository: &Repository, name: &Reference) -> Result<Option<BlobDigest>> {
    match repository.find(tag_of(name)) {
        Ok(Some(ResolvedTag::Digest(digest))) => Ok(Some(digest)),
        Ok(Some(ResolvedTag::Manifest(manifest))) => Ok(Some(manifest.digest)),
        Ok(None) => Ok(None),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_missing(e: &RegistryError) -> bool {
    matches!(&*e.problem, RegistryProblem::Missing { .. })
}

/// Adds the steps of a build to a cache in a registry: uploads the layers that the repository
/// lacks, and the documents if they change. If another machine writes meanwhile, its steps stay.
/// Layers that neither the store nor the repository has are left out with their steps. Only the
/// shard of this machine is written, and steps that the other shards have are left to them.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
#[tracing::instrument(
    target = "transport",
    name = "cache",
    level = "debug",
    skip_all,
    fields(name = %cache.name())
)]
pub(crate) fn write_remote_cache(
    store: &Store,
    client: &Client,
    cache: &RemoteCache,
    machine: &str,
    ours: &OwnSteps<'_>,
) -> Result<WrittenCache> {
    let own_name = cache.name_of(machine);
    let others: Vec<Reference> = cache.names().into_iter().filter(|name| *name != own_name).collect();
    // One that cannot be read is as if it were empty: steps are written twice.
    let others = shards(store, client, &others)?.into_iter().filter_map(|shard| Some(shard.ok()??.steps));
    let others = union(others);
    let (steps, limits) = own_share(ours, &others, cache.shards());
    let place = CacheTag::open(client, &own_name)?;
    let written = extend(store, &place, &OwnSteps { steps: &steps, limits, ..*ours })?;
    Ok(WrittenCache { steps: written.steps + others.len(), ..written })
}
