//! The verb `create`: creates a container, for `cp` and `start`.

use rbuild_linux::Timestamp;
use rbuild_store::{Durability, Image, NewContainer, Store};

use crate::args::{ContainerFlags, CreateArgs};
use crate::commands::containers::abandoned::without_volumes;
use crate::commands::containers::id_file::IdFile;
use crate::commands::containers::image::ContainerImage;
use crate::commands::containers::settings::{command_of, of_flags};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::terminal;

pub fn create(settings: &Settings, args: CreateArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let flags = &args.container;
    let image = image(&store, flags, None)?;
    let id_file = flags.cidfile.as_ref().map(IdFile::open).transpose()?;
    let salt = salt(Timestamp::now());
    let new = new_container(flags, &image, &[], &salt);
    let run = of_flags(flags, &image, &new.id())?;
    let command = command_of(&image, &run);
    let created = store.container_changes()?.create(&NewContainer { command: &command, ..new }, &run);
    let container = without_volumes(settings, &store, created)?;
    id_file.map_or(Ok(()), |file| file.write(&container.id))?;
    terminal::out(&format!("{}\n", container.id.hex()));
    Ok(code::OK)
}

/// Returns the image of a container, which is pulled if that is necessary. With settings of a
/// builder, it is unpacked meanwhile.
pub fn image(store: &Store, flags: &ContainerFlags, unpack: Option<&Settings>) -> Result<Image, Failure> {
    let image = ContainerImage {
        name: &flags.words[0],
        platform: flags.platform.as_deref(),
        policy: flags.pull,
        quiet: flags.quiet,
        registry: &flags.registry,
        unpack,
    };
    image.obtain(store)
}

/// Describes the container that the flags request. Its record survives a power failure.
pub fn new_container<'a>(
    flags: &'a ContainerFlags,
    image: &'a Image,
    command: &'a [String],
    salt: &'a str,
) -> NewContainer<'a> {
    NewContainer {
        name: flags.name.as_deref(),
        image: &image.manifest_digest,
        image_name: &flags.words[0],
        created: Timestamp::now(),
        command,
        salt,
        durability: Durability::PowerFailure,
    }
}

/// Returns a text that no other container has.
pub fn salt(now: Timestamp) -> String {
    format!("{}.{:09} {}", now.sec, now.nsec, std::process::id())
}
