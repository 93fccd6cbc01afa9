//! Parallel execution of the scheduled vertices. A vertex starts when its last input is done.
//!
//! Workers must not wait for each other inside rayon. The worker that completes a vertex's last
//! input spawns it; the only blocking operations are child processes and file I/O.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rbuild_linux::clock::monotonic_nanoseconds;
use rbuild_linux::parallel::{locked, start_in};
use rbuild_plan::{Step, VertexId};
use rbuild_remedy::{MachineRemedy, Remedy, SessionLimit};
use rbuild_store::TreeId;

use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::event::Event;
use crate::solve::vertex;
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
    env: &'a StepEnv<'a>,
    /// For each vertex, the number of inputs that are not done.
    pending_inputs: Vec<AtomicUsize>,
    failure: FirstFailure,
    /// Receives the trees of layers that will be needed; `None` once all steps have ended.
    layer_sender: Mutex<Option<Sender<TreeId>>>,
}

/// The earliest of several parallel step failures. Failures are not necessarily reported in the
/// order in which they happened.
#[derive(Default)]
struct FirstFailure(Mutex<Option<(u64, BuildError)>>);

impl FirstFailure {
    fn note(&self, e: BuildError) {
        let at = match &e {
            // This is a consequence of another failure or of a request to stop.
            BuildError::Canceled => return,
            BuildError::Step(failure) => failure.at,
            _ => monotonic_nanoseconds(),
        };
        let mut first = locked(&self.0);
        if first.as_ref().is_none_or(|(known, _)| at < *known) {
            *first = Some((at, e));
        }
    }

    fn take(&self) -> Option<BuildError> {
        locked(&self.0).take().map(|(_, e)| e)
    }
}

/// Runs all scheduled steps. If there are commands among them, `pack` is called on a separate
/// thread with the layers that become available in the meantime.
///
/// # Errors
///
/// Fails with the error of the step that failed first, or if the build is canceled.
pub(crate) fn run(env: &StepEnv<'_>, pack: impl FnOnce(LayerQueue<'_>) + Send) -> Result<()> {
    let is_command = |id: VertexId| matches!(env.graph().vertices[id].step, Step::Run(_));
    let runs_any = env.schedule.vertices().any(|(id, _)| is_command(id));
    if runs_any {
        report_isolation(env);
    }
    let is_scheduled = |id: VertexId| env.schedule.vertices().any(|(scheduled, _)| scheduled == id);
    env.prepared.report_hits(env.store, &env.request.caches, &env.events, is_scheduled);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(env.request.jobs.max(1))
        .thread_name(|i| format!("step-{i}"))
        .build()
        .map_err(|e| no_threads(&e))?;
    for (step, inputs) in env.schedule.waits(env.graph()) {
        let vertex = &env.graph().vertices[step];
        let (label, text) = (vertex.name.to_string(), vertex.text.clone());
        let inputs = inputs.into_iter().map(VertexId::position).collect();
        env.events.send(Event::Waiting { step: step.position(), label, text, inputs });
    }
    let executor = Executor::new(env);
    let work = || {
        pool.scope(|scope| {
            for (id, _) in env.schedule.vertices().filter(|(_, inputs)| inputs.is_empty()) {
                let executor = &executor;
                scope.spawn(move |scope| executor.work_on(id, scope));
            }
        });
    };
    if runs_any {
        pack_beside(&executor.layer_sender, |sender| executor.queue_cached_layers(sender), pack, work);
    } else {
        work();
    }
    match executor.failure.take() {
        Some(e) => Err(e),
        None if env.cancel.is_canceled() => Err(BuildError::Canceled),
        None => Ok(()),
    }
}

/// Runs `work` on this thread and `pack` on another one, which receives the layers that
/// `queue_cached` and `work` put into the queue. The queue is closed when `work` returns or panics;
/// otherwise, the other thread would wait forever.
fn pack_beside(
    sender: &Mutex<Option<Sender<TreeId>>>,
    queue_cached: impl FnOnce(&Sender<TreeId>),
    pack: impl FnOnce(LayerQueue<'_>) + Send,
    work: impl FnOnce(),
) {
    struct Close<'a>(&'a Mutex<Option<Sender<TreeId>>>);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            locked(self.0).take();
        }
    }
    std::thread::scope(|threads| {
        let (queue, trees) = channel();
        queue_cached(&queue);
        *locked(sender) = Some(queue);
        let _close = Close(sender);
        // Without the thread the layers are packed later.
        let _ = start_in(threads, move || pack(LayerQueue { trees, sender }));
        work();
    });
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
    fn new(env: &'a StepEnv<'a>) -> Executor<'a> {
        let pending_inputs: Vec<AtomicUsize> = env.graph().vertices.iter().map(|_| AtomicUsize::new(0)).collect();
        for (id, inputs) in env.schedule.vertices() {
            pending_inputs[id].store(inputs.len(), Ordering::SeqCst);
        }
        Executor { env, pending_inputs, failure: FirstFailure::default(), layer_sender: Mutex::new(None) }
    }

    fn work_on<'s>(&'s self, id: VertexId, scope: &rayon::Scope<'s>) {
        let env = self.env;
        if env.cancel.is_canceled() {
            return;
        }
        let solved = catch_unwind(AssertUnwindSafe(|| vertex::solve(env, id))).unwrap_or_else(|panic| {
            // Cancel the commands of other steps: the build waits for them.
            env.cancel.cancel();
            resume_unwind(panic)
        });
        if let Err(e) = solved {
            self.failure.note(e);
            env.cancel.cancel();
            return;
        }
        self.queue_layer(id);
        for next in env.schedule.dependants(id) {
            if self.pending_inputs[*next].fetch_sub(1, Ordering::SeqCst) == 1 {
                let next = *next;
                scope.spawn(move |scope| self.work_on(next, scope));
            }
        }
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

    /// Queues the layers of cached steps of the result, which may not have been packed yet.
    fn queue_cached_layers(&self, sender: &Sender<TreeId>) {
        let tree_of = |id| self.env.results.get(id)?.tree.clone();
        let mut found: Vec<TreeId> = self.env.chain().filter_map(tree_of).collect();
        found.reverse();
        found.into_iter().for_each(|tree| drop(sender.send(tree)));
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;
    use crate::error::StepFailure;

    #[test]
    fn the_earliest_failure_is_reported() {
        let step = |reason: &str, at| {
            let failure = StepFailure {
                span: rbuild_dockerfile::Span::default(),
                label: String::new(),
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
        failures.note(BuildError::Canceled);
        failures.note(step("second", 200));
        failures.note(step("first", 100));
        failures.note(BuildError::other("now"));
        failures.note(step("third", 300));
        assert_eq!(failures.take().map(|e| e.message()), Some("first".into()));
        assert!(failures.take().is_none());
    }

    #[test]
    fn a_panic_of_a_step_stops_concurrent_packing() {
        let sender = Mutex::new(None);
        let packed = AtomicUsize::new(0);
        let pack = |layers: LayerQueue<'_>| while layers.next().is_some() {};
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let work = || {
                packed.fetch_add(1, Ordering::SeqCst);
                panic!("a step");
            };
            pack_beside(&sender, |_| {}, pack, work);
        }));
        assert!(ended.is_err() && packed.into_inner() == 1 && locked(&sender).is_none());
    }

    #[test]
    fn threads_that_cannot_be_started_are_reported_as_recorded() {
        let e = std::io::Error::from_raw_os_error(11);
        assert_recorded!("no-threads", variants!(BuildError).table(&[no_threads(&e)], |e| e, BuildError::help));
    }
}
