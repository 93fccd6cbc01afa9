//! Starts a container that outlives this command.
//!
//! This process forks the container's supervisor, waits until the command of the container is
//! started, records its process, and ends. Only this process and the supervisor know the process
//! under the ID that it has on the machine; the builder, which the supervisor starts, is in a PID
//! namespace of its own and sends a descriptor of it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rbuild_engine::{BuildError, ContainerCommand, invoke_detached};
use rbuild_linux::StopSignals;
use rbuild_linux::fd_passing::{receive_with_byte, send_with_byte};
use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_sandbox::{Builder, Cancel, CommandOutcome, SandboxError, Watched, enter_watching};
use rbuild_store::{ContainerId, RunLock, Store};

use crate::commands::containers::abandoned::remove_abandoned;
use crate::commands::containers::command::{STOP_TIME, container_not_started, on_signal};
use crate::commands::containers::health::Checker;
use crate::commands::containers::launch::{Launch, send_start, started};
use crate::commands::containers::restarts::{Restarts, record_restart};
use crate::commands::in_builder::{killed, store_in};
use crate::commands::volumes;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;

/// Messages of the supervisor and its builder: the command is started, with a descriptor of its
/// process, and followed by the name of the isolation mode on a line; or nothing is started,
/// followed by a failure as JSON.
const STARTED: u8 = b's';
const FAILED: u8 = b'f';
/// The answer to [`STARTED`], once to the builder and once to the supervisor.
const RECORDED: u8 = b'r';

/// Starts a container, and returns its ID once its command is started, or at once if it runs
/// already. If this process is ended before that, the supervisor removes the container again.
///
/// # Errors
///
/// Fails if the name is in use, or if the command cannot be started. Then there is no container, or
/// it is only created, as before.
pub fn start(settings: &Settings, store: Store, launch: &Launch<'_>) -> Result<ContainerId, Failure> {
    let id = launch.origin.id();
    let failed = |e: std::io::Error| Failure::caused("cannot create a pair of sockets", &e);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // A container exists with its supervisor, or not at all.
    let signals = StopSignals::block().map_err(|e| Failure::caused("cannot start the container", &e))?;
    let Some(lock) = launch.begin(settings, &store, &signals)? else { return Ok(id) };
    let supervisor = match process::fork() {
        Ok(Cloned::Child) => {
            drop(ours);
            let _ = leave_caller();
            // Those of the caller's terminal are for the caller. `enter` receives later ones.
            signals.take_all();
            supervise(settings, &store, launch, &theirs, &lock);
            std::process::exit(i32::from(code::OK))
        }
        Ok(Cloned::Parent { child }) => child,
        Err(e) => {
            launch.remove_group();
            launch.clean_up(&store, &lock, false);
            return Err(Failure::caused("cannot start the container", &e));
        }
    };
    // The supervisor holds the lock from now on.
    drop((theirs, signals, lock));
    await_start(&store, &id, ours).map(|()| id).inspect_err(|_| {
        // A supervisor that was killed has not removed the container.
        if matches!(process::wait(supervisor), Ok(Exit::Signal(_))) {
            remove_after_kill(settings, &store, &id);
        }
    })
}

/// Removes a container whose supervisor was killed during the start, unless that did not create it.
fn remove_after_kill(settings: &Settings, store: &Store, id: &ContainerId) {
    let waited = store.containers().watch(id).and_then(|watch| {
        // The builder ends with the supervisor, but a little later.
        watch.map(|watch| watch.wait()).transpose()
    });
    let removed = waited.map_err(Failure::from).and_then(|_| remove_abandoned(settings, store));
    if let Err(failure) = removed {
        tracing::debug!(target: "engine", error = failure.message, "the container stays");
    }
}

/// Waits until the command is started, and records its process.
fn await_start(store: &Store, id: &ContainerId, mut socket: UnixStream) -> Result<(), Failure> {
    match receive_with_byte(&socket) {
        Ok((mut fds, STARTED)) => {
            let mut mode = String::new();
            let _ = BufReader::new(&socket).read_line(&mut mode);
            store.containers().record_start(id, &started(fds.pop(), mode.trim_end()).restartable())?;
            // If the supervisor has been killed meanwhile, the container is shown as dead.
            let _ = socket.write_all(&[RECORDED; 2]);
            Ok(())
        }
        Ok((_, FAILED)) => {
            let mut text = Vec::new();
            let _ = socket.read_to_end(&mut text);
            Err(serde_json::from_slice(&text).unwrap_or_else(|_| killed(9)))
        }
        _ => Err(killed(9)),
    }
}

