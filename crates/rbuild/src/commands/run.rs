//! The verb `run`: runs a command in a container of an image.

use rbuild_engine::Warning;
use rbuild_linux::Timestamp;
use rbuild_store::{Durability, NewContainer, RestartPolicy};

use crate::args::RunArgs;
use crate::commands::containers::command::{detached_input, input};
use crate::commands::containers::create::{image, new_container, salt};
use crate::commands::containers::id_file::IdFile;
use crate::commands::containers::launch::{ContainerOrigin, Launch};
use crate::commands::containers::settings::{command_of, of_flags};
use crate::commands::containers::{background, foreground};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::{Hint, VerbRemedy};
use crate::ui::terminal;

pub fn run(settings: &Settings, args: RunArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let flags = &args.container;
    let image = image(&store, flags, Some(settings))?;
    let input =
        if args.detach { detached_input(flags.tty, flags.interactive) } else { input(flags.interactive, flags.tty)? };
    let id_file = flags.cidfile.as_ref().map(IdFile::open).transpose()?;
    let salt = salt(Timestamp::now());
    let new = new_container(flags, &image, &[], &salt);
    let run = of_flags(flags, &image, &new.id())?;
    let command = command_of(&image, &run);
    // A power failure ends a container in the foreground.
    let durability = if args.detach { Durability::PowerFailure } else { Durability::Crash };
    let new = NewContainer { command: &command, durability, ..new };
    let launch = Launch::new(settings, &store, ContainerOrigin::New(new), &image, run, input)?;
    let launch = Launch { id_file, ..launch };
    if !args.detach {
        if launch.invocation.settings.restart != RestartPolicy::No {
            let text = "--restart has no effect in the foreground".to_string();
            terminal::warning(Warning { text, help: Some(Hint::from(VerbRemedy::RunDetached).into()) });
        }
        let code = foreground::run(settings, &store, &launch)?;
        return Ok(code.expect("no other process starts a new container"));
    }
    let id = background::start(settings, store, &launch)?;
    terminal::out(&format!("{}\n", id.hex()));
    Ok(code::OK)
}
