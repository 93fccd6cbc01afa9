//! The phases of a build that need no namespaces: resolve, plan, key.

mod buildkit_walk;
mod cache_targets;
pub(crate) mod demands;
pub(crate) mod image_key;
pub(crate) mod lent_layers;
pub(crate) mod lookup;
pub(crate) mod needed_images;
pub(crate) mod resolve;
pub(crate) mod vertex_state;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_dockerfile::ast::Dockerfile;
use rbuild_image::{Hasher, ManifestDigest, Platform};
use rbuild_plan::{BaseImage, BuildGraph, Parameters, Plan, Step, VertexId, plan};
use rbuild_source::HashCache;
use rbuild_store::{BuildIndexName, CacheKey, HashesName, Image, SecretHash, Store};
use rbuild_transport::{ImportedCaches, LentLayer};

use crate::builder_paths::context_dirs;
use crate::cache::explain;
use crate::cache::key::KeyBuilder;
use crate::contexts::{Contexts, Viewpoint};
use crate::copy_warnings::CopyWarnings;
use crate::downloads::DownloadedFiles;
use crate::error::{BuildError, Result};
use crate::event::{Event, StepOutcome, Warning};
use crate::events::Events;
use crate::network_access::NetworkAccess;
use crate::prepare::lookup::{LookedUp, Lookup, PreparedVertex};
use crate::prepare::needed_images::NeededImages;
use crate::prepare::resolve::{Resolver, stored_image};
use crate::prepare::vertex_state::VertexState;
use crate::request::{BuildRequest, PullPolicy};
use crate::secret_scan;
use crate::warning::BuildWarning;

/// A planned build for one platform, after the cache lookup.
pub struct Prepared {
    /// The platform of the result.
    pub(crate) platform: Platform,
    pub(crate) graph: BuildGraph,
    /// The vertices of the graph after the lookup, in its order.
    pub(crate) vertices: Vec<PreparedVertex>,
    /// Name of the build index of steps built from this Dockerfile and these contexts.
    pub(crate) build_index: BuildIndexName,
    /// Hashes of the secrets whose values are searched for.
    pub(crate) secret_hashes: Vec<SecretHash>,
    /// Images by manifest digest.
    pub(crate) images: HashMap<ManifestDigest, Image>,
    /// The layers of the target's base that the store lacks, with the name that it is pulled by.
    pub(crate) missing_base: Vec<LentLayer>,
    /// True if the layers of the image stay where they are, because it is only pushed.
    pub(crate) is_lent: bool,
    /// The images whose layers the build needs.
    needed_images: NeededImages,
    /// Key of the first command that will run, if it is known and other machines can use its
    /// result.
    missing: Option<CacheKey>,
    /// The downloaded files of the steps.
    pub(crate) downloads: DownloadedFiles,
    /// Hashes of context files. The builder is a separate process and has its own copy.
    pub(crate) hashes: Arc<HashCache>,
    /// Path of the store in a context, if it was skipped there.
    skipped_store: Option<PathBuf>,
}

/// A request with its planned builds, one for each platform.
#[derive(Clone, Copy)]
pub struct PreparedBuild<'a> {
    pub request: &'a BuildRequest,
    pub platforms: &'a [Prepared],
}

