//! The verb `build`.

use rbuild_engine::{BuildError, BuildReport, BuildRequest, ImageRequest, NetworkAccess, SecretValues, UrlSource};
use rbuild_image::{SourceUrl, hide_logins};
use rbuild_linux::Destination;
use rbuild_store::Store;
use rbuild_transport::RemoteCache;

use crate::args::{BuildArgs, ProgressMode};
use crate::commands::build_once::{BuildOnce, BuildOutcome, Reports, conclude};
use crate::commands::cache_export::{self, CacheExports};
use crate::commands::check::{self, Call, CallMode};
use crate::commands::fetcher::early_push::EarlyPusher;
use crate::commands::fetcher::pulls::Pulls;
use crate::commands::fetcher::pushes::BuiltImage;
use crate::commands::fetcher::{caches, downloads, pushes};
use crate::commands::lint::{self, Lint};
use crate::commands::transfer::TransferDisplay;
use crate::commands::verify;
use crate::exit::{Failure, build_code, code};
use crate::input::cache::CacheReader;
use crate::input::request::{BuildInput, InputReader};
use crate::input::settings::Settings;
use crate::input::{output, registry};
use crate::progress::{Mode, Service};
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::{annotations, terminal, timings_html};

pub fn build(settings: &Settings, args: BuildArgs) -> Result<u8, Failure> {
    if progress_mode(&args) == Mode::Groups(Service::Github) {
        terminal::write_for_github();
    }
    let call = if args.check { Ok(Call { mode: CallMode::Check, json: false }) } else { Call::parse(&args.call) };
    // An analysis does not write the ID file.
    let is_analysis = call.as_ref().is_ok_and(|call| call.mode != CallMode::Build);
    let reports = if is_analysis { Reports::default() } else { Reports::open_id(&args)? };
    for flag in args.ignored.given() {
        terminal::err(&format!("warning: {flag} is not supported yet and has no effect\n"));
    }
    let call = call?;
    let store = settings.open_for_builds()?;
    let reports = if is_analysis { reports } else { reports.open_others(&args)? };
    let display = transfer_display(&args);
    let fetch = |url: &SourceUrl, secrets: &[(String, Vec<u8>)]| {
        downloads::fetch_one(&store, &args.registry, secrets, display, url)
    };
    let records = |names: &[RemoteCache]| caches::read(&store, &args.registry, names);
    let layers = || caches::layer_fetcher(&args.registry);
    let reader = CacheReader { records: &records, layers: &layers };
    let inputs = InputReader { args: &args, store: &store, fetch: &fetch, caches: reader };
    let input = inputs.read()?;
    let secrets = input.request.secret_values();
    build_from(settings, inputs, input, call, &reports).map_err(|failure| failure.masked(&secrets))
}

fn build_from(
    settings: &Settings,
    inputs: InputReader<'_>,
    input: BuildInput,
    call: Call,
    reports: &Reports,
) -> Result<u8, Failure> {
    let InputReader { args, store, .. } = inputs;
    let BuildInput { request, push, cache_to, _contexts } = input;
    let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
    let name = request.dockerfile_name.clone();
    let source = SourceText::new(&name, &text);
    let mode = progress_mode(args);
    let secrets = request.secret_values();
    let report = |e: &BuildError| report(e, &source, &secrets);
    if args.verify {
        verify::refuse_standard_input(args)?;
    }
    let file = match rbuild_dockerfile::parse(&request.dockerfile) {
        Ok(file) => file,
        Err(errors) => return Ok(report(&BuildError::Dockerfile(errors))),
    };
    if call.mode != CallMode::Build {
        return check::call(&file, &request, store, &source, call);
    }
    let settings_of_lint = lint::settings(&file, &request)?;
    let display = transfer_display(args);
    if !push.is_empty() {
        pushes::check_push(&args.registry, display, &push)?;
    }
    let pulls = Pulls::new(store, &args.registry, &push, display);
    let pull_images = |wanted: &[ImageRequest]| pulls.begin(wanted);
    let logins = downloads::logins(&request.secrets);
    let fetch = |wanted: &[UrlSource]| downloads::fetch(store, &args.registry, &logins, display, wanted);
    let network = NetworkAccess::new(&pull_images, &fetch).with_full_names(&registry::full_name_in_dockerfile);
    let lint = Lint::new(&file, store, &source, settings_of_lint, &network);
    // Of two builds, neither is pushed before they are compared.
    let early = EarlyPusher::new(&args.registry, if args.verify { &[] } else { &push[..] }, display);
    let push_lent = |finished: &BuildReport| {
        let image = BuiltImage { platforms: &finished.platforms, uploaded: Vec::new(), lent: &finished.lent };
        pushes::push(store, &args.registry, display, image, &push)
    };
    let once = BuildOnce {
        settings,
        store,
        file: &file,
        mode,
        explain: args.explain,
        flags: &args.registry,
        report: &report,
        network: &network,
        pulls: &pulls,
        early: &early,
        push_lent: &push_lent,
        lint: &lint,
    };
    let (caches, now) = (request.caches.clone(), request.now);
    let ended = run(&once, inputs, request, reports);
    let uploaded = early.end(matches!(ended, Ok(BuildOutcome::Made(_))));
    let (ended, uploaded) = (ended?, uploaded?);
    if let BuildOutcome::Made(finished) = &ended
        && !push.is_empty()
        && finished.lent.is_empty()
    {
        let image = BuiltImage { platforms: &finished.platforms, uploaded, lent: &[] };
        pushes::push(store, &args.registry, display, image, &push)?;
    }
    if let (false, BuildOutcome::Made(finished)) = (args.verify, &ended) {
        let is_quiet = args.quiet || matches!(mode, Mode::Quiet | Mode::RawJson);
        let exports = CacheExports { store, flags: &args.registry, caches: &caches, targets: &cache_to, now };
        cache_export::write(&exports, finished, is_quiet)?;
    }
    lint.show(mode);
    Ok(ended.exit_code())
}

