//! The caches that a build reads besides its store.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rbuild_image::Reference;
use rbuild_linux::parallel::{locked, try_map};
use rbuild_store::{CacheKey, CachedStep, StepNote, Store, StoreError, Workspace};

use crate::blobs::{BlobInfo, BlobSource};
use crate::cache::artifact::CachedSteps;
use crate::cache::buildkit::BuildKitCache;
use crate::cache::local::{LocalCache, open_local};
use crate::cache::merge::CacheLimits;
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::{CacheRecords, RemoteSteps};
use crate::cache::shared_cache::SharedCache;
use crate::cache::signature::RecordKeys;
use crate::error::{Result, TransportError};
use crate::layout::LayoutSource;

/// Number of layers that are copied at once.
const AT_ONCE: usize = 6;

/// A cache whose records are in memory. Its layers are read when their files are needed.
pub struct ImportedCache {
    /// Name in messages.
    name: String,
    steps: CachedSteps,
    /// The definition keys of steps by their content keys.
    contents: HashMap<CacheKey, CacheKey>,
    /// The records of BuildKit, if the cache is one of these.
    buildkit: Option<BuildKitCache>,
    /// True if records without a valid signature were ignored.
    has_unsigned: bool,
    /// True if parts of it are damaged or lost.
    has_damage: bool,
    layers: LayerPlace,
}

/// The place of the layers of a cache.
enum LayerPlace {
    Directory {
        blobs: LayoutSource,
        /// Device and inode of the directory.
        identity: Option<(u64, u64)>,
        tag: String,
    },
    Shared(SharedCache),
}

/// A layer of a cache that several machines share.
#[derive(Debug, Clone)]
pub struct WantedLayer {
    /// The cache.
    pub cache: SharedCache,
    /// The layer.
    pub blob: BlobInfo,
}

/// Downloads layers of caches into the store. Returns for each the reason why it cannot be
/// used, if it cannot; `None` if it was interrupted.
pub type LayerFetcher = dyn Fn(&Store, &[WantedLayer]) -> Option<Vec<Option<String>>> + Send + Sync;

impl ImportedCache {
    /// Opens a cache in a directory. Returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the directory contains something else, if a document is damaged, or if the
    /// documents exceed the budget, which is that of all caches together.
    pub fn local(dir: &Path, tag: &str, keys: &RecordKeys, budget: &RecordBudget) -> Result<Option<ImportedCache>> {
        let cache = |(records, blobs)| {
            let layers = LayerPlace::Directory { blobs, identity: identity(dir), tag: tag.into() };
            ImportedCache::new(rbuild_linux::quoted(dir).to_string(), records, layers)
        };
        Ok(open_local(dir, tag, keys, budget)?.map(cache))
    }

    /// Returns the cache on other machines with these records.
    pub fn shared(cache: SharedCache, steps: RemoteSteps) -> ImportedCache {
        let RemoteSteps { steps, buildkit, has_unsigned, has_damage, faults: _ } = steps;
        let steps = steps.into_iter().map(|step| (step.key, step)).collect();
        let records = CacheRecords { steps, buildkit, has_unsigned };
        let imported = ImportedCache::new(format!("`{}`", cache.name()), records, LayerPlace::Shared(cache));
        ImportedCache { has_damage, ..imported }
    }

    fn new(name: String, records: CacheRecords, layers: LayerPlace) -> ImportedCache {
        let CacheRecords { steps, buildkit, has_unsigned } = records;
        let mut contents = HashMap::new();
        for step in steps.values() {
            if let Some(content) = step.shared {
                // The first one applies.
                contents.entry(content).or_insert(step.key);
            }
        }
        ImportedCache { name, steps, contents, buildkit, has_unsigned, has_damage: false, layers }
    }

    /// Returns the cache with another name in messages.
    pub fn named(self, name: &str) -> ImportedCache {
        ImportedCache { name: name.into(), ..self }
    }

    /// Returns true if it has records of BuildKit only. Its steps are found from those below them.
    pub fn is_of_other_builder(&self) -> bool {
        self.buildkit.is_some() && self.steps.is_empty()
    }

