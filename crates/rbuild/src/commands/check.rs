//! What a Dockerfile says of itself, without building it: `--check`, `--call=check|outline|targets`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use rbuild_dockerfile::ast::{Comment, Dockerfile, Op, Stage};
use rbuild_dockerfile::lint::{self, Facts, Settings, Warning};
use rbuild_dockerfile::{Diagnostic, MountKind, Span, parse, parse_mount};
use rbuild_engine::BuildRequest;
use rbuild_image::ImageConfig;
use rbuild_source::Ignore;
use rbuild_store::Store;
use serde_json::{Value, json};

use crate::exit::{Failure, code};
use crate::ui::diagnostics::{self, Source};
use crate::ui::terminal;

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Build,
    Check,
    Outline,
    Targets,
}

/// Reads `check`, `outline,format=json` and the like; whether JSON is wanted.
pub fn parse_call(text: &str) -> Result<(Call, bool), Failure> {
    let (name, format) = text.split_once(',').map_or((text, None), |(n, f)| (n, Some(f)));
    let json = match format {
        None | Some("format=text") => false,
        Some("format=json") => true,
        Some(other) => return Err(Failure::usage(format!("--call {text}: `{other}` is not a format"))),
    };
    let call = match name {
        "build" => Call::Build,
        "check" | "lint" => Call::Check,
        "outline" => Call::Outline,
        "targets" => Call::Targets,
        other => {
            let failure = Failure::usage(format!("--call: `{other}` is not a call"));
            return Err(failure.help("the calls are build, check, outline and targets"));
        }
    };
    Ok((call, json))
}

pub fn call(request: &BuildRequest, store: &Store, call: Call, json: bool) -> Result<u8, Failure> {
    let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
    let source = Source::new(&request.dockerfile_name, &text);
    let file = match parse(&request.dockerfile) {
        Ok(file) => file,
        Err(errors) => {
            errors.iter().for_each(|d| terminal::err(&diagnostics::diagnostic(d, &source, terminal::colours())));
            return Ok(code::USAGE);
        }
    };
    match call {
        Call::Build => Ok(code::OK),
        Call::Check => check(&file, request, store, &source, json),
        Call::Targets => {
            targets(&file, json);
            Ok(code::OK)
        }
        Call::Outline => outline(&file, request, json),
    }
}

/// The warnings for a file, and whether they are to fail the build.
pub fn warnings(file: &Dockerfile, request: &BuildRequest, store: &Store) -> Result<(Vec<Warning>, bool), Failure> {
    let given = request.parameters.build_args.iter().rev().find(|(k, _)| k == "BUILDKIT_DOCKERFILE_CHECK");
    let settings = match given {
        Some((_, text)) => {
            Settings::parse(text).map_err(|e| Failure::usage(format!("BUILDKIT_DOCKERFILE_CHECK: {e}")))?
        }
        None => lint::settings(file).map_err(|(_, e)| Failure::usage(format!("the check directive: {e}")))?,
    };
    // The rules ask once a stage; the store answers once a name.
    let known: RefCell<HashMap<String, Option<ImageConfig>>> = RefCell::default();
    let image = |name: &str| {
        let find = || store.named_image(&name.parse().ok()?).ok().map(|image| image.config);
        known.borrow_mut().entry(name.to_string()).or_insert_with(find).clone()
    };
    let ignore = request.context.as_ref().map_or("", |c| c.ignore.as_str());
    let ignore = Ignore::parse(ignore).unwrap_or_default();
    // A file that something takes back in may be meant; the rule keeps out of it.
    let ignored = |path: &str| !ignore.has_negations() && ignore.excludes(path);
    let automatic = rbuild_plan::automatic_args(&request.parameters, "default");
    let wanted = &request.parameters.platform;
    let facts = Facts {
        base_env: &|name| image(name).map(|c| c.config.env),
        foreign_base: &|name| image(name).map(|c| c.platform()).filter(|p| !wanted.runs(p)).map(|p| p.to_string()),
        ignored: &ignored,
        automatic: &automatic,
    };
    Ok((lint::check(file, &facts, &settings), settings.error))
}

