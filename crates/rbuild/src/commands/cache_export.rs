//! Writes the steps of a build to the caches of `--cache-to`.

use rbuild_engine::{BuildReport, ReportedSteps, Warning};
use rbuild_image::human_size;
use rbuild_linux::quoted;
use rbuild_remedy::counted;
use rbuild_store::Store;
use rbuild_transport::{BlobSource, ImportedCaches, OwnSteps, WrittenCache, day_of, write_local_cache};

use crate::exit::Failure;
use crate::input::cache::CacheTarget;
use crate::ui::terminal;

/// Writes all caches. The result of the build is complete, so it is not affected by failures.
///
/// # Errors
///
/// Fails after all caches if one of them was not written completely, unless its failures are
/// ignored.
pub fn write(
    store: &Store,
    caches: &ImportedCaches,
    targets: &[CacheTarget],
    finished: &BuildReport,
    now: i64,
    is_quiet: bool,
) -> Result<(), Failure> {
    let mut failed = None;
    for target in targets {
        let place = quoted(target.to.dir.path()).to_string();
        match write_one(store, caches, target, &finished.cached, now) {
            Ok(written) if !is_quiet => terminal::err(&format!("{}\n", report(&place, &written))),
            Ok(_) => {}
            Err(failure) if target.ignores_errors => {
                terminal::warning(Warning { text: failure.message, help: None });
            }
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn write_one(
    store: &Store,
    caches: &ImportedCaches,
    target: &CacheTarget,
    cached: &ReportedSteps,
    now: i64,
) -> Result<WrittenCache, Failure> {
    let named = |cause: &str| format!("--cache-to {}: cannot write the cache: {cause}", target.text);
    let blobs = store.blobs();
    let sources: Vec<&dyn BlobSource> = std::iter::once(&blobs as &dyn BlobSource).chain(caches.sources()).collect();
    let steps = cached.of(target.export);
    let lost = caches.lost();
    let own = OwnSteps { steps: &steps, lost: &lost, limits: target.limits, today: day_of(now) };
    let written = write_local_cache(&target.to, &own, &sources);
    let written = written.map_err(|e| {
        let failure = Failure::new(named(&e.message())).because(&e);
        match e.help() {
            Some(help) => failure.help(help),
            None => failure,
        }
    })?;
    match &cached.failure {
        Some(cause) => Err(Failure::new(named(cause))),
        None => Ok(written),
    }
}

fn report(place: &str, written: &WrittenCache) -> String {
    let steps = counted(written.steps as u64, "step");
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
        let written = WrittenCache { steps: 2, layers: 1, bytes: 3_000_000, is_unchanged: false };
        assert_eq!(report("`c`", &written), "wrote the cache `c`: 2 steps, 1 new layer of 3MB");
        let none = WrittenCache { layers: 0, bytes: 0, ..written };
        assert_eq!(report("`c`", &none), "wrote the cache `c`: 2 steps, no new layer");
        let unchanged = WrittenCache { steps: 1, is_unchanged: true, ..none };
        assert_eq!(report("`c`", &unchanged), "the cache `c` is unchanged: 1 step");
    }
}
