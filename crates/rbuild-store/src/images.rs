//! Images and their names.

use std::collections::{HashMap, HashSet};

use rbuild_image::{
    BlobDigest, Descriptor, DiffId, ImageConfig, ImageDigest, ImageId, ImageIndex, ImageManifest, ImageName,
    ManifestDigest, MediaType, REF_NAME, Reference, descriptor, digest_of, parse_manifest,
};

use crate::error::{Result, StoreError};
use crate::store::Store;

/// An image of the store with its documents.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the manifest.
    pub manifest_digest: ManifestDigest,
    /// Size of the manifest in bytes.
    pub manifest_size: u64,
    /// The manifest.
    pub manifest: ImageManifest,
    /// Digest of the configuration, known to users as the image ID.
    pub id: ImageId,
    /// The configuration.
    pub config: ImageConfig,
}

/// An entry of the index: an image and its name, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// The name; `None` for a dangling image.
    pub name: Option<Reference>,
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
}

impl Image {
    /// Returns the layers with their diffIDs, lowest first.
    ///
    /// # Errors
    ///
    /// Fails if manifest and configuration have different numbers of layers.
    pub fn layers(&self) -> Result<Vec<(Descriptor, DiffId)>> {
        let layers = self.manifest.layers();
        if layers.len() != self.config.rootfs.diff_ids.len() {
            return Err(StoreError::Damaged {
                what: format!("image {}", self.id.short()),
                reason: format!(
                    "its manifest has {} layers and its configuration {}",
                    layers.len(),
                    self.config.rootfs.diff_ids.len()
                ),
            });
        }
        Ok(layers.iter().cloned().zip(self.config.rootfs.diff_ids.iter().copied()).collect())
    }
}

/// Returns the digest in a descriptor of a stored document.
pub(crate) fn digest(d: &Descriptor) -> Result<BlobDigest> {
    digest_of(d).map_err(|e| StoreError::Damaged { what: "descriptor".into(), reason: e.to_string() })
}

/// Returns the manifest that an entry of the index refers to.
fn manifest_in(d: &Descriptor) -> Result<ManifestDigest> {
    digest(d).map(BlobDigest::of_manifest)
}

/// The images of a store and their names.
#[derive(Clone, Copy)]
pub struct Images<'s> {
    pub(crate) store: &'s Store,
}

