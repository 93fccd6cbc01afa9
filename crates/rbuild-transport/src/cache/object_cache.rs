//! Caches in object stores. Writers replace the manifest on the condition that it is unchanged, so
//! there is one document for all machines.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};

use rbuild_image::{BlobDigest, Hasher};
use rbuild_linux::Timestamp;
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, ObjectPlace, ObjectReader, ObjectStore, UploadObject, WriteCondition, WriteOutcome};
use rbuild_store::{Store, Workspace};

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSource};
use crate::cache::artifact::{CacheDocuments, MAX_EMBEDDED, check_type, damaged_document};
use crate::cache::memory::Prefetched;
use crate::cache::place::{CONNECTIONS, CacheStore, FoundManifest, LayerUpload, ManifestContent, Replacement};
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::{CacheRecords, RemoteSteps, read_any};
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::signature::RecordKeys;
use crate::error::{Result, TransportError};
use crate::verifying::Verifying;

/// Maximum size of a manifest in bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// A cache in an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectCache {
    /// The bucket or the container.
    pub place: ObjectPlace,
    /// Number of the login among those of the client.
    pub login: Option<usize>,
    /// Name of the cache.
    pub name: String,
    /// Beginning of the path of manifests.
    pub manifests: String,
    /// Beginning of the path of layers.
    pub blobs: String,
}

impl fmt::Display for ObjectCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.place {
            ObjectPlace::S3(_) => "s3",
            ObjectPlace::Azure(_) => "azblob",
        };
        write!(f, "{kind}://{}/{}{}", self.place.bucket(), self.manifests, self.name)
    }
}

impl ObjectCache {
    /// Returns true if both are one cache, even if their logins differ.
    pub(crate) fn is_same_place(&self, other: &ObjectCache) -> bool {
        *self == ObjectCache { login: self.login, ..other.clone() }
    }

    /// Opens the cache. Connects to nothing.
    pub(crate) fn open(&self, client: &Client) -> Result<OpenObjects> {
        Ok(OpenObjects { objects: ObjectStore::open(client, &self.place, self.login)?, cache: self.clone() })
    }
}

/// An open cache in an object store.
pub(crate) struct OpenObjects {
    objects: ObjectStore,
    cache: ObjectCache,
}

impl OpenObjects {
    /// Reads the records. Returns `None` if there is no such cache.
    pub fn read(&self, store: &Store, keys: &RecordKeys, budget: &RecordBudget) -> Result<Option<RemoteSteps>> {
        let Some(found) = self.objects.read(&self.manifest(), MAX_MANIFEST)? else { return Ok(None) };
        let documents = RemoteDocuments { store, blobs: self, work: &Workspace::open(store)?, budget };
        check_type(&found.bytes)?;
        let blobs = documents.prefetched(&found.bytes)?;
        let CacheRecords { steps, buildkit, has_unsigned } = read_any(&found.bytes, &blobs, keys, budget)?;
        let steps = steps.into_values().collect();
        Ok(Some(RemoteSteps { steps, buildkit, has_unsigned, ..RemoteSteps::default() }))
    }

    fn manifest(&self) -> String {
        format!("{}{}", self.cache.manifests, self.cache.name)
    }

    fn key(&self, digest: &BlobDigest) -> String {
        format!("{}{digest}", self.cache.blobs)
    }

    /// Returns true if there is a layer. Touches it if it is old.
    fn is_there(&self, part: &BlobInfo) -> Result<bool> {
        let key = self.key(&part.digest);
        let Some(state) = self.objects.state(&key)?.filter(|state| state.size == part.size) else { return Ok(false) };
        if let ObjectPlace::S3(place) = &self.cache.place
            && let Some(modified) = state.modified
        {
            let age = Timestamp::now().sec.saturating_sub(modified);
            if u64::try_from(age).is_ok_and(|age| age >= place.touch_refresh.as_secs()) {
                self.objects.touch(&key)?;
            }
        }
        Ok(true)
    }

