//! Settings of a container from the flags of `run` and `create`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rbuild_engine::command_line;
use rbuild_image::{HealthcheckConfig, Platform};
use rbuild_linux::signal_number;
use rbuild_plan::{ContainerPort, NetworkMode, PublishedPort};
use rbuild_store::{ContainerId, DnsSettings, Image, RestartPolicy, RunSettings};

use crate::args::ContainerFlags;
use crate::commands::containers::command::{VariableSource, entrypoint, merged, pairs};
use crate::commands::containers::limits::limits;
use crate::commands::containers::signals::{STOP_TIMEOUT, TERM};
use crate::exit::Failure;
use crate::input::mount_order::with_image_volumes;
use crate::input::{flags as values, mounts, ports, security};
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

/// Returns the settings of a container, and warns of flags that have no effect.
///
/// # Errors
///
/// Fails if a value of a flag is not valid, or if a port cannot be published.
pub fn of_flags(flags: &ContainerFlags, image: &Image, id: &ContainerId) -> Result<RunSettings, Failure> {
    check_name(flags.name.as_deref())?;
    let restart = flags.restart.unwrap_or_default();
    if flags.rm && restart != RestartPolicy::No {
        let failure = Failure::usage("--rm and --restart exclude each other");
        return Err(failure.help(VerbRemedy::OmitRmOrRestart));
    }
    warn_of_flags(flags, image);
    let exposed = ports::exposed(image.config.config.exposed_ports.keys().chain(&flags.expose))?;
    let (network, ports) = published_ports(flags, &exposed)?;
    let config = &image.config.config;
    let id_text = id.hex();
    let binds = flags.volume.iter().map(|text| mounts::container_volume(text, &id_text));
    let mounted = flags.mount.iter().map(|text| mounts::mount(text, &id_text));
    let in_memory = flags.tmpfs.iter().map(|text| mounts::tmpfs(text));
    let devices = flags.device.iter().filter_map(|text| mounts::device(text).transpose());
    let mounted = binds.chain(mounted).chain(in_memory).chain(devices).collect::<Result<_, _>>()?;
    let absolute = |dir: &String| if dir.starts_with('/') { dir.clone() } else { format!("/{dir}") };
    let of_image = || signal_number(&config.stop_signal);
    Ok(RunSettings {
        args: flags.words[1..].to_vec(),
        entrypoint: flags.entrypoint.clone().map(entrypoint),
        env: merged(pairs(&VariableSource::ENV, &flags.env_file, &flags.env)?),
        user: flags.user.clone().unwrap_or_else(|| config.user.clone()),
        groups: flags.group_add.clone(),
        cwd: flags.workdir.as_ref().map_or_else(|| config.working_dir.clone(), absolute),
        terminal: flags.tty,
        interactive: flags.interactive,
        security: security::settings(flags)?,
        init: flags.init,
        hostname: flags.hostname.clone().unwrap_or_else(|| id.short()),
        hosts: flags.add_host.iter().map(|h| values::host(h)).collect::<Result<_, _>>()?,
        dns: DnsSettings {
            servers: flags.dns.iter().map(ToString::to_string).collect(),
            search: flags.dns_search.clone(),
            options: flags.dns_option.clone(),
        },
        network: network.name().into(),
        ports,
        exposed: exposed.into_iter().collect(),
        mounts: with_image_volumes(mounted, config.volumes.keys(), &id_text)?,
        shm_size: flags.shm_size.as_deref().map(|s| values::size("--shm-size", s)).transpose()?,
        limits: limits(flags),
        ulimits: flags.ulimit.iter().map(|u| values::ulimit(u)).collect::<Result<_, _>>()?,
        remove: flags.rm,
        restart,
        health: health(flags, config.healthcheck.as_ref())?,
        stop_signal: flags.stop_signal.map(|signal| signal.0).or_else(of_image).unwrap_or(TERM),
        stop_timeout: flags.stop_timeout.unwrap_or(STOP_TIMEOUT),
        labels: labels(flags, image)?,
    })
}

/// Returns the command of a container with its arguments.
pub fn command_of(image: &Image, settings: &RunSettings) -> Vec<String> {
    command_line(&image.config.config, settings.entrypoint.as_deref(), &settings.args)
}

