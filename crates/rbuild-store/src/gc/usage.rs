//! Disk usage of the store.

use std::collections::HashSet;

use rbuild_image::{BlobDigest, ManifestDigest, digest_of};

use crate::artifact::NamedImage;
use crate::error::Result;
use crate::gc::measure::tree_bytes;
use crate::partial_blobs;
use crate::store::Store;
use crate::workspace::dead_bytes;

/// Number and disk usage of one kind of content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of entries.
    pub count: u64,
    /// Number of entries in use: images of containers, blobs of images, and trees of running
    /// containers, and these themselves.
    pub active: u64,
    /// Disk usage in bytes.
    pub bytes: u64,
    /// The part of it that a removal of all unused entries frees, in bytes.
    pub reclaimable: u64,
}

/// The disk usage of a store.
#[derive(Clone, Copy)]
pub struct DiskUsage<'s> {
    pub(crate) store: &'s Store,
}

impl DiskUsage<'_> {
    /// Returns the usage of images, and of what they and the cache consist of: blobs (packed
    /// layers, documents and downloads), trees (unpacked files), volumes, cache mounts and build
    /// logs. That of containers is the usage of their records, their output and, while they run, of
    /// the files that they have changed, as far as this user can read them.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn by_kind(&self) -> Result<[(&'static str, Usage); 7]> {
        let (images, of_images) = self.usage_of_images()?;
        let [trees, mounts, logs] = ["trees", "mounts", "logs"].map(|dir| self.usage_of_dir(dir));
        let pinned = self.store.containers().pinned_trees()?;
        let in_trees = self.store.dir("trees")?;
        let pinned_bytes = |name: &String| in_trees.sub(name).map_or(0, |dir| tree_bytes(&dir));
        let (trees, used): (Usage, u64) = (trees?, pinned.iter().map(pinned_bytes).sum());
        // What killed processes were working on, or deleting, consists mostly of trees.
        let bytes = trees.bytes + dead_bytes(self.store)?;
        let trees = Usage { active: pinned.len() as u64, bytes, reclaimable: bytes.saturating_sub(used), ..trees };
        let all = |usage: Usage| Usage { reclaimable: usage.bytes, ..usage };
        Ok([
            ("Images", images),
            ("Containers", self.usage_of_containers()?),
            ("Blobs", self.usage_of_blobs(&of_images)?),
            ("Trees", trees),
            ("Volumes", self.usage_of_volumes()?),
            ("Cache mounts", all(mounts?)),
            ("Build logs", all(logs?)),
        ])
    }

    /// Returns the size of the build cache that a removal of all of it frees, in bytes: the
    /// reclaimable part of blobs, trees, cache mounts and build logs.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn reclaimable_cache(&self) -> Result<u64> {
        let (_, of_images) = self.usage_of_images()?;
        let blobs = self.usage_of_blobs(&of_images)?.reclaimable;
        let [mounts, logs] = ["mounts", "logs"].map(|dir| self.usage_of_dir(dir));
        Ok(blobs + self.store.gc().bytes_of_unused_trees()? + mounts?.bytes + logs?.bytes)
    }

    /// Returns the usage of images, and the blobs of these and of containers' images.
    fn usage_of_images(&self) -> Result<(Usage, HashSet<BlobDigest>)> {
        let held: HashSet<ManifestDigest> = self.store.containers().list()?.iter().map(|c| c.image).collect();
        let entries = self.store.images().list()?;
        let is_active = |of: &&NamedImage| of.artifact.images().iter().any(|image| held.contains(image));
        let blobs = |entries: &mut dyn Iterator<Item = &NamedImage>| -> HashSet<BlobDigest> {
            entries.flat_map(|entry| entry.artifact.images()).flat_map(|image| self.blobs_of(image)).collect()
        };
        let all = blobs(&mut entries.iter());
        let active = blobs(&mut entries.iter().filter(is_active));
        let (bytes, used) = (self.bytes_of(&all), self.bytes_of(&active));
        let count = entries.len() as u64;
        let usage =
            Usage { count, active: entries.iter().filter(is_active).count() as u64, bytes, reclaimable: bytes - used };
        let of_containers = held.iter().flat_map(|image| self.blobs_of(image));
        Ok((usage, all.into_iter().chain(of_containers).collect()))
    }

    /// Returns the blobs of an image; none if it is damaged.
    fn blobs_of(&self, manifest: &ManifestDigest) -> Vec<BlobDigest> {
        let Ok(image) = self.store.images().image(manifest) else { return vec![manifest.blob()] };
        let layers = image.layers().unwrap_or_default();
        let layers = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        [manifest.blob(), image.id.blob()].into_iter().chain(layers).collect()
    }

    fn bytes_of(&self, blobs: &HashSet<BlobDigest>) -> u64 {
        let dir = self.store.path().join("blobs/sha256");
        let size = |blob: &BlobDigest| std::fs::metadata(dir.join(blob.hex())).map_or(0, |found| found.len());
        blobs.iter().map(size).sum()
    }

    fn usage_of_blobs(&self, of_images: &HashSet<BlobDigest>) -> Result<Usage> {
        let names = self.store.dir("blobs/sha256")?.entries()?;
        let size = |dir| fs_extra::dir::get_size(self.store.path().join(dir)).unwrap_or_default();
        let bytes: u64 = ["blobs", partial_blobs::DIR].map(size).iter().sum();
        let used: HashSet<String> = of_images.iter().map(BlobDigest::hex).collect();
        let active = names.iter().filter(|entry| used.contains(&*entry.name.to_string_lossy())).count() as u64;
        let reclaimable = bytes.saturating_sub(self.bytes_of(of_images));
        Ok(Usage { count: names.len() as u64, active, bytes, reclaimable })
    }

    fn usage_of_volumes(&self) -> Result<Usage> {
        let (volumes, used) = (self.store.volumes(), self.store.volumes().used()?);
        let mut usage = Usage::default();
        for volume in volumes.list()? {
            let bytes = volumes.bytes(&volume.name)?;
            let is_active = used.contains(&volume.name);
            usage.count += 1;
            usage.active += u64::from(is_active);
            usage.bytes += bytes;
            usage.reclaimable += if is_active { 0 } else { bytes };
        }
        Ok(usage)
    }

    fn usage_of_containers(&self) -> Result<Usage> {
        let containers = self.store.containers();
        let mut usage = Usage::default();
        for container in containers.list()? {
            let bytes = containers.bytes_of_run(&container.id)?;
            usage.count += 1;
            usage.bytes += bytes;
            if containers.state(&container.id)?.is_running() {
                usage.active += 1;
                let changes = containers.changes(&container.id)?.and_then(|dir| self.store.dir(dir).ok());
                usage.bytes += changes.map_or(0, |dir| tree_bytes(&dir));
            } else {
                usage.reclaimable += bytes;
            }
        }
        Ok(usage)
    }

    fn usage_of_dir(&self, dir: &str) -> Result<Usage> {
        if !self.store.root.exists(dir)? {
            return Ok(Usage::default());
        }
        let dir = self.store.dir(dir)?;
        Ok(Usage { count: dir.entries()?.len() as u64, bytes: tree_bytes(&dir), ..Usage::default() })
    }
}
