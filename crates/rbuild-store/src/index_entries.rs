//! Entries of indexes: those of the store's own index, and those of the indexes of images.

use std::error::Error;

use rbuild_image::{
    BlobDigest, Descriptor, ManifestDigest, MediaType, Platform, REF_NAME, Reference, digest_of, is_attachment,
    parse_index, parse_manifest,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::artifact::Artifact;
use crate::error::{Result, StoreError};

/// Media type of manifests in Docker's format.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Returns the digest in a descriptor of a stored document.
pub(crate) fn digest(d: &Descriptor) -> Result<BlobDigest> {
    digest_of(d).map_err(StoreError::damaged("descriptor"))
}

/// Returns the manifest that an entry of the index refers to.
pub(crate) fn manifest_in(d: &Descriptor) -> Result<ManifestDigest> {
    digest(d).map(BlobDigest::of_manifest)
}

/// The entries of an index of images.
pub(crate) struct IndexEntries {
    /// The images. There is at least one.
    pub images: Vec<Descriptor>,
    /// Attestations and other artifacts.
    pub attachments: Vec<Descriptor>,
}

impl IndexEntries {
    /// Returns the entries of an index; `None` for a manifest, for an index without images, and if
    /// a digest is invalid.
    pub fn of(bytes: &[u8]) -> Option<IndexEntries> {
        #[derive(Deserialize)]
        struct IndexHeader {
            manifests: Option<IgnoredAny>,
            config: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
        }
        let head: IndexHeader = serde_json::from_slice(bytes).ok()?;
        // A document that is both is treated as a manifest, as registries do.
        if head.manifests.is_none() || head.config.is_some() || head.layers.is_some() {
            return None;
        }
        let index = parse_index(bytes).ok()?;
        let is_manifest = |entry: &&Descriptor| {
            *entry.media_type() == MediaType::ImageManifest || entry.media_type().as_ref() == DOCKER_MANIFEST
        };
        let entries = index.manifests().iter().filter(is_manifest).cloned();
        let (attachments, images): (Vec<_>, Vec<_>) = entries.partition(is_attachment);
        let is_valid = images.iter().chain(&attachments).all(|entry| digest_of(entry).is_ok());
        (is_valid && !images.is_empty()).then_some(IndexEntries { images, attachments })
    }

    /// Returns the images with their platforms.
    pub fn platforms(&self) -> Vec<(ManifestDigest, Option<Platform>)> {
        manifests(&self.images).into_iter().zip(self.images.iter().map(Platform::of)).collect()
    }

    /// Returns all manifests.
    pub fn manifests(&self) -> Vec<ManifestDigest> {
        [manifests(&self.images), manifests(&self.attachments)].concat()
    }

    /// Returns the index with that digest as an artifact.
    pub fn artifact(&self, digest: ManifestDigest) -> Artifact {
        Artifact::Index { digest, images: manifests(&self.images), attachments: manifests(&self.attachments) }
    }
}

fn manifests(entries: &[Descriptor]) -> Vec<ManifestDigest> {
    entries.iter().filter_map(|entry| manifest_in(entry).ok()).collect()
}

/// Returns the blobs that a manifest refers to, its configuration last.
pub(crate) fn parts_of(manifest: &[u8]) -> Result<Vec<BlobDigest>> {
    let document = || format!("manifest {}", ManifestDigest::of(manifest));
    let parsed = parse_manifest(manifest).map_err(|e| StoreError::damaged(document())(e))?;
    parsed.layers().iter().chain([parsed.config()]).map(digest).collect()
}

/// An entry of the store's index that is not a valid descriptor.
pub(crate) struct InvalidEntry {
    /// Name of the image, as the entry states it.
    pub name: Option<String>,
    pub source: Box<dyn Error + Send + Sync>,
}

/// Parses an entry of an index, and checks that its digest is valid.
pub(crate) fn descriptor_in(entry: serde_json::Value) -> std::result::Result<Descriptor, Box<dyn Error + Send + Sync>> {
    let descriptor: Descriptor = serde_json::from_value(entry)?;
    digest_of(&descriptor)?;
    Ok(descriptor)
}

/// Returns the name of an index entry. Names in the format of older versions are parsed as well.
pub(crate) fn name_of(d: &Descriptor) -> Option<Reference> {
    d.annotations().as_ref()?.get(REF_NAME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_images_or_attachments() {
        let entry = |digit: char, more: &str| {
            let digest = format!("sha256:{}", digit.to_string().repeat(64));
            let kind = MediaType::ImageManifest;
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1{more}}}"#)
        };
        let platform = |os: &str, arch: &str| format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#);
        let of = |entries: &[String]| {
            let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            let entries = IndexEntries::of(index.as_bytes())?;
            Some((entries.images.len(), entries.attachments.len()))
        };
        let (image, attestation) =
            (entry('1', &platform("linux", "amd64")), entry('2', &platform("unknown", "unknown")));
        assert_eq!(of(&[image.clone(), attestation.clone(), image.clone()]), Some((2, 1)));
        assert_eq!(of(&[attestation]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[image.replace("sha256", "sha512")]), None);
    }
}
