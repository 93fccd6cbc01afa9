//! The verbs `rm` and `container prune`.

use crate::args::RmArgs;
use crate::commands::containers::abandoned::remove_abandoned;
use crate::commands::containers::lookup;
use crate::commands::containers::signals::kill_and_wait;
use crate::commands::removing::{DELETED, remove_stopped, removed_text};
use crate::commands::volumes;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;
use rbuild_store::{Container, Store};

pub fn rm(settings: &Settings, args: RmArgs) -> Result<u8, Failure> {
    let mut worst = code::OK;
    for wanted in &args.targets.containers {
        let store = settings.open()?;
        match store.containers().find_container(wanted)? {
            Some(container) => match remove(settings, store, &container, &args) {
                Ok(()) => terminal::out(&format!("{wanted}\n")),
                Err(failure) => worst = worst.max(failure.report()),
            },
            // Docker: with -f, a missing container is not an error.
            None if args.force => {}
            None => worst = worst.max(lookup::missing(&store, wanted).report()),
        }
    }
    Ok(worst)
}

/// Removes a container; with `force`, kills it first, and with `volumes`, removes its anonymous
/// volumes.
fn remove(settings: &Settings, mut store: Store, container: &Container, args: &RmArgs) -> Result<(), Failure> {
    let run = if args.volumes { store.containers().settings(&container.id)? } else { None };
    loop {
        if args.force {
            kill_and_wait(settings, store, container)?;
            store = settings.open()?;
        }
        if store.container_changes()?.remove(&container.id)?.is_some() {
            break;
        }
        if !args.force {
            let name = container.name.clone();
            return Err(Failure::new(format!("container `{name}` is running")).help(VerbRemedy::StopFirst { name }));
        }
    }
    run.iter().for_each(|run| volumes::remove_anonymous(settings, &store, run));
    Ok(())
}

/// Removes all containers that are not running.
pub fn prune(settings: &Settings) -> Result<u8, Failure> {
    let store = settings.open()?;
    remove_abandoned(settings, &store)?;
    let (text, bytes) = remove_stopped(&store, None)?;
    let freed = store.gc().sweep_blobs()?;
    terminal::out(&removed_text(DELETED, &text, bytes + freed.bytes));
    Ok(code::OK)
}
