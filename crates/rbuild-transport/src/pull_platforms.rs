//! `pull` of several platforms: the name refers to an index of their images.

use std::collections::HashSet;

use rbuild_image::{BlobDigest, ManifestDigest, Platform, Reference, digest_of, parse_index};
use rbuild_registry::{Client, image_entries};
use rbuild_remedy::ServerRemedy;
use rbuild_store::{Image, Lock, LostPlatforms, Once, Pulled, Staging, Store, Workspace};

use crate::blobs::{BlobInfo, TransferProgress, copy_all, total_size};
use crate::documents::index_of_images;
use crate::error::{Result, TransportError};
use crate::pull::{
    ImageDocuments, MAX_DEPTH, NameUse, RemoteImage, Transfer, is_index, missing_layers, refused, stored_manifest,
    tag_of,
};
use crate::registry::WithUrls;

/// Result of a pull of several platforms.
#[derive(Debug, Clone)]
pub struct PulledPlatforms {
    /// Digest that the name resolved to in the registry.
    pub resolved: ManifestDigest,
    /// True if anything was downloaded.
    pub is_new: bool,
    /// Platforms that the name no longer refers to.
    pub lost: Option<LostPlatforms>,
}

/// Images of several platforms, and the document that refers to them.
struct PlatformImages<'a> {
    remote: &'a RemoteImage,
    /// The images with the platforms under which they are noted.
    images: Vec<(Platform, ImageDocuments)>,
    /// Digest of the manifest or index that the name refers to.
    top: ManifestDigest,
    /// The index, if there are several images.
    index: Option<Vec<u8>>,
}

/// Pulls the images of several platforms, or of all platforms if `wanted` is empty. The name refers
/// to an index of them. Attestations and other artifacts are not pulled.
///
/// # Errors
///
/// Fails as [`pull`](crate::pull::pull) does, and if there is no image for one of the platforms.
#[tracing::instrument(target = "transport", name = "pull_platforms", level = "debug", skip_all, fields(%name))]
pub fn pull_platforms(
    store: &Store,
    client: &Client,
    name: &Reference,
    wanted: &[Platform],
    progress: &TransferProgress<'_>,
) -> Result<PulledPlatforms> {
    let (remote, document) = RemoteImage::resolve(client, name, &Platform::host(), NameUse::ThisImage)?;
    let bytes = remote.top(document, store)?;
    let images = match wanted {
        [] => remote.all_images(store, bytes)?,
        wanted => remote.images_for(store, &bytes, wanted)?,
    };
    let found = PlatformImages::of(&remote, images)?;
    let lock = Lock::pull(&format!("{name} *"));
    store.once(lock, || found.find(store), || found.download(store, progress)).map(Once::into_inner)
}

impl RemoteImage {
    fn transfer<'a>(&'a self, store: &'a Store, platform: &'a Platform) -> Transfer<'a> {
        Transfer { source: &self.repository, store, place: self.repository.place().to_string(), platform }
    }

    /// Returns the images for these platforms.
    fn images_for(&self, store: &Store, bytes: &[u8], wanted: &[Platform]) -> Result<Vec<(Platform, ImageDocuments)>> {
        let one = |platform: &Platform| {
            let documents = self.transfer(store, platform).documents(bytes.to_vec(), &self.name)?;
            if !is_index(bytes) && !platform.accepts(&documents.platform) {
                return Err(refused(&self.name, &documents.platform, platform));
            }
            Ok((platform.clone(), documents))
        };
        wanted.iter().map(one).collect()
    }

    /// Returns the images for all platforms, each with its own.
    fn all_images(&self, store: &Store, bytes: Vec<u8>) -> Result<Vec<(Platform, ImageDocuments)>> {
        let mut manifests = Vec::new();
        self.transfer(store, &self.platform).manifests(bytes, 0, &mut manifests)?;
        if manifests.is_empty() {
            let place = self.repository.place();
            let message = format!("{place}: its index lists no image for any platform");
            return Err(TransportError::Other { message, help: Some(ServerRemedy::PushAgain.into()) });
        }
        let one = |manifest| {
            let documents = self.transfer(store, &self.platform).image(manifest, &self.name)?;
            Ok((documents.platform.clone(), documents))
        };
        manifests.into_iter().map(one).collect()
    }
}

