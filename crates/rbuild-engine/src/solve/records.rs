//! Cache records of a single vertex: lookup, adoption, publication, and the reason for a miss.

use rbuild_image::Hasher;
use rbuild_plan::{Step, Vertex, VertexId};
use rbuild_source::Changes;
use rbuild_store::{CacheKey, CachedStep, KeyInputs, NewTree, RecordedStep, ResultId, TreeId};
use rbuild_transport::LostLayer;

use crate::cache::explain;
use crate::cache::miss::Miss;
use crate::cache::notes;
use crate::env::StepEnv;
use crate::error::Result;
use crate::event::Event;
use crate::prepare::lookup::{is_searched_for, may_use};
use crate::results::VertexResult;
use crate::warning::BuildWarning;

/// The records of a step under two keys: the definition key, and the key `shared` that is passed to
/// the methods. `shared` is the content key, which is the same for all steps that read the same
/// files, or else the definition key.
pub(crate) struct StepRecords<'a> {
    pub env: &'a StepEnv<'a>,
    pub id: VertexId,
    /// The definition key.
    pub key: CacheKey,
    pub key_inputs: &'a KeyInputs,
}

impl StepRecords<'_> {
    fn vertex(&self) -> &Vertex {
        &self.env.graph().vertices[self.id]
    }

    /// Looks for a tree of `shared` that this build may use. If there is one, makes it the result
    /// of the vertex and returns true. A tree that this build made by executing an equal step takes
    /// precedence, even if another build has replaced its record: equal steps are executed only
    /// once per build. A vertex that ignores the cache uses no other tree.
    pub fn hit(&self, shared: &CacheKey) -> Result<bool> {
        if self.own_execution(shared)? {
            return Ok(true);
        }
        if self.vertex().ignore_cache {
            return Ok(false);
        }
        match self.env.store.records().latest_record(shared)? {
            Some(record) if self.may_use(&record.tree)? => {
                self.take(shared, record.tree, &record.result, record.created)
            }
            _ => Ok(false),
        }
    }

    /// Takes the tree that this build made by executing an equal step, if there is one, as
    /// [`Self::hit`] does. It is never made again, because it may be in use.
    fn own_execution(&self, shared: &CacheKey) -> Result<bool> {
        let made = self.env.store.trees().committed_step(&self.execution(shared))?;
        let Some(tree) = made else { return Ok(false) };
        self.take(shared, tree, &self.digest_of_files(shared), self.env.request.now)
    }

    /// Returns the digest of the files that this build makes by executing the step. Two runs of a
    /// command may differ, so each run has its own digest.
    fn digest_of_files(&self, shared: &CacheKey) -> ResultId {
        match self.vertex().step {
            Step::Run(_) => self.execution(shared),
            _ if self.vertex().ignore_cache => self.execution(shared),
            _ => ResultId::from(*shared),
        }
    }

    /// Looks up the record of `shared` for the other kind of owners. If its files can be adopted,
    /// takes it as [`Self::hit`] does. The caller holds the lock of `shared`.
    pub fn adopted(&self, shared: &CacheKey) -> Result<bool> {
        let env = self.env;
        // A record of this kind that may not be used will be replaced.
        if self.vertex().ignore_cache || env.store.records().latest_record(shared)?.is_some() {
            return Ok(false);
        }
        let Some(theirs) = env.store.records().foreign_record(shared)? else { return Ok(false) };
        if !self.may_use(theirs.tree_of_notes())? {
            return Ok(false);
        }
        match env.store.lazy_trees().adopt(env.rootfs.session(), shared, &theirs)? {
            Some(record) => self.take(shared, record.tree, &record.result, record.created),
            None => Ok(false),
        }
    }

    /// Looks up the step in the caches besides the store: by its definition key, which may be known
    /// only now, and by `shared`. If its layer can be used, takes it as [`Self::hit`] does. The
    /// caller holds the lock of `shared`.
    pub fn imported(&self, shared: &CacheKey) -> Result<bool> {
        let env = self.env;
        let caches = &env.request.caches;
        if self.vertex().ignore_cache || env.request.salt.is_some() || caches.is_empty() {
            return Ok(false);
        }
        // A record of the store that may not be used will be replaced.
        if env.store.records().latest_record(shared)?.is_some() {
            return Ok(false);
        }
        let find = || caches.step(&self.key).or_else(|| caches.step_of_content(shared));
        while let Some(found) = find().filter(|found| is_searched_for(&self.vertex().step, found)) {
            let lost = caches.fetch(env.store, &env.rootfs.work, &[&found])?;
            for LostLayer { cache, cause } in &lost {
                env.events.send(Event::Warning(BuildWarning::LostLayer { cache, cause }.into()));
            }
            if !lost.is_empty() {
                continue;
            }
            let result = if self.is_linked() { self.digest_of_files(shared) } else { found.step.result };
            let step = CachedStep { key: *shared, shared: None, result, note: None, ..found.step.clone() };
            if let Some(record) =
                env.store.lazy_trees().import_step(env.rootfs.session(), &step, caches.origin_of(&found))?
            {
                tracing::debug!(target: "engine", key = shared.short(), "hit in another cache");
                return self.take(shared, record.tree, &record.result, record.created);
            }
            caches.give_up(&found);
        }
        Ok(false)
    }

    fn is_linked(&self) -> bool {
        matches!(&self.vertex().step, Step::Copy(copy) if copy.link)
    }

    /// Takes a tree that is recorded under `shared`, with the digest of its files, as the result of
    /// the vertex.
    fn take(&self, shared: &CacheKey, tree: TreeId, files: &ResultId, created: i64) -> Result<bool> {
        let result = self.result_of(shared, files);
        if *shared != self.key {
            self.env.store.records().put_key_inputs(&self.key, self.key_inputs)?;
        }
        self.finish(shared, tree, result, created)?;
        Ok(true)
    }

    /// Publishes a new tree and its records. The caller holds the lock of `shared`. Unlike other
    /// trees (`Session::tree_once`), the tree of a step has the digest of its execution as its ID,
    /// and there may be a second record under the definition key.
    pub fn publish(&self, shared: &CacheKey, made: &NewTree) -> Result<()> {
        let env = self.env;
        let execution = self.execution(shared);
        let files = self.digest_of_files(shared);
        // The tree of an earlier execution is kept, because it may be in use.
        let tree = env.store.trees().commit_step(&env.rootfs.work, made, &execution)?;
        env.store.records().put_key_inputs(&self.key, self.key_inputs)?;
        env.rootfs.session().put_record(shared, &tree, files)?;
        self.finish(shared, tree, self.result_of(shared, &files), env.request.now)
    }

    /// Records the result under the definition key as well, and makes it the outcome of the vertex.
    fn finish(&self, shared: &CacheKey, tree: TreeId, result: ResultId, created: i64) -> Result<()> {
        let env = self.env;
        if *shared != self.key {
            let origin = env.store.records().record(shared)?.and_then(|record| record.origin);
            let step = RecordedStep { tree: &tree, result, created, origin: origin.as_ref() };
            env.rootfs.session().put_record_of(&self.key, shared, &step)?;
        }
        env.results.set(self.id, VertexResult { result, tree: Some(tree), created, key: Some(self.key) });
        Ok(())
    }

    /// Returns the reason why the step must run, as far as it is known from earlier builds.
    /// `before` are the inputs of the key of the most similar earlier step.
    pub fn reason(&self, before: Option<&KeyInputs>, changes: Option<&Changes>) -> String {
        let (store, key) = (self.env.store, &self.key);
        if self.vertex().ignore_cache || self.env.request.salt.is_some() {
            return Miss::Disabled.to_string();
        }
        let Some(nearest) = &self.env.nearest[self.id] else {
            return self.reason_of_caches(Miss::InNoCache).unwrap_or_else(|| Miss::NoEarlierBuild.to_string());
        };
        if nearest == key {
            return match (store.records().record(key), store.records().foreign_record(key)) {
                (Ok(Some(_)), _) => Miss::Secret,
                (_, Ok(Some(theirs))) if !self.may_use(theirs.tree_of_notes()).unwrap_or(true) => Miss::Secret,
                (_, Ok(Some(_))) => Miss::OtherOwners,
                _ => Miss::Evicted,
            }
            .to_string();
        }
        let Some(before) = before else {
            // A build whose result came from caches only may have left no inputs here.
            let forgotten = Miss::InputsForgotten;
            return self.reason_of_caches(forgotten).unwrap_or_else(|| forgotten.to_string());
        };
        if before.version != self.key_inputs.version {
            return Miss::KeyFormat.to_string();
        }
        let reduced = before.is_reduced.then(|| notes::reduced(self.key_inputs));
        let differences = explain::differences(reduced.as_ref().unwrap_or(self.key_inputs), before, changes);
        if !differences.is_empty() {
            return differences.join("; ");
        }
        let masked = explain::has_masked(self.key_inputs) && explain::has_masked(before);
        if masked { Miss::MaskedValue.to_string() } else { Miss::NoDifference.to_string() }
    }

    /// Returns the reason why no cache besides the store has the step, as far as its records state;
    /// `otherwise` if they have no similar step, and `None` if there are no such caches.
    fn reason_of_caches(&self, otherwise: Miss) -> Option<String> {
        let caches = &self.env.request.caches;
        if caches.is_empty() {
            return None;
        }
        let secrets = self.env.request.secret_values();
        let Some(similar) = notes::most_similar(caches, self.vertex(), self.key_inputs, &secrets) else {
            return Some(otherwise.to_string());
        };
        let reason = if similar.step.key == self.key {
            Miss::Unusable.to_string()
        } else if similar.has_other_form {
            Miss::KeyFormat.to_string()
        } else if similar.differences.is_empty() {
            Miss::MaskedValue.to_string()
        } else {
            similar.differences.join("; ")
        };
        Some(format!("{reason} (compared with a build in the cache {})", similar.cache))
    }

    /// Returns true if the build may use that tree: it contains no secret that the build was not
    /// given.
    fn may_use(&self, tree: &TreeId) -> Result<bool> {
        may_use(&self.env.prepared.secret_hashes, self.env.store, &self.vertex().step, tree)
    }

    /// Returns a digest that is unique to this execution. A build executes equal steps only once,
    /// for all platforms.
    fn execution(&self, shared: &CacheKey) -> ResultId {
        let mut hasher = Hasher::new();
        hasher.field("execution").field(shared.bytes()).field(self.env.request.build_id.as_str());
        hasher.finish()
    }

    /// Returns the digest that dependants include in their keys. `files` is the digest in the
    /// record of `shared`. The files of a linked copy do not depend on the parent, but the
    /// resulting root file system does.
    fn result_of(&self, shared: &CacheKey, files: &ResultId) -> ResultId {
        if !self.is_linked() || *shared == self.key {
            return *files;
        }
        let mut hasher = Hasher::new();
        hasher.field("linked").field(self.key.bytes()).field(files.bytes());
        hasher.finish()
    }
}
