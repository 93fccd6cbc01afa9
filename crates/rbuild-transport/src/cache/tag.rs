//! Tags of registries as places of caches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, RegistryError, RegistryProblem, Repository, ResolvedTag};

use crate::blobs::{BlobInfo, BlobSink, BlobSource};
use crate::cache::artifact::CacheDocuments;
use crate::cache::memory::Prefetched;
use crate::cache::place::{CONNECTIONS, CacheStore, FoundManifest, LayerUpload, ManifestContent, Replacement};
use crate::cache::shards::{CONTENDED_SETTLED, SETTLED, SHARED_SETTLED, settle_for};
use crate::error::{Result, TransportError};
use crate::registry::Upload;

/// A tag that has a cache, or a shard of one.
pub(crate) struct CacheTag<'a> {
    name: &'a Reference,
    repository: Repository,
    /// True if all machines write it, and if it may be the tag of something else.
    is_shared: bool,
    /// True if another machine wrote it meanwhile.
    is_contended: AtomicBool,
}

impl CacheTag<'_> {
    /// Returns the place with the name of a shard, to which few machines write. Connects to
    /// nothing.
    pub fn open<'a>(client: &Client, name: &'a Reference) -> Result<CacheTag<'a>> {
        let (is_shared, is_contended) = (false, AtomicBool::new(false));
        Ok(CacheTag { name, repository: client.repository(name)?, is_shared, is_contended })
    }

    /// Returns the place with the name of a cache, to which all machines write. Connects to
    /// nothing.
    pub fn open_shared<'a>(client: &Client, name: &'a Reference) -> Result<CacheTag<'a>> {
        Ok(CacheTag { is_shared: true, ..CacheTag::open(client, name)? })
    }

    fn resolved(&self) -> Result<Option<BlobDigest>> {
        pushed_digest(&self.repository, self.name)
    }

    /// Uploads the documents of a cache, and then its tag if that has the digest `before`. Returns
    /// false if another machine wrote the tag before or at the same time.
    fn put(&self, documents: &CacheDocuments, before: Option<BlobDigest>) -> Result<bool> {
        let upload = Upload::to(&self.repository);
        let source = Prefetched::of(&documents.blobs);
        try_map(CONNECTIONS, &source.parts(), |part| upload.copy(&source, part, &Arc::default()))?;
        let checked = Instant::now();
        if self.resolved()? != before {
            return Ok(false);
        }
        let manifest = &documents.manifest;
        self.repository.push_document(tag_of(self.name), &manifest.media_type, &manifest.bytes)?;
        let least = match (self.is_contended.load(Ordering::Relaxed), self.is_shared) {
            (true, _) => CONTENDED_SETTLED,
            (false, true) => SHARED_SETTLED,
            (false, false) => SETTLED,
        };
        settle_for(checked.elapsed(), least);
        Ok(self.resolved()? == Some(manifest.digest()))
    }
}

impl CacheStore for CacheTag<'_> {
    fn name(&self) -> String {
        self.name.familiar()
    }

    fn current(&self) -> Result<Option<FoundManifest>> {
        let found = self.resolved()?;
        let content = ManifestContent::Unread;
        Ok(found.map(|digest| FoundManifest { revision: digest.to_string(), content: content(digest) }))
    }

    fn has_only_caches(&self) -> bool {
        !self.is_shared
    }

    fn blobs(&self) -> &dyn BlobSource {
        &self.repository
    }

    fn has_blob(&self, part: &BlobInfo) -> Result<bool> {
        Ok(self.repository.has_blob(&part.digest)?)
    }

    fn upload(
        &self,
        source: &dyn BlobSource,
        parts: &[BlobInfo],
        _damaged: &BTreeSet<BlobDigest>,
    ) -> Result<Vec<LayerUpload>> {
        let upload = Upload::to(&self.repository);
        try_map(CONNECTIONS, parts, |part| match upload.copy(source, part, &Arc::default()) {
            Ok(origin) => Ok(LayerUpload::There(origin)),
            // The registry refuses everything, or the store lacks this layer.
            Err(TransportError::Registry(e)) => Err(TransportError::Registry(e)),
            Err(_) => Ok(LayerUpload::Lacking),
        })
    }

    fn replace(&self, documents: &CacheDocuments, before: Option<&FoundManifest>) -> Result<Replacement> {
        match self.put(documents, before.and_then(|found| found.content.digest())) {
            Ok(true) => Ok(Replacement::Done),
            Ok(false) => {
                self.is_contended.store(true, Ordering::Relaxed);
                Ok(Replacement::Conflict)
            }
            Err(TransportError::Registry(e)) if lacks_layers(&e) => Ok(Replacement::LacksLayers(e.into())),
            Err(e) => Err(e),
        }
    }
}

/// Returns true if a registry refuses a manifest because it lacks something that it names.
fn lacks_layers(e: &RegistryError) -> bool {
    matches!(&*e.problem, RegistryProblem::Status { status: 400, .. } | RegistryProblem::Missing { .. })
}

/// Returns the digest of a tag in the repository that is pushed to, never that of a mirror.
pub(crate) fn pushed_digest(repository: &Repository, name: &Reference) -> Result<Option<BlobDigest>> {
    Ok(match repository.resolve_pushed(tag_of(name))? {
        Some(ResolvedTag::Digest(digest)) => Some(digest),
        Some(ResolvedTag::Manifest(manifest)) => Some(manifest.digest),
        None => None,
    })
}

/// Returns the tag of a name.
pub(crate) fn tag_of(name: &Reference) -> &str {
    name.tag().unwrap_or("latest")
}
