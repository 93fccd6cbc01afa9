//! The cache of a whole store: its steps and cache mounts for a cache outside the store, and the
//! import of such a cache.

use std::collections::{BTreeSet, HashMap};

use rbuild_dockerfile::{Help, closest};
use rbuild_image::BlobDigest;
use rbuild_layer::LayerForm;
use rbuild_linux::parallel::{cores, try_map};
use rbuild_store::{
    BuildId, CacheKey, CacheUse, CachedStep, KeyInputs, KeyValue, KnownMount, KnownStep, LayerVariant, Lock, MountNote,
    RecordOrigin, RecordedStep, Session, Store, StoreError, TreeId, Workspace,
};
use rbuild_transport::{CacheLimits, ImportedCaches, ImportedStep, LeftOut, LostLayer, StepSelection, day_of};

use crate::cache::key::KEY_VERSION;
use crate::cache::notes::note_of_stored;
use crate::error::Result;
use crate::event::Warning;
use crate::exports::MountChoice;
use crate::ops::shared_caches;
use crate::warning::BuildWarning;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// The part of a store that is exported to a cache.
#[derive(Debug, Clone)]
pub struct StoreChoice {
    /// Form of the layers.
    pub form: LayerForm,
    /// Limits of the cache. The steps that were used last are kept.
    pub limits: CacheLimits,
    /// Cache mounts.
    pub mounts: MountChoice,
    /// Maximum size of a cache mount in bytes, compressed.
    pub max_mount: u64,
}

/// The steps and the cache mounts of a store.
#[derive(Debug)]
pub struct StoreContent {
    /// The steps, whose layers are blobs of the store.
    pub steps: Vec<CachedStep>,
    /// Those that exceed the size of the cache.
    pub left_out: LeftOut,
    /// Remarks on what is missing.
    pub warnings: Vec<Warning<Help>>,
}

/// Packs the steps and the cache mounts of a store. Steps that other machines cannot or must not
/// use are left out.
///
/// # Errors
///
/// Fails if the store cannot be read or written.
pub fn pack_store(store: &Store, work: &Workspace, choice: &StoreChoice) -> Result<StoreContent> {
    let age = i64::try_from(choice.limits.age).unwrap_or(i64::MAX);
    let oldest = rbuild_linux::Timestamp::now().sec.saturating_sub(age);
    let mut stored = store.records().steps()?;
    stored.retain(|step| step.last_use >= oldest && is_portable(step));
    let mut warnings = Vec::new();
    let mounts = packed_mounts(store, work, choice, &mut warnings)?;
    let packed = try_map(cores(), &stored, |step| packed_step(store, work, step, choice.form))?;
    let mut selection = StepSelection::within(choice.limits.bytes);
    let all = mounts.into_iter().chain(packed.into_iter().flatten());
    let (steps, dropped): (Vec<_>, Vec<_>) = all.partition(|step| selection.takes(step));
    Ok(StoreContent { steps, left_out: LeftOut::of(&dropped), warnings })
}

/// Returns true if the result of a step can be used on other machines. That of a command that
/// mounts a volume depends on the machine.
fn is_portable(step: &KnownStep) -> bool {
    let mounts_volume = |inputs: &KeyInputs| texts(inputs, "mount").any(|text| text.contains(" volume source="));
    step.inputs.version == KEY_VERSION && !mounts_volume(&step.inputs)
}

