//! Lint rules: likely mistakes in valid Dockerfiles. Each rule has a page in docs/rules/.

mod catalog;
mod facts;
mod rules;
mod settings;
mod variables;

use crate::ast::{Comment, Dockerfile};
use crate::diagnostic::{Diagnostic, Span};
use crate::lines::name_and_value;

pub use catalog::*;
pub use facts::{BaseFacts, Facts, StageRole};
pub use rules::{json_mistake, may_name_secret};
pub use settings::{LintSettings, SettingsError};

/// Returns the warnings of all rules enabled by `settings`, ordered by position.
///
/// A comment `# check=skip=RULE` directly above an instruction only applies to that instruction.
pub fn check(file: &Dockerfile, facts: &Facts<'_>, settings: &LintSettings) -> Vec<LintWarning> {
    let mut found = Vec::new();
    rules::check(file, facts, &mut found);
    variables::check(file, facts, &mut found);
    let exceptions = exceptions(file);
    let built: Vec<bool> = (0..file.stages.len()).map(|stage| (facts.role)(stage) == StageRole::Built).collect();
    let is_built = |w: &LintWarning| {
        let stage = file.stages.partition_point(|stage| stage.span.start <= w.span.start);
        stage.checked_sub(1).is_none_or(|stage| built[stage])
    };
    found.retain(|w| !w.rule.built_stages || is_built(w));
    found.retain(|w| settings.enables(w.rule) && !excepted(&exceptions, w));
    found.sort_by_key(|w| (w.span.start, w.rule.name));
    found.dedup();
    found
}

/// Returns the settings of the `# check=` directive, or the defaults.
///
/// # Errors
///
/// Returns the first error in the directive.
pub fn settings(file: &Dockerfile) -> Result<LintSettings, Diagnostic> {
    match file.directives.iter().find(|d| d.name == "check") {
        Some(d) => LintSettings::parse(&d.value.text).map_err(|e| Diagnostic::new(d.value.span, e.to_string())),
        None => Ok(LintSettings::default()),
    }
}

/// Returns a warning for each unknown rule name in the settings of the file.
pub fn unknown_rules(file: &Dockerfile) -> Vec<Diagnostic> {
    let directive = file.directives.iter().filter(|d| d.name == "check");
    let directive = directive.filter_map(|d| Some((d.value.span, LintSettings::parse(&d.value.text).ok()?)));
    let mut found = Vec::new();
    for (span, settings) in
        directive.chain(exceptions(file).into_iter().map(|(start, _, s)| (Span::new(start, start), s)))
    {
        for name in settings.skip.iter().chain(&settings.experimental) {
            if !RULES.iter().any(|rule| rule.name.eq_ignore_ascii_case(name)) {
                let d = Diagnostic::new(span, format!("rule `{name}` does not exist"));
                found.push(d.suggest(name, RULES.iter().map(|rule| rule.name)));
            }
        }
    }
    found
}

/// Returns the settings in comments above instructions: (start, end, settings) of each instruction,
/// ordered by start.
fn exceptions(file: &Dockerfile) -> Vec<(usize, usize, LintSettings)> {
    let instructions = file.global_args.iter().chain(file.stages.iter().flat_map(|s| &s.instructions));
    let stages = file.stages.iter().map(|s| (s.span, &s.comments));
    let mut found: Vec<(usize, usize, LintSettings)> = instructions
        .map(|i| (i.span, &i.comments))
        .chain(stages)
        .filter_map(|(span, comments)| Some((span.start, span.end, exception(comments)?)))
        .collect();
    found.sort_by_key(|(start, ..)| *start);
    found
}

/// Returns the settings in the first comment that has some.
fn exception(comments: &[Comment]) -> Option<LintSettings> {
    let values = comments.iter().filter_map(|comment| name_and_value(&comment.text));
    let (_, value) = { values }.find(|(name, _)| name == "check")?;
    LintSettings::parse(value.split(' ').next()?).ok()
}

fn excepted(exceptions: &[(usize, usize, LintSettings)], warning: &LintWarning) -> bool {
    let at = warning.span.start;
    let before = exceptions.partition_point(|(start, ..)| *start <= at);
    exceptions[..before].last().is_some_and(|(_, end, settings)| at <= *end && !settings.enables(warning.rule))
}

#[cfg(test)]
mod tests;
