//! `pull`: an image from a registry into the store.

use std::collections::HashMap;
use std::io::Read;

use rbuild_image::{
    BlobDigest, Descriptor, ImageConfig, ImageId, ImageIndex, ImageManifest, ManifestDigest, Platform, Reference,
    artifact_type, digest_of, parse_index, parse_manifest,
};
use rbuild_registry::{Client, PlatformMatch, ReceivedManifest, Repository, ResolvedTag, choose, embedded};
use rbuild_remedy::{ImageRemedy, Remedy};
use rbuild_store::{Lock, LostPlatforms, Once, Pulled, Staging, StagingWatch, Store, Workspace};
use serde_json::Value;
use std::error::Error;

use crate::blobs::{BlobInfo, BlobSource, TransferProgress, copy_all, total_size};
use crate::error::{Result, TransportError};
use crate::media_types::{is_layer, is_nondistributable};
use crate::registry::WithUrls;

/// Maximum size of a configuration in bytes, as for other sources of images.
const MAX_CONFIG: u64 = 16 << 20;
/// Maximum depth of indexes in indexes.
const MAX_DEPTH: usize = 3;
/// Maximum number of entries of an index.
const MAX_ENTRIES: usize = 1000;

/// Result of a pull: an image that was downloaded, or existed already.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// ID of the image.
    pub id: ImageId,
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    /// Digest that the name resolved to in the registry: that of the manifest or an index.
    pub resolved: ManifestDigest,
    /// True if the store lacked any part of the image besides its manifest.
    pub is_new: bool,
    /// Platforms that the name no longer refers to.
    pub lost: Option<LostPlatforms>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Handling of a name that resolves to a single image, which is for another platform than the
/// requested one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherPlatform {
    /// The image is pulled, with a warning.
    Accept,
    /// The pull fails.
    Refuse,
}

/// An image to pull.
#[derive(Debug, Clone, Copy)]
pub struct WantedImage<'a> {
    /// The name in the registry.
    pub name: &'a Reference,
    /// The requested platform.
    pub platform: &'a Platform,
    /// Handling of an image for another platform.
    pub other: OtherPlatform,
    /// The image that the name refers to afterwards.
    pub name_use: NameUse,
}

/// Pulls an image for a platform and names it. If the store has the current image of the registry,
/// nothing is downloaded. Two processes that pull the same image download it once.
///
/// # Errors
///
/// Fails if the registry fails or has no image for the platform, if the image is damaged or
/// refused, or if the store cannot be written.
#[tracing::instrument(target = "transport", name = "pull", level = "debug", skip_all, fields(name = %image.name))]
pub fn pull(
    store: &Store,
    client: &Client,
    image: &WantedImage<'_>,
    progress: &TransferProgress<'_>,
) -> Result<PulledImage> {
    let (remote, document) = RemoteImage::resolve(store, client, image)?;
    let download = || remote.download(&remote.documents(document, store)?, store, progress, None);
    remote.once(store, download)
}

/// Begins a pull for a build or a container: resolves the name, and downloads the documents of the
/// image unless the store has the image. If the name resolves to images of several platforms, and
/// several are in the store, it refers to that of this machine's platform.
///
/// # Errors
///
/// Fails as [`pull`] does.
#[tracing::instrument(target = "transport", name = "begin_pull", level = "debug", skip_all, fields(%name))]
pub fn begin_pull(
    store: &Store,
    client: &Client,
    name: &Reference,
    platform: &Platform,
    other: OtherPlatform,
) -> Result<PullStart> {
    let wanted = WantedImage { name, platform, other, name_use: NameUse::PreferredImage };
    let (remote, document) = RemoteImage::resolve(store, client, &wanted)?;
    match remote.find(store)? {
        Some(found) => Ok(PullStart::Found(found)),
        None => {
            let documents = remote.documents(document, store)?;
            Ok(PullStart::Pending(PendingPull { remote, documents }))
        }
    }
}

/// The first half of a pull.
pub enum PullStart {
    /// The store has the image.
    Found(PulledImage),
    /// The layers are missing.
    Pending(PendingPull),
}

/// The image that the name refers to after a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameUse {
    /// The one that was pulled.
    ThisImage,
    /// Of those that were pulled for several platforms, the one that [`Images::preferred_pull`]
    /// returns, whichever pull ends last; or the index that the name refers to, as long as the name
    /// resolves to the same digest.
    ///
    /// [`Images::preferred_pull`]: rbuild_store::Images::preferred_pull
    PreferredImage,
}

