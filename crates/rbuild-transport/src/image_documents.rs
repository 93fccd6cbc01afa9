//! The documents of an image: from the manifest or index that a name resolved to, to the
//! configuration and the layers.

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;

use rbuild_image::{
    BlobDigest, Descriptor, ImageConfig, ImageId, ImageIndex, ImageManifest, ManifestDigest, Platform, Reference,
    artifact_type, digest_of, parse_index, parse_manifest,
};
use rbuild_registry::{PlatformMatch, choose, embedded};
use rbuild_remedy::{ImageRemedy, Remedy};
use rbuild_store::{Staging, Store};
use serde_json::Value;

use crate::blobs::{BlobInfo, BlobSource, TransferProgress, copy_all, total_size};
use crate::error::{Result, TransportError};
use crate::media_types::{is_layer, is_nondistributable};

/// Maximum size of a configuration in bytes, as for other sources of images.
const MAX_CONFIG: u64 = 16 << 20;
/// Maximum depth of indexes in indexes.
const MAX_DEPTH: usize = 3;
/// Maximum number of entries of an index.
const MAX_ENTRIES: usize = 1000;

/// The verified documents of an image.
pub(crate) struct ImageDocuments {
    pub manifest: Vec<u8>,
    /// The entry of the registry's index that led to the manifest, if there was one.
    pub entry: Option<Descriptor>,
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<BlobInfo>,
    /// The layers that the manifest contains.
    pub embedded: HashMap<BlobDigest, Vec<u8>>,
    /// The URLs of layers that must not be distributed.
    pub urls: HashMap<BlobDigest, Vec<String>>,
    /// The platform that the configuration states.
    pub platform: Platform,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// A manifest as a registry has it.
pub(crate) struct ListedManifest {
    pub bytes: Vec<u8>,
    /// The entry of an index that led to it, if there was one.
    pub entry: Option<Descriptor>,
}

impl ImageDocuments {
    /// Stages the documents, and the layers that the store lacks: several at once, the largest
    /// first. Returns the ID of the image, and true if the store lacked any of its content.
    pub(crate) fn stage(
        &self,
        source: &dyn BlobSource,
        staging: &Staging<'_>,
        progress: &TransferProgress<'_>,
    ) -> Result<(ImageId, bool)> {
        staging.put_bytes(&self.manifest)?;
        let missing = missing_layers(staging, &self.layers)?;
        let is_new = !missing.is_empty() || self.is_new_config(staging)?;
        let id = staging.put_bytes(&self.config)?.0.of_config();
        for layer in self.layers.iter().filter(|layer| !missing.contains(layer)) {
            staging.report_stored(&layer.digest)?;
        }
        let (contained, missing): (Vec<BlobInfo>, _) =
            missing.into_iter().partition(|layer| self.embedded.contains_key(&layer.digest));
        for BlobInfo { digest, .. } in contained {
            staging.put_watched(&digest, &self.embedded[&digest][..])?;
        }
        (progress.total)(total_size(&missing));
        copy_all(source, staging, &missing, progress)?;
        Ok((id, is_new))
    }

    /// Returns true if the store lacks the configuration.
    pub(crate) fn is_new_config(&self, staging: &Staging<'_>) -> Result<bool> {
        Ok(staging.verified_size(&BlobDigest::of(&self.config))?.is_none())
    }
}

/// The download of the documents of one image.
pub(crate) struct Transfer<'a> {
    pub source: &'a dyn BlobSource,
    /// Documents of the store are not downloaded.
    pub store: &'a Store,
    /// Name of the source in messages.
    pub place: String,
    pub platform: &'a Platform,
}

