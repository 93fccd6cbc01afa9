//! Validation of an imported manifest against the blobs that it refers to.

use rbuild_image::{BlobDigest, Descriptor, DiffId, ImageId, digest_of};
use rbuild_layer::Compression;
use rbuild_remedy::{ImageRemedy, Remedy, counted};

use crate::error::{Result, TransportError};
use crate::layout::blob_path;
use crate::load::found::unreadable;
use crate::load::members::IncomingParts;
use crate::media_types::is_layer;

/// Returns the digest in a descriptor.
pub(super) fn digest_in(d: &Descriptor) -> Result<BlobDigest> {
    digest_of(d).map_err(TransportError::document("a descriptor of the image"))
}

/// Imports the blob that a descriptor refers to and checks its size.
pub(super) fn import_blob(members: &IncomingParts<'_>, d: &Descriptor, object: &str) -> Result<BlobDigest> {
    let digest = digest_in(d)?;
    if members.staging.verified_size(&digest)? == Some(d.size()) {
        return Ok(digest);
    }
    let (_, size) = members.blob(&blob_path(&digest))?;
    if size == d.size() {
        return Ok(digest);
    }
    let message = format!("{object} {digest} has {}; its descriptor states {}", counted(size, "byte"), d.size());
    Err(TransportError::Other { message, help: Some(Remedy::Image(ImageRemedy::TransferAgain)) })
}

/// Imports everything that a manifest refers to; returns the image ID. Fails if manifest,
/// configuration and layers do not agree.
pub(super) fn import_image(members: &IncomingParts<'_>, text: &[u8]) -> Result<ImageId> {
    let manifest = rbuild_image::parse_manifest(text).map_err(unreadable("manifest"))?;
    let layers = manifest.layers();
    if let Some(unknown) = layers.iter().find(|layer| !is_layer(layer.media_type())) {
        return Err(TransportError::Other {
            message: format!("layer {} has the unknown type {}", unknown.digest(), unknown.media_type()),
            help: Some(ImageRemedy::ConvertLayers.into()),
        });
    }
    let names = layers.iter().map(|layer| digest_in(layer).map(|d| blob_path(&d))).collect::<Result<Vec<_>>>()?;
    members.nothing_missing(names.iter().map(String::as_str))?;
    let id = import_blob(members, manifest.config(), "the configuration")?.of_config();
    let diff_ids = members.diff_ids(&id, "configuration")?;
    if diff_ids.len() != layers.len() {
        return Err(counts_differ(layers.len(), diff_ids.len()));
    }
    for (layer, diff_id) in layers.iter().zip(&*diff_ids) {
        let digest = import_blob(members, layer, "the layer")?;
        // A compressed layer is checked when it is unpacked or exported.
        if members.compression(&digest)? == Compression::None && digest.of_plain_layer() != *diff_id {
            return Err(not_the_layer(&digest.to_string(), &digest.of_plain_layer(), diff_id));
        }
    }
    Ok(id)
}

pub(super) fn counts_differ(layers: usize, diff_ids: usize) -> TransportError {
    let message =
        format!("the image's manifest and configuration disagree on the number of layers: {layers} and {diff_ids}");
    TransportError::Other { message, help: Some(Remedy::Image(ImageRemedy::TransferAgain)) }
}

pub(super) fn not_the_layer(name: &str, found: &DiffId, diff_id: &DiffId) -> TransportError {
    TransportError::Other {
        message: format!("the image's layer `{name}` has diffID {found}; the image configuration expects {diff_id}"),
        help: Some(Remedy::Image(ImageRemedy::TransferAgain)),
    }
}
