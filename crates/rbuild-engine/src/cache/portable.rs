//! Steps whose results other machines can use.

use rbuild_plan::{BuildGraph, RunMountKind, Step, VertexId};

use crate::request::BuildRequest;
use crate::secret_scan::searched;

/// Returns true if the result of a step can be used on other machines. That of a command that
/// mounts a volume depends on the machine.
pub(crate) fn is_portable(step: &Step) -> bool {
    match step {
        Step::Scratch | Step::Image { .. } => false,
        Step::Run(run) => !run.mounts.iter().any(|mount| matches!(mount.kind, RunMountKind::Volume { .. })),
        Step::Copy(_) | Step::Workdir(_) => true,
    }
}

/// Returns true if the caches that a build writes may have the result of a command that will run.
pub(crate) fn may_reach_caches(graph: &BuildGraph, request: &BuildRequest, id: VertexId) -> bool {
    let is_searched = |id: &str| searched(&request.secrets).any(|(searched, _)| searched == id);
    let is_given = |id: &str| request.secrets.iter().any(|(given, _)| given == id);
    let step = &graph.vertices[id].step;
    let Step::Run(run) = step else { return false };
    let is_clear = run.secrets.iter().all(|secret| is_searched(&secret.id) || !is_given(&secret.id));
    request.salt.is_none() && is_portable(step) && is_clear
}