impl Images<'_> {
    fn index(&self) -> Result<ImageIndex> {
        self.store.read("index.json")
    }

    /// Reads, changes and replaces the index while holding its lock.
    fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>) -> Result<T> {
        let _lock = self.store.lock_file("index.lock")?;
        let mut index = self.index()?;
        let mut entries = index.manifests().clone();
        let result = change(&mut entries)?;
        if entries != *index.manifests() {
            index.set_manifests(entries);
            self.store.write_durable(".", "index.json", &index)?;
        }
        Ok(result)
    }

    /// Returns all entries in the order of the index.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be read.
    pub fn list(&self) -> Result<Vec<NamedImage>> {
        let index = self.index()?;
        index.manifests().iter().map(|d| Ok(NamedImage { name: name_of(d), manifest: manifest_in(d)? })).collect()
    }

    /// Removes entries from the index.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be read or written.
    pub fn forget(&self, gone: &[NamedImage]) -> Result<()> {
        let gone: HashSet<(Option<String>, ManifestDigest)> =
            gone.iter().map(|g| (g.name.as_ref().map(Reference::to_string), g.manifest)).collect();
        self.change_index(|entries| {
            entries.retain(|d| {
                let name = name_of(d).map(|name| name.to_string());
                !manifest_in(d).is_ok_and(|manifest| gone.contains(&(name, manifest)))
            });
            Ok(())
        })
    }

    /// Returns the image with that manifest.
    ///
    /// # Errors
    ///
    /// Fails if a document is missing or damaged.
    pub fn image(&self, manifest_digest: &ManifestDigest) -> Result<Image> {
        let bytes = self.store.blobs().read_document(&manifest_digest.blob())?;
        let damaged = |what: String| move |e: serde_json::Error| StoreError::Damaged { what, reason: e.to_string() };
        let manifest = parse_manifest(&bytes).map_err(damaged(format!("manifest {manifest_digest}")))?;
        let id = digest(manifest.config())?.of_config();
        let config = serde_json::from_slice(&self.store.blobs().read_document(&id.blob())?)
            .map_err(damaged(format!("configuration {id}")))?;
        Ok(Image { manifest_digest: *manifest_digest, manifest_size: bytes.len() as u64, manifest, id, config })
    }

    /// Returns the image that a Dockerfile refers to by `name`.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoImage`] if there is none, or if a document is damaged.
    pub fn named_image(&self, name: &ImageName) -> Result<Image> {
        let manifest = match name {
            ImageName::Reference(reference) => self.entry_of(&self.list()?, reference).map(|entry| entry.manifest),
            ImageName::Id(digest) => self.manifest_of(digest)?,
            ImageName::Stored(manifest) => self.store.blobs().has_blob(&manifest.blob())?.then_some(*manifest),
        };
        let missing = || match name {
            ImageName::Reference(reference) => StoreError::NoImage(reference.familiar()),
            ImageName::Id(digest) => StoreError::NoImage(digest.to_string()),
            ImageName::Stored(manifest) => StoreError::NoImage(manifest.to_string()),
        };
        self.image(&manifest.ok_or_else(missing)?)
    }

    /// Returns the entry that a reference denotes. If it contains a digest, only the digest counts.
    fn entry_of<'e>(&self, entries: &'e [NamedImage], reference: &Reference) -> Option<&'e NamedImage> {
        entries.iter().find(|e| match reference.digest() {
            Some(digest) => e.manifest == *digest,
            None => e.name.as_ref() == Some(reference),
        })
    }

    /// Returns the manifest with that digest, or else that of an image with that ID. The manifest
    /// need not be in the index: images of OCI layouts on disk are not.
    fn manifest_of(&self, digest: &ImageDigest) -> Result<Option<ManifestDigest>> {
        let (entries, manifest) = (self.list()?, digest.as_manifest());
        if entries.iter().any(|entry| entry.manifest == manifest) {
            return Ok(Some(manifest));
        }
        for entry in &entries {
            // Ignore images that are damaged.
            if self.image(&entry.manifest).is_ok_and(|image| digest.is_id(&image.id)) {
                return Ok(Some(entry.manifest));
            }
        }
        Ok(self.image(&manifest).is_ok().then_some(manifest))
    }

    /// Finds an image for a command: by name, by ID or manifest digest, or by a prefix of those
    /// with at least four digits.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoImage`] or [`StoreError::Ambiguous`], or if a document is
    /// damaged.
    pub fn find_image(&self, wanted: &str) -> Result<(Option<Reference>, Image)> {
        let entries = self.list()?;
        if let Ok(reference) = wanted.parse::<Reference>()
            && let Some(entry) = self.entry_of(&entries, &reference)
        {
            return Ok((Some(reference), self.image(&entry.manifest)?));
        }
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut found: Vec<Image> = Vec::new();
            for entry in &entries {
                let image = self.image(&entry.manifest)?;
                let fits = image.id.hex().starts_with(hex) || entry.manifest.hex().starts_with(hex);
                if fits && !found.iter().any(|f| f.id == image.id) {
                    found.push(image);
                }
            }
            match found.len() {
                0 => {}
                1 => return Ok((None, found.remove(0))),
                _ => {
                    let found = found.iter().map(|i| i.id.short()).collect::<Vec<_>>().join(", ");
                    return Err(StoreError::Ambiguous { name: wanted.to_string(), found });
                }
            }
        }
        Err(StoreError::NoImage(wanted.to_string()))
    }

    /// Names the image, moving the name from another image if necessary. With `None`, the image is
    /// kept as a dangling one.
    ///
    /// # Errors
    ///
    /// Fails if the image is incomplete or the index cannot be written.
    pub fn tag(&self, manifest: &ManifestDigest, name: Option<&Reference>) -> Result<()> {
        self.image(manifest)?;
        self.tag_all(&[(*manifest, name.cloned())])
    }

    /// Names several images. The index is written once, with all names or none.
    ///
    /// # Errors
    ///
    /// Fails if a manifest is missing or the index cannot be written.
    pub fn tag_all(&self, named: &[(ManifestDigest, Option<Reference>)]) -> Result<()> {
        // The last image with a name gets it.
        let mut last: HashMap<String, usize> = HashMap::new();
        for (at, (_, name)) in named.iter().enumerate() {
            last.extend(name.as_ref().map(|name| (name.to_string(), at)));
        }
        let mut sizes: HashMap<ManifestDigest, u64> = HashMap::new();
        for (manifest, _) in named {
            if !sizes.contains_key(manifest) {
                sizes.insert(*manifest, self.store.blobs().blob_size(&manifest.blob())?);
            }
        }
        let entry = |manifest: &ManifestDigest| descriptor(MediaType::ImageManifest, &manifest.blob(), sizes[manifest]);
        self.change_index(|entries| {
            let retagged = |d: &Descriptor| name_of(d).is_some_and(|name| last.contains_key(&name.to_string()));
            let (old, mut kept): (Vec<_>, Vec<_>) = entries.drain(..).partition(retagged);
            for (at, (manifest, name)) in named.iter().enumerate() {
                let Some(name) = name.as_ref().filter(|name| last[&name.to_string()] == at) else { continue };
                let mut d = entry(manifest);
                d.set_annotations(Some([(REF_NAME.to_string(), name.to_string())].into()));
                kept.push(d);
            }
            // A named image needs no dangling entry.
            let given: HashSet<ManifestDigest> = last.values().map(|at| named[*at].0).collect();
            kept.retain(|d| name_of(d).is_some() || !manifest_in(d).is_ok_and(|manifest| given.contains(&manifest)));
            // Images that lost their last name, or never had one, stay as dangling entries until
            // they are pruned.
            let mut there: HashSet<ManifestDigest> = kept.iter().filter_map(|d| manifest_in(d).ok()).collect();
            for mut d in old.into_iter().chain(named.iter().map(|(manifest, _)| entry(manifest))) {
                if there.insert(manifest_in(&d)?) {
                    d.set_annotations(None);
                    kept.push(d);
                }
            }
            *entries = kept;
            Ok(())
        })
    }

    /// Removes a name, or an image with all its names. Returns the removed names, and the image's
    /// ID if it is no longer in the index.
    ///
    /// # Errors
    ///
    /// Fails if there is no such image, if it has several names and `force` is false, or if the
    /// index cannot be written.
    pub fn untag(&self, wanted: &str, force: bool) -> Result<(Vec<String>, Option<ImageId>)> {
        let (name, image) = self.find_image(wanted)?;
        self.change_index(|entries| {
            let ours = |d: &Descriptor| manifest_in(d).is_ok_and(|d| d == image.manifest_digest);
            let names: Vec<String> =
                entries.iter().filter(|d| ours(d)).filter_map(|d| Some(name_of(d)?.familiar())).collect();
            let gone: Vec<String> = match &name {
                Some(name) if name.digest().is_none() => {
                    entries.retain(|d| name_of(d).as_ref() != Some(name));
                    vec![name.familiar()]
                }
                _ if names.len() > 1 && !force => {
                    let found = format!("{} (remove them one by one, or use -f)", names.join(", "));
                    return Err(StoreError::Ambiguous { name: wanted.to_string(), found });
                }
                _ => {
                    entries.retain(|d| !ours(d));
                    names
                }
            };
            let left = entries.iter().any(ours);
            Ok((gone, (!left).then_some(image.id)))
        })
    }
}

/// Returns the name of an index entry. Names in the format of older versions are parsed as well.
fn name_of(d: &Descriptor) -> Option<Reference> {
    d.annotations().as_ref()?.get(REF_NAME)?.parse().ok()
}
