//! The key of a finished image.

use rbuild_image::Hasher;
use rbuild_plan::{BuildGraph, HistoryEntry, Step};
use rbuild_store::{ImageKey, ResultId};

use crate::exports::{ImageForm, Squash};
use crate::request::BuildRequest;

/// Returns the key of the final image: the target's result and everything else in the image's
/// documents.
pub(crate) fn image_key(graph: &BuildGraph, target: &ResultId, request: &BuildRequest, form: &ImageForm) -> ImageKey {
    let mut hasher = Hasher::new();
    hasher.field("image 6").field(target.bytes());
    // The history and the stored layers of the base are part of the image.
    if let Some(base) = graph.chain(graph.target).last()
        && let Step::Image { manifest, .. } = &graph.vertices[base].step
    {
        hasher.field("base").field(manifest.bytes());
    }
    hasher.field(graph.epoch.map_or(String::new(), |e| e.to_string()));
    let ImageForm { layers, force, late_times, squash, distributes } = form;
    hasher.field(layers.name()).field([u8::from(*force), u8::from(*late_times), squash.number()]);
    if *squash != Squash::None {
        hasher.field("history as long as the layers");
    }
    if *distributes {
        hasher.field("layers may be distributed");
    }
    if request.inline_cache {
        hasher.field("records of steps");
    }
    if request.allow_leaks {
        hasher.field("secrets may be in it");
    }
    for (k, v) in &request.annotations {
        hasher.field(k).field(v);
    }
    let config = serde_json::to_vec(&graph.config);
    hasher.field(config.expect("a configuration has only text keys"));
    for HistoryEntry { created_by, layer } in &graph.history {
        hasher.field(created_by).field([u8::from(layer.is_some())]);
    }
    hasher.finish()
}
