//! `push`: an image of the store to a registry.

use rbuild_remedy::ServerRemedy;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use rbuild_image::{BlobDigest, Descriptor, ImageManifest, ManifestDigest, MediaType, Reference, digest_of};
use rbuild_layer::LayerForm;
use rbuild_registry::{Client, Repository};
use rbuild_store::{Image, PackingWatch, RepoDigest, Store, StoreError, Workspace};

use crate::blobs::{BlobInfo, BlobOrigin, Document, TransferProgress, copy_all, total_size};
use crate::documents::{index_entry, index_of_type};
use crate::early_push::{EarlyPush, EarlyUploads};
use crate::error::{Result, TransportError};
use crate::kept_index::KeptIndex;
use crate::lent::{LentBlobs, LentLayer, mountable};
use crate::manifest_format::ManifestFormat;
use crate::media_types::is_nondistributable;
use crate::referrers::{UnlistedReferrer, push_document};
use crate::registry::Upload;
use crate::save::layer_pairs;

/// An image in the form in which it is pushed.
pub struct Outgoing {
    /// Digest of the manifest, or of the index of several platforms.
    pub digest: ManifestDigest,
    /// The document that a name refers to after the push.
    top: Document,
    /// Manifests that the index refers to.
    below: Vec<Document>,
    blobs: Vec<BlobInfo>,
    /// The manifests of the store.
    images: Vec<ManifestDigest>,
    /// Blobs that a repository has already.
    early: Option<EarlyUploads>,
    /// Layers that the store lacks.
    lent: Vec<LentLayer>,
}

/// The form of an image that is pushed.
#[derive(Default)]
pub struct OutgoingForm {
    /// True for layers as they are in the store. Otherwise, those that are not compressed are
    /// compressed with gzip.
    pub as_is: bool,
    /// Format of the manifests.
    pub format: ManifestFormat,
    /// The stored index of the images, which is pushed as it is if its manifests are.
    pub index: Option<KeptIndex>,
    /// True if layers that must not be distributed are pushed as well. Otherwise, the registry gets
    /// their URLs only.
    pub nondistributable: bool,
}

/// Prepares an image for registries, given by the images of its platforms. The compressed layers
/// stay in the store for the next time. Meanwhile, `early` uploads them.
///
/// # Errors
///
/// Fails if the store lacks a part of the image or cannot be written.
pub fn outgoing(store: &Store, platforms: &[Image], form: OutgoingForm, early: Option<EarlyPush>) -> Result<Outgoing> {
    match early {
        Some(early) => {
            let outgoing = early.beside(|watch| prepared(store, platforms, form, Some(watch)))?;
            Ok(outgoing.with_early(early.uploads()))
        }
        None => prepared(store, platforms, form, None),
    }
}

