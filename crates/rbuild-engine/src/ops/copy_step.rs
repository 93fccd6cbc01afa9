//! COPY and ADD: fills a new tree, which the caller commits.

use std::path::Path;

use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_layer::{ExternalFiles, LayerError, LayerForm};
use rbuild_linux::RootDir;
use rbuild_plan::{CopyStep, VertexId};
use rbuild_remedy::{Remedy, sentence};
use rbuild_source::{Changes, Listing, SourceError, SourceTree};
use rbuild_store::{LISTING, NewTree, PackingWatch, StoreError, TreeId, WorkingTree};

use crate::contexts::selection::exclusions;
use crate::contexts::source_errors::{bad_exclusion, source_error};
use crate::contexts::{ReadFiles, StageSelection};
use crate::copy_warnings::CopyWarnings;
use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::exports::Squash;
use crate::ops::copy::{CopySettings, SelectedFiles, StoredDownloads, copy};
use crate::ops::copy_error::{CopyError, CopyProblem, PathConflict};
use crate::ops::incremental_copy::IncrementalCopy;
use crate::ops::step_error::{Attempt, StepError};
use crate::ops::users;

pub(crate) fn copy_settings<'e>(env: &'e StepEnv<'_>) -> CopySettings<'e> {
    let downloaded = StoredDownloads { store: env.store, downloads: &env.prepared.downloads };
    CopySettings { now: env.request.now, limits: env.store.limits(), downloaded, cancel: &env.cancel }
}

/// Copies files into a new tree, from a context or from another stage, and those that were
/// downloaded. Returns the changes since the last time the step was executed here, if known.
pub(crate) fn copy_step(
    env: &StepEnv<'_>,
    id: VertexId,
    step: &CopyStep,
    read: ReadFiles<'_>,
    made: &NewTree,
) -> Attempt<Option<Changes>> {
    let NewTree { path, dir } = made;
    let working = env.rootfs.writable(&env.rootfs.trees_below(id)?, path)?;
    let settings = copy_settings(env);
    let exclude = exclusions(step)?;
    let source = match (read.stage, read.contexts.first()) {
        (Some(StageSelection { files, selection }), _) => Some((files.tree(), selection)),
        (None, Some(selection)) => {
            let context = env.contexts.of(step.from, env.graph().vertices[id].span)?;
            context.map(|context| (context.tree(), selection))
        }
        (None, None) => None,
    };
    let source = source.map(|(tree, selection)| (SourceTree { exclude: Some(&exclude), ..tree }, selection));
    let files = source.as_ref().map(|(tree, selection)| SelectedFiles { tree, selected: &selection.sources });
    let earlier = nearest_tree(env, id);
    let mut incremental =
        earlier.as_ref().map_or(Ok(IncrementalCopy::default()), |tree| incremental_copy(env, tree))?;
    incremental.defers = working.takes_files();
    let fail = |e| copy_error(env, id, step, e);
    let selected = files.map_or(&[][..], |files| files.selected);
    let mut warnings = CopyWarnings::of_sources(step, selected);
    let copied = copy(step, files, &working.root, settings, Some(&mut incremental)).map_err(fail);
    warnings.overwritten = copied.as_ref().is_ok_and(|to_one_file| *to_one_file > 1);
    warnings.send(step, &env.events);
    copied?;
    warnings.put(env.store, dir)?;
    if let Some((source, _)) = &source {
        let write = Deferred { env, id, step, source: source.root, dir };
        write.write(&mut incremental, earlier.as_ref(), working, &path.join("fs"))?;
    } else {
        working.finish(&path.join("fs"))?;
    }
    if read.contexts.iter().any(|selection| selection.content.fingerprint != incremental.fingerprint) {
        return Err(StepError::ContextChanged);
    }
    if source.is_some() {
        env.store.trees().put_note(dir, LISTING, &incremental.listing.to_bytes())?;
    }
    Ok(incremental.changes())
}

/// Writes the files that a copy deferred.
struct Deferred<'a> {
    env: &'a StepEnv<'a>,
    id: VertexId,
    step: &'a CopyStep,
    source: &'a RootDir,
    /// The directory of the new tree.
    dir: &'a RootDir,
}

