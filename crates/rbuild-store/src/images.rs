use std::collections::{HashMap, HashSet};

use rbuild_image::{
    Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, ImageName, MediaType, REF_NAME, Reference, descriptor,
    digest_of, parse_manifest,
};

use crate::error::{Result, StoreError};
use crate::layout::Store;

/// An image of the store with its documents.
#[derive(Debug, Clone)]
pub struct Image {
    pub manifest_digest: Digest,
    pub manifest_size: u64,
    pub manifest: ImageManifest,
    /// What people know as the image id.
    pub id: Digest,
    pub config: ImageConfig,
}

/// One entry of the index: an image, and its name if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    pub name: Option<Reference>,
    pub manifest: Digest,
}

impl Image {
    /// Layers with their diffIDs, the lowest first.
    pub fn layers(&self) -> Result<Vec<(Descriptor, Digest)>> {
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

/// The digest of a descriptor of a stored document.
pub(crate) fn digest(d: &Descriptor) -> Result<Digest> {
    digest_of(d).map_err(|e| StoreError::Damaged { what: "descriptor".into(), reason: e.to_string() })
}

impl Store {
    fn index(&self) -> Result<ImageIndex> {
        self.read("index.json")
    }

    /// Reads the index, changes it, and puts it in place, with no other process between.
    fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>) -> Result<T> {
        let _lock = self.lock_file("index.lock")?;
        let mut index = self.index()?;
        let mut entries = index.manifests().clone();
        let result = change(&mut entries)?;
        if entries != *index.manifests() {
            index.set_manifests(entries);
            self.write_durable(".", "index.json", &index)?;
        }
        Ok(result)
    }

    /// All entries, in the order of the index.
    pub fn images(&self) -> Result<Vec<NamedImage>> {
        let index = self.index()?;
        index.manifests().iter().map(|d| Ok(NamedImage { name: name_of(d), manifest: digest(d)? })).collect()
    }

    /// Takes entries out of the index.
    pub fn forget(&self, gone: &[NamedImage]) -> Result<()> {
        let gone: HashSet<(Option<String>, Digest)> =
            gone.iter().map(|g| (g.name.as_ref().map(Reference::to_string), g.manifest)).collect();
        self.change_index(|entries| {
            entries.retain(|d| {
                let name = name_of(d).map(|name| name.to_string());
                !digest(d).is_ok_and(|manifest| gone.contains(&(name, manifest)))
            });
            Ok(())
        })
    }

    /// The image with that manifest.
    pub fn image(&self, manifest_digest: &Digest) -> Result<Image> {
        let bytes = self.read_document(manifest_digest)?;
        let damaged = |what: String| move |e: serde_json::Error| StoreError::Damaged { what, reason: e.to_string() };
        let manifest = parse_manifest(&bytes).map_err(damaged(format!("manifest {manifest_digest}")))?;
        let id = digest(manifest.config())?;
        let config =
            serde_json::from_slice(&self.read_document(&id)?).map_err(damaged(format!("configuration {id}")))?;
        Ok(Image { manifest_digest: *manifest_digest, manifest_size: bytes.len() as u64, manifest, id, config })
    }

    /// The image that a Dockerfile names so.
    pub fn named_image(&self, name: &ImageName) -> Result<Image> {
        let manifest = match name {
            ImageName::Reference(reference) => self.entry_of(&self.images()?, reference).map(|entry| entry.manifest),
            ImageName::Id(digest) => self.manifest_of(digest)?,
        };
        let missing = || match name {
            ImageName::Reference(reference) => StoreError::NoImage(reference.familiar()),
            ImageName::Id(digest) => StoreError::NoImage(digest.to_string()),
        };
        self.image(&manifest.ok_or_else(missing)?)
    }

    /// The entry that a reference means: a digest in it alone decides.
    fn entry_of<'e>(&self, entries: &'e [NamedImage], reference: &Reference) -> Option<&'e NamedImage> {
        entries.iter().find(|e| match reference.digest() {
            Some(digest) => e.manifest == *digest,
            None => e.name.as_ref() == Some(reference),
        })
    }

    /// The manifest with that digest, or else one of the image with that id. A manifest need not be in the index: images of
    /// layouts on the disk are not.
    fn manifest_of(&self, digest: &Digest) -> Result<Option<Digest>> {
        let entries = self.images()?;
        if entries.iter().any(|entry| entry.manifest == *digest) {
            return Ok(Some(*digest));
        }
        for entry in &entries {
            // Another image's damage is not this one's.
            if self.image(&entry.manifest).is_ok_and(|image| image.id == *digest) {
                return Ok(Some(entry.manifest));
            }
        }
        Ok(self.image(digest).is_ok().then_some(*digest))
    }

    /// Finds an image for a command: by name, by its id or the beginning of it, or by manifest digest.
    pub fn find_image(&self, wanted: &str) -> Result<(Option<Reference>, Image)> {
        let entries = self.images()?;
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

    /// Gives the image a name (taking it from whatever had it), or keeps it without one.
    pub fn tag(&self, manifest: &Digest, name: Option<&Reference>) -> Result<()> {
        self.image(manifest)?;
        self.tag_all(&[(*manifest, name.cloned())])
    }

    /// Gives images their names, one after the other, in one go: the index is written once, with all of them or none.
    pub fn tag_all(&self, named: &[(Digest, Option<Reference>)]) -> Result<()> {
        // Who comes last has the name.
        let mut last: HashMap<String, usize> = HashMap::new();
        for (at, (_, name)) in named.iter().enumerate() {
            last.extend(name.as_ref().map(|name| (name.to_string(), at)));
        }
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        for (manifest, _) in named {
            if !sizes.contains_key(manifest) {
                sizes.insert(*manifest, self.blob_size(manifest)?);
            }
        }
        let entry = |manifest: &Digest| descriptor(MediaType::ImageManifest, manifest, sizes[manifest]);
        self.change_index(|entries| {
            let retagged = |d: &Descriptor| name_of(d).is_some_and(|name| last.contains_key(&name.to_string()));
            let (old, mut kept): (Vec<_>, Vec<_>) = entries.drain(..).partition(retagged);
            for (at, (manifest, name)) in named.iter().enumerate() {
                let Some(name) = name.as_ref().filter(|name| last[&name.to_string()] == at) else { continue };
                let mut d = entry(manifest);
                d.set_annotations(Some([(REF_NAME.to_string(), name.to_string())].into()));
                kept.push(d);
            }
            // Who has a name now needs no entry without one.
            let given: HashSet<Digest> = last.values().map(|at| named[*at].0).collect();
            kept.retain(|d| name_of(d).is_some() || !digest(d).is_ok_and(|manifest| given.contains(&manifest)));
            // What has lost its last name, or never had one, stays without one until it is pruned.
            let mut there: HashSet<Digest> = kept.iter().filter_map(|d| digest(d).ok()).collect();
            for mut d in old.into_iter().chain(named.iter().map(|(manifest, _)| entry(manifest))) {
                if there.insert(digest(&d)?) {
                    d.set_annotations(None);
                    kept.push(d);
                }
            }
            *entries = kept;
            Ok(())
        })
    }

    /// Takes a name away, or removes an image with all its names. Gives what was untagged, and whether the image
    /// is gone from the index.
    pub fn untag(&self, wanted: &str, force: bool) -> Result<(Vec<String>, Option<Digest>)> {
        let (name, image) = self.find_image(wanted)?;
        self.change_index(|entries| {
            let ours = |d: &Descriptor| digest(d).is_ok_and(|d| d == image.manifest_digest);
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

/// The name of an entry of the index; older versions wrote some in another way.
fn name_of(d: &Descriptor) -> Option<Reference> {
    d.annotations().as_ref()?.get(REF_NAME)?.parse().ok()
}