/// Prints the error of a build, unless it has already been printed. Returns the exit code.
fn report(e: &BuildError, source: &SourceText<'_>, secrets: &SecretValues) -> u8 {
    if matches!(e, BuildError::AlreadyReported) {
        return code::FAILED;
    }
    // Mask secrets first: if the login in a secret were hidden first, the rest of the secret would
    // no longer be recognized.
    let hide = |text: String| hide_logins(&secrets.mask(text)).to_string();
    let text = hide(diagnostics::build_error(e, source, terminal::colors()));
    terminal::err(&text);
    terminal::annotate(|| annotations::errors(e, source, &hide));
    build_code(e)
}

/// Builds or verifies, and writes the reports of the build.
fn run(
    once: &BuildOnce<'_>,
    inputs: InputReader<'_>,
    request: BuildRequest,
    reports: &Reports,
) -> Result<BuildOutcome, Failure> {
    if inputs.args.verify {
        return verify::verify(once, inputs, request, reports);
    }
    let ended = once.build(&request);
    if let Some(dest) = &reports.timings {
        write_timings(once.store, &request, dest)?;
    }
    let ended = ended?;
    if let BuildOutcome::Made(finished) = &ended {
        conclude(once.store, inputs.args, &request, finished, reports)?;
    }
    Ok(ended)
}

/// Returns the progress of transfers that suits that of the build.
fn transfer_display(args: &BuildArgs) -> TransferDisplay {
    if matches!(progress_mode(args), Mode::Quiet | Mode::RawJson) {
        TransferDisplay::Nothing
    } else {
        TransferDisplay::new(false)
    }
}

/// Returns the form of progress output: that of the flags, or else the form for terminals or plain
/// lines.
fn progress_mode(args: &BuildArgs) -> Mode {
    match args.progress {
        _ if args.quiet => Mode::Quiet,
        Some(ProgressMode::Quiet) => Mode::Quiet,
        Some(ProgressMode::Tty) => Mode::Tty,
        Some(ProgressMode::Rawjson) => Mode::RawJson,
        Some(ProgressMode::Github) => Mode::Groups(Service::Github),
        Some(ProgressMode::Gitlab) => Mode::Groups(Service::Gitlab),
        None | Some(ProgressMode::Auto) if terminal::redraws() => Mode::Tty,
        None | Some(ProgressMode::Auto | ProgressMode::Plain) => Mode::Plain,
    }
}

/// Writes the timings page of the build that has just ended, whether it succeeded or failed.
fn write_timings(store: &Store, request: &BuildRequest, dest: &Destination) -> Result<(), Failure> {
    let logs = store.logs().build_logs()?;
    let Some(log) = logs.iter().find(|log| log.id == request.build_id) else { return Ok(()) };
    dest.write(timings_html::html(log).as_bytes()).map_err(|e| output::unwritten("the timings", &dest.path(), e))
}
