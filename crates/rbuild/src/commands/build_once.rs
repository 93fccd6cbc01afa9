//! One build from a prepared request to its result. Starts a builder process if anything must run.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use rbuild_dockerfile::ast::Dockerfile;
use rbuild_engine::{
    BuildError, BuildReport, BuildRequest, Event, Events, Export, NetworkAccess, Prepared, PreparedBuild, answer,
    answer_lent, binds, execute, prepare, warn_of_store,
};
use rbuild_image::MediaType;
use rbuild_linux::Destination;
use rbuild_linux::parallel::start;
use rbuild_sandbox::{Builder, BuilderConfig, BuilderExit, Cancel, GRACE, Restore, enter};
use rbuild_store::Store;
use rbuild_transport::RemoteCache;
use serde_json::{Value, json};

use crate::args::{BuildArgs, ProgressMode, RegistryFlags};
use crate::commands::fetcher::claims::StepClaims;
use crate::commands::fetcher::early_push::EarlyPusher;
use crate::commands::fetcher::layer_server::LayerServer;
use crate::commands::fetcher::pulls::Pulls;
use crate::commands::fetcher::pushes::PushCheck;
use crate::commands::in_builder::{killed, read_answer, store_in, unread};
use crate::commands::lint::Lint;
use crate::commands::result;
use crate::exit::{Failure, code, interrupted};
use crate::input::output;
use crate::input::settings::Settings;
use crate::progress::{Mode, draw};
use crate::ui::diagnostics::SourceText;
use crate::ui::hints::Hint;
use crate::ui::terminal;

/// Exit code of a builder whose build has to be repeated, because a layer of a cache could not be
/// unpacked.
const REPEAT: u8 = 75;

/// Outcome of a build.
pub enum BuildOutcome {
    Made(BuildReport),
    /// The exit code. The error has been printed.
    Failed(u8),
    /// Another machine has built steps meanwhile. The build has to be repeated with the caches as
    /// they are now.
    Waited,
}

impl BuildOutcome {
    pub fn exit_code(&self) -> u8 {
        match self {
            BuildOutcome::Made(_) => code::OK,
            BuildOutcome::Failed(code) => *code,
            BuildOutcome::Waited => code::FAILED,
        }
    }
}

/// Settings shared by the builds of one command: one build, or two with `--verify`.
pub struct BuildOnce<'a> {
    pub settings: &'a Settings,
    pub store: &'a Store,
    /// The parsed Dockerfile.
    pub file: &'a Dockerfile,
    pub source: &'a SourceText<'a>,
    pub mode: Mode,
    /// Shows the reason why each step runs or is cached.
    pub explain: bool,
    /// Settings of registries.
    pub flags: &'a RegistryFlags,
    /// Pulls images and downloads files.
    pub network: &'a NetworkAccess<'a>,
    /// The images that are being pulled.
    pub pulls: &'a Pulls<'a>,
    /// Uploads layers while they are packed.
    pub early: &'a EarlyPusher<'a>,
    /// Claims steps that are missing in a cache.
    pub claims: &'a StepClaims<'a>,
    /// Checks that the image may be pushed.
    pub push_check: &'a PushCheck<'a>,
    /// Pushes an image that was made without its layers.
    pub push_lent: &'a dyn Fn(&BuildReport) -> Result<(), Failure>,
    /// The lint rules. They may reject the Dockerfile once its images are known.
    pub lint: &'a Lint<'a>,
    /// Prints an error and returns its exit code.
    pub report: &'a dyn Fn(&BuildError) -> u8,
}

/// The events of a build.
struct EventChannel {
    sender: Events,
    events: Receiver<Event>,
}

