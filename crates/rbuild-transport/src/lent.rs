//! Layers of a pushed image that other repositories have, and the store has not.

use std::collections::HashMap;

use rbuild_image::{BlobDigest, Reference};
use rbuild_registry::{Client, Repository};
use rbuild_store::{Blobs, Store};

use crate::blobs::{BlobInfo, BlobRead, BlobSource};
use crate::error::Result;

/// A layer that the store lacks, and a repository that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LentLayer {
    /// The blob.
    pub part: BlobInfo,
    /// A name of the repository.
    pub name: Reference,
}

/// The blobs of the store, and layers in repositories, which are read only if they are sent.
pub(crate) struct LentBlobs<'a> {
    store: Blobs<'a>,
    repositories: HashMap<String, Repository>,
    /// For each layer, the repository.
    layers: HashMap<BlobDigest, String>,
}

impl<'a> LentBlobs<'a> {
    /// Returns the blobs. Connects to nothing.
    ///
    /// # Errors
    ///
    /// Fails if a settings file is invalid or forbids a registry.
    pub fn new(store: &'a Store, client: &Client, lent: &[LentLayer]) -> Result<LentBlobs<'a>> {
        let mut blobs = LentBlobs { store: store.blobs(), repositories: HashMap::new(), layers: HashMap::new() };
        for LentLayer { part, name } in lent {
            let place = name.familiar_name();
            if !blobs.repositories.contains_key(&place) {
                blobs.repositories.insert(place.clone(), client.repository(name)?);
            }
            blobs.layers.insert(part.digest, place);
        }
        Ok(blobs)
    }
}

impl BlobSource for LentBlobs<'_> {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        BlobSource::size(&self.store, digest)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        BlobSource::document(&self.store, digest)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let repository = self.layers.get(&part.digest).and_then(|place| self.repositories.get(place));
        match repository {
            Some(repository) if !self.store.has_complete_blob(&part.digest, part.size)? => {
                BlobSource::open(repository, part)
            }
            _ => BlobSource::open(&self.store, part),
        }
    }
}

/// Returns the paths of the repositories of a registry that a layer may be mounted from.
pub(crate) fn mountable(lent: &[LentLayer], to: &Reference) -> HashMap<BlobDigest, String> {
    let is_neighbor = |layer: &&LentLayer| layer.name.registry() == to.registry() && layer.name.path() != to.path();
    lent.iter().filter(is_neighbor).map(|layer| (layer.part.digest, layer.name.path().to_string())).collect()
}
