//! Parallel execution of the steps that are not cached. A vertex starts when its last input is
//! done.
//!
//! Workers must not wait for each other inside rayon. The worker that completes a vertex's last
//! input spawns it; the only blocking operations are child processes and file I/O.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rbuild_image::{ManifestDigest, human_size};
use rbuild_linux::RootDir;
use rbuild_linux::process::moment;
use rbuild_plan::{Step, VertexId};
use rbuild_sandbox::{Builder, Cancel, Input, Outcome, RunRequest, Source};
use rbuild_store::{Budget, CacheKey, Image, LayerLog, ResultId, Snapshots, Store, TreeId, Workspace};

use crate::Finished;
use crate::cache::explain;
use crate::cache::key::{Contexts, Viewpoint};
use crate::cache::refusal::exposed;
use crate::error::{BuildError, Result, StepFailure};
use crate::event::Event;
use crate::events::Events;
use crate::export::image;
use crate::export::outputs::{self, View};
use crate::export::secret_scan::Leaks;
use crate::export::stream;
use crate::exports::{Export, ImageForm, Wants};
use crate::prepare::Prepared;
use crate::record::build_log::{Status, remember, weigh};
use crate::record::log_tail::LOG_TAIL;
use crate::request::BuildRequest;

/// The outcome of a finished vertex.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub result: ResultId,
    /// The step's own tree. `None` for scratch and images, and for files with other owners that
    /// nothing needs.
    pub tree: Option<TreeId>,
    pub created: i64,
    /// The definition key; `None` for scratch and images.
    pub key: Option<CacheKey>,
}

/// The part of a build that runs inside the builder's namespaces.
pub(crate) struct Executor<'a> {
    pub(crate) request: &'a BuildRequest,
    pub(crate) wants: Wants,
    pub(crate) prepared: &'a Prepared,
    pub(crate) store: &'a Store,
    pub(crate) work: Workspace,
    snapshots: OnceLock<Snapshots>,
    pub(crate) contexts: Contexts,
    pub(crate) events: Events,
    pub(crate) cancel: Cancel,
    pub(crate) builder: &'a Builder,
    pub(crate) done: Vec<OnceLock<Done>>,
    /// Trees of image vertices, lowest first, once unpacked.
    unpacked: Vec<OnceLock<Vec<TreeId>>>,
    /// Trees of steps whose files are known to be on disk.
    unfolded: Mutex<HashSet<TreeId>>,
    /// Vertices that will run. `waiting` counts the unfinished inputs of each vertex among them.
    pub(crate) scheduled: HashSet<VertexId>,
    pub(crate) waiting: Vec<AtomicUsize>,
    pub(crate) dependants: Vec<Vec<VertexId>>,
    /// For each vertex, the key of the most similar step that was built here before.
    pub(crate) nearest: Vec<Option<CacheKey>>,
    /// Values of secrets that the result must not contain.
    pub(crate) leaks: Leaks<'a>,
    /// For each vertex, true if a command that mounts such a secret contributed to it.
    pub(crate) exposed: Vec<bool>,
    failure: FirstFailure,
    /// Receives trees whose layers will be needed; set while steps run.
    early: Mutex<Option<Sender<TreeId>>>,
    /// Number of this platform's first step in a build of several platforms.
    pub(crate) first_step: usize,
    /// The command that failed first: the time of failure, and its request with its files.
    pub(crate) failed_run: Mutex<Option<(u64, RunRequest)>>,
}

/// The earliest of several parallel step failures. Failures are not necessarily reported in the
/// order in which they happened.
#[derive(Default)]
struct FirstFailure(Mutex<Option<(u64, BuildError)>>);

impl FirstFailure {
    fn note(&self, e: BuildError) {
        let at = match &e {
            // A consequence of another failure or of a request to stop.
            BuildError::Cancelled => return,
            BuildError::Step(failure) => failure.at,
            _ => moment(),
        };
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(known, _)| at < *known) {
            *first = Some((at, e));
        }
    }

    fn take(&self) -> Option<BuildError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map(|(_, e)| e)
    }
}

