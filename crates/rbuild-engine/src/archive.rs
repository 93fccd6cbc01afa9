//! Images as one tar: an OCI image layout, and with it the files of a docker-archive.
//!
//! The bytes depend on the images and their names only: entries are sorted, times are zero, owners are root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use rbuild_image::{Digest, MediaType, REF_NAME, Reference, descriptor, digest_of};
use rbuild_layer::{TarEntry, TarWriter};
use rbuild_store::{Image, Store};
use serde_json::{Value, json};

use crate::error::{BuildError, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    Oci,
    /// An OCI layout that also has `manifest.json`, which `docker load` and `podman load` of any age read.
    Docker,
}

/// Writes the images with their names to a destination, whole or not at all.
pub fn save_to(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    format: ArchiveFormat,
    dest: &crate::Destination,
) -> Result<()> {
    crate::export::write(dest, |out| save(store, images, format, out))
}

/// Writes the images with their names.
pub(crate) fn save(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    format: ArchiveFormat,
    out: &mut dyn Write,
) -> Result<()> {
    let io = |e| BuildError::io("writing the archive")(e);
    let mut tar = TarWriter::new(out);
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    for (image, _) in images {
        blobs.extend([image.manifest_digest, image.id]);
        for (layer, _) in image.layers()? {
            blobs.insert(digest_of(&layer).map_err(|e| BuildError::other(e.to_string()))?);
        }
    }
    tar.entry(&TarEntry::plain_dir("blobs")).map_err(io)?;
    tar.entry(&TarEntry::plain_dir("blobs/sha256")).map_err(io)?;
    for blob in &blobs {
        let size = store.blob_size(blob)?;
        tar.entry(&TarEntry::plain_file(format!("blobs/sha256/{}", blob.hex()), size)).map_err(io)?;
        let mut file = store.open_blob(blob)?.take(size);
        let mut buffer = vec![0; 1 << 20];
        let mut hasher = rbuild_image::Hasher::new();
        loop {
            let n = file.read(&mut buffer).map_err(BuildError::io("reading a blob"))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            tar.content(&buffer[..n]).map_err(io)?;
        }
        if hasher.finish() != *blob {
            return Err(rbuild_store::StoreError::Damaged {
                what: format!("blob {blob}"),
                reason: "its digest is wrong".into(),
            }
            .into());
        }
    }
    let mut documents = vec![("index.json", index(images)?)];
    if format == ArchiveFormat::Docker {
        documents.push(("manifest.json", docker_manifest(images)?));
    }
    documents.push(("oci-layout", json!({"imageLayoutVersion": "1.0.0"})));
    if format == ArchiveFormat::Docker {
        documents.push(("repositories", repositories(images)?));
    }
    for (name, value) in documents {
        let bytes = serde_json::to_vec(&value).map_err(|e| BuildError::other(e.to_string()))?;
        tar.entry(&TarEntry::plain_file(name, bytes.len() as u64)).map_err(io)?;
        tar.content(&bytes).map_err(io)?;
    }
    tar.finish().map_err(io)?;
    Ok(())
}

/// One entry for each name; an image without one stands there once.
fn index(images: &[(Image, Vec<Reference>)]) -> Result<Value> {
    let mut manifests = Vec::new();
    for (image, names) in images {
        let plain = descriptor(MediaType::ImageManifest, &image.manifest_digest, image.manifest_size);
        if names.is_empty() {
            manifests.push(plain);
            continue;
        }
        for name in names {
            let mut named = plain.clone();
            let tag = name.tag().unwrap_or("latest").to_string();
            let full = ("io.containerd.image.name".to_string(), name.to_string());
            named.set_annotations(Some([full, (REF_NAME.to_string(), tag)].into()));
            manifests.push(named);
        }
    }
    let mut manifests = serde_json::to_value(&manifests).map_err(|e| BuildError::other(e.to_string()))?;
    // The annotations come out of an unordered map.
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

fn docker_manifest(images: &[(Image, Vec<Reference>)]) -> Result<Value> {
    let mut items = Vec::new();
    for (image, names) in images {
        let layers = image.layers()?;
        let layers: Vec<String> = layers
            .iter()
            .map(|(d, _)| digest_of(d).map(|d| format!("blobs/sha256/{}", d.hex())))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| BuildError::other(e.to_string()))?;
        let tags: Vec<String> = names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
        items.push(json!({
            "Config": format!("blobs/sha256/{}", image.id.hex()),
            "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
            "Layers": layers,
        }));
    }
    Ok(Value::Array(items))
}

/// `{name: {tag: top layer}}`, for programs from before manifest.json.
fn repositories(images: &[(Image, Vec<Reference>)]) -> Result<Value> {
    let mut names: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (image, references) in images {
        let Some((_, top)) = image.layers()?.pop() else { continue };
        for reference in references {
            if let Some(tag) = reference.tag() {
                names.entry(reference.familiar_name()).or_default().insert(tag.to_string(), top.hex());
            }
        }
    }
    serde_json::to_value(names).map_err(|e| BuildError::other(e.to_string()))
}
