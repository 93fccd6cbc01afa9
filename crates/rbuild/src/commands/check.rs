//! `--check` and `--call=check|outline|targets`: analyses of a Dockerfile that build nothing.

use rbuild_dockerfile::ast::{Dockerfile, Stage};
use rbuild_dockerfile::lint::LintWarning;
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::{BuildError, BuildRequest};
use rbuild_plan::{StageUse, description};
use rbuild_store::Store;
use serde_json::{Value, json};

use crate::commands::{lint, outline};
use crate::exit::{Failure, build_code, code};
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::hints::{self, Hint, VerbRemedy};
use crate::ui::{annotations, terminal};

/// Value of `--call`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub mode: CallMode,
    /// True if the result is printed as JSON.
    pub json: bool,
}

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallMode {
    Build,
    Check,
    Outline,
    Targets,
}

impl Call {
    /// Parses `NAME[,format=text|json]`.
    pub fn parse(text: &str) -> Result<Call, Failure> {
        let (name, format) = text.split_once(',').map_or((text, None), |(n, f)| (n, Some(f)));
        let json = match format {
            None | Some("format=text") => false,
            Some("format=json") => true,
            Some(other) => {
                return Err(Failure::usage(format!("--call {text}: `{other}` is neither format=text nor format=json")));
            }
        };
        let mode = match name {
            "build" => CallMode::Build,
            "check" | "lint" => CallMode::Check,
            "outline" => CallMode::Outline,
            "targets" => CallMode::Targets,
            other => {
                let failure = Failure::usage(format!("--call {other}: unknown call"));
                return Err(failure.help(hints::use_one_of(&["build", "check", "outline", "targets"])));
            }
        };
        Ok(Call { mode, json })
    }
}

/// Analyzes a Dockerfile, prints the result and returns the exit code.
pub fn call(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    source: &SourceText<'_>,
    call: Call,
) -> Result<u8, Failure> {
    let json = call.json;
    match call.mode {
        CallMode::Build => Ok(code::OK),
        CallMode::Check => check(file, request, store, source, json),
        CallMode::Targets => {
            targets(file, json);
            Ok(code::OK)
        }
        CallMode::Outline => {
            let found = match rbuild_plan::outline(file, &request.parameters) {
                Ok(found) => found,
                Err(errors) => return Ok(mistakes(errors, source)),
            };
            if json {
                print_json(&outline::json(&found));
            } else {
                terminal::out(&outline::text(&found));
            }
            Ok(code::OK)
        }
    }
}

/// Prints mistakes in the Dockerfile or in the choice of the target, and returns the exit code.
fn mistakes(errors: Vec<Diagnostic>, source: &SourceText<'_>) -> u8 {
    let e = BuildError::Dockerfile(errors);
    terminal::err(&diagnostics::build_error(&e, source, terminal::colors()));
    terminal::annotate(|| annotations::errors(&e, source, &|text| text));
    build_code(&e)
}

/// Lints a Dockerfile, and plans the stages whose images are in the store. Without a target, all
/// stages are checked.
fn check(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    source: &SourceText<'_>,
    json: bool,
) -> Result<u8, Failure> {
    let settings = lint::settings(file, request)?;
    let plans = request.plans();
    let (mut analyses, mut errors) = (Vec::new(), Vec::new());
    for plan in &plans {
        let mut analysis = match rbuild_plan::analyze(file, plan) {
            Ok(analysis) => analysis,
            Err(found) => {
                errors = found;
                break;
            }
        };
        if plan.target.is_none() {
            analysis.stages.iter_mut().filter(|s| **s == StageUse::Unneeded).for_each(|s| *s = StageUse::Needed);
        }
        analyses.push((plan, analysis));
        match rbuild_engine::check(file, plan, store, request.pull) {
            Ok(()) => {}
            Err(BuildError::Dockerfile(found)) => {
                errors = found;
                break;
            }
            Err(other) => return Err(other.into()),
        }
    }
    let images = lint::KnownImages { store, policy: request.pull, network: None };
    let warnings = lint::warnings(file, request, &images, &analyses, &settings);
    show_warnings(&warnings, errors.first(), source, json);
    Ok(match (errors.is_empty(), warnings.is_empty()) {
        (false, _) => mistakes(errors, source),
        (true, false) => code::FAILED,
        (true, true) => code::OK,
    })
}

/// Prints all warnings. `error` is the first mistake that ended the check, if there is one; the
/// mistakes themselves are printed separately.
fn show_warnings(warnings: &[LintWarning], error: Option<&Diagnostic>, source: &SourceText<'_>, json: bool) {
    if json {
        let list: Vec<Value> = warnings.iter().map(|w| warning_json(w, source)).collect();
        let mut document = json!({ "warnings": list, "sources": [{ "filename": source.name }] });
        if let Some(d) = error {
            document["buildError"] = json!({ "message": d.message, "location": location(d.span, source) });
        }
        return print_json(&document);
    }
    for w in warnings {
        let explain = Hint::from(VerbRemedy::ExplainRule { rule: w.rule.name });
        terminal::out(&(diagnostics::warning(&lint::diagnostic(w), source, false) + &explain.line(false) + "\n"));
    }
    match warnings.len() {
        _ if error.is_some() => {}
        0 => terminal::out("Check complete, no warnings found.\n"),
        1 => terminal::out("Check complete, 1 warning has been found!\n"),
        count => terminal::out(&format!("Check complete, {count} warnings have been found!\n")),
    }
}

/// Returns the position of a byte offset: the line from 1 and the character from 0, as BuildKit
/// reports them.
fn position(source: &SourceText<'_>, at: usize) -> Value {
    let (line, start) = source.line(at);
    json!({ "line": line, "character": at - start })
}

fn location(span: Span, source: &SourceText<'_>) -> Value {
    json!({
        "sourceIndex": 0,
        "ranges": [{ "start": position(source, span.start), "end": position(source, span.end) }],
    })
}

/// Returns a warning with the fields of BuildKit. It has no `url`: the page of a rule is built in.
fn warning_json(w: &LintWarning, source: &SourceText<'_>) -> Value {
    json!({
        "ruleName": w.rule.name,
        "description": w.rule.description,

        "detail": lint::sentence(w),
        "location": location(w.span, source),
    })
}

fn print_json(value: &Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    // The escape is not changed in a log for GitHub.
    terminal::out(&text.replace("##[", r"#\u0023["));
}

fn targets(file: &Dockerfile, json: bool) {
    let last = file.stages.len() - 1;
    let name = |i: usize, s: &Stage| s.from.name.as_ref().map_or(i.to_string(), |n| n.text.to_lowercase());
    let about =
        |s: &Stage| s.from.name.as_ref().map_or(String::new(), |n| description(&s.comments, &n.text.to_lowercase()));
    if json {
        let list: Vec<Value> = file
            .stages
            .iter()
            .enumerate()
            .map(|(i, s)| {
                json!({
                    "name": s.from.name.as_ref().map(|n| n.text.to_lowercase()),
                    "default": i == last,
                    "description": about(s),
                    "base": s.from.image.text,
                })
            })
            .collect();
        return print_json(&json!({ "targets": list }));
    }
    let mark = |i: usize| if i == last { " (default)" } else { "" };
    let rows: Vec<Vec<String>> =
        file.stages.iter().enumerate().map(|(i, s)| vec![name(i, s) + mark(i), about(s)]).collect();
    terminal::out(&terminal::table(&["TARGET", "DESCRIPTION"], &rows));
}
