//! The verb `restart`: ends the commands of containers, and starts them again.

use std::time::{Duration, Instant};

use rbuild_linux::process::signal_pidfd;
use rbuild_store::{Container, ContainerState, EndRequest, Store};

use crate::args::StopArgs;
use crate::commands::containers::launch::started_before;
use crate::commands::containers::lookup;
use crate::commands::containers::pause::resume;
use crate::commands::containers::signals::{INTERVAL, KILL, MAX_START, usual_stop};
use crate::commands::containers::start::start_one;
use crate::exit::Failure;
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;

pub fn restart(settings: &Settings, args: StopArgs) -> Result<u8, Failure> {
    let signal = args.signal.map(|signal| signal.0);
    lookup::each(settings, &args.targets.containers, |store, container| {
        restart_one(settings, store, container, signal, args.time)
    })
}

/// Ends the command of a container, and starts it again on the same files. A container that was
/// never started is started.
fn restart_one(
    settings: &Settings,
    store: Store,
    container: &Container,
    signal: Option<i32>,
    time: Option<u64>,
) -> Result<(), Failure> {
    let before = match store.containers().state(&container.id)? {
        ContainerState::Created => return start_one(settings, store, container),
        ContainerState::Exited(_) | ContainerState::Dead => return Err(started_before(&container.name)),
        ContainerState::Starting => {
            let failure = Failure::new(format!("container `{}` is starting", container.name));
            return Err(failure.help(VerbRemedy::RunAgain));
        }
        ContainerState::Restarting(_) => None,
        ContainerState::Running(started) if !started.restartable => {
            let failure = Failure::new(format!("container `{}` runs in the foreground", container.name));
            return Err(failure.help(VerbRemedy::EndAndRun));
        }
        ContainerState::Running(started) => Some(started),
    };
    let _request = store.containers().restart_files(&container.id).request_end(EndRequest::Restart)?;
    resume(&store, container)?;
    let (usual, usual_time) = usual_stop(&store, container)?;
    let time = Duration::from_secs(time.unwrap_or(usual_time));
    // Builds and other commands must not wait for this one.
    store.release_lock()?;
    let process = before.as_ref().and_then(|started| started.open());
    let send = |signal| process.iter().for_each(|process| drop(signal_pidfd(process, signal)));
    send(signal.unwrap_or(usual));
    let began = Instant::now();
    let mut is_killed = false;
    loop {
        match settings.open()?.containers().state(&container.id)? {
            ContainerState::Running(now) if before.as_ref().is_none_or(|before| *before != now) => return Ok(()),
            ContainerState::Exited(_) | ContainerState::Dead => {
                let failure = Failure::new(format!("container `{}` has ended", container.name));
                return Err(failure.help(VerbRemedy::ShowOutput { name: container.name.clone() }));
            }
            _ if !is_killed && began.elapsed() >= time => {
                send(KILL);
                is_killed = true;
            }
            _ if began.elapsed() >= time + MAX_START => {
                let failure = Failure::new(format!("container `{}` does not start", container.name));
                return Err(failure.help(VerbRemedy::RunAgain));
            }
            _ => std::thread::sleep(INTERVAL),
        }
    }
}
