//! The documents of layouts and archives: indexes, Docker's `manifest.json` and `repositories`.

use std::collections::BTreeMap;

use rbuild_image::{
    Descriptor, ManifestDigest, MediaType, Platform, REF_NAME, Reference, descriptor, digest_of, platform_document,
};
use rbuild_store::Image;
use serde_json::{Value, json};

use crate::blobs::Document;
use crate::error::{Result, TransportError};
use crate::kept_index::KeptIndex;
use crate::layout::blob_path;

/// An image to be written under its names, or one image per platform under the same names.
pub struct NamedArtifact {
    /// Never empty. With several platforms, one image for each.
    pub images: Vec<Image>,
    /// The stored index of the images. Without it, several images get a new one.
    pub index: Option<KeptIndex>,
    /// The names.
    pub names: Vec<Reference>,
}

/// Returns the image index for an image of several platforms, `None` for a single image.
pub(crate) fn platform_index(saved: &NamedArtifact) -> Result<Option<Document>> {
    match &saved.index {
        Some(KeptIndex { document, .. }) => Ok(Some(document.clone())),
        None if saved.images.len() < 2 => Ok(None),
        None => {
            let media_type = MediaType::ImageIndex.to_string();
            Ok(Some(Document { media_type, bytes: index_of_images(&saved.images)? }))
        }
    }
}

/// Returns the image index for the images of several platforms.
///
/// # Errors
///
/// Fails if the index cannot be written as JSON.
pub fn index_of_images(images: &[Image]) -> Result<Vec<u8>> {
    let entry = |image: &Image| {
        let media_type = image.manifest.media_type().as_ref().or(image.entry.as_ref().map(Descriptor::media_type));
        let media_type = media_type.map_or(MediaType::ImageManifest.to_string(), ToString::to_string);
        index_entry(&media_type, &image.manifest_digest, image.manifest_size, image)
    };
    index_of(images.iter().map(entry).collect())
}

/// Returns the entry of an index for a manifest of an image: with the platform of the entry that
/// led to the image, or else that of its configuration.
pub(crate) fn index_entry(media_type: &str, manifest: &ManifestDigest, size: u64, image: &Image) -> Value {
    let platform = match image.entry.as_ref().and_then(platform_document) {
        Some(listed) => listed,
        None => {
            let Platform { os, arch, variant } = image.config.platform();
            let mut platform = json!({"architecture": arch, "os": os});
            if let Some(variant) = variant {
                platform["variant"] = json!(variant);
            }
            platform
        }
    };
    json!({"mediaType": media_type, "digest": manifest.to_string(), "size": size, "platform": platform})
}

/// Returns an index with these entries.
pub(crate) fn index_of(entries: Vec<Value>) -> Result<Vec<u8>> {
    index_of_type(MediaType::ImageIndex.as_ref(), entries)
}

/// Returns an index of a media type with these entries.
pub(crate) fn index_of_type(media_type: &str, entries: Vec<Value>) -> Result<Vec<u8>> {
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    serde_json::to_vec(&index).map_err(TransportError::document("the image index"))
}

/// Returns the `index.json` of an archive: one descriptor per name, and a single one for an image
/// without names.
pub(crate) fn index(images: &[NamedArtifact]) -> Result<Value> {
    let mut manifests = Vec::new();
    for saved in images {
        let NamedArtifact { images, names, .. } = saved;
        let plain = match platform_index(saved)? {
            Some(index) => descriptor(MediaType::from(&*index.media_type), &index.digest(), index.bytes.len() as u64),
            None => descriptor(MediaType::ImageManifest, &images[0].manifest_digest.blob(), images[0].manifest_size),
        };
        if names.is_empty() {
            manifests.push(plain);
            continue;
        }
        for name in names {
            let mut named = plain.clone();
            let tag = name.tag().unwrap_or("latest").to_string();
            let full = (IMAGE_NAME.to_string(), name.to_string());
            named.set_annotations(Some([full, (REF_NAME.to_string(), tag)].into()));
            manifests.push(named);
        }
    }
    let mut manifests = serde_json::to_value(&manifests).map_err(TransportError::document("index.json"))?;
    // The annotations come from an unordered map.
    for entry in manifests.as_array_mut().into_iter().flatten() {
        if let Some(annotations) = entry.get_mut("annotations").and_then(Value::as_object_mut) {
            let sorted: BTreeMap<String, Value> = std::mem::take(annotations).into_iter().collect();
            annotations.extend(sorted);
        }
    }
    Ok(json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))
}

