//! The lint rules of a build, with the facts of its store and parameters.

use std::cell::{Cell, OnceCell};

use rbuild_dockerfile::Diagnostic;
use rbuild_dockerfile::ast::Dockerfile;
use rbuild_dockerfile::lint::{self, BaseFacts, Facts, LintSettings, LintWarning, StageRole};
use rbuild_engine::{BuildRequest, NetworkAccess, PullPolicy};
use rbuild_image::{ImageConfig, ImageName, Platform};
use rbuild_plan::{Analysis, ContextSource, NamedContext, Parameters, PlatformImage, StageUse};
use rbuild_remedy::counted;
use rbuild_source::Ignore;
use rbuild_store::Store;

use crate::exit::Failure;
use crate::progress::Mode;
use crate::ui::annotations;
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::hints::{Hint, VerbRemedy};
use crate::ui::terminal;

/// The lint rules of one build. They run once its images are in the store, so that the warnings do
/// not depend on the images of earlier builds.
pub struct Lint<'a> {
    file: &'a Dockerfile,
    store: &'a Store,
    source: &'a SourceText<'a>,
    settings: LintSettings,
    /// The images that the build is pulling.
    network: &'a NetworkAccess<'a>,
    /// The warnings, as lines.
    warnings: OnceCell<Vec<String>>,
    /// True once they are printed.
    shown: Cell<bool>,
}

/// The messages about a Dockerfile whose warnings are errors.
pub struct LintRefusal {
    pub text: String,
    /// Annotations of a log for GitHub.
    pub annotations: String,
}

impl<'a> Lint<'a> {
    /// Prepares the rules for a Dockerfile without running them.
    pub fn new(
        file: &'a Dockerfile,
        store: &'a Store,
        source: &'a SourceText<'a>,
        settings: LintSettings,
        network: &'a NetworkAccess<'a>,
    ) -> Lint<'a> {
        Lint { file, store, source, settings, network, warnings: OnceCell::new(), shown: Cell::new(false) }
    }

    /// Runs the rules. Returns the messages if the Dockerfile has warnings and `check=error=true`.
    pub fn refusal(&self, request: &BuildRequest) -> Option<LintRefusal> {
        if self.warnings.get().is_some() {
            return None;
        }
        let warnings = self.warnings(request);
        if !self.settings.error || warnings.is_empty() {
            self.keep(request, &warnings);
            return None;
        }
        let colors = terminal::colors();
        let errors: Vec<Diagnostic> = warnings.iter().map(diagnostic).collect();
        let text: String = errors.iter().map(|d| diagnostics::diagnostic(d, self.source, colors)).collect();
        let secrets = request.secret_values();
        let annotations = annotations::diagnostics(&errors, self.source, &|text| secrets.mask(text));
        let text = secrets.mask(text);
        let last = terminal::error_text("warnings are errors in this Dockerfile (check=error=true)", None, colors);
        Some(LintRefusal { text: text + &last, annotations })
    }

    /// Runs the rules for a Dockerfile that cannot be built, with the images that are known.
    pub fn run_after_error(&self, request: &BuildRequest) {
        self.keep(request, &self.warnings(request));
    }

    fn warnings(&self, request: &BuildRequest) -> Vec<LintWarning> {
        let plans = request.plans();
        // The planner reports the errors of an analysis.
        let analyses = plans.iter().filter_map(|plan| Some((plan, rbuild_plan::analyze(self.file, plan).ok()?)));
        let images = KnownImages { store: self.store, policy: request.pull, network: Some(self.network) };
        warnings(self.file, request, &images, &analyses.collect::<Vec<_>>(), &self.settings)
    }

    fn keep(&self, request: &BuildRequest, warnings: &[LintWarning]) {
        let secrets = request.secret_values();
        let text = |w: &LintWarning| {
            let line = self.source.line(w.span.start).0;
            secrets.mask(format!(" - {}: {} (line {line})\n", w.rule.name, sentence(w)))
        };
        let _ = self.warnings.set(warnings.iter().map(text).collect());
    }

    /// Prints the first three warnings, once: after a build that succeeded, and before the error of
    /// one that failed. `--check` prints all. With rawjson, every line must be a JSON document, so
    /// all of them are documents.
    pub fn show(&self, mode: Mode) {
        let list = self.warnings.get().map_or(&[][..], Vec::as_slice);
        if list.is_empty() || mode == Mode::Quiet || self.shown.replace(true) {
            return;
        }
        if mode == Mode::RawJson {
            let text = |warning: &String| warning.trim_start_matches(" - ").trim_end().to_string();
            list.iter().for_each(|warning| terminal::warning(text(warning)));
        } else {
            terminal::err(&summary(list));
        }
    }
}

/// Returns a warning as a diagnostic, with the name of its rule.
pub fn diagnostic(w: &LintWarning) -> Diagnostic {
    let d = Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message));
    Diagnostic { help: w.help.clone(), ..d }
}

/// Returns the message of a warning and its hint on one line.
pub fn sentence(w: &LintWarning) -> String {
    match &w.help {
        Some(help) => format!("{}; {}", w.message, Hint::from(help)),
        None => w.message.clone(),
    }
}

