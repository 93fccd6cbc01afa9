//! The phases of a build that need no namespaces: parse, resolve, plan, key. A build that is fully
//! cached is answered here.

pub(crate) mod demands;
pub(crate) mod resolve;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_image::{Digest, Hasher, ManifestDigest, Platform};
use rbuild_linux::RootDir;
use rbuild_plan::{BaseImage, BuildGraph, From, HistoryEntry, Parameters, Plan, Step, Vertex, VertexId, plan};
use rbuild_source::{Content, HashCache};
use rbuild_store::{BuildIndexName, HashesName, Image, Record, SecretMark, Store};

use crate::Finished;
use crate::cache::explain;
use crate::cache::key::{self, Contexts, Keys, Viewpoint};
use crate::cache::refusal;
use crate::error::{BuildError, Result};
use crate::event::{Event, StepOutcome};
use crate::events::Events;
use crate::export::outputs::{self, View};
use crate::export::secret_scan;
use crate::prepare::resolve::{Bring, Resolver};
use crate::record::build_log::{self, Status};
use crate::request::{BuildRequest, ImageForm, OutputKind, Squash};

/// The state of a vertex before anything runs.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// Scratch or an image. It has a result, and its files are available.
    Source(Digest),
    /// A cache hit.
    Hit(Record),
    /// It must run, or cannot be looked up before its inputs have run.
    Open,
}

pub struct Prepared {
    /// The platform of the result.
    pub(crate) platform: Platform,
    pub(crate) graph: BuildGraph,
    pub(crate) known: Vec<Known>,
    /// Keys of the steps, where known.
    pub(crate) keys: Vec<Option<Digest>>,
    /// Content that each step takes from contexts.
    pub(crate) contents: Vec<Vec<Content>>,
    /// Name of the build index of steps built from this Dockerfile and these contexts.
    pub(crate) build_index: BuildIndexName,
    /// Marks of the secrets whose values are searched for.
    pub(crate) marks: Vec<SecretMark>,
    /// Images by manifest digest.
    pub(crate) images: HashMap<ManifestDigest, Image>,
    /// Hashes of context files. The builder is a separate process and has a copy of its own.
    pub(crate) hashes: Arc<HashCache>,
}

impl Known {
    pub(crate) fn result(&self) -> Option<Digest> {
        match self {
            Known::Source(result) => Some(*result),
            Known::Hit(record) => Some(record.result),
            Known::Open => None,
        }
    }
}

/// Parses and plans the Dockerfile and looks up all steps in the cache.
///
/// Images that have to be pulled are asked for through `bring`, all of a round at once.
#[tracing::instrument(target = "engine", name = "prepare", level = "debug", skip_all)]
pub fn prepare(
    request: &BuildRequest,
    params: &Parameters,
    store: &Store,
    events: &Events,
    bring: &Bring<'_>,
) -> Result<Prepared> {
    let file = rbuild_dockerfile::parse(&request.dockerfile).map_err(BuildError::Dockerfile)?;
    let mut bases = HashMap::new();
    let mut images = HashMap::new();
    let mut resolver = Resolver::new(store, request.pull, &params.platform, bring);
    let mut graph = loop {
        match plan(&file, params, &bases).map_err(BuildError::Dockerfile)? {
            Plan::Graph(graph) => break *graph,
            Plan::Needs(needs) => {
                for (need, image) in resolver.resolve(needs)? {
                    bases.insert(
                        need.image.name,
                        BaseImage { manifest: image.manifest_digest, config: image.config.clone() },
                    );
                    images.insert(image.manifest_digest, image);
                }
            }
        }
    };
    let secrets = request.secret_values();
    // The text of a step is displayed and recorded, but is not part of any result.
    for vertex in &mut graph.vertices {
        vertex.text = secrets.mask(std::mem::take(&mut vertex.text));
    }
    for warning in &graph.warnings {
        let help = warning.help.as_deref().map_or(String::new(), |h| format!(" ({h})"));
        events.send(Event::Warning { text: format!("{}{help}", warning.message) });
    }
    let name = hashes_name(request);
    let hashes = Arc::new(HashCache::new(&store.hashes(&name)?, request.now));
    let contexts = Contexts::open(request, Viewpoint::Launcher, &hashes)?;
    let marks = store.secret_marks(secret_scan::searched(&request.secrets).map(|(_, value)| value))?;
    let LookedUp { known, keys, contents, will_run } = look_up(&graph, store, &contexts, request, &marks)?;
    demands::check(request, &graph, &needed(&graph, &known, will_run))?;
    if let Some(bytes) = hashes.bytes() {
        // Losing the hashes only costs time.
        let _ = store.put_hashes(&name, &bytes);
    }
    let platform = graph.config.platform();
    let build_index = build_index_name(request, &name, &platform);
    Ok(Prepared { platform, graph, known, keys, contents, marks, images, hashes, build_index })
}