fn texts<'a>(inputs: &'a KeyInputs, name: &'a str) -> impl Iterator<Item = &'a str> {
    inputs.parts.iter().filter(move |part| part.name == name).filter_map(|part| match &part.value {
        KeyValue::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

/// Packs a step. Returns `None` if no layer can describe its files, or if they may contain a
/// secret.
fn packed_step(store: &Store, work: &Workspace, step: &KnownStep, form: LayerForm) -> Result<Option<CachedStep>> {
    let KnownStep { key, record, inputs, indexed, last_use } = step;
    let verdict = store.secrets().verdict(&record.tree)?;
    let is_searched = verdict.as_ref().is_some_and(|verdict| verdict.is_complete);
    let mounts_secrets = texts(inputs, "secret").next().is_some();
    if verdict.is_some_and(|verdict| !verdict.held.is_empty()) || (mounts_secrets && !is_searched) {
        return Ok(None);
    }
    match store.layers().pack_tree(work, &record.tree, LayerVariant::exact(form), &|| false) {
        // Such a file cannot be in a layer, or a blob is damaged.
        Err(StoreError::Layer(_) | StoreError::NoBlob(_) | StoreError::WrongDigest { .. }) => return Ok(None),
        packed => packed?,
    };
    let Some(layer) = store.lazy_trees().cached_layer(&record.tree, form)? else { return Ok(None) };
    let note = Some(note_of_stored(indexed.as_ref(), inputs));
    let (shared, result, created, used) = (record.shared, record.result, record.created, day_of(*last_use));
    let runner = record.origin.as_ref().and_then(|origin| origin.runner.clone());
    Ok(Some(CachedStep { key: *key, shared, result, layer, created, runner, used, is_searched, note, mount: None }))
}

/// Returns a warning for each cache mount that was chosen by name and that does not exist.
fn unknown_mounts<'a>(choice: &MountChoice, known: impl Iterator<Item = &'a str>) -> Vec<Warning<Help>> {
    let known: Vec<&str> = known.collect();
    let unknown = choice.named().filter(|id| !known.contains(id));
    unknown.map(|id| BuildWarning::UnknownMount { id, similar: closest(id, known.iter().copied()) }.into()).collect()
}

fn packed_mounts(
    store: &Store,
    work: &Workspace,
    choice: &StoreChoice,
    warnings: &mut Vec<Warning<Help>>,
) -> Result<Vec<CachedStep>> {
    let mut found = Vec::new();
    let now = rbuild_linux::Timestamp::now().sec;
    let known = store.cache_mounts().known()?;
    warnings.extend(unknown_mounts(&choice.mounts, known.iter().map(|mount| mount.name.as_str())));
    for KnownMount { id, name, may_hold_secrets, .. } in known {
        if !choice.mounts.takes(&name) {
            continue;
        }
        if may_hold_secrets {
            warnings.push(BuildWarning::MountOfBuildsWithSecrets { name: &name }.into());
            continue;
        }
        let Some(mount) = store.cache_mounts().idle_mount(&id)? else { continue };
        let variant = LayerVariant::exact(LayerForm::ZSTD);
        let layer = match store.lazy_trees().pack_mount(work, &mount, variant) {
            Ok(layer) => layer,
            Err(e) => {
                let cause = rbuild_remedy::sentence(&e);
                warnings.push(BuildWarning::NotPacked { name: &name, cause: &cause }.into());
                continue;
            }
        };
        if layer.size > choice.max_mount {
            warnings.push(BuildWarning::LargeMount { name: &name, size: layer.size }.into());
            continue;
        }
        found.push(CachedStep { used: day_of(now), ..shared_caches::step_of(id, name, layer, now) });
    }
    Ok(found)
}

/// The parts of a cache that were imported.
#[derive(Debug, Default)]
pub struct ImportReport {
    /// Number of steps that the store got.
    pub steps: usize,
    /// Number of steps that the store had already.
    pub known: usize,
    /// Number of cache mounts that were restored.
    pub mounts: usize,
    /// Remarks on what is missing.
    pub warnings: Vec<Warning<Help>>,
}

/// Copies the steps of caches into the store, and restores the cache mounts that the store lacks.
/// Existing content of the store is not changed. A damaged layer causes a warning.
///
/// # Errors
///
/// Fails if the store cannot be read or written.
pub fn import_steps(
    store: &Store,
    work: &Workspace,
    build: &BuildId,
    caches: &ImportedCaches,
    mounts: &MountChoice,
) -> Result<ImportReport> {
    let mut report = ImportReport::default();
    let (steps, in_mounts): (Vec<_>, Vec<_>) = caches.all().into_iter().partition(|found| found.step.mount.is_none());
    let names = in_mounts.iter().filter_map(|found| Some(found.step.mount.as_ref()?.name.as_str()));
    report.warnings.extend(unknown_mounts(mounts, names));
    let (mut new, mut restored) = (Vec::new(), Vec::new());
    for found in steps {
        let is_known = store.records().record(&found.step.key)?.is_some()
            || store.records().foreign_record(&found.step.key)?.is_some();
        if is_known { report.known += 1 } else { new.push(found) }
    }
    let known: BTreeSet<_> = store.cache_mounts().known()?.into_iter().map(|mount| mount.id).collect();
    for found in in_mounts {
        if found.step.mount.as_ref().is_some_and(|mount| mounts.takes(&mount.name) && !known.contains(&mount.id)) {
            restored.push(found);
        }
    }
    let wanted: Vec<&ImportedStep> = new.iter().chain(&restored).collect();
    for LostLayer { cache, cause } in caches.fetch(store, work, &wanted)? {
        report.warnings.push(BuildWarning::NotImported { cache: &cache, cause: &cause }.into());
    }
    let session = Session::new(store, work, build, rbuild_linux::Timestamp::now().sec);
    let mut trees = HashMap::new();
    for found in new.iter().filter(|found| caches.is_usable(found)) {
        report.steps += usize::from(import_step(store, session, caches.origin_of(found), &found.step, &mut trees)?);
    }
    for found in restored.iter().filter(|found| caches.is_usable(found)) {
        let Some(mount) = &found.step.mount else { continue };
        match restore(store, work, mount, found, caches.origin_of(found)) {
            Ok(is_new) => report.mounts += usize::from(is_new),
            Err(e) => {
                let (name, cache, cause) = (&*mount.name, caches.name_of(found), rbuild_remedy::sentence(&e));
                report.warnings.push(BuildWarning::LostMount { name, cache, cause: &cause }.into());
            }
        }
    }
    store.records().sync(build)?;
    Ok(report)
}

/// Imports a step. Steps that read equal files have one tree, as if they had been built here.
fn import_step(
    store: &Store,
    session: Session<'_>,
    origin: &str,
    step: &CachedStep,
    trees: &mut HashMap<(CacheKey, BlobDigest), TreeId>,
) -> Result<bool> {
    let shared = step.shared.unwrap_or(step.key);
    let of_content = (shared, step.layer.blob);
    let cache = origin;
    let origin = &step.origin(session, cache);
    fn recorded<'s>(tree: &'s TreeId, step: &CachedStep, origin: &'s RecordOrigin) -> RecordedStep<'s> {
        RecordedStep { tree, result: step.result, created: step.created, origin: Some(origin) }
    }
    let make = || {
        if let Some(tree) = trees.get(&of_content) {
            session.put_record_of(&step.key, &shared, &recorded(tree, step, origin))?;
            if let Some(note) = &step.note {
                store.records().put_key_inputs(&step.key, &note.inputs)?;
            }
            return Ok(true);
        }
        let Some(record) = store.lazy_trees().import_step(session, step, cache)? else { return Ok(false) };
        // The result of a linked copy is not that of its files.
        if shared != step.key && !is_linked(step) && store.records().record(&shared)?.is_none() {
            session.put_record_of(&shared, &shared, &recorded(&record.tree, step, origin))?;
            trees.insert(of_content, record.tree);
        }
        Ok::<_, StoreError>(true)
    };
    let is_imported = store.once(Lock::Step(shared), || Ok(None), make)?.into_inner();
    if is_imported && step.used > 0 {
        // The clock of the other machine may be wrong.
        store
            .records()
            .set_last_use(&step.key, step.used.saturating_mul(DAY).min(rbuild_linux::Timestamp::now().sec))?;
    }
    Ok(is_imported)
}

fn is_linked(step: &CachedStep) -> bool {
    step.note.as_ref().is_none_or(|note| texts(&note.inputs, "--link").any(|text| text == "yes"))
}

/// Creates a cache mount with the content that a cache named `origin` has. Returns false if it
/// exists.
fn restore(
    store: &Store,
    work: &Workspace,
    mount: &MountNote,
    found: &ImportedStep,
    origin: &str,
) -> std::result::Result<bool, StoreError> {
    let mut is_new = false;
    let note =
        KnownMount { id: mount.id, name: mount.name.clone(), may_hold_secrets: false, origin: Some(origin.into()) };
    store.cache_mounts().cache_mount(work, &mount.id, CacheUse::Shared, |dir| {
        is_new = true;
        store.cache_mounts().note_new(&note)?;
        store.lazy_trees().unpack_cached_layer(&found.step.layer, dir)
    })?;
    Ok(is_new)
}
