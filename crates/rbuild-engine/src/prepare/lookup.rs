//! Cache lookup of all steps, before anything runs.
//!
//! The cache may contain the result of a step only with files of the other kind of owners (mapped
//! or recorded). Such a foreign result is used like any other as long as its files are not needed.
//! If they are needed, they are made from the step's layer; if that is not possible, the step runs
//! again. A new run has a new result, so all later steps are looked up again, and an image never
//! contains files of two runs of the same command.
//!
//! A result may also be in a cache besides the store. Its layer is read only if its files are
//! needed. If that fails, the step counts as a miss, and all steps are looked up again.

use std::collections::HashSet;
use std::time::Instant;

use rbuild_plan::{BuildGraph, FileSource, NoCache, RunMountKind, RunStep, Step, Vertex, VertexId};
use rbuild_source::Selection;
use rbuild_store::{CacheKey, ForeignRecord, Lock, ResultId, SecretHash, Session, Store, TreeId, Workspace};
use rbuild_transport::{ImportedStep, LostLayer};

use crate::cache::key::{self, InputResults, KeyBuilder};
use crate::cache::miss::Miss;
use crate::cache::portable::may_reach_caches;
use crate::contexts::Contexts;
use crate::downloads::DownloadedFiles;
use crate::error::{BuildError, Result};
use crate::event::{BuildPhase, Event};
use crate::events::Events;
use crate::exports::Requirements;
use crate::prepare::buildkit_walk::BuildKitWalk;
use crate::prepare::image_key::image_key;
use crate::prepare::lent_layers;
use crate::prepare::vertex_state::VertexState;
use crate::request::BuildRequest;
use crate::warning::BuildWarning;

/// The inputs of a lookup.
pub(crate) struct Lookup<'a> {
    pub graph: &'a BuildGraph,
    pub store: &'a Store,
    pub contexts: &'a Contexts,
    pub downloads: &'a DownloadedFiles,
    pub request: &'a BuildRequest,
    pub secret_hashes: &'a [SecretHash],
    pub events: &'a Events,
    /// True if the store lacks layers of the target's base, which can be pulled.
    pub lends_base: bool,
}

/// A vertex after the lookup.
pub(crate) struct PreparedVertex {
    pub state: VertexState,
    /// Files that the step reads from contexts.
    pub selected_files: Vec<Selection>,
}

pub(crate) struct LookedUp {
    /// The vertices, in the order of the graph.
    pub vertices: Vec<PreparedVertex>,
    /// Commands that will run, as far as is known, if they are needed.
    pub will_run: Vec<VertexId>,
    /// True if the layers of the image stay in the caches, because it is only pushed.
    pub is_lent: bool,
    /// Key of the first command that will run, if it is known and other machines can use its
    /// result.
    pub missing: Option<CacheKey>,
}

/// The lookup result of a vertex.
struct FoundVertex {
    state: VertexState,
    /// The result; the predicted one if the step is open.
    result: Option<ResultId>,
    /// Cannot be cached, because a command below it runs.
    fresh: bool,
    /// The key, if all results below are known or predicted.
    key: Option<CacheKey>,
}

/// Logs why a step has no usable record before it runs.
fn missed(key: Option<&CacheKey>, reason: Miss) -> VertexState {
    tracing::debug!(target: "engine", key = key.map(CacheKey::short), %reason, "cache miss");
    VertexState::Open
}

