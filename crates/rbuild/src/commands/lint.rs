//! The lint rules of a build, with the facts of its store and parameters.

use std::cell::OnceCell;

use rbuild_dockerfile::Diagnostic;
use rbuild_dockerfile::ast::Dockerfile;
use rbuild_dockerfile::lint::{self, BaseFacts, Facts, LintSettings, LintWarning, StageRole};
use rbuild_engine::BuildRequest;
use rbuild_image::Platform;
use rbuild_plan::{Analysis, ContextSource, NamedContext, Parameters, StageUse};
use rbuild_source::Ignore;
use rbuild_store::Store;

use crate::exit::{Failure, code};
use crate::progress::Mode;
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::terminal;

/// The lint rules of one build. They run once, when its images are in the store: a rule that has to
/// know the base image must not depend on earlier builds.
pub struct Lint<'a> {
    pub file: &'a Dockerfile,
    pub store: &'a Store,
    pub source: &'a SourceText<'a>,
    /// The warnings, as lines.
    pub warnings: OnceCell<Vec<String>>,
}

impl Lint<'_> {
    /// Runs the rules. Returns the exit code if the Dockerfile has warnings and `check=error=true`:
    /// then they have been printed.
    pub fn run(&self, request: &BuildRequest) -> Result<Option<u8>, Failure> {
        if self.warnings.get().is_some() {
            return Ok(None);
        }
        let (warnings, fails) = self.warnings(request)?;
        if fails && !warnings.is_empty() {
            let secrets = request.secret_values();
            for w in &warnings {
                let d = Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message));
                terminal::err(&secrets.mask(diagnostics::diagnostic(&d, self.source, terminal::colors())));
            }
            terminal::error("warnings are errors in this Dockerfile (check=error=true)", None);
            return Ok(Some(code::FAILED));
        }
        self.keep(request, &warnings);
        Ok(None)
    }

    /// Runs the rules for a Dockerfile that cannot be built, as far as its images are known.
    pub fn run_after_error(&self, request: &BuildRequest) -> Result<(), Failure> {
        let (warnings, _) = self.warnings(request)?;
        self.keep(request, &warnings);
        Ok(())
    }

    fn warnings(&self, request: &BuildRequest) -> Result<(Vec<LintWarning>, bool), Failure> {
        let plans = request.plans();
        // The planner reports the errors of an analysis.
        let analyses = plans.iter().filter_map(|plan| Some((plan, rbuild_plan::analyze(self.file, plan).ok()?)));
        warnings(self.file, request, self.store, &analyses.collect::<Vec<_>>())
    }

    fn keep(&self, request: &BuildRequest, warnings: &[LintWarning]) {
        let secrets = request.secret_values();
        let text = |w: &LintWarning| {
            let line = self.source.line(w.span.start).0;
            secrets.mask(format!(" - {}: {} (line {line})\n", w.rule.name, w.message))
        };
        let _ = self.warnings.set(warnings.iter().map(text).collect());
    }

    /// Prints the first three warnings after a build, whether it succeeded or failed; `--check`
    /// prints all.
    pub fn show(&self, mode: Mode) {
        let list = self.warnings.get().map_or(&[][..], Vec::as_slice);
        if list.is_empty() || mode == Mode::Quiet {
            return;
        }
        let noun = if list.len() == 1 { "warning" } else { "warnings" };
        let more = if list.len() > 3 { "; --check shows all" } else { "" };
        let first = list.iter().take(3).cloned().collect::<String>();
        terminal::err(&format!("{} {noun} found{more}:\n{first}", list.len()));
    }
}

/// Returns the lint warnings for the plans of a Dockerfile, and true if they are to fail the build.
pub fn warnings(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    analyses: &[(&Parameters, Analysis<'_>)],
) -> Result<(Vec<LintWarning>, bool), Failure> {
    let settings = settings(file, request)?;
    let ignore = request.context.as_ref().map_or("", |c| c.ignore.as_str());
    let ignore = Ignore::parse(ignore).unwrap_or_default();
    // A negated pattern may re-include a file, so the rule is off if there are any.
    let ignored = |path: &str| !ignore.has_negations() && ignore.excludes(path);
    let mut found: Vec<LintWarning> = Vec::new();
    for (parameters, analysis) in analyses {
        let facts = Facts {
            role: &|stage| match &analysis.stages[stage] {
                StageUse::Needed => StageRole::Built,
                StageUse::Unneeded => StageRole::Unused,
                StageUse::Replaced(context, platform) => StageRole::Replaced(context_facts(store, context, platform)),
            },
            base: &|name, platform| base_facts(parameters, store, name, platform),
            ignored: &ignored,
            build_arg: &|name| parameters.build_arg(name).map(str::to_string),
            automatic: &analysis.automatic,
        };
        // Most warnings are the same for all platforms.
        let others = lint::check(file, &facts, &settings);
        let new: Vec<LintWarning> = others.into_iter().filter(|w| !found.contains(w)).collect();
        found.extend(new);
    }
    found.sort_by_key(|w| (w.span.start, w.rule.name));
    Ok((found, settings.error))
}

/// Returns the settings of the build argument or of the directive. Warns of rules in the directive
/// that do not exist.
fn settings(file: &Dockerfile, request: &BuildRequest) -> Result<LintSettings, Failure> {
    if let Some(text) = request.parameters.build_arg("BUILDKIT_DOCKERFILE_CHECK") {
        return LintSettings::parse(text).map_err(|e| Failure::usage(format!("BUILDKIT_DOCKERFILE_CHECK: {e}")));
    }
    let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
    let source = SourceText::new(&request.dockerfile_name, &text);
    let place = |d: &Diagnostic| format!("the check directive at {}:{}", source.name, source.line(d.span.start).0);
    let settings = lint::settings(file).map_err(|d| {
        Failure::usage(format!("{}: {}", place(&d), d.message))
            .help("write `# check=skip=RULE,RULE;error=true`, or omit it")
    })?;
    for unknown in lint::unknown_rules(file) {
        let text = format!("{}: {}", place(&unknown), unknown.message);
        terminal::warning(rbuild_engine::Warning { text, help: unknown.help });
    }
    Ok(settings)
}

/// Returns the facts about a base image of the store. `platform` is the value of `FROM --platform`.
fn base_facts(parameters: &Parameters, store: &Store, name: &str, platform: Option<&str>) -> Option<BaseFacts> {
    let platform = platform.and_then(|text| text.parse().ok());
    let wanted = platform.as_ref().unwrap_or(&parameters.platform);
    if let Some(context) = parameters.context_named(name, wanted) {
        return context_facts(store, context, wanted);
    }
    let config = store.images().named_image_for(&name.parse().ok()?, wanted).ok()?.config;
    let own = config.platform();
    let foreign = (!wanted.runs(&own)).then(|| own.to_string());
    Some(BaseFacts { env: config.config.env, foreign })
}

/// Returns the facts about a named context. As in BuildKit, its image may have any platform.
fn context_facts(store: &Store, context: &NamedContext, platform: &Platform) -> Option<BaseFacts> {
    let env = match &context.source {
        ContextSource::Image(image) => store.images().named_image_for(&image.name, platform).ok()?.config.config.env,
        ContextSource::Directory(_) | ContextSource::Scratch => Vec::new(),
    };
    Some(BaseFacts { env, foreign: None })
}
