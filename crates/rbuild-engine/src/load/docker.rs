//! The images that docker's `manifest.json` names.

use std::collections::{HashMap, HashSet};

use rbuild_image::{Descriptor, Digest, ImageManifest, MediaType, Reference, ReferenceError, descriptor};
use rbuild_layer::Compression;
use serde::Deserialize;

use super::manifest::{counts_differ, named, not_the_layer, take, take_image};
use super::members::Members;
use super::{Found, Image};
use crate::error::{BuildError, Result};
use crate::image::put_layer;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Takes in all images that the document names. `entries` are those of the index, where the archive is a layout as well.
pub(super) fn docker_items(members: &Members<'_>, items: Vec<DockerItem>, entries: &[Descriptor]) -> Result<Found> {
    let (mut manifests, mut layers) = (Manifests { entries: entries.iter(), known: HashMap::new() }, Layers::new());
    let (mut found, mut seen) = (Found::default(), HashSet::new());
    for item in items {
        let names: Vec<Reference> = item
            .repo_tags
            .iter()
            .flatten()
            .map(|t| t.parse().map_err(|e: ReferenceError| BuildError::other(e.to_string())))
            .collect::<Result<_>>()?;
        let image = docker_item(members, &item, &mut layers, &mut manifests)?;
        if seen.insert(image.manifest) {
            found.images.push(image);
        }
        found.names.extend(names.into_iter().map(|name| (image, name)));
    }
    Ok(found)
}

fn docker_item(
    members: &Members<'_>,
    item: &DockerItem,
    known: &mut Layers,
    manifests: &mut Manifests<'_>,
) -> Result<Image> {
    let (id, config_size) = members.blob(&item.config)?;
    let diff_ids = members.diff_ids(&id, &item.config)?;
    if diff_ids.len() != item.layers.len() {
        return Err(counts_differ(item.layers.len(), diff_ids.len()));
    }
    members.nothing_missing(item.layers.iter().map(String::as_str))?;
    let mut layers = Vec::new();
    for (name, diff_id) in item.layers.iter().zip(&*diff_ids) {
        layers.push(known.layer(members, name, diff_id)?);
    }
    let config = descriptor(MediaType::ImageConfig, &id, config_size);
    Ok(Image { manifest: manifests.of(members, config, &id, layers)?, id })
}

/// Manifests of images by their ids and layers.
struct Manifests<'e> {
    /// Those of the archive that were not looked at yet: docker's document says nothing of annotations and types.
    entries: std::slice::Iter<'e, Descriptor>,
    known: HashMap<(Digest, Vec<Digest>), Digest>,
}

impl Manifests<'_> {
    /// The image's own manifest if the archive has it, else one that is made.
    fn of(
        &mut self,
        members: &Members<'_>,
        config: Descriptor,
        id: &Digest,
        layers: Vec<Descriptor>,
    ) -> Result<Digest> {
        let wanted = (*id, layers.iter().map(named).collect::<Result<Vec<_>>>()?);
        if let Some(known) = self.known.get(&wanted) {
            return Ok(*known);
        }
        for entry in self.entries.by_ref() {
            let digest = take(members, entry, "the manifest")?;
            let text = members.staging.read_document(&digest)?;
            let Ok(manifest) = serde_json::from_slice::<ImageManifest>(&text) else { continue };
            let its_layers = manifest.layers().iter().map(named).collect::<Result<Vec<_>>>();
            let (Ok(id), Ok(layers)) = (named(manifest.config()), its_layers) else { continue };
            let it = (id, layers);
            if it == wanted {
                take_image(members, &text)?;
                self.known.insert(it, digest);
                return Ok(digest);
            }
            self.known.entry(it).or_insert(digest);
        }
        let made = members.staging.put_document(&rbuild_image::manifest(config, layers))?.0;
        self.known.insert(wanted, made);
        Ok(made)
    }
}

/// Layers of docker-archives, by what the archive has.
struct Layers(HashMap<Digest, Layer>);

#[derive(Clone)]
struct Layer {
    descriptor: Descriptor,
    /// The diffID, where it shows without decompressing the layer.
    diff_id: Option<Digest>,
}

impl Layers {
    fn new() -> Layers {
        Layers(HashMap::new())
    }

    /// A layer comes without a digest of its own. Whether it is the one that the configuration means shows here where its
    /// bytes are plain, and else when it is unpacked or before it goes out, as with any other image.
    fn layer(&mut self, members: &Members<'_>, name: &str, diff_id: &Digest) -> Result<Descriptor> {
        let (digest, size) = members.blob(name)?;
        let layer = match self.0.get(&digest) {
            Some(known) => known,
            None => self.0.entry(digest).or_insert(Layer::of(members, name, &digest, size)?),
        };
        match layer.diff_id {
            Some(found) if found != *diff_id => Err(not_the_layer(name, &found, diff_id)),
            _ => Ok(layer.descriptor.clone()),
        }
    }
}

impl Layer {
    fn of(members: &Members<'_>, name: &str, digest: &Digest, size: u64) -> Result<Layer> {
        let (descriptor, diff_id) = match members.compression(digest)? {
            Compression::Gzip => (descriptor(MediaType::ImageLayerGzip, digest, size), None),
            Compression::Zstd => (descriptor(MediaType::ImageLayerZstd, digest, size), None),
            Compression::None => (descriptor(MediaType::ImageLayer, digest, size), Some(*digest)),
            Compression::Bzip2 | Compression::Xz => {
                let put = put_layer(&members.staging, members.staging.open_blob(digest)?, name)?;
                (descriptor(put.media_type, &put.digest, put.size), Some(put.diff_id))
            }
        };
        Ok(Layer { descriptor, diff_id })
    }
}
