//! `pull`: an image from a registry into the store.

use rbuild_image::{BlobDigest, ImageId, ManifestDigest, Platform, Reference};
use rbuild_registry::{Client, ReceivedManifest, Repository, ResolvedTag};
use rbuild_store::{Lock, LostPlatforms, Once, Pulled, Staging, StagingWatch, Store, Workspace};

use crate::blobs::TransferProgress;
use crate::error::{Result, TransportError};
use crate::image_documents::{ImageDocuments, Transfer, is_index, refused, stored_manifest};
use crate::registry::WithUrls;

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
