//! The caches that a build reads besides its store.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use rbuild_image::BlobDigest;
use rbuild_linux::parallel::{locked, try_map};
use rbuild_store::{CacheKey, CachedStep, Store, StoreError, Workspace};

use crate::blobs::{BlobInfo, BlobSource};
use crate::cache::artifact::CachedSteps;
use crate::cache::local::open_local;
use crate::error::{Result, TransportError};

/// Number of layers that are copied at once.
const AT_ONCE: usize = 6;

/// A cache whose records are in memory. Its layers are read when their files are needed.
pub struct ImportedCache {
    /// Name in messages.
    name: String,
    steps: CachedSteps,
    blobs: Box<dyn BlobSource + Send + Sync>,
}

impl ImportedCache {
    /// Opens a cache in a directory. Returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the directory contains something else, or if a document is damaged.
    pub fn local(dir: &Path, tag: &str) -> Result<Option<ImportedCache>> {
        let cache = |(steps, blobs)| ImportedCache {
            name: rbuild_linux::quoted(dir).to_string(),
            steps,
            blobs: Box::new(blobs),
        };
        Ok(open_local(dir, tag)?.map(cache))
    }

    /// Returns the number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns true if there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// A step in one of the caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedStep {
    /// The step.
    pub step: CachedStep,
    /// Position of the cache.
    cache: usize,
}

/// A layer of a cache that cannot be used.
#[derive(Debug)]
pub struct LostLayer {
    /// Name of the cache.
    pub cache: String,
    /// The cause.
    pub source: TransportError,
}

/// All caches that a build reads. For a step in several of them, the first one applies.
#[derive(Default)]
pub struct ImportedCaches {
    caches: Vec<ImportedCache>,
    /// Steps whose layers cannot be used.
    lost: Mutex<HashSet<(usize, CacheKey)>>,
}

impl fmt::Debug for ImportedCaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.caches.iter().map(|cache| (&cache.name, cache.len()))).finish()
    }
}

impl ImportedCaches {
    /// Returns these caches, in order of precedence.
    pub fn new(caches: Vec<ImportedCache>) -> ImportedCaches {
        ImportedCaches { caches, lost: Mutex::default() }
    }

    /// Returns true if there are no caches.
    pub fn is_empty(&self) -> bool {
        self.caches.is_empty()
    }

    /// Returns the step with that key, unless its layer was found to be unusable.
    pub fn step(&self, key: &CacheKey) -> Option<ImportedStep> {
        let lost = locked(&self.lost);
        let mut caches = self.caches.iter().enumerate();
        caches.find_map(|(cache, imported)| {
            let step = imported.steps.get(key)?;
            (!lost.contains(&(cache, *key))).then(|| ImportedStep { step: step.clone(), cache })
        })
    }

    /// Returns the keys of the steps whose layers cannot be used.
    pub fn lost(&self) -> BTreeSet<CacheKey> {
        locked(&self.lost).iter().map(|(_, key)| *key).collect()
    }

    /// Returns the places that have the layers of the steps.
    pub fn sources(&self) -> impl Iterator<Item = &dyn BlobSource> {
        self.caches.iter().map(|cache| &*cache.blobs as &dyn BlobSource)
    }

    /// Marks a step as unusable: [`ImportedCaches::step`] no longer returns it.
    pub fn give_up(&self, step: &ImportedStep) {
        locked(&self.lost).insert((step.cache, step.step.key));
    }

    /// Copies the layers of steps into the store, and verifies them. Those that cannot be used are
    /// returned, and their steps are given up.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be written.
    #[tracing::instrument(target = "transport", name = "fetch", level = "debug", skip_all, fields(steps = steps.len()))]
    pub fn fetch(
        &self,
        store: &Store,
        work: &Workspace,
        steps: &[&ImportedStep],
    ) -> std::result::Result<Vec<LostLayer>, StoreError> {
        let mut seen = HashSet::new();
        let first: Vec<&&ImportedStep> =
            steps.iter().filter(|step| seen.insert((step.cache, step.step.layer.blob))).collect();
        let failed: Vec<(usize, BlobDigest, LostLayer)> = try_map(AT_ONCE, &first, |step| {
            let cache = &self.caches[step.cache];
            match fetch_layer(store, work, cache, &step.step) {
                Ok(()) => Ok(None),
                Err(TransportError::Store(e)) if !is_of_layer(&e) => Err(e),
                Err(source) => {
                    let lost = LostLayer { cache: cache.name.clone(), source };
                    Ok(Some((step.cache, step.step.layer.blob, lost)))
                }
            }
        })?
        .into_iter()
        .flatten()
        .collect();
        for step in steps {
            if failed.iter().any(|(cache, blob, _)| (*cache, *blob) == (step.cache, step.step.layer.blob)) {
                self.give_up(step);
            }
        }
        Ok(failed.into_iter().map(|(_, _, lost)| lost).collect())
    }
}

/// Returns true if an error of the store is one of a layer's content.
fn is_of_layer(e: &StoreError) -> bool {
    matches!(
        e,
        StoreError::NoBlob(_)
            | StoreError::Damaged { .. }
            | StoreError::WrongDigest { .. }
            | StoreError::WrongDiffId { .. }
            | StoreError::InvalidLayer { .. }
            | StoreError::Layer(_)
    )
}

/// Copies the layer of a step into the store unless it is there, and verifies both digests.
fn fetch_layer(store: &Store, work: &Workspace, cache: &ImportedCache, step: &CachedStep) -> Result<()> {
    let part = BlobInfo { digest: step.layer.blob, size: step.layer.size };
    if !store.blobs().has_complete_blob(&part.digest, part.size)? {
        let mut blob = cache.blobs.open(&part)?;
        let (found, size) = store.blobs().put_blob(work, (&mut blob).take(part.size.saturating_add(1)))?;
        if found != part.digest {
            return Err(blob.wrong_digest(&found));
        }
        if size != part.size {
            return Err(TransportError::other(format!("the layer {found} has another size than its record states")));
        }
    }
    Ok(store.blobs().check_layers(&[(part.digest, step.layer.diff_id)])?)
}

#[cfg(test)]
mod tests;
