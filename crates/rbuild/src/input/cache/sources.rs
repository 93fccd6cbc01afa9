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

/// The outcome of opening a cache; `None` if there is no such cache.
type OpenedCache = Result<Option<ImportedCache>, ReportedError>;

/// The caches of a value of `--cache-from`. Those on other machines have not been read yet.
struct CacheSource {
    /// The value of the flag, for messages.
    text: String,
    /// The place, for messages.
    place: String,
    is_required: bool,
    /// The directory, if it does not exist.
    missing: Option<PathBuf>,
    /// Those in a directory.
    opened: Vec<OpenedCache>,
    /// Those on other machines.
    shared: Vec<SharedCache>,
    /// Keys whose signatures are valid.
    keys: RecordKeys,
}

impl CacheSource {
    /// Parses a value, and opens the caches in its directory, within what is left of a budget.
    /// Returns `None` if it has no caches here, and is not required.
    fn parse(text: &str, budget: &RecordBudget) -> Result<Option<CacheSource>, Failure> {
        let fields = CacheFields::parse("--cache-from", text, ValueRemedy::CacheSourceForm)?;
        fields.check_options()?;
        let is_required = fields.switch("required")?;
        let (text, keys) = (fields.text().to_string(), fields.trusted()?);
        if let Some(shared) = fields.shared()? {
            if shared.is_empty() && !is_required {
                return Ok(None);
            }
            let place = shared.iter().map(SharedCache::name).collect::<Vec<_>>().join("`, `");
            return Ok(Some(CacheSource { text, place, is_required, missing: None, opened: Vec::new(), shared, keys }));
        }
        let src = fields.get("src").filter(|src| !src.is_empty());
        let src = Path::new(src.ok_or_else(|| fields.bad("`src` is missing", ValueRemedy::CacheSourceForm))?);
        let open = |tag: &String| ImportedCache::local(src, tag, &keys, budget).map_err(|e| reported(&e, e.help()));
        let (tags, missing) = (fields.local_names()?, matches!(src.try_exists(), Ok(false)).then(|| src.to_path_buf()));
        let (place, opened) = (tags.join("`, `"), tags.iter().map(open).collect());
        Ok(Some(CacheSource { text, place, is_required, missing, opened, shared: Vec::new(), keys }))
    }

    /// Returns the caches whose records have to be read.
    fn to_read(&self) -> impl Iterator<Item = (SharedCache, RecordKeys)> {
        self.shared.iter().map(|cache| (cache.clone(), self.keys.clone()))
    }

    /// Returns the caches that can be used, and reports what cannot. `read` has the records of
    /// those on other machines.
    ///
    /// # Errors
    ///
    /// Fails if a cache is required and a part of it cannot be used.
    fn usable(mut self, read: Vec<ReadCache>, note: &dyn Fn(&str)) -> Result<Vec<ImportedCache>, Failure> {
        self.report_faults(&read)?;
        let imported = |(cache, read): (SharedCache, ReadCache)| {
            read.map(|steps| steps.map(|steps| ImportedCache::shared(cache, steps)))
        };
        let mut outcomes = std::mem::take(&mut self.opened);
        outcomes.extend(std::mem::take(&mut self.shared).into_iter().zip(read).map(imported));
        self.report_unsigned(&outcomes)?;
        let (mut found, mut causes) = (Vec::new(), HashSet::new());
        for outcome in outcomes {
            match outcome {
                Ok(cache) => found.extend(cache),
                Err(error) => drop(causes.insert(self.report_unreadable(error, &causes, note)?)),
            }
        }
        if self.is_required && found.is_empty() {
            return Err(self.nothing_found());
        }
        if found.is_empty() && causes.is_empty() {
            note(&format!("--cache-from {}: there is no cache `{}` yet", self.text, self.place));
        }
        Ok(found)
    }

    /// Reports the parts of caches that cannot be read.
    fn report_faults(&self, read: &[ReadCache]) -> Result<(), Failure> {
        for cause in read.iter().flatten().flatten().flat_map(|steps| &steps.faults) {
            let text = format!("--cache-from {}: cannot read a part of the cache: {cause}", self.text);
            if self.is_required {
                return Err(Failure::new(text));
            }
            terminal::warning(Warning { text, help: None });
        }
        Ok(())
    }

    /// Reports records without a valid signature, which are ignored, if there are any.
    fn report_unsigned(&self, outcomes: &[OpenedCache]) -> Result<(), Failure> {
        if !outcomes.iter().flatten().flatten().any(ImportedCache::has_unsigned) {
            return Ok(());
        }
        if self.is_required {
            let problem = format!("--cache-from {}: the cache has records without a valid signature", self.text);
            return Err(Failure::new(problem).help(ValueRemedy::TrustWriter));
        }
        let text = format!("--cache-from {}: records without a valid signature are ignored", self.text);
        terminal::warning(Warning { text, help: Some(Hint::from(ValueRemedy::TrustWriter).into()) });
        Ok(())
    }

    /// Reports that a cache cannot be read, unless that was reported before. Returns the cause.
    fn report_unreadable(
        &self,
        error: ReportedError,
        reported: &HashSet<String>,
        note: &dyn Fn(&str),
    ) -> Result<String, Failure> {
        let (text, ReportedError { message, remedy, .. }) = (&self.text, error);
        if self.is_required {
            let failure = Failure::new(format!("--cache-from {text}: cannot read the cache: {message}"));
            return Err(remedy.map_or(failure.clone(), |remedy| failure.help(remedy)));
        }
        if matches!(remedy, Some(Remedy::Server(ServerRemedy::UseCacheTag))) {
            // A first build may name the image with which it pushes its cache.
            note(&format!("--cache-from {text}: the image has no cache"));
        } else if !reported.contains(&message) {
            let text = format!("--cache-from {text}: cannot read the cache, so it is not used: {message}");
            terminal::warning(Warning { text, help: remedy.map(|remedy| Hint::from(&remedy).into()) });
        }
        Ok(message)
    }

    /// Returns the error of a required value without any cache.
    fn nothing_found(&self) -> Failure {
        let CacheSource { text, place, .. } = self;
        match &self.missing {
            Some(dir) => Failure::new(format!("--cache-from {text}: the directory {} does not exist", quoted(dir)))
                .help(ValueRemedy::WriteCacheFirst),
            None => Failure::new(format!("--cache-from {text}: there is no cache with the tag `{place}`")),
        }
    }
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
    let budget = RecordBudget::default();
    let parsed = given.iter().filter_map(|text| CacheSource::parse(text, &budget).transpose());
    let sources: Vec<CacheSource> = parsed.collect::<Result<_, _>>()?;
    let names: Vec<(SharedCache, RecordKeys)> = sources.iter().flat_map(CacheSource::to_read).collect();
    let mut read = if names.is_empty() { Vec::new() } else { (reader.records)(&names, &budget)? }.into_iter();
    let mut found = Vec::new();
    for source in sources {
        let read = read.by_ref().take(source.shared.len()).collect();
        found.extend(source.usable(read, reader.note)?);
    }
    Ok(ImportedCaches::new(found).fetched_by((reader.layers)()))
}
