//! Assembly of the final image: the base's layers plus those of the steps, configuration and
//! manifest.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use rbuild_dockerfile::{Diagnostic, Help};
use rbuild_image::{Descriptor, DiffId, History, ManifestDigest, MediaType, descriptor};
use rbuild_linux::parallel::{cores, try_map};
use rbuild_plan::{BuildGraph, NoCache, Step, VertexId};
use rbuild_store::{Image, LayerVariant, Layers, PackedLayer, Store, StoreError, TreeId, Workspace};
use rbuild_transport::{FOREIGN_INLINE_RECORDS, INLINE_RECORDS, distributable, inline_records, layer_pairs};

use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::event::BuildPhase;
use crate::export::cache_steps;
use crate::export::packing_error::not_packed;
use crate::exports::{ImageForm, Squash};
use crate::prepare::image_key::image_key;
use crate::prepare::lent_layers;
use crate::prepare::vertex_state::VertexState;
use crate::request::BuildRequest;
use crate::solve::executor::LayerQueue;

const COMMENT: &str = "buildkit.dockerfile.v0";

/// Returns the manifest digest of the target's image, assembling it unless it is cached.
#[tracing::instrument(target = "engine", name = "pack", level = "debug", skip_all)]
pub(crate) fn image(env: &StepEnv<'_>, form: &ImageForm) -> Result<ManifestDigest> {
    let key = image_key(env.graph(), &env.done(env.graph().target).result, env.request, form);
    if env.request.parameters.no_cache == NoCache::None
        && let Some(found) = env.store.records().result(&key)?
    {
        return Ok(found.manifest);
    }
    let phase = env.events.begin(BuildPhase::Layers, None);
    let packed = new_layers(env, form, &phase.meter.moved)?;
    phase.end();
    let manifest = documents(env, form, &packed)?;
    // Other builds could not use an image without its layers.
    if env.prepared.lent_base().is_empty() {
        env.store.records().put_result(&key, &manifest, &env.request.build_id)?;
    }
    Ok(manifest)
}

/// Returns the vertices of the target's parent chain, base first.
fn chain(env: &StepEnv<'_>) -> Vec<VertexId> {
    let mut chain: Vec<VertexId> = env.chain().collect();
    chain.reverse();
    chain
}

/// Returns the trees of the target's own steps, lowest first.
pub(crate) fn own_trees(env: &StepEnv<'_>) -> Result<Vec<TreeId>> {
    chain(env)[1..].iter().map(|v| env.rootfs.own_tree(*v).cloned()).collect()
}

/// Stores the configuration and the manifest of the image whose own layers are `packed`; returns
/// the manifest digest.
pub(crate) fn documents(env: &StepEnv<'_>, form: &ImageForm, packed: &[PackedLayer]) -> Result<ManifestDigest> {
    let graph = env.graph();
    let base = chain(env)[0];
    let mut below = Vec::new();
    if let Step::Image { manifest, .. } = &graph.vertices[base].step {
        let image = env.image(manifest)?;
        let kept = if form.squash == Squash::All { Vec::new() } else { image.layers()? };
        if !form.force {
            // If all steps were cached on top of another image with equal diffIDs, the layers of
            // this image have not been unpacked, so they have not been verified yet. Those that
            // stay in a registry never are.
            let lent = env.prepared.lent_base();
            let stored: Vec<_> = kept.iter().filter(|(layer, _)| !lent_layers::is_in(lent, layer)).cloned().collect();
            check_base(env, base, &stored)?;
        }
        for (layer, diff_id) in kept {
            below.push((
                if form.force {
                    layers_of(env, form).repack_layer(&env.rootfs.work, &layer, &diff_id, form.layers)?.descriptor()
                } else if form.distributes {
                    distributable(layer)
                } else {
                    layer
                },
                diff_id,
            ));
        }
    }
    let own = packed.iter().map(|layer| (layer.descriptor(), layer.diff_id)).collect();
    let created = |id: VertexId| env.done(id).created;
    let parts = ImageParts { graph, request: env.request, images: &env.prepared.images, created: &created };
    let records = if env.request.inline_cache && form.has_layers_of_steps(graph.epoch) {
        Some(inline_records(&cache_steps::of_image(env, form.layers)?)?)
    } else {
        None
    };
    parts.put(env.store, &env.rootfs.work, form, ImageLayers { below, own }, records)
}

/// The layers of an image with their diffIDs, lowest first.
pub(crate) struct ImageLayers {
    /// Those of the base.
    pub below: Vec<(Descriptor, DiffId)>,
    /// Those of the image's own steps.
    pub own: Vec<(Descriptor, DiffId)>,
}

/// The parts of an image's documents besides its layers.
pub(crate) struct ImageParts<'a> {
    pub graph: &'a BuildGraph,
    pub request: &'a BuildRequest,
    /// Images by manifest digest.
    pub images: &'a HashMap<ManifestDigest, Image>,
    /// Returns the time at which the files of a step were made.
    pub created: &'a dyn Fn(VertexId) -> i64,
}

