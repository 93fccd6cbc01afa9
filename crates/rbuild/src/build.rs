//! The verb `build`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use rbuild_engine::{BuildError, BuildRequest, Event, Events, Executor, Finished, Prepared, prepare};
use rbuild_image::{Digest, Platform};
use rbuild_plan::Network;
use rbuild_sandbox::{Cancel, World, enter};
use rbuild_store::Store;

use crate::args::{BuildArgs, ProgressMode};
use crate::call::{self, Call, parse_call};
use crate::exit::{Failure, build_code, code};
use crate::progress::{Mode, draw};
use crate::render::{self, Source};
use crate::{output, print};

pub fn build(root: &Path, args: BuildArgs) -> Result<u8, Failure> {
    let request = request(&args)?;
    let text = String::from_utf8_lossy(&request.dockerfile).into_owned();
    let source = Source::new(&request.dockerfile_name, &text);
    let mode = if args.quiet || args.progress == ProgressMode::Quiet { Mode::Quiet } else { Mode::Plain };
    let report = |e: &BuildError| {
        print::err(&render::build_error(e, &source, print::colours()));
        build_code(e)
    };
    let store = Store::open(root)?;
    let (asked, json) = if args.check { (Call::Check, false) } else { parse_call(&args.call)? };
    if asked != Call::Build {
        return call::call(&request, &store, asked, json);
    }
    let lint = lint(&request, &store, &source)?;
    if let Lint::Fails(code) = lint {
        return Ok(code);
    }
    let (sender, events) = channel();
    let sender = Events::new(sender);
    let prepared = match prepare(&request, &store, &sender) {
        Ok(prepared) => prepared,
        Err(e) => {
            drop(sender);
            draw(&events, mode);
            return Ok(report(&e));
        }
    };
    match prepared.answer(&request, &store, &sender) {
        Ok(None) => {}
        Ok(Some(finished)) => {
            drop(sender);
            draw(&events, mode);
            return conclude(&args, &request, &finished).inspect(|_| lint.tell(mode));
        }
        Err(e) => return Ok(report(&e)),
    }
    let code = run_builder(root, &args, &request, &prepared, &store, (sender, events), mode, &report)?;
    if code == code::OK {
        lint.tell(mode);
    }
    Ok(code)
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
    let (warnings, fails) = call::warnings(&file, request, store)?;
    if fails && !warnings.is_empty() {
        for w in &warnings {
            let d = rbuild_dockerfile::Diagnostic::new(w.span, format!("{}: {}", w.rule.name, w.message));
            print::err(&render::diagnostic(&d, source, print::colours()));
        }
        print::error("the Dockerfile asks for warnings to be errors (check=error=true)", None);
        return Ok(Lint::Fails(code::FAILED));
    }
    let text = |w: &rbuild_dockerfile::lint::Warning| {
        format!(" - {}: {} (line {})\n", w.rule.name, w.message, source.line(w.span.start).0)
    };
    Ok(Lint::Warnings(warnings.iter().map(text).collect()))
}

impl Lint {
    /// After a build, the first few; the rest is what `--check` is for.
    fn tell(&self, mode: Mode) {
        let Lint::Warnings(list) = self else { return };
        if list.is_empty() || mode == Mode::Quiet {
            return;
        }
        let noun = if list.len() == 1 { "warning" } else { "warnings" };
        let more = if list.len() > 3 { "; --check shows all" } else { "" };
        print::err(&format!(
            "{} {noun} found{more}:\n{}",
            list.len(),
            list.iter().take(3).cloned().collect::<String>()
        ));
    }
}