impl Transfer<'_> {
    pub(crate) fn invalid(&self, reason: impl std::fmt::Display) -> TransportError {
        TransportError::other(format!("{}: {reason}", self.place))
    }

    /// Returns a conversion for errors of a document of the image.
    pub(crate) fn document<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        context: &str,
    ) -> impl FnOnce(E) -> TransportError + use<E> {
        TransportError::document(format!("{}: {context}", self.place))
    }

    /// Parses an index. `depth` is the number of indexes that led to it.
    pub(crate) fn index(&self, document: &[u8], depth: usize) -> Result<ImageIndex> {
        let digest = ManifestDigest::of(document);
        if depth == MAX_DEPTH {
            return Err(self.invalid(format!("the index {digest} is nested more than {MAX_DEPTH} levels deep")));
        }
        let index = parse_index(document).map_err(self.document(&format!("the index {digest}")))?;
        match index.manifests().len() {
            0..=MAX_ENTRIES => Ok(index),
            n => Err(self.invalid(format!("the index {digest} has {n} entries; the limit is {MAX_ENTRIES}"))),
        }
    }

    /// Returns the document of an entry. Downloads it if neither the store nor the entry has it.
    pub(crate) fn document_of(&self, entry: &Descriptor) -> Result<Vec<u8>> {
        let digest = digest_of(entry).map_err(self.document("the index"))?;
        let bytes = match stored_manifest(self.store, &digest).or_else(|| embedded(entry)) {
            Some(bytes) => bytes,
            None => self.source.document(&digest)?,
        };
        match (bytes.len() as u64, entry.size()) {
            (size, stated) if size == stated => Ok(bytes),
            (size, stated) => {
                Err(self.invalid(format!("the manifest {digest} has {size} bytes; the index states {stated}")))
            }
        }
    }

    /// Returns the manifest for the platform: the document itself, or the one that an index leads
    /// to, with its entry.
    fn manifest(&self, document: Vec<u8>, depth: usize, entry: Option<Descriptor>) -> Result<ListedManifest> {
        if !is_index(&document) {
            return Ok(ListedManifest { bytes: document, entry });
        }
        match choose(&self.index(&document, depth)?, self.platform) {
            PlatformMatch::Entry(chosen) => {
                let next = self.document_of(&chosen)?;
                self.manifest(next, depth + 1, Some(nested(chosen, entry.as_ref())))
            }
            PlatformMatch::None(others) if others.is_empty() => {
                Err(TransportError::NoImage { place: self.place.clone(), platform: self.platform.to_string() })
            }
            PlatformMatch::None(others) => Err(TransportError::Other {
                message: format!("{} has no image for {}, only for {}", self.place, self.platform, others.join(", ")),
                help: others
                    .first()
                    .map(|platform| Remedy::Image(ImageRemedy::SelectPlatform { platform: platform.clone() })),
            }),
        }
    }

    /// Returns the documents of the image that a manifest or an index leads to.
    pub(crate) fn documents(&self, document: Vec<u8>, name: &Reference) -> Result<ImageDocuments> {
        let manifest = self.manifest(document, 0, None)?;
        self.image(manifest, name)
    }

    /// Returns the documents of the image with a manifest.
    pub(crate) fn image(&self, listed: ListedManifest, name: &Reference) -> Result<ImageDocuments> {
        let ListedManifest { bytes, entry } = listed;
        let manifest = parse_manifest(&bytes).map_err(self.document("the manifest"))?;
        self.check_types(&manifest)?;
        let info = |d: &Descriptor| {
            let digest = digest_of(d).map_err(self.document("the manifest"))?;
            Ok(BlobInfo { digest, size: d.size() })
        };
        let id = info(manifest.config())?;
        let text = self.config(manifest.config(), &id)?;
        let config: ImageConfig =
            serde_json::from_slice(&text).map_err(self.document(&format!("the configuration {}", id.digest)))?;
        let layers = manifest.layers().iter().map(info).collect::<Result<Vec<_>>>()?;
        let diff_ids = config.rootfs.diff_ids.len();
        if layers.len() != diff_ids {
            return Err(self.invalid(format!(
                "its manifest and configuration disagree on the number of layers: {} and {diff_ids}",
                layers.len()
            )));
        }
        let (own, wanted) = (config.platform(), self.platform);
        let other = (!wanted.accepts(&own)).then(|| mismatch(name, &own, wanted));
        let warnings = other.into_iter().collect();
        let urls = urls_of(&manifest)?;
        let contained = |layer: &Descriptor| embedded(layer).map(|bytes| (BlobDigest::of(&bytes), bytes));
        let embedded = manifest.layers().iter().filter_map(contained).collect();
        Ok(ImageDocuments { manifest: bytes, entry, config: text, layers, embedded, urls, platform: own, warnings })
    }

    /// Returns a configuration of the store or of its descriptor, or else downloads it and verifies
    /// its digest.
    fn config(&self, descriptor: &Descriptor, part: &BlobInfo) -> Result<Vec<u8>> {
        if part.size > MAX_CONFIG {
            let size = part.size;
            return Err(self.invalid(format!("its configuration has {size} bytes; the limit is {MAX_CONFIG}")));
        }
        if let Ok(stored) = self.store.blobs().read_document(&part.digest) {
            return Ok(stored);
        }
        if let Some(bytes) = embedded(descriptor) {
            return Ok(bytes);
        }
        loop {
            let mut blob = self.source.open(part)?;
            let mut bytes = Vec::new();
            let read = blob.by_ref().take(MAX_CONFIG + 1).read_to_end(&mut bytes);
            read.map_err(TransportError::reading("cannot read the image"))?;
            let found = BlobDigest::of(&bytes);
            if found == part.digest {
                return Ok(bytes);
            }
            if !blob.note_wrong(&found) {
                return Err(blob.wrong_digest(&found));
            }
        }
    }

    /// Fails unless the manifest is that of an image whose layers are archives.
    fn check_types(&self, manifest: &ImageManifest) -> Result<()> {
        if let Some(kind) = artifact_type(manifest) {
            return Err(TransportError::Artifact { place: self.place.clone(), kind: kind.to_string() });
        }
        match manifest.layers().iter().find(|layer| !is_layer(layer.media_type())) {
            Some(unknown) => {
                Err(self.invalid(format!("layer {} has the unknown type {}", unknown.digest(), unknown.media_type())))
            }
            None => Ok(()),
        }
    }
}