/// Plans the Dockerfile and looks up all steps in the cache.
///
/// Images to pull are requested through `network`, all images of one round of planning together.
/// Then the files to download are requested.
#[tracing::instrument(target = "engine", name = "prepare", level = "debug", skip_all)]
pub fn prepare(
    request: &BuildRequest,
    file: &Dockerfile,
    params: &Parameters,
    store: &Store,
    events: &Events,
    network: &NetworkAccess<'_>,
) -> Result<Prepared> {
    let (mut graph, images) = plan_with_images(file, params, Resolver::new(store, request.pull, network))?;
    let secrets = request.secret_values();
    // The text of a step is displayed and recorded, but is not part of any result.
    for vertex in &mut graph.vertices {
        vertex.text = secrets.mask(std::mem::take(&mut vertex.text));
    }
    for warning in &graph.warnings {
        events.send(Event::Warning(Warning { text: warning.message.clone(), help: warning.help.clone() }));
    }
    let of_secrets = [demands::misspelled(request, &graph), demands::unsearched(request, &graph)].concat();
    let of_caches = cache_targets::unused_mounts(request, &graph).into_iter();
    let of_caches = of_caches.chain(cache_targets::inline_without_effect(request, &graph));
    of_secrets.into_iter().chain(of_caches).for_each(|warning| events.send(Event::Warning(warning)));
    let downloads = DownloadedFiles::download(&graph, store, network)?;
    let name = hashes_name(request);
    let hashes = Arc::new(HashCache::new(store.records().hashes(&name)?, request.now));
    let contexts = Contexts::open(request, Viewpoint::Launcher, &hashes, store)?;
    let secret_hashes =
        store.secrets().secret_hashes(secret_scan::searched(&request.secrets).map(|(_, value)| value))?;
    let missing_base = lent_layers::missing_base(&graph, &images, network, store)?;
    let lookup = Lookup {
        graph: &graph,
        store,
        contexts: &contexts,
        downloads: &downloads,
        request,
        secret_hashes: &secret_hashes,
        events,
        lends_base: !missing_base.is_empty(),
    };
    let LookedUp { vertices, will_run, is_lent, missing } = lookup.look_up()?;
    demands::check(request, &graph, &lookup::needed(&graph, &vertices, will_run))?;
    if let Some(bytes) = hashes.bytes() {
        // If the hashes are lost, only time is lost.
        let _ = store.records().put_hashes(&name, &bytes);
    }
    let platform = graph.config.platform();
    let build_index = build_index_name(request, &name, &platform);
    let skipped_store = contexts.skipped_store().map(Path::to_path_buf);
    // A base that stays in a registry beside steps that run is one of a single platform.
    let may_lend = !missing_base.is_empty() && secret_hashes.is_empty() && (is_lent || request.platforms.len() <= 1);
    let needed_images = NeededImages::of(&graph, &vertices, request, may_lend);
    Ok(Prepared {
        platform,
        graph,
        vertices,
        secret_hashes,
        images,
        missing_base,
        is_lent,
        needed_images,
        missing,
        downloads,
        hashes,
        build_index,
        skipped_store,
    })
}

/// Plans the Dockerfile with the configurations of the images that it needs. Also returns these
/// images.
fn plan_with_images(
    file: &Dockerfile,
    params: &Parameters,
    mut resolver: Resolver<'_>,
) -> Result<(BuildGraph, HashMap<ManifestDigest, Image>)> {
    let (mut bases, mut images) = (HashMap::new(), HashMap::new());
    loop {
        match plan(file, params, &bases).map_err(BuildError::Dockerfile)? {
            Plan::Graph(graph) => return Ok((*graph, images)),
            Plan::Needs(needs) => {
                for (need, image) in resolver.resolve(needs)? {
                    bases.insert(
                        need.key(),
                        BaseImage { manifest: image.manifest_digest, config: image.config.clone() },
                    );
                    images.insert(image.manifest_digest, image);
                }
            }
        }
    }
}

/// Warns once if the store was skipped in a context of any platform.
pub fn warn_of_store(prepared: &[Prepared], events: &Events) {
    if let Some(path) = prepared.iter().find_map(|prepared| prepared.skipped_store.as_deref()) {
        events.send(Event::Warning(BuildWarning::StoreLeftOut { path }.into()));
    }
}

/// Looks for mistakes in the target, or in all stages if no target was requested. Stages whose
/// images are not in the store are not checked; nothing is pulled.
///
/// # Errors
///
/// Fails with the mistakes, or if the store cannot be read.
pub fn check(file: &Dockerfile, params: &Parameters, store: &Store, policy: PullPolicy) -> Result<()> {
    let mut bases = HashMap::new();
    loop {
        let known = bases.len();
        for need in rbuild_plan::check(file, params, &bases).map_err(BuildError::Dockerfile)? {
            let stored = stored_image(store, &need.key(), policy)?;
            let base = stored.map(|image| BaseImage { manifest: image.manifest_digest, config: image.config });
            bases.extend(base.map(|base| (need.key(), base)));
        }
        if bases.len() == known {
            return Ok(());
        }
    }
}

