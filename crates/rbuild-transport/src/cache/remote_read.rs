//! Reads caches in repositories of registries.

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, Repository, ResolvedTag};
use rbuild_store::{Store, Workspace};

use crate::cache::artifact::check_type;
use crate::cache::buildkit::BuildKitCache;
use crate::cache::listed_shards::listed_shards;
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::{CacheRecords, RemoteSteps, read_any};
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::shards::{RemoteCache, union};
use crate::cache::signature::RecordKeys;
use crate::cache::tag::tag_of;
use crate::error::{Result, TransportError};

/// Reads the records of a cache in a registry, without its layers: those of its tag, and then those
/// of the shards that it names, all at once. Documents that the store kept from the last time are
/// not requested again. Returns `None` if there is no such cache.
///
/// # Errors
///
/// Fails if the registry fails or refuses, or if a document is damaged, and nothing could be read.
#[tracing::instrument(target = "transport", name = "cache", level = "debug", skip_all, fields(name = %cache.name()))]
pub(crate) fn read_remote_cache(
    store: &Store,
    client: &Client,
    cache: &RemoteCache,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<Option<RemoteSteps>> {
    let repository = client.repository(cache.name())?;
    let work = Workspace::open(store)?;
    let reader = CacheTagReader { documents: documents(store, &repository, &work, budget), cache, keys };
    let Some(manifest) = reader.top(&repository)? else { return Ok(None) };
    let mut parts = vec![reader.records(&manifest).map(Some)];
    parts.extend(reader.shards(&repository, &manifest)?.into_iter().map(|(_, shard)| shard));
    let (mut found, mut failure) = (Vec::new(), None);
    let mut all = RemoteSteps::default();
    for part in parts {
        match part {
            Ok(Some(records)) => {
                found.push(records.steps);
                all.has_unsigned |= records.has_unsigned;
                all.buildkit = match (all.buildkit, records.buildkit) {
                    (Some(known), Some(more)) => Some(BuildKitCache::joined(known, more)),
                    (known, more) => known.or(more),
                };
            }
            Ok(None) => {}
            Err(e) => {
                all.faults.push(e.message());
                failure = failure.or(Some(e));
            }
        }
    }
    match failure {
        Some(e) if found.is_empty() => Err(e),
        _ => {
            all.faults.dedup();
            Ok(Some(RemoteSteps { steps: union(found).into_values().collect(), ..all }))
        }
    }
}

/// Returns the documents of a repository, which the store keeps.
pub(crate) fn documents<'a>(
    store: &'a Store,
    blobs: &'a Repository,
    work: &'a Workspace,
    budget: &'a RecordBudget,
) -> RemoteDocuments<'a> {
    RemoteDocuments { store, blobs, work, budget }
}

/// Reads the manifests of a cache.
pub(crate) struct CacheTagReader<'a> {
    pub documents: RemoteDocuments<'a>,
    pub cache: &'a RemoteCache,
    pub keys: &'a RecordKeys,
}

impl CacheTagReader<'_> {
    /// Returns the manifest that the name of the cache refers to. With shards, it is small, and is
    /// requested without its digest first.
    fn top(&self, repository: &Repository) -> Result<Option<Vec<u8>>> {
        let name = self.cache.name();
        if self.cache.shards() == 1 {
            return self.manifest(repository, name);
        }
        match repository.tagged(tag_of(name)).map_err(TransportError::from) {
            Ok(found) => Ok(Some(found.bytes)),
            Err(e) if e.is_missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the manifest with a name.
    fn manifest(&self, repository: &Repository, name: &Reference) -> Result<Option<Vec<u8>>> {
        let digest = match name.digest() {
            Some(digest) => digest.blob(),
            None => match resolved(repository, name)? {
                Some(digest) => digest,
                None => return Ok(None),
            },
        };
        match self.documents.manifest(&digest) {
            Err(e) if e.is_missing() => Ok(None),
            manifest => manifest.map(Some),
        }
    }

    /// Returns the records of a manifest.
    pub fn records(&self, manifest: &[u8]) -> Result<CacheRecords> {
        let blobs = match check_type(manifest) {
            Ok(()) => self.documents.prefetched(manifest)?,
            Err(_) => self.documents.of_others(manifest)?,
        };
        read_any(manifest, &blobs, self.keys, self.documents.budget)
    }

    /// Returns the records of the shards that a manifest names, with their numbers.
    pub fn shards(&self, repository: &Repository, manifest: &[u8]) -> Result<Vec<(u32, Result<Option<CacheRecords>>)>> {
        let listed: Vec<(u32, BlobDigest)> = listed_shards(manifest).into_iter().collect();
        try_map(listed.len().max(1), &listed, |(number, digest)| Ok((*number, self.shard(repository, *number, digest))))
    }

    fn shard(&self, repository: &Repository, number: u32, digest: &BlobDigest) -> Result<Option<CacheRecords>> {
        let manifest = match self.documents.manifest(digest) {
            // The registry removes manifests that have no tag any more.
            Err(e) if e.is_missing() => self.manifest(repository, &self.cache.shard(number))?,
            manifest => Some(manifest?),
        };
        manifest.map(|manifest| self.records(&manifest)).transpose()
    }
}

fn resolved(repository: &Repository, name: &Reference) -> Result<Option<BlobDigest>> {
    match repository.find(tag_of(name)).map_err(TransportError::from) {
        Ok(Some(ResolvedTag::Digest(digest))) => Ok(Some(digest)),
        Ok(Some(ResolvedTag::Manifest(manifest))) => Ok(Some(manifest.digest)),
        Ok(None) => Ok(None),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}
