//! The steps of a build for the caches that it writes.

use std::collections::BTreeSet;

use rbuild_layer::{LayerError, LayerForm};
use rbuild_linux::parallel::{cores, try_map};
use rbuild_plan::{BuildGraph, Step, VertexId};
use rbuild_store::{CacheKey, CachedStep, LayerVariant, ResultId, Store, StoreError, TreeId, Verdict};
use rbuild_transport::ImportedStep;

use crate::cache::portable::is_portable;
use crate::cache::{explain, notes};
use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::export::packing_error::not_packed;
use crate::exports::{CacheMode, ReportedStep, ReportedSteps};
use crate::ops::shared_caches;
use crate::prepare::Prepared;
use crate::prepare::vertex_state::VertexState;
use crate::redact::SecretValues;
use crate::request::BuildRequest;
use crate::secret_scan::Leaks;

/// A step whose files are in the store.
struct StoredStep<'a> {
    vertex: VertexId,
    key: CacheKey,
    result: ResultId,
    created: i64,
    tree: &'a TreeId,
    /// Name of this machine, if it has one.
    runner: Option<&'a str>,
}

/// Returns the forms in which layers are needed, each once.
fn forms(request: &BuildRequest) -> Vec<LayerForm> {
    let mut forms: Vec<LayerForm> = Vec::new();
    for export in &request.cache_exports {
        if !forms.contains(&export.form) {
            forms.push(export.form);
        }
    }
    forms
}

/// Returns true if the build writes caches. Builds with a salt do not.
fn writes_caches(request: &BuildRequest) -> bool {
    request.salt.is_none() && !request.cache_exports.is_empty()
}

/// Returns true if a step belongs in one of the caches.
fn belongs(graph: &BuildGraph, request: &BuildRequest, id: VertexId) -> bool {
    let takes_all = request.cache_exports.iter().any(|export| export.mode == CacheMode::Max);
    is_portable(&graph.vertices[id].step) && (takes_all || is_in_result(graph, id))
}

fn passed_on(graph: &BuildGraph, vertex: VertexId, found: &ImportedStep) -> ReportedStep {
    ReportedStep {
        step: found.step.clone(),
        is_in_result: is_in_result(graph, vertex),
        is_refreshed: false,
        mount: None,
    }
}

/// Returns true if steps whose layers were not read go from one cache to another. They have not
/// been searched for the secrets of this build.
fn passes_on(prepared: &Prepared) -> bool {
    prepared.secret_hashes.is_empty()
}

/// Returns the keys of steps of other stages than those of the result. `found` are steps whose
/// results are known, with their trees unless they are in another cache.
fn of_other_stages<'a>(
    graph: &BuildGraph,
    store: &Store,
    found: impl Iterator<Item = (VertexId, CacheKey, Option<&'a TreeId>)>,
) -> Result<BTreeSet<CacheKey>> {
    let mut keys = BTreeSet::new();
    for (vertex, key, tree) in found {
        if is_in_result(graph, vertex) || !is_portable(&graph.vertices[vertex].step) {
            continue;
        }
        let verdict = tree.map(|tree| store.secrets().verdict(tree)).transpose()?.flatten();
        // No cache may have a secret.
        if holds_nothing(verdict.as_ref()) {
            keys.insert(key);
        }
    }
    Ok(keys)
}

fn is_in_result(graph: &BuildGraph, id: VertexId) -> bool {
    graph.chain(graph.target).any(|layer| layer == id)
}

