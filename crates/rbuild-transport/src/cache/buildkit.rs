//! Caches of BuildKit: records by digest, with links to the records of their inputs, and layers.
//!
//! The format is that of `application/vnd.buildkit.cacheconfig.v0` (cache/remotecache/v1 in
//! BuildKit).

use std::collections::{BTreeSet, HashMap};

use rbuild_image::{BlobDigest, DiffId, ImageConfig, ImageManifest, digest_of, parse_manifest};
use rbuild_registry::decode_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blobs::{BlobInfo, BlobSource};
use crate::cache::artifact::BUILDKIT_CONFIG;
use crate::cache::inline::{FOREIGN_INLINE_RECORDS, is_image, of_images};
use crate::error::{Result, TransportError};
use crate::media_types::form_of;

/// Annotation with the diffID of a layer.
const DIFF_ID: &str = "containerd.io/uncompressed";
/// Maximum number of records, and of layers.
const MAX_ITEMS: usize = 100_000;
/// Maximum number of commas and brackets in the text of records. It limits the memory for lists.
const MAX_SEPARATORS: usize = 1_000_000;

/// The records of a cache of BuildKit, and its layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildKitCache {
    layers: Vec<CacheLayer>,
    records: Vec<CacheRecord>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildKitLayer {
    /// The blob.
    pub blob: BlobDigest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Digest of the uncompressed layer.
    pub diff_id: DiffId,
    /// Form of the layer: `uncompressed`, `gzip` or `zstd`.
    pub form: String,
}

/// A layer with the position of the one below it. One whose blob is unknown has no properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CacheLayer {
    layer: Option<BuildKitLayer>,
    below: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CacheRecord {
    digest: BlobDigest,
    /// For each input, the alternatives.
    inputs: Vec<Vec<RecordLink>>,
    results: Vec<(ResultLayers, i64)>,
}

/// The layers of a result, which was made at some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ResultLayers {
    /// The topmost one. The others are those below it.
    Top(usize),
    /// All, lowest first.
    List(Vec<usize>),
}

/// A record of an input: the whole of it, or the files that a selector stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordLink {
    selector: Option<BlobDigest>,
    record: usize,
}

/// The records that an input of a step corresponds to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputRecords {
    /// Records that stand for the input itself, or for the content that the step reads.
    pub whole: BTreeSet<usize>,
    /// Records of the input, of which the step reads what the selector stands for.
    pub selected: Option<(BlobDigest, BTreeSet<usize>)>,
}

impl InputRecords {
    /// Returns the records of an input that is used as a whole.
    pub fn whole(records: BTreeSet<usize>) -> InputRecords {
        InputRecords { whole: records, selected: None }
    }

    fn has(&self, link: &RecordLink) -> bool {
        match (&link.selector, &self.selected) {
            (None, _) => self.whole.contains(&link.record),
            (Some(selector), Some((own, records))) => selector == own && records.contains(&link.record),
            (Some(_), None) => false,
        }
    }
}

/// Returns the digest of the record of an output of a vertex, and of content for `None`.
fn record_digest(vertex: &BlobDigest, output: Option<u32>) -> BlobDigest {
    let output = output.map_or("-1".to_string(), |output| output.to_string());
    BlobDigest::of(format!("{vertex}@{output}").as_bytes())
}

impl BuildKitCache {
    /// Returns true if there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the cache with the records of another one.
    pub(crate) fn joined(mut self, other: BuildKitCache) -> BuildKitCache {
        let (layers, records) = (self.layers.len(), self.records.len());
        self.layers.extend(other.layers.into_iter().map(|layer| {
            let below = layer.below.map(|below| below.saturating_add(layers));
            CacheLayer { below, ..layer }
        }));
        self.records.extend(other.records.into_iter().map(|mut record| {
            for link in record.inputs.iter_mut().flatten() {
                link.record = link.record.saturating_add(records);
            }
            for (result, _) in &mut record.results {
                let numbers = match result {
                    ResultLayers::Top(top) => std::slice::from_mut(top),
                    ResultLayers::List(list) => list,
                };
                numbers.iter_mut().for_each(|number| *number = number.saturating_add(layers));
            }
            record
        }));
        self
    }

    /// Returns the records of a vertex without inputs, whose digest is one of these.
    pub fn sources(&self, vertex: &[BlobDigest]) -> BTreeSet<usize> {
        self.steps(vertex, &[])
    }

    /// Returns the records of content with that digest.
    pub fn content(&self, digest: &BlobDigest) -> BTreeSet<usize> {
        self.with_digests(&[record_digest(digest, None)], &[])
    }

    /// Returns the records of a vertex with these inputs, whose digest is one of these.
    pub fn steps(&self, vertex: &[BlobDigest], inputs: &[InputRecords]) -> BTreeSet<usize> {
        let digests: Vec<BlobDigest> = vertex.iter().map(|digest| record_digest(digest, Some(0))).collect();
        self.with_digests(&digests, inputs)
    }