    /// Returns true if records without a valid signature were ignored.
    pub fn has_unsigned(&self) -> bool {
        self.has_unsigned
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

/// Returns the device and the inode of a directory.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(dir).ok()?;
    Some((metadata.dev(), metadata.ino()))
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
    pub cause: String,
}

/// All caches that a build reads. For a step in several of them, the first one applies.
#[derive(Default)]
pub struct ImportedCaches {
    caches: Vec<ImportedCache>,
    /// Steps whose layers cannot be used.
    lost: Mutex<HashSet<(usize, CacheKey)>>,
    fetcher: Mutex<Option<Arc<LayerFetcher>>>,
    /// True if layers are copied into the store even if the output does not need them there.
    copies_layers: AtomicBool,
}

impl fmt::Debug for ImportedCaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.caches.iter().map(|cache| (&cache.name, cache.len()))).finish()
    }
}

impl ImportedCaches {
    /// Returns these caches, in order of precedence.
    pub fn new(caches: Vec<ImportedCache>) -> ImportedCaches {
        ImportedCaches { caches, ..ImportedCaches::default() }
    }

    /// Returns the caches, with the function that downloads layers of those on other
    /// machines.
    pub fn fetched_by(self, fetcher: Arc<LayerFetcher>) -> ImportedCaches {
        ImportedCaches { fetcher: Mutex::new(Some(fetcher)), ..self }
    }

    /// Returns the keys of the steps of a cache in a directory whose layers cannot be used.
    pub fn lost_in_directory(&self, cache: &LocalCache) -> BTreeSet<CacheKey> {
        let own = identity(&cache.dir.path());
        self.lost_in(|place| match place {
            LayerPlace::Directory { identity, tag, .. } => own.is_some() && *identity == own && *tag == cache.tag,
            LayerPlace::Shared(_) => false,
        })
    }

    /// Returns the keys of the steps of a shared cache whose layers cannot be used.
    pub fn lost_in_shared(&self, cache: &SharedCache) -> BTreeSet<CacheKey> {
        self.lost_in(|place| matches!(place, LayerPlace::Shared(known) if known.is_same_place(cache)))
    }

    /// Returns true if a shared cache, as it was read, has these steps, if they were used recently,
    /// and if it is undamaged and within its limits.
    pub fn has_recent(&self, cache: &SharedCache, steps: &[CachedStep], limits: CacheLimits, today: i64) -> bool {
        let lost = locked(&self.lost);
        self.caches.iter().enumerate().any(|(number, imported)| {
            let is_there = |step: &CachedStep| {
                let known = imported.steps.get(&step.key).filter(|known| known.used >= today);
                known.is_some_and(|known| known.result == step.result) && !lost.contains(&(number, step.key))
            };
            matches!(&imported.layers, LayerPlace::Shared(known) if known.has_same_documents(cache))
                && !imported.has_damage
                && limits.contain(imported.steps.values(), today)
                && steps.iter().all(is_there)
        })
    }

    /// Returns true if parts of a shared cache were found to be damaged when it was read.
    pub fn knows_damage_of(&self, cache: &SharedCache) -> bool {
        self.caches.iter().any(|imported| {
            matches!(&imported.layers, LayerPlace::Shared(known) if known.is_same_place(cache)) && imported.has_damage
        })
    }

    fn lost_in(&self, is_target: impl Fn(&LayerPlace) -> bool) -> BTreeSet<CacheKey> {
        let lost = locked(&self.lost);
        lost.iter().filter(|(cache, _)| is_target(&self.caches[*cache].layers)).map(|(_, key)| *key).collect()
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

    /// Returns a step with that content key, unless its layer was found to be unusable.
    pub fn step_of_content(&self, content: &CacheKey) -> Option<ImportedStep> {
        let lost = locked(&self.lost);
        let mut caches = self.caches.iter().enumerate();
        caches.find_map(|(cache, imported)| {
            let step = imported.steps.get(imported.contents.get(content)?)?;
            (!lost.contains(&(cache, step.key))).then(|| ImportedStep { step: step.clone(), cache })
        })
    }

    /// Returns all steps, each from the first cache that has it.
    pub fn all(&self) -> Vec<ImportedStep> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for (cache, imported) in self.caches.iter().enumerate() {
            let new = imported.steps.values().filter(|step| seen.insert(step.key));
            found.extend(new.map(|step| ImportedStep { step: step.clone(), cache }));
        }
        found
    }