/// Returns the steps of a build that is answered from the cache. Returns `None` if the layer of one
/// has to be packed or searched for secrets first.
pub(crate) fn answered(prepared: &Prepared, request: &BuildRequest, store: &Store) -> Result<Option<ReportedSteps>> {
    if !writes_caches(request) {
        return Ok(Some(ReportedSteps::default()));
    }
    let (graph, forms, secrets) = (&prepared.graph, forms(request), request.secret_values());
    let mut steps = Vec::new();
    for (vertex, prepared_vertex) in graph.numbered().zip(&prepared.vertices).map(|((id, _), found)| (id, found)) {
        if !belongs(graph, request, vertex) {
            continue;
        }
        match &prepared_vertex.state {
            VertexState::Imported(_, found) if passes_on(prepared) => {
                steps.push(passed_on(graph, vertex, found));
            }
            VertexState::Hit(key, record) => {
                let verdict = store.secrets().verdict(&record.tree)?;
                let hashes = &prepared.secret_hashes;
                if !hashes.is_empty() && !verdict.is_some_and(|verdict| verdict.covers(hashes)) {
                    return Ok(None);
                }
                let (tree, result, created) = (&record.tree, record.result, record.created);
                let runner = request.runner.as_deref();
                let stored = StoredStep { vertex, key: *key, result, created, tree, runner };
                for form in &forms {
                    if !store.lazy_trees().has_layer(tree, *form)? {
                        return Ok(None);
                    }
                    steps.extend(reported(graph, store, &stored, *form, &secrets)?);
                }
            }
            VertexState::Source(_) | VertexState::Foreign(..) | VertexState::Imported(..) | VertexState::Open => {}
        }
    }
    let found = graph.numbered().zip(&prepared.vertices).filter_map(|((id, _), found)| match &found.state {
        VertexState::Hit(key, record) => Some((id, *key, Some(&record.tree))),
        VertexState::Imported(_, found) if passes_on(prepared) => Some((id, found.step.key, None)),
        _ => None,
    });
    let of_other_stages = of_other_stages(graph, store, found)?;
    Ok(Some(ReportedSteps { steps, of_other_stages, failure: None }))
}