impl ImageParts<'_> {
    /// Stores the configuration and the manifest of an image with the layers of its base and those
    /// of its own steps, and with records of these. Returns the manifest digest.
    pub fn put(
        &self,
        store: &Store,
        work: &Workspace,
        form: &ImageForm,
        layers: ImageLayers,
        records: Option<String>,
    ) -> Result<ManifestDigest> {
        let (graph, request) = (self.graph, self.request);
        let mut chain: Vec<VertexId> = graph.chain(graph.target).collect();
        chain.reverse();
        let mut config = graph.config.clone();
        config.history.clear();
        config.rootfs = Default::default();
        // Those of the base are not records of this image.
        [INLINE_RECORDS, FOREIGN_INLINE_RECORDS].iter().for_each(|key| drop(config.rest.remove(*key)));
        config.rest.extend(records.map(|records| (INLINE_RECORDS.to_string(), records.into())));
        if let Step::Image { manifest, .. } = &graph.vertices[chain[0]].step {
            let image = self.images.get(manifest);
            let image = image.ok_or_else(|| BuildError::other("an image of the plan was never resolved"))?;
            config.history = image.config.history.clone();
        }
        let ImageLayers { below, own } = layers;
        let mut layers: Vec<Descriptor> = Vec::new();
        for (layer, diff_id) in below.into_iter().chain(own) {
            layers.push(layer);
            config.rootfs.diff_ids.push(diff_id);
        }
        self.add_history(&mut config.history, &chain[1..])?;
        if form.squash != Squash::None {
            fold_history(&mut config.history, layers.len());
        }
        config.created = match config.history.last().and_then(|h| h.created.clone()) {
            Some(created) => Some(created),
            None => Some(time(graph.epoch.map_or(request.now, |e| e.min(request.now)))?),
        };
        let (config_digest, config_size) = store.blobs().put_document(work, &config)?;
        let mut manifest =
            rbuild_image::manifest(descriptor(MediaType::ImageConfig, &config_digest, config_size), layers);
        if !request.annotations.is_empty() {
            manifest.set_annotations(Some(request.annotations.iter().cloned().collect()));
        }
        Ok(store.blobs().put_document(work, &manifest)?.0.of_manifest())
    }

    /// Appends the target's own history. An entry with a layer is dated by the layer's creation;
    /// entries before the first layer get the time of that layer, other entries the time of the
    /// preceding one.
    fn add_history(&self, history: &mut Vec<History>, steps: &[VertexId]) -> Result<()> {
        let graph = self.graph;
        let clamp = |t: i64| graph.epoch.map_or(t, |epoch| t.min(epoch));
        let times: HashMap<VertexId, i64> = steps.iter().map(|v| (*v, clamp((self.created)(*v)))).collect();
        let first = steps.first().map_or(clamp(self.request.now), |v| times[v]);
        let mut current = time(first)?;
        for entry in &graph.history {
            if let Some(created) = entry.layer.and_then(|v| times.get(&v)) {
                current = time(*created)?;
            }
            history.push(History {
                created: Some(current.clone()),
                created_by: entry.created_by.clone(),
                author: None,
                comment: COMMENT.into(),
                empty_layer: entry.layer.is_none(),
            });
        }
        Ok(())
    }
}

/// Returns the time at which the files of a vertex were made, before anything runs.
pub(crate) fn time_of_state(state: &VertexState, now: i64) -> i64 {
    match state {
        VertexState::Hit(_, record) => record.created,
        VertexState::Foreign(_, record) => record.created(),
        VertexState::Imported(_, found) => found.step.created,
        VertexState::Source(_) | VertexState::Open => now,
    }
}

/// Fails at FROM if a layer of the base does not match the diffID in its configuration.
fn check_base(env: &StepEnv<'_>, base: VertexId, layers: &[(Descriptor, DiffId)]) -> Result<()> {
    env.store.blobs().check_layers(&layer_pairs(layers.iter())?).map_err(|e| match e {
        StoreError::WrongDiffId { .. } | StoreError::WrongDigest { .. } => {
            let d = Diagnostic::new(env.graph().vertices[base].span, e.to_string());
            let help = e.remedy().map(Help::from);
            BuildError::Unmet(vec![Diagnostic { help, ..d }])
        }
        e => e.into(),
    })
}

/// Returns the layers of the store. If the form is the one of the result that is kept and pushed,
/// those that are packed are announced. The result must have been searched for secrets before.
fn layers_of<'a>(env: &'a StepEnv<'_>, form: &ImageForm) -> Layers<'a> {
    let is_kept = env.required.images.first() == Some(form);
    env.store.layers().watched_by(env.store.packing_watch().filter(|_| is_kept))
}

