//! Parallel execution of the scheduled vertices of all platforms. A vertex starts when its last
//! input is done.
//!
//! Workers must not wait for each other inside rayon. The worker that completes a vertex's last
//! input spawns it; the only blocking operations are child processes, file I/O and locks of the
//! store, whose holders are running. A worker does not wait for work of another platform with the
//! same definition key: the vertex is spawned again once that is done.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use rbuild_linux::clock::monotonic_nanoseconds;
use rbuild_linux::parallel::{locked, start_in};
use rbuild_plan::{Step, VertexId};
use rbuild_remedy::{MachineRemedy, Remedy, SessionLimit};
use rbuild_store::TreeId;

use crate::env::StepEnv;
use crate::error::BuildError;
use crate::event::Event;
use crate::solve::vertex::{self, WorkKey};
use crate::warning::BuildWarning;

/// The receiving end of the queue of trees of the result's layers, which are packed while other
/// steps still run.
pub(crate) struct LayerQueue<'a> {
    trees: Receiver<TreeId>,
    sender: &'a Mutex<Option<Sender<TreeId>>>,
}

impl LayerQueue<'_> {
    /// Returns the next tree; `None` once all steps have ended and the queue is empty.
    pub fn next(&self) -> Option<TreeId> {
        let tree = self.trees.recv().ok()?;
        locked(self.sender).is_some().then_some(tree)
    }
}

struct Executor<'a> {
    platforms: Vec<PlatformSteps<'a>>,
    failure: FirstFailure,
    shared: SharedWork,
}

/// The scheduled vertices of one platform.
struct PlatformSteps<'a> {
    env: &'a StepEnv<'a>,
    /// For each vertex, the number of inputs that are not done.
    pending_inputs: Vec<AtomicUsize>,
    /// Receives the trees of layers that will be needed; `None` once all steps have ended.
    layer_sender: Mutex<Option<Sender<TreeId>>>,
}

/// A vertex of one of the platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PlatformVertex {
    platform: usize,
    id: VertexId,
}

/// Work that several platforms may need. It is done for the platform that begins it first; the
/// vertices of the others wait, and find its result.
#[derive(Default)]
struct SharedWork(Mutex<HashMap<WorkKey, Vec<PlatformVertex>>>);

impl SharedWork {
    /// Returns true if the work is to be done for `vertex`. Otherwise, `vertex` waits.
    fn begin(&self, work: WorkKey, vertex: PlatformVertex) -> bool {
        match locked(&self.0).entry(work) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(vertex);
                false
            }
            Entry::Vacant(free) => {
                free.insert(Vec::new());
                true
            }
        }
    }

    /// Ends work, and returns the vertices that waited for it.
    fn end(&self, work: &WorkKey) -> Vec<PlatformVertex> {
        locked(&self.0).remove(work).unwrap_or_default()
    }
}

/// A failure, with the position of its platform.
#[derive(Debug)]
pub(crate) struct PlatformFailure {
    pub platform: usize,
    pub error: BuildError,
}

/// The earliest of several parallel step failures. Failures are not necessarily reported in the
/// order in which they happened.
#[derive(Default)]
struct FirstFailure(Mutex<Option<(u64, PlatformFailure)>>);

impl FirstFailure {
    fn note(&self, platform: usize, error: BuildError) {
        let at = match &error {
            // This is a consequence of another failure or of a request to stop.
            BuildError::Canceled => return,
            BuildError::Step(failure) => failure.at,
            _ => monotonic_nanoseconds(),
        };
        let mut first = locked(&self.0);
        if first.as_ref().is_none_or(|(known, _)| at < *known) {
            *first = Some((at, PlatformFailure { platform, error }));
        }
    }

    fn take(&self) -> Option<PlatformFailure> {
        locked(&self.0).take().map(|(_, failure)| failure)
    }
}

