//! The course of a build: answered from the cache, or solved, exported and recorded.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use rbuild_image::ManifestDigest;
use rbuild_linux::RootDir;
use rbuild_linux::parallel::{locked, try_map};
use rbuild_plan::{Step, VertexId};
use rbuild_sandbox::{Attachments, Builder, Cancel, CommandOutcome, Input, MountSource};
use rbuild_store::{Budget, CacheKey, ImageKey, LayerLog, Store};

use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::event::{BuildPhase, Event};
use crate::events::Events;
use crate::export::outputs::{self, View};
use crate::export::{cache_steps, image, lent_image, stream};
use crate::exports::{BuildReport, Export, ImageForm, ReportedSteps, Split, Squash};
use crate::prepare::image_key::image_key;
use crate::prepare::vertex_state::VertexState;
use crate::prepare::{Prepared, PreparedBuild};
use crate::record::build_log::{self, measure, remember};
use crate::request::BuildRequest;
use crate::rootfs::Rootfs;
use crate::solve::executor::{self, PlatformFailure};
use crate::solve::refusal;
use crate::solve::vertex;
use crate::warning::BuildWarning;

/// Answers the build from the cache. Returns `None` if a step must run, if a file system must be
/// mounted, or if the cache may exceed its limit: only a builder can mount, measure and remove
/// trees.
#[tracing::instrument(target = "engine", name = "answer", level = "debug", skip_all)]
pub fn answer(
    prepared: &Prepared,
    request: &BuildRequest,
    store: &Store,
    events: &Events,
) -> Result<Option<BuildReport>> {
    let target = &prepared.vertices[prepared.graph.target].state;
    let Some(result) = target.result() else { return Ok(None) };
    let required = request.requirements();
    if request.record_sizes || request.exports.iter().any(|export| required.is_direct(export)) {
        return Ok(None);
    }
    if !is_permitted(std::slice::from_ref(prepared), request, store)? {
        return Ok(None);
    }
    let single = match target {
        VertexState::Hit(_, record) if required.files && bottom_is_scratch(prepared) => {
            store.lazy_trees().unpacked_tree(&record.tree)?
        }
        _ => None,
    };
    if required.files && single.is_none() {
        return Ok(None);
    }
    if prepared.is_lent {
        return lent_report(std::slice::from_ref(prepared), request, store, events);
    }
    let (mut manifests, mut unsynced) = (Vec::new(), Vec::new());
    for form in required.images.iter().copied() {
        let key = image_key(&prepared.graph, &result, request, &form);
        let Some(found) = store.records().result(&key)? else { return Ok(None) };
        manifests.push((form, found.manifest));
        unsynced.extend((!found.is_synced).then_some((key, found.manifest)));
    }
    let Some(cached) = cache_steps::answered(prepared, request, store)? else { return Ok(None) };
    let mut written = Vec::new();
    if let Some(view) = single {
        for export in request.exports.iter().filter(|export| export.form().is_none()) {
            match export_readable(prepared, export, &view)? {
                Some(count) => written.push(count),
                None => return Ok(None),
            }
        }
    }
    prepared.report_hits(store, &request.caches, events, |_| false);
    // Losing the record only costs one explanation.
    let _ = prepared.remember(store, prepared.vertices.iter().map(|vertex| vertex.state.key()));
    sync_found(&unsynced, request, store)?;
    let finished = outputs::publish(request, &required, store, &[manifests], events)?;
    let build = PreparedBuild { request, platforms: std::slice::from_ref(prepared) };
    build_log::remember(build, store, events, None, Vec::new());
    let (steps, duration) = (events.journal().counts(), events.journal().duration());
    let (epoch, base) = (prepared.graph.epoch, base_image(prepared));
    Ok(Some(BuildReport { cached, steps, duration, epoch, base, written, ..finished }))
}

/// Returns the image that the target is built on, if it is not empty.
fn base_image(prepared: &Prepared) -> Option<ManifestDigest> {
    let graph = &prepared.graph;
    graph.chain(graph.target).find_map(|id| match &graph.vertices[id].step {
        Step::Image { manifest, .. } => Some(*manifest),
        _ => None,
    })
}

/// Returns the places of the instructions that made the target's own layers, lowest first.
fn layer_places(prepared: &Prepared) -> Vec<(usize, usize)> {
    let graph = &prepared.graph;
    let steps = graph.chain(graph.target).filter(|id| graph.vertices[*id].parent.is_some());
    let mut places: Vec<(usize, usize)> = steps.map(|id| graph.vertices[id].span).map(|s| (s.start, s.end)).collect();
    places.reverse();
    places
}