    fn at_once(&self) -> usize {
        match &self.cache.place {
            ObjectPlace::S3(place) => place.parallelism.max(1),
            ObjectPlace::Azure(_) => CONNECTIONS,
        }
    }

    fn put(&self, source: &dyn BlobSource, part: &BlobInfo) -> Result<()> {
        let open = |at| {
            let mut blob = source.open(part).map_err(io::Error::other)?;
            blob.start_at(at)?;
            let hasher = (at == 0 && blob.verified().is_none()).then(Hasher::new);
            Ok(Box::new(Verifying::new(blob, *part, hasher, at)) as Box<dyn Read + '_>)
        };
        let (key, digest) = (self.key(&part.digest), Some(part.digest));
        let upload = UploadObject { key: &key, digest, size: part.size, open: &open };
        self.objects.upload(&upload).map_err(TransportError::pushing)
    }
}

impl BlobSource for OpenObjects {
    fn size(&self, _digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(None)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        let found = self.objects.read(&self.key(digest), MAX_MANIFEST)?;
        let found = found.ok_or_else(|| damaged_document("it is missing"))?;
        if BlobDigest::of(&found.bytes) == *digest {
            return Ok(found.bytes);
        }
        Err(damaged_document("it has the wrong digest"))
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        Ok(Box::new(self.objects.blob(&self.key(&part.digest), &part.digest, part.size)))
    }

    fn resumes(&self) -> bool {
        true
    }
}

impl BlobRead for ObjectReader<'_> {
    fn start_at(&mut self, at: u64) -> io::Result<()> {
        ObjectReader::start_at(self, at);
        Ok(())
    }

    fn note_wrong(&self, _found: &BlobDigest) -> bool {
        ObjectReader::note_wrong(self)
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        ObjectReader::wrong_digest(self, *found).into()
    }
}

impl CacheStore for OpenObjects {
    fn name(&self) -> String {
        self.cache.to_string()
    }

    fn current(&self) -> Result<Option<FoundManifest>> {
        let found = self.objects.read(&self.manifest(), MAX_MANIFEST)?;
        Ok(found.map(|found| FoundManifest { revision: found.etag, content: ManifestContent::Read(found.bytes) }))
    }

    fn blobs(&self) -> &dyn BlobSource {
        self
    }

    fn has_blob(&self, part: &BlobInfo) -> Result<bool> {
        self.is_there(part)
    }

    fn upload(
        &self,
        source: &dyn BlobSource,
        parts: &[BlobInfo],
        damaged: &BTreeSet<BlobDigest>,
    ) -> Result<Vec<LayerUpload>> {
        try_map(self.at_once(), parts, |part| {
            if !damaged.contains(&part.digest) && self.is_there(part)? {
                return Ok(LayerUpload::There(BlobOrigin::Sink));
            }
            match self.put(source, part) {
                Ok(()) => Ok(LayerUpload::There(BlobOrigin::Source)),
                // The server refuses everything, or the store lacks this layer.
                Err(TransportError::Registry(e)) => Err(TransportError::Registry(e)),
                Err(_) => Ok(LayerUpload::Lacking),
            }
        })
    }

    fn refreshed(&self, parts: &[BlobInfo]) -> Result<Vec<BlobDigest>> {
        self.present(parts)
    }

    fn replace(&self, documents: &CacheDocuments, before: Option<&FoundManifest>) -> Result<Replacement> {
        // The manifest contains the others.
        let large: Vec<Vec<u8>> = documents.blobs.iter().filter(|bytes| bytes.len() > MAX_EMBEDDED).cloned().collect();
        let source = Prefetched::of(&large);
        try_map(CONNECTIONS, &source.parts(), |part| self.put(&source, part))?;
        let condition = match before {
            Some(found) => WriteCondition::Unchanged(&found.revision),
            None => WriteCondition::Absent,
        };
        Ok(match self.objects.write(&self.manifest(), &documents.manifest.bytes, condition)? {
            WriteOutcome::Written => Replacement::Done,
            WriteOutcome::Conflict => Replacement::Conflict,
        })
    }
}
