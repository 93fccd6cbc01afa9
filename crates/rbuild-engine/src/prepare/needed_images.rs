//! The images whose layers a build needs. Those of other images are not downloaded.

use std::collections::HashSet;

use rbuild_image::ManifestDigest;
use rbuild_plan::{BuildGraph, Step};

use crate::prepare::lent_layers;
use crate::prepare::lookup::PreparedVertex;
use crate::prepare::vertex_state::VertexState;
use crate::request::BuildRequest;
use crate::schedule::Schedule;

/// The images whose layers a build needs if it is executed.
pub(crate) struct NeededImages {
    pub images: HashSet<ManifestDigest>,
    /// True if the result contains layers of its base that stay in the registry.
    pub lends_base: bool,
}

impl NeededImages {
    /// Returns the images whose files steps or outputs read, and the one whose layers the result
    /// contains. If the result is only pushed, and `may_lend` is true, these may stay where they
    /// are.
    pub fn of(graph: &BuildGraph, found: &[PreparedVertex], request: &BuildRequest, may_lend: bool) -> NeededImages {
        let open = found.iter().map(|vertex| matches!(vertex.state, VertexState::Open)).collect();
        let required = request.requirements();
        let mut images: HashSet<_> = Schedule::of(graph, open, required.needs_files()).images(graph).collect();
        let has_layers = !required.images.is_empty() || request.exports.iter().any(|e| required.is_direct(e));
        let mut lends_base = false;
        if let Some(Step::Image { manifest, .. }) = graph.chain(graph.target).last().map(|id| &graph.vertices[id].step)
            && has_layers
            && !images.contains(manifest)
        {
            lends_base = may_lend && lent_layers::form(graph, request).is_some();
            if !lends_base {
                images.insert(*manifest);
            }
        }
        NeededImages { images, lends_base }
    }
}
