//! `pull`: an image from a registry into the store.

use rbuild_image::{
    Descriptor, ImageConfig, ImageId, ImageManifest, ManifestDigest, Platform, Reference, digest_of, parse_index,
    parse_manifest,
};
use rbuild_registry::{Choice, Client, Resolved, choose};
use rbuild_remedy::{ImageRemedy, Remedy, ServerRemedy};
use rbuild_store::{Lock, LostPlatforms, Once, Pulled, Staging, Store, Workspace};
use serde_json::Value;
use std::error::Error;

use crate::blobs::{BlobInfo, BlobSink, BlobSource, TransferProgress, copy_all, total_size};
use crate::error::{Result, TransportError};
use crate::media_types::is_layer;

/// Maximum size of a configuration in bytes, as for other sources of images.
const MAX_CONFIG: u64 = 16 << 20;
/// Maximum depth of indexes in indexes.
const MAX_DEPTH: usize = 3;

/// Result of a pull: an image that was downloaded, or existed already.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// Its ID.
    pub id: ImageId,
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    /// Digest that the name stands for in the registry: that of the manifest or an index.
    pub resolved: ManifestDigest,
    /// True if anything was downloaded.
    pub is_new: bool,
    /// Platforms that the name stood for before, and does not any more.
    pub lost: Option<LostPlatforms>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Pulls an image for a platform and names it. If the store has the current image of the registry,
/// nothing is downloaded. Two processes that pull the same image download it once.
///
/// # Errors
///
/// Fails if the registry fails or has no image for the platform, if the image is damaged, or if the
/// store cannot be written.
#[tracing::instrument(target = "transport", name = "pull", level = "debug", skip_all, fields(%name))]
pub fn pull(
    store: &Store,
    client: &Client,
    name: &Reference,
    platform: &Platform,
    progress: &TransferProgress<'_>,
) -> Result<PulledImage> {
    let repository = client.repository(name)?;
    let (resolved, document) = match (name.digest(), name.tag()) {
        (Some(digest), _) => (digest.blob(), None),
        (None, tag) => match repository.resolve(tag.unwrap_or("latest"))? {
            Resolved::Digest(digest) => (digest, None),
            Resolved::Document(document) => (document.digest, Some(document)),
        },
    };
    let resolved = resolved.of_manifest();
    let find = || -> Result<Option<PulledImage>> {
        let known = store.images().pulled_image(name, platform)?.filter(|(known, _)| known.resolved == resolved);
        let Some((known, image)) = known else { return Ok(None) };
        let lost = keep_name(store, name, &known.manifest)?;
        let (id, manifest) = (image.id, known.manifest);
        Ok(Some(PulledImage { id, manifest, resolved, is_new: false, lost, warnings: Vec::new() }))
    };
    let download = || {
        let document = match document {
            Some(document) => document,
            None => repository.document(&resolved.blob())?,
        };
        let place = repository.place().to_string();
        let transfer = Transfer { source: &repository, place, platform, progress };
        let bytes = transfer.manifest(document.bytes, 0)?;
        let manifest = ManifestDigest::of(&bytes);
        let work = Workspace::open(store)?;
        let staging = Staging::open(store, &work)?;
        let (id, warnings) = transfer.image(&staging, &bytes, name)?;
        let lost = staging.keep("pull", &[manifest], &[(manifest, tag_of(name))])?.pop();
        store.images().note_pulled(name, platform, &Pulled { resolved, manifest })?;
        Ok(PulledImage { id, manifest, resolved, is_new: true, lost, warnings })
    };
    store.once(Lock::pull(&format!("{name} {platform}")), find, download).map(Once::either)
}

/// Gives an image that is there its name, unless it has it. Returns the platforms that the name
/// loses.
fn keep_name(store: &Store, name: &Reference, manifest: &ManifestDigest) -> Result<Option<LostPlatforms>> {
    let Some(tag) = tag_of(name) else { return Ok(None) };
    let has =
        store.images().list()?.iter().any(|entry| entry.manifest == *manifest && entry.name.as_ref() == Some(&tag));
    if has {
        return Ok(None);
    }
    let lost = store.images().platforms_lost_by(&[(*manifest, Some(tag.clone()))])?.pop();
    store.images().tag(manifest, Some(&tag))?;
    Ok(lost)
}

/// Returns the name that a pulled image gets: none if it was requested by digest.
fn tag_of(name: &Reference) -> Option<Reference> {
    name.digest().is_none().then(|| name.clone())
}

/// The download of one image.
struct Transfer<'a> {
    source: &'a dyn BlobSource,
    /// Name of the source in messages.
    place: String,
    platform: &'a Platform,
    progress: &'a TransferProgress<'a>,
}

