//! The verb `port`: shows published ports.

use rbuild_plan::{ContainerPort, PublishedPort};

use crate::args::PortArgs;
use crate::commands::containers::lookup;
use crate::exit::{Failure, code};
use crate::input::ports::exposed;
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

pub fn port(settings: &Settings, args: PortArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let container = lookup::find(&store, &args.container)?;
    lookup::running(&store, &container)?;
    let ports = store.containers().settings(&container.id)?.map(|settings| settings.ports).unwrap_or_default();
    let Some(wanted) = &args.port else {
        terminal::out(&ports.iter().map(|port| format!("{} -> {}\n", port.target, place(port))).collect::<String>());
        return Ok(code::OK);
    };
    let wanted: Option<ContainerPort> = exposed([wanted])?.into_iter().next();
    let found: Vec<&PublishedPort> = ports.iter().filter(|port| Some(port.target) == wanted).collect();
    if found.is_empty() {
        let failure = Failure::new(format!("container `{}` does not publish that port", container.name));
        return Err(failure.help(VerbRemedy::ListPorts { name: container.name }));
    }
    found.iter().for_each(|port| terminal::out(&format!("{}\n", place(port))));
    Ok(code::OK)
}

fn place(port: &PublishedPort) -> String {
    format!("{}:{}", port.address, port.port)
}

/// Formats published ports as `docker ps` does.
pub fn shown_ports(ports: &[PublishedPort]) -> String {
    ports.iter().map(|port| format!("{}->{}", place(port), port.target)).collect::<Vec<_>>().join(", ")
}