impl<'a> Executor<'a> {
    fn new(
        request: &'a BuildRequest,
        prepared: &'a Prepared,
        store: &'a Store,
        events: Events,
        cancel: Cancel,
        builder: &'a Builder,
    ) -> Result<Executor<'a>> {
        let count = prepared.graph.vertices.len();
        let work = Workspace::open(store)?;
        let leaks = Leaks::new(&request.secrets, &prepared.marks);
        let mut executor = Executor {
            request,
            wants: request.wants(),
            prepared,
            store,
            snapshots: if request.copies { Snapshots::Copies.into() } else { OnceLock::new() },
            work,
            contexts: Contexts::open(request, Viewpoint::Builder(builder), &prepared.hashes)?,
            first_step: events.first(),
            events,
            cancel,
            builder,
            done: (0..count).map(|_| OnceLock::new()).collect(),
            unpacked: (0..count).map(|_| OnceLock::new()).collect(),
            unfolded: Mutex::default(),
            scheduled: HashSet::new(),
            waiting: (0..count).map(|_| AtomicUsize::new(0)).collect(),
            dependants: vec![Vec::new(); count],
            nearest: explain::nearest(&store.build_index(&prepared.build_index)?, &prepared.graph),
            exposed: exposed(&prepared.graph, &leaks),
            leaks,
            failure: FirstFailure::default(),
            early: Mutex::new(None),
            failed_run: Mutex::new(None),
        };
        executor.schedule();
        Ok(executor)
    }

    /// Runs all scheduled steps.
    fn run(&self) -> Result<()> {
        let runs_any = self.scheduled.iter().any(|v| matches!(self.prepared.graph.vertices[*v].step, Step::Run(_)));
        if runs_any {
            self.events.send(Event::Isolation { rung: self.builder.isolation.rung });
            if self.builder.is_bare() {
                let text = "commands share processes, network and devices with this machine, as it allows neither \
                            namespaces nor mounts; run only what you would run here yourself";
                self.events.send(Event::Warning(text.into()));
            } else if self.builder.shows_outer_processes() {
                let text = "commands see the processes around them: parts of /proc are covered here, so there is no new one for \
                            them; a program that looks itself up there by its number finds another one";
                self.events.send(Event::Warning(text.into()));
            }
        }
        self.prepared.report_hits(&self.events);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.request.jobs.max(1))
            .thread_name(|i| format!("step-{i}"))
            .build()
            .map_err(|e| BuildError::other(format!("the worker threads cannot be started: {e}")))?;
        self.tell_who_waits();
        let mut ready: Vec<VertexId> =
            self.scheduled.iter().copied().filter(|v| self.waiting[*v].load(Ordering::SeqCst) == 0).collect();
        ready.sort_unstable();
        std::thread::scope(|threads| {
            if runs_any {
                let (trees, receiver) = channel();
                self.layers_of_done(&trees);
                *self.early.lock().unwrap_or_else(PoisonError::into_inner) = Some(trees);
                threads.spawn(move || image::pack_early(self, &receiver));
            }
            pool.scope(|scope| {
                for vertex in ready {
                    scope.spawn(move |scope| self.work_on(vertex, scope));
                }
            });
            self.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        if let Some(e) = self.failure.take() {
            return Err(e);
        }
        if self.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        Ok(())
    }

    /// Returns true while steps may still run.
    pub(crate) fn runs(&self) -> bool {
        self.early.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Queues the layer of a step for early packing, if the result will need it.
    fn pack_when_idle(&self, id: VertexId) {
        let early = self.early.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tree = self.done[id].get().and_then(|done| done.tree.as_ref());
        if let (Some(early), Some(tree)) = (early, tree)
            && self.chain().any(|layer| layer == id)
        {
            let _ = early.send(tree.clone());
        }
    }

    /// Queues the layers of cached steps of the result, which may not have been packed yet.
    fn layers_of_done(&self, trees: &Sender<TreeId>) {
        let mut found: Vec<TreeId> = self.chain().filter_map(|id| self.done[id].get()?.tree.clone()).collect();
        found.reverse();
        found.into_iter().for_each(|tree| drop(trees.send(tree)));
    }

    fn work_on<'s>(&'s self, id: VertexId, scope: &rayon::Scope<'s>) {
        if self.cancel.is_cancelled() {
            return;
        }
        if let Err(e) = self.vertex(id) {
            self.failure.note(e);
            self.cancel.cancel();
            return;
        }
        self.pack_when_idle(id);
        for next in &self.dependants[id] {
            if self.waiting[*next].fetch_sub(1, Ordering::SeqCst) == 1 {
                let next = *next;
                scope.spawn(move |scope| self.work_on(next, scope));
            }
        }
    }

    #[tracing::instrument(target = "engine", name = "unpack", level = "debug", skip_all, fields(step = id, image = %manifest))]
    pub(crate) fn unpack(&self, id: VertexId, manifest: &ManifestDigest) -> Result<()> {
        let started = Instant::now();
        let image = self.image(manifest)?;
        if let Some(wanted) = self.parts_wanted(id) {
            let (now, build) = (self.request.now, &self.request.build_id);
            if let Some(tree) = self.store.image_parts(&self.work, image, &wanted, now, build)? {
                let _ = self.unpacked[id].set(vec![tree]);
                return Ok(());
            }
        }
        let (trees, unpacked) = self.store.unpack_image(&self.work, image, &self.request.build_id)?;
        if unpacked > 0 {
            let text = format!("unpacking {}", self.prepared.graph.vertices[id].text.trim_start_matches("FROM "));
            self.events.send(Event::Phase { text, seconds: started.elapsed().as_secs_f64() });
        }
        let _ = self.unpacked[id].set(trees);
        Ok(())
    }

    pub(crate) fn image(&self, manifest: &ManifestDigest) -> Result<&Image> {
        self.prepared.images.get(manifest).ok_or_else(|| BuildError::other("an image of the plan was never resolved"))
    }

    /// Returns the outcome of an input. Vertices run in dependency order, so it exists.
    pub(crate) fn done(&self, id: VertexId) -> &Done {
        self.done[id].get().expect("inputs are done before what needs them")
    }

    /// Returns the tree of a finished step.
    pub(crate) fn own_tree(&self, id: VertexId) -> Result<&TreeId> {
        let tree = self.done(id).tree.as_ref();
        tree.ok_or_else(|| BuildError::other("the files of a step are used that were not needed at the start"))
    }

    /// Returns the files of a step's tree, unpacking them if only a layer is stored.
    pub(crate) fn files_of(&self, tree: &TreeId) -> Result<RootDir> {
        self.unfold(tree)?;
        Ok(self.store.tree(tree)?)
    }

    fn unfold(&self, tree: &TreeId) -> Result<()> {
        if !self.unfolded.lock().unwrap_or_else(PoisonError::into_inner).contains(tree) {
            self.store.unfold_tree(&self.work, tree)?;
            self.unfolded.lock().unwrap_or_else(PoisonError::into_inner).insert(tree.clone());
        }
        Ok(())
    }

    /// Returns the trees of a vertex and its parents, lowest first, with their files on disk.
    pub(crate) fn trees(&self, id: VertexId) -> Result<Vec<TreeId>> {
        let mut own = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            let vertex = &self.prepared.graph.vertices[id];
            match &vertex.step {
                Step::Image { .. } => {
                    let base = self.unpacked[id].get();
                    let base = base.ok_or_else(|| BuildError::other("an image is used before it is unpacked"))?;
                    own.extend(base.iter().rev().cloned());
                }
                Step::Scratch => {}
                _ => {
                    let tree = self.own_tree(id)?;
                    self.unfold(tree)?;
                    own.push(tree.clone());
                }
            }
            at = vertex.parent;
        }
        own.reverse();
        Ok(own)
    }

    /// Returns the method of stacking trees, probed on first use.
    pub(crate) fn snapshots(&self) -> Result<Snapshots> {
        if let Some(known) = self.snapshots.get() {
            return Ok(*known);
        }
        let found = snapshots(self.builder, &self.work)?;
        Ok(*self.snapshots.get_or_init(|| found))
    }

    /// Returns a read-only view of the complete root file system of a vertex.
    pub(crate) fn view(&self, id: VertexId) -> Result<RootDir> {
        Ok(self.snapshots()?.view(self.store, &self.work, &self.trees(id)?)?)
    }

    pub(crate) fn failure(&self, id: VertexId, reason: impl Into<String>, log: Vec<String>) -> BuildError {
        let vertex = &self.prepared.graph.vertices[id];
        BuildError::Step(Box::new(StepFailure {
            span: vertex.span,
            label: vertex.name.to_string(),
            text: vertex.text.clone(),
            reason: reason.into(),
            help: None,
            more: (log.len() >= LOG_TAIL).then(|| self.request.build_id.clone()),
            log,
            at: moment(),
        }))
    }

    /// Records which steps were built here. A step that was not reached keeps its previous record.
    fn remember(&self) {
        let key = |(done, before): (&OnceLock<Done>, &Option<CacheKey>)| match done.get() {
            Some(done) => done.key,
            None => *before,
        };
        let keys: Vec<Option<CacheKey>> = self.done.iter().zip(&self.nearest).map(key).collect();
        // Losing the record only costs one explanation. Builds with a salt have nothing to compare
        // with.
        if self.request.salt.is_none() {
            let _ = self.prepared.remember(self.store, &keys);
        }
    }

    /// Returns the sizes of the layers made by the target's own steps, lowest first.
    fn weigh(&self) -> Vec<LayerLog> {
        let mut layers = Vec::new();
        for id in self.chain() {
            let tree = self.done[id].get().and_then(|done| done.tree.as_ref());
            layers.extend(tree.and_then(|tree| weigh(&self.files_of(tree).ok()?, self.log_number(id)).ok()));
        }
        layers.reverse();
        layers
    }

    /// Starts a shell in the container of the command that failed, if requested: with its files as
    /// the command left them, its mounts, variables and user.
    fn after_failure(&self, error: BuildError, tell: impl FnOnce(&BuildError)) -> BuildError {
        let failed = self.failed_run.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((_, mut request)) = failed.filter(|_| self.request.shell_on_error) else { return error };
        self.events.send(Event::End);
        tell(&error);
        let Ok((scratch, _)) = self.work.new_dir() else { return BuildError::Told };
        request.files.renew(scratch);
        request.args = vec!["/bin/sh".into()];
        request.input = Input::Terminal;
        // Agent sockets were removed with the step.
        request.mounts.retain(|m| !matches!(&m.source, Source::Bind(path) if !path.exists()));
        if !request.env.iter().any(|e| e.starts_with("TERM=")) {
            request.env.push("TERM=xterm".into());
        }
        // The build's own `Cancel` was triggered to stop the other steps.
        match rbuild_sandbox::run_attached(&self.builder.zygote, &request, &Cancel::default()) {
            Ok(Outcome::NotStarted(why)) => BuildError::other(format!("the shell could not be started: {why}")),
            Ok(_) => BuildError::Told,
            Err(e) => e.into(),
        }
    }

    fn output_view(&self, split: bool) -> Result<View> {
        let folder = if split { self.prepared.platform.to_string().replace('/', "_") } else { String::new() };
        let root = self.view(self.prepared.graph.target)?;
        Ok(View { folder: folder.into(), root, epoch: self.prepared.graph.epoch })
    }

    /// Returns the images of the target, in the order of the forms.
    fn images(&self) -> Result<Vec<(ImageForm, ManifestDigest)>> {
        let make = |form| Ok((form, image::image(self, &form)?));
        self.wants.images.iter().copied().map(make).collect()
    }
}

