//! Errors of packing layers.

use rbuild_layer::LayerError;
use rbuild_plan::VertexId;
use rbuild_store::{StoreError, TreeId};

use crate::env::StepEnv;
use crate::error::BuildError;
use crate::ops::copy_step::no_space;

/// Converts an error from packing a layer. If the step itself caused it, or if the disk is full,
/// the error points at the step in the Dockerfile.
pub(crate) fn not_packed(env: &StepEnv<'_>, tree: &TreeId, error: StoreError) -> BuildError {
    if env.cancel.is_canceled() {
        return BuildError::Canceled;
    }
    let made_it = |id: &VertexId| env.done(*id).tree.as_ref() == Some(tree);
    match (error, env.chain().find(made_it)) {
        (error @ StoreError::Layer(LayerError::WhiteoutName(_)), Some(id)) => env.failure(id, error, Vec::new()),
        (error, Some(id)) if error.is_disk_full() => no_space(env, id, error),
        (error, _) => error.into(),
    }
}