/// Annotation with the full name of an image. `REF_NAME` contains its tag only.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Returns the `index.json` of a layout after these images have been added to it. Other images of
/// the layout stay, unless one of these images gets their name. An image without names gets the tag
/// `latest`, as in BuildKit's client.
///
/// # Errors
///
/// Fails if `existing` is not an index.
pub(crate) fn extended_index(existing: Option<&[u8]>, images: &[NamedArtifact]) -> Result<Value> {
    let mut extended: Value = match existing {
        Some(bytes) => serde_json::from_slice(bytes).map_err(TransportError::layout_index)?,
        None => json!({"schemaVersion": 2, "mediaType": MediaType::ImageIndex.to_string(), "manifests": []}),
    };
    let Some(entries) = extended.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(TransportError::layout_index("it lists no manifests"));
    };
    let mut added = index(images)?["manifests"].take();
    for new in added.as_array_mut().into_iter().flatten() {
        if new.get("annotations").is_none() {
            new["annotations"] = json!({REF_NAME: "latest"});
        }
        entries
            .retain(|old| name_in(old) != name_in(new) && (name_in(old).is_some() || old["digest"] != new["digest"]));
        entries.push(new.take());
    }
    Ok(extended)
}

/// Returns the tag and the full name in an entry of an index. Returns `None` if it has neither.
fn name_in(entry: &Value) -> Option<(Option<&str>, Option<&str>)> {
    let annotation = |key: &str| entry.get("annotations")?.get(key)?.as_str();
    let name = (annotation(REF_NAME), annotation(IMAGE_NAME));
    (name != (None, None)).then_some(name)
}

/// Returns the image for Docker's own documents, which have one platform per image: the one that
/// runs on this machine.
fn for_docker(images: &[NamedArtifact]) -> impl Iterator<Item = (&Image, &[Reference])> {
    images.iter().map(|saved| {
        let chosen = preferred(saved.images.iter().map(|image| image.config.platform()));
        (&saved.images[chosen], &saved.names[..])
    })
}

/// Returns the index of the platform that runs on this machine, 0 if none does.
pub fn preferred(mut platforms: impl Iterator<Item = Platform>) -> usize {
    platforms.position(|platform| Platform::host().runs(&platform)).unwrap_or(0)
}

pub(crate) fn docker_manifest(images: &[NamedArtifact]) -> Result<Value> {
    let mut items = Vec::new();
    for (image, names) in for_docker(images) {
        let layers = image.layers()?;
        let layers: Vec<String> = layers
            .iter()
            .map(|(d, _)| digest_of(d).map(|d| blob_path(&d)))
            .collect::<std::result::Result<_, _>>()
            .map_err(TransportError::document("the manifest"))?;
        let tags: Vec<String> = names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
        items.push(json!({
            "Config": blob_path(&image.id.blob()),
            "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
            "Layers": layers,
        }));
    }
    Ok(Value::Array(items))
}

/// Returns the legacy `repositories` document, `{name: {tag: top layer}}`, for programs that
/// predate `manifest.json`.
pub(crate) fn repositories(images: &[NamedArtifact]) -> Result<Value> {
    let mut names: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (image, references) in for_docker(images) {
        let Some((_, top)) = image.layers()?.pop() else { continue };
        for reference in references {
            if let Some(tag) = reference.tag() {
                names.entry(reference.familiar_name()).or_default().insert(tag.to_string(), top.hex());
            }
        }
    }
    serde_json::to_value(names).map_err(TransportError::document("repositories"))
}
