//! Processing of a single vertex: key, cache lookup, execution, and the reason for it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rbuild_image::Hasher;
use rbuild_linux::RootDir;
use rbuild_plan::{CacheStep, CopyStep, From, MountKindStep, RunStep, Step, VertexId};
use rbuild_source::{Changes, Content, SourceError};
use rbuild_store::{CacheKey, KeyInputs, Record, ResultId, TreeId};

use crate::cache::explain::{self, Bookkeeper};
use crate::cache::key::{self, Keys, Read, StageFiles, source_error};
use crate::error::{BuildError, Result};
use crate::event::{Event, StepOutcome};
use crate::prepare::lookup::may_take;
use crate::solve::executor::{Done, Executor};

/// Maximum number of attempts to copy a context that changes meanwhile.
const LOOKS: usize = 3;

/// Reason why the result of a command that mounted a secret is not taken.
const SECRET: &str = "its earlier result holds a secret that this build was not given";

impl Executor<'_> {
    /// Looks up or makes the result of a vertex whose inputs are done.
    #[tracing::instrument(target = "engine", name = "vertex", level = "debug", skip_all, fields(step = id, label = %self.prepared.graph.vertices[id].name))]
    pub(crate) fn vertex(&self, id: VertexId) -> Result<()> {
        let vertex = &self.prepared.graph.vertices[id];
        if let Step::Image { manifest, .. } = &vertex.step {
            return self.unpack(id, manifest);
        }
        if matches!(vertex.step, Step::Scratch) {
            return Ok(());
        }
        let started = Instant::now();
        let label = vertex.name.to_string();
        self.events.send(Event::Started { step: id, label, text: vertex.text.clone() });
        let outcome = self.keyed(id);
        let outcome_kind = match &outcome {
            Ok(true) => StepOutcome::Cached,
            Ok(false) => StepOutcome::Done,
            Err(BuildError::Cancelled) => StepOutcome::Cancelled,
            Err(_) => StepOutcome::Failed,
        };
        self.events.send(Event::Done { step: id, outcome: outcome_kind, seconds: started.elapsed().as_secs_f64() });
        outcome.map(|_| ())
    }

    /// Returns the number of the step in the build's log.
    pub(crate) fn log_number(&self, id: VertexId) -> usize {
        self.first_step + id
    }

    /// Computes the key, then looks up or makes the result. Repeats a few times if the context
    /// changes meanwhile.
    fn keyed(&self, id: VertexId) -> Result<bool> {
        let vertex = &self.prepared.graph.vertices[id];
        let result_of = |i: VertexId| self.done(i).result;
        let keys = Keys { contexts: &self.contexts, salt: self.request.salt.as_deref(), result_of: &result_of };
        let mut taken = self.prepared.contents[id].clone();
        for _ in 0..LOOKS {
            let secrets = self.request.secret_values();
            let key_inputs = KeyInputs::default();
            let mut book = Bookkeeper { graph: &self.prepared.graph, result_of: &result_of, key_inputs, secrets };
            let key = keys.definition(vertex, &taken, &mut |part| book.note(part))?;
            let key = key.ok_or_else(|| BuildError::other("a step has no key"))?;
            match self.cached_or_executed(id, &key, &taken, &book.key_inputs) {
                Err(BuildError::Moved) => taken = keys.taken(vertex)?,
                other => return other,
            }
        }
        let last = keys.changed_last(vertex).filter(|path| !path.as_os_str().is_empty());
        Err(source_error(SourceError::Changed(last.unwrap_or_else(|| ".".into())), vertex.span))
    }

    /// Looks up or makes the result. Returns true if it was cached.
    #[tracing::instrument(target = "engine", name = "once", level = "debug", skip_all, fields(step = id, key = %key.short()))]
    fn cached_or_executed(
        &self,
        id: VertexId,
        key: &CacheKey,
        taken: &[Content],
        key_inputs: &KeyInputs,
    ) -> Result<bool> {
        let tell = |text: String| self.events.send(Event::Why { step: id, text });
        if self.hit(id, key, key, key_inputs)? {
            tell(explain::hit(key));
            return Ok(true);
        }
        let vertex = &self.prepared.graph.vertices[id];
        // Key under which other steps may have made the same files.
        let mut shared = *key;
        let stage = match &vertex.step {
            Step::Copy(CopyStep { from: From::Vertex(from), .. }) => Some(StageFiles::new(self.view(*from)?)),
            _ => None,
        };
        if let Some(contents) = self.contents_read(&vertex.step, taken, stage.as_ref())? {
            let linked = matches!(&vertex.step, Step::Copy(copy) if copy.link);
            let parent = vertex.parent.map_or(ResultId::from(*key), |p| self.done(p).result);
            let parent = (!linked).then_some(&parent);
            shared = key::content_key(vertex, self.request.salt.as_deref(), parent, &contents);
            if self.hit(id, &shared, key, key_inputs)? {
                tell(explain::hit(&shared));
                return Ok(true);
            }
        }
        // Equal steps of other builds wait for the lock and then find the record.
        let _alone = self.store.lock_step(&shared)?;
        if self.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        if self.hit(id, &shared, key, key_inputs)? || self.adopted(id, &shared, key, key_inputs)? {
            tell(explain::hit(&shared));
            return Ok(true);
        }
        let before = self.nearest[id].and_then(|key| self.store.key_inputs(&key).ok().flatten());
        let why = |changes: Option<&Changes>| tell(self.reason(id, key, key_inputs, before.as_ref(), changes));
        let made = self.make(id, taken, stage.as_ref(), before.as_ref(), &why)?;
        let dir = RootDir::open(&made).map_err(BuildError::kernel("the step's directory"))?;
        self.judge(id, &dir)?;
        self.publish(id, key, &shared, &made, key_inputs)?;
        Ok(false)
    }

    /// Publishes a new tree and its records. The caller holds the lock of `shared`.
    fn publish(
        &self,
        id: VertexId,
        key: &CacheKey,
        shared: &CacheKey,
        made: &Path,
        key_inputs: &KeyInputs,
    ) -> Result<()> {
        let vertex = &self.prepared.graph.vertices[id];
        let execution = self.execution(shared);
        // Another run of a command may give other files, so a result never stands for two of them.
        let is_run = matches!(vertex.step, Step::Run(_));
        let files = if is_run || vertex.ignore_cache { execution } else { ResultId::from(*shared) };
        let result = self.result_of(id, key, shared, &files);
        let (created, build) = (self.request.now, self.request.build_id.as_str());
        // The tree of an earlier execution stays in place, as it may be in use.
        let tree = self.store.step_tree(&execution);
        self.store.commit_tree(&self.work, made, &tree)?;
        self.store.put_key_inputs(key, key_inputs)?;
        self.store.put_record(shared, &tree, &files, created, build)?;
        if shared != key {
            self.store.put_record_of(key, shared, &tree, &result, created, build)?;
        }
        let _ = self.done[id].set(Done { result, tree: Some(tree), created, key: Some(*key) });
        Ok(())
    }

    /// Executes a step into a new tree; returns its directory. `before` holds the key inputs of
    /// the most similar earlier step. `why` is called with the changes among the step's source
    /// files as soon as they are known.
    #[tracing::instrument(target = "engine", name = "make", level = "debug", skip_all, fields(step = id))]
    fn make(
        &self,
        id: VertexId,
        taken: &[Content],
        stage: Option<&StageFiles>,
        before: Option<&KeyInputs>,
        why: &dyn Fn(Option<&Changes>),
    ) -> Result<PathBuf> {
        let (made, dir) = self.new_tree(id)?;
        match &self.prepared.graph.vertices[id].step {
            // Changes show while files are copied.
            Step::Copy(step) => {
                let copied = self.copy_step(id, step, taken, stage, (&made, &dir));
                why(copied.map_err(|e| self.or_moved(id, taken, e))?.as_ref());
            }
            Step::Run(run) => {
                let parts = self.context_parts(run, taken, before);
                let (parts, changes) = parts.map_err(|e| self.or_moved(id, taken, e))?;
                why(changes.as_ref());
                self.run_step(id, run, (parts, taken), &made)?;
            }
            Step::Workdir(step) => {
                why(None);
                self.workdir_step(id, step, &made)?;
            }
            Step::Scratch | Step::Image { .. } => {}
        }
        Ok(made)
    }

    /// Replaces the error of a step that was reading a context by [`BuildError::Moved`], if the
    /// context has changed.
    fn or_moved(&self, id: VertexId, taken: &[Content], error: BuildError) -> BuildError {
        if taken.is_empty() || self.cancel.is_cancelled() {
            return error;
        }
        let result_of = |i: VertexId| self.done(i).result;
        let keys = Keys { contexts: &self.contexts, salt: None, result_of: &result_of };
        match keys.taken(&self.prepared.graph.vertices[id]) {
            Ok(now) if now == taken => error,
            Ok(_) => BuildError::Moved,
            Err(e) => e,
        }
    }

    /// Returns the content that a step reads beyond what its definition key covers by content:
    /// files of other stages, copied or mounted, and linked copies. Returns `None` if there is
    /// none.
    fn contents_read(&self, step: &Step, taken: &[Content], stage: Option<&StageFiles>) -> Result<Option<Vec<Read>>> {
        match (step, stage) {
            (Step::Copy(copy), Some(stage)) => {
                Ok(Some(vec![Read::Files(key::sources_content(&stage.tree(), copy)?.digest)]))
            }
            (Step::Copy(copy), None) if copy.link => Ok(taken.first().map(|content| vec![Read::Files(content.digest)])),
            (Step::Run(run), _) => self.contents_mounted(run, taken),
            _ => Ok(None),
        }
    }

    /// Returns the content of a command's mounts of stages and contexts, in order. Returns `None`
    /// if it mounts no stage, or if a mounted path does not exist.
    fn contents_mounted(&self, run: &RunStep, taken: &[Content]) -> Result<Option<Vec<Read>>> {
        let (mut contents, mut stages) = (Vec::new(), 0);
        let mut taken = taken.iter();
        for mount in &run.mounts {
            let (from, source) = match &mount.kind {
                MountKindStep::Bind { from: From::Vertex(from), source } => (from, source),
                MountKindStep::Cache(CacheStep { from: Some(From::Vertex(seed)), .. }) => {
                    contents.push(Read::Result(self.done(*seed).result));
                    continue;
                }
                MountKindStep::Bind { .. } | MountKindStep::Cache(CacheStep { from: Some(_), .. }) => {
                    contents.extend(taken.next().map(|content| Read::Files(content.digest)));
                    continue;
                }
                _ => continue,
            };
            stages += 1;
            let is_made = !matches!(self.prepared.graph.vertices[*from].step, Step::Scratch | Step::Image { .. });
            // A whole image is identified by its result, without reading its files.
            let whole = !is_made && source.trim_matches('/').is_empty();
            let content = match whole {
                true => Some(Read::Result(self.done(*from).result)),
                false => key::mounted_content(&StageFiles::new(self.view(*from)?), source)
                    .map_err(|e| source_error(e, mount.span))?
                    .map(Read::Files),
            };
            let Some(content) = content else { return Ok(None) };
            contents.push(content);
        }
        Ok((stages > 0).then_some(contents))
    }

    /// Returns the reason why a step must run, as far as earlier builds tell.
    fn reason(
        &self,
        id: VertexId,
        key: &CacheKey,
        key_inputs: &KeyInputs,
        before: Option<&KeyInputs>,
        changes: Option<&Changes>,
    ) -> String {
        if self.prepared.graph.vertices[id].ignore_cache {
            return "it was asked to run again".into();
        }
        let Some(nearest) = &self.nearest[id] else { return "it was not built here before".into() };
        if nearest == key {
            return match (self.store.record(key), self.store.foreign_record(key)) {
                (Ok(Some(_)), _) => SECRET,
                (_, Ok(Some(theirs))) if !self.may_take(id, key, theirs.noted()).unwrap_or(true) => SECRET,
                (_, Ok(Some(_))) => "its files are needed, and those in the cache are of another isolation mode",
                _ => "its earlier result is no longer in the cache",
            }
            .into();
        }
        let Some(before) = before else { return "what it was built of before is no longer known".into() };
        let differences = explain::differences(key_inputs, before, changes);
        if differences.is_empty() { "the earlier key was made by other rules".into() } else { differences.join("; ") }
    }

    /// Returns the tree of the most similar earlier step, if it still exists.
    pub(crate) fn nearest_tree(&self, id: VertexId) -> Option<TreeId> {
        // A forced run takes nothing from the result that it replaces.
        if self.prepared.graph.vertices[id].ignore_cache {
            return None;
        }
        self.store.record(&self.nearest[id]?).ok().flatten().map(|record| record.tree)
    }

    /// Returns a digest that no other execution of a step has. One build executes each step once,
    /// for all platforms.
    fn execution(&self, shared: &CacheKey) -> ResultId {
        let mut hasher = Hasher::new();
        hasher.field("execution").field(shared.bytes()).field(&self.request.build_id);
        hasher.finish()
    }

    /// Returns the digest that dependants include in their keys. `files` is the digest in the
    /// record of `shared`. The files of a linked copy do not depend on the parent, but the resulting
    /// root file system does.
    fn result_of(&self, id: VertexId, key: &CacheKey, shared: &CacheKey, files: &ResultId) -> ResultId {
        let linked = matches!(&self.prepared.graph.vertices[id].step, Step::Copy(copy) if copy.link);
        if !linked || shared == key {
            return *files;
        }
        let mut hasher = Hasher::new();
        hasher.field("linked").field(key.bytes()).field(files.bytes());
        hasher.finish()
    }

    /// Looks up the record of `shared`; if there is a usable one, takes it as the result of the
    /// vertex, whose definition key is `key`. Returns true if it does.
    fn hit(&self, id: VertexId, shared: &CacheKey, key: &CacheKey, key_inputs: &KeyInputs) -> Result<bool> {
        match self.store.record(shared)? {
            Some(record) if self.may_take(id, shared, &record.tree)? => self.take(id, record, shared, key, key_inputs),
            _ => Ok(false),
        }
    }

    /// Looks up the record of `shared` for the other kind of owners; if there is one whose files can
    /// be adopted, takes it as [`Self::hit`] does. The caller holds the lock of `shared`.
    fn adopted(&self, id: VertexId, shared: &CacheKey, key: &CacheKey, key_inputs: &KeyInputs) -> Result<bool> {
        // A record of this kind that may not be taken is to be replaced.
        if self.prepared.graph.vertices[id].ignore_cache || self.store.record(shared)?.is_some() {
            return Ok(false);
        }
        let Some(theirs) = self.store.foreign_record(shared)? else { return Ok(false) };
        if !self.may_take(id, shared, theirs.noted())? {
            return Ok(false);
        }
        match self.store.adopt(&self.work, shared, &theirs, &self.request.build_id)? {
            Some(record) => self.take(id, record, shared, key, key_inputs),
            None => Ok(false),
        }
    }

    /// Returns true if the build may take the result with that tree, recorded under `shared`, for a
    /// vertex. A vertex that ignores the cache takes what this build has executed.
    fn may_take(&self, id: VertexId, shared: &CacheKey, tree: &TreeId) -> Result<bool> {
        let vertex = &self.prepared.graph.vertices[id];
        if vertex.ignore_cache && *tree != self.store.step_tree(&self.execution(shared)) {
            return Ok(false);
        }
        may_take(self.request, &self.prepared.marks, self.store, &vertex.step, tree)
    }

    /// Takes a record of `shared` as the result of a vertex.
    fn take(
        &self,
        id: VertexId,
        record: Record,
        shared: &CacheKey,
        key: &CacheKey,
        key_inputs: &KeyInputs,
    ) -> Result<bool> {
        let Record { tree, result: files, created, .. } = record;
        let result = self.result_of(id, key, shared, &files);
        if shared != key {
            self.store.put_key_inputs(key, key_inputs)?;
            self.store.put_record_of(key, shared, &tree, &result, created, &self.request.build_id)?;
        }
        let _ = self.done[id].set(Done { result, tree: Some(tree), created, key: Some(*key) });
        Ok(true)
    }
}
