//! Steps in caches of BuildKit, which are found from the records of their inputs.
//!
//! A record states nothing about the result of a step, so a result is derived from the record and
//! the layer of a command, and from the key of other steps. All machines derive the same one.

use std::collections::BTreeSet;

use rbuild_dockerfile::Span;
use rbuild_image::{DiffId, Hasher};
use rbuild_layer::LayerForm;
use rbuild_plan::{BuildGraph, CopyStep, FileSource, Step, Vertex, VertexId};
use rbuild_source::{Selection, buildkit_digest};
use rbuild_store::{CacheKey, CachedStep, ResultId, StepLayer, Store};
use rbuild_transport::{BuildKitCache, ImportedCaches, ImportedStep, InputRecords};

use crate::cache::buildkit_keys::{self, CopyKeys};
use crate::contexts::Contexts;
use crate::error::Result;
use crate::prepare::vertex_state::VertexState;

/// The walk through the caches of BuildKit along a graph.
pub(super) struct BuildKitWalk<'a> {
    graph: &'a BuildGraph,
    store: &'a Store,
    contexts: &'a Contexts,
    caches: &'a ImportedCaches,
    /// For each cache and vertex, the records of the vertex.
    records: Vec<(usize, Vec<BTreeSet<usize>>)>,
    /// For each vertex, the layers of its file system, if they are known.
    layers: Vec<Option<Vec<DiffId>>>,
}

impl<'a> BuildKitWalk<'a> {
    pub fn new(graph: &'a BuildGraph, store: &'a Store, contexts: &'a Contexts, caches: &'a ImportedCaches) -> Self {
        let records = caches.of_buildkit().map(|(number, _)| (number, Vec::new())).collect();
        BuildKitWalk { graph, store, contexts, caches, records, layers: Vec::new() }
    }

    /// Finds a vertex, whose inputs have been visited. Returns its step, if a cache has it and the
    /// key is known.
    pub fn find(
        &mut self,
        vertex: &Vertex,
        key: Option<&CacheKey>,
        selected_files: &[Selection],
    ) -> Result<Option<ImportedStep>> {
        let mut found = None;
        for (at, (number, cache)) in self.caches.of_buildkit().enumerate() {
            let known = &self.records[at].1;
            let of_vertex = self.records_of(cache, known, vertex, selected_files)?;
            let below = vertex.parent.and_then(|parent| self.layers[parent.position()].as_deref());
            if let (None, Some(key), Some(below)) = (&found, key, below) {
                let step = step_of(cache, &of_vertex, below, &vertex.step, key);
                found = step.and_then(|step| self.caches.found_in(number, step));
            }
            self.records[at].1.push(of_vertex);
        }
        Ok(found)
    }

