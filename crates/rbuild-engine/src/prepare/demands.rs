//! Checks for secrets and SSH agents that commands require.

use rbuild_dockerfile::{Diagnostic, Help, closest};
use rbuild_plan::{BuildGraph, RunAgent, RunSecret, RunStep, Step, VertexId};
use rbuild_remedy::{BuildRemedy, Remedy};

use crate::Warning;
use crate::error::{BuildError, Result};
use crate::redact::MIN_MASKED;
use crate::request::BuildRequest;
use crate::secret_scan::MIN_SEARCHED;
use crate::warning::BuildWarning;

/// Checks that the build was given all secrets and agents that commands require. Called before
/// anything runs, for the commands that will run.
pub(crate) fn check(request: &BuildRequest, graph: &BuildGraph, will_run: &[VertexId]) -> Result<()> {
    let commands = will_run.iter().filter_map(|id| match &graph.vertices[*id].step {
        Step::Run(run) => Some(run),
        _ => None,
    });
    let unmet: Vec<Diagnostic> = commands.flat_map(|run| unmet(request, run)).collect();
    if unmet.is_empty() { Ok(()) } else { Err(BuildError::Unmet(unmet)) }
}

/// Returns a warning for each unused secret with an ID similar to that of a requested secret that
/// was not provided.
pub(crate) fn misspelled(request: &BuildRequest, graph: &BuildGraph) -> Vec<Warning<Help>> {
    let asked = mounted(graph);
    let given = |id: &str| request.secrets.iter().any(|(given, _)| given == id);
    let unused = request.secrets.iter().filter(|(id, _)| !asked.contains(&id.as_str()));
    let warning = |id: &str| {
        let close = closest(id, asked.iter().copied().filter(|asked| !given(asked)))?;
        Some(BuildWarning::UnusedSecret { id, similar: close }.into())
    };
    unused.filter_map(|(id, _)| warning(id)).collect()
}

/// Returns a warning for each secret that a command mounts and whose value is too short to search
/// results for it.
pub(crate) fn unsearched(request: &BuildRequest, graph: &BuildGraph) -> Vec<Warning<Help>> {
    let mounted = mounted(graph);
    let given = request.secrets.iter().map(|(id, value)| (id.as_str(), value.trim_ascii().len()));
    let short = given.filter(|(id, length)| (1..MIN_SEARCHED).contains(length) && mounted.contains(id));
    short.map(|(id, length)| BuildWarning::ShortSecret { id, is_masked: length >= MIN_MASKED }.into()).collect()
}

/// Returns the IDs of the secrets that commands mount.
fn mounted(graph: &BuildGraph) -> Vec<&str> {
    let commands = graph.vertices.iter().filter_map(|vertex| match &vertex.step {
        Step::Run(run) => Some(run),
        _ => None,
    });
    commands.flat_map(|run| run.secrets.iter().map(|secret| secret.id.as_str())).collect()
}

fn unmet(request: &BuildRequest, run: &RunStep) -> Vec<Diagnostic> {
    let secrets = run.secrets.iter().filter(|step| step.required);
    let secrets = secrets.filter(|step| !request.secrets.iter().any(|(id, _)| *id == step.id));
    let agents = run.agents.iter().filter(|step| step.required);
    let agents = agents.filter(|step| !request.agents.iter().any(|(id, _)| *id == step.id));
    secrets.map(missing_secret).chain(agents.map(missing_agent)).collect()
}

/// Returns the remedy that names the optional secrets and agents of a command that the build was
/// not given, because their absence may have made the command fail. Secrets are included if
/// `relevant` returns true, agents if `agents` is set.
pub(crate) fn not_given(
    run: &RunStep,
    request: &BuildRequest,
    agents: bool,
    relevant: impl Fn(&RunSecret) -> bool,
) -> Option<Remedy> {
    let secrets = run.secrets.iter().filter(|step| !request.secrets.iter().any(|(id, _)| *id == step.id));
    let secrets: Vec<String> = secrets.filter(|step| relevant(step)).map(|step| step.id.clone()).collect();
    let absent = run.agents.iter().filter(|step| !request.agents.iter().any(|(id, _)| *id == step.id));
    let agents = absent.filter(|_| agents);
    let agents: Vec<String> = agents.map(|step| step.id.clone()).collect();
    (!secrets.is_empty() || !agents.is_empty()).then_some(Remedy::Build(BuildRemedy::PassMissing { secrets, agents }))
}

pub(crate) fn missing_secret(step: &RunSecret) -> Diagnostic {
    let d = Diagnostic::new(step.span, format!("secret `{}` is required but was not provided", step.id));
    d.help(Remedy::Build(BuildRemedy::PassSecret { id: step.id.clone() }))
}

pub(crate) fn missing_agent(step: &RunAgent) -> Diagnostic {
    let d = Diagnostic::new(step.span, format!("SSH agent `{}` is required but was not provided", step.id));
    d.help(Remedy::Build(BuildRemedy::PassAgent { id: step.id.clone() }))
}
