//! Adds the steps of a build to the manifest of a cache that several machines write to.

use std::collections::BTreeSet;

use rbuild_image::BlobDigest;
use rbuild_store::{Store, Workspace};

use crate::blobs::{BlobInfo, BlobOrigin};
use crate::cache::artifact::{CacheDocuments, CachedSteps, KnownSteps, check_type, steps_to_extend};
use crate::cache::listed_shards::{ShardDigests, with_shards};
use crate::cache::merge::{MergedSteps, OwnSteps, WrittenCache, merged};
use crate::cache::note::CacheNote;
use crate::cache::place::{CacheStore, FoundManifest, LayerUpload, ManifestContent, Replacement};
use crate::cache::record_budget::RecordBudget;
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::shards::union;
use crate::cache::signature::RecordKeys;
use crate::cache::step_count::StepCount;
use crate::error::{Result, TransportError};

/// Number of times that the steps are merged again because another machine wrote meanwhile.
const MERGES: usize = 8;

/// The layers of a cache that is written.
#[derive(Default)]
struct KnownLayers {
    /// Layers that the place has, as far as it is known.
    there: BTreeSet<BlobDigest>,
    uploaded: BTreeSet<BlobDigest>,
    /// Layers that the store lacks.
    lacking: BTreeSet<BlobDigest>,
    /// Layers of the place that were found to be unusable.
    damaged: BTreeSet<BlobDigest>,
    /// True if the records may name layers that the place lacks.
    is_distrusted: bool,
}

/// The steps of other manifests that a manifest takes over.
#[derive(Default)]
pub(crate) struct OtherSteps {
    pub steps: CachedSteps,
    /// The shards that could not be taken over, which the manifest still names.
    pub unread: ShardDigests,
    /// The state in which they were found.
    pub note: CacheNote,
}

/// Returns the steps that a manifest, if there is one, takes over.
pub(crate) type OtherStepsReader<'a> = dyn Fn(Option<&[u8]>) -> Result<OtherSteps> + 'a;

/// A manifest to which steps were added.
#[derive(Debug)]
pub(crate) struct ExtendedCache {
    pub written: WrittenCache,
    /// The manifest, if the place has one now.
    pub manifest: Option<Vec<u8>>,
    /// The steps in it.
    pub steps: CachedSteps,
}

/// Adds steps to the manifest of a place. Uploads the layers that the place lacks. If another
/// machine writes meanwhile, its steps stay. Layers that neither the store nor the place has are
/// left out with their steps.
///
/// # Errors
///
/// Fails if the place fails or refuses.
pub(crate) fn extend(
    store: &Store,
    place: &dyn CacheStore,
    ours: &OwnSteps<'_>,
    others: &OtherStepsReader<'_>,
) -> Result<ExtendedCache> {
    let (mut written, mut layers) = (WrittenCache::default(), KnownLayers::default());
    let mut known = known_steps(store, place, ours.keys)?;
    for _ in 0..=MERGES {
        let before = known.as_ref().map(|known| &known.found);
        let (theirs, note) = match known.as_ref().map(|known| &known.steps) {
            Some(KnownSteps::NewerFormat) => {
                written.note = CacheNote::NewerFormat;
                return Ok(ExtendedCache { written, manifest: None, steps: CachedSteps::new() });
            }
            Some(steps) => steps.kept(),
            None => Default::default(),
        };
        let others = others(known.as_ref().map(|known| &known.manifest[..]))?;
        written.note = note.or(others.note).or(written.note);
        let theirs = union([theirs, others.steps]);
        layers.note_recorded(place, &theirs, ours)?;
        let MergedSteps { steps: mut all, left_out } = merged(theirs, ours);
        written.left_out = left_out;
        layers.upload(store, place, &all, &mut written)?;
        all.retain(|_, step| !layers.lacking.contains(&step.layer.blob));
        written.content = StepCount::of(all.values());
        let mut documents = CacheDocuments::of(&all, ours.keys)?;
        if !others.unread.is_empty() {
            documents.manifest.bytes = with_shards(&documents.manifest.bytes, &others.unread)?;
        }
        // Of a damaged cache, even equal documents are written again.
        let whole = before.filter(|_| !note.is_replaced()).and_then(|found| found.content.digest());
        let is_same = whole == Some(documents.manifest.digest());
        // A shard without steps is not begun.
        if is_same || (before.is_none() && all.is_empty()) {
            written.is_unchanged = true;
            return Ok(ExtendedCache { written, manifest: is_same.then_some(documents.manifest.bytes), steps: all });
        }
        match place.replace(&documents, before)? {
            Replacement::Done => {
                keep(store, &documents)?;
                return Ok(ExtendedCache { written, manifest: Some(documents.manifest.bytes), steps: all });
            }
            Replacement::Conflict => known = known_steps(store, place, ours.keys)?,
            // Layers that the records name are gone, although no build has needed them.
            Replacement::LacksLayers(_) if !layers.is_distrusted => {
                layers.is_distrusted = true;
                layers.there.clone_from(&layers.uploaded);
            }
            Replacement::LacksLayers(e) => return Err(e),
        }
    }
    Err(TransportError::other(format!("other machines wrote to `{}` all the time", place.name())))
}

