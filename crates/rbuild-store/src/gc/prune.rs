//! Removal of unreferenced content.

use std::collections::HashSet;
use std::ffi::OsStr;

use rbuild_image::{BlobDigest, digest_of};

use crate::artifact::NamedImage;
use crate::cache::records::{Record, ResultFile};
use crate::contents::noted_blob;
use crate::downloads;
use crate::error::Result;
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::freed::Freed;
use crate::gc::trash::{Discarded, Trash};
use crate::index_entries::parts_of;
use crate::partial_blobs;
use crate::sentinel;
use crate::store::Store;
use crate::trees::id::digest_in;

/// Treatment of dangling images, which have no name and are not needed by anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DanglingImages {
    /// Remove them.
    Remove,
    /// Keep them.
    Keep,
}

/// Removal and verification of the content of a store.
#[derive(Clone, Copy)]
pub struct Gc<'s> {
    pub(crate) store: &'s Store,
}

impl Gc<'_> {
    /// Checks that no other process uses the store, before a removal in several steps of which the
    /// last one needs the exclusive lock.
    ///
    /// # Errors
    ///
    /// Fails with [`crate::StoreError::Busy`] if another process does.
    pub fn check_idle(&self) -> Result<()> {
        ExclusiveLock::take(self.store)?.end()
    }

    /// Removes dangling images unless they are kept, cache records without a tree, trees that
    /// neither a record nor an image uses, blobs that no image, tree or download uses, and what
    /// interrupted builds left. With `all`, also removes the whole build cache, the cache mounts,
    /// downloads and build logs. Takes the exclusive lock, and releases it before the files are
    /// deleted.
    ///
    /// # Errors
    ///
    /// Fails with [`crate::StoreError::Busy`] while another process uses the store, or if an entry
    /// cannot be removed.
    #[tracing::instrument(target = "store", name = "prune", level = "debug", skip(self))]
    pub fn prune(&self, all: bool, dangling: DanglingImages) -> Result<Freed> {
        let mut trash = Trash::new(self.store);
        let alone = ExclusiveLock::take(self.store)?;
        self.store.remove_unpublished()?;
        self.store.containers().sweep_runs()?;
        let pinned = self.store.containers().pinned_trees()?;
        if all {
            sentinel::remove(&self.store.root)?;
        }
        if dangling == DanglingImages::Remove {
            // Only these entries are removed: a named image may have the same ID.
            let pulled = if all { HashSet::new() } else { self.store.images().pulled_by_name()? };
            let mut gone: Vec<NamedImage> = self.store.images().list()?;
            gone.retain(|entry| entry.is_dangling(&pulled));
            self.store.images().forget(&gone)?;
            trash.freed.images += gone.len() as u64;
        }
        let mut trees = pinned.clone();
        let (mut blobs, live_layers) = self.image_content()?;
        if !all {
            blobs.extend(self.downloaded()?);
        }
        self.prune_records(all, &pinned, &mut trees, &mut blobs, &mut trash.freed)?;
        self.prune_layers(all, &pinned, &live_layers, &blobs, &mut trees)?;
        self.remove_others("trees", |name| trees.contains(name), &mut trash)?;
        self.remove_blobs(&blobs, &mut trash)?;
        self.remove_partial_blobs(&mut trash)?;
        self.prune_key_inputs()?;
        if all {
            self.remove_others("mounts", |_| false, &mut trash)?;
            for notes in ["hashes", "ledgers", "logs", "mount-ids", downloads::DIR] {
                self.store.root.remove_all(OsStr::new(notes))?;
            }
            self.store.images().forget_removed()?;
            self.store.repo_digests().forget_removed()?;
        }
        alone.end()?;
        trash.empty()
    }

    /// Removes blobs that neither an image nor the cache refers to. Does nothing while another
    /// process uses the store.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or a blob cannot be removed.
    #[tracing::instrument(target = "store", name = "sweep", level = "debug", skip_all)]
    pub fn sweep_blobs(&self) -> Result<Freed> {
        let mut trash = Trash::new(self.store);
        if let Some(alone) = ExclusiveLock::try_take(self.store)? {
            self.remove_unused_blobs(&mut trash)?;
            alone.end()?;
        }
        trash.empty()
    }

    /// Removes blobs that neither an image nor the cache refers to. The caller holds the exclusive
    /// lock.
    pub(super) fn remove_unused_blobs(&self, trash: &mut Trash<'_>) -> Result<()> {
        let (mut blobs, _) = self.image_content()?;
        for entry in self.store.dir("trees")?.entries()? {
            blobs.extend(self.store.layers().packed_blobs(&entry.name)?);
        }
        blobs.extend(self.downloaded()?);
        self.remove_blobs(&blobs, trash)
    }

    /// Returns the blobs that are downloaded files.
    fn downloaded(&self) -> Result<Vec<BlobDigest>> {
        Ok(self.store.downloads().notes()?.into_iter().map(|(_, download)| download.digest).collect())
    }

    /// Removes the partial blobs of interrupted downloads.
    fn remove_partial_blobs(&self, trash: &mut Trash<'_>) -> Result<()> {
        if self.store.root.exists(partial_blobs::DIR)? {
            self.remove_others(partial_blobs::DIR, |_| false, trash)?;
        }
        Ok(())
    }

    /// Removes all blobs except those in `keep`, and results that refer to removed ones.
    fn remove_blobs(&self, keep: &HashSet<BlobDigest>, trash: &mut Trash<'_>) -> Result<()> {
        let results = self.store.dir("results")?;
        for entry in results.entries()? {
            let path = format!("results/{}", entry.name.to_string_lossy());
            let result = self.store.read_if_any::<ResultFile>(&path).ok().flatten();
            if !result.is_some_and(|r| keep.contains(&r.manifest.blob())) {
                results.remove_file(&entry.name)?;
                trash.freed.records += 1;
            }
        }
        let names: HashSet<String> = keep.iter().map(BlobDigest::hex).collect();
        self.remove_others("blobs/sha256", |name| names.contains(name), trash)
    }

    /// Returns the blobs of all images, and the diffIDs of their layers in hexadecimal.
    fn image_content(&self) -> Result<(HashSet<BlobDigest>, HashSet<String>)> {
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        let entries = self.store.images().list()?;
        let documents = |entry: &NamedImage| {
            let artifact = &entry.artifact;
            artifact.indexes().iter().chain([artifact.digest()]).map(|digest| digest.blob()).collect::<Vec<_>>()
        };
        blobs.extend(entries.iter().flat_map(documents));
        let named = entries.iter().flat_map(|entry| entry.artifact.images().iter().copied());
        let held = self.store.containers().list()?.into_iter().map(|container| container.image);
        for manifest in named.chain(held).collect::<HashSet<_>>() {
            let image = self.store.images().image(&manifest)?;
            blobs.extend([manifest.blob(), image.id.blob()]);
            for (layer, diff_id) in image.layers()? {
                blobs.extend(digest_of(&layer).ok());
                layers.insert(diff_id.hex());
            }
        }
        for attachment in entries.iter().flat_map(|entry| entry.artifact.attachments()).collect::<HashSet<_>>() {
            blobs.insert(attachment.blob());
            blobs.extend(parts_of(&self.store.blobs().read_document(&attachment.blob())?)?);
        }
        Ok((blobs, layers))
    }

    /// Removes records whose trees do not exist, or with `all` every record whose tree is not
    /// pinned, every result and every build index. Adds the trees of the others to `trees`, and
    /// their packed layers to `blobs`.
    fn prune_records(
        &self,
        all: bool,
        pinned: &HashSet<String>,
        trees: &mut HashSet<String>,
        blobs: &mut HashSet<BlobDigest>,
        freed: &mut Freed,
    ) -> Result<()> {
        let records = self.store.dir("records")?;
        for entry in records.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            let record = self.store.read_if_any::<Record>(&format!("records/{name}")).ok().flatten();
            match record {
                Some(record)
                    if (!all || pinned.contains(record.tree.name()))
                        && self.store.lazy_trees().has_tree(&record.tree)? =>
                {
                    let base = self.store.changed_trees().changes_note(&record.tree)?.map(|note| note.base);
                    for tree in std::iter::once(record.tree).chain(base) {
                        let tree = tree.name().to_string();
                        blobs.extend(self.store.layers().packed_blobs(OsStr::new(&tree))?);
                        trees.insert(tree);
                    }
                }
                _ => {
                    records.remove_all(&entry.name)?;
                    freed.records += 1;
                }
            }
        }
        for (name, counts) in [("results", true), ("builds", false)] {
            let dir = self.store.dir(name)?;
            for entry in dir.entries()?.into_iter().filter(|_| all) {
                dir.remove_all(&entry.name)?;
                freed.records += u64::from(counts);
            }
        }
        Ok(())
    }

    /// Removes the inputs of keys that no longer have a record.
    pub(crate) fn prune_key_inputs(&self) -> Result<()> {
        if !self.store.root.exists("accounts")? {
            return Ok(());
        }
        let records = self.store.dir("records")?.entries()?;
        let records: Vec<_> = records.iter().map(|entry| entry.name.to_string_lossy()).collect();
        let keys: HashSet<&str> = records.iter().map(|name| digest_in(name)).collect();
        let accounts = self.store.dir("accounts")?;
        for entry in accounts.entries()? {
            if !keys.contains(digest_in(&entry.name.to_string_lossy())) {
                accounts.remove_all(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Removes the documents about layers that no image has; with `all`, also those about trees
    /// that are not pinned. A pinned tree without its document would be unpacked again, over
    /// itself.
    fn prune_layers(
        &self,
        all: bool,
        pinned: &HashSet<String>,
        live: &HashSet<String>,
        blobs: &HashSet<BlobDigest>,
        trees: &mut HashSet<String>,
    ) -> Result<()> {
        let layers = self.store.dir("layers")?;
        let blobs: HashSet<String> = blobs.iter().map(BlobDigest::hex).collect();
        for entry in layers.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            let hex = name.get(..64).unwrap_or(&name);
            let tree = self.store.trees().tree_of_document(&name)?;
            let tree = tree.filter(|tree| (!all && live.contains(hex)) || pinned.contains(tree.name()));
            if let Some(tree) = tree {
                trees.insert(tree.name().to_string());
            } else if !name.strip_suffix(".size").is_some_and(|hex| live.contains(hex))
                && !noted_blob(&name).is_some_and(|blob| blobs.contains(blob))
            {
                layers.remove_all(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Removes the entries of a directory whose names `keep` rejects.
    fn remove_others(&self, dir: &'static str, keep: impl Fn(&str) -> bool, trash: &mut Trash<'_>) -> Result<()> {
        for entry in self.store.dir(dir)?.entries()? {
            if !keep(&entry.name.to_string_lossy()) {
                trash.discard(Discarded { dir, name: &entry.name, bytes: None, reason: "unreferenced" })?;
            }
        }
        Ok(())
    }
}
