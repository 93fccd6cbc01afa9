//! The verb `build`.

use std::ffi::OsString;
use std::sync::Arc;

use rbuild_engine::{
    BuildError, BuildReport, BuildRequest, CacheMode, ImageRequest, NetworkAccess, SecretValues, UrlSource,
};
use rbuild_image::{BlobDigest, Reference, SourceUrl, hide_logins};
use rbuild_plan::NoCache;
use rbuild_store::Store;
use rbuild_transport::{ImportedCaches, RecordBudget, RecordKeys, SharedCache};

use crate::args::{BuildArgs, ProgressMode};
use crate::commands::build_once::{BuildOnce, BuildOutcome, Reports, conclude};
use crate::commands::cache_export::{self, CacheExports};
use crate::commands::check::{self, Call, CallMode};
use crate::commands::fetcher::claims::{ClaimedCache, StepClaims};
use crate::commands::fetcher::early_push::EarlyPusher;
use crate::commands::fetcher::pulls::Pulls;
use crate::commands::fetcher::pushes::{BuiltImage, PushCheck};
use crate::commands::fetcher::{caches, downloads, pushes};
use crate::commands::lint::{self, Lint};
use crate::commands::transfer::TransferDisplay;
use crate::commands::{timings, verify};
use crate::exit::{Failure, build_code, code};
use crate::input::cache::{self, CachePlace, CacheReader, CacheTarget};
use crate::input::registry;
use crate::input::request::{BuildInput, InputReader};
use crate::input::settings::Settings;
use crate::progress::{Mode, Service};
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::{annotations, terminal};

pub fn build(settings: &Settings, args: BuildArgs) -> Result<u8, Failure> {
    match progress_mode(&args) {
        Mode::Groups(Service::Github) => terminal::write_for_github(),
        Mode::RawJson => terminal::write_for_programs(),
        // Lines of commands, which may be hostile, are part of each other form, too.
        _ if is_true(GITHUB, |name| std::env::var_os(name)) => terminal::quote_for_github(),
        _ => {}
    }
    let call = if args.check { Ok(Call { mode: CallMode::Check, json: false }) } else { Call::parse(&args.call) };
    // An analysis does not write the ID file.
    let is_analysis = call.as_ref().is_ok_and(|call| call.mode != CallMode::Build);
    let reports = if is_analysis { Reports::default() } else { Reports::open_id(&args)? };
    for flag in args.ignored.given() {
        terminal::warning(format!("{flag} is not supported yet and has no effect"));
    }
    let call = call?;
    let store = settings.open_for_builds()?;
    let reports = if is_analysis { reports } else { reports.open_others(&args)? };
    let display = transfer_display(&args);
    let fetch = |url: &SourceUrl, secrets: &[(String, Vec<u8>)]| {
        downloads::fetch_one(&store, &args.registry, secrets, display, url)
    };
    let records = |names: &[(SharedCache, RecordKeys)], budget: &RecordBudget| {
        caches::read(&store, &args.registry, names, budget)
    };
    let layers = || caches::layer_fetcher(&args.registry);
    let is_quiet = matches!(progress_mode(&args), Mode::Quiet | Mode::RawJson);
    let note = |text: &str| {
        if !is_quiet {
            terminal::note(text);
        }
    };
    let reader = CacheReader { records: &records, layers: &layers, note: &note };
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
    let push_check = PushCheck::new(&args.registry, display, &push);
    let pulls = Pulls::new(store, &args.registry, &push, display);
    let pull_images = |wanted: &[ImageRequest]| pulls.begin(wanted);
    let logins = downloads::logins(&request.secrets);
    let fetch = |wanted: &[UrlSource]| downloads::fetch(store, &args.registry, &logins, display, wanted);
    let network = NetworkAccess::new(&pull_images, &fetch).with_full_names(&registry::full_name_in_dockerfile);
    let lint = Lint::new(&file, store, &source, settings_of_lint, &network);
    // Of two builds, neither is pushed before they are compared.
    let early = EarlyPusher::new(&args.registry, if args.verify { &[] } else { &push[..] }, display);
    let publication = Publication { args, store, display, push: &push, cache_to: &cache_to, now: request.now };
    let push_lent = |finished: &BuildReport| publication.push_lent(finished);
    cache::check_signed(&args.cache_from, &cache_to)?;
    caches::check_keys(&cache_to)?;
    let claimed = claimed(args, &request, &cache_to)?;
    let claims = StepClaims::new(store, &args.registry, claimed, request.build_id.as_str(), inputs.caches.note);
    let once = BuildOnce {
        settings,
        store,
        file: &file,
        source: &source,
        mode,
        explain: args.explain,
        flags: &args.registry,
        report: &report,
        network: &network,
        pulls: &pulls,
        early: &early,
        claims: &claims,
        push_check: &push_check,
        push_lent: &push_lent,
        lint: &lint,
    };
    let mut caches = request.caches.clone();
    let ended = run(&once, inputs, request, reports, &mut caches);
    let uploaded = early.end(matches!(ended, Ok(BuildOutcome::Made(_))));
    let (ended, uploaded) = (ended?, uploaded?);
    if let BuildOutcome::Made(finished) = &ended {
        publication.push(finished, uploaded)?;
        if !args.verify {
            publication.write_caches(finished, &caches, &claims)?;
        }
        // Those of a build that failed are printed before its error.
        lint.show(mode);
    }
    Ok(ended.exit_code())
}

