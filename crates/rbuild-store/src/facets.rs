//! Facets of the store: one type per kind of content, with the operations on it.

use crate::blobs::Blobs;
use crate::cache::records::Records;
use crate::cache_mounts::CacheMounts;
use crate::containers::{ContainerChanges, Containers};
use crate::downloads::Downloads;
use crate::error::Result;
use crate::gc::prune::Gc;
use crate::gc::usage::DiskUsage;
use crate::images::Images;
use crate::layers::Layers;
use crate::logs::Logs;
use crate::repo_digests::RepoDigests;
use crate::secrets::SecretVerdicts;
use crate::store::Store;
use crate::trees::changes::ChangedTrees;
use crate::trees::lazy::LazyTrees;
use crate::trees::tree::Trees;
use crate::trees::union::ImageTrees;
use crate::volumes::Volumes;

impl Store {
    /// Returns the blobs.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs { store: self }
    }

    /// Returns the images and their names.
    pub fn images(&self) -> Images<'_> {
        Images { store: self }
    }

    /// Returns the digests that images have in registries.
    pub fn repo_digests(&self) -> RepoDigests<'_> {
        RepoDigests { store: self }
    }

    /// Returns the containers.
    pub fn containers(&self) -> Containers<'_> {
        Containers { store: self }
    }

    /// Returns the disk usage.
    pub fn disk_usage(&self) -> DiskUsage<'_> {
        DiskUsage { store: self }
    }

    /// Returns the volumes.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes { store: self }
    }

    /// Waits for the right to change containers.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be acquired.
    pub fn container_changes(&self) -> Result<ContainerChanges<'_>> {
        ContainerChanges::begin(self.containers())
    }

    /// Returns the downloaded files.
    pub fn downloads(&self) -> Downloads<'_> {
        Downloads { store: self }
    }

    /// Returns the layers that trees are packed into.
    pub fn layers(&self) -> Layers<'_> {
        Layers { store: self, watch: None, moved: None }
    }

    /// Returns the verdicts on secrets in trees.
    pub fn secrets(&self) -> SecretVerdicts<'_> {
        SecretVerdicts { store: self }
    }

    /// Returns the logs of the last builds.
    pub fn logs(&self) -> Logs<'_> {
        Logs { store: self }
    }

    /// Returns the trees.
    pub fn trees(&self) -> Trees<'_> {
        Trees { store: self }
    }

    /// Returns the trees that exist as their layers only, until their files are needed.
    pub fn lazy_trees(&self) -> LazyTrees<'_> {
        LazyTrees { store: self, watch: None }
    }

    /// Returns the trees that are stored as changes to earlier ones.
    pub fn changed_trees(&self) -> ChangedTrees<'_> {
        ChangedTrees { store: self }
    }

    /// Returns the stacks of trees that are images, or parts of them.
    pub fn image_trees(&self) -> ImageTrees<'_> {
        ImageTrees { store: self }
    }

    /// Returns the cache records of steps, and the inputs of their keys.
    pub fn records(&self) -> Records<'_> {
        Records { store: self }
    }

    /// Returns the cache mounts.
    pub fn cache_mounts(&self) -> CacheMounts<'_> {
        CacheMounts { store: self }
    }

    /// Returns the operations of garbage collection and fsck.
    pub fn gc(&self) -> Gc<'_> {
        Gc { store: self }
    }
}
