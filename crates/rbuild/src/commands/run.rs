//! The verb `run`: runs a command in a container of an image, in the foreground.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use rbuild_engine::{BuildError, Invocation, PullPolicy, invoke, limit_remedy, volume_binds};
use rbuild_image::Platform;
use rbuild_linux::{Timestamp, quoted};
use rbuild_plan::{NetworkMode, Volume};
use rbuild_remedy::sentence;
use rbuild_sandbox::{
    Builder, BuilderConfig, Cancel, Carrier, CommandOutcome, GRACE, Input, Restore, SandboxError, enter,
};
use rbuild_store::{Image, Store};

use crate::args::RunArgs;
use crate::commands::in_builder::{exit_code, store_in};
use crate::commands::named;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::{flags, network};
use crate::ui::hints::{Hint, UsageRemedy, VerbRemedy};
use crate::ui::terminal;

/// Time that a command has after a signal, as in `docker stop`.
const STOP_TIME: Duration = Duration::from_secs(10);
/// Exit code of a builder that SIGKILL ended.
const KILLED: i32 = 128 + 9;
/// Exit codes of shells for a program that was not found, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const CANNOT_RUN: i32 = 126;

pub fn run(settings: &Settings, args: RunArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let platform = flags::platform(args.platform.as_deref())?;
    let image = named::find_for(&store, &args.words[0], platform.as_ref())?;
    let has_terminal = args.tty && std::io::stdin().is_terminal();
    if args.tty && args.interactive && !has_terminal {
        return Err(Failure::usage("-it: standard input is not a terminal").help(VerbRemedy::OmitTerminal));
    }
    for flag in args.ignored.given() {
        terminal::warning(format!("{flag} is not supported yet and has no effect"));
    }
    if args.pull == Some(PullPolicy::Always) {
        return Err(Failure::usage("--pull=always: `rbuild run` uses local images only")
            .help(VerbRemedy::PullFirst { image: args.words[0].clone() }));
    }
    let (host, platform) = (Platform::host(), image.config.platform());
    if !host.runs(&platform) {
        terminal::warning(other_platform(&platform, &host));
    }
    let volumes = args.volume.iter().map(|text| flags::volume(text));
    let volumes: Vec<Volume> =
        volumes.chain(args.mount.iter().map(|text| flags::mount(text))).collect::<Result<_, _>>()?;
    let network = args.network;
    let carrier = network::carrier(network)?;
    let invocation = invocation(args, volumes, network, carrier.as_ref(), has_terminal)?;
    let (root, owners) = (settings.root.clone(), store.owner_records().clone());
    let (binds, expendable, kept) = (volume_binds(&invocation.volumes), Vec::new(), Vec::new());
    let grace = STOP_TIME + GRACE;
    let config = BuilderConfig { store: root, owners, binds, carrier, commands: true, grace, expendable, kept };
    // The builder cannot restore the terminal if it is killed.
    let _restore = has_terminal.then(Restore::of_stdin);
    let ended = enter(&config, settings.isolation, |builder| in_builder(builder, &store, &image, &invocation))?;
    // A builder that was killed has not stopped the command by itself.
    Ok(exit_code(ended.code, ended.stopped && ended.code == KILLED))
}

fn invocation(
    args: RunArgs,
    volumes: Vec<Volume>,
    network: NetworkMode,
    carrier: Option<&Carrier>,
    has_terminal: bool,
) -> Result<Invocation, Failure> {
    Ok(Invocation {
        args: args.words[1..].to_vec(),
        entrypoint: args.entrypoint.map(entrypoint),
        env: variables(&args.env_file, &args.env)?,
        user: args.user,
        cwd: args.workdir.map(|d| if d.starts_with('/') { d } else { format!("/{d}") }),
        hostname: args.hostname.unwrap_or_else(|| "rbuild".into()),
        hosts: args.add_host.iter().map(|h| flags::host(h)).collect::<Result<_, _>>()?,
        volumes,
        network,
        shm_size: args.shm_size.as_deref().map(|s| flags::size("--shm-size", s)).transpose()?,
        ulimits: args.ulimit.iter().map(|u| flags::ulimit(u)).collect::<Result<_, _>>()?,
        input: match (has_terminal, args.interactive) {
            (true, _) => Input::Terminal,
            (false, true) => Input::Given,
            (false, false) => Input::Nothing,
        },
        resolv_conf: network::resolv_conf(carrier),
        now: Timestamp::now().sec,
    })
}

/// Returns the words of `--entrypoint`. An empty value removes the entry point.
pub fn entrypoint(program: String) -> Vec<String> {
    if program.is_empty() { Vec::new() } else { vec![program] }
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
        let stop = cancel.clone();
        let forward = move |signal| {
            if stop.forward(signal) {
                std::thread::sleep(STOP_TIME);
            }
            stop.cancel();
        };
        builder.on_stop(forward).map_err(BuildError::kernel("the builder"))?;
        let store = store_in(&builder, store)?;
        invoke(&store, image, invocation, &builder, &cancel)
    });
    match outcome {
        Ok(CommandOutcome::Exited(code)) => code,
        Ok(CommandOutcome::Signaled(signal)) => {
            if let Some(remedy) = limit_remedy(signal, &invocation.ulimits) {
                terminal::error(&killed_by(signal), Some(&Hint::from(remedy)));
            }
            128 + signal
        }
        Ok(CommandOutcome::NotStarted(error)) => {
            let is_flag = error.is_no_program() && invocation.args.first().is_some_and(|word| word.starts_with('-'));
            let help =
                if is_flag { Some(UsageRemedy::PutFlagsFirst.into()) } else { error.remedy().as_ref().map(Hint::from) };
            terminal::error(&format!("cannot start the command: {}", sentence(&error)), help.as_ref());
            if error.is_no_program() { NOT_FOUND } else { CANNOT_RUN }
        }
        Err(_) if cancel.is_canceled() => i32::from(code::INTERRUPTED),
        Err(e) => i32::from(Failure::from(e).report()),
    }
}