    fn with_digests(&self, digests: &[BlobDigest], inputs: &[InputRecords]) -> BTreeSet<usize> {
        let is_match = |record: &CacheRecord| {
            let mut pairs = record.inputs.iter().zip(inputs);
            digests.contains(&record.digest)
                && record.inputs.len() == inputs.len()
                && pairs.all(|(links, own)| links.iter().any(|link| own.has(link)))
        };
        self.records.iter().enumerate().filter(|(_, record)| is_match(record)).map(|(number, _)| number).collect()
    }

    /// Returns the topmost layers of those results of a record that lie on the layers `below`, with
    /// the times at which they were made.
    pub fn results_on(&self, record: usize, below: &[DiffId]) -> impl Iterator<Item = (&BuildKitLayer, i64)> {
        self.results(record).filter_map(move |(result, made)| {
            let mut layers = self.downwards(result);
            let top = layers.next()??;
            has_layers(layers, below).then_some((top, *made))
        })
    }

    /// Returns true if a record has results, and all of them have these layers.
    pub fn has_only_result(&self, record: usize, layers: &[DiffId]) -> bool {
        let mut results = self.results(record).peekable();
        results.peek().is_some() && results.all(|(result, _)| has_layers(self.downwards(result), layers))
    }

    fn results(&self, record: usize) -> impl Iterator<Item = &(ResultLayers, i64)> {
        self.records.get(record).into_iter().flat_map(|record| &record.results)
    }

    /// Returns the layers of a result from the topmost one down; `None` for unknown ones. Links of
    /// damaged caches may form a circle, so the layers may have no end.
    fn downwards<'c>(&'c self, result: &'c ResultLayers) -> Box<dyn Iterator<Item = Option<&'c BuildKitLayer>> + 'c> {
        let layer = |number: usize| self.layers.get(number).and_then(|layer| layer.layer.as_ref());
        match result {
            ResultLayers::Top(top) => {
                let below = |number: &usize| self.layers.get(*number)?.below;
                Box::new(std::iter::successors(Some(*top), below).map(layer))
            }
            ResultLayers::List(list) => Box::new(list.iter().rev().copied().map(layer)),
        }
    }
}

/// Returns true if the layers, from the topmost one down, are known and equal to `expected`, whose
/// first one is the lowest.
fn has_layers<'c>(layers: impl Iterator<Item = Option<&'c BuildKitLayer>>, expected: &[DiffId]) -> bool {
    layers.map(|layer| layer.map(|layer| layer.diff_id)).eq(expected.iter().rev().copied().map(Some))
}

/// The configuration as BuildKit writes it.
#[derive(Deserialize)]
struct ConfigText {
    #[serde(default)]
    layers: Vec<LayerText>,
    #[serde(default)]
    records: Vec<RecordText>,
}

#[derive(Deserialize)]
struct LayerText {
    #[serde(default)]
    blob: Option<BlobDigest>,
    /// -1 for none. Go leaves out 0.
    #[serde(default)]
    parent: i64,
}

#[derive(Deserialize)]
struct RecordText {
    digest: BlobDigest,
    #[serde(default)]
    inputs: Vec<Vec<LinkText>>,
    #[serde(default)]
    layers: Vec<ResultText>,
    #[serde(default)]
    chains: Vec<ChainText>,
}

#[derive(Deserialize)]
struct LinkText {
    #[serde(default)]
    selector: String,
    #[serde(default)]
    link: usize,
}

#[derive(Deserialize)]
struct ResultText {
    #[serde(default)]
    layer: usize,
    #[serde(default, rename = "createdAt")]
    created: String,
}

#[derive(Deserialize)]
struct ChainText {
    #[serde(default)]
    layers: Vec<usize>,
    #[serde(default, rename = "createdAt")]
    created: String,
}

/// Reads the text of records. Each item of a list is preceded by a comma or a bracket.
fn parse_records<'t, T: Deserialize<'t>>(text: &'t [u8], what: &'static str) -> Result<T> {
    if text.iter().filter(|byte| matches!(byte, b',' | b'[')).count() > MAX_SEPARATORS {
        return Err(TransportError::other("its records have more than 1000000 items"));
    }
    serde_json::from_slice(text).map_err(TransportError::document(what))
}

fn seconds(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}

/// Builds the cache from the texts. `known` has the properties of layers.
fn cache_of(text: ConfigText, known: &HashMap<BlobDigest, BuildKitLayer>) -> Result<BuildKitCache> {
    if text.records.len() > MAX_ITEMS || text.layers.len() > MAX_ITEMS {
        return Err(TransportError::other("its records exceed 100000 steps"));
    }
    let layers = text.layers.into_iter().map(|layer| CacheLayer {
        layer: layer.blob.and_then(|blob| known.get(&blob).cloned()),
        below: usize::try_from(layer.parent).ok(),
    });
    let layers = layers.collect();
    let records = text.records.into_iter().map(|record| {
        let link = |link: LinkText| {
            let selector = if link.selector.is_empty() { None } else { Some(link.selector.parse().ok()?) };
            Some(RecordLink { selector, record: link.link })
        };
        let inputs = record.inputs.into_iter().map(|links| links.into_iter().filter_map(link).collect());
        let tops = record.layers.iter().map(|made| (ResultLayers::Top(made.layer), seconds(&made.created)));
        let lists = record.chains.into_iter().map(|made| (ResultLayers::List(made.layers), seconds(&made.created)));
        CacheRecord { digest: record.digest, inputs: inputs.collect(), results: tops.chain(lists).collect() }
    });
    let records = records.collect();
    Ok(BuildKitCache { layers, records })
}

