//! The command: what was typed becomes requests, what happens becomes text, what went wrong becomes an exit code.
//! The only crate that prints.

mod args;
mod build;
mod call;
mod config;
mod containers;
mod context;
mod debug;
mod debug_log;
mod doctor;
mod exit;
mod images;
mod logs;
mod meter;
mod output;
mod place;
mod print;
mod progress;
mod render;
mod report;
mod request;
mod run;
mod template;
mod transfer;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, ProgressMode, Verb};
use config::Config;
use debug_log::DebugLog;
use exit::{Failure, code};
use place::Place;

fn main() -> ExitCode {
    let argv: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if argv.get(1).is_some_and(|arg| arg == rbuild_sandbox::ZYGOTE) {
        std::process::exit(rbuild_sandbox::zygote_main(&argv[2..]));
    }
    let result = std::panic::catch_unwind(|| run(argv));
    ExitCode::from(result.unwrap_or(code::BUG))
}

fn run(argv: Vec<std::ffi::OsString>) -> u8 {
    let as_docker = argv.first().is_some_and(|a| std::path::Path::new(a).file_name().is_some_and(|n| n == "docker"));
    let argv = match args::with_verb(argv, as_docker) {
        Ok(argv) => argv,
        Err(failure) => return failure.report(),
    };
    let matches = match Cli::command().try_get_matches_from(argv) {
        Ok(matches) => matches,
        Err(e) => {
            let _ = e.print();
            let usage = if as_docker { code::DOCKER_USAGE } else { code::USAGE };
            return if e.use_stderr() { usage } else { code::OK };
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return Failure::usage(e.to_string()).report(),
    };
    let log = DebugLog { filter: std::env::var("RBUILD_LOG").ok(), debug: cli.debug, file: cli.debug_log.clone() };
    if let Err(failure) = log.start() {
        return failure.report();
    }
    let config = match Config::of_user() {
        Ok(config) => config,
        Err(failure) => return failure.report(),
    };
    let place = match Place::new(cli.root, &cli.limit, cli.isolation.as_deref(), &config) {
        Ok(place) => place.with_lock_timeout(cli.lock_timeout),
        Err(failure) => return failure.report(),
    };
    let result = match cli.verb {
        Verb::Build(mut args) => {
            config.fill(&mut args);
            if log.is_on_stderr() && matches!(args.progress, None | Some(ProgressMode::Auto)) {
                args.progress = Some(ProgressMode::Plain);
            }
            build::build(&place, *args)
        }
        Verb::Import(args) => transfer::import(&place, args),
        Verb::Save(args) => transfer::save(&place, args),
        Verb::Load(args) => transfer::load(&place, args),
        Verb::Run(args) => run::run(&place, args),
        Verb::Images(args) => images::images(&place, args),
        Verb::History(args) => images::history(&place, args),
        Verb::Inspect(args) => images::inspect(&place, args),
        Verb::Tag(args) => images::tag(&place, args),
        Verb::Rmi(args) => images::rmi(&place, args),
        Verb::Prune(args) => images::prune(&place, args),
        Verb::ImagePrune(args) => images::image_prune(&place, args),
        Verb::Containers(args) => containers::list(&place, args),
        Verb::ContainerPrune(_) => containers::prune(&place),
        Verb::Create(args) => containers::create(&place, args),
        Verb::Cp(args) => containers::cp(&place, args),
        Verb::Rm(args) => containers::rm(&place, args),
        Verb::Logs(args) => logs::logs(&place, args),
        Verb::Df => images::df(&place),
        Verb::Fsck(args) => images::fsck(&place, args),
        Verb::Doctor => doctor::doctor(&place),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rbuild", &mut script);
            print::out(&String::from_utf8_lossy(&script));
            Ok(code::OK)
        }
        Verb::Debug { verb } => debug::debug(verb),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
