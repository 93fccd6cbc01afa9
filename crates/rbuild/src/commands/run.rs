//! The verb `run`: runs a command in a container of an image.

mod detached;
mod limits;

use std::collections::BTreeSet;

use rbuild_engine::{BuildError, Invocation, invoke, limit_remedy, volume_binds};
use rbuild_image::Platform;
use rbuild_linux::{ControlGroup, Timestamp};
use rbuild_plan::{NetworkMode, PublishedPort, Volume};
use rbuild_sandbox::{
    Builder, BuilderConfig, Cancel, Carrier, CommandOutcome, GRACE, Input, Restore, SandboxError, enter,
};
use rbuild_store::{Image, Store};

use crate::args::RunArgs;
use crate::commands::containers::command::{STOP_TIME, entrypoint, input, not_started, on_signal, variables};
use crate::commands::containers::image::ContainerImage;
use crate::commands::in_builder::{exit_code, store_in};
use crate::exit::{Failure, interrupted};
use crate::input::settings::Settings;
use crate::input::{flags, network, ports, proxies};
use crate::ui::hints::{Hint, UsageRemedy};
use crate::ui::terminal;

/// The note while a command that has received a signal has not ended.
const STOPPING: &str = "note: the command has 10 s to end; another signal ends it at once\n";

/// Exit code of a builder that SIGKILL ended.
const KILLED: i32 = 128 + 9;

pub fn run(settings: &Settings, mut args: RunArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let image = ContainerImage {
        name: &args.words[0],
        platform: args.platform.as_deref(),
        policy: args.pull,
        quiet: args.quiet,
        registry: &args.registry,
    };
    let image = image.obtain(&store)?;
    let input = if args.detach { detached_input(&args) } else { input(args.interactive, args.tty)? };
    warn_of_flags(&args, &image);
    let ports = published_ports(&mut args, &image)?;
    let volumes = args.volume.iter().map(|text| flags::volume(text));
    let volumes: Vec<Volume> =
        volumes.chain(args.mount.iter().map(|text| flags::mount(text))).collect::<Result<_, _>>()?;
    let network = args.network.unwrap_or(NetworkMode::Host);
    let carrier = network::carrier(network, !ports.is_empty())?;
    let mut invocation = invocation(&args, volumes, network, carrier.as_ref(), input)?;
    invocation.group = limits::group(&args);
    let config = BuilderConfig {
        store: settings.root.clone(),
        owners: store.owner_records().clone(),
        binds: volume_binds(&invocation.volumes),
        carrier,
        ports,
        commands: true,
        grace: STOP_TIME + GRACE,
        forwards_hangup: true,
        expendable: Vec::new(),
        kept: Vec::new(),
    };
    if args.detach {
        return detached::run(settings, store, &args, &image, &invocation, &config);
    }
    // The builder cannot restore the terminal if it is killed.
    let _restore = (input == Input::Terminal).then(Restore::of_stdin);
    let ended = enter(&config, settings.isolation, |builder| in_builder(builder, &store, &image, &invocation));
    invocation.group.iter().for_each(ControlGroup::remove);
    let ended = ended?;
    // A builder that was killed has not stopped the command by itself.
    Ok(exit_code(ended.code, ended.stopped && ended.code == KILLED))
}

fn detached_input(args: &RunArgs) -> Input {
    match (args.tty, args.interactive) {
        (true, _) => Input::Terminal,
        (false, true) => Input::Given,
        (false, false) => Input::Nothing,
    }
}

/// Warns of flags without effect, and of an image for another platform.
fn warn_of_flags(args: &RunArgs, image: &Image) {
    for flag in args.ignored.given() {
        terminal::warning(format!("{flag} is not supported yet and has no effect"));
    }
    let of_detached =
        [("--name", args.name.is_some()), ("--label", !args.label.is_empty()), ("--cidfile", args.cidfile.is_some())];
    for (flag, _) in of_detached.iter().filter(|(_, is_given)| *is_given && !args.detach) {
        terminal::warning(format!("{flag} has no effect without -d"));
    }
    let (host, platform) = (Platform::host(), image.config.platform());
    if !host.runs(&platform) {
        terminal::warning(other_platform(&platform, &host));
    }
}

