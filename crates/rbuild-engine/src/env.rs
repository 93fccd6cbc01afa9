//! Environment of the steps of one platform: the request, the plan, results and files, progress and
//! cancellation.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};

use rbuild_dockerfile::Diagnostic;
use rbuild_image::ManifestDigest;
use rbuild_linux::clock::monotonic_nanoseconds;
use rbuild_linux::parallel::locked;
use rbuild_plan::{BuildGraph, Step, VertexId};
use rbuild_sandbox::{Builder, Cancel, RunRequest};
use rbuild_store::{CacheId, CacheKey, Image, Store};
use rbuild_transport::ImportedStep;

use crate::cache::explain;
use crate::contexts::{Contexts, Viewpoint};
use crate::error::{BuildError, Result, StepFailure};
use crate::events::Events;
use crate::exports::Requirements;
use crate::prepare::Prepared;
use crate::prepare::vertex_state::VertexState;
use crate::record::log_tail::LOG_TAIL;
use crate::request::BuildRequest;
use crate::results::{Results, VertexResult};
use crate::rootfs::Rootfs;
use crate::schedule::Schedule;
use crate::secret_scan::Leaks;

/// The build that made a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountOrigin {
    /// This one, by a command or from a cache.
    ThisBuild,
    /// One whose secrets are not known, and may be in the mount.
    EarlierBuild,
}

/// The state of the part of a build that runs inside the builder's namespaces, for one platform.
pub(crate) struct StepEnv<'a> {
    pub request: &'a BuildRequest,
    pub required: Requirements,
    pub prepared: &'a Prepared,
    pub store: &'a Store,
    pub builder: &'a Builder,
    pub schedule: Schedule,
    pub results: Arc<Results>,
    pub rootfs: Rootfs<'a>,
    pub contexts: Contexts,
    pub events: Events,
    pub cancel: Cancel,
    /// For each vertex, the key of the most similar step that was built here before.
    pub nearest: Vec<Option<CacheKey>>,
    /// Values of secrets that the result must not contain.
    pub leaks: Leaks<'a>,
    /// For each vertex, true if a command that mounts such a secret contributed to its files.
    pub exposed: Vec<bool>,
    /// The cache mounts that commands used, with their names.
    used_mounts: Mutex<BTreeMap<CacheId, (String, MountOrigin)>>,
    /// The command that failed first: the time of failure, and its request with its files.
    pub failed_run: Mutex<Option<(u64, RunRequest)>>,
}

