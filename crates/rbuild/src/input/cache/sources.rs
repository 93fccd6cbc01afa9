//! The caches that a build reads.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_linux::quoted;
use rbuild_remedy::{Remedy, ReportedError, ServerRemedy, Warning};
use rbuild_transport::{
    ImportedCache, ImportedCaches, LayerFetcher, RecordBudget, RecordKeys, RemoteCache, RemoteSteps, SharedCache,
};

use crate::exit::{Failure, reported};
use crate::input::cache::fields::CacheFields;
use crate::input::cache::targets::CacheTarget;
use crate::ui::hints::{Hint, ValueRemedy};
use crate::ui::terminal;

/// The outcome of reading the records of a cache; `None` if there is no such cache.
pub type ReadCache = Result<Option<RemoteSteps>, ReportedError>;

/// Reads the records of caches on other machines, all at once, within what is left of a budget.
pub type RecordReader<'a> = dyn Fn(&[(SharedCache, RecordKeys)], &RecordBudget) -> Result<Vec<ReadCache>, Failure> + 'a;

/// The functions that read caches on other machines.
#[derive(Clone, Copy)]
pub struct CacheReader<'a> {
    pub records: &'a RecordReader<'a>,
    /// Returns the function that downloads layers.
    pub layers: &'a dyn Fn() -> Arc<LayerFetcher>,
    /// Reports a fact that is neither an error nor a reason for a warning.
    pub note: &'a dyn Fn(&str),
}

/// The caches of a value of `--cache-from`, before they are opened.
struct CacheSource {
    /// The value of the flag, for messages.
    text: String,
    /// The place, for messages.
    place: String,
    is_required: bool,
    /// The directory, if it does not exist.
    missing: Option<PathBuf>,
    /// Those in a directory.
    opened: Vec<Result<Option<ImportedCache>, ReportedError>>,
    /// Those on other machines.
    shared: Vec<SharedCache>,
    /// Keys whose signatures are valid.
    keys: RecordKeys,
}

/// Returns the caches of `--cache-from` in registries.
///
/// # Errors
///
/// Fails if a value is invalid.
pub fn remote_sources(given: &[String]) -> Result<Vec<RemoteCache>, Failure> {
    let mut caches = Vec::new();
    for text in given {
        let fields = CacheFields::split("--cache-from", text, ValueRemedy::CacheSourceForm)?;
        if fields.is_registry() {
            caches.extend(fields.remote()?);
        }
    }
    Ok(caches)
}

/// Checks that the steps of unverified caches do not get the signature of a cache that is written.
///
/// # Errors
///
/// Fails if a cache is signed, and a value of `--cache-from` has no keys.
pub fn check_signed(given: &[String], targets: &[CacheTarget]) -> Result<(), Failure> {
    let Some(target) = targets.iter().find(|target| target.is_signed()) else { return Ok(()) };
    for text in given {
        let fields = CacheFields::split("--cache-from", text, ValueRemedy::CacheSourceForm)?;
        if fields.get("verify").is_none() {
            let problem = format!("its steps would be signed for --cache-to {}, but it is not verified", target.text);
            return Err(fields.bad(problem, ValueRemedy::VerifySource));
        }
    }
    Ok(())
}