/// Returns the name of the build index: Dockerfile name, contexts and platform.
fn build_index_name(request: &BuildRequest, contexts: &HashesName, platform: &Platform) -> BuildIndexName {
    let mut hasher = Hasher::new();
    hasher.field("ledger 2").field(contexts.bytes()).field(&request.dockerfile_name).field(platform.to_string());
    hasher.finish()
}

/// Returns the name under which file hashes of a build's contexts are stored.
fn hashes_name(request: &BuildRequest) -> HashesName {
    let mut hasher = Hasher::new();
    for (_, dir) in context_dirs(request) {
        hasher.field(dir.path.as_os_str().as_encoded_bytes());
    }
    hasher.finish()
}

impl Prepared {
    /// Returns true if the build has commands, cached or not.
    pub fn has_commands(&self) -> bool {
        self.graph.vertices.iter().any(|vertex| matches!(vertex.step, Step::Run(_)))
    }

    /// Returns true if some steps are not known to be cached.
    pub fn has_open_steps(&self) -> bool {
        self.vertices.iter().any(|vertex| matches!(vertex.state, VertexState::Open))
    }

    /// Returns true if the build needs the layers of an image.
    pub fn needs_image(&self, image: &ManifestDigest) -> bool {
        self.needed_images.images.contains(image)
    }

    /// Returns the layers of its base that the image is made without; none unless the image is only
    /// pushed.
    pub fn lent_base(&self) -> &[LentLayer] {
        if self.needed_images.lends_base { &self.missing_base } else { &[] }
    }

    /// Returns the key of the first command that will run, if it is known before anything runs and
    /// the caches that the build writes may have the result.
    pub fn first_missing(&self) -> Option<CacheKey> {
        self.missing
    }

    /// Returns the digest of all steps of the build, with the files that are known before anything
    /// runs. Builds with the same digest do the same.
    ///
    /// # Errors
    ///
    /// Fails if a file of a step was not downloaded.
    pub fn definition(&self) -> Result<CacheKey> {
        let keys = KeyBuilder { downloads: &self.downloads, salt: None };
        keys.whole_build(&self.graph, self.vertices.iter().map(|vertex| &*vertex.selected_files))
    }

    /// Returns true if the image is made without its layers, or else has to be prepared again.
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Records which steps were built here, for comparison with the next build. Steps without a key
    /// were not built.
    pub(crate) fn remember(&self, store: &Store, keys: impl Iterator<Item = Option<CacheKey>>) -> Result<()> {
        let built = self.graph.vertices.iter().zip(keys);
        let steps = built.filter_map(|(vertex, key)| Some(explain::entry(vertex, key?))).collect();
        let before = store.records().build_index(&self.build_index)?;
        let mut after = before.clone();
        after.update(steps);
        if after != before {
            store.records().put_build_index(&self.build_index, &after)?;
        }
        Ok(())
    }

    /// Returns the number of steps that are shown, including images.
    pub(crate) fn shown_steps(&self) -> usize {
        self.graph.vertices.iter().filter(|vertex| !matches!(vertex.step, Step::Scratch)).count()
    }

    /// Reports the cached steps, with the warnings of copies, and the images that are not
    /// `unpacked` because all steps that use them are cached.
    pub(crate) fn report_hits(
        &self,
        store: &Store,
        caches: &ImportedCaches,
        events: &Events,
        unpacked: impl Fn(VertexId) -> bool,
    ) {
        for (step, (vertex, found)) in self.graph.vertices.iter().zip(&self.vertices).enumerate() {
            if matches!(vertex.step, Step::Image { .. }) && !unpacked(VertexId::new(step)) {
                events.send(Event::Started { step, label: vertex.name.to_string(), text: vertex.text.clone() });
                events.send(Event::Done { step, outcome: StepOutcome::Cached, seconds: 0.0 });
            }
            if let Some(key) = found.state.key() {
                events.send(Event::Started { step, label: vertex.name.to_string(), text: vertex.text.clone() });
                events.send(Event::Reason { step, text: explain::hit(&key, found.state.origin(caches)) });
                if let (Step::Copy(copy), Some(tree)) = (&vertex.step, found.state.tree_of_notes()) {
                    CopyWarnings::of_tree(store, tree).send(copy, events);
                }
                events.send(Event::Done { step, outcome: StepOutcome::Cached, seconds: 0.0 });
            }
        }
    }
}