fn check(
    file: &Dockerfile,
    request: &BuildRequest,
    store: &Store,
    source: &Source<'_>,
    json: bool,
) -> Result<u8, Failure> {
    let (warnings, _) = warnings(file, request, store)?;
    if json {
        let list: Vec<Value> = warnings.iter().map(|w| warning_json(w, source)).collect();
        print_json(&json!({ "warnings": list, "sources": [{ "filename": source.name }] }));
    } else if warnings.is_empty() {
        terminal::out("Check complete, no warnings found.\n");
    } else {
        for w in &warnings {
            let d = Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message)).help(page(w));
            terminal::out(&(diagnostics::warning(&d, source, false) + "\n"));
        }
        let count = warnings.len();
        let noun = if count == 1 { "warning has" } else { "warnings have" };
        terminal::out(&format!("Check complete, {count} {noun} been found!\n"));
    }
    Ok(if warnings.is_empty() { code::OK } else { code::FAILED })
}

fn page(w: &Warning) -> String {
    format!("see docs/rules/{}.md", w.rule.name)
}

/// Line and column of a byte, from 1 and from 0, as the protocol of editors counts them.
fn position(source: &Source<'_>, at: usize) -> Value {
    let (line, start) = source.line(at);
    json!({ "line": line, "character": at - start })
}

fn location(span: Span, source: &Source<'_>) -> Value {
    json!({
        "sourceIndex": 0,
        "ranges": [{ "start": position(source, span.start), "end": position(source, span.end) }],
    })
}

fn warning_json(w: &Warning, source: &Source<'_>) -> Value {
    json!({
        "ruleName": w.rule.name,
        "description": w.rule.description,
        "url": page(w).trim_start_matches("see "),
        "detail": w.message,
        "location": location(w.span, source),
    })
}

fn print_json(value: &Value) {
    terminal::out(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}

/// What the comments directly above say of `name`, if they begin with it.
fn description(comments: &[Comment], name: &str) -> String {
    let lines: Vec<&str> = comments.iter().map(|c| c.text.as_str()).collect();
    let start = lines.iter().rposition(|l| l.is_empty()).map_or(0, |i| i + 1);
    let text = lines[start..].join(" ");
    match text.split_once(' ') {
        Some((first, rest)) if first.eq_ignore_ascii_case(name) => rest.trim().to_string(),
        _ => String::new(),
    }
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

/// The stages that a target is made of: itself last, before it in the order of the file those that it stands on,
/// copies from or mounts.
fn needed<'a>(file: &'a Dockerfile, request: &BuildRequest) -> Result<Vec<&'a Stage>, Failure> {
    let find = |name: &str, before: usize| {
        let by_name = file.stages[..before]
            .iter()
            .rposition(|s| s.from.name.as_ref().is_some_and(|n| n.text.eq_ignore_ascii_case(name)));
        by_name.or_else(|| name.parse().ok().filter(|i| *i < before))
    };
    let count = file.stages.len();
    let target = match &request.parameters.target {
        None => count - 1,
        Some(target) => find(target, count).ok_or_else(|| Failure::usage(format!("there is no stage `{target}`")))?,
    };
    let mut needed = BTreeSet::new();
    let mut open = vec![target];
    while let Some(i) = open.pop() {
        if !needed.insert(i) {
            continue;
        }
        open.extend(find(&file.stages[i].from.image.text, i));
        for instruction in &file.stages[i].instructions {
            match &instruction.op {
                Op::Copy(copy) => open.extend(copy.from.as_ref().and_then(|w| find(&w.text, count))),
                Op::Run(run) => {
                    let mounts = run.mounts.iter().filter_map(|w| parse_mount(&w.text, w.span).ok());
                    open.extend(mounts.filter_map(|m| find(&m.from?, count)));
                }
                _ => {}
            }
        }
    }
    needed.remove(&target);
    Ok(needed.into_iter().chain([target]).map(|i| &file.stages[i]).collect())
}