/// Returns true if a container can have that name.
pub fn is_valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Fails if a name of a container is not valid.
fn check_name(name: Option<&str>) -> Result<(), Failure> {
    match name.filter(|name| !is_valid_name(name)) {
        Some(name) => Err(Failure::usage(format!("--name {name}: not a valid name")).help(VerbRemedy::ContainerName)),
        None => Ok(()),
    }
}

/// Returns the labels of the image, of files and of flags.
fn labels(flags: &ContainerFlags, image: &Image) -> Result<Vec<(String, String)>, Failure> {
    let of_image = image.config.config.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
    let given = pairs(&VariableSource::LABEL, &flags.label_file as &[PathBuf], &flags.label)?;
    Ok(merged(of_image.chain(given)))
}

/// Returns the check of the image with the changes of the flags; `None` for no check.
fn health(flags: &ContainerFlags, of_image: Option<&HealthcheckConfig>) -> Result<Option<HealthcheckConfig>, Failure> {
    let given = &flags.health;
    if flags.no_healthcheck {
        if given.is_given() {
            let failure = Failure::usage("--no-healthcheck and --health-* exclude each other");
            return Err(failure.help(VerbRemedy::OmitHealthFlags));
        }
        return Ok(None);
    }
    let mut check = of_image.cloned().unwrap_or_default();
    if let Some(command) = given.health_cmd.as_ref().filter(|command| !command.is_empty()) {
        check.test = vec!["CMD-SHELL".into(), command.clone()];
    }
    let times = [
        (given.health_interval, &mut check.interval),
        (given.health_timeout, &mut check.timeout),
        (given.health_start_period, &mut check.start_period),
        (given.health_start_interval, &mut check.start_interval),
    ];
    for (time, of_check) in times {
        // As in docker, 0 stands for the value of the image.
        *of_check = time.map_or(*of_check, |time| if time.0 == 0 { *of_check } else { time.0 });
    }
    check.retries = given.health_retries.filter(|retries| *retries > 0).map_or(check.retries, i64::from);
    let has_command = check.test.first().is_some_and(|kind| kind != "NONE");
    if given.is_given() && !has_command {
        terminal::warning("--health-* have no effect without --health-cmd, because the image has no HEALTHCHECK");
    }
    Ok(Some(check).filter(|_| has_command))
}

/// Warns of flags without effect, and of an image for another platform.
fn warn_of_flags(flags: &ContainerFlags, image: &Image) {
    for flag in flags.ignored.given() {
        terminal::warning(format!("{flag} is not supported yet and has no effect"));
    }
    let (host, platform) = (Platform::host(), image.config.platform());
    if !host.runs(&platform) {
        terminal::warning(other_platform(&platform, &host));
    }
}

/// Returns the network mode, and the ports to publish. They require an isolated network, which
/// becomes the default.
fn published_ports(
    flags: &ContainerFlags,
    exposed: &BTreeSet<ContainerPort>,
) -> Result<(NetworkMode, Vec<PublishedPort>), Failure> {
    let usual = flags.network.unwrap_or(NetworkMode::Host);
    if flags.publish.is_empty() && !flags.publish_all {
        return Ok((usual, Vec::new()));
    }
    if let Some(network @ (NetworkMode::Host | NetworkMode::None)) = flags.network {
        terminal::warning(unpublished(network));
        return Ok((network, Vec::new()));
    }
    let none = BTreeSet::new();
    let ports = ports::published(&flags.publish, if flags.publish_all { exposed } else { &none })?;
    Ok((if ports.is_empty() { usual } else { NetworkMode::Isolated }, ports))
}

fn unpublished(network: NetworkMode) -> &'static str {
    match network {
        NetworkMode::Host => "ports are not published: with --network host, those of the container are this machine's",
        _ => "ports are not published: the container has no network",
    }
}

fn other_platform(image: &Platform, host: &Platform) -> String {
    format!("the image is for {image}, but this machine is {host}")
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn flags_without_effect_are_reported_as_recorded() {
        let [image, host] = ["linux/arm64", "linux/amd64"].map(|platform| platform.parse().unwrap());
        let unpublished = [NetworkMode::Host, NetworkMode::None].map(|network| unpublished(network).to_string());
        assert_recorded!("container-flags", [&[other_platform(&image, &host)], &unpublished[..]].concat().join("\n"));
    }
}