impl<'a> StepEnv<'a> {
    /// Opens the contexts in the builder, and sets the results that are known before anything runs.
    pub fn new(
        request: &'a BuildRequest,
        prepared: &'a Prepared,
        store: &'a Store,
        events: Events,
        cancel: Cancel,
        builder: &'a Builder,
    ) -> Result<StepEnv<'a>> {
        let graph = &prepared.graph;
        let results = Arc::new(results_of(prepared, request.now));
        let leaks = Leaks::new(&request.secrets, &prepared.secret_hashes);
        let required = request.requirements();
        let open: Vec<bool> = prepared.vertices.iter().map(|found| matches!(found.state, VertexState::Open)).collect();
        Ok(StepEnv {
            request,
            prepared,
            store,
            builder,
            schedule: Schedule::of(graph, open, required.needs_files()),
            required,
            rootfs: Rootfs::new(request, graph, store, builder, results.clone())?,
            results,
            contexts: Contexts::open(request, Viewpoint::Builder(builder), &prepared.hashes, store)?,
            events,
            cancel,
            nearest: explain::nearest(&store.records().build_index(&prepared.build_index)?, graph),
            exposed: exposed(graph, &leaks),
            leaks,
            used_mounts: Mutex::default(),
            failed_run: Mutex::new(None),
        })
    }

    /// Returns the build graph.
    pub fn graph(&self) -> &'a BuildGraph {
        &self.prepared.graph
    }

    /// Returns the outcome of an input.
    pub fn done(&self, id: VertexId) -> &VertexResult {
        self.results.done(id)
    }

    /// Returns the parent chain of the target, from the target down to its base.
    pub fn chain(&self) -> impl Iterator<Item = VertexId> + use<'a> {
        self.graph().chain(self.graph().target)
    }

    /// Returns the number of the step in the build's log.
    pub fn log_number(&self, id: VertexId) -> usize {
        self.events.first() + id.position()
    }

    /// Notes that a command uses a cache mount. The first use tells its origin.
    pub fn note_mount(&self, id: &CacheId, name: &str, origin: MountOrigin) {
        locked(&self.used_mounts).entry(*id).or_insert_with(|| (name.to_string(), origin));
    }

    /// Returns the cache mounts that commands used, with their names.
    pub fn used_mounts(&self) -> BTreeMap<CacheId, (String, MountOrigin)> {
        locked(&self.used_mounts).clone()
    }

    /// Returns an image that was resolved for the plan.
    pub fn image(&self, manifest: &ManifestDigest) -> Result<&'a Image> {
        self.prepared.images.get(manifest).ok_or_else(|| BuildError::other("an image of the plan was never resolved"))
    }

    /// Returns the failure of a step at the current time. `log` contains the last lines of its
    /// output.
    pub fn failure(
        &self,
        id: VertexId,
        reason: impl Into<Box<dyn Error + Send + Sync>>,
        log: Vec<String>,
    ) -> BuildError {
        let vertex = &self.graph().vertices[id];
        BuildError::Step(Box::new(StepFailure {
            span: vertex.span,
            label: self.events.label(&vertex.name),
            of_several: self.events.is_of_several(),
            text: vertex.text.clone(),
            word: None,
            reason: reason.into(),
            help: None,
            more: (log.len() >= LOG_TAIL).then(|| self.request.build_id.clone()),
            log,
            at: monotonic_nanoseconds(),
        }))
    }

    /// Adds the label of a step to the errors at its instruction, if the build has several
    /// platforms: they have the instruction in common.
    pub fn name_step(&self, id: VertexId, error: BuildError) -> BuildError {
        match error {
            BuildError::Unmet(list) if self.events.is_of_several() => {
                let label = self.events.label(&self.graph().vertices[id].name);
                let named = |d: Diagnostic| Diagnostic { message: format!("[{label}] {}", d.message), ..d };
                BuildError::Unmet(list.into_iter().map(named).collect())
            }
            other => other,
        }
    }
}

/// Returns the results that are known before anything runs.
fn results_of(prepared: &Prepared, now: i64) -> Results {
    let results = Results::new(prepared.vertices.len());
    for (id, found) in prepared.vertices.iter().enumerate() {
        let key = found.state.key();
        let done = match &found.state {
            VertexState::Source(result) => VertexResult { result: *result, tree: None, created: now, key: None },
            VertexState::Hit(_, r) => {
                VertexResult { result: r.result, tree: Some(r.tree.clone()), created: r.created, key }
            }
            // Its files are not needed: otherwise the lookup would have adopted them.
            VertexState::Foreign(_, r) => VertexResult { result: r.result(), tree: None, created: r.created(), key },
            VertexState::Imported(_, ImportedStep { step, .. }) => {
                VertexResult { result: step.result, tree: None, created: step.created, key }
            }
            VertexState::Open => continue,
        };
        results.set(VertexId::new(id), done);
    }
    results
}

/// Returns a list with one item per vertex: true if a command that mounts a secret contributed to
/// it.
fn exposed(graph: &BuildGraph, leaks: &Leaks<'_>) -> Vec<bool> {
    let mut exposed: Vec<bool> = Vec::with_capacity(graph.vertices.len());
    for vertex in &graph.vertices {
        let mounts = matches!(&vertex.step, Step::Run(run) if run.secrets.iter().any(|secret| leaks.has(&secret.id)));
        let inherits = vertex.inputs().iter().any(|input| exposed.get(input.position()).copied().unwrap_or(true));
        exposed.push(mounts || inherits);
    }
    exposed
}
