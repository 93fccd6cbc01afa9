//! The verbs `pause` and `unpause`: stop all processes of containers by a signal that no process
//! can ignore, and continue them.

use rbuild_linux::process::has_ended;
use rbuild_linux::{continue_processes, stop_processes};
use rbuild_store::{Container, ContainerState, Store};

use crate::args::ContainerNames;
use crate::commands::containers::lookup;
use crate::exit::Failure;
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;

pub fn pause(settings: &Settings, args: ContainerNames) -> Result<u8, Failure> {
    lookup::each(settings, &args.containers, |store, container| {
        let (started, process) = lookup::running_process(&store, container)?;
        let name = &container.name;
        if store.containers().is_paused(&container.id, &started) {
            let failure = Failure::new(format!("container `{name}` is paused"));
            return Err(failure.help(VerbRemedy::Unpause { name: name.clone() }));
        }
        store.containers().record_pause(&container.id, Some(&started))?;
        stop_processes(started.pid, &process).map_err(|e| {
            let _ = continue_processes(started.pid, &process)
                .map(|()| store.containers().record_pause(&container.id, None));
            Failure::caused(format!("cannot pause container `{name}`"), &e)
        })
    })
}

pub fn unpause(settings: &Settings, args: ContainerNames) -> Result<u8, Failure> {
    lookup::each(settings, &args.containers, |store, container| {
        let started = lookup::running(&store, container)?;
        if !store.containers().is_paused(&container.id, &started) {
            let failure = Failure::new(format!("container `{}` is not paused", container.name));
            return Err(failure.help(VerbRemedy::ListRunning));
        }
        resume(&store, container)
    })
}

/// Continues a container if it is paused, so that it can react to signals.
pub fn resume(store: &Store, container: &Container) -> Result<(), Failure> {
    let ContainerState::Running(started) = store.containers().state(&container.id)? else { return Ok(()) };
    if !store.containers().is_paused(&container.id, &started) {
        return Ok(());
    }
    let Some(process) = started.open() else { return Ok(()) };
    match continue_processes(started.pid, &process) {
        Err(e) if !has_ended(&process) => {
            Err(Failure::caused(format!("cannot continue container `{}`", container.name), &e))
        }
        _ => Ok(store.containers().record_pause(&container.id, None)?),
    }
}
