//! The command line: parses flags into requests, prints progress and results, and maps errors to
//! exit codes. The only crate that prints.

mod args;
mod cli;
mod commands;
mod debug_log;
mod exit;
mod input;
mod progress;
mod template;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;

use args::{Cli, ProgressMode, Verb};
use cli::verbs::CommandLine;
use commands::{
    build, cache, confirm, containers, cp, debug, doctor, explain, images, inspect, login, logs, man, removing, run,
    save_load, transfer, volumes,
};
use debug_log::DebugLog;
use exit::{Failure, code};
use input::config::Config;
use input::flags::secrets_of_line;
use input::hidden_credentials;
use input::settings::Settings;
use rbuild_dockerfile::Help;
use rbuild_engine::Warning;
use rbuild_store::DanglingImages;
use ui::terminal;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    if argv.get(1).is_some_and(|arg| arg == rbuild_sandbox::ZYGOTE) {
        std::process::exit(rbuild_sandbox::zygote_main(&argv[2..]));
    }
    if let Some(shell) = std::env::var_os(cli::completion::VARIABLE) {
        return ExitCode::from(cli::completion::answer(&shell, argv));
    }
    if argv.get(1).is_some_and(|arg| arg == rbuild_sandbox::ENTRANCE) {
        std::process::exit(rbuild_sandbox::entrance_main());
    }
    rbuild_linux::accept_withheld();
    let result = std::panic::catch_unwind(|| run(argv));
    ExitCode::from(result.unwrap_or(code::BUG))
}

fn run(argv: Vec<OsString>) -> u8 {
    let as_docker = argv.first().is_some_and(|a| std::path::Path::new(a).file_name().is_some_and(|n| n == "docker"));
    if as_docker {
        ui::hints::suggest_docker(cli::verbs::is_verb);
    }
    let (line, verb) = match cli::verbs::with_verb(argv.clone(), as_docker) {
        Ok(CommandLine::Arguments { argv, verb }) => (argv, verb),
        Ok(CommandLine::Help { verb, long }) => return print_help(verb.as_deref(), long),
        Ok(CommandLine::Answer { text, note }) => {
            terminal::out(&text);
            if !note.is_empty() {
                terminal::note(&note);
            }
            return code::OK;
        }
        Err(failure) => return failure.masked(&secrets_of_line(&argv)).report(),
    };
    let word = line.get(verb).and_then(|word| word.to_str()).unwrap_or_default();
    let matches = match cli::clap_command::parse(&line, word) {
        Ok(matches) => matches,
        Err(e) => return not_parsed(&e, &line, verb, line.len() > argv.len(), as_docker),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return Failure::usage(e.to_string()).masked(&secrets_of_line(&argv)).report(),
    };
    if let Err(failure) = hidden_credentials::hide(&cli, &argv) {
        return failure.masked(&secrets_of_line(&argv)).report();
    }
    match (run_cli(cli, as_docker), terminal::lost_output()) {
        (Ok(code::OK), Some(e)) => Failure::lost_output(e).report(),
        (Ok(code), _) => code,
        (Err(failure), _) => failure.of_verb(word).masked(&secrets_of_line(&argv)).report(),
    }
}

fn print_help(verb: Option<&str>, long: bool) -> u8 {
    terminal::out(&cli::clap_command::help(verb, long));
    code::OK
}

/// Answers a command line that requests help or contains an error. The verb is at index `verb`;
/// `implied` is true if the user did not write it.
fn not_parsed(e: &clap::Error, line: &[OsString], verb: usize, implied: bool, as_docker: bool) -> u8 {
    use clap::error::ErrorKind;
    let word = |at: usize| line.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    match e.kind() {
        ErrorKind::DisplayHelp => print_help(Some(word(verb)), line.iter().any(|word| word == "--help")),
        ErrorKind::DisplayVersion => {
            terminal::out(&e.to_string());
            code::OK
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            terminal::err(&cli::clap_command::help(Some(word(verb)), false));
            code::USAGE
        }
        _ => {
            let later = (verb + 1..line.len()).map(word);
            let misplaced = later.filter(|_| implied).find(|word| word != &"-" && cli::verbs::is_verb(word));
            let failure = cli::usage::failure(e, word(verb), &line[1..], misplaced);
            let failure = if as_docker { failure.of_docker() } else { failure.of_verb(word(verb)) };
            failure.masked(&secrets_of_line(line)).report()
        }
    }
}