    /// Returns the steps that are noted in words, with the names of their caches.
    pub fn noted(&self) -> impl Iterator<Item = (&str, &CachedStep, &StepNote)> {
        let steps = self.caches.iter().flat_map(|cache| cache.steps.values().map(move |step| (cache, step)));
        steps.filter_map(|(cache, step)| Some((cache.name.as_str(), step, step.note.as_deref()?)))
    }

    /// Returns false if the layer of a step was found to be unusable.
    pub fn is_usable(&self, step: &ImportedStep) -> bool {
        !locked(&self.lost).contains(&(step.cache, step.step.key))
    }

    /// Returns the caches of BuildKit with their positions.
    pub fn of_buildkit(&self) -> impl Iterator<Item = (usize, &BuildKitCache)> {
        self.caches.iter().enumerate().filter_map(|(number, cache)| Some((number, cache.buildkit.as_ref()?)))
    }

    /// Returns a step that was found in the cache at that position, unless its layer was found to
    /// be unusable.
    pub fn found_in(&self, cache: usize, step: CachedStep) -> Option<ImportedStep> {
        (!locked(&self.lost).contains(&(cache, step.key))).then_some(ImportedStep { step, cache })
    }

    /// Returns the caches on other machines.
    pub fn shared(&self) -> Vec<SharedCache> {
        let name = |cache: &ImportedCache| match &cache.layers {
            LayerPlace::Shared(cache) => Some(cache.clone()),
            LayerPlace::Directory { .. } => None,
        };
        self.caches.iter().filter_map(name).collect()
    }

    /// Replaces the function that downloads layers.
    pub fn fetch_with(&self, fetcher: Arc<LayerFetcher>) {
        *locked(&self.fetcher) = Some(fetcher);
    }

    /// Returns the places on this machine that have the layers of the steps.
    pub fn sources(&self) -> impl Iterator<Item = &dyn BlobSource> {
        self.caches.iter().filter_map(|cache| match &cache.layers {
            LayerPlace::Directory { blobs, .. } => Some(blobs as &dyn BlobSource),
            LayerPlace::Shared(_) => None,
        })
    }

    /// Returns the name of the registry's cache that has a step; `None` if it is elsewhere.
    pub fn registry_of(&self, step: &ImportedStep) -> Option<&Reference> {
        match &self.caches[step.cache].layers {
            LayerPlace::Shared(cache) => cache.reference(),
            LayerPlace::Directory { .. } => None,
        }
    }

    /// Returns the name of the cache that has a step, for messages.
    pub fn name_of(&self, step: &ImportedStep) -> &str {
        &self.caches[step.cache].name
    }

    /// Returns the same name without quotation marks, as the store keeps it.
    pub fn origin_of(&self, step: &ImportedStep) -> &str {
        self.name_of(step).trim_matches('`')
    }

    /// Has the layers copied into the store from now on, because an image cannot be pushed without
    /// them.
    pub fn copy_layers(&self) {
        self.copies_layers.store(true, Ordering::Relaxed);
    }