/// Returns true if the build can be answered from the cache: the cache is within its limit, and no
/// file contains a secret.
fn is_permitted(platforms: &[Prepared], request: &BuildRequest, store: &Store) -> Result<bool> {
    if let Some(most) = request.cache_limit
        && store.gc().may_exceed(most)?
    {
        return Ok(false);
    }
    for prepared in platforms {
        if !refusal::is_cleared(prepared, request, store)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Answers a build whose image is pushed without its layers on all platforms
/// ([`Prepared::is_lent`]). Returns `None` if it needs them after all.
///
/// # Errors
///
/// Fails if the store cannot be read, or if a document of the image cannot be written.
pub fn answer_lent(
    platforms: &[Prepared],
    request: &BuildRequest,
    store: &Store,
    events: &Events,
) -> Result<Option<BuildReport>> {
    if is_permitted(platforms, request, store)? { lent_report(platforms, request, store, events) } else { Ok(None) }
}

/// Does the same for a build that may be answered.
fn lent_report(
    platforms: &[Prepared],
    request: &BuildRequest,
    store: &Store,
    events: &Events,
) -> Result<Option<BuildReport>> {
    let (mut finished, mut cached) = (BuildReport::default(), ReportedSteps::default());
    for prepared in platforms {
        let Some(steps) = cache_steps::answered(prepared, request, store)? else { return Ok(None) };
        let Some(made) = lent_image::lent_image(prepared, request, store)? else { return Ok(None) };
        cached.steps.extend(steps.steps);
        cached.failure = cached.failure.or(steps.failure);
        finished.image = finished.image.or(made.image);
        finished.platforms.extend(made.platforms);
        for layer in made.lent {
            // Platforms may have equal layers.
            if finished.lent.iter().all(|known| known.part.digest != layer.part.digest) {
                finished.lent.push(layer);
            }
        }
    }
    let mut first = 0;
    for prepared in platforms {
        let events = match platforms {
            [_] => events.clone(),
            _ => events.of_platform(first, &prepared.platform.to_string()),
        };
        first += prepared.graph.vertices.len();
        prepared.report_hits(store, &request.caches, &events, |_| false);
        let _ = prepared.remember(store, prepared.vertices.iter().map(|vertex| vertex.state.key()));
    }
    build_log::remember(PreparedBuild { request, platforms }, store, events, None, Vec::new());
    let (steps, duration) = (events.journal().counts(), events.journal().duration());
    Ok(Some(BuildReport { cached, steps, duration, ..finished }))
}

/// Syncs images before they are named. The build that made them may have failed while it wrote an
/// output, may have been killed, or may still be running. Recorded as results of this build, they
/// are synced only once.
fn sync_found(unsynced: &[(ImageKey, ManifestDigest)], request: &BuildRequest, store: &Store) -> Result<()> {
    if unsynced.is_empty() {
        return Ok(());
    }
    for (key, manifest) in unsynced {
        store.records().put_result(key, manifest, &request.build_id)?;
    }
    Ok(store.records().sync(&request.build_id)?)
}

/// Returns true if the target is a single step on scratch. Its tree is then the whole root file
/// system.
fn bottom_is_scratch(prepared: &Prepared) -> bool {
    let parent = prepared.graph.vertices[prepared.graph.target].parent;
    parent.is_some_and(|p| matches!(prepared.graph.vertices[p].step, Step::Scratch))
}

/// Writes the files if the caller can read all of them, and returns the number of entries that were
/// written. Otherwise returns `None`: the builder, which is root in its user namespace, must write
/// them.
fn export_readable(prepared: &Prepared, export: &Export, view: &RootDir) -> Result<Option<u64>> {
    let Export::Files { to, delete, split: Split::Several | Split::Never } = export else { return Ok(None) };
    let files = view.try_clone().map_err(BuildError::kernel(ErrorContext::Result))?.into();
    let view = View { folder: PathBuf::new(), files, epoch: prepared.graph.epoch };
    match outputs::directory(to, *delete, &[view], None, &AtomicU64::new(0)) {
        Ok(written) => Ok(Some(written)),
        Err(BuildError::Kernel { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(e) => Err(e),
    }
}

/// The platforms whose build has started, each with the environment of its steps.
struct Platforms<'a> {
    build: PreparedBuild<'a>,
    store: &'a Store,
    events: &'a Events,
    envs: Vec<StepEnv<'a>>,
}

/// Runs the open steps of all platforms, and writes the outputs once everything is built. If a
/// shell is to be started after an error, the error is passed to `report` first.
pub fn execute(
    build: PreparedBuild<'_>,
    store: &Store,
    events: Events,
    cancel: Cancel,
    builder: &Builder,
    report: impl FnOnce(&BuildError),
) -> Result<BuildReport> {
    let request = build.request;
    // Without this lock, later builds could remove the log of a long build.
    let _logs = store.logs().lock_logs(&request.build_id);
    let mut platforms = Platforms { build, store, events: &events, envs: Vec::new() };
    let result = platforms.execute(&cancel, builder, report);
    platforms.envs.iter().for_each(remember_keys);
    let layers = match (&result, request.record_sizes) {
        (Ok(_), true) => platforms.envs.iter().flat_map(layer_sizes).collect(),
        _ => Vec::new(),
    };
    remember(build, store, &events, result.as_ref().err(), layers);
    let finished = result?;
    if request.cache_limit.is_some() {
        drop(platforms);
        evict(Budget { bytes: request.cache_limit, ..Budget::default() }, store, &events);
    }
    Ok(finished)
}

/// Keeps the cache within its limit. A failure is only a warning, because the build is already
/// finished.
fn evict(budget: Budget<'_>, store: &Store, events: &Events) {
    match store.gc().collect(budget) {
        Ok(freed) if freed.bytes > 0 => {
            events.phase(BuildPhase::Eviction { freed: freed.bytes }, 0.0);
        }
        Ok(_) => {}
        Err(e) => events.send(Event::Warning(BuildWarning::NotEvicted(e).into())),
    }
}

impl<'a> Platforms<'a> {
    #[tracing::instrument(target = "engine", name = "solve", level = "debug", skip_all)]
    fn execute(
        &mut self,
        cancel: &Cancel,
        builder: &'a Builder,
        report: impl FnOnce(&BuildError),
    ) -> Result<BuildReport> {
        let PreparedBuild { request, platforms } = self.build;
        self.events.send(Event::Total { steps: platforms.iter().map(Prepared::shown_steps).sum() });
        let mut first = 0;
        for prepared in platforms {
            let events = match platforms.len() {
                1 => self.events.clone(),
                _ => self.events.of_platform(first, &prepared.platform.to_string()),
            };
            first += prepared.graph.vertices.len();
            self.envs.push(StepEnv::new(request, prepared, self.store, events, cancel.clone(), builder)?);
        }
        if let Err(PlatformFailure { platform, error }) =
            executor::run(&self.envs, |env, layers| image::pack_early(env, &layers))
        {
            return Err(after_failure(&self.envs[platform], error, report));
        }
        let images = images_of_all(&self.envs)?;
        // Everything that a name refers to must be on disk before the name. Outputs are written
        // afterwards; otherwise the sync would also wait for those on the same file system.
        if images.iter().all(Vec::is_empty) {
            self.store.records().sync_recorded(&request.build_id)?;
        } else {
            self.store.records().sync(&request.build_id)?;
        }
        let mut direct = None;
        for env in &self.envs {
            for export in request.exports.iter().filter(|export| env.required.is_direct(export)) {
                direct = Some(stream::export(env, export)?);
            }
        }
        let written = self.export_files(cancel)?;
        let kept = self.publish(&images)?;
        let cached = cache_steps::made(&self.envs)?;
        let (steps, duration) = (self.events.journal().counts(), self.events.journal().duration());
        let epoch = platforms.first().and_then(|prepared| prepared.graph.epoch);
        let base = platforms.first().and_then(base_image);
        let layer_places = match platforms {
            [only] if request.squash == Squash::None => layer_places(only),
            _ => Vec::new(),
        };
        Ok(BuildReport {
            image: kept.image.or(direct),
            cached,
            steps,
            duration,
            epoch,
            base,
            written,
            layer_places,
            ..kept
        })
    }

    /// Writes the archives and names the result; not if its base was left in a registry.
    fn publish(&self, images: &[Vec<(ImageForm, ManifestDigest)>]) -> Result<BuildReport> {
        let PreparedBuild { request, platforms } = self.build;
        match (platforms, images) {
            ([only], [made]) if !only.lent_base().is_empty() => match made.first() {
                Some((_, manifest)) => lent_image::report(self.store, *manifest),
                None => Ok(BuildReport::default()),
            },
            _ => outputs::publish(request, &request.requirements(), self.store, images, self.events),
        }
    }

    /// Writes the outputs that consist of the result's files. Returns the number of entries in each
    /// directory.
    fn export_files(&self, cancel: &Cancel) -> Result<Vec<u64>> {
        let mut written = Vec::new();
        for export in &self.build.request.exports {
            match export {
                Export::Files { to, delete, split } => {
                    let phase = self.events.begin(BuildPhase::Files, None);
                    let views = self.views(*split, Rootfs::merged)?;
                    written.push(outputs::directory(to, *delete, &views, Some(cancel), &phase.meter.moved)?);
                    phase.end();
                }
                Export::Tar { to, split } => {
                    let phase = self.events.begin(BuildPhase::Tar, None);
                    outputs::tar(to, &self.views(*split, Rootfs::view)?, &phase.meter.moved)?;
                    phase.end();
                }
                Export::Archive { .. } | Export::Layout { .. } | Export::Store { .. } | Export::CacheOnly => {}
            }
        }
        Ok(written)
    }

    /// Returns the files of all platforms. `files` returns those of one vertex.
    fn views<F>(&self, split: Split, files: impl Fn(&Rootfs<'a>, VertexId) -> Result<F>) -> Result<Vec<View<F>>> {
        let split = split.applies(self.build.platforms.len());
        let view = |env: &StepEnv<'a>| {
            let folder = if split { env.prepared.platform.to_string().replace('/', "_") } else { String::new() };
            let files = files(&env.rootfs, env.graph().target)?;
            Ok(View { folder: folder.into(), files, epoch: env.graph().epoch })
        };
        self.envs.iter().map(view).collect()
    }
}

/// Returns the images of all platforms, in their order. They are packed at the same time.
fn images_of_all(envs: &[StepEnv<'_>]) -> Result<Vec<Vec<(ImageForm, ManifestDigest)>>> {
    try_map(envs.len(), envs, checked_images)
}

/// Returns the images of one platform, unless they contain a secret.
fn checked_images(env: &StepEnv<'_>) -> Result<Vec<(ImageForm, ManifestDigest)>> {
    vertex::wait_for_images(env)?;
    refusal::refuse_leaks(env)?;
    images_of(env)
}

/// Returns the images of the target, in the order of the forms.
fn images_of(env: &StepEnv<'_>) -> Result<Vec<(ImageForm, ManifestDigest)>> {
    env.required.images.iter().copied().map(|form| Ok((form, image::image(env, &form)?))).collect()
}

/// Records which steps were built here. A step that was not reached keeps its previous record.
fn remember_keys(env: &StepEnv<'_>) {
    let keys = env.results.iter().zip(&env.nearest);
    let keys: Vec<Option<CacheKey>> = keys.map(|(done, before)| done.map_or(*before, |done| done.key)).collect();
    // If the record is lost, only one explanation is missing. Builds with a salt have no earlier
    // build to compare with.
    if env.request.salt.is_none() {
        let _ = env.prepared.remember(env.store, keys.into_iter());
    }
}

/// Returns the sizes of the layers made by the target's own steps, lowest first.
fn layer_sizes(env: &StepEnv<'_>) -> Vec<LayerLog> {
    let mut layers = Vec::new();
    for id in env.chain() {
        let tree = env.results.get(id).and_then(|done| done.tree.as_ref());
        layers.extend(tree.and_then(|tree| measure(&env.rootfs.files_of(tree).ok()?, env.log_number(id)).ok()));
    }
    layers.reverse();
    layers
}

/// Starts a shell in the container of the command that failed, if requested: with its files as the
/// command left them, its mounts, variables and user.
fn after_failure(env: &StepEnv<'_>, error: BuildError, report: impl FnOnce(&BuildError)) -> BuildError {
    let failed = locked(&env.failed_run).take();
    let Some((_, mut request)) = failed.filter(|_| env.request.shell_on_error) else { return error };
    env.events.send(Event::Failed);
    report(&error);
    let Ok((scratch, _)) = env.rootfs.work.new_dir() else { return BuildError::AlreadyReported };
    request.files.renew(scratch);
    request.command.args = vec!["/bin/sh".into()];
    request.command.input = Input::Terminal;
    // Agent sockets were removed with the step.
    request.mounts.retain(|m| !matches!(&m.source, MountSource::Bind(path) if !path.exists()));
    if !request.command.env.iter().any(|e| e.starts_with("TERM=")) {
        request.command.env.push("TERM=xterm".into());
    }
    // The build's own `Cancel` was triggered to stop the other steps.
    match rbuild_sandbox::run_attached(&env.builder.zygote, &request, &Cancel::default(), Attachments::default()) {
        Ok(CommandOutcome::NotStarted(error)) => BuildError::NoShell(error),
        Ok(_) => BuildError::AlreadyReported,
        Err(e) => e.into(),
    }
}
