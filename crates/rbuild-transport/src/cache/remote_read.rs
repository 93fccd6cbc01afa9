//! Reads caches in repositories of registries.

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, Repository, ResolvedTag, RetryMode};
use rbuild_store::{Store, Workspace};

use crate::cache::artifact::{KnownSteps, check_type};
use crate::cache::buildkit::BuildKitCache;
use crate::cache::extend::steps_in;
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
    let (repository, work) = (client.repository(cache.name())?, Workspace::open(store)?);
    let reader = CacheTagReader::new(store, &work, budget, &repository, cache, keys);
    let Some(manifest) = reader.top()? else { return Ok(None) };
    let mut parts = vec![reader.records(&manifest).map(Some)];
    parts.extend(reader.shards(&manifest)?.into_iter().map(|(_, shard)| shard));
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
            Ok(None) => all.has_damage = true,
            Err(e) => {
                all.has_damage |= e.is_damage();
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

/// Reads the manifests of a cache.
pub(crate) struct CacheTagReader<'a> {
    store: &'a Store,
    work: &'a Workspace,
    budget: &'a RecordBudget,
    /// The repository for the manifest of the cache.
    repository: &'a Repository,
    /// The same for all that the cache can be read without: shards and records.
    parts: Repository,
    cache: &'a RemoteCache,
    keys: &'a RecordKeys,
}

impl<'a> CacheTagReader<'a> {
    pub fn new(
        store: &'a Store,
        work: &'a Workspace,
        budget: &'a RecordBudget,
        repository: &'a Repository,
        cache: &'a RemoteCache,
        keys: &'a RecordKeys,
    ) -> CacheTagReader<'a> {
        let parts = repository.in_mode(RetryMode::Quick);
        CacheTagReader { store, work, budget, repository, parts, cache, keys }
    }

    /// Returns the documents of a repository, which the store keeps.
    fn documents<'b>(&'b self, blobs: &'b Repository) -> RemoteDocuments<'b> {
        let CacheTagReader { store, work, budget, .. } = *self;
        RemoteDocuments { store, blobs, work, budget }
    }

    /// Returns the steps of the manifest of a cache that is extended.
    ///
    /// # Errors
    ///
    /// Fails as [`steps_in`] does.
    pub fn steps_to_extend(&self, manifest: &[u8]) -> Result<KnownSteps> {
        steps_in(&self.documents(self.repository), manifest, self.keys)
    }

    /// Returns the manifest that the name of the cache refers to. With shards, it is small, and is
    /// requested without its digest first.
    fn top(&self) -> Result<Option<Vec<u8>>> {
        let name = self.cache.name();
        if self.cache.shards() == 1 {
            return self.manifest(self.repository, name);
        }
        match self.repository.tagged(tag_of(name)).map_err(TransportError::from) {
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
        match self.documents(repository).manifest(&digest) {
            Err(e) if e.is_missing() => Ok(None),
            manifest => manifest.map(Some),
        }
    }

    /// Returns the records of a manifest.
    fn records(&self, manifest: &[u8]) -> Result<CacheRecords> {
        let documents = self.documents(&self.parts);
        let blobs = match check_type(manifest) {
            Ok(()) => documents.prefetched(manifest)?,
            Err(_) => documents.of_others(manifest)?,
        };
        read_any(manifest, &blobs, self.keys, self.budget)
    }

    /// Returns the records of the shards that a manifest names, with their numbers; `None` for a
    /// shard that is lost.
    pub fn shards(&self, manifest: &[u8]) -> Result<Vec<(u32, Result<Option<CacheRecords>>)>> {
        let listed: Vec<(u32, BlobDigest)> = listed_shards(manifest).into_iter().collect();
        try_map(listed.len().max(1), &listed, |(number, digest)| Ok((*number, self.shard(*number, digest))))
    }

    fn shard(&self, number: u32, digest: &BlobDigest) -> Result<Option<CacheRecords>> {
        let manifest = match self.documents(&self.parts).manifest(digest) {
            // The registry removes manifests that have no tag any more.
            Err(e) if e.is_missing() => self.manifest(&self.parts, &self.cache.shard(number))?,
            manifest => Some(manifest?),
        };
        let Some(manifest) = manifest else { return Ok(None) };
        check_type(&manifest).map_err(|e| TransportError::document("a shard of the cache")(e.message()))?;
        self.records(&manifest).map(Some)
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
