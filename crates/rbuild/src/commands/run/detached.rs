//! `run -d`: leaves a container behind, and prints its ID.

use std::collections::BTreeSet;

use rbuild_engine::{Invocation, command_line};
use rbuild_linux::process::signal_number;
use rbuild_linux::quoted;
use rbuild_plan::{ContainerPort, NetworkMode};
use rbuild_sandbox::{BuilderConfig, Input};
use rbuild_store::{Image, RunSettings, Store};

use crate::args::RunArgs;
use crate::commands::containers::command::merged;
use crate::commands::containers::create::check_name;
use crate::commands::containers::signals::STOP_TIMEOUT;
use crate::commands::containers::start::{NewRun, start};
use crate::commands::run::limits::limits;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::{output, ports};
use crate::ui::hints::OutputRemedy;
use crate::ui::terminal;

/// Signal that requests the end of a container, unless its image specifies another one.
const SIGTERM: i32 = 15;

/// Starts the container and prints its ID.
pub fn run(
    settings: &Settings,
    store: Store,
    args: &RunArgs,
    image: &Image,
    invocation: &Invocation,
    builder: &BuilderConfig,
) -> Result<u8, Failure> {
    check_name(args.name.as_deref())?;
    if let Some(path) = args.cidfile.as_ref().filter(|path| path.exists()) {
        let failure = Failure::new(format!("--cidfile {}: the file exists", quoted(path)));
        return Err(failure.help(OutputRemedy::RemoveIdFile));
    }
    let id_file = args.cidfile.as_ref().map(|path| output::file("the file for the ID", path)).transpose()?;
    let command = command_line(&image.config.config, invocation.entrypoint.as_deref(), &invocation.args);
    let run = NewRun {
        image,
        image_name: &args.words[0],
        name: args.name.as_deref(),
        command: &command,
        settings: run_settings(args, image, invocation, builder)?,
        invocation,
        builder,
    };
    let container = start(settings, store, &run)?;
    let id = container.id.hex();
    if let (Some(file), Some(path)) = (id_file, &args.cidfile) {
        file.write(id.as_bytes()).map_err(|e| output::unwritten("the file for the ID", path, e))?;
    }
    terminal::out(&format!("{id}\n"));
    Ok(code::OK)
}

fn run_settings(
    args: &RunArgs,
    image: &Image,
    invocation: &Invocation,
    builder: &BuilderConfig,
) -> Result<RunSettings, Failure> {
    let config = &image.config.config;
    let of_image = || signal_number(&config.stop_signal);
    let labels = config.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
    let given = args.label.iter().map(|text| match text.split_once('=') {
        Some((name, value)) => (name.to_string(), value.to_string()),
        None => (text.clone(), String::new()),
    });
    Ok(RunSettings {
        ports: builder.ports.clone(),
        exposed: exposed_ports(args, image)?.into_iter().collect(),
        terminal: invocation.input == Input::Terminal,
        remove: args.rm,
        stop_signal: args.stop_signal.map(|signal| signal.0).or_else(of_image).unwrap_or(SIGTERM),
        stop_timeout: args.stop_timeout.unwrap_or(STOP_TIMEOUT),
        labels: merged(labels.chain(given)),
        env: merged(invocation.env.clone()),
        user: invocation.user.clone().unwrap_or_else(|| config.user.clone()),
        cwd: invocation.cwd.clone().unwrap_or_else(|| config.working_dir.clone()),
        hostname: invocation.hostname.clone(),
        network: network_word(invocation.network).into(),
        ulimits: invocation.ulimits.clone(),
        limits: invocation.group.as_ref().map(|_| limits(args)).unwrap_or_default(),
    })
}

/// Returns the ports that the image and the command line declare.
pub fn exposed_ports(args: &RunArgs, image: &Image) -> Result<BTreeSet<ContainerPort>, Failure> {
    ports::exposed(image.config.config.exposed_ports.keys().chain(&args.expose))
}

fn network_word(network: NetworkMode) -> &'static str {
    match network {
        NetworkMode::Host => "host",
        NetworkMode::Isolated => "isolated",
        NetworkMode::None => "none",
    }
}
