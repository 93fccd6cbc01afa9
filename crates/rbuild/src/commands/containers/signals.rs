//! The verbs `stop`, `kill` and `wait`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rbuild_linux::process::signal_pidfd;
use rbuild_store::{Container, ContainerState, RunWatch, Store};

use crate::args::{KillArgs, StopArgs, WaitArgs};
use crate::commands::containers::lookup;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

/// Number of SIGKILL.
const KILL: i32 = 9;
/// Number of SIGTERM.
pub const TERM: i32 = 15;
/// Seconds until a stopped container is killed, as in docker.
pub const STOP_TIMEOUT: u64 = 10;
/// Exit code of a container whose supervisor was killed.
pub const KILLED: i32 = 128 + KILL;
/// Interval between two checks for the end of a container.
const INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time from the start of a container's supervisor to that of its command. Unpacking an
/// image takes long.
const MAX_START: Duration = Duration::from_secs(60);

pub fn stop(settings: &Settings, args: StopArgs) -> Result<u8, Failure> {
    let signal = args.signal.map(|signal| signal.0);
    each(settings, &args.targets.containers, |store, container| stop_one(store, container, signal, args.time))
}

pub fn kill(settings: &Settings, args: KillArgs) -> Result<u8, Failure> {
    each(settings, &args.targets.containers, |store, container| {
        let started = lookup::running(&store, container)?;
        // A container that ends in this moment needs no signal.
        let process = started.open().ok_or_else(|| not_running(&container.name))?;
        signal_pidfd(&process, args.signal.0).map_err(|e| Failure::caused("cannot send the signal", &e))
    })
}

pub fn wait(settings: &Settings, args: WaitArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut watches = Vec::new();
    for wanted in &args.targets.containers {
        let container = lookup::find(&store, wanted)?;
        match store.containers().watch(&container.id)? {
            Some(watch) => watches.push(watch),
            None => drop(lookup::running(&store, &container)?),
        }
    }
    // Builds and other commands must not wait for this one.
    store.release_lock()?;
    for watch in watches {
        terminal::out(&format!("{}\n", watch.wait()?.map_or(KILLED, |ended| ended.code)));
    }
    Ok(code::OK)
}

/// Applies an action to each container, and prints the names of those for which it succeeded. The
/// action may release the lock of the store.
fn each(
    settings: &Settings,
    names: &[String],
    mut action: impl FnMut(Store, &Container) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut worst = code::OK;
    for wanted in names {
        let store = settings.open()?;
        match lookup::find(&store, wanted).and_then(|container| action(store, &container)) {
            Ok(()) => terminal::out(&format!("{wanted}\n")),
            Err(failure) => worst = worst.max(failure.report()),
        }
    }
    Ok(worst)
}

fn not_running(name: &str) -> Failure {
    Failure::new(format!("container `{name}` is not running")).help(VerbRemedy::ShowOutput { name: name.into() })
}

/// Requests the end of a container, and kills it if it has not ended in time. Does nothing if it
/// does not run.
fn stop_one(store: Store, container: &Container, signal: Option<i32>, time: Option<u64>) -> Result<(), Failure> {
    let settings = store.containers().settings(&container.id)?;
    let (usual, usual_time) =
        settings.map_or((TERM, STOP_TIMEOUT), |settings| (settings.stop_signal, settings.stop_timeout));
    let Some(ending) = Ending::of(&store, container)? else { return Ok(()) };
    // Builds and other commands must not wait for this one.
    store.release_lock()?;
    ending.end(signal.unwrap_or(usual), Duration::from_secs(time.unwrap_or(usual_time)))
}

/// Kills a container, and waits for its end. Does nothing if it does not run.
pub fn kill_and_wait(store: &Store, container: &Container) -> Result<(), Failure> {
    Ending::of(store, container)?.map_or(Ok(()), |ending| ending.end(KILL, Duration::ZERO))
}

/// A running container that is to end.
struct Ending {
    watch: RunWatch,
    /// The first process; `None` if that has ended meanwhile.
    process: Option<OwnedFd>,
}

impl Ending {
    /// Waits until the command of the container is started. Returns `None` if it does not run.
    fn of(store: &Store, container: &Container) -> Result<Option<Ending>, Failure> {
        let Some(watch) = store.containers().watch(&container.id)? else { return Ok(None) };
        let began = Instant::now();
        loop {
            match store.containers().state(&container.id)? {
                ContainerState::Running(started) => return Ok(Some(Ending { watch, process: started.open() })),
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
    fn end(self, signal: i32, time: Duration) -> Result<(), Failure> {
        if let Some(process) = &self.process {
            // The process may have ended meanwhile.
            let _ = signal_pidfd(process, signal);
            if !ends_within(&self.watch, time) {
                let _ = signal_pidfd(process, KILL);
            }
        }
        self.watch.wait().map(drop).map_err(Failure::from)
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