    /// Returns true after [`ImportedCaches::copy_layers`].
    pub fn must_be_copied(&self) -> bool {
        self.copies_layers.load(Ordering::Relaxed)
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
    /// Fails if the store cannot be written, or if the download is interrupted.
    #[tracing::instrument(target = "transport", name = "fetch", level = "debug", skip_all, fields(steps = steps.len()))]
    pub fn fetch(
        &self,
        store: &Store,
        work: &Workspace,
        steps: &[&ImportedStep],
    ) -> std::result::Result<Vec<LostLayer>, StoreError> {
        let mut seen = HashSet::new();
        let first: Vec<&ImportedStep> =
            steps.iter().copied().filter(|step| seen.insert((step.cache, step.step.layer.statement()))).collect();
        let lost = |step: &ImportedStep, cause: String| {
            let cache = self.caches[step.cache].name.clone();
            (step.cache, step.step.layer.statement(), LostLayer { cache, cause })
        };
        let (mut here, mut elsewhere, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for step in &first {
            let blob = BlobInfo { digest: step.step.layer.blob, size: step.step.layer.size };
            match &self.caches[step.cache].layers {
                LayerPlace::Directory { blobs, .. } => here.push((*step, blob, blobs)),
                // What the store has needs no fetcher.
                LayerPlace::Shared(_) if store.blobs().has_complete_blob(&blob.digest, blob.size)? => {}
                LayerPlace::Shared(cache) => {
                    elsewhere.push(*step);
                    wanted.push(WantedLayer { cache: cache.clone(), blob });
                }
            }
        }
        let copied = try_map(AT_ONCE, &here, |(step, blob, layout)| match fetch_layer(store, work, *layout, blob) {
            Ok(()) => Ok(None),
            Err(TransportError::Store(e)) if !is_of_layer(&e) => Err(e),
            Err(e) => Ok(Some(lost(step, e.message()))),
        })?;
        let mut failed: Vec<(usize, String, LostLayer)> = copied.into_iter().flatten().collect();
        let fetcher = locked(&self.fetcher).clone();
        if let (Some(fetcher), false) = (fetcher, wanted.is_empty()) {
            let causes = fetcher(store, &wanted).ok_or(StoreError::Canceled)?;
            let causes = causes.into_iter().map(Some).chain(std::iter::repeat(None));
            for (step, cause) in elsewhere.iter().zip(causes) {
                match cause {
                    Some(None) => {}
                    Some(Some(cause)) => failed.push(lost(step, cause)),
                    None => failed.push(lost(step, "it was not downloaded".into())),
                }
            }
        }
        let is_failed = |failed: &[(usize, String, LostLayer)], step: &ImportedStep| {
            let statement = step.step.layer.statement();
            failed.iter().any(|(cache, known, _)| *cache == step.cache && *known == statement)
        };
        let unchecked: Vec<&ImportedStep> = first.into_iter().filter(|step| !is_failed(&failed, step)).collect();
        let checked =
            try_map(AT_ONCE, &unchecked, |step| match store.lazy_trees().check_cached_layer(&step.step.layer) {
                Ok(()) => Ok(None),
                Err(e) if is_of_layer(&e) => Ok(Some(lost(step, TransportError::from(e).message()))),
                Err(e) => Err(e),
            })?;
        failed.extend(checked.into_iter().flatten());
        steps.iter().filter(|step| is_failed(&failed, step)).for_each(|step| self.give_up(step));
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

/// The bytes of a layer, with a note if they could not be read.
struct WatchedRead<R> {
    bytes: R,
    has_failed: bool,
}

impl<R: Read> Read for WatchedRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buf);
        self.has_failed |= matches!(&read, Err(e) if e.kind() != io::ErrorKind::Interrupted);
        read
    }
}

/// Copies a layer into the store unless it is there, and verifies its digest. Only an error of the
/// store itself is returned as one.
pub(crate) fn fetch_layer(store: &Store, work: &Workspace, source: &dyn BlobSource, part: &BlobInfo) -> Result<()> {
    if store.blobs().has_complete_blob(&part.digest, part.size)? {
        return Ok(());
    }
    let mut bytes = WatchedRead { bytes: source.open(part)?, has_failed: false };
    let put = store.blobs().put_blob(work, (&mut bytes).take(part.size.saturating_add(1)));
    let (found, size) = match put.map_err(TransportError::from) {
        Err(e @ TransportError::Store(_)) if bytes.has_failed => return Err(TransportError::other(e.message())),
        put => put?,
    };
    if found != part.digest {
        return Err(bytes.bytes.wrong_digest(&found));
    }
    if size != part.size {
        return Err(TransportError::other(format!("the layer {found} has another size than its record states")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
