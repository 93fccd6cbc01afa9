//! The command line: parses flags into requests, prints progress and results, and maps errors to
//! exit codes. The only crate that prints.

mod args;
mod commands;
mod debug_log;
mod exit;
mod input;
mod progress;
mod template;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, ProgressMode, Verb};
use commands::{build, cp, debug, doctor, images, login, logs, run, save_load, transfer};
use debug_log::DebugLog;
use exit::{Failure, code};
use input::config::Config;
use input::settings::Settings;
use input::withheld;
use ui::terminal;

fn main() -> ExitCode {
    let argv: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if argv.get(1).is_some_and(|arg| arg == rbuild_sandbox::ZYGOTE) {
        std::process::exit(rbuild_sandbox::zygote_main(&argv[2..]));
    }
    rbuild_linux::accept_withheld();
    let result = std::panic::catch_unwind(|| run(argv));
    ExitCode::from(result.unwrap_or(code::BUG))
}

fn run(argv: Vec<std::ffi::OsString>) -> u8 {
    let as_docker = argv.first().is_some_and(|a| std::path::Path::new(a).file_name().is_some_and(|n| n == "docker"));
    let with_verb = match args::with_verb(argv.clone(), as_docker) {
        Ok(argv) => argv,
        Err(failure) => return failure.report(),
    };
    let matches = match Cli::command().try_get_matches_from(with_verb) {
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
    if let Err(failure) = withheld::set_aside(&cli, &argv) {
        return failure.report();
    }
    match (run_cli(cli), terminal::lost_output()) {
        (Ok(code::OK), Some(e)) => Failure::new(format!("standard output: {e}")).report(),
        (Ok(code), _) => code,
        (Err(failure), _) => failure.report(),
    }
}

/// Starts the debug log, resolves the settings and runs the verb.
fn run_cli(cli: Cli) -> Result<u8, Failure> {
    let log = DebugLog { filter: std::env::var("RBUILD_LOG").ok(), debug: cli.debug, file: cli.debug_log };
    log.start()?;
    let config = Config::of_user()?;
    let settings = Settings::new(cli.root, &cli.limit, cli.isolation.as_deref(), &config)?;
    let settings = settings.with_lock_timeout(cli.lock_timeout);
    let verb = match cli.verb {
        Verb::Build(mut args) => {
            config.fill(&mut args);
            if log.is_on_stderr() && matches!(args.progress, None | Some(ProgressMode::Auto)) {
                args.progress = Some(ProgressMode::Plain);
            }
            Verb::Build(args)
        }
        verb => verb,
    };
    run_verb(verb, &settings)
}

fn run_verb(verb: Verb, settings: &Settings) -> Result<u8, Failure> {
    match verb {
        Verb::Build(args) => build::build(settings, *args),
        Verb::Import(args) => save_load::import(settings, args),
        Verb::Save(args) => save_load::save(settings, args),
        Verb::Load(args) => save_load::load(settings, args),
        Verb::Pull(args) => transfer::pull(settings, args),
        Verb::Push(args) => transfer::push(settings, args),
        Verb::Login(args) => login::login(args),
        Verb::Logout(args) => login::logout(args),
        Verb::Run(args) => run::run(settings, args),
        Verb::Images(args) => images::images(settings, args),
        Verb::History(args) => images::history(settings, args),
        Verb::Inspect(args) => images::inspect(settings, args),
        Verb::Tag(args) => images::tag(settings, args),
        Verb::Rmi(args) => images::rmi(settings, args),
        Verb::Prune(args) => images::prune(settings, args),
        Verb::ImagePrune(args) => images::image_prune(settings, args),
        Verb::Containers(args) => cp::list(settings, args),
        Verb::ContainerPrune(_) => cp::prune(settings),
        Verb::Create(args) => cp::create(settings, args),
        Verb::Cp(args) => cp::cp(settings, args),
        Verb::Rm(args) => cp::rm(settings, args),
        Verb::Logs(args) => logs::logs(settings, args),
        Verb::Df => images::df(settings),
        Verb::Fsck(args) => images::fsck(settings, args),
        Verb::Doctor => doctor::doctor(settings),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rbuild", &mut script);
            terminal::out(&String::from_utf8_lossy(&script));
            Ok(code::OK)
        }
        Verb::Debug { verb } => debug::debug(verb),
    }
}
