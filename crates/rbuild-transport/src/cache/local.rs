//! Caches in directories (OCI image layouts).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use rbuild_image::{BlobDigest, MediaType, REF_NAME};
use rbuild_linux::{Directory, is_disk_full};
use serde_json::{Value, json};

use crate::blobs::{BlobInfo, BlobRead, BlobSource, copy_verified};
use crate::cache::artifact::{ARTIFACT, CacheDocuments, KnownSteps, damaged_document, steps_to_extend};
use crate::cache::merge::{MergedSteps, OwnSteps, WrittenCache, merged};
use crate::cache::note::CacheNote;
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::{CacheRecords, read_any};
use crate::cache::signature::RecordKeys;
use crate::cache::step_count::StepCount;
use crate::error::{Result, TransportError};
use crate::layout::{LayoutSource, LayoutWriter, blob_path};

/// A cache in a directory: the layout and the tag of the cache in it.
#[derive(Debug)]
pub struct LocalCache {
    /// The directory.
    pub dir: Directory,
    /// Tag of the cache.
    pub tag: String,
}

/// Opens a cache in a directory, without reading its layers. Returns `None` if there is none.
///
/// # Errors
///
/// Fails if the directory contains something else, if a document is damaged, or if the documents
/// exceed the budget.
pub(crate) fn open_local(
    dir: &Path,
    tag: &str,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<Option<(CacheRecords, LayoutSource)>> {
    let source = match LayoutSource::open(dir) {
        Err(TransportError::OpenLayout { source, .. }) if source.whole().is_not_found() => return Ok(None),
        other => other?,
    };
    let Some(index) = source.read("index.json")? else { return Ok(None) };
    let Some(manifest) = manifest_in(&index, tag)? else { return Ok(None) };
    let documents = BudgetedDocuments { layout: &source, budget };
    let records = read_any(&documents.document(&manifest)?, &documents, keys, budget)?;
    Ok(Some((records, source)))
}

/// The documents of a layout, which are counted.
struct BudgetedDocuments<'a> {
    layout: &'a LayoutSource,
    budget: &'a RecordBudget,
}

impl BlobSource for BudgetedDocuments<'_> {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        self.layout.size(digest)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        self.budget.take(self.layout.size(digest)?.unwrap_or(0))?;
        self.layout.document(digest)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        self.layout.open(part)
    }
}

/// Returns the manifest with that tag in an index. A digest, which no tag can have the form of,
/// denotes a manifest itself.
fn manifest_in(index: &[u8], tag: &str) -> Result<Option<BlobDigest>> {
    if let Ok(digest) = tag.parse() {
        return Ok(Some(digest));
    }
    let index: Value = serde_json::from_slice(index).map_err(TransportError::document("index.json"))?;
    let entries = index["manifests"].as_array().into_iter().flatten();
    let mut tagged = entries.filter(|entry| is_tagged(entry, tag));
    let Some(digest) = tagged.next_back().map(|entry| entry["digest"].as_str().unwrap_or_default()) else {
        return Ok(None);
    };
    digest.parse().map(Some).map_err(TransportError::document("index.json"))
}

fn is_tagged(entry: &Value, tag: &str) -> bool {
    entry["annotations"][REF_NAME] == *tag
}