/// Returns the method by which the builder stacks trees of its store.
pub fn snapshots(builder: &Builder, work: &Workspace) -> Result<Snapshots> {
    Ok(if builder.is_bare() { Snapshots::Copies } else { Snapshots::probe(work)? })
}

/// Runs the open steps of each platform, one platform after the other, and writes the outputs once
/// everything is built. An error that is followed by a shell is passed to `tell` before the shell
/// starts.
pub fn execute(
    request: &BuildRequest,
    platforms: &[Prepared],
    store: &Store,
    events: Events,
    cancel: Cancel,
    builder: &Builder,
    tell: impl FnOnce(&BuildError),
) -> Result<Finished> {
    // Without the hold, a long build among many others may lose its log.
    let _logs = store.hold_logs(&request.build_id);
    let mut executors = Vec::new();
    let result = execute_all(request, platforms, store, &events, &cancel, builder, tell, &mut executors);
    executors.iter().for_each(Executor::remember);
    let layers = match (&result, request.weigh) {
        (Ok(_), true) => executors.iter().flat_map(Executor::weigh).collect(),
        _ => Vec::new(),
    };
    let status = match &result {
        Ok(_) => Status::Done,
        // A failed step cancels the others, too.
        Err(BuildError::Cancelled) => Status::Stopped,
        Err(_) => Status::Failed,
    };
    remember(request, platforms, store, &events, status, layers);
    let finished = result?;
    if request.cache_limit.is_some() {
        drop(executors);
        let freed = store.collect(Budget { bytes: request.cache_limit, used_since: None })?;
        if freed.bytes > 0 {
            let text = format!("the cache is full: {} given back", human_size(freed.bytes));
            events.send(Event::Phase { text, seconds: 0.0 });
        }
    }
    Ok(finished)
}