/// Runs all scheduled steps of the platforms of a build. For each platform with commands among
/// them, `pack` is called on a separate thread with the layers that become available in the
/// meantime.
///
/// # Errors
///
/// Fails with the error of the step that failed first, or if the build is canceled.
pub(crate) fn run(
    envs: &[StepEnv<'_>],
    pack: impl Fn(&StepEnv<'_>, LayerQueue<'_>) + Sync,
) -> std::result::Result<(), PlatformFailure> {
    let Some(first) = envs.first() else { return Ok(()) };
    if let Some(env) = envs.iter().find(|env| runs_any(env)) {
        report_isolation(env);
    }
    envs.iter().for_each(report_schedule);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(first.request.jobs.max(1))
        .thread_name(|i| format!("step-{i}"))
        .build()
        .map_err(|e| PlatformFailure { platform: 0, error: no_threads(&e) })?;
    let executor = Executor::new(envs);
    std::thread::scope(|threads| {
        let pack = &pack;
        let packed = executor.platforms.iter().filter(|steps| runs_any(steps.env));
        let _queues: Vec<OpenQueue<'_>> = packed
            .map(|steps| {
                pack_beside(threads, &steps.layer_sender, steps.cached_layers(), |layers| pack(steps.env, layers))
            })
            .collect();
        pool.scope(|scope| executor.ready().into_iter().for_each(|vertex| executor.spawn(vertex, scope)));
    });
    match executor.failure.take() {
        Some(failure) => Err(failure),
        None if first.cancel.is_canceled() => Err(PlatformFailure { platform: 0, error: BuildError::Canceled }),
        None => Ok(()),
    }
}

/// Returns true if a command is scheduled.
fn runs_any(env: &StepEnv<'_>) -> bool {
    env.schedule.vertices().any(|(id, _)| matches!(env.graph().vertices[id].step, Step::Run(_)))
}

/// Reports the steps that are cached, and those that wait for others.
fn report_schedule(env: &StepEnv<'_>) {
    let is_scheduled = |id: VertexId| env.schedule.vertices().any(|(scheduled, _)| scheduled == id);
    env.prepared.report_hits(env.store, &env.request.caches, &env.events, is_scheduled);
    for (step, inputs) in env.schedule.waits(env.graph()) {
        let vertex = &env.graph().vertices[step];
        let (label, text) = (vertex.name.to_string(), vertex.text.clone());
        let inputs = inputs.into_iter().map(VertexId::position).collect();
        env.events.send(Event::Waiting { step: step.position(), label, text, inputs });
    }
}

/// A queue of layers. It is closed when this value is dropped, also by a panic: otherwise, the
/// thread that packs the layers would wait forever.
struct OpenQueue<'a>(&'a Mutex<Option<Sender<TreeId>>>);

impl Drop for OpenQueue<'_> {
    fn drop(&mut self) {
        locked(self.0).take();
    }
}

/// Calls `pack` on another thread, with the `cached` layers and those that are sent to `sender`
/// until the returned queue is dropped.
fn pack_beside<'s, 'e: 's>(
    threads: &'s Scope<'s, 'e>,
    sender: &'e Mutex<Option<Sender<TreeId>>>,
    cached: Vec<TreeId>,
    pack: impl FnOnce(LayerQueue<'_>) + Send + 's,
) -> OpenQueue<'e> {
    let (queue, trees) = channel();
    cached.into_iter().for_each(|tree| drop(queue.send(tree)));
    *locked(sender) = Some(queue);
    // Without the thread the layers are packed later.
    let _ = start_in(threads, move || pack(LayerQueue { trees, sender }));
    OpenQueue(sender)
}

fn no_threads(e: &(dyn std::error::Error + 'static)) -> BuildError {
    let cause = rbuild_remedy::message(e.source().unwrap_or(e));
    BuildError::Other {
        message: format!("cannot start the worker threads: {cause}"),
        help: Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Processes })),
    }
}

fn report_isolation(env: &StepEnv<'_>) {
    env.events.send(Event::Isolation { mode: env.builder.isolation.name() });
    if env.builder.is_bare() {
        env.events.send(Event::Warning(BuildWarning::NotIsolated.into()));
    } else if env.builder.shows_outer_processes() {
        env.events.send(Event::Warning(BuildWarning::OuterProcesses.into()));
    }
}

impl<'a> Executor<'a> {
    fn new(envs: &'a [StepEnv<'a>]) -> Executor<'a> {
        let platforms = envs.iter().map(PlatformSteps::new).collect();
        Executor { platforms, failure: FirstFailure::default(), shared: SharedWork::default() }
    }

    /// Returns the vertices without inputs.
    fn ready(&self) -> Vec<PlatformVertex> {
        let of = |(platform, steps): (usize, &PlatformSteps<'a>)| {
            let ready = steps.env.schedule.vertices().filter(|(_, inputs)| inputs.is_empty());
            ready.map(|(id, _)| PlatformVertex { platform, id }).collect::<Vec<_>>()
        };
        self.platforms.iter().enumerate().flat_map(of).collect()
    }

    fn spawn<'s>(&'s self, vertex: PlatformVertex, scope: &rayon::Scope<'s>) {
        scope.spawn(move |scope| self.work_on(vertex, scope));
    }

    fn work_on<'s>(&'s self, vertex: PlatformVertex, scope: &rayon::Scope<'s>) {
        let PlatformVertex { platform, id } = vertex;
        let steps = &self.platforms[platform];
        let env = steps.env;
        if env.cancel.is_canceled() {
            return;
        }
        let work = if self.platforms.len() > 1 { vertex::work_key(env, id) } else { None };
        if work.as_ref().is_some_and(|work| !self.shared.begin(*work, vertex)) {
            return;
        }
        let solved = catch_unwind(AssertUnwindSafe(|| vertex::solve(env, id))).unwrap_or_else(|panic| {
            // Cancel the commands of other steps: the build waits for them.
            env.cancel.cancel();
            resume_unwind(panic)
        });
        if let Err(e) = solved {
            self.failure.note(platform, e);
            env.cancel.cancel();
            return;
        }
        steps.queue_layer(id);
        let waited = work.map(|work| self.shared.end(&work)).unwrap_or_default();
        waited.into_iter().for_each(|vertex| self.spawn(vertex, scope));
        for next in env.schedule.dependants(id) {
            if steps.pending_inputs[*next].fetch_sub(1, Ordering::SeqCst) == 1 {
                self.spawn(PlatformVertex { platform, id: *next }, scope);
            }
        }
    }
}

