//! Cache records: results of steps and images by their cache keys.

use std::sync::atomic::Ordering;

use rbuild_image::{DiffId, ManifestDigest};
use rbuild_linux::{OwnerMode, write_atomic};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError, naming};
use crate::ids::{BuildId, CacheKey, HashesName, ImageKey, ResultId};
use crate::modes;
use crate::store::Store;
use crate::trees::id::{TreeId, document_of};

/// The origin of a result that was not made in this store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordOrigin {
    /// Name of the cache outside the store, without a login.
    #[serde(rename = "origin")]
    pub cache: String,
    /// Name of the machine that made the result, if the cache states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Time of the import in seconds since the Unix epoch; 0 for one by an earlier version.
    #[serde(default)]
    pub imported: i64,
}

/// The origin of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerOrigin {
    /// Digest of the uncompressed layer.
    pub layer: DiffId,
    /// The cache that it came from.
    pub origin: RecordOrigin,
}

/// The result of a step with a certain key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The step's files.
    pub tree: TreeId,
    /// The result, which dependent steps hash into their keys.
    pub result: ResultId,
    /// Creation time of the files in seconds since the Unix epoch.
    pub created: i64,
    /// Another key under which the same files are recorded, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<CacheKey>,
    /// The cache outside the store that it came from, if it was not made here.
    #[serde(flatten)]
    pub origin: Option<RecordOrigin>,
    boot: String,
    build: BuildId,
}

/// A step that is recorded.
#[derive(Debug, Clone, Copy)]
pub struct RecordedStep<'a> {
    /// The step's files, which must exist.
    pub tree: &'a TreeId,
    /// The result, which dependent steps hash into their keys.
    pub result: ResultId,
    /// Creation time of the files in seconds since the Unix epoch.
    pub created: i64,
    /// The cache outside the store that it comes from, if it was not made here.
    pub origin: Option<&'a RecordOrigin>,
}

/// The record of a step that was built with the other kind of owners. Its result is as valid as any
/// other, but this store's builder can use its files only after `LazyTrees::adopt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRecord(pub(crate) Record);

impl ForeignRecord {
    /// Returns the result, which dependent steps hash into their keys.
    pub fn result(&self) -> ResultId {
        self.0.result
    }

    /// Returns the creation time of the files in seconds since the Unix epoch.
    pub fn created(&self) -> i64 {
        self.0.created
    }

    /// Returns another key under which the same files are recorded, if there is one.
    pub fn shared(&self) -> Option<&CacheKey> {
        self.0.shared.as_ref()
    }

    /// Returns the cache outside the store that it came from, if it was not made here.
    pub fn origin(&self) -> Option<&RecordOrigin> {
        self.0.origin.as_ref()
    }

    /// Returns the key to lock while the step with the key `key` is built.
    pub fn lock_key<'a>(&'a self, key: &'a CacheKey) -> &'a CacheKey {
        self.shared().unwrap_or(key)
    }

    /// Returns the tree, whose notes (such as its `SecretVerdicts::verdict`) are valid for any kind
    /// of owners.
    pub fn tree_of_notes(&self) -> &TreeId {
        &self.0.tree
    }
}

/// The image of a result that was finished before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedImage {
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    /// True if it was synced to disk. False while the build that made it runs, and if that build
    /// failed afterwards: a power cut may then damage it.
    pub is_synced: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ResultFile {
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    boot: String,
    build: BuildId,
}

/// Maximum size in bytes of a file of cached digests; larger ones are not read.
const MAX_HASHES: u64 = 1 << 30;

/// The cache records of steps, and the inputs of their keys.
#[derive(Clone, Copy)]
pub struct Records<'s> {
    pub(crate) store: &'s Store,
}

