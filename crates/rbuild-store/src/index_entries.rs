//! Entries of indexes: those of the store's own index, and those of the indexes of images.

use std::collections::HashSet;
use std::error::Error;

use rbuild_image::{
    BlobDigest, Descriptor, ManifestDigest, MediaType, Platform, REF_NAME, Reference, digest_of, is_attachment,
    parse_index, parse_manifest,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::artifact::Artifact;
use crate::error::{Result, StoreError};

/// Media types of manifests and indexes in Docker's format.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Maximum depth of indexes in indexes that are followed. Those that are loaded or pulled are not
/// deeper.
const MAX_DEPTH: usize = 4;

/// Returns the digest in a descriptor of a stored document.
pub(crate) fn digest(d: &Descriptor) -> Result<BlobDigest> {
    digest_of(d).map_err(StoreError::damaged("descriptor"))
}

/// Returns the manifest that an entry of the index refers to.
pub(crate) fn manifest_in(d: &Descriptor) -> Result<ManifestDigest> {
    digest(d).map(BlobDigest::of_manifest)
}

/// Reads a document; returns `None` if it cannot be read.
pub(crate) type ReadDocument<'a> = &'a dyn Fn(&ManifestDigest) -> Option<Vec<u8>>;

/// The entries of an index of images, and of the indexes in it.
#[derive(Default)]
pub(crate) struct IndexEntries {
    /// The images. There is at least one.
    pub images: Vec<Descriptor>,
    /// Attestations and other artifacts.
    pub attachments: Vec<Descriptor>,
    /// The indexes in the index, each after those that it contains itself.
    indexes: Vec<ManifestDigest>,
    /// The digests of all of them.
    seen: HashSet<BlobDigest>,
}

impl IndexEntries {
    /// Returns the entries of an index, and of the indexes in it, which `read` returns. Returns
    /// `None` for a manifest, for an index without images, and if a digest is invalid.
    pub fn of(bytes: &[u8], read: ReadDocument<'_>) -> Option<IndexEntries> {
        IndexEntries::of_any(bytes, read).filter(|entries| !entries.images.is_empty())
    }

    /// Does the same as [`IndexEntries::of`] also for an index without images, such as one of
    /// attestations in another index.
    pub fn of_any(bytes: &[u8], read: ReadDocument<'_>) -> Option<IndexEntries> {
        let mut entries = IndexEntries::default();
        entries.add(bytes, read, 0, None)?;
        Some(entries)
    }

    /// Adds the entries of an index that the entry `outer` of another one led to.
    fn add(&mut self, bytes: &[u8], read: ReadDocument<'_>, depth: usize, outer: Option<&Descriptor>) -> Option<()> {
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
        for entry in parse_index(bytes).ok()?.manifests() {
            let kind = entry.media_type();
            let is_index = *kind == MediaType::ImageIndex || kind.as_ref() == DOCKER_INDEX;
            if !is_index && *kind != MediaType::ImageManifest && kind.as_ref() != DOCKER_MANIFEST {
                continue;
            }
            let digest = digest_of(entry).ok()?;
            let is_new = self.seen.insert(digest);
            if !is_new && (is_index || depth > 0) {
                continue;
            }
            let mut entry = entry.clone();
            if entry.platform().is_none() {
                entry.set_platform(outer.and_then(|outer| outer.platform().clone()));
            }
            if !is_index {
                let list = if is_attachment(&entry) { &mut self.attachments } else { &mut self.images };
                list.push(entry);
            } else if depth < MAX_DEPTH {
                // One that cannot be read is reported by whoever needs it.
                let nested = read(&digest.of_manifest());
                nested.and_then(|bytes| self.add(&bytes, read, depth + 1, Some(&entry)));
                self.indexes.push(digest.of_manifest());
            }
        }
        Some(())
    }

    /// Returns the images with their platforms.
    pub fn platforms(&self) -> Vec<(ManifestDigest, Option<Platform>)> {
        manifests(&self.images).into_iter().zip(self.images.iter().map(Platform::of)).collect()
    }

    /// Returns all manifests and indexes.
    pub fn manifests(&self) -> Vec<ManifestDigest> {
        [manifests(&self.images), manifests(&self.attachments), self.indexes.clone()].concat()
    }

    /// Returns the index with that digest as an artifact.
    pub fn artifact(&self, digest: ManifestDigest) -> Artifact {
        let (images, attachments) = (manifests(&self.images), manifests(&self.attachments));
        Artifact::Index { digest, images, attachments, indexes: self.indexes.clone() }
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
            let entries = IndexEntries::of(index.as_bytes(), &|_| None)?;
            Some((entries.images.len(), entries.attachments.len()))
        };
        let (image, attestation) =
            (entry('1', &platform("linux", "amd64")), entry('2', &platform("unknown", "unknown")));
        assert_eq!(of(&[image.clone(), attestation.clone(), image.clone()]), Some((2, 1)));
        assert_eq!(of(&[attestation]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[image.replace("sha256", "sha512")]), None);
    }

    #[test]
    fn entries_of_indexes_in_an_index_are_its_own() {
        let document = |kind: &MediaType, text: String, more: &str| {
            let (digest, size) = (BlobDigest::of(text.as_bytes()), text.len());
            (digest, format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}{more}}}"#), text)
        };
        let image = |text: &str| document(&MediaType::ImageManifest, text.into(), "");
        let index = |entries: &[&str], more: &str| {
            document(
                &MediaType::ImageIndex,
                format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")),
                more,
            )
        };
        let (one, two) = (image("1"), image("2"));
        let arm = r#","platform":{"os":"linux","architecture":"arm64"}"#;
        let deep = index(&[&two.1], arm);
        let inner = index(&[&one.1, &deep.1, &two.1], "");
        let outer = index(&[&one.1, &inner.1, &deep.1, &inner.1], "");
        let read = |wanted: &ManifestDigest| {
            [&deep, &inner].into_iter().find(|found| found.0 == wanted.blob()).map(|found| found.2.clone().into_bytes())
        };
        let found = IndexEntries::of(outer.2.as_bytes(), &read).unwrap();
        let platforms: Vec<_> = found.platforms().into_iter().map(|(_, platform)| platform).collect();
        assert_eq!(platforms, [None, "linux/arm64".parse().ok()]);
        let artifact = found.artifact(outer.0.of_manifest());
        assert_eq!(artifact.images(), [one.0, two.0].map(BlobDigest::of_manifest));
        assert_eq!(artifact.indexes(), [deep.0, inner.0].map(BlobDigest::of_manifest));
        // One that is missing is still a part.
        let found = IndexEntries::of(outer.2.as_bytes(), &|_| None).unwrap();
        assert_eq!(found.manifests().len(), 3);
    }
}
