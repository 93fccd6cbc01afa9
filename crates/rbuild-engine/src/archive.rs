//! Images as one tar: an OCI image layout, and with it the files of a docker-archive.
//!
//! The bytes depend on the images and their names only: entries are sorted, times are zero, owners are root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{Read, Write};

use rbuild_image::{Digest, MediaType, REF_NAME, Reference, descriptor, digest_of};
use rbuild_layer::{Decoder, TarEntry, TarReader, TarWriter};
use rbuild_linux::{AtomicFile, write_atomic};
use rbuild_store::{Image, Store};
use serde_json::{Value, json};

use crate::error::{BuildError, Result};
use crate::load::{clean, promised};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    Oci,
    /// An OCI layout that also has `manifest.json`, which `docker load` and `podman load` of any age read.
    Docker,
}

/// Writes the images with their names to a destination, whole or not at all.
///
/// Layers among `known` are left out: whoever loads the archive has them.
pub fn save_to(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    known: &BTreeSet<Digest>,
    format: ArchiveFormat,
    dest: &crate::Destination,
) -> Result<()> {
    crate::export::write(dest, |out| save(store, images, known, format, out))
}

/// The layers of an image, by the digests of their bytes.
pub fn layer_blobs(image: &Image) -> Result<Vec<Digest>> {
    let layers = image.layers()?;
    layers.iter().map(|(layer, _)| digest_of(layer).map_err(|e| BuildError::other(e.to_string()))).collect()
}

/// The blobs that an archive of images holds, by their names in it.
pub fn archive_blobs(archive: impl Read, shown: &str) -> Result<BTreeSet<Digest>> {
    let mut tar = TarReader::new(Decoder::new(archive).map_err(BuildError::io(shown))?);
    let mut blobs = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(shown))? {
        blobs.extend(promised(&clean(&entry.path.to_string_lossy())));
    }
    Ok(blobs)
}

fn blobs_of(images: &[(Image, Vec<Reference>)], known: &BTreeSet<Digest>) -> Result<BTreeSet<Digest>> {
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    for (image, _) in images {
        blobs.extend(layer_blobs(image)?.into_iter().filter(|layer| !known.contains(layer)));
        blobs.extend([image.manifest_digest, image.id]);
    }
    Ok(blobs)
}

/// Writes the images with their names as an OCI image layout directory; blobs that are there already stay.
pub fn save_directory(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    known: &BTreeSet<Digest>,
    dest: &crate::Destination,
) -> Result<()> {
    let crate::Destination::Path { base, rest } = dest else {
        return Err(BuildError::other("a directory of images needs a path to write to"));
    };
    let shown = base.label().join(rest);
    let fail = || BuildError::kernel(format!("writing the layout {}", shown.display()));
    let root = base.create_dir_all(rest, 0o755, None, |_| ()).map_err(fail())?;
    let dir = root.create_dir_all("blobs/sha256", 0o755, None, |_| ()).map_err(fail())?;
    for blob in blobs_of(images, known)? {
        let name = blob.hex();
        if dir.exists(&name).map_err(fail())? {
            continue;
        }
        let mut file = AtomicFile::create(&dir, 0o644).map_err(fail())?;
        copy_blob(store, &blob, |bytes| file.write_all(bytes))?;
        file.publish(OsStr::new(&name)).map_err(fail())?;
    }
    for (name, value) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index(images)?)] {
        let bytes = serde_json::to_vec(&value).map_err(|e| BuildError::other(e.to_string()))?;
        write_atomic(&root, OsStr::new(name), &bytes, 0o644).map_err(fail())?;
    }
    Ok(())
}

/// Reads a blob to its end and verifies it on the way.
fn copy_blob(store: &Store, blob: &Digest, mut write: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
    let mut file = store.open_blob(blob)?.take(store.blob_size(blob)?);
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = rbuild_image::Hasher::new();
    loop {
        let n = file.read(&mut buffer).map_err(BuildError::io("reading a blob"))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        write(&buffer[..n]).map_err(BuildError::io("writing the image"))?;
    }
    if hasher.finish() != *blob {
        let (what, reason) = (format!("blob {blob}"), "its digest is wrong".into());
        return Err(rbuild_store::StoreError::Damaged { what, reason }.into());
    }
    Ok(())
}

/// Writes the images with their names.
pub(crate) fn save(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    known: &BTreeSet<Digest>,
    format: ArchiveFormat,
    out: &mut dyn Write,
) -> Result<()> {
    let io = |e| BuildError::io("writing the archive")(e);
    let mut tar = TarWriter::new(out);
    let blobs = blobs_of(images, known)?;
    tar.entry(&TarEntry::plain_dir("blobs")).map_err(io)?;
    tar.entry(&TarEntry::plain_dir("blobs/sha256")).map_err(io)?;
    for blob in &blobs {
        let size = store.blob_size(blob)?;
        tar.entry(&TarEntry::plain_file(format!("blobs/sha256/{}", blob.hex()), size)).map_err(io)?;
        copy_blob(store, blob, |bytes| tar.content(bytes))?;
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
