//! Processing of a single vertex: key, cache lookup and execution.

use std::borrow::Cow;
use std::time::Instant;

use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_image::ManifestDigest;
use rbuild_plan::{CopyStep, FileSource, RunCache, RunMount, RunMountKind, RunStep, Step, VertexId};
use rbuild_remedy::{FileRemedy, sentence};
use rbuild_source::{Changes, Selection, SourceError};
use rbuild_store::{CacheKey, KeyInputs, Lock, NewTree, ResultId, StoreError};

use crate::cache::explain;
use crate::cache::key::{self, InputResults, KeyBuilder, Keyed, ReadContent};
use crate::contexts::selection::{mounted_content, selection};
use crate::contexts::source_errors::source_error;
use crate::contexts::{ReadFiles, StageFiles, StageSelection};
use crate::copy_warnings::CopyWarnings;
use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::event::{Event, Meter, StepOutcome};
use crate::network_access::reported;
use crate::ops::step_error::{Attempt, StepError};
use crate::ops::{copy_step, run, run_mounts, workdir};
use crate::solve::records::StepRecords;
use crate::solve::refusal;

/// Maximum number of times that the key of a step is computed because its context changes
/// meanwhile.
const MAX_KEYS: usize = 3;

/// Solves a vertex whose inputs are finished: by a cache lookup, or by executing it.
#[tracing::instrument(
    target = "engine",
    name = "vertex",
    level = "debug",
    skip_all,
    fields(step = id.position(), label = %env.graph().vertices[id].name)
)]
pub(crate) fn solve(env: &StepEnv<'_>, id: VertexId) -> Result<()> {
    let vertex = &env.graph().vertices[id];
    if let Step::Image { manifest, .. } = &vertex.step {
        return unpack(env, id, manifest);
    }
    if matches!(vertex.step, Step::Scratch) {
        return Ok(());
    }
    let started = Instant::now();
    let label = vertex.name.to_string();
    env.events.send(Event::Started { step: id.position(), label, text: vertex.text.clone() });
    let outcome = find_or_execute(env, id).map_err(|e| env.name_step(id, e));
    let outcome_kind = match &outcome {
        Ok(true) => StepOutcome::Cached,
        Ok(false) => StepOutcome::Done,
        Err(BuildError::Canceled) => StepOutcome::Canceled,
        Err(_) => StepOutcome::Failed,
    };
    env.events.send(Event::Done {
        step: id.position(),
        outcome: outcome_kind,
        seconds: started.elapsed().as_secs_f64(),
    });
    outcome.map(|_| ())
}

/// Identifies work whose result several platforms of a build can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum WorkKey {
    /// The unpacking of an image.
    Image(ManifestDigest),
    /// The execution of a step with this definition key.
    Step(CacheKey),
}

/// Returns the work that solves a vertex whose inputs are finished; `None` if it has no key.
pub(crate) fn work_key(env: &StepEnv<'_>, id: VertexId) -> Option<WorkKey> {
    let vertex = &env.graph().vertices[id];
    if let Step::Image { manifest, .. } = &vertex.step {
        return Some(WorkKey::Image(*manifest));
    }
    // An error is reported when the vertex is solved.
    let keyed = keyed(env, id, &env.prepared.vertices[id].selected_files).ok()?;
    Some(WorkKey::Step(keyed?.key))
}

/// Returns the definition key of a step whose inputs are finished, with its inputs.
fn keyed(env: &StepEnv<'_>, id: VertexId, selected_files: &[Selection]) -> Result<Option<Keyed>> {
    let vertex = &env.graph().vertices[id];
    let keys = KeyBuilder { downloads: &env.prepared.downloads, salt: env.request.salt.as_deref() };
    let results = InputResults::of(&vertex.inputs(), |input| env.done(input).result);
    keys.keyed(env.graph(), vertex, &results, selected_files)
}