impl Deferred<'_> {
    /// Ends the work in the root file system, and completes the tree in `upper` in the cheapest
    /// form: as a layer, as changes to the tree of the earlier copy, or as files.
    fn write(
        &self,
        incremental: &mut IncrementalCopy,
        earlier: Option<&TreeId>,
        working: WorkingTree,
        upper: &Path,
    ) -> Attempt<()> {
        let Deferred { env, id, step, source, dir } = *self;
        let general = |problem| copy_error(env, id, step, CopyError { index: None, problem });
        if let Some(form) = packed_form(env, id).filter(|_| incremental.has_later()) {
            working.finish(upper)?;
            let layer = earlier.map_or(Ok(None), |tree| env.store.layers().plain_layer(tree))?;
            // Whoever has the layer of an equal earlier copy need not receive it again.
            let before = match earlier.filter(|_| incremental.is_repeated()) {
                Some(tree) => env.store.layers().packed(tree)?,
                None => Vec::new(),
            };
            let watch = env.store.packing_watch().filter(|watch| !before.iter().any(|layer| watch.has(layer)));
            let external = incremental.take_external(source, layer).map_err(general)?;
            return self.store_as_layer(watch, external, form);
        }
        let fs = dir.sub("fs").map_err(BuildError::kernel(ErrorContext::StepDirectory))?;
        let plan = if self.can_store_as_changes(incremental)? {
            incremental.plan_changes(&working.root, &fs, step.link).map_err(general)?
        } else {
            None
        };
        working.finish(upper)?;
        incremental.finish(plan.as_ref(), source, &fs, &env.cancel).map_err(general)?;
        if let Some(plan) = &plan {
            env.store.changed_trees().store_as_changes(dir, &plan.base)?;
        }
        Ok(())
    }

    /// Stores the copy as its layer, which is announced to `watch`: the request has no secrets that
    /// it could contain. The deferred files are packed straight from their source.
    fn store_as_layer(
        &self,
        watch: Option<&dyn PackingWatch>,
        external: ExternalFiles,
        form: LayerForm,
    ) -> Attempt<()> {
        let Deferred { env, id, dir, .. } = *self;
        let stop = || env.cancel.is_canceled();
        let trees = env.store.lazy_trees().watched_by(watch);
        trees.store_as_layer(&env.rootfs.work, dir, external, form, &stop).map_err(|e| match e {
            StoreError::Layer(LayerError::Changed(_)) => StepError::ContextChanged,
            e @ StoreError::Layer(LayerError::WhiteoutName(_)) => env.failure(id, e, Vec::new()).into(),
            _ if env.cancel.is_canceled() => BuildError::Canceled.into(),
            e if e.is_disk_full() => no_space(env, id, e).into(),
            e => e.into(),
        })
    }

    /// Returns true if the copy may be stored as changes to the earlier one. The search for secrets
    /// requires a complete tree.
    fn can_store_as_changes(&self, incremental: &IncrementalCopy) -> Result<bool> {
        let Some(base) = incremental.base().filter(|_| incremental.has_later()) else { return Ok(false) };
        let request = self.env.request;
        let suits = request.secrets.is_empty() && !request.record_sizes && !self.step.unpack;
        Ok(suits && self.env.store.changed_trees().can_store_as_changes(base)?)
    }
}

/// Returns the tree of the most similar earlier step, if it still exists.
fn nearest_tree(env: &StepEnv<'_>, id: VertexId) -> Option<TreeId> {
    // A forced execution must not reuse files of the result that it replaces.
    if env.graph().vertices[id].ignore_cache {
        return None;
    }
    env.store.records().record(&env.nearest[id]?).ok().flatten().map(|record| record.tree)
}

/// Returns the layer form in which a copy can be stored directly, without unpacked files. This is
/// only possible if nothing will read its files.
fn packed_form(env: &StepEnv<'_>, id: VertexId) -> Option<LayerForm> {
    let request = env.request;
    let looked_at = request.record_sizes || request.salt.is_some() || !request.secrets.is_empty();
    let form = env.required.images.first().copied().filter(|form| form.squash == Squash::None)?;
    let clamped = env.graph().epoch.is_some() && !form.late_times;
    (env.schedule.is_only_in_images(env.graph(), id) && !looked_at && !clamped).then_some(form.layers)
}

/// Returns the failure of a step whose files do not fit on the disk of the store.
pub(crate) fn no_space(env: &StepEnv<'_>, id: VertexId, e: StoreError) -> BuildError {
    let remedy = e.remedy();
    env.failure(id, e, Vec::new()).with_help(remedy)
}

