//! Writes caches in repositories of registries.

use std::cell::Cell;
use std::collections::BTreeSet;

use rbuild_registry::Client;
use rbuild_store::{CacheKey, Store, Workspace};

use crate::cache::artifact::{CachedSteps, KnownSteps};
use crate::cache::extend::{ExtendedCache, OtherSteps, extend};
use crate::cache::listed_shards::{ShardDigests, listed_shards};
use crate::cache::merge::{OwnSteps, WrittenCache, own_share};
use crate::cache::note::CacheNote;
use crate::cache::record_budget::RecordBudget;
use crate::cache::remote_read::CacheTagReader;
use crate::cache::shards::{RemoteCache, union};
use crate::cache::step_count::StepCount;
use crate::cache::tag::{CacheTag, tag_of};
use crate::cache::top::WrittenShard;
use crate::error::Result;

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
    let (work, budget) = (Workspace::open(store)?, RecordBudget::default());
    let reader = CacheTagReader::new(store, &work, &budget, &repository, cache, ours.keys);
    if cache.shards() == 1 {
        let has_damage = Cell::new(false);
        let others = |manifest: Option<&[u8]>| {
            let read = manifest.map(|manifest| read_shards(&reader, manifest)).transpose()?.unwrap_or_default();
            has_damage.set(read.has_damage);
            Ok(read.others)
        };
        let extended = extend(store, &CacheTag::open_shared(client, cache.name())?, ours, &others)?;
        let note = extended.written.note.or_damage(has_damage.get());
        return Ok(WrittenCache { has_awaited: has_awaited(&extended.steps), note, ..extended.written });
    }
    let top = repository.pushed(tag_of(cache.name()))?;
    let (mut shards, mut is_lost) = (ReadShards::default(), false);
    if let Some(top) = &top {
        let known = reader.steps_to_extend(&top.bytes)?;
        if matches!(known, KnownSteps::NewerFormat) {
            return Ok(WrittenCache { note: CacheNote::NewerFormat, ..WrittenCache::default() });
        }
        let (read, note) = known.kept();
        shards = read_shards(&reader, &top.bytes)?;
        shards.others.steps = union([read, shards.others.steps]);
        shards.others.note = note.or(shards.others.note);
        is_lost = note.is_replaced();
    }
    let ReadShards { others, merged, lost, has_damage } = shards;
    let layers: BTreeSet<_> = others.steps.values().map(|step| step.layer.blob).collect();
    let merges = layers.len() <= MERGED;
    // With more layers, the tag may have steps that no shard has.
    let is_over = merges && !ours.limits.contain(others.steps.values(), ours.today);
    let replaces = is_lost || has_damage || !lost.is_empty() || is_over;
    let (steps, limits) = own_share(ours, &others.steps, cache.shards());
    if steps.is_empty() && !others.steps.is_empty() && !(is_lost || (replaces && merges)) {
        let has_awaited = has_awaited(&others.steps);
        let content = StepCount::of(others.steps.values());
        return Ok(WrittenCache { content, is_unchanged: true, has_awaited, ..WrittenCache::default() });
    }
    let own = if merges { *ours } else { OwnSteps { steps: &steps, limits, ..*ours } };
    let merged_steps = || if merges { others.steps.clone() } else { CachedSteps::new() };
    let name = cache.name_of(machine);
    let ExtendedCache { written, manifest, steps: all } =
        extend(store, &CacheTag::open(client, &name)?, &own, &|_| {
            Ok(OtherSteps { steps: merged_steps(), ..OtherSteps::default() })
        })?;
    let Some(manifest) = manifest else { return Ok(written) };
    let shard = WrittenShard {
        cache,
        number: cache.number_of(machine),
        manifest,
        steps: own.steps.iter().filter_map(|step| all.get(&step.key).cloned()).collect(),
        before: top.as_ref().map(|top| top.digest),
        merged: merges.then_some(merged),
        lost,
        replaces,
        signatures: ours.keys,
    };
    shard.publish(store, &repository)?;
    let content = if merges { written.content } else { written.content + StepCount::of(others.steps.values()) };
    // The tag had the steps of a shard that is replaced, unless it was damaged, too.
    let own_note = if written.note == CacheNote::Replaced { CacheNote::None } else { written.note };
    let note = others.note.or(own_note).or_damage(has_damage);
    let is_unchanged = written.is_unchanged && !replaces;
    let has_awaited = has_awaited(&all) || has_awaited(&others.steps);
    Ok(WrittenCache { content, note, is_unchanged, has_awaited, ..written })
}

/// The shards that the manifest of a cache names.
#[derive(Default)]
struct ReadShards {
    /// The steps of those that could be read. The others stay named.
    others: OtherSteps,
    /// Those that could be read.
    merged: ShardDigests,
    /// Those that are lost or damaged.
    lost: ShardDigests,
    /// True if some of them are damaged.
    has_damage: bool,
}

/// Reads the shards that the manifest of a cache names.
fn read_shards(reader: &CacheTagReader<'_>, manifest: &[u8]) -> Result<ReadShards> {
    let listed = listed_shards(manifest);
    let (mut found, mut all) = (Vec::new(), ReadShards::default());
    for (number, shard) in reader.shards(manifest)? {
        let digest = listed.get(&number).map(|digest| (number, *digest));
        match shard {
            Ok(Some(records)) => {
                if records.has_unsigned {
                    all.others.note = all.others.note.or(CacheNote::Unsigned);
                }
                found.push(records.steps);
                all.merged.extend(digest);
            }
            Ok(None) => all.lost.extend(digest),
            Err(e) if e.is_damage() => {
                tracing::debug!(target: "transport", number, reason = e.message(), "a shard is left out");
                all.lost.extend(digest);
                all.has_damage = true;
            }
            Err(_) => all.others.unread.extend(digest),
        }
    }
    all.others.steps = union(found);
    Ok(all)
}