/// Returns the steps of the builds of all platforms, after packing their layers. Fails only if the
/// build is canceled.
pub(crate) fn made(envs: &[StepEnv<'_>]) -> Result<ReportedSteps> {
    let mut all = ReportedSteps::default();
    for env in envs.iter().filter(|env| writes_caches(env.request)) {
        match made_for_platform(env) {
            Ok((steps, others)) => {
                all.steps.extend(steps);
                all.of_other_stages.extend(others);
            }
            Err(BuildError::Canceled) => return Err(BuildError::Canceled),
            Err(e) => all.failure = Some(e.message()),
        }
    }
    Ok(all)
}

/// Returns the image's own steps with their layers in that form, which are packed, lowest first.
/// Steps that no cache may contain are left out.
pub(crate) fn of_image(env: &StepEnv<'_>, form: LayerForm) -> Result<Vec<CachedStep>> {
    let (graph, secrets) = (env.graph(), env.request.secret_values());
    let mut steps = Vec::new();
    for vertex in env.chain().filter(|id| is_portable(&graph.vertices[*id].step)) {
        let Some(done) = env.results.get(vertex) else { continue };
        let (Some(tree), Some(key)) = (&done.tree, done.key) else { continue };
        if is_clear(env, tree)? {
            let (result, created, runner) = (done.result, done.created, env.request.runner.as_deref());
            let stored = StoredStep { vertex, key, result, created, tree, runner };
            steps.extend(reported(graph, env.store, &stored, form, &secrets)?.map(|reported| reported.step));
        }
    }
    steps.reverse();
    Ok(steps)
}

/// Returns the steps of a platform, and the keys of those of other stages than the result's.
#[tracing::instrument(target = "engine", name = "cache", level = "debug", skip_all)]
fn made_for_platform(env: &StepEnv<'_>) -> Result<(Vec<ReportedStep>, BTreeSet<CacheKey>)> {
    let (graph, forms, secrets) = (env.graph(), forms(env.request), env.request.secret_values());
    let (mut steps, mut stored) = (Vec::new(), Vec::new());
    for (vertex, _) in graph.numbered().filter(|(id, _)| belongs(graph, env.request, *id)) {
        let Some(done) = env.results.get(vertex) else { continue };
        match (&done.tree, done.key, &env.prepared.vertices[vertex].state) {
            (Some(tree), Some(key), _) => {
                let (result, created) = (done.result, done.created);
                let runner = env.request.runner.as_deref();
                stored.push(StoredStep { vertex, key, result, created, tree, runner });
            }
            (None, _, VertexState::Imported(_, found)) if passes_on(env.prepared) => {
                steps.push(passed_on(graph, vertex, found));
            }
            _ => {}
        }
    }
    let packed = try_map(cores(), &stored, |step| {
        let mut reported_steps = Vec::new();
        if !is_clear(env, step.tree)? {
            return Ok(reported_steps);
        }
        for form in &forms {
            let variant = LayerVariant::exact(*form);
            let stop = || env.cancel.is_canceled();
            match env.store.layers().pack_tree(&env.rootfs.work, step.tree, variant, &stop) {
                // No layer can contain such a file.
                Err(StoreError::Layer(LayerError::WhiteoutName(_))) => return Ok(Vec::new()),
                packed => packed.map_err(|e| not_packed(env, step.tree, e))?,
            };
            reported_steps.extend(reported(graph, env.store, step, *form, &secrets)?);
        }
        Ok::<_, BuildError>(reported_steps)
    })?;
    steps.extend(packed.into_iter().flatten());
    steps.extend(shared_caches::packed(env)?);
    let found = graph.numbered().filter_map(|(id, _)| {
        let done = env.results.get(id)?;
        match (&done.tree, done.key, &env.prepared.vertices[id].state) {
            (Some(tree), Some(key), _) => Some((id, key, Some(tree))),
            (None, _, VertexState::Imported(_, found)) if passes_on(env.prepared) => Some((id, found.step.key, None)),
            _ => None,
        }
    });
    Ok((steps, of_other_stages(graph, env.store, found)?))
}

/// Returns true if the files of a step are known to contain no value of a secret, or are found to
/// contain none now. Those of the result have been searched before.
fn is_clear(env: &StepEnv<'_>, tree: &TreeId) -> Result<bool> {
    let verdict = env.store.secrets().verdict(tree)?;
    let is_searched = verdict.as_ref().is_some_and(|verdict| verdict.covers(&env.prepared.secret_hashes));
    if env.leaks.is_empty() || is_searched {
        return Ok(holds_nothing(verdict.as_ref()));
    }
    let leaks: &Leaks<'_> = &env.leaks;
    let found = leaks.in_tree(&env.rootfs.files_of(tree)?)?;
    env.store.secrets().add_verdict(tree, &found.verdict())?;
    Ok(holds_nothing(env.store.secrets().verdict(tree)?.as_ref()))
}

fn holds_nothing(verdict: Option<&Verdict>) -> bool {
    verdict.is_none_or(|verdict| verdict.held.is_empty())
}

/// Returns a step with its layer, unless the layer does not describe its files completely, or they
/// contain the value of a secret, or may contain one that is too short to search for.
fn reported(
    graph: &BuildGraph,
    store: &Store,
    stored: &StoredStep<'_>,
    form: LayerForm,
    secrets: &SecretValues,
) -> Result<Option<ReportedStep>> {
    let StoredStep { vertex, key, result, created, tree, .. } = *stored;
    let verdict = store.secrets().verdict(tree)?;
    let is_searched = verdict.as_ref().is_some_and(|verdict| verdict.is_complete);
    if matches!(&graph.vertices[vertex].step, Step::Run(run) if !run.secrets.is_empty()) && !is_searched {
        return Ok(None);
    }
    let Some(layer) = store.lazy_trees().cached_layer(tree, form)?.filter(|_| holds_nothing(verdict.as_ref())) else {
        return Ok(None);
    };
    let (shared, origin) = store.records().record(&key)?.map_or((None, None), |record| (record.shared, record.origin));
    let runner = origin.map_or_else(|| stored.runner.map(str::to_string), |origin| origin.runner);
    let inputs = store.records().key_inputs(&key)?.map(|inputs| explain::masked(inputs, secrets));
    let note = inputs.map(|inputs| notes::note(&graph.vertices[vertex], &inputs, secrets));
    let step = CachedStep { key, shared, result, layer, created, runner, used: 0, is_searched, note, mount: None };
    let is_refreshed = graph.vertices[vertex].ignore_cache;
    Ok(Some(ReportedStep { step, is_in_result: is_in_result(graph, vertex), is_refreshed, mount: None }))
}