/// Runs the container to its end in this process. Removes the container afterwards if its settings
/// specify it, or if nobody has recorded its start.
fn supervise(settings: &Settings, store: &Store, launch: &Launch<'_>, socket: &UnixStream, lock: &RunLock) {
    let (ours, theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(e) => {
            report(socket, &Failure::caused("cannot create a pair of sockets", &e));
            launch.remove_group();
            return launch.clean_up(store, lock, false);
        }
    };
    let id = launch.origin.id();
    // Before the builder, whose namespaces it does not enter.
    let checker = Checker::start(store, launch);
    let mut read = || record_restart(settings, &id, &ours);
    let watched = Watched { socket: &ours, read: &mut read };
    let sockets = Sockets { first: socket, later: &theirs };
    let builder = |builder| in_builder(builder, store, launch, sockets);
    let (code, error) =
        match enter_watching(&checker.builder_beside(launch), settings.isolation, Some(watched), builder) {
            Ok(exit) => (exit.code, None),
            Err(e) => {
                let failure = Failure::from(e);
                report(socket, &failure);
                (i32::from(failure.code), Some(failure.message))
            }
        };
    checker.end();
    launch.record_end(lock, code, error);
    let is_recorded = is_recorded(socket);
    if (launch.invocation.settings.remove || !is_recorded)
        && let Ok(store) = settings.open()
    {
        launch.clean_up(&store, lock, is_recorded);
        volumes::remove_anonymous(settings, &store, &launch.invocation.settings);
    }
}

/// Returns true if the start of the container is recorded. Does not wait for that.
fn is_recorded(mut socket: &UnixStream) -> bool {
    socket.set_nonblocking(true).is_ok() && socket.read_exact(&mut [0]).is_ok()
}

/// Detaches this process from the terminal, the streams and the directory of its caller.
pub fn leave_caller() -> std::io::Result<()> {
    process::leave_session();
    process::close_inherited_descriptors();
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    process::replace_standard_streams(&null)
}

/// Sends a failure to the process that waits for the start. It may be gone.
fn report(mut socket: &UnixStream, failure: &Failure) {
    let text = serde_json::to_vec(failure).unwrap_or_default();
    let _ = socket.write_all(&[&[FAILED][..], &text].concat());
}

/// The sockets for starts of the command: the first one is announced to the process that started
/// the container, later ones to the supervisor.
#[derive(Clone, Copy)]
struct Sockets<'a> {
    first: &'a UnixStream,
    later: &'a UnixStream,
}

/// Runs the command in the builder process, and returns its exit code.
fn in_builder(builder: Result<Builder, SandboxError>, store: &Store, launch: &Launch<'_>, sockets: Sockets<'_>) -> i32 {
    let Sockets { first: socket, later } = sockets;
    let Launch { invocation, origin, .. } = launch;
    let cancel = Cancel::default();
    let mut is_started = false;
    let outcome = builder.map_err(BuildError::from).and_then(|builder| {
        let time = Duration::from_secs(invocation.settings.stop_timeout).min(STOP_TIME);
        builder.on_stop(on_signal(&cancel, time, None)).map_err(BuildError::kernel("the builder"))?;
        let store = store_in(&builder, store)?;
        let mode = builder.isolation.runner_mode().name();
        let restarts = store.containers().restart_files(&origin.id());
        let restarts = RefCell::new(Restarts::new(invocation.settings.restart, restarts, &cancel));
        let started = |process: OwnedFd| {
            if !restarts.borrow_mut().begin() {
                return send_start(later, &process, mode);
            }
            is_started = true;
            // Without the process that started it, nobody knows the container's ID.
            if !announce(socket, &process, mode) {
                cancel.cancel();
            }
        };
        let command = ContainerCommand { container: &origin.id(), image: launch.image, invocation };
        let again = |outcome: &CommandOutcome| restarts.borrow_mut().again(outcome);
        invoke_detached(store, command, &builder, &cancel, started, again)
    });
    let failure = match outcome {
        Ok(CommandOutcome::Exited(code)) => return code,
        Ok(CommandOutcome::Signaled(signal)) => return 128 + signal,
        Ok(CommandOutcome::NotStarted(error)) => container_not_started(&error, &invocation.settings),
        Err(e) => e.into(),
    };
    if !is_started {
        report(socket, &failure);
    }
    i32::from(failure.code)
}

/// Announces the start, and waits until it is recorded. Returns false if the process that waits for
/// the start is gone.
fn announce(mut socket: &UnixStream, process: &OwnedFd, mode: &str) -> bool {
    send_with_byte(socket, STARTED, &[process.as_fd()]).is_ok()
        && socket.write_all(format!("{mode}\n").as_bytes()).is_ok()
        && socket.read_exact(&mut [0]).is_ok()
}