/// Packs the target's own layers; returns them lowest first. `moved` counts their bytes.
#[tracing::instrument(target = "engine", name = "layers", level = "debug", skip_all)]
fn new_layers(env: &StepEnv<'_>, form: &ImageForm, moved: &AtomicU64) -> Result<Vec<PackedLayer>> {
    let layers = layers_of(env, form).counting(moved);
    let variant = variant(env, form);
    let mut trees = own_trees(env)?;
    match form.squash {
        Squash::All => {
            let view = env.rootfs.view(env.graph().target)?;
            // As without squashing, an empty result has no layer.
            if view.entries().map_err(BuildError::kernel(ErrorContext::Result))?.is_empty() {
                return Ok(Vec::new());
            }
            return Ok(vec![layers.pack_view(&env.rootfs.work, &view, variant)?]);
        }
        Squash::Steps if !trees.is_empty() => {
            trees = vec![env.store.layers().squash_trees(env.rootfs.session(), &trees)?]
        }
        Squash::Steps | Squash::None => {}
    }
    let stop = || env.cancel.is_canceled();
    let pack = |tree: &TreeId| {
        let packed = layers.pack_tree(&env.rootfs.work, tree, variant, &stop);
        packed.map_err(|e| not_packed(env, tree, e))
    };
    try_map(cores(), &trees, pack)
}

/// Returns the layers that the trees of an image of that form are packed into.
pub(crate) fn variant(env: &StepEnv<'_>, form: &ImageForm) -> LayerVariant {
    LayerVariant { form: form.layers, latest: env.graph().epoch.filter(|_| !form.late_times) }
}

/// Packs the layers of trees as they arrive, in the requested forms, while other steps are running.
/// Uses only processor time that would otherwise be idle. Errors are ignored here: they occur
/// again, and are reported, when the layer is needed.
pub(crate) fn pack_early(env: &StepEnv<'_>, layers: &LayerQueue<'_>) {
    rbuild_linux::parallel::lower_priority();
    let stop = || env.cancel.is_canceled();
    // Layers still unpacked after the last step are packed by several threads at normal priority
    // instead.
    while let Some(tree) = layers.next() {
        for form in env.required.images.iter().filter(|form| form.squash == Squash::None) {
            // The result has not been searched for secrets yet.
            let layers = if env.request.secrets.is_empty() { layers_of(env, form) } else { env.store.layers() };
            let _ = layers.pack_tree(&env.rootfs.work, &tree, variant(env, form), &stop);
        }
    }
}

/// Marks history entries as empty until the number of non-empty ones equals that of the layers. The
/// last non-empty entry is always kept; it represents all layers that were merged.
fn fold_history(history: &mut [History], layers: usize) {
    let filled: Vec<usize> = (0..history.len()).filter(|i| !history[*i].empty_layer).collect();
    match (layers, &filled[..], history) {
        (0, _, history) => history.iter_mut().for_each(|entry| entry.empty_layer = true),
        // Images from other tools may have layers without history entries.
        (_, [], [.., last]) => last.empty_layer = false,
        (_, [but_last @ .., _], history) => {
            for i in &but_last[(layers - 1).min(but_last.len())..] {
                history[*i].empty_layer = true;
            }
        }
        (_, [], []) => {}
    }
}

/// Formats a time as RFC 3339 in UTC.
pub(crate) fn time(seconds: i64) -> Result<String> {
    let timestamp = jiff::Timestamp::from_second(seconds);
    Ok(timestamp.map_err(|_| out_of_range(seconds))?.to_string())
}

fn out_of_range(seconds: i64) -> BuildError {
    let [first, last] = [jiff::Timestamp::MIN, jiff::Timestamp::MAX].map(jiff::Timestamp::as_second);
    BuildError::other(format!("the time {seconds} is not between {first} and {last} seconds since 1970"))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn folded(empty: &[bool], layers: usize) -> Vec<bool> {
        let mut history: Vec<History> =
            empty.iter().map(|empty| History { empty_layer: *empty, ..History::default() }).collect();
        fold_history(&mut history, layers);
        history.iter().map(|entry| entry.empty_layer).collect()
    }

    #[test]
    fn a_squashed_history_has_as_many_layers_as_the_image() {
        for (empty, layers, want) in [
            (&[false, true, false, false][..], 1, &[true, true, true, false][..]),
            (&[false, true, false, false], 2, &[false, true, true, false]),
            (&[false, false], 2, &[false, false]),
            // Layers without history entries.
            (&[false, false], 5, &[false, false]),
            (&[true, true], 1, &[true, false]),
            (&[], 1, &[]),
            (&[false, true], 0, &[true, true]),
        ] {
            assert_eq!(folded(empty, layers), want, "{empty:?} {layers}");
        }
    }

    #[test]
    fn times_out_of_range_are_refused_as_recorded() {
        assert_recorded!(
            "no-time",
            variants!(BuildError).table(&[time(i64::MAX).unwrap_err()], |e| e, BuildError::help)
        );
    }
}
