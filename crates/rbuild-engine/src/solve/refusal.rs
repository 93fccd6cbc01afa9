//! Refusal of results that contain the value of a secret.
//!
//! A step's files are searched before anything else can use them, and the searched values and the
//! findings are stored with them ([`Verdict`]). A later build therefore does not reuse a result
//! that contains a secret that this build was not given, and does not search the same files again.

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_linux::RootDir;
use rbuild_plan::{FileSource, Step, VertexId};
use rbuild_remedy::{BuildRemedy, Remedy};
use rbuild_store::{Store, Verdict};

use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::prepare::Prepared;
use crate::request::BuildRequest;
use crate::results::VertexResult;
use crate::secret_scan::{self, Leak, Leaks};

/// Returns the range of the Dockerfile that holds the value of a secret.
fn written_in_file(request: &BuildRequest, id: &str) -> Option<Span> {
    let text = rbuild_dockerfile::readable(&request.dockerfile).0;
    let (_, value) = secret_scan::searched(&request.secrets).find(|(known, _)| *known == id)?;
    let start = memchr::memmem::find(text.as_bytes(), value)?;
    Some(Span::new(start, start + value.len()))
}

/// Searches the image's documents; returns the document that contains the value of a secret,
/// and the secret's ID.
fn leak_in_documents<'a>(
    prepared: &Prepared,
    request: &BuildRequest,
    leaks: &Leaks<'a>,
) -> Option<(&'static str, &'a str)> {
    let config = serde_json::to_value(&prepared.graph.config).expect("a configuration has only text keys");
    let history = &prepared.graph.history;
    let built = || history.iter().find_map(|entry| leaks.in_text(entry.created_by.as_bytes()));
    if let Some(id) = leaks.in_document(&config).or_else(built) {
        return Some(("configuration or history", id));
    }
    let mut annotations = request.annotations.iter().flat_map(|(key, value)| [key, value]);
    let id = annotations.find_map(|text| leaks.in_text(text.as_bytes()))?;
    Some(("annotations", id))
}