/// Computes the key, then looks up or makes the result. Repeats a few times if the context
/// changes meanwhile.
fn find_or_execute(env: &StepEnv<'_>, id: VertexId) -> Result<bool> {
    let vertex = &env.graph().vertices[id];
    let mut selected_files = Cow::Borrowed(&env.prepared.vertices[id].selected_files[..]);
    for _ in 0..MAX_KEYS {
        let keyed = keyed(env, id, &selected_files)?;
        let Keyed { key, inputs } = keyed.ok_or_else(|| BuildError::other("a step has no key"))?;
        let key_inputs = explain::masked(inputs, &env.request.secret_values());
        match find_or_execute_keyed(&StepRecords { env, id, key, key_inputs: &key_inputs }, &selected_files) {
            Ok(is_cached) => return Ok(is_cached),
            Err(StepError::Failed(e)) => return Err(e),
            Err(StepError::ContextChanged) => selected_files = Cow::Owned(env.contexts.selected_files(vertex)?),
        }
    }
    let last = env.contexts.changed_last(vertex, &selected_files).filter(|path| !path.as_os_str().is_empty());
    Err(source_error(SourceError::Changed(last.unwrap_or_else(|| ".".into())), vertex.span, None))
}

/// Looks up the result of a step, or executes the step. Returns true if it was cached.
#[tracing::instrument(
    target = "engine",
    name = "once",
    level = "debug",
    skip_all,
    fields(step = records.id.position(), key = %records.key.short())
)]
fn find_or_execute_keyed(records: &StepRecords<'_>, selected_files: &[Selection]) -> Attempt<bool> {
    let StepRecords { env, id, key, .. } = *records;
    let explain_key = |text: String| env.events.send(Event::Reason { step: id.position(), text });
    let hit = |key: &CacheKey| {
        tracing::debug!(target: "engine", key = key.short(), "cache hit");
        let record = env.store.records().record(key).ok().flatten();
        let origin = record.as_ref().and_then(|record| record.origin.as_ref());
        explain_key(explain::hit(key, origin.map(|origin| (&*origin.cache, origin.runner.as_deref()))));
        if let (Step::Copy(copy), Some(tree)) = (&env.graph().vertices[id].step, &env.done(id).tree) {
            CopyWarnings::of_tree(env.store, tree).send(copy, &env.events);
        }
    };
    if records.hit(&key)? {
        hit(&key);
        return Ok(true);
    }
    let vertex = &env.graph().vertices[id];
    // Key under which other steps may have made the same files.
    let mut shared = key;
    let stage = match &vertex.step {
        Step::Copy(copy @ CopyStep { from: FileSource::Vertex(from), .. }) => {
            let files = StageFiles::new(env.rootfs.view(*from)?);
            let selection = selection(&files.tree(), copy)?;
            Some(StageSelection { files, selection })
        }
        _ => None,
    };
    let read = ReadFiles { contexts: selected_files, stage: stage.as_ref() };
    if let Some(contents) = contents_read(env, &vertex.step, read)? {
        let linked = matches!(&vertex.step, Step::Copy(copy) if copy.link);
        let parent = vertex.parent.map_or(ResultId::from(key), |p| env.done(p).result);
        let parent = (!linked).then_some(&parent);
        shared = key::content_key(vertex, env.request.salt.as_deref(), parent, &contents);
        if records.hit(&shared)? {
            hit(&shared);
            return Ok(true);
        }
    }
    let find = || Ok(records.hit(&shared)?.then_some(true));
    let make = || {
        if env.cancel.is_canceled() {
            return Err(BuildError::Canceled.into());
        }
        if records.adopted(&shared)? || records.imported(&shared)? {
            return Ok(true);
        }
        execute_and_publish(records, &shared, read, &explain_key)
    };
    // Equal steps of other builds wait for the lock and then find the record.
    let is_cached = env.store.once(Lock::Step(shared), find, make)?.into_inner();
    if is_cached {
        hit(&shared);
    }
    Ok(is_cached)
}

/// Executes a step and publishes its result under the key `shared`, whose lock the caller holds.
fn execute_and_publish(
    records: &StepRecords<'_>,
    shared: &CacheKey,
    read: ReadFiles<'_>,
    explain_key: &dyn Fn(String),
) -> Attempt<bool> {
    let StepRecords { env, id, .. } = *records;
    // The key inputs of an earlier build may contain the secrets of this one as plain values.
    let before = env.nearest[id].and_then(|key| env.store.records().key_inputs(&key).ok().flatten());
    let before = before.map(|before| explain::masked(before, &env.request.secret_values()));
    let explain_miss = |changes: Option<&Changes>| {
        let reason = records.reason(before.as_ref(), changes);
        tracing::debug!(target: "engine", key = shared.short(), reason, "cache miss");
        explain_key(reason);
    };
    let made = execute(env, id, read, before.as_ref(), &explain_miss)?;
    refusal::check_files(env, id, &made.dir)?;
    records.publish(shared, &made)?;
    Ok(false)
}