/// Adds the steps of a build to a cache in a directory: writes the layers that it lacks or that are
/// damaged, and its documents if they change. `sources` are the places that have the layers. A
/// layer that none of them has is left out with its step. Other writers of the directory wait.
///
/// # Errors
///
/// Fails if the directory cannot be written, or contains something that is not a layout.
#[tracing::instrument(
    target = "transport",
    name = "cache",
    level = "debug",
    skip_all,
    fields(steps = ours.steps.len())
)]
pub fn write_local_cache(to: &LocalCache, ours: &OwnSteps<'_>, sources: &[&dyn BlobSource]) -> Result<WrittenCache> {
    let layout = LayoutWriter::open(&to.dir)?;
    let mut written = WrittenCache::default();
    layout.change_index_if(|index| {
        let known = match index {
            Some(bytes) => manifest_in(bytes, &to.tag)?,
            None => None,
        };
        let here = layout.source()?;
        let (mut theirs, note) = match known.map(|manifest| known_steps(&manifest, &here, ours.keys)).transpose()? {
            Some(KnownSteps::NewerFormat) => {
                written.note = CacheNote::NewerFormat;
                return Ok(None);
            }
            Some(steps) => steps.kept(),
            None => Default::default(),
        };
        written.note = note;
        let damaged: BTreeSet<BlobDigest> =
            ours.lost.iter().filter_map(|key| theirs.get(key)).map(|step| step.layer.blob).collect();
        let lacks = |blob, size| Ok::<_, TransportError>(damaged.contains(&blob) || !layout.has(&blob, size)?);
        let mut gone = BTreeSet::new();
        for step in theirs.values() {
            if lacks(step.layer.blob, step.layer.size)? {
                gone.insert(step.key);
            }
        }
        theirs.retain(|key, _| !gone.contains(key));
        let MergedSteps { steps: mut all, left_out } = merged(theirs, ours);
        written.left_out = left_out;
        let mut failed = BTreeSet::new();
        for step in all.values() {
            let part = BlobInfo { digest: step.layer.blob, size: step.layer.size };
            if !lacks(part.digest, part.size)? {
                continue;
            }
            if copy(&layout, sources, &part)? {
                written.layers += 1;
                written.bytes += part.size;
            } else {
                failed.insert(step.key);
            }
        }
        all.retain(|key, _| !failed.contains(key));
        written.content = StepCount::of(all.values());
        let documents = CacheDocuments::of(&all, ours.keys)?;
        let manifest = documents.manifest.digest();
        // Of a damaged cache, another document may be missing.
        let is_same = !note.is_replaced() && known == Some(manifest);
        if is_same && layout.has(&manifest, documents.manifest.bytes.len() as u64)? {
            written.is_unchanged = true;
            return Ok(None);
        }
        for bytes in documents.blobs.iter().chain([&documents.manifest.bytes]) {
            if note.is_replaced() { layout.replace_bytes(bytes)? } else { layout.put_bytes(bytes)? }
        }
        let entry = json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "artifactType": ARTIFACT,
            "digest": manifest.to_string(),
            "size": documents.manifest.bytes.len(),
            "annotations": {REF_NAME: to.tag},
        });
        tagged_index(index, &to.tag, entry).map(Some)
    })?;
    Ok(written)
}

fn known_steps(manifest: &BlobDigest, here: &LayoutSource, keys: &RecordKeys) -> Result<KnownSteps> {
    let documents = WrittenDocuments(here);
    match documents.document(manifest) {
        Ok(manifest) => steps_to_extend(&manifest, &documents, keys, &RecordBudget::default()),
        Err(TransportError::Document { .. }) => Ok(KnownSteps::Damaged),
        Err(e) => Err(e),
    }
}

/// The documents of a layout, with damage as an error of its own.
struct WrittenDocuments<'a>(&'a LayoutSource);

impl BlobSource for WrittenDocuments<'_> {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        self.0.size(digest)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        match self.0.read(&blob_path(digest))? {
            Some(bytes) if BlobDigest::of(&bytes) == *digest => Ok(bytes),
            Some(_) => Err(damaged_document("it has the wrong digest")),
            None => Err(damaged_document("it is missing")),
        }
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        self.0.open(part)
    }
}

/// Copies a layer from the first of the sources that has it. Returns false if none has it, or if it
/// is damaged in all of them.
fn copy(layout: &LayoutWriter, sources: &[&dyn BlobSource], part: &BlobInfo) -> Result<bool> {
    let moved = AtomicU64::new(0);
    for source in sources {
        if !matches!(source.size(&part.digest), Ok(Some(size)) if size == part.size) {
            continue;
        }
        // A damaged layer is replaced.
        let copied =
            layout.put(|_| part.digest, |out| copy_verified(&mut *source.open(part)?, &part.digest, out, &moved));
        match copied {
            Ok(_) => return Ok(true),
            // Only the directory can be full, or fail while its files are created.
            Err(TransportError::Io { context, source }) if is_disk_full(&source) => {
                return Err(TransportError::Io { context, source });
            }
            Err(e @ TransportError::Kernel { .. }) if !is_missing(*source, part) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Returns true if a source no longer has a layer that it had.
fn is_missing(source: &dyn BlobSource, part: &BlobInfo) -> bool {
    source.open(part).is_err()
}

/// Returns the index with `entry` in place of the one with the same tag.
fn tagged_index(index: Option<&[u8]>, tag: &str, entry: Value) -> Result<Value> {
    let empty = json!({"schemaVersion": 2, "mediaType": MediaType::ImageIndex.to_string(), "manifests": []});
    let mut index = match index {
        Some(bytes) => serde_json::from_slice(bytes).map_err(TransportError::layout_index)?,
        None => empty,
    };
    let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(TransportError::layout_index("it lists no manifests"));
    };
    entries.retain(|old| !is_tagged(old, tag));
    entries.push(entry);
    Ok(index)
}

#[cfg(test)]
mod tests;
