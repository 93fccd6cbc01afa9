//! `pull` of several platforms: the name refers to an index of their images.

use std::collections::HashSet;

use rbuild_image::{
    BlobDigest, Descriptor, ManifestDigest, Platform, Reference, digest_of, is_attachment, parse_index,
};
use rbuild_registry::{Client, RegistryProblem, image_entries};
use rbuild_remedy::ServerRemedy;
use rbuild_store::{Image, Lock, LostPlatforms, Once, Pulled, Staging, Store, Workspace};

use crate::blobs::{BlobInfo, TransferProgress, copy_all, total_size};
use crate::documents::index_of_images;
use crate::error::{Result, TransportError};
use crate::image_documents::{ImageDocuments, ListedManifest, Transfer, is_index, missing_layers, nested, refused};
use crate::kept_index::Attachment;
use crate::media_types;
use crate::pull::{NameUse, OtherPlatform, RemoteImage, WantedImage, tag_of};
use crate::registry::WithUrls;

/// Maximum number of images and indexes that an index leads to.
const MAX_LISTED: usize = 1000;
/// Maximum size in bytes of the manifests and configurations of an index. They are kept in memory.
const MAX_DOCUMENTS: usize = 64 << 20;

/// Result of a pull of several platforms.
#[derive(Debug, Clone)]
pub struct PulledPlatforms {
    /// Digest that the name resolved to in the registry.
    pub resolved: ManifestDigest,
    /// True if anything was downloaded.
    pub is_new: bool,
    /// Platforms that the name no longer refers to.
    pub lost: Option<LostPlatforms>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
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
    /// Attestations and other artifacts that the index lists, and the indexes in it.
    attachments: Vec<Attachment>,
    /// The reason why the index is not the registry's.
    warning: Option<String>,
}

/// Pulls the images of several platforms, or of all platforms if `wanted` is empty. The name refers
/// to an index of them: the registry's own, with its attestations, if all platforms are pulled.
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
    let (platform, other) = (&Platform::host(), OtherPlatform::Accept);
    let image = WantedImage { name, platform, other, name_use: NameUse::ThisImage };
    let (remote, document) = RemoteImage::resolve(store, client, &image)?;
    let bytes = remote.top(document, store)?;
    let found = match wanted {
        [] => {
            let (images, indexes) = remote.all_images(store, bytes.clone())?;
            let (mut attachments, warning) = remote.attachments(store, indexes.iter().chain([&bytes]))?;
            for index in indexes {
                attachments.push(Attachment::of_index(index)?);
            }
            let found = PlatformImages::of(&remote, images, Some((bytes, attachments)))?;
            PlatformImages { warning, ..found }
        }
        wanted => PlatformImages::of(&remote, remote.images_for(store, &bytes, wanted)?, None)?,
    };
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

    /// Returns the images for all platforms, each with its own, and the indexes in the index.
    fn all_images(&self, store: &Store, bytes: Vec<u8>) -> Result<ListedImages> {
        let transfer = self.transfer(store, &self.platform);
        let mut listed = IndexImages::new(&transfer, &self.name);
        listed.add(bytes, 0, None)?;
        if listed.images.is_empty() {
            let place = self.repository.place();
            let message = format!("{place}: its index lists no image for any platform");
            return Err(TransportError::Other { message, help: Some(ServerRemedy::PushAgain.into()) });
        }
        Ok((listed.images, listed.indexes))
    }
}

/// Images with their platforms, and the indexes that led to them.
type ListedImages = (Vec<(Platform, ImageDocuments)>, Vec<Vec<u8>>);