/// A name in a registry, and the manifest or index that it resolved to.
pub(crate) struct RemoteImage {
    pub repository: Repository,
    pub name: Reference,
    pub platform: Platform,
    pub resolved: ManifestDigest,
    name_use: NameUse,
    other: OtherPlatform,
}

impl RemoteImage {
    /// Resolves a name. Also returns the document, if the registry sent it: an image that the store
    /// lacks is requested at once, without its digest first.
    pub(crate) fn resolve(
        store: &Store,
        client: &Client,
        image: &WantedImage<'_>,
    ) -> Result<(RemoteImage, Option<ReceivedManifest>)> {
        let WantedImage { name, platform, other, name_use } = *image;
        let is_known = || Ok::<_, TransportError>(store.images().pulled_image(name, platform)?.is_some());
        let repository = client.repository(name)?;
        let (resolved, document) = match (name.digest(), name.checksum(), name.tag()) {
            (Some(digest), ..) => (digest.blob(), None),
            (None, Some(checksum), _) => {
                let document = repository.checked(checksum)?;
                (document.digest, Some(document))
            }
            (None, None, tag) if is_known()? => match repository.resolve(tag.unwrap_or("latest"))? {
                ResolvedTag::Digest(digest) => (digest, None),
                ResolvedTag::Manifest(document) => (document.digest, Some(document)),
            },
            (None, None, tag) => {
                let document = repository.tagged(tag.unwrap_or("latest"))?;
                (document.digest, Some(document))
            }
        };
        let (name, platform) = (name.clone(), platform.clone());
        let resolved = resolved.of_manifest();
        Ok((RemoteImage { repository, name, platform, resolved, name_use, other }, document))
    }

    /// Returns the image if the store has it, and names it.
    fn find(&self, store: &Store) -> Result<Option<PulledImage>> {
        let known = store.images().pulled_image(&self.name, &self.platform)?;
        let Some((known, image)) = known.filter(|(known, _)| known.resolved == self.resolved) else { return Ok(None) };
        if self.resolved == known.manifest {
            self.check_platform(&image.config.platform())?;
        }
        let lost = self.give_name(store, known.manifest)?;
        let (id, manifest) = (image.id, known.manifest);
        let resolved = self.resolved;
        Ok(Some(PulledImage { id, manifest, resolved, is_new: false, lost, warnings: Vec::new() }))
    }

    /// Checks the platform of a single image against the requested one.
    fn check_platform(&self, own: &Platform) -> Result<()> {
        if self.other == OtherPlatform::Refuse && !self.platform.accepts(own) {
            Err(refused(&self.name, own, &self.platform))
        } else {
            Ok(())
        }
    }

    /// Gives the name to the image that it refers to once `pulled` has been pulled. Returns the
    /// platforms that the name loses.
    fn give_name(&self, store: &Store, pulled: ManifestDigest) -> Result<Option<LostPlatforms>> {
        if self.name_use == NameUse::ThisImage {
            return keep_name(store, &self.name, &pulled);
        }
        if self.keeps_index(store)? {
            return Ok(None);
        }
        let preferred = || store.images().preferred_pull(&self.name, &self.resolved);
        let mut image = preferred()?.unwrap_or(pulled);
        loop {
            let lost = keep_name(store, &self.name, &image)?;
            // The pull for another platform may have ended meanwhile.
            match preferred()? {
                Some(now) if now != image => image = now,
                _ => return Ok(lost),
            }
        }
    }

    /// Returns true if the name refers to an index that was pulled while the registry had the same
    /// images as now, and that must be kept.
    fn keeps_index(&self, store: &Store) -> Result<bool> {
        Ok(self.name_use == NameUse::PreferredImage && store.images().is_pulled_index(&self.name, &self.resolved)?)
    }

    /// Returns the image of the store, or else the one that `download` makes. If several processes
    /// pull the same image, one downloads it.
    fn once(&self, store: &Store, download: impl FnOnce() -> Result<PulledImage>) -> Result<PulledImage> {
        let lock = Lock::pull(&format!("{} {}", self.name, self.platform));
        store.once(lock, || self.find(store), download).map(Once::into_inner)
    }