#[allow(clippy::too_many_arguments)]
#[tracing::instrument(target = "engine", name = "solve", level = "debug", skip_all)]
fn execute_all<'a>(
    request: &'a BuildRequest,
    platforms: &'a [Prepared],
    store: &'a Store,
    events: &Events,
    cancel: &Cancel,
    builder: &'a Builder,
    tell: impl FnOnce(&BuildError),
    executors: &mut Vec<Executor<'a>>,
) -> Result<Finished> {
    let mut images = Vec::new();
    let mut direct = None;
    let mut first = 0;
    for prepared in platforms {
        let events = match platforms.len() {
            1 => events.clone(),
            _ => events.of_platform(first, &prepared.platform.to_string()),
        };
        first += prepared.graph.vertices.len();
        executors.push(Executor::new(request, prepared, store, events, cancel.clone(), builder)?);
        let executor = &executors[executors.len() - 1];
        if let Err(e) = executor.run() {
            return Err(executor.after_failure(e, tell));
        }
        executor.refuse_leaks()?;
        images.push(executor.images()?);
        for export in request.exports.iter().filter(|export| executor.wants.is_direct(export)) {
            direct = Some(stream::export(executor, export)?);
        }
    }
    for export in &request.exports {
        let (split, text) = match export {
            Export::Files { split, .. } => (split, "writing files"),
            Export::Tar { split, .. } => (split, "writing the tar"),
            Export::Archive { .. } | Export::Layout { .. } | Export::Store { .. } => continue,
        };
        let started = Instant::now();
        let split = split.applies(platforms.len());
        let views: Vec<View> = executors.iter().map(|e| e.output_view(split)).collect::<Result<_>>()?;
        outputs::files(export, &views)?;
        events.send(Event::Phase { text: text.into(), seconds: started.elapsed().as_secs_f64() });
    }
    // Everything that a name refers to must be on disk before the name is.
    if executors.iter().any(|e| !e.scheduled.is_empty()) || images.iter().any(|made| !made.is_empty()) {
        store.sync(&request.build_id)?;
    }
    let kept = outputs::publish(request, &request.wants(), store, &images, events)?;
    Ok(Finished { image: kept.image.or(direct), ..kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_reported_whoever_tells_first() {
        let step = |reason: &str, at| {
            let failure = StepFailure {
                span: rbuild_dockerfile::Span::default(),
                label: String::new(),
                text: String::new(),
                reason: reason.into(),
                help: None,
                log: Vec::new(),
                more: None,
                at,
            };
            BuildError::Step(Box::new(failure))
        };
        let failures = FirstFailure::default();
        failures.note(BuildError::Cancelled);
        failures.note(step("second", 200));
        failures.note(step("first", 100));
        failures.note(BuildError::other("now"));
        failures.note(step("third", 300));
        assert_eq!(failures.take().map(|e| e.message()), Some("first".into()));
        assert!(failures.take().is_none());
    }
}
