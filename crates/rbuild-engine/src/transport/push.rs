//! `push`: an image of the store to a registry.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::Ordering;

use rbuild_image::{BlobDigest, Descriptor, ManifestDigest, MediaType, Reference, digest_of};
use rbuild_layer::{Compression, Counting, LayerForm};
use rbuild_registry::{Blob, Client, Pushed, Repository};
use rbuild_store::{Image, Store, Workspace};

use crate::error::{BuildError, Result};
use crate::transport::blobs::{TransferProgress, each_blob, total_size};
use crate::transport::save::{index_entry, index_of, layer_pairs};

/// An image in the form in which it is pushed.
pub struct Outgoing {
    /// Digest of the manifest, or of the index of several platforms.
    pub digest: ManifestDigest,
    /// The document that a name stands for.
    top: Document,
    /// Manifests that the index refers to.
    below: Vec<(ManifestDigest, Document)>,
    blobs: Vec<(BlobDigest, u64)>,
}

struct Document {
    media_type: String,
    bytes: Vec<u8>,
}

/// Prepares an image for registries, given by the images of its platforms. Layers that are not
/// compressed are compressed with gzip, unless `as_is`. The compressed layers stay in the store for
/// the next time.
pub fn outgoing(store: &Store, platforms: &[Image], as_is: bool) -> Result<Outgoing> {
    let (mut below, mut entries, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for image in platforms {
        let (digest, document) = packed(store, image, as_is, &mut blobs)?;
        let (size, platform) = (document.bytes.len() as u64, image.config.platform());
        entries.push(index_entry(&document.media_type, &digest, size, platform));
        below.push((digest, document));
    }
    let (digest, top) = match below.pop() {
        Some(only) if below.is_empty() => only,
        last => {
            below.extend(last);
            let bytes = index_of(entries)?;
            (ManifestDigest::of(&bytes), Document { media_type: MediaType::ImageIndex.to_string(), bytes })
        }
    };
    Ok(Outgoing { digest, top, below, blobs })
}

/// Returns the manifest of an image for registries, and adds its blobs to `blobs`.
fn packed(
    store: &Store,
    image: &Image,
    as_is: bool,
    blobs: &mut Vec<(BlobDigest, u64)>,
) -> Result<(ManifestDigest, Document)> {
    let mut bytes = store.blobs().read_document(&image.manifest_digest.blob())?;
    let plain = |layer: &Descriptor| !as_is && *layer.media_type() == MediaType::ImageLayer;
    let mut manifest = image.manifest.clone();
    let layers = image.layers()?;
    // Layers that are packed again are compared meanwhile.
    store.blobs().check_layers(&layer_pairs(layers.iter().filter(|(layer, _)| !plain(layer)))?)?;
    if layers.iter().any(|(layer, _)| plain(layer)) {
        let work = Workspace::open(store)?;
        let form = LayerForm { compression: Compression::Gzip, level: None };
        let packed = layers.iter().map(|(layer, diff_id)| match plain(layer) {
            true => Ok(store.layers().repack_layer(&work, layer, diff_id, form)?.descriptor()),
            false => Ok(layer.clone()),
        });
        manifest.set_layers(packed.collect::<Result<_>>()?);
        bytes = serde_json::to_vec(&manifest).map_err(|e| BuildError::other(format!("the manifest: {e}")))?;
    }
    for part in manifest.layers().iter().chain([manifest.config()]) {
        let digest = digest_of(part).map_err(|e| BuildError::other(e.to_string()))?;
        if !blobs.iter().any(|(known, _)| *known == digest) {
            blobs.push((digest, part.size()));
        }
    }
    let media_type = manifest.media_type().as_ref().map_or(MediaType::ImageManifest.to_string(), ToString::to_string);
    Ok((ManifestDigest::of(&bytes), Document { media_type, bytes }))
}

impl Outgoing {
    /// Returns the number of bytes of all blobs.
    pub fn size(&self) -> u64 {
        total_size(&self.blobs)
    }
}

/// Checks that the login may push to the repository of a name.
pub fn check_push(client: &Client, name: &Reference) -> Result<()> {
    Ok(client.repository(name)?.check_push()?)
}

/// Pushes an image under a name: blobs that the repository lacks, then the manifests.
#[tracing::instrument(target = "engine", name = "push", level = "debug", skip_all, fields(%name))]
pub fn push(
    store: &Store,
    client: &Client,
    image: &Outgoing,
    name: &Reference,
    progress: &TransferProgress<'_>,
) -> Result<()> {
    let repository = client.repository(name)?;
    (progress.total)(image.size());
    let upload = Upload { store, repository: &repository, progress, elsewhere: neighbours(store, &repository, name)? };
    each_blob(&image.blobs, progress, |digest, size| upload.blob(digest, size))?;
    let reference = match (name.tag(), name.digest()) {
        (Some(tag), _) => tag.to_string(),
        (None, Some(_)) => {
            return Err(BuildError::Other {
                message: format!("{} names a digest, which follows from the content", name.familiar()),
                help: Some("push to a tag".into()),
            });
        }
        (None, None) => "latest".to_string(),
    };
    // A registry may refuse an index before its manifests.
    for (digest, document) in &image.below {
        repository.push_document(&digest.to_string(), &document.media_type, &document.bytes)?;
    }
    Ok(repository.push_document(&reference, &image.top.media_type, &image.top.bytes)?)
}

/// Returns the blobs of other images of the same registry, with the paths of their repositories:
/// the registry may take them from there.
fn neighbours(store: &Store, repository: &Repository, name: &Reference) -> Result<HashMap<BlobDigest, String>> {
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

struct Upload<'a> {
    store: &'a Store,
    repository: &'a Repository,
    progress: &'a TransferProgress<'a>,
    elsewhere: HashMap<BlobDigest, String>,
}

impl Upload<'_> {
    fn blob(&self, digest: &BlobDigest, size: u64) -> Result<()> {
        let open = |at| {
            let failed = |e: rbuild_store::StoreError| std::io::Error::other(e.to_string());
            let mut file = self.store.blobs().open_blob(digest).map_err(failed)?;
            file.seek(SeekFrom::Start(at))?;
            Ok(Box::new(Counting::new(file, self.progress.moved.clone())) as Box<dyn Read>)
        };
        // The registry compares the digest: a damaged blob is refused there.
        let mount_from = self.elsewhere.get(digest).map(String::as_str);
        let pushed = self.repository.push_blob(&Blob { digest: *digest, size, open: &open, mount_from })?;
        if pushed != Pushed::Uploaded {
            self.progress.moved.fetch_add(size, Ordering::Relaxed);
        }
        Ok(())
    }
}
