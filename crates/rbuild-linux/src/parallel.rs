//! Thread pools of a bounded size that report the first error.
//!
//! The threads are started for the work and end with it. They may wait for locks and the disk,
//! which workers of a common pool must not do.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use crate::{Error, Result, described};

/// Maximum number of threads that read or write directories. With more, locks in the kernel are the
/// limit.
pub const MAX_FILE_THREADS: usize = 8;

/// Returns the number of processors that this process may use, as of the first call.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Locks a mutex, even if a thread panicked while holding it. The value must be valid at all times.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the calling thread, and those that it starts, the lowest scheduling priority
/// (setpriority(2), which applies to threads on Linux). Errors are ignored.
pub fn lower_priority() {
    let _ = rustix::process::setpriority_process(None, 19);
}

/// Starts a thread.
///
/// # Errors
///
/// Fails if the limit of processes is reached.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().spawn(work).map_err(|e| Error::new("pthread_create", described("a thread"), e))
}

/// Starts a thread that ends with the scope.
///
/// # Errors
///
/// Fails if the limit of processes is reached.
pub fn start_in<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    work: impl FnOnce() -> T + Send + 's,
) -> Result<ScopedJoinHandle<'s, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|e| Error::new("pthread_create", described("a thread"), e))
}

/// Processes items on up to `threads` threads, including that of the caller, and returns the
/// results in order. Uses fewer threads if no more can be started. No further item is begun after
/// an error.
///
/// # Errors
///
/// Returns the error of the first of the failed items.
pub fn try_map<T, R, E>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> std::result::Result<R, E> + Sync,
) -> std::result::Result<Vec<R>, E>
where
    T: Sync,
    R: Send,
    E: Send,
{
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break };
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((at, result));
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map_while(|_| start_in(scope, worker).ok()).collect();
        let mut done = worker();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The queue of [`Workers`] and their first error.
pub struct Queue<T, E> {
    items: Mutex<Option<Receiver<T>>>,
    failed: AtomicBool,
    failure: Mutex<Option<E>>,
}

impl<T, E> Default for Queue<T, E> {
    fn default() -> Queue<T, E> {
        Queue { items: Mutex::new(None), failed: AtomicBool::new(false), failure: Mutex::new(None) }
    }
}

impl<T, E> Queue<T, E> {
    fn run(&self, work: impl Fn(T) -> std::result::Result<(), E>) {
        // A thread waits for an item while it holds the lock; the others wait for the lock and get
        // the following items.
        let next = || locked(&self.items).as_ref()?.recv().ok();
        while let Some(item) = next() {
            self.process(item, &work);
        }
    }

    fn process(&self, item: T, work: impl Fn(T) -> std::result::Result<(), E>) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = work(item) {
            locked(&self.failure).get_or_insert(e);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the outcome of the work. To be called when the workers have ended.
    ///
    /// # Errors
    ///
    /// Returns the first error of a worker.
    pub fn outcome(self) -> std::result::Result<(), E> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Threads that process the items of a queue while more of them are found. They are started with
/// the first item, and end when this is dropped and the queue is empty.
pub struct Workers<'s, 'e, T, E, W> {
    scope: &'s Scope<'s, 'e>,
    queue: &'e Queue<T, E>,
    work: &'e W,
    capacity: usize,
    /// The sender of the queue; `None` before the first item, `Some(None)` if no thread could be
    /// started and the caller does the work.
    sender: Option<Option<SyncSender<T>>>,
}

impl<'s, 'e, T, E, W> Workers<'s, 'e, T, E, W>
where
    T: Send,
    E: Send,
    W: Fn(T) -> std::result::Result<(), E> + Sync,
{
    /// Prepares workers with a queue of at most `capacity` items.
    pub fn new(scope: &'s Scope<'s, 'e>, queue: &'e Queue<T, E>, capacity: usize, work: &'e W) -> Self {
        Workers { scope, queue, work, capacity, sender: None }
    }

    /// Queues an item, waiting while the queue is full. Items after an error are dropped.
    pub fn push(&mut self, item: T) {
        let (queue, work) = (self.queue, self.work);
        let sender = self.sender.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel(self.capacity);
            *locked(&queue.items) = Some(receiver);
            let threads = cores().min(MAX_FILE_THREADS);
            let started = (0..threads).map_while(|_| start_in(self.scope, move || queue.run(work)).ok()).count();
            (started > 0).then_some(sender)
        });
        match sender {
            // The receiver is in the queue, which outlives this.
            Some(sender) => drop(sender.send(item)),
            None => queue.process(item, work),
        }
    }

    /// Returns true after the first error.
    pub fn has_failed(&self) -> bool {
        self.queue.failed.load(Ordering::Relaxed)
    }
}

/// Tasks that may add further tasks, such as the directories of a tree. The last one added is
/// processed first.
pub struct Tasks<'s, T, E> {
    queue: &'s TaskQueue<T, E>,
    /// Starts further threads for a number of waiting tasks. `None` on the threads started by it.
    start: Option<&'s dyn Fn(usize)>,
}

