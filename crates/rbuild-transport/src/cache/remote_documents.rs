//! Documents of caches that are read from another machine.

use std::collections::HashMap;
use std::io::Read;

use rbuild_image::{BlobDigest, digest_of, parse_manifest};
use rbuild_linux::parallel::try_map;
use rbuild_registry::embedded;
use rbuild_store::{Store, Workspace};
use serde_json::Value;

use crate::blobs::{BlobInfo, BlobSource};
use crate::cache::artifact::damaged_document;
use crate::cache::buildkit::buildkit_config;
use crate::cache::inline::{image_entries, is_image};
use crate::cache::memory::Prefetched;
use crate::cache::place::CONNECTIONS;
use crate::cache::record_budget::RecordBudget;
use crate::error::{Result, TransportError};

/// Maximum size of a document in bytes.
const MAX_DOCUMENT: u64 = 64 << 20;

/// The documents of a cache, which the store keeps for the next build.
pub(crate) struct RemoteDocuments<'a> {
    pub store: &'a Store,
    pub blobs: &'a dyn BlobSource,
    pub work: &'a Workspace,
    pub budget: &'a RecordBudget,
}

impl RemoteDocuments<'_> {
    pub fn manifest(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(digest)? {
            return Ok(bytes);
        }
        let bytes = self.blobs.document(digest)?;
        self.budget.take(bytes.len() as u64)?;
        self.store.blobs().put_blob(self.work, &bytes[..])?;
        Ok(bytes)
    }

    /// Reads the configuration and the records of a manifest, all at once.
    pub fn prefetched(&self, manifest: &[u8]) -> Result<Prefetched> {
        let parsed = parse_manifest(manifest).map_err(TransportError::document("the cache's manifest"))?;
        let is_document = |kind: String| kind.starts_with("application/vnd.rbuild.cache.");
        let wanted = std::iter::once(parsed.config()).chain(parsed.layers());
        let wanted = wanted.filter(|part| is_document(part.media_type().to_string()));
        let (mut found, mut parts) = (HashMap::new(), Vec::new());
        for part in wanted {
            let digest = digest_of(part).map_err(TransportError::document("the cache's manifest"))?;
            match embedded(part) {
                Some(bytes) => drop(found.insert(digest, bytes)),
                None => parts.push(BlobInfo { digest, size: part.size() }),
            }
        }
        let read = try_map(CONNECTIONS, &parts, |part| Ok::<_, TransportError>((part.digest, self.blob(part)?)))?;
        found.extend(read);
        Ok(Prefetched::new(found))
    }

    /// Reads the configuration of a cache of BuildKit, that of an image, or those of the images of
    /// an index with their manifests.
    pub fn of_others(&self, manifest: &[u8]) -> Result<Prefetched> {
        let document: Value =
            serde_json::from_slice(manifest).map_err(TransportError::document("the cache's manifest"))?;
        if let Some(config) = buildkit_config(&document) {
            return Ok(Prefetched::new([(config.digest, self.blob(&config)?)].into()));
        }
        let (mut found, mut manifests) = (HashMap::<BlobDigest, Vec<u8>>::new(), vec![manifest.to_vec()]);
        if document["manifests"].is_array() {
            let digests = image_entries(&document).filter_map(|entry| entry["digest"].as_str()?.parse().ok());
            let digests: Vec<BlobDigest> = digests.collect();
            // A registry may not have the images of all platforms.
            let read = try_map(CONNECTIONS, &digests, |digest| match self.manifest(digest) {
                Err(e) if e.is_missing() => Ok(None),
                manifest => manifest.map(Some),
            })?;
            let read = digests.into_iter().zip(read).filter_map(|(digest, manifest)| Some((digest, manifest?)));
            found.extend(read);
            manifests = found.values().cloned().collect();
        }
        let configs = manifests.iter().filter_map(|manifest| {
            let parsed = parse_manifest(manifest).ok()?;
            let digest = digest_of(parsed.config()).ok()?;
            is_image(&parsed).then(|| BlobInfo { digest, size: parsed.config().size() })
        });
        let configs: Vec<BlobInfo> = configs.collect();
        let is_index = document["manifests"].is_array();
        let read = try_map(CONNECTIONS, &configs, |part| match self.blob(part) {
            Err(TransportError::Document { .. }) if is_index => Ok(None),
            blob => Ok::<_, TransportError>(Some((part.digest, blob?))),
        })?;
        found.extend(read.into_iter().flatten());
        Ok(Prefetched::new(found))
    }

    fn blob(&self, part: &BlobInfo) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(&part.digest)? {
            return Ok(bytes);
        }
        if part.size > MAX_DOCUMENT {
            return Err(TransportError::other("its records exceed 64 MiB"));
        }
        self.budget.take(part.size)?;
        let mut blob = self.blobs.open(part)?;
        loop {
            let mut bytes = Vec::new();
            let read = (&mut blob).take(part.size).read_to_end(&mut bytes);
            match read.map_err(TransportError::reading("cannot read the cache")) {
                Err(e) if e.is_missing() => return Err(damaged_document("it is missing")),
                read => read?,
            };
            let found = BlobDigest::of(&bytes);
            if found == part.digest {
                self.store.blobs().put_blob(self.work, &bytes[..])?;
                return Ok(bytes);
            }
            // A mirror may have sent it.
            if !blob.note_wrong(&found) {
                return Err(damaged_document(&blob.wrong_digest(&found).message()));
            }
            blob.start_at(0).map_err(TransportError::reading("cannot read the cache"))?;
        }
    }

    /// Returns a document of an earlier build, if it is undamaged.
    fn kept(&self, digest: &BlobDigest) -> Result<Option<Vec<u8>>> {
        let Ok(bytes) = self.store.blobs().read_document(digest) else { return Ok(None) };
        self.budget.take(bytes.len() as u64)?;
        Ok(Some(bytes))
    }
}
