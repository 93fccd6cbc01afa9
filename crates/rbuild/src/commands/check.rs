//! `--check` and `--call=check|outline|targets`: analyses of a Dockerfile that build nothing.

use rbuild_dockerfile::ast::{Dockerfile, Stage};
use rbuild_dockerfile::lint::{self, BaseFacts, Facts, LintSettings, LintWarning, StageRole};
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::BuildRequest;
use rbuild_image::Platform;
use rbuild_plan::{Analysis, ContextSource, NamedContext, Parameters, StageUse};
use rbuild_source::Ignore;
use rbuild_store::Store;
use serde_json::{Value, json};

use crate::commands::outline::{Outline, description};
use crate::exit::{Failure, code};
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::terminal;

/// Value of `--call`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallMode {
    Build,
    Check,
    Outline,
    Targets,
}

/// Parses `NAME[,format=text|json]`. Returns the call, and true for JSON.
pub fn parse_call(text: &str) -> Result<(CallMode, bool), Failure> {
    let (name, format) = text.split_once(',').map_or((text, None), |(n, f)| (n, Some(f)));
    let json = match format {
        None | Some("format=text") => false,
        Some("format=json") => true,
        Some(other) => {
            return Err(Failure::usage(format!("--call {text}: `{other}` is neither format=text nor format=json")));
        }
    };
    let call = match name {
        "build" => CallMode::Build,
        "check" | "lint" => CallMode::Check,
        "outline" => CallMode::Outline,
        "targets" => CallMode::Targets,
        other => {
            let failure = Failure::usage(format!("--call {other}: unknown call"));
            return Err(failure.help("use build, check, outline or targets"));
        }
    };
    Ok((call, json))
}

/// Analyses a Dockerfile, prints the result and returns the exit code.
pub fn call(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    source: &SourceText<'_>,
    (call, json): (CallMode, bool),
) -> Result<u8, Failure> {
    match call {
        CallMode::Build => Ok(code::OK),
        CallMode::Check => match rbuild_plan::analyze(file, &request.parameters) {
            Ok(mut analysis) => {
                if request.parameters.target.is_none() {
                    // All stages are checked.
                    analysis
                        .stages
                        .iter_mut()
                        .filter(|s| **s == StageUse::Unneeded)
                        .for_each(|s| *s = StageUse::Needed);
                }
                let (warnings, _) = warnings(file, request, store, &analysis)?;
                Ok(show_warnings(&warnings, source, json))
            }
            Err(d) => Ok(mistake(&d, source)),
        },
        CallMode::Targets => {
            targets(file, json);
            Ok(code::OK)
        }
        CallMode::Outline => {
            let outline = match Outline::of(file, request) {
                Ok(outline) => outline,
                Err(d) => return Ok(mistake(&d, source)),
            };
            if json {
                print_json(&outline.json());
            } else {
                terminal::out(&outline.text());
            }
            Ok(code::OK)
        }
    }
}

/// Prints a mistake in the Dockerfile or in the choice of its target, and returns the exit code.
fn mistake(d: &Diagnostic, source: &SourceText<'_>) -> u8 {
    terminal::err(&diagnostics::diagnostic(d, source, terminal::colours()));
    code::USAGE
}

/// Returns the lint warnings for a Dockerfile, and true if they are to fail the build.
pub fn warnings(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    analysis: &Analysis<'_>,
) -> Result<(Vec<LintWarning>, bool), Failure> {
    let given = request.parameters.build_arg("BUILDKIT_DOCKERFILE_CHECK");
    let settings = match given {
        Some(text) => {
            LintSettings::parse(text).map_err(|e| Failure::usage(format!("BUILDKIT_DOCKERFILE_CHECK: {e}")))?
        }
        None => lint::settings(file).map_err(|d| {
            let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
            let (line, _) = SourceText::new(&request.dockerfile_name, &text).line(d.span.start);
            let place = format!("{}:{line}", request.dockerfile_name);
            Failure::usage(format!("the check directive at {place}: {}", d.message))
                .help("write `# check=skip=RULE,RULE;error=true`, or omit it")
        })?,
    };
    if given.is_none() {
        let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
        let source = SourceText::new(&request.dockerfile_name, &text);
        for unknown in lint::unknown_rules(file) {
            let (line, _) = source.line(unknown.span.start);
            let text = format!("the check directive at {}:{line}: {}", source.name, unknown.message);
            terminal::warning(rbuild_engine::Warning { text, help: unknown.help });
        }
    }
    let parameters = &request.parameters;
    let ignore = request.context.as_ref().map_or("", |c| c.ignore.as_str());
    let ignore = Ignore::parse(ignore).unwrap_or_default();
    // A negated pattern may re-include a file, so the rule is off if there are any.
    let ignored = |path: &str| !ignore.has_negations() && ignore.excludes(path);
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
    Ok((lint::check(file, &facts, &settings), settings.error))
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

/// Prints all warnings and returns the exit code.
fn show_warnings(warnings: &[LintWarning], source: &SourceText<'_>, json: bool) -> u8 {
    if json {
        let list: Vec<Value> = warnings.iter().map(|w| warning_json(w, source)).collect();
        print_json(&json!({ "warnings": list, "sources": [{ "filename": source.name }] }));
    } else if warnings.is_empty() {
        terminal::out("Check complete, no warnings found.\n");
    } else {
        for w in warnings {
            let help = format!("run `rbuild explain {}` for the reason and examples", w.rule.name);
            let d = Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message)).help(help);
            terminal::out(&(diagnostics::warning(&d, source, false) + "\n"));
        }
        let count = warnings.len();
        let noun = if count == 1 { "warning has" } else { "warnings have" };
        terminal::out(&format!("Check complete, {count} {noun} been found!\n"));
    }
    if warnings.is_empty() { code::OK } else { code::FAILED }
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

        "detail": w.message,
        "location": location(w.span, source),
    })
}

fn print_json(value: &Value) {
    terminal::out(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}

fn targets(file: &Dockerfile, json: bool) {
    let last = file.stages.len() - 1;
    let name = |i: usize, s: &Stage| s.from.name.as_ref().map_or(i.to_string(), |n| n.text.to_lowercase());
    let about = |s: &Stage| s.from.name.as_ref().map_or(String::new(), |n| description(&s.comments, &n.text));
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