    /// Returns the manifest for the platform and the configuration. Downloads what the store lacks.
    fn documents(&self, document: Option<ReceivedManifest>, store: &Store) -> Result<ImageDocuments> {
        let bytes = self.top(document, store)?;
        let (source, place) = (&self.repository, self.repository.place().to_string());
        let is_single = !is_index(&bytes);
        let documents = Transfer { source, store, place, platform: &self.platform }.documents(bytes, &self.name)?;
        if is_single {
            self.check_platform(&documents.platform)?;
        }
        Ok(documents)
    }

    /// Returns the manifest or index that the name resolved to.
    pub(crate) fn top(&self, document: Option<ReceivedManifest>, store: &Store) -> Result<Vec<u8>> {
        let digest = self.resolved.blob();
        // For a name with a digest, the registry has not been contacted yet.
        let stored = || self.name.digest().is_none().then(|| stored_manifest(store, &digest)).flatten();
        match document.map(|document| document.bytes).or_else(stored) {
            Some(bytes) => Ok(bytes),
            None => Ok(self.repository.document(&digest)?.bytes),
        }
    }

    /// Downloads the layers that the store lacks, and names the image.
    fn download(
        &self,
        documents: &ImageDocuments,
        store: &Store,
        progress: &TransferProgress<'_>,
        watch: Option<&dyn StagingWatch>,
    ) -> Result<PulledImage> {
        let RemoteImage { repository, name, platform, resolved, .. } = self;
        let manifest = ManifestDigest::of(&documents.manifest);
        let work = Workspace::open(store)?;
        let staging = Staging::open(store, &work)?;
        let staging = match watch {
            Some(watch) => staging.watched(watch),
            None => staging,
        };
        let source = WithUrls { repository, urls: &documents.urls };
        let (id, is_new) = documents.stage(&source, &staging, progress)?;
        let tag = if self.keeps_index(store)? { None } else { tag_of(name) };
        let lost = staging.publish("pull", &[manifest], &[(manifest, tag)])?.pop();
        store.images().note_pulled(name, platform, &Pulled { resolved: *resolved, manifest })?;
        if self.name_use == NameUse::PreferredImage {
            self.give_name(store, manifest)?;
        }
        let warnings = documents.warnings.clone();
        Ok(PulledImage { id, manifest, resolved: *resolved, is_new, lost, warnings })
    }
}

/// A pull whose layers are missing.
pub struct PendingPull {
    remote: RemoteImage,
    documents: ImageDocuments,
}

impl PendingPull {
    /// Returns the bytes of the manifest.
    pub fn manifest(&self) -> &[u8] {
        &self.documents.manifest
    }

    /// Returns the bytes of the configuration.
    pub fn config(&self) -> &[u8] {
        &self.documents.config
    }

    /// Returns the digests of the layers.
    pub fn layers(&self) -> impl Iterator<Item = BlobDigest> {
        self.documents.layers.iter().map(|layer| layer.digest)
    }

    /// Returns warnings, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.documents.warnings
    }

    /// Downloads the layers and names the image, unless another process has done so. `watch`
    /// receives the progress of the blobs.
    ///
    /// # Errors
    ///
    /// Fails as [`pull`] does, and if `watch` does.
    pub fn complete(
        &self,
        store: &Store,
        progress: &TransferProgress<'_>,
        watch: &dyn StagingWatch,
    ) -> Result<PulledImage> {
        self.remote.once(store, || self.remote.download(&self.documents, store, progress, Some(watch)))
    }
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
pub(crate) fn tag_of(name: &Reference) -> Option<Reference> {
    (!name.is_pinned()).then(|| name.clone())
}

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

/// Returns an entry of an index that the entry `outer` of another index led to: with the platform
/// of that one unless it has its own.
pub(crate) fn nested(mut entry: Descriptor, outer: Option<&Descriptor>) -> Descriptor {
    if entry.platform().is_none() {
        entry.set_platform(outer.and_then(|outer| outer.platform().clone()));
    }
    entry
}

impl ImageDocuments {
    /// Stages the documents, and the layers that the store lacks: several at once, the largest
    /// first. Returns the ID of the image, and true if the store lacked any of its content.
    fn stage(
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

/// Returns a manifest or an index of the store; `None` if there is none.
pub(crate) fn stored_manifest(store: &Store, digest: &BlobDigest) -> Option<Vec<u8>> {
    let bytes = store.blobs().read_document(digest).ok()?;
    (is_index(&bytes) || parse_manifest(&bytes).is_ok()).then_some(bytes)
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

#[cfg(test)]
mod tests;