/// The part that needs a namespace: a builder process does it, and says through a pipe what it made.
#[allow(clippy::too_many_arguments)]
fn run_builder(
    root: &Path,
    args: &BuildArgs,
    request: &BuildRequest,
    prepared: &Prepared,
    store: &Store,
    (sender, events): (Events, Receiver<Event>),
    mode: Mode,
    report: &dyn Fn(&BuildError) -> u8,
) -> Result<u8, Failure> {
    let world = World { store: root.to_path_buf(), context: request.context.clone() };
    let (mut answer, mut answer_writer) = std::io::pipe().map_err(|e| Failure::new(format!("pipe: {e}")))?;
    let ended = enter(&world, |builder| {
        let drawing = std::thread::spawn(move || draw(&events, mode));
        let cancel = Cancel::default();
        let result = builder.map_err(BuildError::from).and_then(|builder| {
            let stop = cancel.clone();
            builder.on_stop(move || stop.cancel());
            let store = store.moved(Path::new(rbuild_sandbox::STORE))?;
            let context = request.context.as_ref().map(|_| PathBuf::from(rbuild_sandbox::CONTEXT));
            Executor::new(request, prepared, &store, context.as_deref(), sender, cancel, &builder)?.run()
        });
        let _ = drawing.join();
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
        print::error("interrupted", None);
        return Ok(code::INTERRUPTED);
    }
    if ended.code != 0 {
        if ended.code > 128 {
            let help = "the kernel may have run out of memory; see dmesg";
            return Err(
                Failure::new(format!("the builder process was killed (signal {})", ended.code - 128)).help(help)
            );
        }
        return Ok(ended.code as u8);
    }
    // This process's own copy must close before the end of the answer can be seen.
    drop(answer_writer);
    let mut text = String::new();
    answer.read_to_string(&mut text).map_err(|e| Failure::new(format!("the builder's answer: {e}")))?;
    let digests: Vec<Digest> = text.split_whitespace().filter_map(|d| d.parse().ok()).collect();
    let image = if let [id, manifest] = digests[..] { Some((id, manifest)) } else { None };
    conclude(args, request, &Finished { image })
}

/// What is said and written when all went well.
fn conclude(args: &BuildArgs, request: &BuildRequest, finished: &Finished) -> Result<u8, Failure> {
    if let (Some(path), Some((id, _))) = (&args.iidfile, &finished.image) {
        std::fs::write(path, id.to_string())
            .map_err(|e| Failure::new(format!("the id file {}: {e}", path.display())))?;
    }
    let quiet = args.quiet || args.progress == ProgressMode::Quiet;
    match finished.image {
        Some((id, _)) if args.quiet => print::out(&format!("{id}\n")),
        Some((id, _)) if !quiet => {
            let names: Vec<String> = request.tags.iter().map(|t| t.familiar()).collect();
            let names = if names.is_empty() { "without a name (give one with -t)".into() } else { names.join(", ") };
            print::err(&format!("image {id} is in the local store, {names}\n"));
        }
        _ => {}
    }
    Ok(code::OK)
}

fn request(args: &BuildArgs) -> Result<BuildRequest, Failure> {
    if !["auto", "userns"].contains(&args.isolation.as_str()) {
        return Err(Failure::usage(format!("--isolation {} is not supported yet", args.isolation)));
    }
    let context = match args.context.as_str() {
        "-" => None,
        url if url.contains("://") || url.starts_with("git@") => {
            return Err(Failure::usage(format!("a context from {url} is not supported yet")));
        }
        dir => Some(context_dir(dir)?),
    };
    let (name, dockerfile, ignore) = dockerfile(args, context.as_deref())?;
    let mut build_args = Vec::new();
    for arg in &args.build_arg {
        match arg.split_once('=') {
            Some((k, v)) => build_args.push((k.to_string(), v.to_string())),
            // A name alone passes the environment's value on, if there is one.
            None => build_args.extend(std::env::var(arg).ok().map(|v| (arg.clone(), v))),
        }
    }
    let epoch_text = build_args
        .iter()
        .find(|(k, _)| k == "SOURCE_DATE_EPOCH")
        .map(|(_, v)| v.clone())
        .or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok())
        .filter(|t| !t.is_empty());
    let epoch = epoch_text
        .map(|t| t.parse().map_err(|_| Failure::usage(format!("SOURCE_DATE_EPOCH={t} is not a number of seconds"))))
        .transpose()?;
    let network = match args.network.as_str() {
        "default" | "host" => Network::Host,
        "none" => Network::None,
        other => return Err(Failure::usage(format!("`{other}` is not a network")).help("default, none or host")),
    };
    let mut tags = Vec::new();
    for tag in &args.tag {
        tags.push(tag.parse().map_err(|e: rbuild_image::ReferenceError| Failure::usage(e.to_string()))?);
    }
    let mut outputs = Vec::new();
    for text in &args.output {
        let parsed = output::parse(text)?;
        tags.extend(parsed.names.iter().cloned());
        outputs.push(parsed.open()?);
    }
    if outputs.iter().filter(|o| matches!(o.dest, rbuild_engine::Destination::Stdout(_))).count() > 1 {
        return Err(Failure::usage("only one output can go to standard output"));
    }
    let mut labels = Vec::new();
    for label in &args.label {
        let (k, v) = label.split_once('=').unwrap_or((label, ""));
        labels.push((k.to_string(), v.to_string()));
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(BuildRequest {
        dockerfile_name: name,
        dockerfile,
        context,
        ignore,
        target: args.target.clone(),
        build_args,
        labels,
        tags,
        network,
        platform: Platform::host(),
        no_cache: args.no_cache,
        secrets: args.secret.iter().map(|s| secret(s)).collect::<Result<_, _>>()?,
        outputs,
        jobs: args.jobs.unwrap_or(cores.max(4)),
        resolv_conf: resolv_conf(),
        now,
        epoch,
        build_id: format!("{now:x}-{:x}", std::process::id()),
    })
}

/// BuildKit's limit, so that a Dockerfile that builds here builds there.
const MAX_SECRET: usize = 500 * 1024;

/// Reads `id=x[,src=path|source=path][,env=NAME][,type=file|env]`. With neither source nor type, the variable of
/// that name if it is set, and else the file of that name.
fn secret(text: &str) -> Result<(String, Vec<u8>), Failure> {
    let bad = |what: String| Failure::usage(format!("--secret {text}: {what}"));
    let (mut id, mut file, mut env, mut kind) = (None, None, None, None);
    for field in output::csv_record(text).map_err(bad)? {
        let (key, value) =
            field.split_once('=').ok_or_else(|| bad(format!("`{field}` is not of the form key=value")))?;
        match key {
            "id" => id = Some(value.to_string()),
            "src" | "source" => file = Some(value.to_string()),
            "env" => env = Some(value.to_string()),
            "type" if value == "file" || value == "env" => kind = Some(value.to_string()),
            _ => return Err(bad(format!("`{field}` is not an option")).help("the options are id, src, env and type")),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("it has no id".into()))?;
    let variable = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
    let from_env = match (&env, &file, kind.as_deref()) {
        (Some(name), _, _) => Some(variable(name).ok_or_else(|| bad(format!("the variable {name} is not set")))?),
        (None, Some(name), Some("env")) => {
            Some(variable(name).ok_or_else(|| bad(format!("the variable {name} is not set")))?)
        }
        (None, None, None | Some("env")) => variable(&id),
        _ => None,
    };
    let value = match from_env {
        Some(value) => value,
        None => {
            let path = file.unwrap_or_else(|| id.clone());
            std::fs::read(&path).map_err(|e| bad(format!("{path}: {e}")))?
        }
    };
    if value.len() > MAX_SECRET {
        return Err(bad(format!("it has {} bytes; {MAX_SECRET} are the most", value.len())));
    }
    Ok((id, value))
}

fn context_dir(dir: &str) -> Result<PathBuf, Failure> {
    let path = std::fs::canonicalize(dir);
    match path {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(Failure::usage(format!("the context {dir} is a file")).help("give the directory that holds it")),
        Err(e) => Err(Failure::usage(format!("the context {dir}: {e}"))),
    }
}

/// The Dockerfile's name for people, its bytes, and the ignore file that applies.
fn dockerfile(args: &BuildArgs, context: Option<&Path>) -> Result<(String, Vec<u8>, String), Failure> {
    let from_stdin = args.file.as_deref() == Some("-") || (context.is_none() && args.file.is_none());
    if from_stdin {
        if context.is_none() && args.file.is_some() {
            return Err(Failure::usage("both the context and the Dockerfile cannot come from standard input"));
        }
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map_err(|e| Failure::new(format!("standard input: {e}")))?;
        let packed = rbuild_layer::detect(&bytes) != rbuild_layer::Compression::None;
        if context.is_none() && (packed || bytes.get(257..262) == Some(b"ustar")) {
            return Err(Failure::usage("a context from standard input is not supported yet"));
        }
        let ignore = context.map(|c| read_ignore(&c.join(".dockerignore"))).transpose()?.flatten();
        return Ok(("Dockerfile (standard input)".into(), bytes, ignore.unwrap_or_default()));
    }
    let Some(context) = context else {
        return Err(Failure::usage("a context from standard input together with -f is not supported yet"));
    };
    let path = match &args.file {
        Some(file) => PathBuf::from(file),
        None => {
            let usual = context.join("Dockerfile");
            let lower = context.join("dockerfile");
            if !usual.exists() && lower.exists() { lower } else { usual }
        }
    };
    let shown = match (&args.file, path.file_name()) {
        (None, Some(name)) if args.context == "." => name.to_string_lossy().into_owned(),
        (None, Some(name)) => Path::new(&args.context).join(name).to_string_lossy().into_owned(),
        _ => path.to_string_lossy().into_owned(),
    };
    let bytes = std::fs::read(&path).map_err(|e| {
        let failure = Failure::new(format!("the Dockerfile {shown}: {e}"));
        if e.kind() == std::io::ErrorKind::NotFound {
            return failure.help("name another file with -f FILE, or another directory as the context");
        }
        failure
    })?;
    let mut own = path.clone().into_os_string();
    own.push(".dockerignore");
    let ignore = match read_ignore(Path::new(&own))? {
        Some(text) => Some(text),
        None => read_ignore(&context.join(".dockerignore"))?,
    };
    Ok((shown, bytes, ignore.unwrap_or_default()))
}

fn read_ignore(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::new(format!("the ignore file {}: {e}", path.display()))),
    }
}

/// The resolver file for commands. Where only systemd's local stub is named, the file with the real servers.
fn resolv_conf() -> String {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    let mut servers = own.lines().filter_map(|l| l.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    if servers.peek().is_some() && servers.all(|s| s == "127.0.0.53") {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    own
}
