//! Verification and repair of the store's content.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;

use rbuild_image::{BlobDigest, ManifestDigest, digest_of};
use rbuild_linux::RootDir;
use rbuild_remedy::sentence;

use crate::cache::records::{Record, ResultFile};
use crate::error::{Result, StoreError};
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::prune::Gc;
use crate::images::{Image, digest};
use crate::workspace::sweep;

/// The result of [`Gc::check`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Number of blobs.
    pub blobs: u64,
    /// Total size of the blobs in bytes.
    pub bytes: u64,
    /// Number of index entries.
    pub images: u64,
    /// Number of cache documents.
    pub records: u64,
    /// Problems, one sentence each.
    pub problems: Vec<String>,
}

/// The blobs of the store, as far as they have been verified. Other processes add blobs while they
/// are read.
struct CheckedBlobs {
    dir: RootDir,
    /// The names of intact blobs.
    intact: RefCell<HashSet<String>>,
    /// The names of damaged ones.
    damaged: HashSet<String>,
}

impl CheckedBlobs {
    fn new(dir: RootDir) -> CheckedBlobs {
        CheckedBlobs { dir, intact: RefCell::default(), damaged: HashSet::new() }
    }

    /// Returns true if a blob exists and has its digest. One that came after the others were
    /// verified is verified now.
    fn is_intact(&self, blob: &BlobDigest) -> bool {
        let name = blob.hex();
        if self.intact.borrow().contains(&name) {
            return true;
        }
        let is_new =
            !self.damaged.contains(&name) && self.digest_of(OsStr::new(&name)).is_ok_and(|(found, _)| found == name);
        if is_new {
            self.intact.borrow_mut().insert(name);
        }
        is_new
    }

    /// Returns the digest of a file's bytes in hexadecimal, and their number.
    fn digest_of(&self, name: &OsStr) -> Result<(String, u64)> {
        let mut file = self.dir.open_name(name)?;
        let (mut hasher, mut bytes) = (rbuild_image::Hasher::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish::<BlobDigest>().hex(), bytes)),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.dir.error("read", name, e).into()),
            }
        }
    }
}