/// Returns the layers that a list of descriptors describes completely.
fn layers_of(descriptors: &[Value]) -> HashMap<BlobDigest, BuildKitLayer> {
    let layer = |entry: &Value| {
        let blob: BlobDigest = entry["digest"].as_str()?.parse().ok()?;
        let diff_id = entry["annotations"][DIFF_ID].as_str()?.parse().ok()?;
        let form = form_of(entry["mediaType"].as_str()?)?.to_string();
        Some((blob, BuildKitLayer { blob, size: entry["size"].as_u64()?, diff_id, form }))
    };
    descriptors.iter().filter_map(layer).collect()
}

/// Returns the descriptor of the configuration in the manifest or the index of a cache of BuildKit.
pub(crate) fn buildkit_config(manifest: &Value) -> Option<BlobInfo> {
    let is_config = |entry: &Value| entry["mediaType"] == BUILDKIT_CONFIG;
    let in_index = || manifest["manifests"].as_array()?.iter().find(|entry| is_config(entry));
    let entry = Some(&manifest["config"]).filter(|entry| is_config(entry)).or_else(in_index)?;
    Some(BlobInfo { digest: entry["digest"].as_str()?.parse().ok()?, size: entry["size"].as_u64()? })
}

/// Returns true if a manifest or an index is that of a cache of BuildKit, not of an image.
pub(crate) fn is_buildkit_cache(manifest: &[u8]) -> bool {
    serde_json::from_slice(manifest).is_ok_and(|document: Value| buildkit_config(&document).is_some())
}

/// Reads a cache of BuildKit: from an image manifest, from an index, or from the configurations of
/// an image or of the images of an index. Returns `None` if it is something else.
///
/// # Errors
///
/// Fails if a document is missing or damaged.
pub(crate) fn read_buildkit(manifest: &[u8], blobs: &dyn BlobSource) -> Result<Option<BuildKitCache>> {
    let document: Value = serde_json::from_slice(manifest).map_err(TransportError::document("the cache's manifest"))?;
    if let Some(config) = buildkit_config(&document) {
        let text = blobs.document(&config.digest)?;
        let text = parse_records(&text, "the cache's configuration")?;
        let all = ["layers", "manifests"].map(|name| document[name].as_array().cloned().unwrap_or_default()).concat();
        return cache_of(text, &layers_of(&all)).map(Some);
    }
    if document["manifests"].is_array() {
        let images = of_images(&document, blobs, |image| of_image(image, blobs))?;
        return Ok(images.into_iter().reduce(BuildKitCache::joined));
    }
    of_image(manifest, blobs)
}

fn of_image(manifest: &[u8], blobs: &dyn BlobSource) -> Result<Option<BuildKitCache>> {
    match parse_manifest(manifest) {
        Ok(parsed) if is_image(&parsed) => inline_cache(&parsed, blobs),
        _ => Ok(None),
    }
}

/// Reads the records in the configuration of an image. Layer n is the n-th one of the image.
fn inline_cache(manifest: &ImageManifest, blobs: &dyn BlobSource) -> Result<Option<BuildKitCache>> {
    let digest = digest_of(manifest.config()).map_err(TransportError::document("the image manifest"))?;
    let config: ImageConfig = serde_json::from_slice(&blobs.document(&digest)?)
        .map_err(TransportError::document("the image configuration"))?;
    let Some(text) = config.rest.get(FOREIGN_INLINE_RECORDS).and_then(Value::as_str) else { return Ok(None) };
    let what = "the records in the image configuration";
    let text = decode_text(text).ok_or_else(|| TransportError::document(what)("they are not encoded as base64"))?;
    let records: Vec<RecordText> = parse_records(&text, what)?;
    let pairs = manifest.layers().iter().zip(&config.rootfs.diff_ids);
    let known: Vec<Option<BuildKitLayer>> = pairs
        .map(|(layer, diff_id)| {
            let form = form_of(layer.media_type().as_ref())?.to_string();
            Some(BuildKitLayer { blob: digest_of(layer).ok()?, size: layer.size(), diff_id: *diff_id, form })
        })
        .collect();
    let layers = known
        .iter()
        .enumerate()
        .map(|(number, layer)| LayerText { blob: layer.as_ref().map(|layer| layer.blob), parent: number as i64 - 1 });
    let text = ConfigText { layers: layers.collect(), records };
    let known = known.into_iter().flatten().map(|layer| (layer.blob, layer)).collect();
    cache_of(text, &known).map(Some)
}

#[cfg(test)]
mod tests;