/// Executes a step into a new tree. `before` holds the key inputs of the most similar earlier step.
/// `on_changes` is called with the changes among the step's source files once they are known.
#[tracing::instrument(target = "engine", name = "execute", level = "debug", skip_all, fields(step = id.position()))]
fn execute(
    env: &StepEnv<'_>,
    id: VertexId,
    read: ReadFiles<'_>,
    before: Option<&KeyInputs>,
    on_changes: &dyn Fn(Option<&Changes>),
) -> Attempt<NewTree> {
    let made = env.rootfs.new_tree(id)?;
    match &env.graph().vertices[id].step {
        // The changes are known once the files have been copied.
        Step::Copy(step) => {
            let copied = copy_step::copy_step(env, id, step, read, &made);
            on_changes(copied.map_err(|e| or_changed(env, id, read.contexts, e))?.as_ref());
        }
        Step::Run(run) => {
            let parts = run_mounts::context_parts(env, id, run, read.contexts, before);
            let (parts, changes) = parts.map_err(|e| or_changed(env, id, read.contexts, e))?;
            on_changes(changes.as_ref());
            run::run_step(env, id, run, parts, read.contexts, &made.path)?;
        }
        Step::Workdir(step) => {
            on_changes(None);
            workdir::workdir_step(env, id, step, &made.path)?;
        }
        Step::Scratch | Step::Image { .. } => {}
    }
    Ok(made)
}

/// Replaces the error of a step that was reading a context by [`StepError::ContextChanged`], if the
/// context has changed.
fn or_changed(env: &StepEnv<'_>, id: VertexId, selected_files: &[Selection], error: StepError) -> StepError {
    if selected_files.is_empty() || env.cancel.is_canceled() {
        return error;
    }
    match env.contexts.selected_files(&env.graph().vertices[id]) {
        Ok(now) if now.iter().map(|now| now.content).eq(selected_files.iter().map(|files| files.content)) => error,
        Ok(_) => StepError::ContextChanged,
        Err(e) => e.into(),
    }
}

/// Returns the content from which the content key of a step is computed: copied or mounted files of
/// other stages, and all files of a linked copy. Returns `None` for other steps, which have no
/// content key.
fn contents_read(env: &StepEnv<'_>, step: &Step, read: ReadFiles<'_>) -> Result<Option<Vec<ReadContent>>> {
    let digest = |selection: &Selection| vec![ReadContent::Files(selection.content.digest)];
    match step {
        Step::Copy(copy) => {
            let of_stage = read.stage.map(|stage| &stage.selection);
            let mut contents = of_stage.or_else(|| read.contexts.first().filter(|_| copy.link)).map(digest);
            if let Some(downloaded) = env.prepared.downloads.content(copy)?.filter(|_| copy.link) {
                contents.get_or_insert_default().push(ReadContent::Files(downloaded));
            }
            Ok(contents)
        }
        Step::Run(run) => contents_mounted(env, run, read.contexts),
        _ => Ok(None),
    }
}

/// Returns the content of a command's mounts of stages and contexts, in order. Returns `None`
/// if it mounts no stage.
fn contents_mounted(
    env: &StepEnv<'_>,
    run: &RunStep,
    selected_files: &[Selection],
) -> Result<Option<Vec<ReadContent>>> {
    let (mut contents, mut stages) = (Vec::new(), 0);
    let mut files = selected_files.iter();
    for mount in &run.mounts {
        let (from, source) = match &mount.kind {
            RunMountKind::Bind { from: FileSource::Vertex(from), source } => (from, source),
            RunMountKind::Cache(RunCache { from: Some(FileSource::Vertex(seed)), .. }) => {
                contents.push(ReadContent::Result(env.done(*seed).result));
                continue;
            }
            RunMountKind::Bind { .. } | RunMountKind::Cache(RunCache { from: Some(_), .. }) => {
                contents.extend(files.next().map(|selection| ReadContent::Files(selection.content.digest)));
                continue;
            }
            _ => continue,
        };
        stages += 1;
        let is_made = !matches!(&env.graph().vertices[*from].step, Step::Scratch | Step::Image { .. });
        // A whole image is identified by its result, without reading its files.
        let whole = !is_made && source.trim_matches('/').is_empty();
        let content = if whole {
            Some(ReadContent::Result(env.done(*from).result))
        } else {
            mounted_content(&StageFiles::new(env.rootfs.view(*from)?).tree(), source)
                .map_err(|e| source_error(e, mount.span, mount.from_name.as_deref()))?
                .map(ReadContent::Files)
        };
        contents.push(content.ok_or_else(|| no_mount_source(mount, source))?);
    }
    Ok((stages > 0).then_some(contents))
}

