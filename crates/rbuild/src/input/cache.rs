//! Parses the values of `--cache-from` and `--cache-to`, and opens the caches.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_engine::{CacheExport, CacheMode, MountChoice};
use rbuild_layer::LayerForm;
use rbuild_linux::quoted;
use rbuild_remedy::{ReportedError, Warning};
use rbuild_transport::{
    CacheLimits, ImportedCache, ImportedCaches, LayerFetcher, LocalCache, MAX_SHARDS, RecordKeys, RemoteCache,
    RemoteSteps, SharedCache, tag_of_scope,
};

use crate::exit::Failure;
use crate::input::object_caches::{AZURE_KEYS, GITHUB_KEYS, ObjectOptions, S3_KEYS};
use crate::input::output::{self, csv_fields, layer_form};
use crate::input::registry;
use crate::input::value;
use crate::ui::hints::{self, Hint, OutputRemedy, ValueRemedy, VerbRemedy};
use crate::ui::terminal;

/// Tag of a cache without `tag=`, as in BuildKit.
const TAG: &str = "latest";
/// Types of caches.
const TYPES: [&str; 6] = ["local", "registry", "inline", "gha", "s3", "azblob"];
/// Number of shards of a cache in a registry.
const SHARDS: u32 = 16;
/// Prefix of the tags of scopes.
const SCOPE_PREFIX: &str = "cache";
/// Name of a cache in an object store.
const NAME: &str = "cache";
const SOURCE_KEYS: [&str; 8] = ["type", "src", "ref", "tag", "scope", "shards", "required", "verify"];
const INLINE_KEYS: [&str; 2] = ["type", "mode"];
/// Default of `mounts-max`.
const MAX_MOUNT: u64 = 2_000_000_000;
const TARGET_KEYS: [&str; 19] = [
    "type",
    "dest",
    "ref",
    "tag",
    "scope",
    "shards",
    "mode",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "image-manifest",
    "ignore-error",
    "max-size",
    "max-age",
    "mounts",
    "mounts-max",
    "sign",
    "verify",
];

/// A cache that is written after the build.
pub struct CacheTarget {
    /// The value of the flag.
    pub text: String,
    pub export: CacheExport,
    pub to: CachePlace,
    pub limits: CacheLimits,
    /// A failure is only a warning.
    pub ignores_errors: bool,
    /// Keys of other writers, whose steps stay.
    trusted: RecordKeys,
    /// The file of the private key that signs the records.
    sign: Option<PathBuf>,
}

impl CacheTarget {
    /// Returns true if the records are part of the image.
    pub fn is_inline(&self) -> bool {
        matches!(self.to, CachePlace::Image)
    }

    /// Returns true if the records are signed.
    pub fn is_signed(&self) -> bool {
        self.sign.is_some()
    }

    /// Reads the key that signs the records. Only a process that no command is started from may
    /// have it.
    ///
    /// # Errors
    ///
    /// Fails if the key cannot be read or used.
    pub fn keys(&self) -> Result<RecordKeys, Failure> {
        let keys = self.trusted.clone();
        let Some(path) = &self.sign else { return Ok(keys) };
        let bad = |problem: String| Failure::usage(format!("--cache-to {}: {problem}", self.text));
        let text = std::fs::read(path).map_err(|e| {
            bad(format!("cannot read the key {}: {}", quoted(path), rbuild_remedy::sentence(&e)))
                .help(ValueRemedy::CreateSigningKey)
        })?;
        keys.signing_with(&text).map_err(|e| bad(format!("{}: {e}", quoted(path))).help(ValueRemedy::CreateSigningKey))
    }
}

/// The place of a cache that is written.
pub enum CachePlace {
    Directory(LocalCache),
    /// Elsewhere: in a registry.
    Shared(SharedCache),
    /// The configuration of the image.
    Image,
}

/// The outcome of reading the records of a cache; `None` if there is no such cache.
pub type ReadCache = Result<Option<RemoteSteps>, ReportedError>;

/// Reads the records of caches on other machines, all at once.
pub type RecordReader<'a> = dyn Fn(&[(SharedCache, RecordKeys)]) -> Result<Vec<ReadCache>, Failure> + 'a;