/// Prepares an image of which other repositories have some layers. The others and the documents are
/// in the store. It is pushed as it is.
///
/// # Errors
///
/// Fails if the store lacks a part of the image.
pub fn outgoing_lent(store: &Store, platforms: &[Image], lent: &[LentLayer]) -> Result<Outgoing> {
    let (mut below, mut entries, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for image in platforms {
        let bytes = store.blobs().read_document(&image.manifest_digest.blob())?;
        let media_type = add_blobs(&image.manifest, false, &mut blobs)?;
        entries.push(index_entry(&media_type, &image.manifest_digest, bytes.len() as u64, image));
        below.push(Document { media_type, bytes });
    }
    let top = match below.pop() {
        Some(only) if below.is_empty() => only,
        last => {
            below.extend(last);
            let media_type = ManifestFormat::Stored.index_type().to_string();
            Document { bytes: index_of_type(&media_type, entries)?, media_type }
        }
    };
    let images = platforms.iter().map(|image| image.manifest_digest).collect();
    let digest = top.digest().of_manifest();
    Ok(Outgoing { digest, top, below, blobs, images, early: None, lent: lent.to_vec() })
}

fn prepared(
    store: &Store,
    platforms: &[Image],
    form: OutgoingForm,
    watch: Option<&dyn PackingWatch>,
) -> Result<Outgoing> {
    let (mut below, mut entries, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for image in platforms {
        let document = packed(store, watch, image, &form, &mut blobs)?;
        let (digest, size) = (document.digest().of_manifest(), document.bytes.len() as u64);
        entries.push(index_entry(&document.media_type, &digest, size, image));
        below.push(document);
    }
    let is_same = |(document, image): (&Document, &Image)| document.digest() == image.manifest_digest.blob();
    let kept = form.index.filter(|_| form.format == ManifestFormat::default());
    let kept = kept.filter(|_| below.iter().zip(platforms).all(is_same));
    let top = match (kept, below.pop()) {
        (None, Some(only)) if below.is_empty() => only,
        (kept, last) => {
            below.extend(last);
            match kept {
                Some(KeptIndex { document, attachments }) => {
                    for attachment in attachments {
                        attachment.blobs.into_iter().for_each(|blob| add(&mut blobs, blob));
                        below.push(attachment.document);
                    }
                    document
                }
                None => {
                    let media_type = form.format.index_type().to_string();
                    Document { bytes: index_of_type(&media_type, entries)?, media_type }
                }
            }
        }
    };
    let images = platforms.iter().map(|image| image.manifest_digest).collect();
    Ok(Outgoing { digest: top.digest().of_manifest(), top, below, blobs, images, early: None, lent: Vec::new() })
}

/// Returns the manifest of an image for registries, and adds its blobs to `blobs`.
fn packed(
    store: &Store,
    watch: Option<&dyn PackingWatch>,
    image: &Image,
    OutgoingForm { as_is, format, nondistributable, .. }: &OutgoingForm,
    blobs: &mut Vec<BlobInfo>,
) -> Result<Document> {
    let mut bytes = store.blobs().read_document(&image.manifest_digest.blob())?;
    let plain = |layer: &Descriptor| !as_is && *layer.media_type() == MediaType::ImageLayer;
    let mut manifest = image.manifest.clone();
    let layers = image.layers()?;
    // Layers that are packed again are compared in the process.
    store.blobs().check_layers(&layer_pairs(layers.iter().filter(|(layer, _)| !plain(layer)))?)?;
    if layers.iter().any(|(layer, _)| plain(layer)) {
        let work = Workspace::open(store)?;
        let form = LayerForm::GZIP;
        let packed = layers.iter().map(|(layer, diff_id)| {
            if plain(layer) {
                Ok(store.layers().watched_by(watch).repack_layer(&work, layer, diff_id, form)?.descriptor())
            } else {
                Ok(layer.clone())
            }
        });
        manifest.set_layers(packed.collect::<Result<_>>()?);
    }
    let manifest = format.convert(&manifest);
    if manifest != image.manifest {
        bytes = serde_json::to_vec(&manifest).map_err(TransportError::document("the manifest"))?;
    }
    let media_type = add_blobs(&manifest, *nondistributable, blobs)?;
    Ok(Document { media_type, bytes })
}

/// Adds the layers and the configuration of a manifest to `blobs`: without layers that must not be
/// distributed and have URLs, unless `nondistributable` is true. Returns its media type.
fn add_blobs(manifest: &ImageManifest, nondistributable: bool, blobs: &mut Vec<BlobInfo>) -> Result<String> {
    let stays = |part: &Descriptor| {
        !nondistributable
            && is_nondistributable(part.media_type())
            && part.urls().as_ref().is_some_and(|urls| !urls.is_empty())
    };
    for part in manifest.layers().iter().chain([manifest.config()]).filter(|part| !stays(part)) {
        let digest = digest_of(part).map_err(TransportError::document("the manifest"))?;
        add(blobs, BlobInfo { digest, size: part.size() });
    }
    Ok(manifest.media_type().as_ref().map_or(MediaType::ImageManifest.to_string(), ToString::to_string))
}

/// Adds a blob, unless it is there.
fn add(blobs: &mut Vec<BlobInfo>, blob: BlobInfo) {
    if !blobs.iter().any(|known| known.digest == blob.digest) {
        blobs.push(blob);
    }
}

impl Outgoing {
    /// Returns the image, of which some blobs were uploaded while they were packed.
    pub fn with_early(self, early: EarlyUploads) -> Outgoing {
        Outgoing { early: Some(early), ..self }
    }

    /// Returns the size of the manifest or index that names refer to, in bytes.
    pub fn document_size(&self) -> usize {
        self.top.bytes.len()
    }

    /// Returns the number of bytes of all blobs.
    pub fn size(&self) -> u64 {
        total_size(&self.blobs)
    }
}

/// Checks that the login may push to the repository of a name.
///
/// # Errors
///
/// Fails if the registry refuses, or cannot be reached.
pub fn check_push(client: &Client, name: &Reference) -> Result<()> {
    Ok(client.repository(name)?.check_push()?)
}

/// Faults that do not affect a push.
#[derive(Debug, Default)]
pub struct PushFaults {
    /// The error of noting the digest in the store.
    pub unnoted: Option<StoreError>,
    /// Manifests that are not listed among those that refer to their subjects.
    pub unlisted: Vec<UnlistedReferrer>,
}

/// Pushes an image under a name: blobs that the repository lacks, then the manifests. If the
/// repository has the image, only the name is pushed. The store notes the digest.
///
/// # Errors
///
/// Fails if the registry fails or refuses, if the store lacks a blob, or if the name has a digest.
#[tracing::instrument(target = "transport", name = "push", level = "debug", skip_all, fields(%name))]
pub fn push(
    store: &Store,
    client: &Client,
    image: &Outgoing,
    name: &Reference,
    progress: &TransferProgress<'_>,
) -> Result<PushFaults> {
    let unlisted = send(store, client, image, name, progress)?;
    if !image.lent.is_empty() {
        // The store does not have the image.
        return Ok(PushFaults { unnoted: None, unlisted });
    }
    let pushed = RepoDigest { name: name.clone(), digest: image.digest, images: image.images.clone() };
    Ok(PushFaults { unnoted: store.repo_digests().note_pushed(&pushed).err(), unlisted })
}

fn send(
    store: &Store,
    client: &Client,
    image: &Outgoing,
    name: &Reference,
    progress: &TransferProgress<'_>,
) -> Result<Vec<UnlistedReferrer>> {
    let reference = target(name)?;
    let repository = client.repository(name)?;
    (progress.total)(image.size());
    // If the registry lacks a blob all the same, it refuses the name.
    if repository.has_document(&image.digest.blob())?
        && let Ok(unlisted) = push_document(&repository, reference, &image.top)
    {
        progress.moved.fetch_add(image.size(), Ordering::Relaxed);
        image.blobs.iter().for_each(|blob| (progress.done)(&blob.digest, blob.size, BlobOrigin::Sink));
        return Ok(unlisted.into_iter().collect());
    }
    let mut elsewhere = neighbors(store, &repository, name)?;
    if repository.may_mount_from(name.registry()) {
        elsewhere.extend(mountable(&image.lent, name));
    }
    let remote = image.lent.iter().map(|layer| layer.part.digest).collect();
    let upload = Upload { repository: &repository, elsewhere, remote };
    let early = image.early.as_ref().filter(|early| early.place == *repository.place());
    let (uploaded, others): (Vec<BlobInfo>, Vec<BlobInfo>) =
        image.blobs.iter().partition(|blob| early.is_some_and(|early| early.blobs.contains(&blob.digest)));
    for BlobInfo { digest, size } in uploaded {
        progress.moved.fetch_add(size, Ordering::Relaxed);
        (progress.done)(&digest, size, BlobOrigin::Source);
    }
    copy_all(&LentBlobs::new(store, client, &image.lent)?, &upload, &others, progress)?;
    // A registry may refuse an index before its manifests.
    let below = image.below.iter().map(|document| (document.digest().to_string(), document));
    let documents = below.chain([(reference.to_string(), &image.top)]);
    let unlisted = documents.map(|(reference, document)| push_document(&repository, &reference, document));
    Ok(unlisted.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Checks that an image can be pushed to a name.
///
/// # Errors
///
/// Fails if the name has a digest and no tag.
pub fn check_name(name: &Reference) -> Result<()> {
    target(name).map(drop)
}

/// Returns the tag that an image is pushed to.
fn target(name: &Reference) -> Result<&str> {
    match (name.tag(), name.is_pinned()) {
        (Some(tag), _) => Ok(tag),
        (None, true) => Err(TransportError::Other {
            message: format!("`{}` is a digest; an image can be pushed only to a tag", name.familiar()),
            help: Some(ServerRemedy::PushToTag.into()),
        }),
        (None, false) => Ok("latest"),
    }
}

/// Returns the blobs of other images of the same registry, with the paths of their repositories:
/// the registry may mount them from there.
fn neighbors(store: &Store, repository: &Repository, name: &Reference) -> Result<HashMap<BlobDigest, String>> {
    let mut found = HashMap::new();
    if !repository.may_mount_from(name.registry()) {
        return Ok(found);
    }
    for entry in store.images().list()? {
        let Some(other) = entry.name.filter(|o| o.registry() == name.registry() && o.path() != name.path()) else {
            continue;
        };
        for image in entry.artifact.images().iter().filter_map(|manifest| store.images().image(manifest).ok()) {
            let layers = image.manifest.layers().iter().filter_map(|layer| digest_of(layer).ok());
            found.extend(layers.map(|digest| (digest, other.path().to_string())));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn a_digest_is_refused_as_recorded() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let names = ["a.io/x", "a.io/x:1"].map(|name| name.parse::<Reference>().unwrap());
        assert_eq!(names.each_ref().map(|name| target(name).unwrap()), ["latest", "1"]);
        let name: Reference = format!("a.io/x@{digest}").parse().unwrap();
        let e = target(&name).map(drop).unwrap_err();
        assert_recorded!("push", variants!(TransportError).table(&[e], |e| e, TransportError::help));
    }
}
