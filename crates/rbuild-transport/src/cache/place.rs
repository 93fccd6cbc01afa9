//! Open places of caches that several machines share.

use std::collections::BTreeSet;

use rbuild_image::BlobDigest;
use rbuild_linux::parallel::try_map;

use crate::blobs::{BlobInfo, BlobOrigin, BlobSource};
use crate::cache::artifact::CacheDocuments;
use crate::error::{Result, TransportError};

/// Number of connections.
pub(crate) const CONNECTIONS: usize = 6;

/// The manifest of a cache at a moment.
pub(crate) struct FoundManifest {
    /// Changes with each write.
    pub revision: String,
    pub content: ManifestContent,
}

/// The content of a manifest.
pub(crate) enum ManifestContent {
    /// The digest of a manifest that was not read yet.
    Unread(BlobDigest),
    /// The bytes.
    Read(Vec<u8>),
    /// Nothing, because the manifest is damaged or lost.
    Damaged,
}

impl ManifestContent {
    /// Returns the digest, if the manifest is undamaged.
    pub fn digest(&self) -> Option<BlobDigest> {
        match self {
            ManifestContent::Unread(digest) => Some(*digest),
            ManifestContent::Read(bytes) => Some(BlobDigest::of(bytes)),
            ManifestContent::Damaged => None,
        }
    }
}

/// The outcome of an attempt to replace the manifest of a cache.
pub(crate) enum Replacement {
    Done,
    /// Another machine wrote meanwhile.
    Conflict,
    /// The place lacks layers that the manifest names.
    LacksLayers(TransportError),
}

/// The outcome of the upload of a layer.
pub(crate) enum LayerUpload {
    /// The place has the layer now.
    There(BlobOrigin),
    /// The source does not have the layer.
    Lacking,
}

/// An open place of a cache that machines add to: a tag of a registry, or an object. It has one
/// manifest, which is replaced, and layers and documents, which never change.
pub(crate) trait CacheStore: Sync {
    /// Returns the name of the cache in messages.
    fn name(&self) -> String;

    /// Returns the present manifest; `None` if there is no cache yet.
    fn current(&self) -> Result<Option<FoundManifest>>;

    /// Returns true if only caches have manifests here, so that a damaged one may be replaced.
    fn has_only_caches(&self) -> bool {
        true
    }

    /// Returns the source of documents and layers.
    fn blobs(&self) -> &dyn BlobSource;

    /// Returns true if the place has a layer.
    fn has_blob(&self, part: &BlobInfo) -> Result<bool>;

    /// Uploads layers, several at once. Layers that are `damaged` are replaced.
    ///
    /// # Errors
    ///
    /// Fails if the place fails, or refuses one of them.
    fn upload(
        &self,
        source: &dyn BlobSource,
        parts: &[BlobInfo],
        damaged: &BTreeSet<BlobDigest>,
    ) -> Result<Vec<LayerUpload>>;

    /// Prevents that the place removes layers because of their age. Returns those that it has.
    fn refreshed(&self, parts: &[BlobInfo]) -> Result<Vec<BlobDigest>> {
        Ok(parts.iter().map(|part| part.digest).collect())
    }

    /// Uploads the documents, and then the manifest, if that has the revision `before`.
    fn replace(&self, documents: &CacheDocuments, before: Option<&FoundManifest>) -> Result<Replacement>;

    /// Returns the layers that the place has.
    fn present(&self, parts: &[BlobInfo]) -> Result<Vec<BlobDigest>> {
        let found =
            try_map(CONNECTIONS, parts, |part| Ok::<_, TransportError>(self.has_blob(part)?.then_some(part.digest)))?;
        Ok(found.into_iter().flatten().collect())
    }
}
