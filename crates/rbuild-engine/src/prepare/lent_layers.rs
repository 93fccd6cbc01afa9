//! Layers of an image that is only pushed and whose steps are hits in caches of registries. Such an
//! image is made without its layers.

use rbuild_image::{Descriptor, DiffId};
use rbuild_plan::{BuildGraph, NoCache, VertexId};
use rbuild_store::Store;
use rbuild_transport::{BlobInfo, LentLayer};

use crate::error::Result;
use crate::exports::{ImageForm, Squash};
use crate::prepare::vertex_state::VertexState;
use crate::request::BuildRequest;

/// A layer of a step, lowest first.
pub(crate) struct KnownLayer {
    pub layer: (Descriptor, DiffId),
    /// The place of a layer that the store lacks.
    pub lent: Option<LentLayer>,
}

/// Returns true if the image of the target can be made and pushed without its layers.
pub(crate) fn is_possible<'a>(
    graph: &BuildGraph,
    state: impl Fn(VertexId) -> &'a VertexState,
    request: &BuildRequest,
    store: &Store,
) -> Result<bool> {
    Ok(layers_of_steps(graph, state, request, store)?.is_some())
}

/// Returns the form of the image, if it is the only output, is only pushed, and has the layers of
/// the steps as they are.
pub(crate) fn form(graph: &BuildGraph, request: &BuildRequest) -> Option<ImageForm> {
    let required = request.requirements();
    let [form] = required.images[..] else { return None };
    let is_plain = form.squash == Squash::None && !form.force && (form.late_times || graph.epoch.is_none());
    let is_allowed = request.is_only_pushed
        && is_plain
        && !required.files
        && request.platforms.len() <= 1
        && request.salt.is_none()
        && request.parameters.no_cache == NoCache::None
        && !request.record_sizes
        && !request.inline_cache
        && !request.caches.must_be_copied();
    is_allowed.then_some(form)
}

/// Returns the layers of the target's own steps, lowest first; `None` if one of them is not known,
/// or if the store has all of them.
pub(crate) fn layers_of_steps<'a>(
    graph: &BuildGraph,
    state: impl Fn(VertexId) -> &'a VertexState,
    request: &BuildRequest,
    store: &Store,
) -> Result<Option<Vec<KnownLayer>>> {
    let Some(form) = form(graph, request) else { return Ok(None) };
    let mut layers = Vec::new();
    for id in graph.chain(graph.target) {
        let found = match state(id) {
            VertexState::Source(_) => continue,
            VertexState::Imported(_, found) if found.step.layer.form == form.layers.name() => {
                let layer = &found.step.layer;
                let part = BlobInfo { digest: layer.blob, size: layer.size };
                let Some(name) = request.caches.registry_of(found).filter(|_| layer.has_type_of_form()) else {
                    return Ok(None);
                };
                let is_here = store.blobs().has_complete_blob(&part.digest, part.size)?;
                // A cache elsewhere is written from layers of the store.
                if !is_here && request.cache_exports.iter().any(|export| !export.is_in_repository_of(name)) {
                    return Ok(None);
                }
                let lent = (!is_here).then(|| LentLayer { part, name: name.clone() });
                KnownLayer { layer: (layer.descriptor(), layer.diff_id), lent }
            }
            VertexState::Hit(_, record) => match store.lazy_trees().cached_layer(&record.tree, form.layers)? {
                Some(layer) if store.blobs().has_complete_blob(&layer.blob, layer.size)? => {
                    KnownLayer { layer: (layer.descriptor(), layer.diff_id), lent: None }
                }
                _ => return Ok(None),
            },
            VertexState::Imported(..) | VertexState::Foreign(..) | VertexState::Open => return Ok(None),
        };
        layers.push(found);
    }
    layers.reverse();
    Ok(layers.iter().any(|layer| layer.lent.is_some()).then_some(layers))
}