impl Records<'_> {
    /// Returns the record of a key, if it is valid and its tree exists. Each kind of owners has
    /// separate records.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn record(&self, key: &CacheKey) -> Result<Option<Record>> {
        self.record_with(key, self.store.owners())
    }

    /// Returns the record of a key as [`Self::record`] does, unless an equal step was executed
    /// later under the key that both share. Equal steps of a build share one execution.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn latest_record(&self, key: &CacheKey) -> Result<Option<Record>> {
        let Some(record) = self.record(key)? else { return Ok(None) };
        Ok(self.is_latest(&record)?.then_some(record))
    }

    /// Returns true unless an equal step was executed since that record was made.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn is_latest(&self, record: &Record) -> Result<bool> {
        let equal = record.shared.map_or(Ok(None), |shared| self.record(&shared))?;
        Ok(equal.is_none_or(|equal| equal.tree == record.tree))
    }

    /// Returns the record of a key for the other kind of owners, if it is valid and its tree
    /// exists.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn foreign_record(&self, key: &CacheKey) -> Result<Option<ForeignRecord>> {
        Ok(self.record_with(key, self.store.owners().other())?.map(ForeignRecord))
    }

    fn record_with(&self, key: &CacheKey, owners: OwnerMode) -> Result<Option<Record>> {
        let document = document_of(&key.hex(), owners);
        let record = self.valid_record(&document, owners)?;
        if record.is_some() {
            self.store.gc().note_use("records", &document)?;
        }
        Ok(record)
    }

    /// Returns the record in a document, if it is valid and its tree exists.
    pub(crate) fn valid_record(&self, document: &str, owners: OwnerMode) -> Result<Option<Record>> {
        let Some(record) = self.store.read_if_whole::<Record>(&format!("records/{document}"))? else {
            return Ok(None);
        };
        let there = self.trusted(&record.boot, &record.build)?
            && self.store.lazy_trees().has_tree(&record.tree)?
            && (owners != self.store.owners() || self.store.trees().is_usable(&record.tree)?);
        Ok(there.then_some(record))
    }

    fn trusted(&self, boot: &str, build: &BuildId) -> Result<bool> {
        Ok(boot == self.store.boot() || self.is_synced(build)?)
    }

    fn is_synced(&self, build: &BuildId) -> Result<bool> {
        Ok(self.store.root.exists(format!("builds/{build}.synced"))?)
    }

    /// Stores the record of a key, written by `build`. The same files are also recorded under the
    /// key `shared`, if it is given.
    #[tracing::instrument(target = "store", name = "record", level = "debug", skip_all, fields(key = %key.short()))]
    pub(crate) fn put_record(
        &self,
        key: &CacheKey,
        shared: Option<CacheKey>,
        step: &RecordedStep<'_>,
        build: &BuildId,
    ) -> Result<()> {
        let RecordedStep { tree, result, created, origin } = *step;
        let (tree, boot, build) = (tree.clone(), self.store.boot().to_string(), build.clone());
        let record = Record { tree, result, created, shared, origin: origin.cloned(), boot, build };
        self.store.unsynced.store(true, Ordering::Relaxed);
        self.store.write("records", &document_of(&key.hex(), self.store.owners()), &record)
    }

    /// Returns the origins of layers that were imported, each once.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn origins(&self, layers: &[DiffId]) -> Result<Vec<LayerOrigin>> {
        let mut found: Vec<LayerOrigin> = Vec::new();
        for entry in self.store.documents("records")? {
            let path = format!("records/{}", entry.name.to_string_lossy());
            let Ok(Some(record)) = self.store.read_if_any::<Record>(&path) else { continue };
            let Some(origin) = record.origin else { continue };
            let Some(layer) = self.store.lazy_trees().diff_id(&record.tree)? else { continue };
            if layers.contains(&layer) && !found.iter().any(|known| known.layer == layer) {
                found.push(LayerOrigin { layer, origin });
            }
        }
        found.sort_by_key(|found| layers.iter().position(|known| *known == found.layer));
        Ok(found)
    }

    /// Returns the finished image with that key, if it is still complete.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn result(&self, key: &ImageKey) -> Result<Option<RecordedImage>> {
        let Some(found) = self.store.read_if_whole::<ResultFile>(&format!("results/{}.json", key.hex()))? else {
            return Ok(None);
        };
        let is_synced = self.is_synced(&found.build)?;
        if !(is_synced || found.boot == self.store.boot()) || !self.store.blobs().has_blob(&found.manifest.blob())? {
            return Ok(None);
        }
        let image = match self.store.images().image(&found.manifest) {
            // `fsck --repair` removes damaged documents one by one.
            Err(StoreError::NoBlob(_) | StoreError::Damaged { .. } | StoreError::WrongDigest { .. }) => {
                return Ok(None);
            }
            other => other?,
        };
        for (layer, _) in image.layers()? {
            match rbuild_image::digest_of(&layer) {
                Ok(digest) if self.store.blobs().has_complete_blob(&digest, layer.size())? => {}
                _ => return Ok(None),
            }
        }
        Ok(Some(RecordedImage { manifest: found.manifest, is_synced }))
    }

    /// Stores the manifest of the finished image with that key.
    ///
    /// # Errors
    ///
    /// Fails if the document cannot be written.
    pub fn put_result(&self, key: &ImageKey, manifest: &ManifestDigest, build: &BuildId) -> Result<()> {
        let file = ResultFile { manifest: *manifest, boot: self.store.boot().to_string(), build: build.clone() };
        self.store.unsynced.store(true, Ordering::Relaxed);
        self.store.write("results", &format!("{}.json", key.hex()), &file)
    }

    /// Returns the cached digests of build context files stored under that name, empty if there are
    /// none.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn hashes(&self, name: &HashesName) -> Result<Vec<u8>> {
        match self.store.root.read(format!("hashes/{}", name.hex()), MAX_HASHES) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            other => other.map_err(naming(&self.store.root, "hashes")),
        }
    }

    /// Stores cached digests of build context files under that name.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_hashes(&self, name: &HashesName, bytes: &[u8]) -> Result<()> {
        let root = &self.store.root;
        let dir = root.create_dir_all("hashes", modes::dir(), None, |_| ()).map_err(naming(root, "hashes"))?;
        let written = write_atomic(&dir, std::ffi::OsStr::new(&name.hex()), bytes, modes::file());
        written.map_err(naming(root, "hashes"))
    }

    /// Syncs everything written so far to disk, and marks `build` as synced, unless nothing was
    /// recorded since this store was opened.
    ///
    /// # Errors
    ///
    /// Fails if syncing fails or the mark cannot be written.
    pub fn sync_recorded(&self, build: &BuildId) -> Result<()> {
        if self.store.unsynced.load(Ordering::Relaxed) { self.sync(build) } else { Ok(()) }
    }

    /// Syncs everything written so far to disk, and marks `build` as synced.
    ///
    /// # Errors
    ///
    /// Fails if syncing fails or the mark cannot be written.
    pub fn sync(&self, build: &BuildId) -> Result<()> {
        rbuild_linux::sync_filesystem(&self.store.root)?;
        self.store.write("builds", &format!("{build}.synced"), &())
    }
}
