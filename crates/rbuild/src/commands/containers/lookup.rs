//! Looks up containers that the command line names.

use std::os::fd::OwnedFd;

use rbuild_image::Reference;
use rbuild_store::{Container, ContainerState, NamedImage, Started, Store};

use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::{self, VerbRemedy};
use crate::ui::terminal;

/// Returns the container with that name, ID or prefix of an ID.
///
/// # Errors
///
/// Fails if there is none, with the nearest name as the hint.
pub fn find(store: &Store, wanted: &str) -> Result<Container, Failure> {
    match store.containers().find_container(wanted)? {
        Some(container) => Ok(container),
        None => Err(missing(store, wanted)),
    }
}

/// Applies an action to each container, and prints the names of those for which it succeeded. The
/// action may release the lock of the store.
pub fn each(
    settings: &Settings,
    names: &[String],
    mut action: impl FnMut(Store, &Container) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut worst = code::OK;
    for wanted in names {
        let store = settings.open()?;
        match find(&store, wanted).and_then(|container| action(store, &container)) {
            Ok(()) => terminal::out(&format!("{wanted}\n")),
            Err(failure) => worst = worst.max(failure.report()),
        }
    }
    Ok(worst)
}

/// Returns the failure for a container that does not exist.
pub fn missing(store: &Store, wanted: &str) -> Failure {
    let failure = Failure::new(format!("container `{wanted}` not found"));
    let names = store.containers().list().unwrap_or_default();
    match rbuild_dockerfile::closest(wanted, names.iter().map(|container| container.name.as_str())) {
        Some(close) => failure.help(hints::did_you_mean(close)),
        None => failure.help(VerbRemedy::ListContainers),
    }
}

/// Returns the start of the command of a running container.
///
/// # Errors
///
/// Fails if the container does not run.
pub fn running(store: &Store, container: &Container) -> Result<Started, Failure> {
    let name = &container.name;
    match store.containers().state(&container.id)? {
        ContainerState::Running(started) => Ok(started),
        ContainerState::Starting => {
            Err(Failure::new(format!("container `{name}` is starting")).help(VerbRemedy::RunAgain))
        }
        ContainerState::Restarting(_) => {
            Err(Failure::new(format!("container `{name}` is restarting")).help(VerbRemedy::RunAgain))
        }
        ContainerState::Created => {
            Err(Failure::new(format!("container `{name}` was never started")).help(VerbRemedy::ListRunning))
        }
        ContainerState::Exited(_) | ContainerState::Dead => Err(not_running(name)),
    }
}

/// Returns the start of the command of a running container, and a pidfd of its process, whose ID
/// may otherwise become that of another process.
///
/// # Errors
///
/// Fails if the container does not run, or if the command has just ended.
pub fn running_process(store: &Store, container: &Container) -> Result<(Started, OwnedFd), Failure> {
    let started = running(store, container)?;
    match started.open() {
        Some(process) => Ok((started, process)),
        None => Err(not_running(&container.name)),
    }
}

fn not_running(name: &str) -> Failure {
    Failure::new(format!("container `{name}` is not running")).help(VerbRemedy::ShowOutput { name: name.into() })
}

/// Returns the name of the image of a container as it was specified, or else its digest. Containers
/// that were created by older versions do not record the name.
pub fn image_name(images: &[NamedImage], container: &Container) -> String {
    let listed = || {
        images
            .iter()
            .filter(|e| e.artifact.images().contains(&container.image))
            .find_map(|e| e.name.as_ref())
            .map(Reference::familiar)
    };
    container.image_name.clone().or_else(listed).unwrap_or_else(|| container.image.short())
}