/// Returns the name of the build index: Dockerfile name, contexts and platform.
fn build_index_name(request: &BuildRequest, contexts: &HashesName, platform: &Platform) -> BuildIndexName {
    let mut hasher = Hasher::new();
    hasher
        .field("ledger 1")
        .field([u8::from(request.recorded_owners)])
        .field(contexts.bytes())
        .field(&request.dockerfile_name)
        .field(platform.to_string());
    hasher.finish()
}

/// Returns the name under which file hashes of a build's contexts are stored.
fn hashes_name(request: &BuildRequest) -> HashesName {
    let mut hasher = Hasher::new();
    for dir in request.context.iter().chain(request.named.iter().flatten()) {
        hasher.field(dir.path.as_os_str().as_encoded_bytes());
    }
    hasher.finish()
}

struct LookedUp {
    known: Vec<Known>,
    keys: Vec<Option<Digest>>,
    contents: Vec<Vec<Content>>,
    /// Commands that will run if they are needed, as far as is known.
    will_run: Vec<VertexId>,
}

/// Returns those of the steps that the target needs, in their order.
fn needed(graph: &BuildGraph, known: &[Known], mut steps: Vec<VertexId>) -> Vec<VertexId> {
    let mut seen = vec![false; graph.vertices.len()];
    let mut open = vec![graph.target];
    while let Some(id) = open.pop() {
        if matches!(known[id], Known::Open) && !std::mem::replace(&mut seen[id], true) {
            open.extend(graph.vertices[id].inputs());
        }
    }
    steps.retain(|id| seen[*id]);
    steps
}

/// Returns the result that an open step will have, if its key determines it.
fn foreseen(vertex: &Vertex, key: Option<Digest>) -> Option<Digest> {
    match &vertex.step {
        _ if vertex.ignore_cache => None,
        Step::Run(_) | Step::Workdir(_) => key,
        Step::Copy(copy) if !copy.link && !matches!(copy.from, From::Vertex(_)) => key,
        _ => None,
    }
}

#[tracing::instrument(target = "engine", name = "key", level = "debug", skip_all)]
fn look_up(
    graph: &BuildGraph,
    store: &Store,
    contexts: &Contexts,
    request: &BuildRequest,
    marks: &[SecretMark],
) -> Result<LookedUp> {
    let salt = request.key_salt();
    let mut known: Vec<Known> = Vec::with_capacity(graph.vertices.len());
    let (mut keys, mut contents, mut will_run) = (Vec::new(), Vec::new(), Vec::new());
    // Results; for open steps the foreseen ones.
    let mut results: Vec<Option<Digest>> = Vec::with_capacity(graph.vertices.len());
    for (id, vertex) in graph.vertices.iter().enumerate() {
        if matches!(vertex.step, Step::Scratch | Step::Image { .. }) {
            let result = key::source_result(&vertex.step);
            results.push(Some(result));
            known.push(Known::Source(result));
            keys.push(None);
            contents.push(Vec::new());
            continue;
        }
        let ready = vertex.inputs().iter().all(|i| known[*i].result().is_some());
        // A step with open inputs cannot be looked up, but errors in its sources are reported
        // before anything runs.
        let result_of = |id: VertexId| results[id].unwrap_or_else(|| Digest::of(b"open"));
        let maker = Keys { contexts, salt: salt.as_deref(), result_of: &result_of };
        let taken = maker.taken(vertex)?;
        let key = maker.definition(vertex, &taken, &mut |_| ())?;
        let record = match key {
            Some(key) if ready && !vertex.ignore_cache => store.record(&key)?,
            _ => None,
        };
        let record = match record {
            Some(record) => refusal::may_take(request, marks, store, &vertex.step, &record)?.then_some(record),
            None => None,
        };
        let told = key.filter(|_| vertex.inputs().iter().all(|i| results[*i].is_some()));
        let runs = |key: &Digest| Ok::<_, BuildError>(vertex.ignore_cache || store.record(key)?.is_none());
        if matches!(vertex.step, Step::Run(_)) && record.is_none() {
            let certain = told.as_ref().map_or(Ok(vertex.ignore_cache), runs)?;
            will_run.extend(certain.then_some(id));
        }
        results.push(record.as_ref().map(|record| record.result).or_else(|| foreseen(vertex, told)));
        keys.push(key.filter(|_| record.is_some()));
        contents.push(taken);
        known.push(record.map_or(Known::Open, Known::Hit));
    }
    Ok(LookedUp { known, keys, contents, will_run })
}

impl Prepared {
    /// Returns true if the build has commands, cached or not.
    pub fn has_commands(&self) -> bool {
        self.graph.vertices.iter().any(|vertex| matches!(vertex.step, Step::Run(_)))
    }