    /// Notes the layers of the file system of a vertex after it was looked up.
    pub fn visited(&mut self, vertex: &Vertex, state: &VertexState) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let below = vertex.parent.and_then(|parent| self.layers[parent.position()].clone());
        let own = match (&vertex.step, state) {
            (Step::Image { diff_ids, .. }, _) => {
                self.layers.push(Some(diff_ids.clone()));
                return Ok(());
            }
            (Step::Scratch, _) => {
                self.layers.push(Some(Vec::new()));
                return Ok(());
            }
            (_, VertexState::Imported(_, found)) => Some(found.step.layer.diff_id),
            (_, VertexState::Hit(_, record)) => self.stored_layer(record)?,
            _ => None,
        };
        self.layers.push(below.zip(own).map(|(mut below, own)| {
            below.push(own);
            below
        }));
        Ok(())
    }

    /// Returns the layer that an earlier build imported or packed.
    fn stored_layer(&self, record: &rbuild_store::Record) -> Result<Option<DiffId>> {
        for form in [LayerForm::GZIP, LayerForm::Uncompressed, LayerForm::ZSTD] {
            if let Some(layer) = self.store.lazy_trees().cached_layer(&record.tree, form)? {
                return Ok(Some(layer.diff_id));
            }
        }
        Ok(None)
    }

    fn records_of(
        &self,
        cache: &BuildKitCache,
        known: &[BTreeSet<usize>],
        vertex: &Vertex,
        selected_files: &[Selection],
    ) -> Result<BTreeSet<usize>> {
        let of = |id: VertexId| known[id.position()].clone();
        let parent = vertex.parent.map(of).filter(|records| !records.is_empty());
        Ok(match (&vertex.step, parent) {
            (Step::Image { manifest, platform, diff_ids, .. }, _) => {
                cache.sources(&buildkit_keys::image(manifest, platform, diff_ids))
            }
            (Step::Run(run), Some(parent)) => {
                // Versions since 0.11 name the path of the root mount.
                let selected = Some((buildkit_keys::root_selector(), parent.clone()));
                cache.steps(&buildkit_keys::run(run), &[InputRecords { whole: parent, selected }])
            }
            (Step::Workdir(step), Some(parent)) => {
                cache.steps(&buildkit_keys::workdir(step), &[InputRecords::whole(parent)])
            }
            (Step::Copy(step), Some(parent)) => {
                let Some(keys) = buildkit_keys::copy(step, self.graph.epoch.is_some()) else {
                    return Ok(BTreeSet::new());
                };
                let Some(source) = self.source(cache, known, step, &keys, selected_files)? else {
                    return Ok(BTreeSet::new());
                };
                cache.steps(&keys.digests, &[InputRecords::whole(parent), source])
            }
            (Step::Scratch, _) | (_, None) => BTreeSet::new(),
        })
    }

    /// Returns the records of what a copy reads; `None` if the files have no digest in BuildKit.
    fn source(
        &self,
        cache: &BuildKitCache,
        known: &[BTreeSet<usize>],
        step: &CopyStep,
        keys: &CopyKeys,
        selected_files: &[Selection],
    ) -> Result<Option<InputRecords>> {
        if let FileSource::Vertex(stage) = &step.from {
            let (records, layers) = (known[stage.position()].clone(), self.layers[stage.position()].as_deref());
            let records = of_same_files(cache, records, &self.graph.vertices[*stage].step, layers);
            return Ok(Some(InputRecords { whole: BTreeSet::new(), selected: Some((keys.selector, records)) }));
        }
        let Some(files) = selected_files.first() else { return Ok(None) };
        let Some(context) = self.contexts.of(step.from, Span::default()).ok().flatten() else { return Ok(None) };
        let tree = context.tree();
        let mut digests = Vec::new();
        for at in &keys.hashed {
            let Some([item]) = files.sources.get(*at).map(Vec::as_slice) else { return Ok(None) };
            // A file that cannot be read is reported when its key is computed.
            match buildkit_digest(&tree, item) {
                Ok(Some(digest)) => digests.push(digest),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
        Ok(Some(InputRecords::whole(cache.content(&buildkit_keys::content(&digests)))))
    }
}

/// Returns those records of a stage or an image that stand for the files that it has in this build.
/// A record identifies an image by its content. It identifies a stage by its definition, so its
/// layers are compared: other executions have other files.
fn of_same_files(
    cache: &BuildKitCache,
    mut records: BTreeSet<usize>,
    top: &Step,
    layers: Option<&[DiffId]>,
) -> BTreeSet<usize> {
    if !matches!(top, Step::Image { .. }) {
        records.retain(|record| layers.is_some_and(|layers| cache.has_only_result(*record, layers)));
    }
    records
}

/// Returns the step of the records, whose layer lies on the layers `below`.
fn step_of(
    cache: &BuildKitCache,
    records: &BTreeSet<usize>,
    below: &[DiffId],
    step: &Step,
    key: &CacheKey,
) -> Option<CachedStep> {
    let mut results = records.iter().flat_map(|record| cache.results_on(*record, below));
    let (layer, created) = results.next()?;
    let copies_stage = matches!(step, Step::Copy(CopyStep { from: FileSource::Vertex(_), .. }));
    // A second layer may be of another execution of the stage.
    if copies_stage && results.any(|(other, _)| other.diff_id != layer.diff_id) {
        return None;
    }
    let result = match step {
        Step::Run(_) => {
            let mut hasher = Hasher::new();
            hasher.field("execution by BuildKit").field(key.bytes()).field(layer.diff_id.to_string());
            hasher.finish()
        }
        _ => ResultId::from(*key),
    };
    let layer = StepLayer::of_other_builder(layer.blob, layer.size, layer.diff_id, &layer.form, created);
    Some(CachedStep::new(*key, result, layer, created)).filter(CachedStep::has_valid_times)
}

#[cfg(test)]
mod tests {
    use rbuild_plan::WorkdirStep;
    use serde_json::json;

    use super::*;

    #[test]
    fn copies_from_stages_are_those_of_the_same_execution() {
        let diff_id = |name: &str| DiffId::of(name.as_bytes());
        let layer = |(name, below): (&str, Option<usize>)| {
            let blob = rbuild_image::BlobDigest::of(name.as_bytes());
            json!({"below": below,
                "layer": {"blob": blob, "size": 9, "diff_id": diff_id(name), "form": "gzip"}})
        };
        let layers: Vec<_> = [("base", None), ("one", Some(0)), ("two", Some(0)), ("copy", Some(0))].map(layer).into();
        let record = |tops: &[usize]| {
            let results: Vec<_> = tops.iter().map(|top| json!([{"Top": top}, 7])).collect();
            json!({"digest": rbuild_image::BlobDigest::of(b"record"), "inputs": [], "results": results})
        };
        let records: Vec<_> = [&[1][..], &[2], &[1, 2], &[]].map(record).into();
        let cache: BuildKitCache = serde_json::from_value(json!({"layers": layers, "records": records})).unwrap();
        let stage = Step::Workdir(WorkdirStep { path: "/".into(), user: String::new(), time: None });
        let (one, other) = ([diff_id("base"), diff_id("one")], [diff_id("base"), diff_id("local")]);
        for (layers, want) in [(Some(&one[..]), [0].into()), (Some(&other), BTreeSet::new()), (None, BTreeSet::new())] {
            assert_eq!(of_same_files(&cache, (0..4).collect(), &stage, layers), want);
        }
        let image = Step::Image {
            name: "x".into(),
            manifest: rbuild_image::BlobDigest::of(b"image").to_string().parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            diff_ids: vec![diff_id("base")],
        };
        assert_eq!(of_same_files(&cache, [3].into(), &image, None), [3].into());

        let copy = Step::Copy(CopyStep { from: FileSource::Vertex(VertexId::new(0)), ..CopyStep::default() });
        let found = |records: &[usize], step: &Step| {
            let records = records.iter().copied().collect();
            step_of(&cache, &records, &one[..1], step, &CacheKey::of(b"key")).map(|step| step.layer.diff_id)
        };
        assert_eq!(found(&[0, 3], &copy), Some(diff_id("one")));
        assert_eq!((found(&[0, 1], &copy), found(&[2], &copy)), (None, None), "results of two executions");
        assert_eq!(found(&[2], &stage), Some(diff_id("one")));
    }
}
