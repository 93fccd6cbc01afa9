//! Refusal of results that contain the value of a secret.
//!
//! A step's files are searched before they become available to anything else, and the searched
//! values and the findings are stored with them ([`Verdict`]). A later build with other secrets, or
//! none, therefore neither reuses a result that contains a value it was not given nor searches the
//! same files again.

use rbuild_dockerfile::Diagnostic;
use rbuild_linux::RootDir;
use rbuild_plan::{BuildGraph, Step, VertexId};
use rbuild_remedy::Remedy;
use rbuild_store::{Store, Verdict};

use crate::error::{BuildError, Result};
use crate::export::secret_scan::{Leak, Leaks};
use crate::prepare::Prepared;
use crate::request::BuildRequest;
use crate::solve::executor::{Done, Executor};

/// Returns for each vertex whether a command that mounts a secret contributed to it.
pub(crate) fn exposed(graph: &BuildGraph, leaks: &Leaks<'_>) -> Vec<bool> {
    let mut exposed: Vec<bool> = Vec::with_capacity(graph.vertices.len());
    for vertex in &graph.vertices {
        let mounts = matches!(&vertex.step, Step::Run(run) if run.secrets.iter().any(|secret| leaks.has(&secret.id)));
        let inherits = vertex.inputs().iter().any(|input| exposed.get(*input).copied().unwrap_or(true));
        exposed.push(mounts || inherits);
    }
    exposed
}

impl Prepared {
    /// Searches the image's documents; returns the document that contains the value of a secret,
    /// and the secret's ID.
    fn told_leak<'a>(&self, request: &BuildRequest, leaks: &Leaks<'a>) -> Option<(&'static str, &'a str)> {
        let config = serde_json::to_value(&self.graph.config).expect("a configuration has only text keys");
        let history = &self.graph.history;
        let built = || history.iter().find_map(|entry| leaks.in_text(entry.created_by.as_bytes()));
        if let Some(id) = leaks.in_document(&config).or_else(built) {
            return Some(("configuration or history holds", id));
        }
        let mut annotations = request.annotations.iter().flat_map(|(key, value)| [key, value]);
        let id = annotations.find_map(|text| leaks.in_text(text.as_bytes()))?;
        Some(("annotations hold", id))
    }

    /// Returns true if the result is already known to contain no value of a secret.
    pub(crate) fn is_cleared(&self, request: &BuildRequest, store: &Store) -> Result<bool> {
        let leaks = Leaks::new(&request.secrets, &self.marks);
        if leaks.is_empty() || request.allow_leaks {
            return Ok(true);
        }
        if self.told_leak(request, &leaks).is_some() {
            return Ok(false);
        }
        if request.wants().whole() {
            return Ok(false);
        }
        let chain = std::iter::successors(Some(self.graph.target), |v| self.graph.vertices[*v].parent);
        for id in chain {
            if let Some(tree) = self.known[id].noted()
                && !store.verdict(tree)?.is_some_and(|verdict| verdict.clears(&self.marks))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Executor<'_> {
    /// Searches the files that a step made, before they are committed. Fails if a secret is found
    /// and the step is part of the result.
    pub(crate) fn judge(&self, id: VertexId, made: &RootDir) -> Result<()> {
        let vertex = &self.prepared.graph.vertices[id];
        let refuses = !self.request.allow_leaks && self.chain().any(|v| v == id);
        if self.leaks.is_empty() || !(refuses || self.exposed[id]) {
            // No secret was given to the command, or only values too short to search for. The empty
            // verdict records that nothing is left to be searched.
            return match &vertex.step {
                Step::Run(run) if !run.secrets.is_empty() => Ok(self.store.put_verdict(made, &Verdict::default())?),
                _ => Ok(()),
            };
        }
        let fs = made.sub("fs").map_err(BuildError::kernel("the step's directory"))?;
        let found = self.leaks.in_tree(&fs)?;
        match found.first().filter(|_| refuses) {
            Some(leak) => Err(self.refusal(id, &leak)),
            None => Ok(self.store.put_verdict(made, &found.verdict())?),
        }
    }

    fn refusal(&self, id: VertexId, leak: &Leak<'_>) -> BuildError {
        let Leak { id: secret, place } = leak;
        let message = format!("the result holds the value of the secret `{secret}`: {place} has it since this step");
        BuildError::Unmet(vec![
            Diagnostic::new(self.prepared.graph.vertices[id].span, message).help(Remedy::KeepSecretOut),
        ])
    }

    /// Fails if the result contains the value of a secret. Searches every layer of the build's own,
    /// including cached ones: they may have been searched for other values.
    pub(crate) fn refuse_leaks(&self) -> Result<()> {
        if self.leaks.is_empty() || self.request.allow_leaks {
            return Ok(());
        }
        if let Some((told, id)) = self.prepared.told_leak(self.request, &self.leaks) {
            let message = format!("the image's {told} the value of the secret `{id}`");
            return Err(BuildError::Other { message, help: Some(Remedy::KeepSecretOut) });
        }
        let mut chain: Vec<VertexId> = self.chain().collect();
        chain.reverse();
        for id in chain {
            let Some(Done { tree: Some(tree), .. }) = self.done[id].get() else { continue };
            if self.store.verdict(tree)?.is_some_and(|verdict| verdict.clears(&self.prepared.marks)) {
                continue;
            }
            let found = self.leaks.in_tree(&self.files_of(tree)?)?;
            self.store.add_verdict(tree, &found.verdict())?;
            if let Some(leak) = found.first() {
                return Err(self.refusal(id, &leak));
            }
        }
        if self.wants.whole() {
            self.refuse_leaks_of_base()?;
        }
        Ok(())
    }

    /// Fails if a squashed result contains a value in a file that comes from its base image.
    fn refuse_leaks_of_base(&self) -> Result<()> {
        let target = self.prepared.graph.target;
        let mut open = false;
        for tree in self.trees(target)? {
            if self.store.verdict(&tree)?.is_some_and(|verdict| verdict.clears(&self.prepared.marks)) {
                continue;
            }
            let found = self.leaks.in_tree(&self.files_of(&tree)?)?;
            self.store.add_verdict(&tree, &found.verdict())?;
            open |= found.first().is_some();
        }
        if !open {
            return Ok(());
        }
        // Files that a later layer hides do not count.
        match self.leaks.in_tree(&self.view(target)?)?.first() {
            None => Ok(()),
            Some(Leak { id, place }) => {
                let message = format!(
                    "the result holds the value of the secret `{id}`: {place} has it from the base image, which the squashed image includes"
                );
                Err(BuildError::Other { message, help: Some(Remedy::KeepSecretOut) })
            }
        }
    }
}