impl BuildOnce<'_> {
    /// Builds a request and draws its progress. Starts a builder process only if the build cannot
    /// be answered entirely from the cache.
    pub fn build(&self, request: &BuildRequest) -> Result<BuildOutcome, Failure> {
        let outcome = loop {
            match self.prepare_and_build(request) {
                Ok(None) => {
                    self.pulls.end(true);
                    self.network.arrived();
                    request.caches.copy_layers();
                }
                Ok(Some(outcome)) => break Ok(outcome),
                Err(failure) => break Err(failure),
            }
        };
        self.pulls.end(matches!(outcome, Ok(BuildOutcome::Made(_))));
        self.network.arrived();
        outcome
    }

    /// Builds, once. Returns `None` if the image was to be pushed without its layers and cannot be,
    /// so that the build has to be repeated with them.
    fn prepare_and_build(&self, request: &BuildRequest) -> Result<Option<BuildOutcome>, Failure> {
        let (sender, events) = channel();
        let sender = Events::new(sender).masking(request.secret_values(), |help| Hint::from(help).to_string());
        let plans = request.plans();
        let prepared: Result<Vec<Prepared>, BuildError> =
            plans.iter().map(|plan| prepare(request, self.file, plan, self.store, &sender, self.network)).collect();
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                self.draw_failed(sender, &events);
                self.lint.run_after_error(request);
                return Ok(Some(BuildOutcome::Failed(self.fail(&e))));
            }
        };
        warn_of_store(&prepared, &sender);
        if let Some(refusal) = self.lint.refusal(request) {
            self.draw_failed(sender, &events);
            terminal::err(&refusal.text);
            terminal::annotate(|| refusal.annotations);
            return Ok(Some(BuildOutcome::Failed(code::FAILED)));
        }
        let answer = match &prepared[..] {
            [only] => answer(only, request, self.store, &sender),
            several if several.iter().all(Prepared::is_lent) => answer_lent(several, request, self.store, &sender),
            _ => Ok(None),
        };
        match answer {
            Ok(None) if prepared.iter().any(Prepared::is_lent) => Ok(None),
            Ok(None) if self.claims.has_waited(&prepared, || self.close_others())? => Ok(Some(BuildOutcome::Waited)),
            Ok(None) => {
                if prepared.iter().any(Prepared::has_open_steps) {
                    self.push_check.check(self.claims.written_to().map(RemoteCache::name))?;
                }
                self.build_in_builder(PreparedBuild { request, platforms: &prepared }, sender, events)
            }
            Ok(Some(finished)) => {
                drop(sender);
                draw(&events, self.mode, self.explain);
                self.made(finished)
            }
            Err(e) => {
                self.draw_failed(sender, &events);
                Ok(Some(BuildOutcome::Failed(self.fail(&e))))
            }
        }
    }

    /// Prints the lint warnings, and then an error, and returns its exit code. The last lines of a
    /// failed command are the last ones of all.
    fn fail(&self, e: &BuildError) -> u8 {
        self.lint.show(self.mode);
        (self.report)(e)
    }

    /// Pushes the image of a build if it was made without some of its layers. Returns `None` if the
    /// push fails.
    fn made(&self, finished: BuildReport) -> Result<Option<BuildOutcome>, Failure> {
        if finished.lent.is_empty() {
            return Ok(Some(BuildOutcome::Made(finished)));
        }
        match (self.push_lent)(&finished) {
            Ok(()) => Ok(Some(BuildOutcome::Made(finished))),
            Err(failure) if failure.is_interruption() => Err(failure),
            Err(failure) => {
                let cause = failure.message;
                terminal::err(&format!(
                    "note: the layers in registries are downloaded, because the push failed: {cause}\n"
                ));
                Ok(None)
            }
        }
    }

    /// Draws the events of a build that fails before it needs a builder process.
    fn draw_failed(&self, sender: Events, events: &Receiver<Event>) {
        sender.send(Event::Failed);
        drop(sender);
        draw(events, self.mode, self.explain);
    }

    /// Runs the steps in a builder process, which sends the IDs of the image back through a pipe.
    fn build_in_builder(
        &self,
        build: PreparedBuild<'_>,
        sender: Events,
        events: Receiver<Event>,
    ) -> Result<Option<BuildOutcome>, Failure> {
        let request = build.request;
        let lent = build.platforms.first().map_or(&[][..], Prepared::lent_base);
        // An image without the layers of its base is pushed as a whole.
        if lent.is_empty() {
            self.early.start(|| self.pulls.close());
        }
        let layers = self.layer_server(request, build.platforms);
        let config = self.builder_config(build, layers.as_ref());
        self.pulls.order(|image| build.platforms.iter().any(|platform| platform.needs_image(image)));
        let _restore = request.shell_on_error.then(Restore::of_stdin);
        let gave_up_layers = Cell::new(false);
        let (answer, mut answer_writer) = std::io::pipe().map_err(unread)?;
        let ended = enter(&config, self.settings.isolation, |builder| {
            let result = self.execute(
                build,
                builder.map_err(BuildError::from),
                EventChannel { sender, events },
                &gave_up_layers,
            );
            match result {
                Ok(finished) => {
                    let _ = serde_json::to_writer(&mut answer_writer, &finished);
                    i32::from(code::OK)
                }
                // The caller reports the reason.
                Err(BuildError::Canceled) => i32::from(code::INTERRUPTED),
                Err(_) if gave_up_layers.get() => i32::from(REPEAT),
                Err(e) => i32::from(self.fail(&e)),
            }
        })?;
        if let Some(layers) = layers {
            layers.end();
        }
        if ended.stopped || ended.code != 0 {
            return self.without_answer(&ended);
        }
        // The reader sees the end of the answer only after this process has closed its copy of the
        // writer.
        drop(answer_writer);
        let finished: BuildReport = read_answer(answer)?;
        let is_lent = finished.image.is_some_and(|image| !image.is_stored);
        let lent = if is_lent { lent.to_vec() } else { Vec::new() };
        self.made(BuildReport { lent, ..finished })
    }

    fn builder_config(&self, build: PreparedBuild<'_>, layers: Option<&LayerServer>) -> BuilderConfig {
        let kept = [self.early.process(), layers.map(LayerServer::process), self.claims.process()];
        BuilderConfig {
            store: self.settings.root.clone(),
            owners: self.store.owner_records().clone(),
            binds: binds(build.request),
            carrier: build.request.carrier.clone(),
            ports: Vec::new(),
            commands: build.platforms.iter().any(Prepared::has_commands),
            grace: GRACE,
            forwards_hangup: false,
            expendable: self.pulls.processes(),
            kept: kept.into_iter().flatten().collect(),
        }
    }

    /// Returns the outcome of a build whose builder made no image; `None` if it has to be repeated.
    fn without_answer(&self, ended: &BuilderExit) -> Result<Option<BuildOutcome>, Failure> {
        // An interrupted build publishes nothing, even if it succeeded before it could be stopped.
        if ended.stopped {
            terminal::error("interrupted", None);
            return Ok(Some(BuildOutcome::Failed(interrupted())));
        }
        match ended.code {
            signal if signal > 128 => Err(killed(signal - 128)),
            code if code == i32::from(code::INTERRUPTED) => {
                Ok(Some(BuildOutcome::Failed(self.fail(&BuildError::Canceled))))
            }
            code if code == i32::from(REPEAT) => {
                terminal::err("note: the build is repeated without a layer of a cache that cannot be unpacked\n");
                Ok(None)
            }
            code => Ok(Some(BuildOutcome::Failed(code as u8))),
        }
    }

    /// Closes what belongs to other fetchers, in a new one.
    fn close_others(&self) {
        self.pulls.close();
        self.early.close();
    }

    /// Starts the fetcher that downloads layers of caches for the builder, if it may need any.
    fn layer_server(&self, request: &BuildRequest, platforms: &[Prepared]) -> Option<LayerServer> {
        let caches = request.caches.shared();
        if caches.is_empty() || !platforms.iter().any(Prepared::has_open_steps) {
            return None;
        }
        // Without a fetcher, the steps run.
        let server = LayerServer::start(self.store, self.flags, caches, || self.close_others()).ok()?;
        request.caches.fetch_with(server.fetcher());
        Some(server)
    }

    /// Executes the steps; runs in the builder process. A thread draws progress until all senders
    /// of events have been dropped. Sets `gave_up_layers` if a layer of a cache cannot be unpacked.
    fn execute(
        &self,
        build: PreparedBuild<'_>,
        builder: Result<Builder, BuildError>,
        channel: EventChannel,
        gave_up_layers: &Cell<bool>,
    ) -> Result<BuildReport, BuildError> {
        let EventChannel { sender, events } = channel;
        let (mode, explain) = (self.mode, self.explain);
        let drawing = start(move || draw(&events, mode, explain));
        let mut drawing = Some(drawing.map_err(BuildError::kernel("the display of progress"))?);
        let (cancel, last) = (Cancel::default(), sender.clone());
        let result = builder.and_then(|builder| {
            let stop = cancel.clone();
            let stopped = move |_| {
                stop.cancel();
                ControlFlow::Break(())
            };
            builder.on_stop(stopped).map_err(BuildError::kernel("the builder"))?;
            let images = self.pulls.receive(&sender);
            let images = images.map_err(|e| Failure::new(format!("cannot receive images: {e}")).because(&e));
            let images = images.map_err(|failure| BuildError::Caller(Box::new(failure)))?;
            let store = store_in(&builder, self.store)?.with_incoming(images.incoming.clone());
            let stop = cancel.clone();
            let events = sender.clone();
            let store = match self.early.watch(&store) {
                Some(watch) => store.announcing(watch),
                None => store,
            };
            let store = store
                .with_stop(move || stop.is_canceled())
                .with_notices(move |text| events.send(Event::Warning(text.into())));
            let result = execute(build, &store, sender, cancel, &builder, |e| {
                drawing.take().map(std::thread::JoinHandle::join);
                self.fail(e);
                terminal::err("opening a shell in the failed step's container; the build ends when it exits\n");
            });
            images.end();
            gave_up_layers.set(store.gave_up_layers());
            result
        });
        match &result {
            Ok(_) => {}
            Err(BuildError::Canceled) => last.send(Event::Interrupted),
            Err(_) => last.send(Event::Failed),
        }
        drop(last);
        drawing.map(std::thread::JoinHandle::join);
        result
    }
}