impl Transfer<'_> {
    fn invalid(&self, reason: impl std::fmt::Display) -> TransportError {
        TransportError::other(format!("{}: {reason}", self.place))
    }

    /// Returns a conversion for errors of a document of the image.
    fn document<E: Into<Box<dyn Error + Send + Sync>>>(&self, what: &str) -> impl FnOnce(E) -> TransportError + use<E> {
        TransportError::document(format!("{}: {what}", self.place))
    }

    /// Returns the manifest for the platform: the document itself, or the one that an index leads
    /// to.
    fn manifest(&self, document: Vec<u8>, depth: usize) -> Result<Vec<u8>> {
        if !is_index(&document) {
            return Ok(document);
        }
        let index = || format!("{}: the index {}", self.place, ManifestDigest::of(&document));
        if depth == MAX_DEPTH {
            let digest = ManifestDigest::of(&document);
            return Err(self.invalid(format!("the index {digest} is nested more than {MAX_DEPTH} levels deep")));
        }
        let entries = parse_index(&document).map_err(TransportError::document(index()))?;
        match choose(&entries, self.platform) {
            Choice::Entry(entry) => {
                let digest = digest_of(&entry).map_err(TransportError::document(index()))?;
                self.manifest(self.source.document(&digest)?, depth + 1)
            }
            Choice::Others(others) if others.is_empty() => Err(TransportError::Other {
                message: format!(
                    "{} has no image for {}: its index lists no image for any platform",
                    self.place, self.platform
                ),
                help: Some(ServerRemedy::PushAgain.into()),
            }),
            Choice::Others(others) => Err(TransportError::Other {
                message: format!("{} has no image for {}, only for {}", self.place, self.platform, others.join(", ")),
                help: others
                    .first()
                    .map(|platform| Remedy::Image(ImageRemedy::SelectPlatform { platform: platform.clone() })),
            }),
        }
    }

    /// Downloads an image. Returns its ID and warnings.
    fn image(&self, staging: &Staging<'_>, bytes: &[u8], name: &Reference) -> Result<(ImageId, Vec<String>)> {
        let manifest = parse_manifest(bytes).map_err(self.document("the manifest"))?;
        self.check_types(&manifest)?;
        staging.put_bytes(bytes)?;
        let config = manifest.config();
        let (digest, size) = (digest_of(config).map_err(self.document("the manifest"))?, config.size());
        if size > MAX_CONFIG {
            return Err(self.invalid(format!("its configuration has {size} bytes; the limit is {MAX_CONFIG}")));
        }
        staging.copy(self.source, &BlobInfo { digest, size }, &self.progress.moved)?;
        let text = staging.read_document(&digest)?;
        let config: ImageConfig =
            serde_json::from_slice(&text).map_err(self.document(&format!("the configuration {digest}")))?;
        let (layers, diff_ids) = (manifest.layers().len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(self.invalid(format!(
                "its manifest and configuration disagree on the number of layers: {layers} and {diff_ids}"
            )));
        }
        let (own, wanted) = (config.platform(), self.platform);
        let other =
            (!wanted.takes(&own)).then(|| format!("{} is for {own}, not for the requested {wanted}", name.familiar()));
        self.layers(staging, manifest.layers())?;
        Ok((digest.of_config(), other.into_iter().collect()))
    }

    /// Fails unless the manifest is that of an image whose layers are archives.
    fn check_types(&self, manifest: &ImageManifest) -> Result<()> {
        let config = manifest.config().media_type().to_string();
        let is_image = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
            .contains(&&*config);
        let kind = manifest.artifact_type().as_ref().map(ToString::to_string).or((!is_image).then_some(config));
        if let Some(kind) = kind {
            return Err(self.invalid(format!("it is an artifact of type {kind}, not an image")));
        }
        match manifest.layers().iter().find(|layer| !is_layer(layer.media_type())) {
            Some(unknown) => {
                Err(self.invalid(format!("layer {} has the unknown type {}", unknown.digest(), unknown.media_type())))
            }
            None => Ok(()),
        }
    }

    /// Downloads the layers that the store lacks, several at once and the largest first.
    fn layers(&self, staging: &Staging<'_>, layers: &[Descriptor]) -> Result<()> {
        let mut missing: Vec<BlobInfo> = Vec::new();
        for layer in layers {
            let (digest, size) = (digest_of(layer).map_err(self.document("the manifest"))?, layer.size());
            let here = staging.verified_size(&digest)? == Some(size);
            if !here && !missing.iter().any(|known| known.digest == digest) {
                missing.push(BlobInfo { digest, size });
            }
        }
        missing.sort_by_key(|part| std::cmp::Reverse(part.size));
        (self.progress.total)(total_size(&missing));
        copy_all(self.source, staging, &missing, self.progress)
    }
}

/// Returns true for a list of manifests. The registry's client has compared this with the media
/// type.
fn is_index(document: &[u8]) -> bool {
    let value: Option<Value> = serde_json::from_slice(document).ok();
    value.is_some_and(|value| value.get("manifests").is_some_and(Value::is_array))
}

#[cfg(test)]
mod tests;
