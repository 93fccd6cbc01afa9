//! The verb `build`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use rbuild_engine::{
    BuildError, BuildRequest, Event, Events, Finished, Output, Prepared, Target, binds, execute, prepare,
};
use rbuild_image::{Digest, MediaType};
use rbuild_linux::Destination;
use rbuild_sandbox::{Cancel, Restore, World, enter, records_owners};
use rbuild_store::Store;

use serde_json::{Value, json};

use crate::args::{BuildArgs, ProgressMode};
use crate::commands::check::{self, Call, parse_call};
use crate::commands::verify;
use crate::exit::{Failure, build_code, code};
use crate::input::output;
use crate::input::request::BuildInput;
use crate::input::settings::{Settings, owners};
use crate::progress::{Mode, Service, draw};
use crate::ui::diagnostics::{self, Source};
use crate::ui::terminal;
use crate::ui::timings_html;

pub fn build(settings: &Settings, args: BuildArgs) -> Result<u8, Failure> {
    for flag in args.left_out.given() {
        terminal::err(&format!("warning: {flag} is not supported yet and does nothing\n"));
    }
    let store = settings.open()?;
    let BuildInput { request, _arrived } = BuildInput::read(&args, &store, records_owners(settings.rung))?;
    let reports = Reports::open(&args)?;
    let text = rbuild_dockerfile::readable(&request.dockerfile).0.into_owned();
    let name = request.dockerfile_name.clone();
    let source = Source::new(&name, &text);
    let mode = match args.progress {
        _ if args.quiet => Mode::Quiet,
        Some(ProgressMode::Quiet) => Mode::Quiet,
        Some(ProgressMode::Tty) => Mode::Tty,
        Some(ProgressMode::Rawjson) => Mode::RawJson,
        Some(ProgressMode::Github) => Mode::Groups(Service::Github),
        Some(ProgressMode::Gitlab) => Mode::Groups(Service::Gitlab),
        None | Some(ProgressMode::Auto) if terminal::redraws() => Mode::Tty,
        None | Some(ProgressMode::Auto | ProgressMode::Plain) => Mode::Plain,
    };
    let secrets = request.secret_values();
    let report = |e: &BuildError| {
        if matches!(e, BuildError::Told) {
            return code::FAILED;
        }
        terminal::err(&secrets.mask(diagnostics::build_error(e, &source, terminal::colours())));
        build_code(e)
    };
    let (asked, json) = if args.check { (Call::Check, false) } else { parse_call(&args.call)? };
    if asked != Call::Build {
        return check::call(&request, &store, asked, json);
    }
    let lint = lint(&request, &store, &source)?;
    if let Lint::Fails(code) = lint {
        return Ok(code);
    }
    let ended = if args.verify {
        verify::verify(settings, &args, request, &store, mode, &reports, &report)?
    } else {
        let ended = once(settings, &args, &request, &store, mode, &report);
        if let Some(dest) = &reports.timings {
            write_timings(&store, &request, dest)?;
        }
        let ended = ended?;
        if let Ended::Made(finished) = &ended {
            conclude(&args, &request, &store, finished, &reports)?;
        }
        ended
    };
    lint.tell(mode);
    match ended {
        Ended::Made(_) => Ok(code::OK),
        Ended::Failed(code) => Ok(code),
    }
}

/// How a build ended. What there is to say of a failure has been said.
pub enum Ended {
    Made(Finished),
    Failed(u8),
}

/// One build from request to result, with its progress.
pub fn once(
    settings: &Settings,
    args: &BuildArgs,
    request: &BuildRequest,
    store: &Store,
    mode: Mode,
    report: &dyn Fn(&BuildError) -> u8,
) -> Result<Ended, Failure> {
    let (sender, events) = channel();
    let sender = Events::new(sender).masking(request.secret_values());
    let plans = request.plans();
    let prepared: Vec<Prepared> = match plans.iter().map(|plan| prepare(request, plan, store, &sender)).collect() {
        Ok(prepared) => prepared,
        Err(e) => {
            drop(sender);
            draw(&events, mode, args.explain);
            return Ok(Ended::Failed(report(&e)));
        }
    };
    let answer = match &prepared[..] {
        [only] => only.answer(request, store, &sender),
        _ => Ok(None),
    };
    match answer {
        Ok(None) => run_builder(settings, args, request, &prepared, store, (sender, events), mode, report),
        Ok(Some(finished)) => {
            drop(sender);
            draw(&events, mode, args.explain);
            Ok(Ended::Made(finished))
        }
        Err(e) => Ok(Ended::Failed(report(&e))),
    }
}

