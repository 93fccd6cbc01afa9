//! The verbs `stop`, `kill` and `wait`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rbuild_linux::process::signal_pidfd;
use rbuild_store::{Container, ContainerState, EndRequest, PendingRequest, RestartPolicy, RunWatch, Store};

use crate::args::{KillArgs, StopArgs, WaitArgs};
use crate::commands::containers::lookup;
use crate::commands::containers::pause::resume;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

/// Number of SIGKILL.
pub const KILL: i32 = 9;
/// Number of SIGTERM.
pub const TERM: i32 = 15;
/// Seconds until a stopped container is killed, as in docker.
pub const STOP_TIMEOUT: u64 = 10;
/// Exit code of a container whose supervisor was killed.
pub const KILLED: i32 = 128 + KILL;
/// Interval between two checks for the end of a container.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// Time in which a container usually ends after SIGKILL.
const MAX_KILL: Duration = Duration::from_secs(1);
/// Maximum time from the start of a container's supervisor to that of its command. Unpacking an
/// image takes long.
pub const MAX_START: Duration = Duration::from_secs(60);

pub fn stop(settings: &Settings, args: StopArgs) -> Result<u8, Failure> {
    let signal = args.signal.map(|signal| signal.0);
    lookup::each(settings, &args.targets.containers, |store, container| {
        stop_one(settings, store, container, signal, args.time)
    })
}

pub fn kill(settings: &Settings, args: KillArgs) -> Result<u8, Failure> {
    lookup::each(settings, &args.targets.containers, |store, container| {
        let store = &store;
        // A container that ends in this moment needs no signal.
        let (_, process) = lookup::running_process(store, container)?;
        if args.signal.0 == KILL || args.signal.0 == usual_stop(store, container)?.0 {
            drop(forbid_restart(store, container)?);
        }
        signal_pidfd(&process, args.signal.0).map_err(|e| Failure::caused("cannot send the signal", &e))
    })
}

pub fn wait(settings: &Settings, args: WaitArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut watches = Vec::new();
    for wanted in &args.targets.containers {
        let container = lookup::find(&store, wanted)?;
        if store.containers().state(&container.id)? == ContainerState::Created {
            lookup::running(&store, &container)?;
        }
        watches.extend(store.containers().watch(&container.id)?);
    }
    // Builds and other commands must not wait for this one.
    store.release_lock()?;
    for watch in watches {
        terminal::out(&format!("{}\n", watch.wait()?.map_or(KILLED, |ended| ended.code)));
    }
    Ok(code::OK)
}

/// Returns the signal that requests the end of a container, and the seconds until it is killed.
pub fn usual_stop(store: &Store, container: &Container) -> Result<(i32, u64), Failure> {
    let settings = store.containers().settings(&container.id)?;
    Ok(settings.map_or((TERM, STOP_TIMEOUT), |settings| (settings.stop_signal, settings.stop_timeout)))
}

/// Requests that the container ends, whatever its restart policy is, and even if a restart is
/// requested at the same time.
fn forbid_restart(store: &Store, container: &Container) -> Result<Option<PendingRequest>, Failure> {
    let settings = store.containers().settings(&container.id)?;
    let restarts = settings.is_some_and(|settings| settings.restart != RestartPolicy::No);
    match store.containers().restart_files(&container.id).request_end(EndRequest::Stop) {
        Ok(request) => Ok(Some(request)),
        Err(e) if restarts => Err(e.into()),
        // The disk may be full: without a policy, the signal is enough.
        Err(_) => Ok(None),
    }
}

/// Requests the end of a container, and kills it if it has not ended in time. Does nothing if it
/// does not run.
fn stop_one(
    settings: &Settings,
    store: Store,
    container: &Container,
    signal: Option<i32>,
    time: Option<u64>,
) -> Result<(), Failure> {
    let (usual, usual_time) = usual_stop(&store, container)?;
    let Some(ending) = Ending::of(&store, container)? else { return Ok(()) };
    resume(&store, container)?;
    // Builds and other commands must not wait for this one.
    store.release_lock()?;
    let current = || settings.open().ok().and_then(|store| process_of(&store, container));
    let ended = ending.end(signal.unwrap_or(usual), Duration::from_secs(time.unwrap_or(usual_time)), current);
    ended.map_err(|supervisor| {
        let name = &container.name;
        let failure = Failure::new(format!("container `{name}` cannot end: its process {supervisor} is stopped"));
        failure.help(VerbRemedy::Continue { process: supervisor })
    })
}

/// Returns the first process of a container, if it runs.
fn process_of(store: &Store, container: &Container) -> Option<OwnedFd> {
    store.containers().start_of(&container.id).ok().flatten()?.open()
}

/// Kills a container, and waits for its end. Does nothing if it does not run. Releases the lock of
/// the store.
pub fn kill_and_wait(settings: &Settings, store: Store, container: &Container) -> Result<(), Failure> {
    stop_one(settings, store, container, Some(KILL), Some(0))
}

/// A running container that is to end.
struct Ending {
    watch: RunWatch,
    /// The first process; `None` if that has ended meanwhile.
    process: Option<OwnedFd>,
    _request: Option<PendingRequest>,
}

impl Ending {
    /// Waits until the command of the container is started. Returns `None` if it does not run.
    fn of(store: &Store, container: &Container) -> Result<Option<Ending>, Failure> {
        let Some(watch) = store.containers().watch(&container.id)? else { return Ok(None) };
        let request = if watch.is_running() { forbid_restart(store, container)? } else { None };
        let of = |process| Ok(Some(Ending { watch, process, _request: request }));
        let began = Instant::now();
        loop {
            match store.containers().state(&container.id)? {
                ContainerState::Running(started) => return of(started.open()),
                ContainerState::Restarting(_) => return of(None),
                ContainerState::Starting if began.elapsed() < MAX_START => std::thread::sleep(INTERVAL),
                ContainerState::Starting => {
                    let failure = Failure::new(format!("container `{}` does not start", container.name));
                    return Err(failure.help(VerbRemedy::RunAgain));
                }
                _ => return Ok(None),
            }
        }
    }

    /// Sends the signal, waits, kills the container unless it has ended, and waits for its end.
    /// `current` returns the first process that it has then: it may have been started again just
    /// before that was forbidden.
    ///
    /// # Errors
    ///
    /// Fails with the PID of the supervisor if that is stopped.
    fn end(self, signal: i32, time: Duration, current: impl Fn() -> Option<OwnedFd>) -> Result<(), u32> {
        // The process may have ended meanwhile.
        let _ = self.process.as_ref().map(|process| signal_pidfd(process, signal));
        let mut time = time;
        while !ends_within(&self.watch, time) {
            let process = current();
            let _ = process.as_ref().or(self.process.as_ref()).map(|process| signal_pidfd(process, KILL));
            if time == MAX_KILL
                && let Some(supervisor) = self.watch.stopped_supervisor()
            {
                return Err(supervisor);
            }
            time = MAX_KILL;
        }
        Ok(())
    }
}

fn ends_within(watch: &RunWatch, time: Duration) -> bool {
    // There is no limit if the clock does not reach it.
    let end = Instant::now().checked_add(time);
    while watch.is_running() {
        if end.is_some_and(|end| Instant::now() >= end) {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
    true
}