/// Formats the number of warnings, and the first three. Each is a line.
fn summary(warnings: &[String]) -> String {
    let more = if warnings.len() > 3 { "; --check shows all" } else { "" };
    let first = warnings.iter().take(3).cloned().collect::<String>();
    format!("{} found{more}:\n{first}", counted(warnings.len() as u64, "warning"))
}

/// Returns the lint warnings for the plans of a Dockerfile.
pub fn warnings(
    file: &Dockerfile,
    request: &BuildRequest,
    images: &KnownImages<'_>,
    analyses: &[(&Parameters, Analysis<'_>)],
    settings: &LintSettings,
) -> Vec<LintWarning> {
    let ignore = request.context.as_ref().and_then(|context| context.ignore.as_ref());
    let ignore = ignore.and_then(|file| Ignore::parse(&file.text).ok()).unwrap_or_default();
    // A negated pattern may re-include a file, so the rule is disabled if there are negated
    // patterns.
    let ignored = |path: &str| !ignore.has_negations() && ignore.excludes(path);
    let mut found: Vec<LintWarning> = Vec::new();
    for (parameters, analysis) in analyses {
        let facts = Facts {
            role: &|stage| match &analysis.stages[stage] {
                StageUse::Needed => StageRole::Built,
                StageUse::Unneeded => StageRole::Unused,
                StageUse::Replaced(context, platform) => StageRole::Replaced(images.of_context(context, platform)),
            },
            base: &|name, platform| images.of_name(parameters, name, platform),
            ignored: &ignored,
            build_arg: &|name| parameters.build_arg(name).map(str::to_string),
            automatic: &analysis.automatic,
        };
        // Most warnings are the same for all platforms.
        let others = lint::check(file, &facts, settings);
        let new: Vec<LintWarning> = others.into_iter().filter(|w| !found.contains(w)).collect();
        found.extend(new);
    }
    found.sort_by_key(|w| (w.span.start, w.rule.name));
    found
}

/// Returns the settings of the build argument or of the directive. Warns of rules in the directive
/// that do not exist.
pub fn settings(file: &Dockerfile, request: &BuildRequest) -> Result<LintSettings, Failure> {
    if let Some(text) = request.parameters.build_arg("BUILDKIT_DOCKERFILE_CHECK") {
        return LintSettings::parse(text).map_err(|e| Failure::usage(format!("BUILDKIT_DOCKERFILE_CHECK: {e}")));
    }
    let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
    let source = SourceText::new(&request.dockerfile_name, &text);
    let place = |d: &Diagnostic| format!("the check directive at {}:{}", source.name, source.line(d.span.start).0);
    let settings = lint::settings(file)
        .map_err(|d| Failure::usage(format!("{}: {}", place(&d), d.message)).help(VerbRemedy::CheckDirective))?;
    for unknown in lint::unknown_rules(file) {
        let text = format!("{}: {}", place(&unknown), unknown.message);
        terminal::warning(rbuild_engine::Warning { text, help: unknown.help });
    }
    Ok(settings)
}

/// The images of the store that a build with this policy uses, and those that it is pulling.
pub struct KnownImages<'a> {
    pub store: &'a Store,
    pub policy: PullPolicy,
    pub network: Option<&'a NetworkAccess<'a>>,
}

impl KnownImages<'_> {
    /// Returns the facts about a base image. `platform` is the value of `FROM --platform`.
    fn of_name(&self, parameters: &Parameters, name: &str, platform: Option<&str>) -> Option<BaseFacts> {
        let platform = platform.and_then(|text| text.parse().ok());
        let wanted = platform.as_ref().unwrap_or(&parameters.platform);
        if let Some(context) = parameters.context_named(name, wanted) {
            return self.of_context(context, wanted);
        }
        let config = self.config(name.parse().ok()?, wanted)?;
        let own = config.platform();
        let foreign = (!wanted.runs(&own)).then(|| own.to_string());
        Some(BaseFacts { foreign, ..facts(config) })
    }

    /// Returns the facts about a named context. As in BuildKit, its image may have any platform.
    fn of_context(&self, context: &NamedContext, platform: &Platform) -> Option<BaseFacts> {
        Some(match &context.source {
            ContextSource::Image(image) => facts(self.config(image.name.clone(), platform)?),
            ContextSource::Directory(_) | ContextSource::Scratch => BaseFacts::default(),
        })
    }

    /// Errors are ignored here: the build fails anyway if the store cannot be read.
    fn config(&self, name: ImageName, platform: &Platform) -> Option<ImageConfig> {
        let wanted = PlatformImage { name, platform: platform.clone() };
        if let Some(image) = self.network.and_then(|network| network.incoming(&wanted)) {
            return Some(image.config);
        }
        Some(rbuild_engine::stored_image(self.store, &wanted, self.policy).ok()??.config)
    }
}

/// Returns the facts in the configuration of an image.
fn facts(image: ImageConfig) -> BaseFacts {
    let config = image.config;
    BaseFacts { env: config.env, has_shell: !config.shell.is_empty(), triggers: config.on_build, foreign: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_as_recorded() {
        let lines: Vec<String> = (1..5).map(|number| format!(" - Rule: message (line {number})\n")).collect();
        let text = [1, 3, 4].map(|count| summary(&lines[..count]));
        rbuild_testkit::assert_recorded!("lint-summary", text.join("\n"));
    }
}