fn no_mount_source(mount: &RunMount, source: &str) -> BuildError {
    let name = mount.from_name.as_deref().unwrap_or_default();
    let d = Diagnostic::new(mount.span, format!("`{source}` does not exist in `{name}`"));
    BuildError::Unmet(vec![d.help(rbuild_remedy::Remedy::File(FileRemedy::CorrectPath { root: format!("`{name}`") }))])
}

#[tracing::instrument(
    target = "engine",
    name = "unpack",
    level = "debug",
    skip_all,
    fields(step = id.position(), image = %manifest)
)]
fn unpack(env: &StepEnv<'_>, id: VertexId, manifest: &ManifestDigest) -> Result<()> {
    let started = Instant::now();
    let (image, vertex, step) = (env.image(manifest)?, &env.graph().vertices[id], id.position());
    env.events.send(Event::Started { step, label: vertex.name.to_string(), text: vertex.text.clone() });
    let sizes = image.layers()?.iter().map(|(layer, _)| layer.size()).sum();
    let meter = Meter { total: Some(sizes), ..Meter::default() };
    env.events.send(Event::Moving { step, meter: meter.clone() });
    let wanted = env.schedule.parts_wanted(env.graph(), id);
    let unpacked = env.rootfs.unpack(id, image, wanted.as_ref(), &meter.moved);
    let outcome = match &unpacked {
        Ok(0) => StepOutcome::Cached,
        Ok(_) => StepOutcome::Done,
        Err(BuildError::Canceled) => StepOutcome::Canceled,
        Err(_) => StepOutcome::Failed,
    };
    env.events.send(Event::Done { step, outcome, seconds: started.elapsed().as_secs_f64() });
    unpacked.map(|_| ()).map_err(|e| at_image(env, id, e))
}

/// Waits until the images of the build are in the store.
///
/// # Errors
///
/// Fails at the instruction that names an image which cannot be downloaded.
pub(crate) fn wait_for_images(env: &StepEnv<'_>) -> Result<()> {
    for (id, vertex) in env.graph().numbered() {
        if let Step::Image { manifest, .. } = &vertex.step {
            env.store.wait_for_image(manifest).map_err(|e| at_image(env, id, e.into()))?;
        }
    }
    Ok(())
}

/// Replaces the error of a failed download, or of the store while an image is unpacked, by one at
/// the instruction that names the image.
fn at_image(env: &StepEnv<'_>, id: VertexId, error: BuildError) -> BuildError {
    let vertex = &env.graph().vertices[id];
    match (error, &vertex.step) {
        (BuildError::Store(e), Step::Image { name, .. }) => {
            BuildError::Unmet(vec![image_failure(vertex.span, name, e)])
        }
        (error, _) => error,
    }
}

fn image_failure(span: Span, name: &str, error: StoreError) -> Diagnostic {
    match error {
        StoreError::DownloadFailed(failure) => reported(span, failure, |own| format!("pulling `{name}` failed: {own}")),
        error => {
            let d = Diagnostic::new(span, format!("unpacking `{name}` failed: {}", sentence(&error)));
            Diagnostic { help: error.remedy().map(Help::from), errno: error.errno(), ..d }
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_remedy::{ReportedError, ServerRemedy};

    use super::*;

    #[test]
    fn failures_of_images_are_reported_as_recorded() {
        let pulled = ReportedError {
            remedy: Some(ServerRemedy::CheckNetwork.into()),
            errno: Some(111),
            ..ReportedError::new("GET /v2/ at r.io")
        };
        let kernel = |errno| {
            let e = std::io::Error::from_raw_os_error(errno);
            StoreError::from(rbuild_linux::Error::new("open", rbuild_linux::described("a file of the layer"), e))
        };
        let errors = [StoreError::DownloadFailed(pulled), kernel(28), kernel(13)];
        let lines = errors.into_iter().map(|e| {
            let Diagnostic { message, help, errno, .. } = image_failure(Span::default(), "debian", e);
            format!("{message}\n  remedy: {help:?}\n  errno: {errno:?}\n")
        });
        rbuild_testkit::assert_recorded!("failed-images", lines.collect::<String>());
    }
}