/// The page of the build that has just ended, well or not.
fn write_timings(store: &Store, request: &BuildRequest, dest: &Destination) -> Result<(), Failure> {
    let logs = store.build_logs()?;
    let Some(log) = logs.iter().find(|log| log.id == request.build_id) else { return Ok(()) };
    dest.write(timings_html::html(log).as_bytes()).map_err(|e| Failure::new(format!("the timings: {e}")))
}

/// What a build tells in files of its own, open before it begins.
pub struct Reports {
    timings: Option<Destination>,
    metadata: Option<Destination>,
    id: Option<Destination>,
}

impl Reports {
    fn open(args: &BuildArgs) -> Result<Reports, Failure> {
        let open = |what, path: &Option<PathBuf>| path.as_ref().map(|path| output::file(what, path)).transpose();
        Ok(Reports {
            timings: open("the timings", &args.timings)?,
            metadata: open("the metadata file", &args.metadata_file)?,
            id: open("the id file", &args.iidfile)?,
        })
    }
}

/// What the rules say of the Dockerfile before it is built.
enum Lint {
    Warnings(Vec<String>),
    /// `check=error=true`, and there are warnings; they have been shown.
    Fails(u8),
}

fn lint(request: &BuildRequest, store: &Store, source: &Source<'_>) -> Result<Lint, Failure> {
    // Errors in the file are told by the build itself.
    let Ok(file) = rbuild_dockerfile::parse(&request.dockerfile) else { return Ok(Lint::Warnings(Vec::new())) };
    let (warnings, fails) = check::warnings(&file, request, store)?;
    if fails && !warnings.is_empty() {
        for w in &warnings {
            let d = rbuild_dockerfile::Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message));
            terminal::err(&request.secret_values().mask(diagnostics::diagnostic(&d, source, terminal::colours())));
        }
        terminal::error("the Dockerfile asks for warnings to be errors (check=error=true)", None);
        return Ok(Lint::Fails(code::FAILED));
    }
    let text = |w: &rbuild_dockerfile::lint::Warning| {
        let text = format!(" - {}: {} (line {})\n", w.rule.name, w.message, source.line(w.span.start).0);
        request.secret_values().mask(text)
    };
    Ok(Lint::Warnings(warnings.iter().map(text).collect()))
}

impl Lint {
    /// After a build, well or not, the first few; the rest is what `--check` is for.
    fn tell(&self, mode: Mode) {
        let Lint::Warnings(list) = self else { return };
        if list.is_empty() || mode == Mode::Quiet {
            return;
        }
        let noun = if list.len() == 1 { "warning" } else { "warnings" };
        let more = if list.len() > 3 { "; --check shows all" } else { "" };
        terminal::err(&format!(
            "{} {noun} found{more}:\n{}",
            list.len(),
            list.iter().take(3).cloned().collect::<String>()
        ));
    }
}

/// The part that needs a namespace: a builder process does it, and says through a pipe what it made.
#[allow(clippy::too_many_arguments)]
fn run_builder(
    settings: &Settings,
    args: &BuildArgs,
    request: &BuildRequest,
    prepared: &[Prepared],
    store: &Store,
    (sender, events): (Events, Receiver<Event>),
    mode: Mode,
    report: &dyn Fn(&BuildError) -> u8,
) -> Result<Ended, Failure> {
    let world = World {
        store: settings.root.clone(),
        binds: binds(request),
        carrier: request.carrier.clone(),
        commands: prepared.iter().any(Prepared::has_commands),
    };
    let _restore = request.shell_on_error.then(Restore::of_stdin);
    let (mut answer, mut answer_writer) = std::io::pipe().map_err(|e| Failure::new(format!("pipe: {e}")))?;
    let ended = enter(&world, settings.rung, |builder| {
        let explain = args.explain;
        let mut drawing = Some(std::thread::spawn(move || draw(&events, mode, explain)));
        let cancel = Cancel::default();
        let result = builder.map_err(BuildError::from).and_then(|builder| {
            let stop = cancel.clone();
            builder.on_stop(move || stop.cancel());
            let store = store.moved(&builder.path(Path::new(rbuild_sandbox::STORE)))?.with_owners(owners(&builder))?;
            let stop = cancel.clone();
            let events = sender.clone();
            let store = store
                .stopped_by(move || stop.is_cancelled())
                .telling(move |text| events.send(Event::Warning { text: text.into() }));
            execute(request, prepared, &store, sender, cancel, &builder, |e| {
                drawing.take().map(std::thread::JoinHandle::join);
                report(e);
                terminal::err("a shell in the container of the failed step; the build ends when it does\n");
            })
        });
        drawing.map(std::thread::JoinHandle::join);
        match result {
            Ok(finished) => {
                let image = finished.image.map(|(id, manifest)| format!("{id} {manifest}")).unwrap_or_default();
                let _ = answer_writer.write_all(image.as_bytes());
                i32::from(code::OK)
            }
            Err(e) => i32::from(report(&e)),
        }
    })?;
    if ended.stopped && ended.code != 0 {
        terminal::error("interrupted", None);
        return Ok(Ended::Failed(code::INTERRUPTED));
    }
    if ended.code != 0 {
        if ended.code > 128 {
            let help = "the kernel may have run out of memory; see dmesg";
            return Err(
                Failure::new(format!("the builder process was killed (signal {})", ended.code - 128)).help(help)
            );
        }
        return Ok(Ended::Failed(ended.code as u8));
    }
    // This process's own copy must close before the end of the answer can be seen.
    drop(answer_writer);
    let mut text = String::new();
    answer.read_to_string(&mut text).map_err(|e| Failure::new(format!("the builder's answer: {e}")))?;
    let digests: Vec<Digest> = text.split_whitespace().filter_map(|d| d.parse().ok()).collect();
    let image = if let [id, manifest] = digests[..] { Some((id, manifest)) } else { None };
    Ok(Ended::Made(Finished { image }))
}

