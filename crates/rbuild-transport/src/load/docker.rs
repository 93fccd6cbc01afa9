//! Import of the images listed in Docker's `manifest.json`.

use std::collections::{HashMap, HashSet};

use rbuild_image::{
    BlobDigest, Descriptor, DiffId, ImageId, ImageManifest, ManifestDigest, MediaType, Reference, ReferenceError,
    descriptor, parse_manifest,
};
use rbuild_layer::Compression;
use rbuild_remedy::Warning;

use crate::error::{Result, TransportError};
use crate::load::found::{CheckedImage, FoundImages, WithWarnings};
use crate::load::manifest::{counts_differ, digest_in, import_blob, import_image, not_the_layer};
use crate::load::members::IncomingParts;
use crate::load::named::DockerItem;
use crate::put_layer::put_layer;

/// Imports all images of the document. `entries` are those of `index.json`, if the archive is an
/// OCI layout as well.
pub(super) fn docker_items(
    members: &IncomingParts<'_>,
    items: Vec<DockerItem>,
    entries: &[Descriptor],
) -> Result<WithWarnings<FoundImages>> {
    let (mut manifests, mut layers) = (Manifests::new(entries), ArchiveLayers::new());
    let (mut found, mut seen) = (FoundImages::default(), HashSet::new());
    for item in items {
        let names: Vec<Reference> = item
            .repo_tags
            .iter()
            .flatten()
            .map(|t| t.parse().map_err(TransportError::document::<ReferenceError>("the image's manifest.json")))
            .collect::<Result<_>>()?;
        let image = docker_item(members, &item, &mut layers, &mut manifests)?;
        if seen.insert(image.manifest) {
            found.images.push(image);
        }
        found.names.extend(names.into_iter().map(|name| (image, name)));
    }
    Ok(WithWarnings { found, warnings: manifests.warnings })
}

fn docker_item(
    members: &IncomingParts<'_>,
    item: &DockerItem,
    known: &mut ArchiveLayers,
    manifests: &mut Manifests<'_>,
) -> Result<CheckedImage> {
    let (config, config_size) = members.blob(&item.config)?;
    let id = config.of_config();
    let diff_ids = members.diff_ids(&id, &item.config)?;
    let names = item.layers.as_deref().unwrap_or_default();
    if diff_ids.len() != names.len() {
        return Err(counts_differ(names.len(), diff_ids.len()));
    }
    members.nothing_missing(names.iter().map(String::as_str))?;
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(&*diff_ids) {
        layers.push(known.layer(members, name, diff_id)?);
    }
    let manifest = manifests.of(members, (id, layers), |layers| {
        let layers = layers.iter().map(|layer| known.descriptor(layer)).collect();
        rbuild_image::manifest(descriptor(MediaType::ImageConfig, &config, config_size), layers)
    })?;
    Ok(CheckedImage { manifest, id: id.blob() })
}

/// Manifests by image ID and layers.
struct Manifests<'e> {
    /// Entries of the index that have not been read yet. Their manifests have annotations and media
    /// types, which `manifest.json` lacks.
    entries: std::slice::Iter<'e, Descriptor>,
    known: HashMap<ImageContent, ManifestDigest>,
    /// Digests of the manifests that have been read, so that each is read once.
    seen: HashSet<ManifestDigest>,
    /// Warnings about manifests that cannot be used.
    warnings: Vec<Warning>,
}

/// An image ID and the digests of the image's layers.
type ImageContent = (ImageId, Vec<BlobDigest>);

