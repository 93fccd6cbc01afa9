//! Images that are only pushed, made without their layers, which the registry has, mounts, or is
//! sent from caches.

use std::collections::HashMap;

use rbuild_image::ManifestDigest;
use rbuild_plan::{Step, VertexId};
use rbuild_store::{Store, Workspace};
use rbuild_transport::layer_pairs;

use crate::error::{BuildError, Result};
use crate::export::image::{ImageLayers, ImageParts, time_of_state};
use crate::exports::{BuildReport, FinishedImage};
use crate::prepare::Prepared;
use crate::prepare::lent_layers::{self, KnownLayer};
use crate::request::BuildRequest;

/// Makes the documents of an image whose layers stay where they are. Returns `None` if it has to be
/// made with its layers.
pub(crate) fn lent_image(prepared: &Prepared, request: &BuildRequest, store: &Store) -> Result<Option<BuildReport>> {
    let graph = &prepared.graph;
    let state = |id: VertexId| &prepared.vertices[id].state;
    let (Some(form), Some(steps)) =
        (lent_layers::form(graph, request), lent_layers::layers_of_steps(graph, state, request, store)?)
    else {
        return Ok(None);
    };
    let mut lent = prepared.missing_base.clone();
    let mut below = Vec::new();
    let base = graph.chain(graph.target).last();
    if let Some(Step::Image { manifest, .. }) = base.map(|id| &graph.vertices[id].step) {
        let image = prepared.images.get(manifest);
        let image = image.ok_or_else(|| BuildError::other("an image of the plan was never resolved"))?;
        below = image.layers()?;
        // Those that stay in a registry have not been unpacked.
        let stored = below.iter().filter(|(layer, _)| !lent_layers::is_in(&lent, layer));
        store.blobs().check_layers(&layer_pairs(stored)?)?;
    }
    let mut own = Vec::new();
    for KnownLayer { layer, lent: from } in steps {
        own.push(layer);
        lent.extend(from);
    }
    let created: HashMap<VertexId, i64> =
        graph.chain(graph.target).map(|id| (id, time_of_state(state(id), request.now))).collect();
    let work = Workspace::open(store)?;
    let parts = ImageParts { graph, request, images: &prepared.images, created: &|id| created[&id] };
    let manifest: ManifestDigest = parts.put(store, &work, &form, ImageLayers { below, own }, None)?;
    Ok(Some(BuildReport { lent, ..report(store, manifest)? }))
}

/// Returns the report about an image that the store has without some of its layers.
pub(crate) fn report(store: &Store, manifest: ManifestDigest) -> Result<BuildReport> {
    let image = store.images().image(&manifest)?;
    let finished = FinishedImage { is_stored: false, ..FinishedImage::stored(&image) };
    Ok(BuildReport { image: Some(finished), platforms: vec![manifest], ..BuildReport::default() })
}