impl Transfer<'_> {
    /// Adds the manifests of all images that a manifest or an index leads to.
    fn manifests(&self, document: Vec<u8>, depth: usize, found: &mut Vec<Vec<u8>>) -> Result<()> {
        if !is_index(&document) {
            found.push(document);
            return Ok(());
        }
        let digest = ManifestDigest::of(&document);
        if depth == MAX_DEPTH {
            return Err(self.invalid(format!("the index {digest} is nested more than {MAX_DEPTH} levels deep")));
        }
        let entries = parse_index(&document).map_err(self.document(&format!("the index {digest}")))?;
        for entry in image_entries(&entries) {
            let digest = digest_of(&entry).map_err(self.document("the index"))?;
            let next = match stored_manifest(self.store, &digest) {
                Some(bytes) => bytes,
                None => self.source.document(&digest)?,
            };
            self.manifests(next, depth + 1, found)?;
        }
        Ok(())
    }
}

impl PlatformImages<'_> {
    fn of(remote: &RemoteImage, images: Vec<(Platform, ImageDocuments)>) -> Result<PlatformImages<'_>> {
        let mut seen = HashSet::new();
        let mut listed = Vec::new();
        for (_, documents) in &images {
            let image = Image::of_documents(&documents.manifest, |_| Ok(documents.config.clone()))?;
            if seen.insert(image.manifest_digest) {
                listed.push(image);
            }
        }
        let index = if listed.len() > 1 { Some(index_of_images(&listed)?) } else { None };
        let single = listed.first().map(|image| image.manifest_digest);
        let top = index.as_ref().map(|bytes| ManifestDigest::of(bytes)).or(single);
        let top = top.ok_or_else(|| TransportError::other("no platform was requested"))?;
        Ok(PlatformImages { remote, images, top, index })
    }

    /// Returns the result if the name refers to complete images of these platforms.
    fn find(&self, store: &Store) -> Result<Option<PulledPlatforms>> {
        let RemoteImage { name, resolved, .. } = self.remote;
        for (platform, _) in &self.images {
            let known = store.images().pulled_image(name, platform)?;
            if known.is_none_or(|(known, _)| known.resolved != *resolved) {
                return Ok(None);
            }
        }
        let tag = tag_of(name);
        let is_it = |entry: &rbuild_store::NamedImage| entry.name == tag && *entry.artifact.digest() == self.top;
        let is_named = store.images().list()?.iter().any(is_it);
        Ok(is_named.then_some(PulledPlatforms { resolved: *resolved, is_new: false, lost: None }))
    }

    /// Downloads the layers that the store lacks, and names the images.
    fn download(&self, store: &Store, progress: &TransferProgress<'_>) -> Result<PulledPlatforms> {
        let RemoteImage { repository, name, resolved, .. } = self.remote;
        let work = Workspace::open(store)?;
        let staging = Staging::open(store, &work)?;
        for document in self.images.iter().flat_map(|(_, image)| [&image.manifest, &image.config]).chain(&self.index) {
            staging.put_bytes(document)?;
        }
        let layers: Vec<BlobInfo> = self.images.iter().flat_map(|(_, image)| &image.layers).copied().collect();
        let urls = self.images.iter().flat_map(|(_, image)| image.urls.clone()).collect();
        let missing = missing_layers(&staging, &layers)?;
        (progress.total)(total_size(&missing));
        copy_all(&WithUrls { repository, urls: &urls }, &staging, &missing, progress)?;
        let lost = staging.publish("pull", &[self.top], &[(self.top, tag_of(name))])?.pop();
        for (platform, image) in &self.images {
            let manifest = BlobDigest::of(&image.manifest).of_manifest();
            store.images().note_pulled(name, platform, &Pulled { resolved: *resolved, manifest })?;
        }
        Ok(PulledPlatforms { resolved: *resolved, is_new: true, lost })
    }
}
