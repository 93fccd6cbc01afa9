//! Caches on other machines: records are read before the build, layers when they are needed, and
//! steps are written after it.

use std::sync::Arc;
use std::time::Duration;

use rbuild_linux::parallel::try_map;
use rbuild_registry::RetryPolicy;
use rbuild_remedy::ReportedError;
use rbuild_store::{CacheKey, Store};
use rbuild_transport::{
    LayerFetcher, OwnSteps, RecordBudget, RecordKeys, SharedCache, SharedTarget, WantedLayer, WrittenCache,
    fetch_shared_layers, read_shared_cache, write_shared_cache,
};

use crate::args::RegistryFlags;
use crate::commands::fetcher::task::in_fetcher;
use crate::exit::{Failure, reported};
use crate::input::cache::{CacheTarget, ReadCache};
use crate::input::{machine_name, registry};

/// Returns the timeouts of reading records. The build begins after it, and can do without them: a
/// server that does not answer may delay it by half a minute.
fn patience_of_reads() -> RetryPolicy {
    let seconds = Duration::from_secs;
    RetryPolicy { connect: seconds(5), idle: seconds(10), whole: seconds(30), tries: 3, ..RetryPolicy::default() }
}

/// Returns the timeouts of writing a cache, of which layers may take longer.
fn patience_of_writes() -> RetryPolicy {
    RetryPolicy { connect: Duration::from_secs(10), whole: Duration::from_secs(60), ..RetryPolicy::default() }
}

/// Reads the records of caches, all at once, within what is left of a budget. If the fetcher ends
/// without an answer, none of them can be read. The caller must have one thread.
pub fn read(
    store: &Store,
    flags: &RegistryFlags,
    caches: &[(SharedCache, RecordKeys)],
    budget: &RecordBudget,
) -> Result<Vec<ReadCache>, Failure> {
    let read: Result<Result<Vec<ReadCache>, Failure>, Failure> = in_fetcher(|| {
        let client = registry::client_within(flags, patience_of_reads())?;
        let read = |cache: &SharedCache, keys: &RecordKeys| {
            read_shared_cache(store, &client, cache, keys, budget).map_err(|e| reported(&e, e.help()))
        };
        try_map(caches.len().max(1), caches, |(cache, keys)| Ok(read(cache, keys)))
    });
    match read {
        Ok(read) => read,
        Err(failure) if failure.is_interruption() => Err(failure),
        Err(failure) => Ok(caches.iter().map(|_| Err(ReportedError::new(&failure.message))).collect()),
    }
}

/// Returns the function that downloads layers of caches into the store. Its caller must have one
/// thread.
pub fn layer_fetcher(flags: &RegistryFlags) -> Arc<LayerFetcher> {
    let flags = flags.clone();
    Arc::new(move |store, wanted| fetch_layers(store, &flags, wanted))
}

/// Downloads layers of caches into the store. Returns for each the reason why it cannot be used, if
/// it cannot; `None` if a signal interrupted it.
fn fetch_layers(store: &Store, flags: &RegistryFlags, wanted: &[WantedLayer]) -> Option<Vec<Option<String>>> {
    let fetched: Result<Result<Vec<Option<String>>, Failure>, Failure> = in_fetcher(|| {
        let client = registry::client_of(flags, &[], true)?;
        fetch_shared_layers(store, &client, wanted).map_err(Failure::from)
    });
    match fetched.and_then(|fetched| fetched) {
        Ok(causes) => Some(causes),
        Err(failure) if failure.is_interruption() => None,
        Err(failure) => Some(wanted.iter().map(|_| Some(failure.message.clone())).collect()),
    }
}

/// Checks before a build that its caches can be signed. The launcher, of which the builder is a
/// copy, never has their keys.
pub fn check_keys(targets: &[CacheTarget]) -> Result<(), Failure> {
    if !targets.iter().any(CacheTarget::is_signed) {
        return Ok(());
    }
    let answer: Option<Failure> = in_fetcher(|| targets.iter().find_map(|target| target.keys().err()))?;
    answer.map_or(Ok(()), Err)
}

/// Adds the steps of a build to a cache.
pub fn write(
    store: &Store,
    flags: &RegistryFlags,
    target: &CacheTarget,
    cache: &SharedCache,
    steps: &OwnSteps<'_>,
    awaited: Option<CacheKey>,
) -> Result<WrittenCache, Failure> {
    in_fetcher(|| {
        let client = registry::client_within(flags, patience_of_writes())?;
        let (keys, machine) = (target.keys()?, machine_name::given_or_host());
        let steps = OwnSteps { keys: &keys, ..*steps };
        write_shared_cache(store, &client, SharedTarget { cache, machine: &machine, awaited }, &steps)
            .map_err(Failure::from)
    })?
}