/// Starts the debug log, resolves the settings and runs the verb.
fn run_cli(cli: Cli, as_docker: bool) -> Result<u8, Failure> {
    let log =
        DebugLog { filter: std::env::var("RBUILD_LOG").ok(), debug: cli.common.debug, file: cli.common.debug_log };
    log.start()?;
    let config = match Config::of_user() {
        // It checks this machine, whatever the file contains.
        Err(failure) if matches!(cli.verb, Verb::Doctor(_)) => {
            terminal::warning(Warning { text: failure.message, help: failure.help.map(Help::from) });
            Config::default()
        }
        config => config?,
    };
    let names_store = cli.common.root.is_some() || std::env::var_os("RBUILD_ROOT").is_some_and(|root| !root.is_empty());
    let settings = Settings::new(cli.common.root, &cli.common.limit, cli.common.isolation, &config)?;
    let settings = settings.with_lock_timeout(cli.common.lock_timeout);
    let mut verb = cli.verb;
    config.fill(&mut verb);
    if let Verb::Build(args) = &mut verb
        && log.is_on_stderr()
        && matches!(args.progress, None | Some(ProgressMode::Auto))
    {
        args.progress = Some(ProgressMode::Plain);
    }
    let fills_store = matches!(verb, Verb::Import(_) | Verb::Load(_) | Verb::Pull(_) | Verb::CacheImport(_));
    let settings = if names_store && !fills_store { settings.expecting_store() } else { settings };
    if as_docker || confirm::loses_images(&verb) {
        confirm::removal(&verb, &settings)?;
    }
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
        Verb::Run(args) => run::run(settings, *args),
        Verb::Exec(args) => containers::exec::exec(settings, args),
        Verb::Start(args) => containers::start::start(settings, args),
        Verb::Stop(args) => containers::signals::stop(settings, args),
        Verb::Restart(args) => containers::restart::restart(settings, args),
        Verb::Kill(args) => containers::signals::kill(settings, args),
        Verb::Pause(args) => containers::pause::pause(settings, args),
        Verb::Unpause(args) => containers::pause::unpause(settings, args),
        Verb::Top(args) => containers::processes::top(settings, args),
        Verb::Stats(args) => containers::processes::stats(settings, args),
        Verb::Rename(args) => containers::rename::rename(settings, args),
        Verb::Export(args) => cp::export(settings, args),
        Verb::Wait(args) => containers::signals::wait(settings, args),
        Verb::Port(args) => containers::ports::port(settings, args),
        Verb::Diff(args) => containers::changes::diff(settings, args),
        Verb::Commit(args) => containers::changes::commit(settings, args),
        Verb::Images(args) => images::images(settings, args),
        Verb::History(args) => images::history(settings, args),
        Verb::Inspect(args) => inspect::inspect(settings, args),
        Verb::Tag(args) => images::tag(settings, args),
        Verb::Rmi(args) => removing::rmi(settings, args),
        Verb::Prune(args) => removing::prune(settings, args, DanglingImages::Remove),
        Verb::CacheExport(args) => cache::export(settings, args),
        Verb::CacheImport(args) => cache::import(settings, args),
        Verb::BuilderPrune(args) => removing::prune(settings, args, DanglingImages::Keep),
        Verb::SystemPrune(args) => removing::system_prune(settings, args),
        Verb::ImagePrune(args) => removing::image_prune(settings, args),
        Verb::Containers(args) => containers::list::list(settings, args),
        Verb::ContainerPrune(_) => containers::remove::prune(settings),
        Verb::VolumeList(args) => volumes::list(settings, args),
        Verb::VolumeCreate(args) => volumes::create(settings, args),
        Verb::VolumeRemove(args) => volumes::remove(settings, args),
        Verb::VolumeInspect(args) => volumes::inspect(settings, args),
        Verb::VolumePrune(args) => volumes::prune(settings, args),
        Verb::Create(args) => containers::create::create(settings, *args),
        Verb::Cp(args) => cp::cp(settings, args),
        Verb::Rm(args) => containers::remove::rm(settings, args),
        Verb::Logs(args) => logs::logs(settings, args),
        Verb::Df(args) => removing::df(settings, args),
        Verb::Fsck(args) => removing::fsck(settings, args),
        Verb::Doctor(args) => doctor::doctor(settings, args),
        Verb::Explain(args) => explain::explain(args),
        Verb::Completion { shell } => {
            terminal::out(&cli::completion::script(shell));
            Ok(code::OK)
        }
        Verb::Man(args) => man::man(args),
        Verb::Debug { verb } => debug::debug(verb),
    }
}
