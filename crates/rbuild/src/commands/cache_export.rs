//! Writes the steps of a build to the caches of `--cache-to`.

use rbuild_engine::{BuildReport, CacheMode, ReportedSteps, Warning};
use rbuild_image::human_size;
use rbuild_linux::quoted;
use rbuild_remedy::counted;
use rbuild_store::{CacheKey, Store};
use rbuild_transport::{
    BlobSource, CacheNote, ImportedCaches, OwnSteps, RecordKeys, RemoteCache, StepCount, WrittenCache, day_of,
    write_local_cache,
};

use crate::args::RegistryFlags;
use crate::commands::fetcher;
use crate::exit::Failure;
use crate::input::cache::{CachePlace, CacheTarget};
use crate::ui::terminal;

/// The caches of a build, and the places that have layers.
#[derive(Clone, Copy)]
pub struct CacheExports<'a> {
    pub store: &'a Store,
    pub flags: &'a RegistryFlags,
    pub caches: &'a ImportedCaches,
    pub targets: &'a [CacheTarget],
    /// The step that other machines wait for, and its cache.
    pub awaited: Option<(&'a RemoteCache, CacheKey)>,
    /// Start of the build, in seconds since 1970.
    pub now: i64,
}

/// Writes all caches. The result of the build is complete, so it is not affected by failures.
/// Returns true if the step that other machines wait for is in its cache.
///
/// # Errors
///
/// Fails after all caches if one of them was not written completely, unless its failures are
/// ignored.
pub fn write(exports: &CacheExports<'_>, finished: &BuildReport, is_quiet: bool) -> Result<bool, Failure> {
    let (mut failed, mut has_awaited, mut has_hint) = (None, false, false);
    let takes_all = exports.targets.iter().any(|target| target.export.mode == CacheMode::Max && !target.is_inline());
    for target in exports.targets {
        let place = match &target.to {
            CachePlace::Directory(to) => quoted(to.dir.path()).to_string(),
            CachePlace::Shared(cache) => format!("`{}`", cache.name()),
            // Its records were written with it.
            CachePlace::Image => continue,
        };
        match write_one(exports, target, &finished.cached) {
            Ok(written) => {
                has_awaited |= written.has_awaited;
                let is_known = written.note == CacheNote::PartlyDamaged
                    && matches!(&target.to, CachePlace::Shared(cache) if exports.caches.knows_damage_of(cache));
                let note = remark(&place, written.note).filter(|_| !is_known);
                for text in note.into_iter().chain(left_out(&place, target, &finished.cached, &written)) {
                    terminal::warning(Warning { text, help: None });
                }
                if !is_quiet && written.note != CacheNote::NewerFormat {
                    terminal::err(&format!("{}\n", report(&place, &written)));
                    if !written.is_unchanged && !takes_all && !std::mem::replace(&mut has_hint, true) {
                        other_stages(&finished.cached, target).iter().for_each(|text| terminal::note(text));
                    }
                }
            }
            Err(failure) if is_ignored(target) && !failure.is_interruption() => {
                terminal::warning(Warning { text: failure.message, help: None });
            }
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    failed.map_or(Ok(has_awaited), Err)
}

/// Returns true if failures of a cache are only warnings.
fn is_ignored(target: &CacheTarget) -> bool {
    target.ignores_errors || matches!(&target.to, CachePlace::Shared(cache) if cache.is_best_effort())
}

fn write_one(
    exports: &CacheExports<'_>,
    target: &CacheTarget,
    cached: &ReportedSteps,
) -> Result<WrittenCache, Failure> {
    let CacheExports { store, flags, caches, awaited, now, .. } = *exports;
    let named = |cause: &str| format!("--cache-to {}: cannot update the cache: {cause}", target.text);
    let steps = cached.of(&target.export);
    let lost = match &target.to {
        CachePlace::Directory(to) => caches.lost_in_directory(to),
        CachePlace::Shared(cache) => caches.lost_in_shared(cache),
        CachePlace::Image => return Ok(WrittenCache::default()),
    };
    let refreshed = cached.refreshed();
    if let CachePlace::Shared(cache) = &target.to
        && cached.failure.is_none()
        && !steps.is_empty()
        && refreshed.is_empty()
        && caches.has_recent(cache, &steps, target.limits, day_of(now))
    {
        return Ok(WrittenCache { content: StepCount::of(&steps), is_unchanged: true, ..WrittenCache::default() });
    }
    let own = OwnSteps {
        steps: &steps,
        lost: &lost,
        refreshed: &refreshed,
        limits: target.limits,
        today: day_of(now),
        keys: RecordKeys::none(),
    };
    let written = match &target.to {
        CachePlace::Directory(to) => {
            let blobs = store.blobs();
            let places = std::iter::once(&blobs as &dyn BlobSource).chain(caches.sources());
            let places: Vec<&dyn BlobSource> = places.collect();
            // No other process is left that could read the key.
            let keys = target.keys()?;
            write_local_cache(to, &OwnSteps { keys: &keys, ..own }, &places).map_err(Failure::from)
        }
        CachePlace::Shared(cache) => {
            let is_awaited = |(claimed, _): &(&RemoteCache, CacheKey)| cache.registry() == Some(*claimed);
            let awaited = awaited.filter(is_awaited).map(|(_, key)| key);
            fetcher::caches::write(store, flags, target, cache, &own, awaited)
        }
        CachePlace::Image => Ok(WrittenCache::default()),
    };
    let written = written.map_err(|failure| Failure { message: named(&failure.message), ..failure })?;
    match &cached.failure {
        Some(cause) => Err(Failure::new(named(cause))),
        None => Ok(written),
    }
}

/// Returns the warning about the state in which a cache was found.
pub fn remark(place: &str, note: CacheNote) -> Option<String> {
    match note {
        CacheNote::None => None,
        CacheNote::Replaced => Some(format!("the cache {place} was damaged, so its earlier steps were dropped")),
        CacheNote::OlderFormat => Some(format!(
            "the cache {place} was written by an older version of rbuild, so its earlier steps were dropped"
        )),
        CacheNote::NewerFormat => Some(format!(
            "the cache {place} was written by a newer version of rbuild with another format, so it is unchanged"
        )),
        CacheNote::Unsigned => {
            Some(format!("the cache {place} had records without a valid signature, so their steps were dropped"))
        }
        CacheNote::PartlyDamaged => {
            Some(format!("parts of the cache {place} were damaged, so their steps were dropped"))
        }
    }
}

/// Returns warnings about the parts of a build that do not fit in a cache.
fn left_out(place: &str, target: &CacheTarget, cached: &ReportedSteps, written: &WrittenCache) -> Vec<String> {
    let max_mount = human_size(target.export.max_mount);
    let mounts = cached.large_mounts(&target.export).into_iter().map(|(id, size)| {
        let size = human_size(size);
        format!("the cache mount `{id}` ({size}) exceeds mounts-max={max_mount}, so the cache {place} does not get it")
    });
    let limit = format!("max-size={} of the cache {place}", human_size(target.limits.bytes));
    mounts.chain(written.left_out.sentence(" of this build", &limit)).collect()
}

/// Returns the hint that a cache lacks the steps of other stages.
fn other_stages(cached: &ReportedSteps, target: &CacheTarget) -> Option<String> {
    match cached.left_out_of(&target.export) {
        0 => None,
        1 => Some("1 step of another stage is not in the cache; mode=max writes it".into()),
        steps => Some(format!("{steps} steps of other stages are not in the cache; mode=max writes them")),
    }
}

/// Describes a cache that was written.
pub fn report(place: &str, written: &WrittenCache) -> String {
    let steps = written.content;
    if written.is_unchanged {
        return format!("the cache {place} is unchanged: {steps}");
    }
    match written.layers {
        0 => format!("wrote the cache {place}: {steps}, no new layer"),
        layers => {
            let (layers, bytes) = (counted(layers as u64, "new layer"), human_size(written.bytes));
            format!("wrote the cache {place}: {steps}, {layers} of {bytes}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_in_words() {
        let content = StepCount { steps: 2, mounts: 0 };
        let written = WrittenCache { content, layers: 1, bytes: 3_000_000, ..WrittenCache::default() };
        assert_eq!(report("`c`", &written), "wrote the cache `c`: 2 steps, 1 new layer of 3MB");
        let none = WrittenCache { layers: 0, bytes: 0, ..written };
        assert_eq!(report("`c`", &none), "wrote the cache `c`: 2 steps, no new layer");
        let unchanged = WrittenCache { content: StepCount { steps: 1, mounts: 2 }, is_unchanged: true, ..none };
        assert_eq!(report("`c`", &unchanged), "the cache `c` is unchanged: 1 step, 2 cache mounts");
    }
}
