//! Runs a container in the foreground. This process is its supervisor.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rbuild_engine::{BuildError, ContainerCommand, invoke, limit_remedy};
use rbuild_linux::{StopProtection, StopSignals};
use rbuild_sandbox::{
    Builder, BuilderExit, Cancel, CommandOutcome, Input, Restore, SandboxError, Watched, enter_watching,
};
use rbuild_store::{ContainerId, Store};

use crate::commands::containers::command::{STOP_TIME, container_not_started, on_signal};
use crate::commands::containers::health::Checker;
use crate::commands::containers::launch::{Launch, received_start, send_start};
use crate::commands::containers::limits;
use crate::commands::in_builder::{exit_code, store_in};
use crate::commands::volumes;
use crate::exit::{Failure, interrupted};
use crate::input::settings::Settings;
use crate::ui::hints::Hint;
use crate::ui::terminal;

/// The note while a command that has received a signal has not ended.
const STOPPING: &str = "note: the command has 10 s to end; another signal ends it at once\n";

/// Exit code of a builder that SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// Runs the container to its end on the standard streams of this process, and returns the exit code
/// of its command; `None` if it runs already.
///
/// # Errors
///
/// Fails if the container cannot be created.
pub fn run(settings: &Settings, store: &Store, launch: &Launch<'_>) -> Result<Option<u8>, Failure> {
    let id = launch.origin.id();
    let (ours, theirs) = UnixStream::pair().map_err(|e| Failure::caused("cannot create a pair of sockets", &e))?;
    // The command goes on without this process, which must not miss its end. As under docker,
    // Ctrl-Z is one for the command, which ignores it as the first process of its container.
    let protection = StopProtection::begin().map_err(|e| Failure::caused("cannot start the container", &e))?;
    // A container in the foreground exists with this process.
    let signals = StopSignals::block().map_err(|e| Failure::caused("cannot start the container", &e))?;
    let Some(lock) = launch.begin(settings, store, &signals)? else { return Ok(None) };
    let mut is_started = false;
    let mut read = || {
        is_started |= record_start(store, &id, &ours);
        false
    };
    // The builder cannot restore the terminal if it is killed.
    let restore = (launch.invocation.input == Input::Terminal).then(Restore::of_stdin);
    let watched = Watched { socket: &ours, read: &mut read };
    let checker = Checker::start(store, launch);
    let ended = enter_watching(&checker.builder_beside(launch), settings.isolation, Some(watched), |builder| {
        in_builder(builder, store, launch, &theirs)
    });
    drop(restore);
    checker.end();
    let code = code_of(&ended);
    if is_started {
        launch.record_end(&lock, code, None);
    } else {
        launch.remove_group();
    }
    // The builder has released the lock of the store.
    if (!is_started || launch.invocation.settings.remove) && store.lock_again().is_ok() {
        launch.clean_up(store, &lock, is_started);
        volumes::remove_anonymous(settings, store, &launch.invocation.settings);
    }
    drop(lock);
    drop(signals);
    drop(protection);
    ended?;
    Ok(Some(code as u8))
}

/// Returns the exit code of this process for the end of a builder.
fn code_of(ended: &Result<BuilderExit, SandboxError>) -> i32 {
    match ended {
        // A builder that was killed has not stopped the command by itself.
        Ok(ended) => i32::from(exit_code(ended.code, ended.stopped && ended.code == KILLED)),
        Err(_) => KILLED,
    }
}

/// Records the start that the builder announces. Returns false if it has announced none.
fn record_start(store: &Store, id: &ContainerId, socket: &UnixStream) -> bool {
    let Some(started) = received_start(socket) else { return false };
    if let Err(e) = store.containers().record_start(id, &started) {
        tracing::debug!(target: "engine", error = rbuild_remedy::sentence(&e), "the start is not recorded");
    }
    true
}

/// Runs the command in the builder process and returns its exit code; 128 and the signal's number
/// if a signal killed it.
fn in_builder(builder: Result<Builder, SandboxError>, store: &Store, launch: &Launch<'_>, socket: &UnixStream) -> i32 {
    let Launch { verb, invocation, .. } = launch;
    let cancel = Cancel::default();
    let outcome = builder.map_err(BuildError::from).and_then(|builder| {
        let note = (invocation.input != Input::Terminal).then_some(STOPPING);
        builder.on_stop(on_signal(&cancel, STOP_TIME, note)).map_err(BuildError::kernel("the builder"))?;
        let store = store_in(&builder, store)?;
        let mode = builder.isolation.runner_mode().name();
        let started = |process: OwnedFd| send_start(socket, &process, mode);
        let command = ContainerCommand { container: &launch.origin.id(), image: launch.image, invocation };
        invoke(store, command, &builder, &cancel, started)
    });
    match outcome {
        Ok(CommandOutcome::Exited(code)) => {
            limits::report(code, invocation);
            code
        }
        Ok(CommandOutcome::Signaled(signal)) => {
            if let Some(remedy) = limit_remedy(signal, &invocation.settings.ulimits) {
                terminal::error(&killed_by(signal), Some(&Hint::from(remedy)));
            }
            limits::report(128 + signal, invocation);
            128 + signal
        }
        Ok(CommandOutcome::NotStarted(error)) => {
            i32::from(container_not_started(&error, &invocation.settings).report())
        }
        Err(_) if cancel.is_canceled() => i32::from(interrupted()),
        Err(e) => i32::from(Failure::from(e).of_verb(verb).report()),
    }
}

fn killed_by(signal: i32) -> String {
    format!("the command was killed by signal {signal}")
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn killed_commands_are_reported_as_recorded() {
        assert_recorded!("run", killed_by(9));
    }
}
