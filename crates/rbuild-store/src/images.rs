//! Images and their names.

use std::collections::{HashMap, HashSet};
use std::fs::File;

use rbuild_image::{
    Checksum, Descriptor, DiffId, ImageConfig, ImageDigest, ImageId, ImageIndex, ImageManifest, ImageName,
    ManifestDigest, MediaType, Platform, REF_NAME, Reference, descriptor, parse_manifest,
};
use serde::Deserialize;

use crate::artifact::{Artifact, LostPlatforms, NamedImage};
use crate::error::{Result, StoreError};
use crate::index_entries::{IndexEntries, InvalidEntry, descriptor_in, digest, manifest_in, name_of};
use crate::store::{EMPTY_INDEX, Store};

/// An image with its documents. Its layers are in the store, or being downloaded.
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
    /// The entry of an index that led to the image, if there was one. Its platform may be more
    /// precise than that of the configuration.
    pub entry: Option<Descriptor>,
}

/// An image that was found for a command.
#[derive(Debug, Clone)]
pub struct FoundImage {
    /// The name by which it was found.
    pub name: Option<Reference>,
    /// The image.
    pub image: Image,
    /// The content of the name, or the image alone if it was found by its ID or digest.
    pub artifact: Artifact,
    /// Digest of the manifest or index in the entry.
    pub(crate) entry: ManifestDigest,
}

impl Image {
    /// Parses an image from the bytes of its manifest, and from the configuration that `read`
    /// returns.
    ///
    /// # Errors
    ///
    /// Fails if `read` does, or if a document is invalid.
    pub fn of_documents(bytes: &[u8], read: impl FnOnce(&ImageId) -> Result<Vec<u8>>) -> Result<Image> {
        let manifest_digest = ManifestDigest::of(bytes);
        let manifest = parse_manifest(bytes).map_err(StoreError::damaged(format!("manifest {manifest_digest}")))?;
        let id = digest(manifest.config())?.of_config();
        let config = serde_json::from_slice(&read(&id)?).map_err(StoreError::damaged(format!("configuration {id}")))?;
        Ok(Image { manifest_digest, manifest_size: bytes.len() as u64, manifest, id, config, entry: None })
    }

    /// Returns the platform that the entry of an index states, or else that of the configuration.
    pub fn platform(&self) -> Platform {
        self.entry.as_ref().and_then(Platform::of).unwrap_or_else(|| self.config.platform())
    }

    /// Returns the layers with their diffIDs, lowest first.
    ///
    /// # Errors
    ///
    /// Fails if manifest and configuration have different numbers of layers.
    pub fn layers(&self) -> Result<Vec<(Descriptor, DiffId)>> {
        let layers = self.manifest.layers();
        if layers.len() != self.config.rootfs.diff_ids.len() {
            let reason = format!(
                "its manifest and configuration disagree on the number of layers: {} and {}",
                layers.len(),
                self.config.rootfs.diff_ids.len()
            );
            return Err(StoreError::damaged(format!("image {}", self.id.short()))(reason));
        }
        Ok(layers.iter().cloned().zip(self.config.rootfs.diff_ids.iter().copied()).collect())
    }
}

/// The images of a store and their names.
#[derive(Clone, Copy)]
pub struct Images<'s> {
    pub(crate) store: &'s Store,
}