/// Returns true if the result is already known to contain no value of a secret.
pub(crate) fn is_cleared(prepared: &Prepared, request: &BuildRequest, store: &Store) -> Result<bool> {
    let leaks = Leaks::new(&request.secrets, &prepared.secret_hashes);
    if leaks.is_empty() || request.allow_leaks {
        return Ok(true);
    }
    if leak_in_documents(prepared, request, &leaks).is_some() {
        return Ok(false);
    }
    if request.requirements().squashes_all() {
        return Ok(false);
    }
    for id in prepared.graph.chain(prepared.graph.target) {
        if let Some(tree) = prepared.vertices[id].state.tree_of_notes()
            && !store.secrets().verdict(tree)?.is_some_and(|verdict| verdict.clears(&prepared.secret_hashes))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Searches the files that a step made, before they are committed. Fails if a secret is found
/// and the step is part of the result.
pub(crate) fn check_files(env: &StepEnv<'_>, id: VertexId, made: &RootDir) -> Result<()> {
    let vertex = &env.graph().vertices[id];
    let refuses = !env.request.allow_leaks && env.chain().any(|v| v == id);
    if env.leaks.is_empty() || !(refuses || env.exposed[id]) {
        // No secret was given to the command, or only values that are too short to search for. The
        // empty verdict records that no search is needed.
        return match &vertex.step {
            Step::Run(run) if !run.secrets.is_empty() => {
                let verdict = Verdict { is_complete: is_searchable(env, &vertex.step), ..Verdict::default() };
                Ok(env.store.secrets().put_verdict(made, &verdict)?)
            }
            _ => Ok(()),
        };
    }
    let fs = made.sub("fs").map_err(BuildError::kernel(ErrorContext::StepDirectory))?;
    let found = env.leaks.in_tree(&fs)?;
    match found.first().filter(|_| refuses) {
        Some(leak) => Err(refusal(env, id, &leak)),
        None => {
            let verdict = Verdict { is_complete: is_searchable(env, &vertex.step), ..found.verdict() };
            Ok(env.store.secrets().put_verdict(made, &verdict)?)
        }
    }
}

/// Returns true if a step is a command with secrets, and the values of those that it was given are
/// long enough to be searched for.
fn is_searchable(env: &StepEnv<'_>, step: &Step) -> bool {
    let Step::Run(run) = step else { return false };
    let is_given = |id: &str| env.request.secrets.iter().any(|(given, _)| given == id);
    !run.secrets.is_empty() && run.secrets.iter().all(|secret| env.leaks.has(&secret.id) || !is_given(&secret.id))
}

/// The place of the result that contains the value of a secret.
#[derive(Debug)]
enum LeakPlace<'a> {
    /// A file, or an attribute of one, that a step of the build wrote.
    Step(&'a str),
    /// The same, of a step that is an ONBUILD trigger of the base image.
    Trigger { place: &'a str, instruction: &'a str },
    /// A document of the image.
    Document(&'static str),
    /// A file of the base image of a squashed result.
    Base(&'a str),
}

impl LeakPlace<'_> {
    /// Returns the message about the secret with that ID.
    fn message(&self, secret: &str) -> String {
        let found = format!("the result contains the secret `{secret}`");
        match self {
            LeakPlace::Step(place) => format!("{found}: this step wrote it to {place}"),
            LeakPlace::Trigger { place, instruction } => {
                format!("{found}: the trigger `{instruction}` of the base image wrote it to {place}")
            }
            LeakPlace::Document(document) => format!("{found} in the image's {document}"),
            LeakPlace::Base(place) => format!("{found} in {place}, which comes from the squashed base image"),
        }
    }
}

fn refusal(env: &StepEnv<'_>, id: VertexId, leak: &Leak<'_>) -> BuildError {
    let vertex = &env.graph().vertices[id];
    let place = if vertex.is_trigger {
        LeakPlace::Trigger { place: &leak.place, instruction: &vertex.text }
    } else {
        LeakPlace::Step(&leak.place)
    };
    let remedy = match &vertex.step {
        Step::Copy(copy) if matches!(copy.from, FileSource::Context) => BuildRemedy::IgnoreSecretFile,
        _ => BuildRemedy::KeepSecretOut,
    };
    BuildError::Unmet(vec![Diagnostic::new(vertex.span, place.message(leak.id)).help(Remedy::Build(remedy))])
}

/// Fails if the result contains the value of a secret. Searches all layers that the build added.
/// This includes cached ones, which may have been searched for other values only.
pub(crate) fn refuse_leaks(env: &StepEnv<'_>) -> Result<()> {
    if env.leaks.is_empty() || env.request.allow_leaks {
        return Ok(());
    }
    if let Some((document, id)) = leak_in_documents(env.prepared, env.request, &env.leaks) {
        let message = env.events.name_platform(LeakPlace::Document(document).message(id));
        return Err(match written_in_file(env.request, id) {
            Some(span) => {
                let help = "read the value from the secret's mount instead of writing it into the Dockerfile";
                BuildError::Unmet(vec![Diagnostic::new(span, message).help(help)])
            }
            None => BuildError::Other { message, help: Some(Remedy::Build(BuildRemedy::KeepSecretOut)) },
        });
    }
    let mut chain: Vec<VertexId> = env.chain().collect();
    chain.reverse();
    for id in chain {
        let Some(VertexResult { tree: Some(tree), .. }) = env.results.get(id) else { continue };
        if env.store.secrets().verdict(tree)?.is_some_and(|verdict| verdict.clears(&env.prepared.secret_hashes)) {
            continue;
        }
        let found = env.leaks.in_tree(&env.rootfs.files_of(tree)?)?;
        env.store.secrets().add_verdict(tree, &found.verdict())?;
        if let Some(leak) = found.first() {
            return Err(env.name_step(id, refusal(env, id, &leak)));
        }
    }
    if env.required.squashes_all() {
        refuse_leaks_of_base(env)?;
    }
    Ok(())
}

/// Fails if a squashed result contains a value in a file that comes from its base image.
fn refuse_leaks_of_base(env: &StepEnv<'_>) -> Result<()> {
    let target = env.graph().target;
    let mut open = false;
    for tree in env.rootfs.trees(target)? {
        if env.store.secrets().verdict(&tree)?.is_some_and(|verdict| verdict.clears(&env.prepared.secret_hashes)) {
            continue;
        }
        let found = env.leaks.in_tree(&env.rootfs.files_of(&tree)?)?;
        env.store.secrets().add_verdict(&tree, &found.verdict())?;
        open |= found.first().is_some();
    }
    if !open {
        return Ok(());
    }
    // Only files that no later layer hides are searched.
    match env.leaks.in_tree(&env.rootfs.view(target)?)?.first() {
        None => Ok(()),
        Some(Leak { id, place }) => {
            let message = env.events.name_platform(LeakPlace::Base(&place).message(id));
            Err(BuildError::Other { message, help: Some(Remedy::Build(BuildRemedy::KeepSecretOut)) })
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn refusals_are_as_recorded() {
        let places = [
            LeakPlace::Step("/root/.netrc"),
            LeakPlace::Trigger { place: "/root/.netrc", instruction: "ONBUILD COPY . ." },
            LeakPlace::Document("configuration or history"),
            LeakPlace::Document("annotations"),
            LeakPlace::Base("the attribute user.note of /etc/motd"),
        ];
        let variants = variants!(LeakPlace { Step, Trigger, Document, Base });
        assert_recorded!("LeakPlace", variants.words(&places, |place| place.message("token")));
    }
}