    /// Returns the key of the final image: the target's result and everything else in the image's
    /// documents.
    pub(crate) fn image_key(&self, target: &Digest, request: &BuildRequest, form: &ImageForm) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field("image 5").field(target.bytes());
        hasher.field(self.graph.epoch.map_or(String::new(), |e| e.to_string()));
        let ImageForm { layers, force, late_times, squash } = form;
        hasher.field(layers.name()).field([u8::from(*force), u8::from(*late_times), squash.number()]);
        if *squash != Squash::None {
            hasher.field("history as long as the layers");
        }
        if request.allow_leaks {
            hasher.field("secrets may be in it");
        }
        for (k, v) in &request.annotations {
            hasher.field(k).field(v);
        }
        let config = serde_json::to_vec(&self.graph.config);
        hasher.field(config.expect("a configuration has only text keys"));
        for HistoryEntry { created_by, layer } in &self.graph.history {
            hasher.field(created_by).field([u8::from(layer.is_some())]);
        }
        hasher.finish()
    }

    /// Answers the build from the cache. Returns `None` if a step must run or a file system must be
    /// mounted, which takes a builder.
    #[tracing::instrument(target = "engine", name = "answer", level = "debug", skip_all)]
    pub fn answer(&self, request: &BuildRequest, store: &Store, events: &Events) -> Result<Option<Finished>> {
        let target = &self.known[self.graph.target];
        let Some(result) = target.result() else { return Ok(None) };
        if request.weigh || request.outputs.iter().any(|output| request.is_direct(output)) {
            return Ok(None);
        }
        let needs_files = |kind| matches!(kind, OutputKind::Local | OutputKind::Tar);
        if !self.is_cleared(request, store)? {
            return Ok(None);
        }
        let wants_files = request.outputs.iter().any(|o| needs_files(o.kind));
        let single = match target {
            Known::Hit(record) if wants_files && self.bottom_is_scratch() => store.tree_if_here(&record.tree)?,
            _ => None,
        };
        if wants_files && single.is_none() {
            return Ok(None);
        }
        let mut manifests = Vec::new();
        for form in request.forms() {
            match store.result(&self.image_key(&result, request, &form))? {
                Some(manifest) => manifests.push((form, manifest)),
                None => return Ok(None),
            }
        }
        if let Some(view) = single {
            for output in request.outputs.iter().filter(|o| needs_files(o.kind)) {
                if !self.export_readable(output, &view)? {
                    return Ok(None);
                }
            }
        }
        self.report_hits(events);
        // Losing the record only costs one explanation.
        let _ = self.remember(store, &self.keys);
        let finished = outputs::publish(request, store, &[manifests], events)?;
        build_log::remember(request, std::slice::from_ref(self), store, events, Status::Done, Vec::new());
        Ok(Some(finished))
    }

    /// Records which steps were built here, for comparison with the next build. Steps without a key
    /// were not built.
    pub(crate) fn remember(&self, store: &Store, keys: &[Option<Digest>]) -> Result<()> {
        let built = self.graph.vertices.iter().zip(keys);
        let steps = built.filter_map(|(vertex, key)| Some(explain::entry(vertex, (*key)?))).collect();
        let before = store.build_index(&self.build_index)?;
        let mut after = before.clone();
        after.update(steps);
        if after != before {
            store.put_build_index(&self.build_index, &after)?;
        }
        Ok(())
    }

    /// Returns true if the target is a single step on scratch, so that its tree is its whole root
    /// file system.
    fn bottom_is_scratch(&self) -> bool {
        let parent = self.graph.vertices[self.graph.target].parent;
        parent.is_some_and(|p| matches!(self.graph.vertices[p].step, Step::Scratch))
    }

    /// Writes the files if the caller can read them all. Returns false if not: then the builder,
    /// which is root in its user namespace, must write them.
    fn export_readable(&self, output: &crate::Output, view: &RootDir) -> Result<bool> {
        if output.kind != OutputKind::Local || output.split == Some(true) {
            return Ok(false);
        }
        let root = view.try_clone().map_err(BuildError::kernel("the result"))?;
        match outputs::files(output, &[View { folder: PathBuf::new(), root, epoch: self.graph.epoch }]) {
            Ok(()) => Ok(true),
            Err(BuildError::Kernel { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Reports the cached steps.
    pub(crate) fn report_hits(&self, events: &Events) {
        for (step, known) in self.known.iter().enumerate() {
            let vertex = &self.graph.vertices[step];
            if matches!(known, Known::Hit(_)) {
                events.send(Event::Started { step, label: vertex.name.to_string(), text: vertex.text.clone() });
                if let Some(key) = self.keys[step] {
                    events.send(Event::Why { step, text: explain::hit(&key) });
                }
                events.send(Event::Done { step, outcome: StepOutcome::Cached, seconds: 0.0 });
            }
        }
    }
}