impl Images<'_> {
    /// Reads the index.
    fn index(&self) -> Result<ImageIndex> {
        self.store.read("index.json")
    }

    /// Reads the entries of an index one by one. Returns the valid ones, and a description of each
    /// invalid one.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be read, or if it is not a list of entries.
    pub(crate) fn salvage(&self) -> Result<(Vec<Descriptor>, Vec<InvalidEntry>)> {
        #[derive(Deserialize)]
        struct Entries {
            manifests: Vec<serde_json::Value>,
        }
        let (mut valid, mut invalid) = (Vec::new(), Vec::new());
        for entry in self.store.read::<Entries>("index.json")?.manifests {
            let name = entry["annotations"][REF_NAME].as_str().map(str::to_string);
            match descriptor_in(entry) {
                Ok(d) => valid.push(d),
                Err(source) => invalid.push(InvalidEntry { name, source }),
            }
        }
        Ok((valid, invalid))
    }

    /// Replaces the index by one with these entries.
    pub(crate) fn replace_index(&self, entries: Vec<Descriptor>) -> Result<()> {
        let _lock = self.lock_index()?;
        // One write: an index that was empty for a moment would lose all names in a crash.
        let mut index: ImageIndex = serde_json::from_slice(EMPTY_INDEX).map_err(StoreError::damaged("index.json"))?;
        index.set_manifests(entries);
        self.store.write_durable(".", "index.json", &index)
    }

    /// Locks the index, and the notes on its names.
    pub(crate) fn lock_index(&self) -> Result<File> {
        self.store.lock_file("index.lock")
    }

    /// Reads, changes and replaces the index while holding its lock.
    pub(crate) fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>) -> Result<T> {
        self.change_index_and(change, |_| Ok(()))
    }

    /// Does the same, and calls `then` with the result before it releases the lock.
    pub(crate) fn change_index_and<T>(
        &self,
        change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>,
        then: impl FnOnce(&T) -> Result<()>,
    ) -> Result<T> {
        let _lock = self.lock_index()?;
        let mut index = self.index()?;
        let mut entries = index.manifests().clone();
        let result = change(&mut entries)?;
        if entries != *index.manifests() {
            index.set_manifests(entries);
            self.store.write_durable(".", "index.json", &index)?;
        }
        then(&result)?;
        Ok(result)
    }

    /// Returns all entries in the order of the index.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be read.
    pub fn list(&self) -> Result<Vec<NamedImage>> {
        self.entries(self.index()?.manifests())
    }

    /// Returns these entries of the index.
    pub(crate) fn entries(&self, descriptors: &[Descriptor]) -> Result<Vec<NamedImage>> {
        descriptors.iter().map(|d| self.entry_in(d)).collect()
    }

    /// Returns the entries of an index, as [`IndexEntries::of`] does.
    fn entries_in(&self, bytes: &[u8]) -> Option<IndexEntries> {
        IndexEntries::of(bytes, &|digest| self.store.blobs().read_document(&digest.blob()).ok())
    }

    fn entry_in(&self, d: &Descriptor) -> Result<NamedImage> {
        let digest = manifest_in(d)?;
        let single = NamedImage { name: name_of(d), manifest: digest, artifact: Artifact::Image(digest) };
        if *d.media_type() != MediaType::ImageIndex {
            return Ok(single);
        }
        // An index that cannot be read is treated as an image, whose use reports the damage.
        let entries = self.store.blobs().read_document(&digest.blob()).ok().and_then(|bytes| self.entries_in(&bytes));
        let Some(entries) = entries else { return Ok(single) };
        let (host, platforms) = (Platform::host(), entries.platforms());
        let own = platforms.iter().find(|(_, platform)| platform.as_ref().is_some_and(|platform| host.runs(platform)));
        let Some((manifest, _)) = own.or(platforms.first()) else { return Ok(single) };
        let artifact = entries.artifact(digest);
        Ok(NamedImage { manifest: *manifest, artifact, ..single })
    }

    /// Returns the platforms that the names will no longer refer to once they are given to these
    /// complete images and indexes. If a name occurs several times, the last occurrence applies.
    ///
    /// # Errors
    ///
    /// Fails if the index of the store or a document of a new image cannot be read.
    pub fn platforms_lost_by(&self, named: &[(ManifestDigest, Option<Reference>)]) -> Result<Vec<LostPlatforms>> {
        let names = named.iter().filter_map(|(manifest, name)| Some((name.as_ref()?.to_string(), manifest)));
        let given: HashMap<String, &ManifestDigest> = names.collect();
        let platform = |manifest: &ManifestDigest| Ok(self.image(manifest)?.config.platform());
        let mut lost = Vec::new();
        for entry in self.list()? {
            let (Some(name), Artifact::Index { images: old, .. }) = (entry.name, &entry.artifact) else { continue };
            let Some(new) = given.get(&name.to_string()) else { continue };
            let new = self.artifact(new)?.images().iter().map(platform).collect::<Result<Vec<_>>>()?;
            // A damaged image could not be used, so its platform is not lost.
            let mut platforms: Vec<Platform> = old.iter().filter_map(|manifest| platform(manifest).ok()).collect();
            platforms.retain(|platform| !new.contains(platform));
            if !platforms.is_empty() {
                lost.push(LostPlatforms { name, platforms });
            }
        }
        Ok(lost)
    }

    /// Returns the content with that digest: an image, or an index of images that are all complete.
    fn artifact(&self, digest: &ManifestDigest) -> Result<Artifact> {
        let artifact = match self.entries_in(&self.store.blobs().read_document(&digest.blob())?) {
            Some(entries) => entries.artifact(*digest),
            None => Artifact::Image(*digest),
        };
        artifact.images().iter().try_for_each(|manifest| self.image(manifest).map(drop))?;
        Ok(artifact)
    }

    /// Removes entries from the index, and the notes on the pulls of their names.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be read or written.
    pub fn forget(&self, gone: &[NamedImage]) -> Result<()> {
        let gone: HashSet<(Option<String>, ManifestDigest)> =
            gone.iter().map(|g| (g.name.as_ref().map(Reference::to_string), *g.artifact.digest())).collect();
        let remove = |entries: &mut Vec<Descriptor>| {
            let is_gone = |d: &mut Descriptor| {
                let name = name_of(d).map(|name| name.to_string());
                manifest_in(d).is_ok_and(|manifest| gone.contains(&(name, manifest)))
            };
            Ok(entries.extract_if(.., is_gone).filter_map(|d| name_of(&d)).collect::<Vec<Reference>>())
        };
        self.change_index_and(remove, |names| self.forget_names(names)).map(drop)
    }

    /// Returns the image with that manifest.
    ///
    /// # Errors
    ///
    /// Fails if a document is missing or damaged.
    pub fn image(&self, manifest_digest: &ManifestDigest) -> Result<Image> {
        let bytes = self.store.blobs().read_document(&manifest_digest.blob())?;
        Image::of_documents(&bytes, |id| self.store.blobs().read_document(&id.blob()))
    }

    /// Returns the images of an artifact, those of an index with their entries.
    ///
    /// # Errors
    ///
    /// Fails if a document is missing or damaged.
    pub fn images_of(&self, artifact: &Artifact) -> Result<Vec<Image>> {
        let entries = match artifact {
            Artifact::Image(_) => Vec::new(),
            Artifact::Index { digest, .. } => {
                let entries = self.entries_in(&self.store.blobs().read_document(&digest.blob())?);
                entries.map(|entries| entries.images).unwrap_or_default()
            }
        };
        let with_entry = |(at, manifest): (usize, &ManifestDigest)| -> Result<Image> {
            let is_it = |entry: &&Descriptor| manifest_in(entry).is_ok_and(|digest| digest == *manifest);
            Ok(Image { entry: entries.get(at).filter(is_it).cloned(), ..self.image(manifest)? })
        };
        artifact.images().iter().enumerate().map(with_entry).collect()
    }

    /// Returns the entries of an index: those of the images, then those of attestations and other
    /// artifacts. Returns none for a single image.
    ///
    /// # Errors
    ///
    /// Fails if the index is missing or damaged.
    pub fn index_entries(&self, artifact: &Artifact) -> Result<Vec<Descriptor>> {
        let Artifact::Index { digest, .. } = artifact else { return Ok(Vec::new()) };
        let entries = self.entries_in(&self.store.blobs().read_document(&digest.blob())?);
        Ok(entries.map(|entries| [entries.images, entries.attachments].concat()).unwrap_or_default())
    }

    /// Returns the image that a Dockerfile refers to by `name`.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoImage`] if there is none, or if a document is damaged.
    pub fn named_image(&self, name: &ImageName) -> Result<Image> {
        self.named_image_for(name, &Platform::host())
    }

    /// Returns the image that a Dockerfile refers to by `name`. If the name refers to images of
    /// several platforms, returns that of `platform`, if there is one.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoImage`] if there is none, or if a document is damaged.
    pub fn named_image_for(&self, name: &ImageName, platform: &Platform) -> Result<Image> {
        let manifest = match name {
            ImageName::Reference(reference) => match self.entry_of(self.list()?, reference) {
                Some(NamedImage { manifest, artifact, .. }) => {
                    Some(self.one_of(&artifact, platform)?.unwrap_or(manifest))
                }
                None => None,
            },
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

    /// Returns the image of an index for a platform.
    fn one_of(&self, artifact: &Artifact, platform: &Platform) -> Result<Option<ManifestDigest>> {
        if let Artifact::Image(_) = artifact {
            return Ok(None);
        }
        let images = self.images_of(artifact)?;
        let found = images.iter().find(|image| platform.accepts(&image.platform()));
        Ok(found.map(|image| image.manifest_digest))
    }

    /// Returns the manifest or index among these entries that has a digest of another algorithm.
    fn digest_of_checksum(&self, entries: &[NamedImage], checksum: &Checksum) -> Option<ManifestDigest> {
        let artifacts = entries.iter().map(|entry| &entry.artifact);
        let mut digests = artifacts.flat_map(|artifact| [&[*artifact.digest()], artifact.images()].concat());
        digests.find(|digest| {
            let document = self.store.blobs().read_document(&digest.blob());
            document.is_ok_and(|bytes| Checksum::of(checksum.algorithm(), &bytes) == *checksum)
        })
    }

    /// Returns the entry that a reference denotes. If it contains a digest, only the digest counts,
    /// which may be that of an image in an index.
    fn entry_of(&self, entries: Vec<NamedImage>, reference: &Reference) -> Option<NamedImage> {
        let digest = match (reference.digest(), reference.checksum()) {
            (Some(digest), _) => digest,
            (None, Some(checksum)) => &self.digest_of_checksum(&entries, checksum)?,
            (None, None) => return entries.into_iter().find(|entry| entry.name.as_ref() == Some(reference)),
        };
        if let Some(entry) = entries.iter().find(|entry| entry.artifact.digest() == digest) {
            return Some(entry.clone());
        }
        let entry = entries.into_iter().find(|entry| entry.artifact.images().contains(digest))?;
        Some(NamedImage { manifest: *digest, artifact: Artifact::Image(*digest), ..entry })
    }

    /// Returns the manifest with that digest, or else that of an image with that ID. The manifest
    /// need not be in the index: images of OCI layouts on disk are not.
    fn manifest_of(&self, digest: &ImageDigest) -> Result<Option<ManifestDigest>> {
        let (entries, manifest) = (self.list()?, digest.as_manifest());
        if let Some(entry) = entries.iter().find(|entry| *entry.artifact.digest() == manifest) {
            return Ok(Some(entry.manifest));
        }
        let mut images = entries.iter().flat_map(|entry| entry.artifact.images());
        // Ignore images that are damaged.
        let is_it = |m: &&ManifestDigest| **m == manifest || self.image(m).is_ok_and(|image| digest.is_id(&image.id));
        if let Some(found) = images.find(is_it) {
            return Ok(Some(*found));
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
        self.find(wanted).map(|found| (found.name, found.image))
    }

    /// Finds an image like [`Images::find_image`], with the content of its name.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoImage`] or [`StoreError::Ambiguous`], or if a document is
    /// damaged.
    pub fn find(&self, wanted: &str) -> Result<FoundImage> {
        let entries = self.list()?;
        if let Ok(reference) = wanted.parse::<Reference>()
            && let Some(NamedImage { manifest, artifact, .. }) = self.entry_of(entries.clone(), &reference)
        {
            let (image, entry) = (self.image(&manifest)?, *artifact.digest());
            return Ok(FoundImage { name: Some(reference), image, artifact, entry });
        }
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut found = self.begin_with(&entries, hex)?;
            match found.len() {
                0 => {}
                1 => return Ok(found.remove(0)),
                _ => {
                    let found = found.iter().map(|found| found.image.id.short()).collect::<Vec<_>>().join(", ");
                    return Err(StoreError::Ambiguous { name: wanted.to_string(), found });
                }
            }
        }
        Err(StoreError::NoImage(wanted.to_string()))
    }

    /// Returns the images whose ID or digest begins with `hex`, each once.
    fn begin_with(&self, entries: &[NamedImage], hex: &str) -> Result<Vec<FoundImage>> {
        let mut found: Vec<FoundImage> = Vec::new();
        for NamedImage { manifest, artifact, .. } in entries {
            let entry = *artifact.digest();
            for one in artifact.images() {
                let image = self.image(one)?;
                // The digest of an index refers to the whole index.
                let whole = one == manifest && entry.hex().starts_with(hex);
                let fits = whole || image.id.hex().starts_with(hex) || one.hex().starts_with(hex);
                if fits && !found.iter().any(|f| f.image.id == image.id) {
                    let artifact = if whole { artifact.clone() } else { Artifact::Image(*one) };
                    found.push(FoundImage { name: None, image, artifact, entry });
                }
            }
        }
        Ok(found)
    }

    /// Names an image or index, moving the name from another one if necessary. Without a name, it
    /// is kept as a dangling image.
    ///
    /// # Errors
    ///
    /// Fails if the image is incomplete or the index cannot be written.
    pub fn tag(&self, manifest: &ManifestDigest, name: Option<&Reference>) -> Result<()> {
        self.artifact(manifest)?;
        self.tag_all(&[(*manifest, name.cloned())])
    }

    /// Names several images or indexes. The index of the store is written once, with all names or
    /// none.
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
        let mut known: HashMap<ManifestDigest, Descriptor> = HashMap::new();
        for (digest, _) in named {
            if !known.contains_key(digest) {
                let bytes = self.store.blobs().read_document(&digest.blob())?;
                let is_index = self.entries_in(&bytes).is_some();
                let kind = if is_index { MediaType::ImageIndex } else { MediaType::ImageManifest };
                known.insert(*digest, descriptor(kind, &digest.blob(), bytes.len() as u64));
            }
        }
        let entry = |digest: &ManifestDigest| known[digest].clone();
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
            keep_dangling(&mut kept, old.into_iter().chain(named.iter().map(|(manifest, _)| entry(manifest))))?;
            *entries = kept;
            Ok(())
        })
    }

    /// Takes names from the images or indexes that have them: the names refer to other images now,
    /// which the store does not have. An image that loses its last name is kept as a dangling one.
    ///
    /// # Errors
    ///
    /// Fails if the index cannot be written.
    pub fn release_names(&self, names: &[Reference]) -> Result<()> {
        let is_released = |d: &Descriptor| name_of(d).is_some_and(|name| names.contains(&name));
        if !self.index()?.manifests().iter().any(is_released) {
            return Ok(());
        }
        self.change_index(|entries| {
            let (old, mut kept): (Vec<_>, Vec<_>) = entries.drain(..).partition(is_released);
            keep_dangling(&mut kept, old)?;
            *entries = kept;
            Ok(())
        })
    }
}