impl<'e> Manifests<'e> {
    fn new(entries: &'e [Descriptor]) -> Manifests<'e> {
        let (known, seen, warnings) = Default::default();
        Manifests { entries: entries.iter(), known, seen, warnings }
    }

    /// Returns the archive's own manifest of the image with this ID and these layers, or else a
    /// generated one.
    fn of(
        &mut self,
        members: &IncomingParts<'_>,
        wanted: ImageContent,
        make: impl FnOnce(&[BlobDigest]) -> ImageManifest,
    ) -> Result<ManifestDigest> {
        if let Some(known) = self.known.get(&wanted) {
            return Ok(*known);
        }
        for entry in self.entries.by_ref() {
            // The image is complete without its own manifest.
            let found = match own(members, entry, &wanted, &mut self.seen) {
                Err(
                    e @ (TransportError::Other { .. } | TransportError::Document { .. } | TransportError::Archive(_)),
                ) => {
                    let difference =
                        format!("index.json refers to {}, which cannot be used: {}", entry.digest(), e.message());
                    self.warnings
                        .push(format!("{difference}; the image is loaded as described by manifest.json").into());
                    continue;
                }
                found => found?,
            };
            let Some((digest, content)) = found else { continue };
            let is_it = content == wanted;
            self.known.entry(content).or_insert(digest);
            if is_it {
                return Ok(digest);
            }
        }
        let made = members.staging.put_document(&make(&wanted.1))?.0.of_manifest();
        self.known.insert(wanted, made);
        Ok(made)
    }
}

/// Reads the manifest of an entry; if its image is `wanted`, checks that image, too. Returns `None`
/// if it is not a manifest or was read before.
fn own(
    members: &IncomingParts<'_>,
    entry: &Descriptor,
    wanted: &ImageContent,
    seen: &mut HashSet<ManifestDigest>,
) -> Result<Option<(ManifestDigest, ImageContent)>> {
    let blob = import_blob(members, entry, "the manifest")?;
    let digest = blob.of_manifest();
    if !seen.insert(digest) {
        return Ok(None);
    }
    let text = members.staging.read_document(&blob)?;
    let Ok(manifest) = parse_manifest(&text) else { return Ok(None) };
    let layers = manifest.layers().iter().map(digest_in).collect::<Result<Vec<_>>>();
    let (Ok(id), Ok(layers)) = (digest_in(manifest.config()), layers) else { return Ok(None) };
    let content = (id.of_config(), layers);
    if content == *wanted {
        import_image(members, &text)?;
    }
    Ok(Some((digest, content)))
}

/// Layers of docker-archives.
struct ArchiveLayers {
    /// Layers by the digests of the archive members.
    members: HashMap<BlobDigest, Layer>,
    descriptors: HashMap<BlobDigest, Descriptor>,
}

#[derive(Clone, Copy)]
struct Layer {
    digest: BlobDigest,
    /// The diffID, if it is known without decompressing the layer.
    diff_id: Option<DiffId>,
}

impl ArchiveLayers {
    fn new() -> ArchiveLayers {
        ArchiveLayers { members: HashMap::new(), descriptors: HashMap::new() }
    }

    /// Imports a layer. `manifest.json` does not contain digests of layers, so an uncompressed
    /// layer is compared with its diffID here. A compressed one is compared when it is unpacked or
    /// exported, as with any other image.
    fn layer(&mut self, members: &IncomingParts<'_>, name: &str, diff_id: &DiffId) -> Result<BlobDigest> {
        let (member, size) = members.blob(name)?;
        let layer = match self.members.get(&member) {
            Some(known) => *known,
            None => {
                let (layer, descriptor) = take_layer(members, name, &member, size)?;
                self.descriptors.insert(layer.digest, descriptor);
                self.members.insert(member, layer);
                layer
            }
        };
        match layer.diff_id {
            Some(found) if found != *diff_id => Err(not_the_layer(name, &found, diff_id)),
            _ => Ok(layer.digest),
        }
    }

    /// Returns the descriptor of an imported layer.
    fn descriptor(&self, layer: &BlobDigest) -> Descriptor {
        self.descriptors[layer].clone()
    }
}

fn take_layer(members: &IncomingParts<'_>, name: &str, member: &BlobDigest, size: u64) -> Result<(Layer, Descriptor)> {
    let (media_type, diff_id) = match members.compression(member)? {
        Compression::Gzip => (MediaType::ImageLayerGzip, None),
        Compression::Zstd => (MediaType::ImageLayerZstd, None),
        Compression::None => (MediaType::ImageLayer, Some(member.of_plain_layer())),
        Compression::Bzip2 | Compression::Xz => {
            let put = put_layer(&members.staging, members.staging.open_blob(member)?, name)?;
            let layer = Layer { digest: put.digest, diff_id: Some(put.diff_id) };
            return Ok((layer, descriptor(put.media_type, &put.digest, put.size)));
        }
    };
    Ok((Layer { digest: *member, diff_id }, descriptor(media_type, member, size)))
}
