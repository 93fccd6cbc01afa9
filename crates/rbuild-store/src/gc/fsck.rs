//! Verification and repair of the store's content.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;

use rbuild_image::{BlobDigest, ManifestDigest, digest_of};

use crate::cache::records::{Record, ResultFile};
use crate::error::Result;
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
        if repair {
            self.store.lock_alone()?;
            self.store.remove_unpublished()?;
            sweep(self.store, &self.store.dir("tmp")?)?;
        }
        let mut checked = Checked::default();
        let sound = self.check_blobs(repair, &mut checked)?;
        self.check_images(repair, &sound, &mut checked)?;
        self.check_documents::<Record>(repair, "records", &mut checked, |r| self.store.lazy_trees().has_tree(&r.tree))?;
        // The result of a removed image remains, and is ignored.
        self.check_documents::<ResultFile>(repair, "results", &mut checked, |r| {
            Ok(sound.contains(&r.manifest.hex()) || !self.store.blobs().has_blob(&r.manifest.blob())?)
        })?;
        Ok(checked)
    }

    /// Returns the names of the intact blobs.
    fn check_blobs(&self, repair: bool, checked: &mut Checked) -> Result<HashSet<String>> {
        let dir = self.store.dir("blobs/sha256")?;
        let mut sound = HashSet::new();
        let mut buffer = vec![0; 1 << 20];
        for entry in dir.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            let mut file = dir.open_name(&entry.name)?;
            let mut hasher = rbuild_image::Hasher::new();
            let read = loop {
                match file.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(n) => {
                        hasher.update(&buffer[..n]);
                        checked.bytes += n as u64;
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => break Err(e),
                }
            };
            checked.blobs += 1;
            let found = hasher.finish::<BlobDigest>().hex();
            let problem = match read {
                Ok(()) if found == name => {
                    sound.insert(name);
                    continue;
                }
                Ok(()) => format!("the blob {name} is damaged: its bytes have the digest {found}"),
                Err(e) => format!("the blob {name} cannot be read: {e}"),
            };
            checked.problems.push(problem);
            if repair {
                dir.remove_file(&entry.name)?;
            }
        }
        Ok(sound)
    }

    fn check_images(&self, repair: bool, sound: &HashSet<String>, checked: &mut Checked) -> Result<()> {
        let (mut broken, mut known) = (Vec::new(), HashMap::new());
        for entry in self.store.images().list()? {
            checked.images += 1;
            let name = entry.name.as_ref().map_or_else(|| entry.manifest.to_string(), |n| n.familiar());
            // An image may have many names.
            let lack = |manifest: &ManifestDigest| self.lacks(manifest, sound);
            let lacks = entry.artifact.images().iter().find_map(|m| known.entry(*m).or_insert_with(|| lack(m)).clone());
            if let Some(why) = lacks {
                checked.problems.push(format!("the image {name} is not whole: {why}"));
                broken.push(entry);
            }
        }
        if repair && !broken.is_empty() {
            self.store.images().forget(&broken)?;
        }
        Ok(())
    }

    /// Returns a description of the problem with an image, if there is one.
    fn lacks(&self, manifest: &ManifestDigest, sound: &HashSet<String>) -> Option<String> {
        let image = match self.store.images().image(manifest) {
            Ok(image) => image,
            Err(e) => return Some(e.to_string()),
        };
        let layers = image.layers().unwrap_or_default();
        let needed = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        if let Some(missing) = needed.chain([image.id.blob(), manifest.blob()]).find(|d| !sound.contains(&d.hex())) {
            return Some(format!("its blob {missing} is missing or damaged"));
        }
        let wrong = layers.is_empty() && !image.manifest.layers().is_empty();
        wrong.then(|| "its manifest and its configuration do not agree".to_string())
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
            let problem = match self.store.read::<T>(&path) {
                Ok(document) if whole(&document)? => continue,
                Ok(_) => format!("{path} names something that is gone"),
                Err(e) => format!("{path} cannot be read: {e}"),
            };
            checked.problems.push(problem);
            if repair {
                handle.remove_file(OsStr::new(&entry.name))?;
            }
        }
        Ok(())
    }
}
