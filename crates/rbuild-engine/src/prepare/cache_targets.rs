//! Checks of the caches that a build writes.

use rbuild_dockerfile::{Help, closest};
use rbuild_plan::{BuildGraph, RunMountKind, Step};

use crate::Warning;
use crate::exports::Squash;
use crate::request::BuildRequest;
use crate::warning::BuildWarning;

/// Returns a warning for each cache mount that a cache is to have and that no command uses.
pub(crate) fn unused_mounts(request: &BuildRequest, graph: &BuildGraph) -> Vec<Warning<Help>> {
    let mut used: Vec<&str> = Vec::new();
    for vertex in &graph.vertices {
        let Step::Run(run) = &vertex.step else { continue };
        used.extend(run.mounts.iter().filter_map(|mount| match &mount.kind {
            RunMountKind::Cache(cache) => Some(cache.id.as_str()),
            _ => None,
        }));
    }
    let mut named: Vec<&str> = request.cache_exports.iter().flat_map(|export| export.mounts.named()).collect();
    named.sort_unstable();
    named.dedup();
    let unknown = named.into_iter().filter(|id| !used.contains(id));
    unknown.map(|id| BuildWarning::UnusedMount { id, similar: closest(id, used.iter().copied()) }.into()).collect()
}

/// Returns a warning if records are to be part of an image, but no image can have them.
pub(crate) fn inline_without_effect(request: &BuildRequest, graph: &BuildGraph) -> Option<Warning<Help>> {
    if !request.inline_cache {
        return None;
    }
    let images = request.requirements().images;
    let reason = if images.is_empty() {
        "no output is an image"
    } else if images.iter().any(|form| form.has_layers_of_steps(graph.epoch)) {
        return None;
    } else if request.squash != Squash::None {
        "the layers of a squashed image are not those of its steps"
    } else {
        "SOURCE_DATE_EPOCH changes the layers of the image"
    };
    Some(BuildWarning::InlineWithoutEffect { reason }.into())
}