/// Returns the tracking data of an earlier copy, including its files.
pub(crate) fn incremental_copy(env: &StepEnv<'_>, tree: &TreeId) -> Result<IncrementalCopy> {
    let listing = Listing::from_bytes(&env.store.trees().tree_note(tree, LISTING)?);
    Ok(IncrementalCopy::since(listing, env.store.changed_trees().earlier_files(tree)?))
}

pub(crate) fn copy_error(env: &StepEnv<'_>, id: VertexId, step: &CopyStep, e: CopyError) -> StepError {
    if let CopyProblem::Source(SourceError::Changed(_)) = e.problem {
        return StepError::ContextChanged;
    }
    let span = e.index.and_then(|i| step.sources.get(i)).map(|source| source.span);
    StepError::Failed(match (e.problem, span) {
        (CopyProblem::Canceled, _) => BuildError::Canceled,
        (CopyProblem::Source(e), Some(span)) => source_error(e, span, step.from_name.as_deref()),
        (CopyProblem::Path(e), span) => path_conflict(env, id, e, span),
        (CopyProblem::Exclude(e), span) => {
            let span = span.unwrap_or(env.graph().vertices[id].span);
            BuildError::Unmet(vec![bad_exclusion(&e, span)])
        }
        (CopyProblem::Build(e), _) => *e,
        (CopyProblem::Layer(e), _) if e.is_disk_full() => no_space(env, id, env.store.trees().full(e)),
        (CopyProblem::Layer(e), Some(span)) => BuildError::Unmet(vec![not_unpacked(&e, span)]),
        (CopyProblem::Kernel(e), _) if e.is_disk_full() => no_space(env, id, env.store.trees().full(e)),
        (CopyProblem::Kernel(source), _) => {
            BuildError::Kernel { context: ErrorContext::CopyInto(&step.dest).into(), source }
        }
        (CopyProblem::Layer(source), None) => {
            BuildError::Layer { context: ErrorContext::UnpackInto(&step.dest).into(), source }
        }
        (CopyProblem::Source(e), None) => env.failure(id, e, Vec::new()),
        (CopyProblem::Store(e), _) => e.into(),
        (CopyProblem::User(e), _) => unknown_user(env, id, e),
    })
}

/// Marks the destination of the copy if it is the cause, or else the source.
fn path_conflict(env: &StepEnv<'_>, id: VertexId, e: PathConflict, source: Option<Span>) -> BuildError {
    match (e.remedy(), source) {
        (Some(remedy), _) => {
            let vertex = &env.graph().vertices[id];
            let d = Diagnostic::new(vertex.word_spans.dest.unwrap_or(vertex.span), e.to_string());
            BuildError::Unmet(vec![d.help(Remedy::from(remedy))])
        }
        (None, Some(span)) => BuildError::Unmet(vec![Diagnostic::new(span, e.to_string())]),
        (None, None) => env.failure(id, e, Vec::new()),
    }
}

fn not_unpacked(e: &LayerError, span: Span) -> Diagnostic {
    let d = Diagnostic::new(span, format!("cannot unpack the archive: {}", sentence(e)));
    Diagnostic { help: e.remedy().map(Help::from), errno: e.errno(), ..d }
}

pub(crate) fn unknown_user(env: &StepEnv<'_>, id: VertexId, e: users::UnknownUser) -> BuildError {
    let help = Some(e.remedy());
    let mut failure = env.failure(id, e, Vec::new());
    if let BuildError::Step(failure) = &mut failure {
        failure.help = help;
        failure.span = env.graph().vertices[id].word_spans.owner.unwrap_or(failure.span);
    }
    failure
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn archives_that_are_not_unpacked_are_reported_as_recorded() {
        let reasons = [
            LayerError::NotTar,
            LayerError::Changed("usr/bin/a".into()),
            LayerError::Io { context: "the archive".into(), source: std::io::Error::from_raw_os_error(5) },
        ];
        let line = |e: &LayerError| {
            let Diagnostic { message, help, errno, .. } = not_unpacked(e, Span::default());
            format!("{message}\n  remedy: {help:?}, errno: {errno:?}\n")
        };
        assert_recorded!("not-unpacked", reasons.iter().map(line).collect::<String>());
    }
}