/// Returns the variables of `--env-file`, followed by those of `--env`.
fn variables(files: &[PathBuf], flags: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("cannot read --env-file {}: {}", quoted(path), flags::reason(&e))).because(&e)
        })?;
        // As in docker, one byte order mark is removed, and a CR at the end of the last line, too.
        for (i, line) in text.strip_prefix('\u{feff}').unwrap_or(&text).split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = |e| Failure::usage(format!("--env-file {}, line {}: {e}", quoted(path), i + 1));
            all.extend(variable_of_file(line).map_err(invalid)?);
        }
    }
    for text in flags {
        all.extend(variable(text).map_err(|e| Failure::usage(format!("--env {text}: {e}")))?);
    }
    Ok(all)
}

/// An invalid variable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum VariableError {
    /// The name before the `=` is empty.
    #[error("the name is missing before `{text}`")]
    NoName { text: String },
    /// The name contains a space or a tab.
    #[error("the name `{name}` contains whitespace")]
    Whitespace { name: String },
}

/// Parses a line of an environment file. Whitespace at the beginning of the line is ignored. As in
/// docker, the value is everything after the `=`, with quotes and whitespace.
///
/// # Errors
///
/// Fails if the name is empty or contains a space or a tab.
fn variable_of_file(line: &str) -> Result<Option<(String, String)>, VariableError> {
    let name = line.split_once('=').map_or(line, |(name, _)| name);
    if name.contains([' ', '\t']) { Err(VariableError::Whitespace { name: name.to_string() }) } else { variable(line) }
}

/// Parses `NAME=VALUE`. A name alone takes its value from the environment; `None` if it is unset
/// there.
///
/// # Errors
///
/// Fails if the name is empty.
fn variable(text: &str) -> Result<Option<(String, String)>, VariableError> {
    match text.split_once('=') {
        Some(("", _)) => Err(VariableError::NoName { text: text.to_string() }),
        Some((name, value)) => Ok(Some((name.to_string(), value.to_string()))),
        None => Ok(std::env::var(text).ok().map(|value| (text.to_string(), value))),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn foreign_images_and_killed_commands_are_reported_as_recorded() {
        let [image, host] = ["linux/arm64", "linux/amd64"].map(|platform| platform.parse().unwrap());
        assert_recorded!("run", [other_platform(&image, &host), killed_by(9)].join("\n"));
    }

    #[test]
    fn invalid_variables_are_as_recorded() {
        assert_eq!(variable("A=b=c"), Ok(Some(("A".into(), "b=c".into()))));
        assert_eq!(variable("A="), Ok(Some(("A".into(), String::new()))));
        let errors = [variable_of_file("=x").unwrap_err(), variable_of_file("A = 1").unwrap_err()];
        let variants = variants!(VariableError { NoName, Whitespace });
        assert_recorded!("VariableError", variants.table(&errors, |e| e, no_remedy));
        let f = variables(&[], &["A=1".into(), "=x".into()]).unwrap_err();
        assert_eq!(f.message, "--env =x: the name is missing before `=x`");
    }

    #[test]
    fn files_of_variables_follow_the_rules_of_docker() {
        let dir = Scratch::new();
        let file = dir.join("variables");
        let of = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let all = variables(std::slice::from_ref(&file), &[]).map_err(|f| f.message);
            let lines = |all: Vec<(String, String)>| all.iter().map(|(k, v)| format!("{k}={v}\n")).collect::<String>();
            all.map(lines)
        };
        assert_eq!(
            of("\u{feff}A=1\r\n \tB= 2 \n # C=3\n\nD=\"4\"\nRBUILD_UNSET_VARIABLE\n").unwrap(),
            "A=1\nB= 2 \nD=\"4\"\n"
        );
        for (text, variables) in [("A=1\r", "A=1\n"), ("A=1\r\r\nB=2", "A=1\r\nB=2\n"), ("\r", "")] {
            assert_eq!(of(text).as_deref(), Ok(variables), "{text:?}");
        }
        assert_eq!(of("\u{feff}\u{feff}A=1\n").as_deref(), Ok("\u{feff}A=1\n"));
        for (text, end) in [
            ("A = 1\n", "line 1: the name `A ` contains whitespace"),
            ("#\nA\t=1\n", "line 2: the name `A\t` contains whitespace"),
            ("A \n", "line 1: the name `A ` contains whitespace"),
            ("=1\n", "line 1: the name is missing before `=1`"),
        ] {
            let message = of(text).unwrap_err();
            assert!(message.ends_with(end), "{text}: {message}");
        }
    }
}