/// Returns an entry of an index that the entry `outer` of another index led to: with the platform
/// of that one unless it has its own.
pub(crate) fn nested(mut entry: Descriptor, outer: Option<&Descriptor>) -> Descriptor {
    if entry.platform().is_none() {
        entry.set_platform(outer.and_then(|outer| outer.platform().clone()));
    }
    entry
}

/// Returns a manifest or an index of the store; `None` if there is none.
pub(crate) fn stored_manifest(store: &Store, digest: &BlobDigest) -> Option<Vec<u8>> {
    let bytes = store.blobs().read_document(digest).ok()?;
    (is_index(&bytes) || parse_manifest(&bytes).is_ok()).then_some(bytes)
}

/// Returns the URLs of the layers that must not be distributed.
fn urls_of(manifest: &ImageManifest) -> Result<HashMap<BlobDigest, Vec<String>>> {
    let mut all = HashMap::new();
    for layer in manifest.layers().iter().filter(|layer| is_nondistributable(layer.media_type())) {
        let digest = digest_of(layer).map_err(TransportError::document("the manifest"))?;
        all.extend(layer.urls().clone().map(|urls| (digest, urls)));
    }
    Ok(all)
}

/// Returns the layers that the store lacks, the largest first.
pub(crate) fn missing_layers(staging: &Staging<'_>, layers: &[BlobInfo]) -> Result<Vec<BlobInfo>> {
    let mut missing: Vec<BlobInfo> = Vec::new();
    for layer in layers {
        let here = staging.verified_size(&layer.digest)? == Some(layer.size);
        if !here && !missing.iter().any(|known| known.digest == layer.digest) {
            missing.push(*layer);
        }
    }
    missing.sort_by_key(|part| std::cmp::Reverse(part.size));
    Ok(missing)
}

/// Returns true for a list of manifests. The registry's client has compared this with the media
/// type.
pub(crate) fn is_index(document: &[u8]) -> bool {
    let value: Option<Value> = serde_json::from_slice(document).ok();
    value.is_some_and(|value| value.get("manifests").is_some_and(Value::is_array))
}

fn mismatch(name: &Reference, own: &Platform, wanted: &Platform) -> String {
    format!("{} is for {own}, not for the requested {wanted}", name.familiar())
}

/// Returns the error about a single image that is for another platform than the requested one.
pub(crate) fn refused(name: &Reference, own: &Platform, wanted: &Platform) -> TransportError {
    TransportError::Other {
        message: mismatch(name, own, wanted),
        help: Some(ImageRemedy::SelectPlatform { platform: own.to_string() }.into()),
    }
}

#[cfg(test)]
mod tests;