/// Adds entries without names for those images that no other entry refers to.
fn keep_dangling(entries: &mut Vec<Descriptor>, unnamed: impl IntoIterator<Item = Descriptor>) -> Result<()> {
    let mut there: HashSet<ManifestDigest> = entries.iter().filter_map(|d| manifest_in(d).ok()).collect();
    for mut d in unnamed {
        if there.insert(manifest_in(&d)?) {
            d.set_annotations(None);
            entries.push(d);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, message_row};

    use super::*;

    #[test]
    fn damaged_images_are_worded_as_recorded() {
        let of = |manifest: &str, config: &str| {
            let image = Image::of_documents(manifest.as_bytes(), |_| Ok(config.as_bytes().to_vec()));
            image.and_then(|image| image.layers().map(drop)).unwrap_err()
        };
        let manifest = |config: &str| {
            let config =
                format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}}"#);
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#)
        };
        let valid = manifest(&ImageId::of(b"configuration").to_string());
        let layer = DiffId::of(b"layer");
        let uneven =
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#);
        let rows = [
            ("a manifest that is not JSON", of("{", "")),
            ("a configuration that is not JSON", of(&valid, "{")),
            ("a descriptor with another algorithm", of(&manifest(&format!("sha512:{}", "a".repeat(128))), "")),
            ("different numbers of layers", of(&valid, &uneven)),
        ];
        let rows = rows.map(|(name, e)| message_row(name, &e, e.remedy()));
        assert_recorded!("damaged-images", rows.concat());
    }
}
