//! Layers of an image that is only pushed, and that are in registries: those of steps that are hits
//! in caches, and those of the base. The image is made without them.

use std::collections::HashMap;

use rbuild_image::{Descriptor, DiffId, ManifestDigest, digest_of};
use rbuild_plan::{BuildGraph, NoCache, Step, VertexId};
use rbuild_store::{Image, Store};
use rbuild_transport::{BlobInfo, LentLayer};

use crate::error::{BuildError, Result};
use crate::exports::{ImageForm, Squash};
use crate::network_access::NetworkAccess;
use crate::prepare::vertex_state::VertexState;
use crate::request::BuildRequest;

/// A layer of a step, lowest first.
pub(crate) struct KnownLayer {
    pub layer: (Descriptor, DiffId),
    /// The place of a layer that the store lacks.
    pub lent: Option<LentLayer>,
}

/// Returns true if a layer is among lent ones.
pub(crate) fn is_in(lent: &[LentLayer], layer: &Descriptor) -> bool {
    digest_of(layer).is_ok_and(|digest| lent.iter().any(|lent| lent.part.digest == digest))
}

/// Returns true if the image of the target can be made and pushed without some of its layers: those
/// of steps, or with `lends_base`, those of the base.
pub(crate) fn is_possible<'a>(
    graph: &BuildGraph,
    state: impl Fn(VertexId) -> &'a VertexState,
    request: &BuildRequest,
    store: &Store,
    lends_base: bool,
) -> Result<bool> {
    let layers = layers_of_steps(graph, state, request, store)?;
    Ok(layers.is_some_and(|layers| lends_base || layers.iter().any(|layer| layer.lent.is_some())))
}

/// Returns the layers of the target's base that the store lacks, if the base can be pulled.
pub(crate) fn missing_base(
    graph: &BuildGraph,
    images: &HashMap<ManifestDigest, Image>,
    network: &NetworkAccess<'_>,
    store: &Store,
) -> Result<Vec<LentLayer>> {
    let base = graph.chain(graph.target).last().map(|id| &graph.vertices[id].step);
    let Some(Step::Image { manifest, .. }) = base else { return Ok(Vec::new()) };
    let (Some(name), Some(image)) = (network.origin(manifest), images.get(manifest)) else { return Ok(Vec::new()) };
    let mut missing = Vec::new();
    for (layer, _) in image.layers()? {
        let digest = digest_of(&layer).map_err(|e| BuildError::other(e.to_string()))?;
        let part = BlobInfo { digest, size: layer.size() };
        if !store.blobs().has_complete_blob(&digest, part.size)? {
            missing.push(LentLayer { part, name: name.clone() });
        }
    }
    Ok(missing)
}

/// Returns the form of the image, if it is the only output, is only pushed, and has the layers of
/// the steps as they are. Of several platforms, either all are made without their layers or none.
pub(crate) fn form(graph: &BuildGraph, request: &BuildRequest) -> Option<ImageForm> {
    let required = request.requirements();
    let [form] = required.images[..] else { return None };
    let is_as_stored = !form.force && !form.distributes;
    let is_plain = form.squash == Squash::None && is_as_stored && (form.late_times || graph.epoch.is_none());
    let is_allowed = request.is_only_pushed
        && is_plain
        && !required.files
        && request.salt.is_none()
        && request.parameters.no_cache == NoCache::None
        && !request.record_sizes
        && !request.inline_cache
        && !request.caches.must_be_copied();
    is_allowed.then_some(form)
}

/// Returns the layers of the target's own steps, lowest first; `None` if one of them is not known.
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
    Ok(Some(layers))
}