/// Opens the caches of `--cache-from`. One that cannot be read is left out with a warning, unless
/// it is required. One that does not exist yet is left out with a note.
///
/// # Errors
///
/// Fails if a value is invalid, or if a required cache cannot be read.
pub fn sources(given: &[String], reader: CacheReader<'_>) -> Result<ImportedCaches, Failure> {
    let (mut sources, budget) = (Vec::new(), RecordBudget::default());
    for text in given {
        let fields = CacheFields::parse("--cache-from", text, ValueRemedy::CacheSourceForm)?;
        fields.check_options()?;
        let is_required = fields.switch("required")?;
        let (mut opened, mut shared, mut missing, keys) = (Vec::new(), Vec::new(), None, fields.trusted()?);
        let place = if let Some(caches) = fields.shared()? {
            shared = caches;
            if shared.is_empty() && !is_required {
                continue;
            }
            shared.iter().map(SharedCache::name).collect::<Vec<_>>().join("`, `")
        } else {
            let src = fields.get("src").filter(|src| !src.is_empty());
            let src = src.ok_or_else(|| fields.bad("`src` is missing", ValueRemedy::CacheSourceForm))?;
            let open = |tag: &String| {
                ImportedCache::local(Path::new(src), tag, &keys, &budget).map_err(|e| reported(&e, e.help()))
            };
            let tags = fields.local_names()?;
            missing = Some(PathBuf::from(src)).filter(|dir| matches!(dir.try_exists(), Ok(false)));
            opened = tags.iter().map(open).collect();
            tags.join("`, `")
        };
        let text = fields.text().to_string();
        sources.push(CacheSource { text, place, is_required, missing, opened, shared, keys });
    }
    let of_source = |source: &CacheSource| {
        source.shared.iter().map(|cache| (cache.clone(), source.keys.clone())).collect::<Vec<_>>()
    };
    let names: Vec<(SharedCache, RecordKeys)> = sources.iter().flat_map(of_source).collect();
    let read = if names.is_empty() { Vec::new() } else { (reader.records)(&names, &budget)? };
    let mut read = read.into_iter();
    let mut found = Vec::new();
    for CacheSource { text, place, is_required, missing, opened, shared, .. } in sources {
        let mut outcomes = opened;
        for cache in shared {
            let answer = read.next().unwrap_or(Ok(None));
            if let Ok(Some(steps)) = &answer {
                for cause in &steps.faults {
                    if is_required {
                        let problem = format!("--cache-from {text}: cannot read a part of the cache: {cause}");
                        return Err(Failure::new(problem));
                    }
                    let text = format!("--cache-from {text}: cannot read a part of the cache: {cause}");
                    terminal::warning(rbuild_engine::Warning { text, help: None });
                }
            }
            outcomes.push(answer.map(|steps| steps.map(|steps| ImportedCache::shared(cache, steps))));
        }
        if outcomes.iter().flatten().flatten().any(ImportedCache::has_unsigned) {
            if is_required {
                let problem = format!("--cache-from {text}: the cache has records without a valid signature");
                return Err(Failure::new(problem).help(ValueRemedy::TrustWriter));
            }
            let text = format!("--cache-from {text}: records without a valid signature are ignored");
            terminal::warning(Warning { text, help: Some(Hint::from(ValueRemedy::TrustWriter).into()) });
        }
        let (count, mut causes) = (found.len(), HashSet::new());
        for outcome in outcomes {
            match outcome {
                Ok(cache) => found.extend(cache),
                Err(ReportedError { message, remedy, .. }) if is_required => {
                    let failure = Failure::new(format!("--cache-from {text}: cannot read the cache: {message}"));
                    return Err(remedy.map_or(failure.clone(), |remedy| failure.help(remedy)));
                }
                // A first build may name the image with which it pushes its cache.
                Err(ReportedError { message, remedy: Some(Remedy::Server(ServerRemedy::UseCacheTag)), .. }) => {
                    (reader.note)(&format!("--cache-from {text}: the image has no cache"));
                    causes.insert(message);
                }
                Err(ReportedError { message, remedy, .. }) => {
                    let text = format!("--cache-from {text}: cannot read the cache, so it is not used: {message}");
                    if causes.insert(message) {
                        terminal::warning(Warning { text, help: remedy.map(|remedy| Hint::from(&remedy).into()) });
                    }
                }
            }
        }
        if is_required && found.len() == count {
            return Err(match missing {
                Some(dir) => Failure::new(format!("--cache-from {text}: the directory {} does not exist", quoted(dir)))
                    .help(ValueRemedy::WriteCacheFirst),
                None => Failure::new(format!("--cache-from {text}: there is no cache with the tag `{place}`")),
            });
        }
        if found.len() == count && causes.is_empty() {
            (reader.note)(&format!("--cache-from {text}: there is no cache `{place}` yet"));
        }
    }
    Ok(ImportedCaches::new(found).fetched_by((reader.layers)()))
}
