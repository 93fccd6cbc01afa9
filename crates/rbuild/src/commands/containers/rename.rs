//! The verb `rename`: gives a container another name.

use crate::args::RenameArgs;
use crate::commands::containers::abandoned::without_volumes;
use crate::commands::containers::lookup;
use crate::commands::containers::settings::is_valid_name;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;

pub fn rename(settings: &Settings, args: RenameArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let container = lookup::find(&store, &args.container)?;
    if !is_valid_name(&args.name) {
        let failure = Failure::usage(format!("`{}` is not a valid name for a container", args.name));
        return Err(failure.help(VerbRemedy::ContainerName));
    }
    let renamed = store.container_changes()?.rename(&container.id, &args.name);
    if !without_volumes(settings, &store, renamed)? {
        return Err(lookup::missing(&store, &args.container));
    }
    Ok(code::OK)
}