/// What `docker buildx build --metadata-file` writes, as far as there is something to say.
fn metadata(request: &BuildRequest, store: &Store, finished: &Finished) -> Result<Value, Failure> {
    let mut all = json!({"buildx.build.ref": format!("rbuild/{}", request.build_id)});
    if let Some((id, manifest)) = &finished.image {
        let image = store.image(manifest)?;
        let mut descriptor = json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "digest": manifest.to_string(),
            "size": image.manifest_size,
        });
        if !request.annotations.is_empty() {
            let annotations = request.annotations.iter().map(|(k, v)| (k.clone(), json!(v)));
            descriptor["annotations"] = Value::Object(annotations.collect());
        }
        all["containerimage.config.digest"] = json!(id.to_string());
        all["containerimage.descriptor"] = descriptor;
        all["containerimage.digest"] = json!(manifest.to_string());
    }
    if !request.tags.is_empty() {
        let names: Vec<String> = request.tags.iter().map(|tag| tag.to_string()).collect();
        all["image.name"] = json!(names.join(","));
    }
    Ok(all)
}

/// What is said and written when all went well.
pub fn conclude(
    args: &BuildArgs,
    request: &BuildRequest,
    store: &Store,
    finished: &Finished,
    reports: &Reports,
) -> Result<(), Failure> {
    for output in &request.outputs {
        if let Target::File(dest) = &output.target {
            dest.publish().map_err(|e| Failure::new(format!("the output {}: {e}", dest.path().display())))?;
        }
    }
    if let Some(dest) = &reports.metadata {
        let text = serde_json::to_vec_pretty(&metadata(request, store, finished)?).unwrap_or_default();
        dest.write(&text).map_err(|e| Failure::new(format!("the metadata file: {e}")))?;
    }
    if let (Some(dest), Some((id, _))) = (&reports.id, &finished.image) {
        dest.write(id.to_string().as_bytes()).map_err(|e| Failure::new(format!("the id file: {e}")))?;
    }
    // Of JSON, every line is a document.
    let quiet = args.quiet || matches!(args.progress, Some(ProgressMode::Quiet | ProgressMode::Rawjson));
    match finished.image {
        Some((id, _)) if args.quiet => terminal::out(&format!("{id}\n")),
        Some((id, _)) if !quiet => {
            let names: Vec<String> = request.tags.iter().map(|t| t.familiar()).collect();
            let names = if names.is_empty() {
                "without a name (give one with -t)".into()
            } else {
                format!("as {}", names.join(", "))
            };
            terminal::err(&format!("image {id} is in the local store {names}\n"));
        }
        _ => {}
    }
    if !quiet {
        for place in request.outputs.iter().filter_map(place_of) {
            terminal::err(&format!("wrote {place}\n"));
        }
    }
    Ok(())
}

/// The file or directory that an output was written to; none for the store and for standard output.
fn place_of(output: &Output) -> Option<String> {
    let path = match &output.target {
        Target::Store => return None,
        Target::Directory(dir) => dir.path(),
        Target::File(file) => file.path(),
    };
    path.is_absolute().then(|| path.display().to_string())
}
