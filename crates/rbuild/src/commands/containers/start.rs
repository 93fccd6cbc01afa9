//! The verb `start`: starts containers that were created.

use rbuild_store::{Container, ContainerState, Store};

use crate::args::StartArgs;
use crate::commands::containers::launch::{ContainerOrigin, Launch, started_before};
use crate::commands::containers::{background, command, foreground, lookup};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

pub fn start(settings: &Settings, args: StartArgs) -> Result<u8, Failure> {
    let names = &args.targets.containers;
    if args.attach || args.interactive {
        let [name] = &names[..] else {
            return Err(Failure::usage("only one container can be attached").help(VerbRemedy::StartEach));
        };
        let store = settings.open()?;
        let container = lookup::find(&store, name)?;
        return attach(settings, &store, &container, args.interactive);
    }
    let mut worst = code::OK;
    for name in names {
        let store = settings.open()?;
        let started = lookup::find(&store, name).and_then(|container| start_one(settings, store, &container));
        match started {
            Ok(()) => terminal::out(&format!("{name}\n")),
            Err(failure) => worst = worst.max(failure.report()),
        }
    }
    Ok(worst)
}

/// Starts a container in the background. As in docker, does nothing if it runs.
pub fn start_one(settings: &Settings, store: Store, container: &Container) -> Result<(), Failure> {
    // Read once: another process may start it meanwhile, which the start itself notices.
    let state = store.containers().state(&container.id)?;
    if state.is_running() {
        return Ok(());
    }
    let image = store.images().image(&container.image)?;
    let run = settings_of(&store, container, &state)?;
    let input = command::detached_input(run.terminal, run.interactive);
    let launch = Launch::new(settings, &store, ContainerOrigin::Created(container), &image, run, input)?;
    background::start(settings, store, &launch).map(drop)
}

fn attach(settings: &Settings, store: &Store, container: &Container, interactive: bool) -> Result<u8, Failure> {
    let is_running = || {
        let failure = Failure::new(format!("container `{}` is running", container.name));
        failure.help(VerbRemedy::FollowOutput { name: container.name.clone() })
    };
    let state = store.containers().state(&container.id)?;
    if state.is_running() {
        return Err(is_running());
    }
    let image = store.images().image(&container.image)?;
    let run = settings_of(store, container, &state)?;
    let input = command::input(interactive && run.interactive, run.terminal)?;
    let launch = Launch::new(settings, store, ContainerOrigin::Created(container), &image, run, input)?;
    foreground::run(settings, store, &launch)?.ok_or_else(is_running)
}

/// Returns the settings of a container that was only created.
fn settings_of(
    store: &Store,
    container: &Container,
    state: &ContainerState,
) -> Result<rbuild_store::RunSettings, Failure> {
    match (state, store.containers().settings(&container.id)?) {
        (ContainerState::Created, Some(run)) => Ok(run),
        (ContainerState::Created, None) => {
            let failure = Failure::new(format!("container `{}` was created by an older version", container.name));
            Err(failure.help(VerbRemedy::StartAnother))
        }
        _ => Err(started_before(&container.name)),
    }
}