/// Report files of a build, opened before it begins.
#[derive(Default)]
pub struct Reports {
    pub timings: Option<Destination>,
    metadata: Option<Destination>,
    id: Option<Destination>,
}

impl Reports {
    /// Opens the ID file only. As in buildx, an existing one is removed before anything else is
    /// done, so that a build that fails does not leave the ID of an earlier one.
    pub fn open_id(args: &BuildArgs) -> Result<Reports, Failure> {
        let id = open("the ID file", &args.iidfile)?;
        if let Some(id) = &id {
            id.remove_old().map_err(|e| output::unwritten("the ID file", &id.path(), e))?;
        }
        Ok(Reports { id, ..Reports::default() })
    }

    /// Opens the other files.
    pub fn open_others(self, args: &BuildArgs) -> Result<Reports, Failure> {
        let timings = open("the timings", &args.timings)?;
        Ok(Reports { timings, metadata: open("the metadata file", &args.metadata_file)?, ..self })
    }
}

/// Opens a report file, if there is one. `what` describes it.
fn open(what: &str, path: &Option<PathBuf>) -> Result<Option<Destination>, Failure> {
    path.as_ref().map(|path| output::file(what, path)).transpose()
}

/// Returns the digest that identifies a result: the image ID, or as in docker, the digest of the
/// index of several images.
fn id_of(finished: &BuildReport) -> Option<String> {
    match finished {
        BuildReport { index: Some(index), .. } => Some(index.digest.to_string()),
        BuildReport { image, .. } => image.as_ref().map(|image| image.id.to_string()),
    }
}