/// Returns the ports to publish. They require an isolated network, which becomes the default.
fn published_ports(args: &mut RunArgs, image: &Image) -> Result<Vec<PublishedPort>, Failure> {
    if args.publish.is_empty() && !args.publish_all {
        return Ok(Vec::new());
    }
    if let Some(network @ (NetworkMode::Host | NetworkMode::None)) = args.network {
        terminal::warning(unpublished(network));
        return Ok(Vec::new());
    }
    let all = if args.publish_all { detached::exposed_ports(args, image)? } else { BTreeSet::new() };
    let ports = ports::published(&args.publish, &all)?;
    if !ports.is_empty() {
        args.network = Some(NetworkMode::Isolated);
    }
    Ok(ports)
}

fn unpublished(network: NetworkMode) -> &'static str {
    match network {
        NetworkMode::Host => "ports are not published: with --network host, those of the container are this machine's",
        _ => "ports are not published: the container has no network",
    }
}

fn invocation(
    args: &RunArgs,
    volumes: Vec<Volume>,
    network: NetworkMode,
    carrier: Option<&Carrier>,
    input: Input,
) -> Result<Invocation, Failure> {
    let env = variables(&args.env_file, &args.env)?;
    Ok(Invocation {
        args: args.words[1..].to_vec(),
        entrypoint: args.entrypoint.clone().map(entrypoint),
        proxies: proxies::beside(&env)?,
        env,
        user: args.user.clone(),
        cwd: args.workdir.as_ref().map(|d| if d.starts_with('/') { d.clone() } else { format!("/{d}") }),
        hostname: args.hostname.clone().unwrap_or_else(|| "rbuild".into()),
        hosts: args.add_host.iter().map(|h| flags::host(h)).collect::<Result<_, _>>()?,
        volumes,
        network,
        shm_size: args.shm_size.as_deref().map(|s| flags::size("--shm-size", s)).transpose()?,
        ulimits: args.ulimit.iter().map(|u| flags::ulimit(u)).collect::<Result<_, _>>()?,
        group: None,
        input,
        resolv_conf: network::resolv_conf(carrier),
        now: Timestamp::now().sec,
    })
}

fn other_platform(image: &Platform, host: &Platform) -> String {
    format!("the image is for {image}, but this machine is {host}")
}

fn killed_by(signal: i32) -> String {
    format!("the command was killed by signal {signal}")
}

/// Runs the command in the builder process and returns its exit code; 128 and the signal's number
/// if a signal killed it.
fn in_builder(builder: Result<Builder, SandboxError>, store: &Store, image: &Image, invocation: &Invocation) -> i32 {
    let cancel = Cancel::default();
    let outcome = builder.map_err(BuildError::from).and_then(|builder| {
        let note = (invocation.input != Input::Terminal).then_some(STOPPING);
        builder.on_stop(on_signal(&cancel, STOP_TIME, note)).map_err(BuildError::kernel("the builder"))?;
        let store = store_in(&builder, store)?;
        invoke(&store, image, invocation, &builder, &cancel)
    });
    match outcome {
        Ok(CommandOutcome::Exited(code)) => {
            limits::report(code, invocation);
            code
        }
        Ok(CommandOutcome::Signaled(signal)) => {
            if let Some(remedy) = limit_remedy(signal, &invocation.ulimits) {
                terminal::error(&killed_by(signal), Some(&Hint::from(remedy)));
            }
            limits::report(128 + signal, invocation);
            128 + signal
        }
        Ok(CommandOutcome::NotStarted(error)) => {
            i32::from(not_started(&error, &invocation.args, UsageRemedy::PutFlagsFirst).report())
        }
        Err(_) if cancel.is_canceled() => i32::from(interrupted()),
        Err(e) => i32::from(Failure::from(e).report()),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn foreign_images_and_killed_commands_are_reported_as_recorded() {
        let [image, host] = ["linux/arm64", "linux/amd64"].map(|platform| platform.parse().unwrap());
        let unpublished = [NetworkMode::Host, NetworkMode::None].map(|network| unpublished(network).to_string());
        assert_recorded!("run", [&[other_platform(&image, &host), killed_by(9)], &unpublished[..]].concat().join("\n"));
    }
}