struct TaskQueue<T, E> {
    state: Mutex<TaskState<T, E>>,
    more: Condvar,
}

struct TaskState<T, E> {
    waiting: Vec<T>,
    /// Number of waiting and running tasks.
    open: usize,
    /// Number of threads that wait for a task.
    idle: usize,
    failure: Option<E>,
}

/// Number of waiting tasks per thread before [`Tasks`] start another thread.
const WAITING_PER_THREAD: usize = 3;

impl<T: Send, E: Send> Tasks<'_, T, E> {
    /// Processes a task and all tasks that `work` adds. Starts further threads, up to the number of
    /// processors, as soon as many tasks wait. All of them have ended when this returns. No further
    /// task is begun after an error.
    ///
    /// # Errors
    ///
    /// Returns the first error.
    pub fn run(
        first: T,
        work: impl Fn(&Tasks<'_, T, E>, T) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E> {
        let state = TaskState { waiting: vec![first], open: 1, idle: 0, failure: None };
        let queue = TaskQueue { state: Mutex::new(state), more: Condvar::new() };
        let most = cores().min(MAX_FILE_THREADS);
        let helper = || Tasks { queue: &queue, start: None }.process(&work);
        std::thread::scope(|scope| {
            let threads = Cell::new(1);
            let start = |waiting| {
                while threads.get() < most && waiting > threads.get() * WAITING_PER_THREAD {
                    threads.set(if start_in(scope, helper).is_ok() { threads.get() + 1 } else { most });
                }
            };
            Tasks { queue: &queue, start: Some(&start) }.process(&work);
        });
        queue.state.into_inner().unwrap_or_else(PoisonError::into_inner).failure.map_or(Ok(()), Err)
    }

    /// Adds a task.
    pub fn add(&self, task: T) {
        let mut state = locked(&self.queue.state);
        state.open += 1;
        state.waiting.push(task);
        let (waiting, idle) = (state.waiting.len(), state.idle);
        drop(state);
        if idle > 0 {
            self.queue.more.notify_one();
        }
        if let Some(start) = self.start {
            start(waiting);
        }
    }

    fn process(&self, work: &impl Fn(&Tasks<'_, T, E>, T) -> std::result::Result<(), E>) {
        while let Some(task) = self.queue.next() {
            self.queue.end(work(self, task));
        }
    }
}

impl<T, E> TaskQueue<T, E> {
    /// Returns the next task, waiting while running tasks may add one. Returns `None` when all
    /// tasks are done or one has failed.
    fn next(&self) -> Option<T> {
        let mut state = locked(&self.state);
        loop {
            if state.failure.is_some() || state.open == 0 {
                return None;
            }
            if let Some(task) = state.waiting.pop() {
                return Some(task);
            }
            state.idle += 1;
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn end(&self, result: std::result::Result<(), E>) {
        let mut state = locked(&self.state);
        state.open -= 1;
        if let Err(e) = result {
            state.failure.get_or_insert(e);
        }
        if state.open == 0 || state.failure.is_some() {
            self.more.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_may_add_tasks_until_one_fails() {
        for (bad, want) in [(None, Ok(())), (Some(40), Err(40))] {
            let sum = AtomicUsize::new(0);
            let result = Tasks::run(1, |tasks, number: usize| {
                sum.fetch_add(number, Ordering::Relaxed);
                (2 * number..2 * number + 2).filter(|below| *below < 500).for_each(|below| tasks.add(below));
                if Some(number) == bad { Err(number) } else { Ok(()) }
            });
            assert_eq!(result, want);
            assert!(bad.is_some() || sum.into_inner() == 499 * 500 / 2);
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for threads in [0, 1, 3, 50] {
            let items: Vec<usize> = (0..40).collect();
            let doubled = try_map(threads, &items, |item| Ok::<_, ()>(item * 2)).unwrap();
            assert!(doubled.iter().enumerate().all(|(at, value)| *value == at * 2), "{threads} threads");
        }
        assert_eq!(try_map(4, &[], |_: &u8| Ok::<u8, ()>(0)), Ok(Vec::new()));
    }

    #[test]
    fn no_item_is_started_after_an_error() {
        let begun = AtomicUsize::new(0);
        let items: Vec<usize> = (0..1000).collect();
        let failed = try_map(1, &items, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(*item) } else { Ok(()) }
        });
        assert_eq!((failed, begun.into_inner()), (Err(3), 4));
    }

    #[test]
    fn workers_process_all_items_or_return_the_first_error() {
        for (bad, want) in [(None, Ok(())), (Some(7), Err(7))] {
            let sum = AtomicUsize::new(0);
            let queue = Queue::default();
            let work = |item: usize| {
                sum.fetch_add(item, Ordering::Relaxed);
                if Some(item) == bad { Err(item) } else { Ok(()) }
            };
            std::thread::scope(|scope| {
                let mut workers = Workers::new(scope, &queue, 2, &work);
                (0..100).for_each(|item| workers.push(item));
            });
            assert_eq!(queue.outcome(), want);
            assert!(bad.is_some() || sum.into_inner() == 4950);
        }
    }
}