impl Gc<'_> {
    /// Reads every blob of an image and verifies digests and diffIDs.
    ///
    /// # Errors
    ///
    /// Fails if a blob is missing or damaged.
    pub fn verify_image(&self, image: &Image) -> Result<()> {
        self.store.blobs().read_document(&image.manifest_digest.blob())?;
        self.store.blobs().read_document(&image.id.blob())?;
        for (layer, diff_id) in image.layers()? {
            let digest = digest(&layer)?;
            self.store.blobs().read_layer(&digest, &diff_id)?;
        }
        Ok(())
    }

    /// Verifies the whole store: every blob against its name, and every document against its
    /// references. With `repair`, which takes the exclusive lock, broken content is removed:
    /// damaged blobs, names of incomplete images, and cache records whose files are gone. Files of
    /// trees have no checksums and are not read.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read, or with [`crate::StoreError::Busy`] if it is to be
    /// repaired while another process uses it.
    #[tracing::instrument(target = "store", name = "fsck", level = "debug", skip(self))]
    pub fn check(&self, repair: bool) -> Result<Checked> {
        let alone = if repair { Some(ExclusiveLock::take(self.store)?) } else { None };
        if repair {
            self.store.remove_unpublished()?;
            sweep(self.store, &self.store.dir("tmp")?)?;
        }
        let mut checked = Checked::default();
        let blobs = self.check_blobs(repair, &mut checked)?;
        self.check_images(repair, &blobs, &mut checked)?;
        self.check_documents::<Record>(repair, "records", &mut checked, |r| self.store.lazy_trees().has_tree(&r.tree))?;
        // The result of a removed image remains, and is ignored.
        self.check_documents::<ResultFile>(repair, "results", &mut checked, |r| {
            Ok(blobs.is_intact(&r.manifest.blob()) || !self.store.blobs().has_blob(&r.manifest.blob())?)
        })?;
        alone.map_or(Ok(()), ExclusiveLock::end)?;
        Ok(checked)
    }

    /// Verifies all blobs.
    fn check_blobs(&self, repair: bool, checked: &mut Checked) -> Result<CheckedBlobs> {
        let mut blobs = CheckedBlobs::new(self.store.dir("blobs/sha256")?);
        for entry in blobs.dir.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            checked.blobs += 1;
            let problem = match blobs.digest_of(&entry.name) {
                Ok((found, bytes)) => {
                    checked.bytes += bytes;
                    if found == name {
                        blobs.intact.get_mut().insert(name);
                        continue;
                    }
                    format!("blob sha256:{name} is corrupt: its digest is sha256:{found}")
                }
                Err(e) => format!("cannot read blob sha256:{name}: {}", sentence(&e)),
            };
            checked.problems.push(problem);
            blobs.damaged.insert(name);
            if repair {
                blobs.dir.remove_file(&entry.name)?;
            }
        }
        Ok(blobs)
    }

    fn check_images(&self, repair: bool, blobs: &CheckedBlobs, checked: &mut Checked) -> Result<()> {
        let (mut broken, mut known) = (Vec::new(), HashMap::new());
        let index = match self.store.images().index() {
            Err(damage @ StoreError::Damaged { .. }) => {
                checked.problems.push(format!("{damage}; the names of all images are lost"));
                return if repair { self.store.images().clear() } else { Ok(()) };
            }
            index => index?,
        };
        for entry in self.store.images().entries(&index)? {
            checked.images += 1;
            let name = entry.name.as_ref().map_or_else(|| entry.manifest.to_string(), |n| n.familiar());
            // An image may have many names.
            let lack = |manifest: &ManifestDigest| self.lacks(manifest, blobs);
            let lacks = entry.artifact.images().iter().find_map(|m| known.entry(*m).or_insert_with(|| lack(m)).clone());
            if let Some(why) = lacks {
                checked.problems.push(format!("image {name} is incomplete: {why}"));
                broken.push(entry);
            }
        }
        if repair && !broken.is_empty() {
            self.store.images().forget(&broken)?;
        }
        Ok(())
    }

    /// Returns a description of the problem with an image, if there is one.
    fn lacks(&self, manifest: &ManifestDigest, blobs: &CheckedBlobs) -> Option<String> {
        let image = match self.store.images().image(manifest) {
            Ok(image) => image,
            Err(e) => return Some(sentence(&e)),
        };
        let layers = image.layers().unwrap_or_default();
        let needed = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        if let Some(missing) = needed.chain([image.id.blob(), manifest.blob()]).find(|d| !blobs.is_intact(d)) {
            return Some(format!("its blob {missing} is missing or damaged"));
        }
        let wrong = layers.is_empty() && !image.manifest.layers().is_empty();
        wrong.then(|| "its manifest and configuration have different numbers of layers".to_string())
    }

    fn check_documents<T: serde::de::DeserializeOwned>(
        &self,
        repair: bool,
        dir: &str,
        checked: &mut Checked,
        whole: impl Fn(&T) -> Result<bool>,
    ) -> Result<()> {
        let handle = self.store.dir(dir)?;
        for entry in self.store.documents(dir)? {
            checked.records += 1;
            let path = format!("{dir}/{}", entry.name.to_string_lossy());
            let problem = match self.store.read_if_any::<T>(&path) {
                Ok(Some(document)) if !whole(&document)? => format!("{path} refers to missing content"),
                // Whole, or removed meanwhile.
                Ok(_) => continue,
                Err(e) => format!("cannot read {path}: {}", sentence(&e)),
            };
            checked.problems.push(problem);
            if repair {
                handle.remove_file(OsStr::new(&entry.name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{ImageConfig, MediaType, Platform, Reference, descriptor, manifest};

    use super::*;
    use crate::ids::{BuildId, ImageKey};
    use crate::staging::Staging;
    use crate::store::Store;
    use crate::workspace::Workspace;

    /// One invalid entry does not cost the names of all images.
    #[test]
    fn only_an_index_that_cannot_be_parsed_is_cleared() {
        let place = std::env::temp_dir().join(format!("rbuild-fsck-index-{}", std::process::id()));
        let store = Store::open(&place).unwrap();
        let index = place.join("index.json");
        let entry = |digest: &str| {
            format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1}}"#)
        };
        let entries = [entry(&format!("sha256:{}", "a".repeat(64))), entry(&format!("sha512:{}", "a".repeat(128)))];
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        std::fs::write(&index, &text).unwrap();
        assert!(matches!(store.gc().check(true), Err(StoreError::Damaged { .. })));
        assert_eq!(std::fs::read_to_string(&index).unwrap(), text);
        std::fs::write(&index, &text[..text.len() - 1]).unwrap();
        let problems = store.gc().check(true).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].ends_with("the names of all images are lost"), "{problems:?}");
        assert!(store.images().list().unwrap().is_empty());
        drop(store);
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn content_added_during_verification_is_not_damage() {
        let place = std::env::temp_dir().join(format!("rbuild-fsck-{}", std::process::id()));
        let store = Store::open(&place).unwrap();
        let mut checked = Checked::default();
        let before = store.gc().check_blobs(false, &mut checked).unwrap();
        let work = Workspace::open(&store).unwrap();
        let staging = Staging::open(&store, &work).unwrap();
        let (id, size) = staging.put_document(&ImageConfig::empty(&Platform::host())).unwrap();
        let manifest = manifest(descriptor(MediaType::ImageConfig, &id, size), Vec::new());
        let digest = staging.put_document(&manifest).unwrap().0.of_manifest();
        let name: Reference = "a:1".parse().unwrap();
        staging.keep("load", &[digest], &[(digest, Some(name))]).unwrap();
        store.records().put_result(&ImageKey::of(b"key"), &digest, &BuildId::of_command("build")).unwrap();
        let problems = |blobs: &CheckedBlobs| {
            let mut checked = Checked::default();
            store.gc().check_images(false, blobs, &mut checked).unwrap();
            checked.problems.len()
        };
        assert_eq!(problems(&before), 0);
        std::fs::write(place.join("blobs/sha256").join(id.hex()), "damaged").unwrap();
        assert_eq!(problems(&before), 1, "its configuration is read again");
        assert_eq!(store.gc().check(false).unwrap().problems.len(), 2);
        drop((work, store));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