fn outline(file: &Dockerfile, request: &BuildRequest, json: bool) -> Result<u8, Failure> {
    let stages = needed(file, request)?;
    let given =
        |name: &str| request.parameters.build_args.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    let mut args: Vec<[String; 3]> = Vec::new();
    let (mut secrets, mut ssh, mut caches) = (Vec::new(), Vec::new(), Vec::new());
    for i in file.global_args.iter().chain(stages.iter().flat_map(|s| &s.instructions)) {
        match &i.op {
            Op::Arg(decls) => {
                for d in decls {
                    let value = given(&d.name.text).or(d.default.as_ref().map(|v| v.text.clone())).unwrap_or_default();
                    let about = description(&i.comments, &d.name.text);
                    match args.iter_mut().find(|a| a[0] == d.name.text) {
                        // Declared again in the stage: the global default stands unless there is a new one.
                        Some(known) => {
                            for (old, new) in known[1..].iter_mut().zip([value, about]) {
                                if !new.is_empty() {
                                    *old = new;
                                }
                            }
                        }
                        None => args.push([d.name.text.clone(), value, about]),
                    }
                }
            }
            Op::Run(run) => {
                for m in run.mounts.iter().filter_map(|w| parse_mount(&w.text, w.span).ok()) {
                    let id = m.id.or(m.target).unwrap_or_else(|| "default".into());
                    let list = match m.kind {
                        MountKind::Secret => &mut secrets,
                        MountKind::Ssh => &mut ssh,
                        MountKind::Cache => &mut caches,
                        MountKind::Bind | MountKind::Tmpfs => continue,
                    };
                    if !list.iter().any(|(known, _)| *known == id) {
                        list.push((id, m.required));
                    }
                }
            }
            _ => {}
        }
    }
    let stage = stages[stages.len() - 1];
    let name = stage.from.name.as_ref().map(|n| n.text.to_lowercase());
    let about = name.as_deref().map_or(String::new(), |n| description(&stage.comments, n));
    if json {
        let list = |items: &[(String, bool)]| -> Vec<Value> {
            items.iter().map(|(id, required)| json!({ "name": id, "required": required })).collect()
        };
        print_json(&json!({
            "name": name,
            "description": about,
            "args": args.iter().map(|[n, v, d]| json!({"name": n, "value": v, "description": d})).collect::<Vec<_>>(),
            "secrets": list(&secrets),
            "ssh": list(&ssh),
            "cache": caches.iter().map(|(id, _)| json!({ "ID": id })).collect::<Vec<_>>(),
        }));
        return Ok(code::OK);
    }
    let mut text = format!("TARGET:      {}\n", name.as_deref().unwrap_or("default"));
    if !about.is_empty() {
        text.push_str(&format!("DESCRIPTION: {about}\n"));
    }
    if !args.is_empty() {
        let rows: Vec<Vec<String>> = args.into_iter().map(Vec::from).collect();
        text.push('\n');
        text.push_str(&terminal::table(&["BUILD ARG", "VALUE", "DESCRIPTION"], &rows));
    }
    for (heading, items) in [("SECRET", &secrets), ("SSH", &ssh), ("CACHE", &caches)] {
        if !items.is_empty() {
            let required = |r: &bool| if *r { "true".to_string() } else { String::new() };
            let rows: Vec<Vec<String>> = items.iter().map(|(id, r)| vec![id.clone(), required(r)]).collect();
            text.push('\n');
            text.push_str(&terminal::table(&[heading, "REQUIRED"], &rows));
        }
    }
    terminal::out(&text);
    Ok(code::OK)
}
