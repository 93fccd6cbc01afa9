//! Cache mounts in caches outside the store: restored before their first use on a machine, and
//! packed after the build.

use rbuild_image::Hasher;
use rbuild_layer::LayerForm;
use rbuild_linux::RootDir;
use rbuild_store::{CacheId, CacheKey, CachedStep, LayerVariant, MountNote, ResultId, StepLayer};
use rbuild_transport::LostLayer;

use crate::env::{MountOrigin, StepEnv};
use crate::error::Result;
use crate::event::Event;
use crate::exports::{CacheExport, ReportedStep};
use crate::secret_scan;
use crate::warning::BuildWarning;

/// Returns the key under which caches have the content of a cache mount.
pub(crate) fn key_of(id: &CacheId) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field("cache mount 1").field(id.bytes());
    hasher.finish()
}

/// Returns the step by which caches have the content of a cache mount, which is the layer.
pub(crate) fn step_of(id: CacheId, name: String, layer: StepLayer, created: i64) -> CachedStep {
    let (key, result) = (key_of(&id), ResultId::of(layer.blob.to_string().as_bytes()));
    CachedStep { mount: Some(MountNote { id, name }), ..CachedStep::new(key, result, layer, created) }
}

/// Fills a new cache mount with the content that another machine wrote, and returns the name of the
/// cache that had it. Returns `None` if there is none that can be used; the directory is then
/// empty.
pub(crate) fn restore(env: &StepEnv<'_>, id: &CacheId, name: &str, dir: &RootDir) -> Result<Option<String>> {
    if env.request.salt.is_some() {
        return Ok(None);
    }
    let caches = &env.request.caches;
    while let Some(found) = caches.step(&key_of(id)) {
        let lost = caches.fetch(env.store, &env.rootfs.work, &[&found])?;
        for LostLayer { cache, cause } in &lost {
            env.events.send(Event::Warning(BuildWarning::LostMount { name, cache, cause }.into()));
        }
        if !lost.is_empty() {
            continue;
        }
        match env.store.lazy_trees().unpack_cached_layer(&found.step.layer, dir) {
            Ok(()) => {
                tracing::debug!(target: "engine", name, "cache mount restored from another cache");
                return Ok(Some(caches.origin_of(&found).to_string()));
            }
            Err(e) if env.cancel.is_canceled() => return Err(e.into()),
            Err(e) => {
                let (cache, cause) = (caches.name_of(&found), rbuild_remedy::sentence(&e));
                env.events.send(Event::Warning(BuildWarning::LostMount { name, cache, cause: &cause }.into()));
                caches.give_up(&found);
            }
        }
    }
    Ok(None)
}

/// Packs the cache mounts that commands of this build used and that a cache takes.
pub(crate) fn packed(env: &StepEnv<'_>) -> Result<Vec<ReportedStep>> {
    let is_taken = |name: &str| env.request.cache_exports.iter().any(|export: &CacheExport| export.takes_mount(name));
    // A secret that is too short to be searched for may be anywhere.
    let is_searchable = secret_scan::searched(&env.request.secrets).count() == env.request.secrets.len();
    let mut found = Vec::new();
    for (id, (name, origin)) in env.used_mounts().into_iter().filter(|(_, (name, _))| is_searchable && is_taken(name)) {
        let Some(cache) = env.store.cache_mounts().idle_mount(&id)? else { continue };
        if !env.leaks.is_empty() && env.leaks.in_tree(&cache.dir)?.first().is_some() {
            env.events.send(Event::Warning(BuildWarning::MountWithSecret { name: &name }.into()));
            continue;
        }
        if origin == MountOrigin::EarlierBuild {
            env.events.send(Event::Warning(BuildWarning::MountOfEarlierBuilds { name: &name }.into()));
            continue;
        }
        let variant = LayerVariant::exact(LayerForm::ZSTD);
        let layer = match env.store.lazy_trees().pack_mount(&env.rootfs.work, &cache, variant) {
            Ok(layer) => layer,
            Err(e) if env.cancel.is_canceled() => return Err(e.into()),
            Err(e) => {
                let cause = rbuild_remedy::sentence(&e);
                env.events.send(Event::Warning(BuildWarning::NotPacked { name: &name, cause: &cause }.into()));
                continue;
            }
        };
        let key = key_of(&id);
        let known = env.request.caches.step(&key).filter(|known| known.step.layer.blob == layer.blob);
        let created = known.as_ref().map_or(env.request.now, |known| known.step.created);
        let step = step_of(id, name.clone(), layer, created);
        let is_refreshed = known.is_none();
        found.push(ReportedStep { step, is_in_result: false, is_refreshed, mount: Some(name) });
    }
    Ok(found)
}