impl RemoteImage {
    /// Returns the attestations of indexes. If the registry lacks one, returns none and a warning.
    fn attachments<'a>(
        &self,
        store: &Store,
        documents: impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<(Vec<Attachment>, Option<String>)> {
        let transfer = self.transfer(store, &self.platform);
        let (mut found, mut size, mut seen) = (Vec::new(), 0, HashSet::new());
        let mut entries = Vec::new();
        for index in documents.filter(|document| is_index(document)) {
            // An index of artifacts is not kept.
            let is_kept = |entry: &&Descriptor| is_attachment(entry) && !media_types::is_index(entry.media_type());
            entries.extend(transfer.index(index, 0)?.manifests().iter().filter(is_kept).cloned());
        }
        entries.retain(|entry| seen.insert(entry.digest().to_string()));
        for entry in &entries {
            let document = match transfer.document_of(entry) {
                Err(e) if is_missing(&e) => {
                    let (digest, place) = (entry.digest(), self.repository.place());
                    let warning = format!("{place}: the registry lacks the attestation {digest} of the index");
                    return Ok((Vec::new(), Some(format!("{warning}, which is stored without attestations"))));
                }
                document => document?,
            };
            size += document.len();
            if size > MAX_DOCUMENTS {
                let limit = MAX_DOCUMENTS >> 20;
                return Err(transfer.invalid(format!("its attestations are larger than {limit} MiB in total")));
            }
            found.push(Attachment::of(document)?);
        }
        Ok((found, None))
    }
}

/// Returns true if the registry reported that it does not have a document.
fn is_missing(e: &TransportError) -> bool {
    matches!(e, TransportError::Registry(e) if matches!(*e.problem, RegistryProblem::Missing { .. }))
}

/// The images of all platforms that an index leads to.
struct IndexImages<'t, 'a> {
    transfer: &'t Transfer<'a>,
    name: &'t Reference,
    /// The manifests and indexes that were requested.
    seen: HashSet<BlobDigest>,
    /// Size of the documents in bytes.
    size: usize,
    images: Vec<(Platform, ImageDocuments)>,
    /// The indexes in the index, each after those that it contains itself.
    indexes: Vec<Vec<u8>>,
}

impl<'t, 'a> IndexImages<'t, 'a> {
    fn new(transfer: &'t Transfer<'a>, name: &'t Reference) -> IndexImages<'t, 'a> {
        let (seen, size, images, indexes) = Default::default();
        IndexImages { transfer, name, seen, size, images, indexes }
    }

    /// Adds the images that a manifest or an index leads to, each once. `entry` is the entry that
    /// led to the document, if it is not the one that the name refers to.
    fn add(&mut self, document: Vec<u8>, depth: usize, entry: Option<Descriptor>) -> Result<()> {
        if !is_index(&document) {
            return self.add_image(document, entry);
        }
        for listed in image_entries(&self.transfer.index(&document, depth)?) {
            if !self.seen.insert(digest_of(&listed).map_err(self.transfer.document("the index"))?) {
                continue;
            }
            if self.seen.len() > MAX_LISTED {
                let message = format!("its index leads to more than {MAX_LISTED} images and indexes");
                return Err(self.transfer.invalid(message));
            }
            let next = self.transfer.document_of(&listed)?;
            let index = is_index(&next).then(|| next.clone());
            self.add(next, depth + 1, Some(nested(listed, entry.as_ref())))?;
            if let Some(index) = index {
                self.count(index.len())?;
                self.indexes.push(index);
            }
        }
        Ok(())
    }

    /// Counts the bytes of documents.
    fn count(&mut self, bytes: usize) -> Result<()> {
        self.size += bytes;
        if self.size <= MAX_DOCUMENTS {
            return Ok(());
        }
        let limit = MAX_DOCUMENTS >> 20;
        let message = format!("its manifests and configurations are larger than {limit} MiB in total");
        Err(self.transfer.invalid(message))
    }

    fn add_image(&mut self, bytes: Vec<u8>, entry: Option<Descriptor>) -> Result<()> {
        let stated = entry.as_ref().and_then(Platform::of);
        // The warning about another platform than the requested one does not apply.
        let warnings = Vec::new();
        let image = self.transfer.image(ListedManifest { bytes, entry }, self.name)?;
        let image = ImageDocuments { warnings, ..image };
        let embedded: usize = image.embedded.values().map(Vec::len).sum();
        self.count(image.manifest.len() + image.config.len() + embedded)?;
        self.images.push((stated.unwrap_or_else(|| image.platform.clone()), image));
        Ok(())
    }
}