/// Returns the document of `--metadata-file`. It has those keys of `docker buildx build` for which
/// rbuild has values.
fn metadata(request: &BuildRequest, finished: &BuildReport) -> Value {
    let mut all = json!({"buildx.build.ref": format!("rbuild/{}", request.build_id)});
    let result = match finished {
        BuildReport { index: Some(index), .. } => Some((MediaType::ImageIndex, index.digest, index.size)),
        BuildReport { image: Some(image), .. } => {
            all["containerimage.config.digest"] = json!(image.id.to_string());
            Some((MediaType::ImageManifest, image.manifest, image.manifest_size))
        }
        BuildReport { image: None, .. } => None,
    };
    if let Some((kind, digest, size)) = result {
        let mut descriptor = json!({"mediaType": kind.to_string(), "digest": digest.to_string(), "size": size});
        if !request.annotations.is_empty() && finished.index.is_none() {
            let annotations = request.annotations.iter().map(|(k, v)| (k.clone(), json!(v)));
            descriptor["annotations"] = Value::Object(annotations.collect());
        }
        all["containerimage.descriptor"] = descriptor;
        all["containerimage.digest"] = json!(digest.to_string());
    }
    if !request.tags.is_empty() {
        let names: Vec<String> = request.tags.iter().map(|tag| tag.to_string()).collect();
        all["image.name"] = json!(names.join(","));
    }
    all
}

/// Publishes outputs, writes reports and prints the result after a successful build.
pub fn conclude(
    store: &Store,
    args: &BuildArgs,
    request: &BuildRequest,
    finished: &BuildReport,
    reports: &Reports,
) -> Result<(), Failure> {
    for export in &request.exports {
        if let Export::Archive { to: dest, .. } | Export::Tar { to: dest, .. } = export {
            dest.publish().map_err(|e| output::unwritten("the output", &dest.path(), e))?;
        }
    }
    if let Some(dest) = &reports.metadata {
        let text = serde_json::to_vec_pretty(&metadata(request, finished)).unwrap_or_default();
        dest.write(&text).map_err(|e| output::unwritten("the metadata file", &dest.path(), e))?;
    }
    let id = id_of(finished);
    if let (Some(dest), Some(id)) = (&reports.id, &id) {
        let written = dest.write(id.as_bytes());
        written.map_err(|e| output::unwritten("the ID file", &dest.path(), e))?;
    }
    if args.quiet {
        id.into_iter().for_each(|id| terminal::out(&format!("{id}\n")));
    } else if !matches!(args.progress, Some(ProgressMode::Quiet | ProgressMode::Rawjson)) {
        // With rawjson, every line on standard error must be a JSON document.
        terminal::err(&result::lines(store, request, finished));
    }
    Ok(())
}