impl Lookup<'_> {
    /// Looks up all steps. Files of foreign results are made available if they are needed and their
    /// layer is stored.
    #[tracing::instrument(target = "engine", name = "lookup", level = "debug", skip_all)]
    pub(crate) fn look_up(&self) -> Result<LookedUp> {
        let selected = self.graph.vertices.iter().map(|vertex| self.contexts.selected_files(vertex));
        let selected_files: Vec<_> = selected.collect::<Result<_>>()?;
        // Foreign results whose files are needed and cannot be made.
        let mut unusable = HashSet::new();
        loop {
            let mut found = self.steps(&selected_files, &unusable)?;
            let is_lent = self.is_lent(&found)?;
            if !self.adopt_needed(&mut found, is_lent, &mut unusable)? || !self.import_needed(&mut found, is_lent)? {
                continue;
            }
            let is_run = |id: &VertexId| matches!(self.graph.vertices[*id].step, Step::Run(_));
            let ids = self.graph.numbered().map(|(id, _)| id);
            let will_run: Vec<VertexId> = ids.filter(|id| found[*id].fresh && is_run(id)).collect();
            let missing = will_run.iter().find_map(|id| Some((*id, found[*id].key?)));
            let missing = missing.filter(|(id, _)| may_reach_caches(self.graph, self.request, *id));
            let missing = missing.map(|(_, key)| key);
            let vertex =
                |(found, selected_files): (FoundVertex, _)| PreparedVertex { state: found.state, selected_files };
            let vertices = found.into_iter().zip(selected_files).map(vertex).collect();
            return Ok(LookedUp { vertices, will_run, is_lent, missing });
        }
    }

    fn steps(&self, selected_files: &[Vec<Selection>], unusable: &HashSet<ResultId>) -> Result<Vec<FoundVertex>> {
        let keys = KeyBuilder { downloads: self.downloads, salt: self.request.salt.as_deref() };
        let mut walk = BuildKitWalk::new(self.graph, self.store, self.contexts, &self.request.caches);
        let mut found: Vec<FoundVertex> = Vec::with_capacity(self.graph.vertices.len());
        for (id, vertex) in self.graph.numbered() {
            let (step, label) = (id.position(), &vertex.name);
            let _span = tracing::debug_span!(target: "engine", "key", step, %label).entered();
            if matches!(vertex.step, Step::Scratch | Step::Image { .. }) {
                let result = key::source_result(&vertex.step);
                walk.find(vertex, None, &[])?;
                walk.visited(vertex, &VertexState::Source(result))?;
                found.push(FoundVertex {
                    state: VertexState::Source(result),
                    result: Some(result),
                    fresh: false,
                    key: None,
                });
                continue;
            }
            let inputs = vertex.inputs();
            let ready = inputs.iter().all(|i| found[*i].state.result().is_some());
            // A step with open inputs has no key yet, but errors in it are reported before anything
            // runs.
            let results = InputResults::of(&inputs, |id| found[id].result.unwrap_or_else(|| ResultId::of(b"open")));
            let key = keys.definition(vertex, &results, &selected_files[id])?;
            let of_buildkit = walk.find(vertex, key.as_ref(), &selected_files[id])?;
            let state = match key {
                Some(key) if ready && !vertex.ignore_cache => match (self.step(id, &key, unusable)?, of_buildkit) {
                    (VertexState::Open, Some(found)) if self.may_import(&vertex.step, &key, &found)? => {
                        tracing::debug!(target: "engine", key = key.short(), "hit in a cache of BuildKit");
                        VertexState::Imported(key, found)
                    }
                    (state, _) => state,
                },
                _ => {
                    let reason = if vertex.ignore_cache { Miss::Disabled } else { Miss::OpenInput };
                    missed(key.as_ref(), reason)
                }
            };
            walk.visited(vertex, &state)?;
            let known_key = key.filter(|_| inputs.iter().all(|i| found[*i].result.is_some()));
            let above_fresh = vertex.parent.is_some_and(|parent| found[parent].fresh);
            let fresh = match (&vertex.step, known_key) {
                _ if state.key().is_some() => false,
                _ if vertex.ignore_cache || above_fresh => true,
                (Step::Run(run), Some(key)) if !mounts_stages(run) => !self.is_recorded(id, &key, unusable)?,
                _ => false,
            };
            let result = state.result().or_else(|| predicted(vertex, known_key).filter(|_| !fresh));
            found.push(FoundVertex { state, result, fresh, key: known_key });
        }
        Ok(found)
    }

    /// Looks up one step whose inputs have results.
    fn step(&self, id: VertexId, key: &CacheKey, unusable: &HashSet<ResultId>) -> Result<VertexState> {
        let step = &self.graph.vertices[id].step;
        let may_use = |tree: &TreeId| may_use(self.secret_hashes, self.store, step, tree);
        if let Some(record) = self.store.records().record(key)? {
            if !may_use(&record.tree)? {
                return Ok(missed(Some(key), Miss::Secret));
            }
            // When the step is solved, it uses the newer files instead of those of another mode.
            if !self.store.records().is_latest(&record)? {
                return Ok(missed(Some(key), Miss::ExecutedLater));
            }
            tracing::debug!(target: "engine", key = key.short(), "cache hit");
            return Ok(VertexState::Hit(*key, record));
        }
        let Some(record) = self.foreign_record(key, unusable)? else {
            return Ok(match self.imported_step(step, key) {
                Some(found) => {
                    tracing::debug!(target: "engine", key = key.short(), "hit in another cache");
                    VertexState::Imported(*key, found)
                }
                None => missed(Some(key), Miss::NoRecord),
            });
        };
        if !may_use(record.tree_of_notes())? {
            return Ok(missed(Some(key), Miss::Secret));
        }
        if self.is_superseded(step, &record)? {
            return Ok(missed(Some(key), Miss::OtherResult));
        }
        tracing::debug!(target: "engine", key = key.short(), "cache hit of another isolation mode");
        Ok(VertexState::Foreign(*key, record))
    }

    /// Returns true if an equal command was also run with this kind of owners, for other stages
    /// with the same files. Equal steps of this build will have that result.
    fn is_superseded(&self, step: &Step, theirs: &ForeignRecord) -> Result<bool> {
        let (Step::Run(_), Some(shared)) = (step, theirs.shared()) else { return Ok(false) };
        Ok(self.store.records().record(shared)?.is_some_and(|own| own.result != theirs.result()))
    }

    /// Returns the foreign record, if its result may be combined with the other results of this
    /// build.
    ///
    /// Foreign results are not used in builds for several platforms: platforms are looked up one
    /// after another, and each would decide separately which results are usable.
    fn foreign_record(&self, key: &CacheKey, unusable: &HashSet<ResultId>) -> Result<Option<ForeignRecord>> {
        if self.request.platforms.len() > 1 {
            return Ok(None);
        }
        Ok(self.store.records().foreign_record(key)?.filter(|record| !unusable.contains(&record.result())))
    }

    /// Returns the step in a cache besides the store. The files of a command that mounts secrets
    /// must have been searched for them.
    fn imported_step(&self, step: &Step, key: &CacheKey) -> Option<ImportedStep> {
        self.request.caches.step(key).filter(|found| is_searched_for(step, found))
    }

    /// Returns true if a step of a cache of BuildKit may be used: the store has no record that must
    /// not be used.
    fn may_import(&self, step: &Step, key: &CacheKey, found: &ImportedStep) -> Result<bool> {
        Ok(is_searched_for(step, found) && self.store.records().record(key)?.is_none())
    }

    fn is_recorded(&self, id: VertexId, key: &CacheKey, unusable: &HashSet<ResultId>) -> Result<bool> {
        Ok(self.store.records().record(key)?.is_some()
            || self.foreign_record(key, unusable)?.is_some()
            || self.imported_step(&self.graph.vertices[id].step, key).is_some())
    }

    /// Adopts the foreign results whose files are needed. Returns false if the steps have to be
    /// looked up again, because some of the results were added to `unusable`.
    fn adopt_needed(&self, found: &mut [FoundVertex], is_lent: bool, unusable: &mut HashSet<ResultId>) -> Result<bool> {
        if !found.iter().any(|found| matches!(found.state, VertexState::Foreign(..))) {
            return Ok(true);
        }
        let needed = self.needed_foreign(found, is_lent)?;
        let before = unusable.len();
        for (_, _, record) in &needed {
            if !self.store.lazy_trees().is_adoptable(record)? {
                let result = record.result().short();
                tracing::debug!(target: "engine", result, "files of another isolation mode are needed and not stored");
                unusable.insert(record.result());
            }
        }
        if needed.is_empty() || unusable.len() > before {
            return Ok(needed.is_empty());
        }
        let work = Workspace::open(self.store)?;
        for (id, key, record) in needed {
            let session = Session::new(self.store, &work, &self.request.build_id, self.request.now);
            let find = || Ok::<_, BuildError>(self.store.records().record(&key)?.map(Some));
            let make = || Ok(self.store.lazy_trees().adopt(session, &key, &record)?);
            match self.store.once(Lock::Step(*record.lock_key(&key)), find, make)?.into_inner() {
                Some(own) if own.result == record.result() => found[id].state = VertexState::Hit(key, own),
                // The files cannot be made, or another build has executed the step in the meantime.
                _ => {
                    unusable.insert(record.result());
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Copies the layers of imported results whose files are needed into the store. Returns false
    /// if the steps have to be looked up again, because a layer cannot be used.
    fn import_needed(&self, found: &mut [FoundVertex], is_lent: bool) -> Result<bool> {
        if !found.iter().any(|found| matches!(found.state, VertexState::Imported(..))) {
            return Ok(true);
        }
        let needed = self.needed(found, is_lent)?;
        let imported = |(id, found): (VertexId, &FoundVertex)| match &found.state {
            VertexState::Imported(key, step) if needed[id.position()] => Some((id, *key, step.clone())),
            _ => None,
        };
        let numbered = found.iter().enumerate().map(|(position, found)| (VertexId::new(position), found));
        let steps: Vec<(VertexId, CacheKey, ImportedStep)> = numbered.filter_map(imported).collect();
        if steps.is_empty() {
            return Ok(true);
        }
        let started = Instant::now();
        let work = Workspace::open(self.store)?;
        let lost =
            self.request.caches.fetch(self.store, &work, &steps.iter().map(|(_, _, step)| step).collect::<Vec<_>>())?;
        for LostLayer { cache, cause } in &lost {
            self.events.send(Event::Warning(BuildWarning::LostLayer { cache, cause }.into()));
        }
        if !lost.is_empty() {
            return Ok(false);
        }
        for (id, key, imported) in steps {
            let session = Session::new(self.store, &work, &self.request.build_id, self.request.now);
            let find = || Ok::<_, BuildError>(self.store.records().record(&key)?.map(Some));
            let make = || {
                Ok(self.store.lazy_trees().import_step(
                    session,
                    &imported.step,
                    self.request.caches.origin_of(&imported),
                )?)
            };
            let shared = imported.step.shared.unwrap_or(key);
            match self.store.once(Lock::Step(shared), find, make)?.into_inner() {
                Some(own) if own.result == imported.step.result => found[id].state = VertexState::Hit(key, own),
                // Another build has executed the step in the meantime.
                Some(_) => return Ok(false),
                None => {
                    self.request.caches.give_up(&imported);
                    return Ok(false);
                }
            }
        }
        self.events.phase(BuildPhase::Import, started.elapsed().as_secs_f64());
        Ok(true)
    }

    /// Returns the foreign results whose files or layers the build needs, lowest first.
    fn needed_foreign(&self, found: &[FoundVertex], is_lent: bool) -> Result<Vec<(VertexId, CacheKey, ForeignRecord)>> {
        let needed = self.needed(found, is_lent)?;
        let foreign = |id: VertexId| match &found[id].state {
            VertexState::Foreign(key, record) if needed[id.position()] => Some((id, *key, record.clone())),
            _ => None,
        };
        Ok(self.graph.numbered().filter_map(|(id, _)| foreign(id)).collect())
    }

    /// Returns a list with one item per vertex: true if the build needs its files or its layer. An
    /// image whose layers are lent needs none.
    fn needed(&self, found: &[FoundVertex], is_lent: bool) -> Result<Vec<bool>> {
        let target = self.graph.target;
        let mut queue = Vec::new();
        if !is_lent && self.needs_trees(&found[target].state)? {
            queue.push(target);
        }
        let mut needed = vec![false; found.len()];
        while let Some(id) = queue.pop() {
            if std::mem::replace(&mut needed[id], true) {
                continue;
            }
            match found[id].state {
                VertexState::Open => queue.extend(self.graph.vertices[id].inputs()),
                _ => queue.extend(self.graph.vertices[id].parent),
            }
        }
        Ok(needed)
    }

    /// Returns true if the trees of the target are needed. They are not needed for an image that is
    /// in the store.
    fn needs_trees(&self, target: &VertexState) -> Result<bool> {
        let request = self.request;
        let Some(result) = target.result() else { return Ok(true) };
        let required = request.requirements();
        if required.needs_files()
            || request.record_sizes
            || !self.secret_hashes.is_empty()
            || request.parameters.no_cache != NoCache::None
            || request.exports.iter().any(|export| required.is_direct(export))
        {
            return Ok(true);
        }
        Ok(!self.has_images(&result, &required)?)
    }

    /// Returns true if the store has all images that are required.
    fn has_images(&self, result: &ResultId, required: &Requirements) -> Result<bool> {
        for form in &required.images {
            if self.store.records().result(&image_key(self.graph, result, self.request, form))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns true if the image can be pushed without its layers, and the store does not have it.
    fn is_lent(&self, found: &[FoundVertex]) -> Result<bool> {
        let Some(result) = found[self.graph.target].state.result() else { return Ok(false) };
        // The store is read for images that are only pushed.
        Ok(self.secret_hashes.is_empty()
            && lent_layers::form(self.graph, self.request).is_some()
            && !self.has_images(&result, &self.request.requirements())?
            && lent_layers::is_possible(self.graph, |id| &found[id].state, self.request, self.store, self.lends_base)?)
    }
}

/// Returns true if the files of a step in a cache cannot contain secrets: those of a command that
/// mounts secrets were searched for them.
pub(crate) fn is_searched_for(step: &Step, found: &ImportedStep) -> bool {
    found.step.is_searched || !matches!(step, Step::Run(run) if !run.secrets.is_empty())
}

/// Returns true if a build with these secrets may reuse a cached result with that tree, regardless
/// of `--allow secret-in-image`. Results of steps other than RUN depend only on their inputs, which
/// have been checked themselves.
pub(crate) fn may_use(secret_hashes: &[SecretHash], store: &Store, step: &Step, tree: &TreeId) -> Result<bool> {
    let Step::Run(run) = step else { return Ok(true) };
    Ok(store.secrets().may_use(tree, !run.secrets.is_empty(), secret_hashes)?)
}

/// Returns true if a command mounts files of stages, and may therefore be cached by their content.
fn mounts_stages(run: &RunStep) -> bool {
    run.mounts.iter().any(|mount| matches!(mount.kind, RunMountKind::Bind { from: FileSource::Vertex(_), .. }))
}

/// Returns the result that an open step will have, if its key determines it. Every run of a command
/// has its own result.
fn predicted(vertex: &Vertex, key: Option<CacheKey>) -> Option<ResultId> {
    match &vertex.step {
        Step::Workdir(_) => key.map(ResultId::from),
        Step::Copy(copy) if !copy.link && !matches!(copy.from, FileSource::Vertex(_)) => key.map(ResultId::from),
        _ => None,
    }
}

/// Returns those of the `steps` that the target needs, in the same order.
pub(crate) fn needed(graph: &BuildGraph, found: &[PreparedVertex], mut steps: Vec<VertexId>) -> Vec<VertexId> {
    let mut seen = vec![false; graph.vertices.len()];
    let mut open = vec![graph.target];
    while let Some(id) = open.pop() {
        if matches!(found[id].state, VertexState::Open) && !std::mem::replace(&mut seen[id], true) {
            open.extend(graph.vertices[id].inputs());
        }
    }
    steps.retain(|id| seen[*id]);
    steps
}
