//! Writes caches in repositories of registries.

use std::collections::BTreeSet;

use rbuild_registry::{Client, Repository};
use rbuild_store::{CacheKey, Store, Workspace};

use crate::cache::artifact::{CachedSteps, KnownSteps};
use crate::cache::extend::{ExtendedCache, OtherSteps, extend, steps_in};
use crate::cache::listed_shards::{ShardDigests, listed_shards};
use crate::cache::merge::{CacheNote, OwnSteps, WrittenCache, own_share};
use crate::cache::record_budget::RecordBudget;
use crate::cache::remote_read::{CacheTagReader, documents};
use crate::cache::shards::{RemoteCache, union};
use crate::cache::step_count::StepCount;
use crate::cache::tag::{CacheTag, tag_of};
use crate::cache::top::WrittenShard;
use crate::error::{Result, TransportError};

/// Number of layers up to which a machine adds the steps of all others to its shard, so that its
/// manifest is the only one that is read.
const MERGED: usize = 1000;

/// Adds the steps of a build to a cache in a registry: uploads the layers that the repository
/// lacks, and the documents if they change. If another machine writes meanwhile, its steps stay.
/// Layers that neither the store nor the repository has are left out with their steps. Only the
/// shard of this machine is written, and then the tag of the cache, which leads to it.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
#[tracing::instrument(
    target = "transport",
    name = "cache",
    level = "debug",
    skip_all,
    fields(name = %cache.name())
)]
pub(crate) fn write_remote_cache(
    store: &Store,
    client: &Client,
    cache: &RemoteCache,
    machine: &str,
    awaited: Option<CacheKey>,
    ours: &OwnSteps<'_>,
) -> Result<WrittenCache> {
    let has_awaited = |steps: &CachedSteps| awaited.is_some_and(|key| steps.contains_key(&key));
    let repository = client.repository(cache.name())?;
    let work = Workspace::open(store)?;
    let budget = RecordBudget::default();
    let reader = CacheTagReader { documents: documents(store, &repository, &work, &budget), cache, keys: ours.keys };
    if cache.shards() == 1 {
        let others = |manifest: Option<&[u8]>| match manifest {
            Some(manifest) => Ok(read_shards(&reader, &repository, manifest)?.0),
            None => Ok(OtherSteps::default()),
        };
        let extended = extend(store, &CacheTag::open_shared(client, cache.name())?, ours, &others)?;
        return Ok(WrittenCache { has_awaited: has_awaited(&extended.steps), ..extended.written });
    }
    let top = repository.pushed(tag_of(cache.name()))?;
    let (mut others, mut merged_shards, mut is_lost) = (OtherSteps::default(), ShardDigests::new(), false);
    if let Some(top) = &top {
        let known = steps_in(&reader.documents, &top.bytes, ours.keys)?;
        if matches!(known, KnownSteps::NewerFormat) {
            return Ok(WrittenCache { note: CacheNote::NewerFormat, ..WrittenCache::default() });
        }
        let (read, note) = known.kept();
        (others, merged_shards) = read_shards(&reader, &repository, &top.bytes)?;
        others.steps = union([read, others.steps]);
        others.note = note.or(others.note);
        is_lost = note.is_replaced();
    }
    let layers: BTreeSet<_> = others.steps.values().map(|step| step.layer.blob).collect();
    let merges = layers.len() <= MERGED;
    let is_over = !ours.limits.contain(others.steps.values(), ours.today);
    // Otherwise, the tag may have steps that no shard has.
    let replaces = is_lost || (merges && (is_over || others.note.is_replaced()));
    let (steps, limits) = own_share(ours, &others.steps, cache.shards());
    if steps.is_empty() && !others.steps.is_empty() && !replaces {
        let has_awaited = has_awaited(&others.steps);
        let content = StepCount::of(others.steps.values());
        return Ok(WrittenCache { content, is_unchanged: true, has_awaited, ..WrittenCache::default() });
    }
    let own = if merges { *ours } else { OwnSteps { steps: &steps, limits, ..*ours } };
    let merged = || if merges { others.steps.clone() } else { CachedSteps::new() };
    let name = cache.name_of(machine);
    let ExtendedCache { written, manifest, steps: all } =
        extend(store, &CacheTag::open(client, &name)?, &own, &|_| {
            Ok(OtherSteps { steps: merged(), ..OtherSteps::default() })
        })?;
    let Some(manifest) = manifest else { return Ok(written) };
    let shard = WrittenShard {
        cache,
        number: cache.number_of(machine),
        manifest,
        steps: own.steps.iter().filter_map(|step| all.get(&step.key).cloned()).collect(),
        before: top.as_ref().map(|top| top.digest),
        merged: merges.then_some(merged_shards),
        replaces,
        signatures: ours.keys,
    };
    shard.publish(store, &repository)?;
    let content = if merges { written.content } else { written.content + StepCount::of(others.steps.values()) };
    let note = others.note.or(written.note);
    let is_unchanged = written.is_unchanged && !replaces;
    let has_awaited = has_awaited(&all) || has_awaited(&others.steps);
    Ok(WrittenCache { content, note, is_unchanged, has_awaited, ..written })
}

/// Reads the shards that the manifest of a cache names. Those that cannot be read now stay named,
/// unless they are damaged. Returns the others, too.
fn read_shards(
    reader: &CacheTagReader<'_>,
    repository: &Repository,
    manifest: &[u8],
) -> Result<(OtherSteps, ShardDigests)> {
    let mut listed = listed_shards(manifest);
    let (mut found, mut others) = (Vec::new(), OtherSteps::default());
    for (number, shard) in reader.shards(repository, manifest)? {
        match shard {
            Ok(Some(records)) => {
                if records.has_unsigned {
                    others.note = others.note.or(CacheNote::Unsigned);
                }
                found.push(records.steps);
            }
            // It is gone.
            Ok(None) => {}
            Err(TransportError::Document { .. }) => others.note = CacheNote::Replaced,
            Err(_) => others.unread.extend(listed.remove_entry(&number)),
        }
    }
    Ok((OtherSteps { steps: union(found), ..others }, listed))
}