/// Returns true if an index and the indexes in it list these images and attachments and nothing
/// else, so that it can be stored as it is.
fn lists_only(index: &[u8], images: &[Image], attachments: &[Attachment]) -> bool {
    let nested = attachments.iter().map(|attachment| &attachment.document.bytes[..]).filter(|bytes| is_index(bytes));
    let digests = |index: &[u8]| -> Option<Vec<BlobDigest>> {
        parse_index(index).ok()?.manifests().iter().map(|entry| digest_of(entry).ok()).collect()
    };
    let listed: Option<Vec<Vec<BlobDigest>>> = nested.chain([index]).map(digests).collect();
    let listed: Option<HashSet<BlobDigest>> = listed.map(|all| all.into_iter().flatten().collect());
    let images = images.iter().map(|image| image.manifest_digest.blob());
    let known = images.chain(attachments.iter().map(|attachment| attachment.document.digest()));
    is_index(index) && listed.is_some_and(|listed| listed == known.collect())
}

impl PlatformImages<'_> {
    /// `whole` is the document of the registry with its attestations, if all images were requested.
    fn of(
        remote: &RemoteImage,
        images: Vec<(Platform, ImageDocuments)>,
        whole: Option<(Vec<u8>, Vec<Attachment>)>,
    ) -> Result<PlatformImages<'_>> {
        let mut seen = HashSet::new();
        let mut listed = Vec::new();
        for (_, documents) in &images {
            let image = Image::of_documents(&documents.manifest, |_| Ok(documents.config.clone()))?;
            let image = Image { entry: documents.entry.clone(), ..image };
            if seen.insert(image.manifest_digest) {
                listed.push(image);
            }
        }
        let whole = whole.filter(|(document, attachments)| lists_only(document, &listed, attachments));
        let (index, attachments) = match whole {
            Some((index, attachments)) => (Some(index), attachments),
            None if listed.len() > 1 => (Some(index_of_images(&listed)?), Vec::new()),
            None => (None, Vec::new()),
        };
        let single = listed.first().map(|image| image.manifest_digest);
        let top = index.as_ref().map(|bytes| ManifestDigest::of(bytes)).or(single);
        let top = top.ok_or_else(|| TransportError::other("no platform was requested"))?;
        Ok(PlatformImages { remote, images, top, index, attachments, warning: None })
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
        Ok(is_named.then_some(PulledPlatforms { resolved: *resolved, is_new: false, lost: None, warnings: Vec::new() }))
    }

    /// Downloads the layers that the store lacks, and names the images.
    fn download(&self, store: &Store, progress: &TransferProgress<'_>) -> Result<PulledPlatforms> {
        let RemoteImage { repository, name, resolved, .. } = self.remote;
        let work = Workspace::open(store)?;
        let staging = Staging::open(store, &work)?;
        let images = || self.images.iter().map(|(_, image)| image);
        let documents =
            images().flat_map(|image| [&image.manifest, &image.config].into_iter().chain(image.embedded.values()));
        let mut is_new = false;
        for image in images() {
            is_new |= image.is_new_config(&staging)?;
        }
        let attestations = self.attachments.iter().map(|attachment| &attachment.document.bytes);
        for document in documents.chain(&self.index).chain(attestations) {
            staging.put_bytes(document)?;
        }
        let layers = self.images.iter().flat_map(|(_, image)| &image.layers);
        let layers: Vec<BlobInfo> =
            layers.chain(self.attachments.iter().flat_map(|attachment| &attachment.blobs)).copied().collect();
        let urls = self.images.iter().flat_map(|(_, image)| image.urls.clone()).collect();
        let missing = missing_layers(&staging, &layers)?;
        is_new |= !missing.is_empty();
        (progress.total)(total_size(&missing));
        copy_all(&WithUrls { repository, urls: &urls }, &staging, &missing, progress)?;
        let lost = staging.publish("pull", &[self.top], &[(self.top, tag_of(name))])?.pop();
        for (platform, image) in &self.images {
            let manifest = BlobDigest::of(&image.manifest).of_manifest();
            store.images().note_pulled(name, platform, &Pulled { resolved: *resolved, manifest })?;
        }
        let warnings = self.images.iter().flat_map(|(_, image)| image.warnings.clone());
        let warnings = warnings.chain(self.warning.clone()).collect();
        Ok(PulledPlatforms { resolved: *resolved, is_new, lost, warnings })
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{Fixture, INDEX, Memory, store_in};

    /// Returns the images that an entry leads to, with the platforms that their entries state.
    fn listed(fixture: &Fixture, entry: &Value) -> Result<Vec<(String, Option<Descriptor>)>> {
        let (scratch, source) = (Scratch::new(), Memory::of(fixture));
        let store = store_in(&scratch, "s");
        let platform = Platform::host();
        let transfer = Transfer { source: &source, store: &store, place: "registry/a".into(), platform: &platform };
        let name: Reference = "registry/a:1".parse().unwrap();
        let mut found = IndexImages::new(&transfer, &name);
        let document = source.blobs[&entry["digest"].as_str().unwrap().parse().unwrap()].clone();
        found.add(document, 0, None)?;
        assert!(found.images.iter().all(|(_, image)| image.warnings.is_empty()));
        Ok(found.images.into_iter().map(|(platform, image)| (platform.to_string(), image.entry)).collect())
    }

    #[test]
    fn an_image_that_an_index_repeats_is_listed_once() {
        let mut fixture = Fixture::default();
        let images = ["1", "2"].map(|content| fixture.valid_image("linux/s390x", content).entry);
        let inner = fixture.list(INDEX, &[images[0].clone(), images[1].clone()]);
        let mut all = vec![images[0].clone(); 500];
        all.extend(vec![inner; 400]);
        let index = fixture.list(INDEX, &all);
        assert_eq!(listed(&fixture, &index).unwrap().len(), 2);
    }

    #[test]
    fn the_total_of_nested_indexes_is_limited() {
        let mut fixture = Fixture::default();
        let images: Vec<Value> = (0..40).map(|at| fixture.valid_image("linux/s390x", &at.to_string()).entry).collect();
        // Different indexes of the same images.
        let inner: Vec<Value> = (0..999)
            .map(|at| {
                let number = json!({"n": at.to_string()});
                let list = json!({
                    "schemaVersion": 2, "mediaType": INDEX, "manifests": images, "annotations": number,
                });
                fixture.document(INDEX, &list)
            })
            .collect();
        let index = fixture.list(INDEX, &inner);
        let e = listed(&fixture, &index).unwrap_err().message();
        assert_eq!(e, "registry/a: its index leads to more than 1000 images and indexes");
        let large = "x".repeat(3 << 20);
        let images: Vec<Value> = (0..30)
            .map(|at| {
                let note = json!({"a": format!("{large}{at}")});
                fixture.image("linux/s390x", "1", |_, manifest| manifest["annotations"] = note).entry
            })
            .collect();
        let index = fixture.list(INDEX, &images);
        let e = listed(&fixture, &index).unwrap_err().message();
        assert_eq!(e, "registry/a: its manifests and configurations are larger than 64 MiB in total");
    }

    #[test]
    fn platforms_are_those_of_the_index() {
        let mut fixture = Fixture::default();
        let mut arm = fixture.valid_image("linux/arm", "1").entry;
        arm["platform"]["variant"] = json!("v6");
        let inner = fixture.valid_image("linux/amd64", "2").entry;
        let mut plain = inner.clone();
        plain.as_object_mut().unwrap().remove("platform");
        let mut nested = fixture.list(INDEX, &[plain]);
        nested["platform"] = json!({"os": "linux", "architecture": "amd64", "os.version": "10.0"});
        let index = fixture.list(INDEX, &[arm, nested]);
        let found = listed(&fixture, &index).unwrap();
        let platforms: Vec<&str> = found.iter().map(|(platform, _)| platform.as_str()).collect();
        assert_eq!(platforms, ["linux/arm/v6", "linux/amd64"]);
        let version = found[1].1.as_ref().unwrap().platform().as_ref().unwrap().os_version().clone();
        assert_eq!(version.as_deref(), Some("10.0"));
    }
}