/// The places that get the results of a build: repositories and caches.
struct Publication<'a> {
    args: &'a BuildArgs,
    store: &'a Store,
    display: TransferDisplay,
    /// Names under which the image is pushed.
    push: &'a [Reference],
    /// Caches that are written.
    cache_to: &'a [CacheTarget],
    /// Start of the build, in seconds since 1970.
    now: i64,
}

impl Publication<'_> {
    /// Pushes an image that was made without some of its layers.
    fn push_lent(&self, finished: &BuildReport) -> Result<(), Failure> {
        let image = BuiltImage { platforms: &finished.platforms, uploaded: Vec::new(), lent: &finished.lent };
        pushes::push(self.store, &self.args.registry, self.display, image, self.push)?;
        // Otherwise, the names would refer to the results of earlier builds.
        self.store.images().release_names(self.push).map_err(Failure::from)
    }

    /// Pushes the image, unless that has been done or was not requested. The repository already has
    /// the blobs that were `uploaded`.
    fn push(&self, finished: &BuildReport, uploaded: Vec<BlobDigest>) -> Result<(), Failure> {
        if self.push.is_empty() || !finished.lent.is_empty() {
            return Ok(());
        }
        let image = BuiltImage { platforms: &finished.platforms, uploaded, lent: &[] };
        pushes::push(self.store, &self.args.registry, self.display, image, self.push)
    }

    /// Adds the steps to the caches, and ends the claim.
    fn write_caches(
        &self,
        finished: &BuildReport,
        caches: &ImportedCaches,
        claims: &StepClaims<'_>,
    ) -> Result<(), Failure> {
        let Publication { args, store, cache_to: targets, now, .. } = *self;
        let exports = CacheExports { store, flags: &args.registry, caches, targets, awaited: claims.step(), now };
        let is_quiet = matches!(progress_mode(args), Mode::Quiet | Mode::RawJson);
        let has_awaited = cache_export::write(&exports, finished, is_quiet)?;
        claims.end(has_awaited);
        Ok(())
    }
}