/// The functions that read caches on other machines.
#[derive(Clone, Copy)]
pub struct CacheReader<'a> {
    pub records: &'a RecordReader<'a>,
    /// Returns the function that downloads layers.
    pub layers: &'a dyn Fn() -> Arc<LayerFetcher>,
    /// Reports a fact that is neither an error nor a reason for a warning.
    pub note: &'a dyn Fn(&str),
}

/// A value of one of the flags, as pairs in lower case and values.
struct CacheFields<'a> {
    flag: &'a str,
    text: &'a str,
    pairs: Vec<(String, String)>,
}

impl<'a> CacheFields<'a> {
    /// Splits a value.
    fn split(flag: &'a str, text: &'a str, form: ValueRemedy) -> Result<CacheFields<'a>, Failure> {
        let bad = |problem: String| Failure::usage(format!("{flag} {text}: {problem}"));
        let fields = csv_fields(text).map_err(|e| bad(e.to_string()).help(form))?;
        let mut pairs = Vec::new();
        // As in BuildKit, a single word is the name of an image.
        if let [only] = &fields[..]
            && !only.contains('=')
        {
            pairs = vec![("type".to_string(), "registry".to_string()), ("ref".to_string(), only.clone())];
            return Ok(CacheFields { flag, text, pairs });
        }
        for field in &fields {
            let (key, value) = field.split_once('=').unwrap_or((field, "true"));
            pairs.push((key.trim().to_lowercase(), value.to_string()));
        }
        Ok(CacheFields { flag, text, pairs })
    }

    /// Splits a value, and checks its type.
    fn parse(flag: &'a str, text: &'a str, form: ValueRemedy) -> Result<CacheFields<'a>, Failure> {
        let bad = |problem: String| Failure::usage(format!("{flag} {text}: {problem}"));
        let fields = CacheFields::split(flag, text, form.clone())?;
        match fields.get("type") {
            None => Err(bad("the type is missing".into()).help(form)),
            Some("local" | "registry" | "s3" | "azblob" | "gha") => Ok(fields),
            Some("inline") if flag == "--cache-to" => Ok(fields),
            Some("inline") => Err(fields.bad("records in an image are read by its name", ValueRemedy::CacheRefForm)),
            Some(other) => Err(bad(format!("unknown type `{other}`")).help(hints::suggestion(other, &TYPES))),
        }
    }

    /// Returns the last value of a key.
    fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn bad(&self, problem: impl std::fmt::Display, hint: impl Into<Hint>) -> Failure {
        Failure::usage(format!("{} {}: {problem}", self.flag, self.text)).help(hint)
    }

    /// Checks the options, which are these and those of the type.
    fn check_options(&self, known: &[&str]) -> Result<(), Failure> {
        let own: &[&str] = match self.get("type") {
            Some("s3") => &S3_KEYS,
            Some("azblob") => &AZURE_KEYS,
            Some("gha") => &GITHUB_KEYS,
            _ => &[],
        };
        self.check_keys(&[known, own].concat())
    }

    fn check_keys(&self, known: &[&str]) -> Result<(), Failure> {
        let unknown = self.pairs.iter().find(|(key, _)| !known.contains(&key.as_str()));
        match unknown {
            Some((key, _)) => Err(self.bad(format!("unknown option `{key}`"), hints::suggestion(key, known))),
            None => Ok(()),
        }
    }

    fn switch(&self, key: &str) -> Result<bool, Failure> {
        let switch = self.get(key).map(value::switch).transpose();
        Ok(switch.map_err(|e| self.bad(format!("`{key}`: {}", e.problem), e.hint))?.unwrap_or(false))
    }

    /// Returns the keys whose signatures are valid.
    fn trusted(&self) -> Result<RecordKeys, Failure> {
        let mut keys = RecordKeys::default();
        let Some(given) = self.get("verify") else { return Ok(keys) };
        let bad = |problem: String| self.bad(format!("`verify`: {problem}"), ValueRemedy::PublicKeyForm);
        for part in given.split(';').map(str::trim) {
            let path = Path::new(part);
            let (name, text) = if part.starts_with("ssh-") {
                ("the key".into(), part.to_string())
            } else {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|e| bad(format!("{}: {}", quoted(path), rbuild_remedy::sentence(&e))))?;
                (quoted(path).to_string(), text)
            };
            keys = keys.trusting(&text).map_err(|e| bad(format!("{name}: {e}")))?;
        }
        Ok(keys)
    }

    fn is_registry(&self) -> bool {
        self.get("type") == Some("registry")
    }

    /// Returns the caches in a registry, one for each scope.
    fn remote(&self) -> Result<Vec<RemoteCache>, Failure> {
        let text = self.get("ref").filter(|name| !name.is_empty());
        let text = text.ok_or_else(|| self.bad("`ref` is missing", ValueRemedy::CacheRefForm))?;
        let (name, shards) = (registry::full_name(text)?, self.shards()?);
        if name.checksum().is_some() {
            return Err(self.bad("the digest of a cache is not sha256:<64 digits>", ValueRemedy::CacheRefForm));
        }
        let has_tag = name.tag().is_some_and(|tag| text.ends_with(&format!(":{tag}")));
        let Some(scopes) = self.scopes() else { return Ok(vec![RemoteCache::new(name, shards)]) };
        if name.is_pinned() {
            return Err(self.bad("a digest has no scope", ValueRemedy::CacheRefForm));
        }
        let prefix = name.tag().filter(|_| has_tag).unwrap_or(SCOPE_PREFIX);
        let tags: Vec<String> = scopes.map(|scope| tag_of_scope(prefix, scope)).collect();
        let named = tags.into_iter().map(|tag| {
            let name = value::image_name(&format!("{}/{}:{tag}", name.registry(), name.path()))?;
            Ok(RemoteCache::new(name, shards))
        });
        named.collect()
    }

    /// Returns the caches on other machines; `None` if the type is another one.
    fn shared(&self) -> Result<Option<Vec<SharedCache>>, Failure> {
        let option = |key: &str| self.get(key);
        let variable = |name: &str| std::env::var(name).ok();
        let options = ObjectOptions { option: &option, variable: &variable, names: self.names()? };
        let objects = match self.get("type") {
            Some("registry") => {
                return Ok(Some(self.remote()?.into_iter().map(SharedCache::Registry).collect()));
            }
            Some("s3") => options.of_s3(),
            Some("azblob") => options.of_azure(),
            Some("gha") => {
                let scopes: Vec<String> = self.scopes().into_iter().flatten().map(str::to_string).collect();
                let caches = options.of_github(&scopes).map_err(|e| self.bad(e.problem, e.hint))?;
                if caches.is_none() {
                    no_job(self.flag);
                }
                return Ok(Some(caches.into_iter().flatten().map(SharedCache::Github).collect()));
            }
            _ => return Ok(None),
        };
        let objects = objects.map_err(|e| self.bad(e.problem, e.hint))?;
        Ok(Some(objects.into_iter().map(SharedCache::Objects).collect()))
    }

    /// Returns the names of caches in an object store: those that are given, or one for each scope.
    fn names(&self) -> Result<Vec<String>, Failure> {
        let given: Vec<&str> = list(self.get("name").unwrap_or_default()).collect();
        let names = match (self.scopes(), &given[..]) {
            (None, []) => vec![NAME.to_string()],
            (None, names) => names.iter().map(|name| name.to_string()).collect(),
            (Some(scopes), [] | [_]) => {
                let prefix = given.first().copied().unwrap_or(NAME);
                scopes.map(|scope| tag_of_scope(prefix, scope)).collect()
            }
            (Some(_), _) => return Err(self.bad("scopes need one name", ValueRemedy::CacheTargetForm)),
        };
        Ok(names)
    }

    /// Returns the scopes, of which the first one is written.
    fn scopes(&self) -> Option<impl Iterator<Item = &str>> {
        Some(list(self.get("scope").filter(|scope| !scope.is_empty())?))
    }

    fn shards(&self) -> Result<u32, Failure> {
        let Some(text) = self.get("shards") else { return Ok(SHARDS) };
        let number = text.parse().ok().filter(|number| (1..=MAX_SHARDS).contains(number));
        number.ok_or_else(|| {
            let remedy = ValueRemedy::CacheShardsRange { most: MAX_SHARDS };
            self.bad(format!("`shards={text}`: not a number of shards"), remedy)
        })
    }

    /// Returns the tags of a cache in a directory, one for each scope.
    fn tags(&self) -> Vec<String> {
        let given = self.get("tag").filter(|tag| !tag.is_empty());
        match self.scopes() {
            None => vec![given.unwrap_or(TAG).to_string()],
            Some(scopes) => scopes.map(|scope| tag_of_scope(given.unwrap_or(SCOPE_PREFIX), scope)).collect(),
        }
    }

    /// Fails if a cache that is written has several scopes.
    fn check_one_scope(&self) -> Result<(), Failure> {
        match self.scopes().map(Iterator::count) {
            None | Some(1) => Ok(()),
            Some(_) => Err(self.bad("a cache is written to one scope", ValueRemedy::CacheTargetForm)),
        }
    }

    /// Returns the form of layers.
    fn form(&self) -> Result<LayerForm, Failure> {
        let form = match self.get("compression") {
            Some(name) => layer_form(name)
                .map_err(|e| Failure { message: format!("{} {}: {}", self.flag, self.text, e.message), ..e })?,
            None => LayerForm::default(),
        };
        let Some(level) = self.get("compression-level") else { return Ok(form) };
        let number = level
            .parse()
            .map_err(|_| self.bad(format!("`{level}` is not a compression level"), OutputRemedy::NumericLevel))?;
        form.with_level(number).map_err(|e| {
            let remedy = OutputRemedy::LevelRange { form: e.form(), most: e.most() };
            self.bad(e, remedy)
        })
    }

    fn mounts(&self) -> MountChoice {
        mount_choice(self.get("mounts").unwrap_or_default())
    }

    fn max_mount(&self) -> Result<u64, Failure> {
        let Some(text) = self.get("mounts-max") else { return Ok(MAX_MOUNT) };
        value::size(text).map_err(|e| self.bad(format!("`mounts-max={text}`: {}", e.problem), e.hint))
    }

    fn limits(&self) -> Result<CacheLimits, Failure> {
        let mut limits = CacheLimits::default();
        if let Some(text) = self.get("max-size") {
            limits.bytes =
                value::size(text).map_err(|e| self.bad(format!("`max-size={text}`: {}", e.problem), e.hint))?;
        }
        if let Some(text) = self.get("max-age") {
            let bad = || self.bad(format!("`max-age={text}`: not a duration"), VerbRemedy::DurationForm);
            limits.age = value::duration_seconds(text).ok_or_else(bad)?;
        }
        Ok(limits)
    }
}

