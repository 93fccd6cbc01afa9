//! The verb `create`: names an image for `cp`.

use rbuild_engine::command_line;
use rbuild_linux::Timestamp;
use rbuild_store::NewContainer;

use crate::args::CreateArgs;
use crate::commands::containers::command::entrypoint;
use crate::commands::containers::image::ContainerImage;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

pub fn create(settings: &Settings, args: CreateArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    check_name(args.name.as_deref())?;
    let image = ContainerImage {
        name: &args.words[0],
        platform: args.platform.as_deref(),
        policy: args.pull,
        quiet: args.quiet,
        registry: &args.registry,
    };
    let image = image.obtain(&store)?;
    let entrypoint = args.ignored.entrypoint.map(entrypoint);
    let command = command_line(&image.config.config, entrypoint.as_deref(), &args.words[1..]);
    let now = Timestamp::now();
    let container = store.containers().create_container(&NewContainer {
        name: args.name.as_deref(),
        image: &image.manifest_digest,
        image_name: &args.words[0],
        created: now,
        command: &command,
        salt: &salt(now),
    })?;
    terminal::out(&format!("{}\n", container.id.hex()));
    Ok(code::OK)
}

/// Returns a text that no other container has.
pub fn salt(now: Timestamp) -> String {
    format!("{}.{:09} {}", now.sec, now.nsec, std::process::id())
}

/// Fails if a name of a container is not valid.
pub fn check_name(name: Option<&str>) -> Result<(), Failure> {
    let is_valid = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    match name.filter(|name| !is_valid(name)) {
        Some(name) => Err(Failure::usage(format!("--name {name}: not a valid name")).help(VerbRemedy::ContainerName)),
        None => Ok(()),
    }
}
