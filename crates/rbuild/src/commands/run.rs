//! The verb `run`: a command in a container of an image, in the foreground.

use std::io::IsTerminal;

use rbuild_engine::{BuildError, Invocation, invoke, volume_binds};
use rbuild_sandbox::{Cancel, Input, Outcome, Restore, World, enter};

use crate::args::RunArgs;
use crate::exit::{Failure, code};
use crate::input::request;
use crate::input::settings::{Settings, owners};
use crate::ui::terminal;

/// What shells say when a program was not found, and when it cannot be run.
const NOT_FOUND: i32 = 127;
const CANNOT_RUN: i32 = 126;

pub fn run(settings: &Settings, args: RunArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (_, image) = store.find_image(&args.image)?;
    let terminal = args.tty && std::io::stdin().is_terminal();
    if args.tty && args.interactive && !terminal {
        return Err(Failure::usage("-it: standard input is no terminal").help("leave -t out"));
    }
    let mut volumes = Vec::new();
    let mut paths = Vec::new();
    for text in &args.volume {
        let (path, volume) = request::volume(text)?;
        paths.push(path);
        volumes.push(volume);
    }
    let network = request::network(&args.network)?;
    let carrier = request::carrier(network)?;
    let invocation = Invocation {
        args: args.command,
        entrypoint: args.entrypoint.map(|e| if e.is_empty() { Vec::new() } else { vec![e] }),
        env: args.env.iter().filter_map(|e| variable(e)).collect(),
        user: args.user,
        cwd: args.workdir.map(|d| if d.starts_with('/') { d } else { format!("/{d}") }),
        hostname: args.hostname.unwrap_or_else(|| "rbuild".into()),
        hosts: args.add_host.iter().map(|h| request::host(h)).collect::<Result<_, _>>()?,
        volumes,
        network,
        shm_size: args.shm_size.as_deref().map(|s| request::size("--shm-size", s)).transpose()?,
        ulimits: args.ulimit.iter().map(|u| request::ulimit(u)).collect::<Result<_, _>>()?,
        input: match (terminal, args.interactive) {
            (true, _) => Input::Terminal,
            (false, true) => Input::Given,
            (false, false) => Input::Nothing,
        },
        resolv_conf: request::resolv_conf(carrier.as_ref()),
    };
    let world = World { store: settings.root.clone(), binds: volume_binds(&paths), carrier, commands: true };
    // If the builder is killed, nobody else puts the terminal right.
    let _restore = terminal.then(Restore::of_stdin);
    let ended = enter(&world, settings.rung, |builder| {
        let cancel = Cancel::default();
        let outcome = builder.map_err(BuildError::from).and_then(|builder| {
            let stop = cancel.clone();
            builder.on_stop(move || stop.cancel());
            let store = store
                .moved(&builder.path(std::path::Path::new(rbuild_sandbox::STORE)))?
                .with_owners(owners(&builder))?;
            invoke(&store, &image, &invocation, &builder, &cancel)
        });
        match outcome {
            Ok(Outcome::Exited(code)) => code,
            Ok(Outcome::Signaled(signal)) => 128 + signal,
            Ok(Outcome::NotStarted(why)) => {
                terminal::error(&format!("the command could not be started: {why}"), None);
                if why.starts_with("the image has no") { NOT_FOUND } else { CANNOT_RUN }
            }
            Err(_) if cancel.is_cancelled() => i32::from(code::INTERRUPTED),
            Err(e) => i32::from(Failure::from(e).report()),
        }
    })?;
    Ok(if ended.stopped { code::INTERRUPTED } else { ended.code as u8 })
}

/// A name alone passes the environment's value on, if there is one.
fn variable(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.to_string(), value.to_string())),
        None => std::env::var(text).ok().map(|value| (text.to_string(), value)),
    }
}