/// Returns the elements of a list.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(';').map(str::trim).filter(|element| !element.is_empty())
}

/// Parses a choice of cache mounts: `all`, or IDs.
pub fn mount_choice(text: &str) -> MountChoice {
    let named = |text: &str| text.split(';').map(str::trim).filter(|id| !id.is_empty()).map(str::to_string).collect();
    match text {
        "" | "none" => MountChoice::None,
        "all" => MountChoice::All,
        text => MountChoice::Named(named(text)),
    }
}

/// Warns that a build is not a job of GitHub Actions, or does not have the variables of one.
fn no_job(flag: &str) {
    let reason = "ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN are not set";
    terminal::warning(format!("{flag} type=gha has no effect: {reason}"));
}

/// The caches of a value of `--cache-from`, before they are opened.
struct CacheSource<'a> {
    text: &'a str,
    /// The place, for messages.
    place: String,
    is_required: bool,
    /// The directory, if it does not exist.
    missing: Option<PathBuf>,
    /// Those in a directory.
    opened: Vec<Result<Option<ImportedCache>, String>>,
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
    let Some(target) = targets.iter().find(|target| target.sign.is_some()) else { return Ok(()) };
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
    let mut sources = Vec::new();
    for text in given {
        let fields = CacheFields::parse("--cache-from", text, ValueRemedy::CacheSourceForm)?;
        fields.check_options(&SOURCE_KEYS)?;
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
            let open = |tag: &String| ImportedCache::local(Path::new(src), tag, &keys).map_err(|e| e.message());
            let tags = fields.tags();
            missing = Some(PathBuf::from(src)).filter(|dir| matches!(dir.try_exists(), Ok(false)));
            opened = tags.iter().map(open).collect();
            tags.join("`, `")
        };
        sources.push(CacheSource { text, place, is_required, missing, opened, shared, keys });
    }
    let of_source = |source: &CacheSource<'_>| {
        source.shared.iter().map(|cache| (cache.clone(), source.keys.clone())).collect::<Vec<_>>()
    };
    let names: Vec<(SharedCache, RecordKeys)> = sources.iter().flat_map(of_source).collect();
    let read = if names.is_empty() { Vec::new() } else { (reader.records)(&names)? };
    let mut read = read.into_iter();
    let mut found = Vec::new();
    for CacheSource { text, place, is_required, missing, opened, shared, .. } in sources {
        let mut outcomes = opened;
        for cache in shared {
            let answer = read.next().unwrap_or(Ok(None)).map_err(|e| e.message);
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
        let is_unsigned = |outcome: &Result<Option<ImportedCache>, String>| matches!(outcome, Ok(Some(cache)) if cache.has_unsigned());
        if outcomes.iter().any(is_unsigned) {
            let text = format!("--cache-from {text}: records without a valid signature are ignored");
            if is_required {
                return Err(Failure::new(text).help(ValueRemedy::TrustWriter));
            }
            terminal::warning(Warning { text, help: Some(Hint::from(ValueRemedy::TrustWriter).into()) });
        }
        let (count, mut is_unreadable) = (found.len(), false);
        for outcome in outcomes {
            match outcome {
                Ok(cache) => found.extend(cache),
                Err(cause) if is_required => {
                    return Err(Failure::new(format!("--cache-from {text}: cannot read the cache: {cause}")));
                }
                Err(cause) => {
                    is_unreadable = true;
                    let text = format!("--cache-from {text}: cannot read the cache, so it is not used: {cause}");
                    terminal::warning(rbuild_engine::Warning { text, help: None });
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
        if found.len() == count && !is_unreadable {
            (reader.note)(&format!("--cache-from {text}: there is no cache yet"));
        }
    }
    Ok(ImportedCaches::new(found).fetched_by((reader.layers)()))
}

/// Parses the values of `--cache-to`, and finds the directories.
///
/// # Errors
///
/// Fails if a value is invalid, or if a directory cannot be written.
pub fn targets(given: &[String]) -> Result<Vec<CacheTarget>, Failure> {
    let mut targets = Vec::new();
    for text in given {
        let fields = CacheFields::parse("--cache-to", text, ValueRemedy::CacheTargetForm)?;
        fields.check_options(&TARGET_KEYS)?;
        let modes = [("min", CacheMode::Min), ("max", CacheMode::Max)];
        let mode = value::choice("mode", &modes, fields.get("mode").unwrap_or("min"));
        let mode = mode.map_err(|e| fields.bad(e.problem, e.hint))?;
        let ignores_errors = fields.switch("ignore-error")?;
        let (form, limits) = (fields.form()?, fields.limits()?);
        fields.check_one_scope()?;
        let places = if fields.get("type") == Some("inline") {
            fields.check_keys(&INLINE_KEYS)?;
            vec![CachePlace::Image]
        } else if let Some(caches) = fields.shared()? {
            if caches.iter().filter_map(SharedCache::reference).any(|name| name.digest().is_some()) {
                return Err(fields.bad("a cache cannot be written to a digest", ValueRemedy::CacheRefForm));
            }
            caches.into_iter().map(CachePlace::Shared).collect()
        } else {
            let dest = fields.get("dest").filter(|dest| !dest.is_empty());
            let dest = dest.ok_or_else(|| fields.bad("`dest` is missing", ValueRemedy::CacheTargetForm))?;
            let dir = output::directory(Path::new(dest))?;
            vec![CachePlace::Directory(LocalCache { dir, tag: fields.tags().remove(0) })]
        };
        let (mounts, max_mount) = (fields.mounts(), fields.max_mount()?);
        let sign = fields.get("sign").map(PathBuf::from);
        let trusted = if sign.is_some() { fields.trusted()? } else { RecordKeys::default() };
        if sign.is_none() && fields.get("verify").is_some() {
            return Err(fields.bad("`verify` of a cache that is written needs `sign`", ValueRemedy::CreateSigningKey));
        }
        for to in places {
            let registry = match &to {
                CachePlace::Shared(cache) => cache.reference().cloned(),
                CachePlace::Directory(_) | CachePlace::Image => None,
            };
            let export = CacheExport { form, mode, registry, mounts: mounts.clone(), max_mount };
            let (trusted, sign) = (trusted.clone(), sign.clone());
            targets.push(CacheTarget { text: text.clone(), export, to, limits, ignores_errors, trusted, sign });
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_in_an_image_have_no_place() {
        let [target] = &targets(&["type=inline".into()]).unwrap()[..] else { panic!() };
        assert!(matches!(target.to, CachePlace::Image));
        assert!(targets(&["type=inline,ref=a.io/b".into()]).is_err());
        let reader = CacheReader {
            records: &|_| panic!("no registry is asked"),
            layers: &|| Arc::new(|_, _| None),
            note: &|_| (),
        };
        assert!(sources(&["type=inline,ref=a.io/b".into()], reader).is_err());
    }

    #[test]
    fn values_are_parsed_as_in_buildkit() {
        let place = rbuild_testkit::Scratch::new();
        let dest = place.join("a/b");
        let text = format!(
            "type=local,dest={},mode=max,compression=zstd,compression-level=5,ignore-error=true,max-size=1g,max-age=2d",
            dest.display()
        );
        let [target] = &targets(&[text, "type=gha".into()]).unwrap()[..] else { panic!() };
        assert_eq!((target.export.form.name().as_str(), target.export.mode), ("zstd-5", CacheMode::Max));
        let CachePlace::Directory(to) = &target.to else { panic!() };
        assert_eq!((to.tag.as_str(), target.ignores_errors), (TAG, true));
        assert_eq!(target.limits.age, 172_800);
        let text = format!("\"type=local\",DEST={},tag=main", dest.display());
        let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
        assert_eq!((target.export.form, target.export.mode), (LayerForm::default(), CacheMode::Min));
        let CachePlace::Directory(to) = &target.to else { panic!() };
        assert_eq!((to.tag.as_str(), target.limits), ("main", CacheLimits::default()));
        for text in ["a.io/b", "type=registry,ref=a.io/b", "ref=a.io/b:latest,type=registry,oci-mediatypes=true"] {
            let [target] = &targets(&[text.to_string()]).unwrap()[..] else { panic!() };
            let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
            assert_eq!((cache.name().familiar().as_str(), cache.shards()), ("a.io/b:latest", SHARDS), "{text}");
        }
        for (text, want) in [
            ("scope=feature/a", "a.io/b:cache-feature-a-"),
            ("scope=main,shards=2", "a.io/b:cache-main"),
            ("ref=a.io/b:x,scope=main", "a.io/b:x-main"),
            ("ref=a.io/b:latest,scope=main", "a.io/b:latest-main"),
        ] {
            let [target] = &targets(&[format!("type=registry,ref=a.io/b,{text}")]).unwrap()[..] else { panic!() };
            let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
            assert!(cache.name().familiar().starts_with(want), "{text}");
        }
        for text in ["scope=a;b", "shards=0", "shards=65", "shards=x"] {
            assert!(targets(&[format!("type=registry,ref=a.io/b,{text}")]).is_err(), "{text}");
        }
        let text = format!("type=local,dest={},scope=main", dest.display());
        let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
        assert!(matches!(&target.to, CachePlace::Directory(to) if to.tag == "cache-main"));
        let digest = format!("type=registry,ref=a.io/b:x@{}", rbuild_image::BlobDigest::of(b"x"));
        assert!(targets(&[digest]).is_err());
        assert!(!dest.exists(), "nothing is created before the build");
        let src = format!("type=local,src={}", dest.display());
        let notes = std::cell::RefCell::new(String::new());
        let reader = CacheReader {
            records: &|_| panic!("no registry is asked"),
            layers: &|| Arc::new(|_, _| None),
            note: &|text| notes.borrow_mut().push_str(text),
        };
        assert!(sources(std::slice::from_ref(&src), reader).unwrap().is_empty());
        assert_eq!(notes.take(), format!("--cache-from {src}: there is no cache yet"));
        assert!(sources(&[format!("{src},required")], reader).is_err());
    }
}