impl KnownLayers {
    /// Notes the layers that records name and that were not lost.
    fn note_recorded(&mut self, place: &dyn CacheStore, theirs: &CachedSteps, ours: &OwnSteps<'_>) -> Result<()> {
        // Several steps may have the layer that is lost.
        let (lost, usable): (Vec<_>, Vec<_>) = theirs.values().partition(|step| ours.lost.contains(&step.key));
        self.damaged.extend(lost.into_iter().map(|step| step.layer.blob));
        let own: BTreeSet<_> = ours.steps.iter().map(|step| step.key).collect();
        let (mut unknown, mut old, mut listed) = (Vec::new(), Vec::new(), BTreeSet::new());
        for step in usable {
            let part = BlobInfo { digest: step.layer.blob, size: step.layer.size };
            if self.damaged.contains(&part.digest) || self.there.contains(&part.digest) || !listed.insert(part.digest) {
                continue;
            }
            if self.is_distrusted {
                unknown.push(part);
            } else if own.contains(&step.key) && step.used < ours.today {
                old.push(part);
            } else {
                self.there.insert(part.digest);
            }
        }
        self.there.extend(place.present(&unknown)?);
        self.there.extend(place.refreshed(&old)?);
        Ok(())
    }

    /// Uploads the layers of steps that the place lacks.
    fn upload(
        &mut self,
        store: &Store,
        place: &dyn CacheStore,
        steps: &CachedSteps,
        written: &mut WrittenCache,
    ) -> Result<()> {
        let mut listed = BTreeSet::new();
        let layers = steps.values().map(|step| BlobInfo { digest: step.layer.blob, size: step.layer.size });
        let new: Vec<BlobInfo> =
            layers.filter(|part| !self.there.contains(&part.digest) && listed.insert(part.digest)).collect();
        let outcomes = place.upload(&store.blobs(), &new, &self.damaged)?;
        for (part, outcome) in new.iter().zip(outcomes) {
            match outcome {
                LayerUpload::There(origin) => {
                    self.there.insert(part.digest);
                    self.uploaded.insert(part.digest);
                    if origin == BlobOrigin::Source {
                        written.layers += 1;
                        written.bytes += part.size;
                    }
                }
                LayerUpload::Lacking => drop(self.lacking.insert(part.digest)),
            }
        }
        Ok(())
    }
}

/// Keeps documents in the store, from which the next build reads them.
fn keep(store: &Store, documents: &CacheDocuments) -> Result<()> {
    let work = Workspace::open(store)?;
    for bytes in documents.blobs.iter().chain([&documents.manifest.bytes]) {
        store.blobs().put_blob(&work, &bytes[..])?;
    }
    Ok(())
}

/// A cache before it is extended.
struct KnownCache {
    found: FoundManifest,
    manifest: Vec<u8>,
    steps: KnownSteps,
}

/// Returns the manifest that is extended, and its steps.
fn known_steps(store: &Store, place: &dyn CacheStore, keys: &RecordKeys) -> Result<Option<KnownCache>> {
    let Some(found) = place.current()? else { return Ok(None) };
    let (work, budget) = (&Workspace::open(store)?, &RecordBudget::default());
    let documents = RemoteDocuments { store, blobs: place.blobs(), work, budget };
    let manifest = match &found.content {
        ManifestContent::Read(bytes) => Some(bytes.clone()),
        ManifestContent::Unread(digest) => match documents.manifest(digest) {
            Err(e) if e.is_damage() && place.has_only_caches() => None,
            manifest => Some(manifest?),
        },
        ManifestContent::Damaged => None,
    };
    Ok(Some(match manifest {
        Some(manifest) => KnownCache { found, steps: steps_in(&documents, &manifest, keys)?, manifest },
        None => KnownCache { found, steps: KnownSteps::Damaged, manifest: Vec::new() },
    }))
}

/// Returns the steps of a manifest that is extended.
///
/// # Errors
///
/// Fails if the manifest is that of something else, or if a document cannot be read now.
pub(crate) fn steps_in(documents: &RemoteDocuments<'_>, manifest: &[u8], keys: &RecordKeys) -> Result<KnownSteps> {
    match check_type(manifest).and_then(|()| documents.prefetched(manifest)) {
        Ok(blobs) => steps_to_extend(manifest, &blobs, keys, documents.budget),
        // The type is checked first: only a cache is replaced.
        Err(TransportError::Document { .. }) if check_type(manifest).is_ok() => Ok(KnownSteps::Damaged),
        Err(e) => Err(e),
    }
}