impl<'a> PlatformSteps<'a> {
    fn new(env: &'a StepEnv<'a>) -> PlatformSteps<'a> {
        let pending_inputs: Vec<AtomicUsize> = env.graph().vertices.iter().map(|_| AtomicUsize::new(0)).collect();
        for (id, inputs) in env.schedule.vertices() {
            pending_inputs[id].store(inputs.len(), Ordering::SeqCst);
        }
        PlatformSteps { env, pending_inputs, layer_sender: Mutex::new(None) }
    }

    /// Queues the layer of a step for early packing, if the result will need it.
    fn queue_layer(&self, id: VertexId) {
        let sender = locked(&self.layer_sender).clone();
        let tree = self.env.results.get(id).and_then(|done| done.tree.as_ref());
        if let (Some(sender), Some(tree)) = (sender, tree)
            && self.env.chain().any(|layer| layer == id)
        {
            let _ = sender.send(tree.clone());
        }
    }

    /// Returns the layers of cached steps of the result, which may not have been packed yet.
    fn cached_layers(&self) -> Vec<TreeId> {
        let tree_of = |id| self.env.results.get(id)?.tree.clone();
        let mut found: Vec<TreeId> = self.env.chain().filter_map(tree_of).collect();
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::ManifestDigest;
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;
    use crate::error::StepFailure;

    #[test]
    fn the_earliest_failure_is_reported() {
        let step = |reason: &str, at| {
            let failure = StepFailure {
                span: rbuild_dockerfile::Span::default(),
                label: String::new(),
                of_several: false,
                text: String::new(),
                word: None,
                reason: reason.into(),
                help: None,
                log: Vec::new(),
                more: None,
                at,
            };
            BuildError::Step(Box::new(failure))
        };
        let failures = FirstFailure::default();
        failures.note(0, BuildError::Canceled);
        failures.note(0, step("second", 200));
        failures.note(1, step("first", 100));
        failures.note(0, BuildError::other("now"));
        failures.note(2, step("third", 300));
        let first = failures.take().map(|PlatformFailure { platform, error }| (platform, error.message()));
        assert_eq!(first, Some((1, "first".into())));
        assert!(failures.take().is_none());
    }

    #[test]
    fn a_panic_of_a_step_stops_concurrent_packing() {
        let sender = Mutex::new(None);
        let packed = AtomicUsize::new(0);
        let pack = |layers: LayerQueue<'_>| while layers.next().is_some() {};
        let ended = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|threads| {
                let _queue = pack_beside(threads, &sender, Vec::new(), pack);
                packed.fetch_add(1, Ordering::SeqCst);
                panic!("a step");
            });
        }));
        assert!(ended.is_err() && packed.into_inner() == 1 && locked(&sender).is_none());
    }

    #[test]
    fn equal_work_is_done_by_the_first_platform_and_then_by_the_next() {
        let shared = SharedWork::default();
        let vertex = |platform| PlatformVertex { platform, id: VertexId::new(7) };
        let (work, other) = (WorkKey::Image(ManifestDigest::of(b"a")), WorkKey::Image(ManifestDigest::of(b"b")));
        assert!(shared.begin(work, vertex(0)) && shared.begin(other, vertex(0)));
        assert!(!shared.begin(work, vertex(1)) && !shared.begin(work, vertex(2)));
        assert_eq!(shared.end(&work), [vertex(1), vertex(2)]);
        assert!(shared.begin(work, vertex(2)) && !shared.begin(work, vertex(1)));
        assert_eq!((shared.end(&work), shared.end(&other)), (vec![vertex(1)], vec![]));
    }

    #[test]
    fn threads_that_cannot_be_started_are_reported_as_recorded() {
        let e = std::io::Error::from_raw_os_error(11);
        assert_recorded!("no-threads", variants!(BuildError).table(&[no_threads(&e)], |e| e, BuildError::help));
    }
}