/// Returns the first cache in a registry that a build reads and to which it writes all steps, if it
/// may claim steps. Other builds would not find the steps that they waited for in any other cache.
fn claimed(
    args: &BuildArgs,
    request: &BuildRequest,
    cache_to: &[CacheTarget],
) -> Result<Option<ClaimedCache>, Failure> {
    let is_requested = args.cache_claim == Some(true);
    // A shell after an error may be open for hours.
    let is_suspended = args.verify || request.shell_on_error || request.parameters.no_cache != NoCache::None;
    if args.cache_claim == Some(false) || is_suspended {
        return Ok(None);
    }
    let written = cache_to.iter().filter(|target| target.export.mode == CacheMode::Max);
    let written = written.filter_map(|target| match &target.to {
        CachePlace::Shared(cache) => cache.registry(),
        CachePlace::Directory(_) | CachePlace::Image => None,
    });
    // A cache that does not exist yet is not among those that were read.
    let read = cache::remote_sources(&args.cache_from)?;
    let claimed = { written }.find(|cache| read.iter().any(|read| read.name() == cache.name())).cloned();
    if claimed.is_none() && is_requested {
        let text = "--cache-claim has no effect without a cache in a registry that is read and written with mode=max";
        terminal::warning(rbuild_engine::Warning { text: text.into(), help: None });
    }
    Ok(claimed.map(|cache| ClaimedCache { cache, is_requested }))
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
    mut request: BuildRequest,
    reports: &Reports,
    caches: &mut Arc<ImportedCaches>,
) -> Result<BuildOutcome, Failure> {
    if inputs.args.verify {
        return verify::verify(once, inputs, request, reports);
    }
    let ended = loop {
        let ended = once.build(&request);
        if !matches!(ended, Ok(BuildOutcome::Waited)) {
            break ended;
        }
        // Its notes were shown when the caches were read before.
        let reader = CacheReader { note: &|_| {}, ..inputs.caches };
        request.caches = Arc::new(cache::sources(&inputs.args.cache_from, reader)?);
        *caches = request.caches.clone();
    };
    if let Some(dest) = &reports.timings {
        let report = match &ended {
            Ok(BuildOutcome::Made(report)) => Some(report),
            _ => None,
        };
        timings::write(once, &request, report, dest)?;
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

/// Returns the form of progress output: that of the flags, or else an automatic one.
fn progress_mode(args: &BuildArgs) -> Mode {
    match args.progress {
        _ if args.quiet => Mode::Quiet,
        Some(ProgressMode::Quiet) => Mode::Quiet,
        Some(ProgressMode::Tty) => Mode::Tty,
        Some(ProgressMode::Rawjson) => Mode::RawJson,
        Some(ProgressMode::Github) => Mode::Groups(Service::Github),
        Some(ProgressMode::Gitlab) => Mode::Groups(Service::Gitlab),
        Some(ProgressMode::Plain) => Mode::Plain,
        None | Some(ProgressMode::Auto) => automatic(terminal::redraws(), |name| std::env::var_os(name)),
    }
}

/// Returns the form for a terminal, for the log of a CI service that sets its variable, or else
/// plain lines.
fn automatic(redraws: bool, variable: impl Fn(&str) -> Option<OsString>) -> Mode {
    match () {
        () if redraws => Mode::Tty,
        () if is_true(GITHUB, &variable) => Mode::Groups(Service::Github),
        () if is_true("GITLAB_CI", &variable) => Mode::Groups(Service::Gitlab),
        () => Mode::Plain,
    }
}

/// The variable that jobs of GitHub have.
const GITHUB: &str = "GITHUB_ACTIONS";

fn is_true(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable(name).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_progress_follows_the_environment() {
        for (redraws, variables, want) in [
            (false, &[][..], Mode::Plain),
            (true, &[("GITHUB_ACTIONS", "true")][..], Mode::Tty),
            (false, &[("GITHUB_ACTIONS", "true")], Mode::Groups(Service::Github)),
            (false, &[("GITLAB_CI", "true")], Mode::Groups(Service::Gitlab)),
            (false, &[("GITHUB_ACTIONS", "false"), ("GITLAB_CI", "")], Mode::Plain),
        ] {
            let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| OsString::from(v));
            assert_eq!(automatic(redraws, value), want, "{redraws} {variables:?}");
        }
    }
}
