//! The fields of a value of `--cache-from` or `--cache-to`.

use std::collections::HashSet;

use rbuild_engine::MountChoice;
use rbuild_image::BlobDigest;
use rbuild_layer::LayerForm;
use rbuild_remedy::Warning;
use rbuild_transport::{CacheLimits, MAX_SHARDS, RecordKeys, RemoteCache, SharedCache, tag_of_scope};

use crate::exit::Failure;
use crate::input::cache::keys::{is_key_text, is_private_key, trusted_keys};
use crate::input::object_caches::{AZURE_KEYS, GITHUB_KEYS, ObjectOptions, S3_KEYS};
use crate::input::output::layer_form;
use crate::input::withheld_caches::CacheFlagValue;
use crate::input::{registry, value};
use crate::ui::hints::{self, Hint, OutputRemedy, ValueRemedy, VerbRemedy};
use crate::ui::terminal;

/// The options of `--cache-from` for all types.
const SOURCE_KEYS: [&str; 3] = ["type", "required", "verify"];
/// The options of `--cache-to` for all types but `inline`.
const TARGET_KEYS: [&str; 14] = [
    "type",
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
/// Tag of a cache without `tag=`, as in BuildKit.
pub const TAG: &str = "latest";
/// Types of caches.
const TYPES: [&str; 6] = ["local", "registry", "inline", "gha", "s3", "azblob"];
/// Number of shards of a cache in a registry.
pub const SHARDS: u32 = 16;
/// Prefix of the tags of scopes.
const SCOPE_PREFIX: &str = "cache";
/// Name of a cache in an object store.
const NAME: &str = "cache";
/// Default of `mounts-max`.
const MAX_MOUNT: u64 = 2_000_000_000;

/// A value of one of the flags, as pairs in lower case and values.
pub struct CacheFields<'a> {
    flag: &'a str,
    /// The value as the user wrote it, for messages.
    text: String,
    pairs: Vec<(String, String)>,
    /// Number of its login among those that were withheld.
    login: Option<usize>,
}

impl<'a> CacheFields<'a> {
    /// Splits a value.
    pub fn split(flag: &'a str, text: &'a str, form: ValueRemedy) -> Result<CacheFields<'a>, Failure> {
        let bad = |problem: String| Failure::usage(format!("{flag} {text}: {problem}"));
        let split = CacheFlagValue::split(text).map_err(|e| bad(e.to_string()).help(form))?;
        let CacheFlagValue { shown: text, fields, login } = split;
        let mut pairs = Vec::new();
        // As in BuildKit, a single word is the name of an image.
        if let [only] = &fields[..]
            && !only.contains('=')
        {
            pairs = vec![("type".to_string(), "registry".to_string()), ("ref".to_string(), only.clone())];
            return Ok(CacheFields { flag, text, pairs, login });
        }
        for field in &fields {
            let (key, value) = field.split_once('=').unwrap_or((field, "true"));
            pairs.push((key.trim().to_lowercase(), value.to_string()));
        }
        let is_private = |(key, value): &&(String, String)| match key.as_str() {
            "sign" => is_key_text(value),
            "verify" => is_private_key(value),
            _ => false,
        };
        if let Some((key, value)) = pairs.iter().find(is_private) {
            let problem = format!("{flag} {}: `{key}` takes the name of a file, not a key", text.replace(value, "***"));
            return Err(Failure::usage(problem).help(ValueRemedy::KeyInFile));
        }
        Ok(CacheFields { flag, text, pairs, login })
    }

    /// Splits a value, and checks its type and its scopes. Warns of options that are given twice.
    pub fn parse(flag: &'a str, text: &'a str, form: ValueRemedy) -> Result<CacheFields<'a>, Failure> {
        let fields = CacheFields::split(flag, text, form.clone())?;
        let keys = fields.pairs.iter().map(|(key, _)| key);
        let mut seen = HashSet::new();
        for key in keys.filter(|key| !seen.insert(*key)) {
            terminal::warning(format!("{flag} {}: `{key}` is given twice; the last value applies", fields.text));
        }
        if fields.get("scope").is_some_and(|scope| scope.split(';').any(|scope| scope.trim().is_empty())) {
            return Err(fields.bad("`scope` is empty", ValueRemedy::ScopeForm));
        }
        match fields.get("type") {
            None if fields.get("ref").is_some() => {
                Err(fields.bad("the type is missing", ValueRemedy::CacheRegistryForm))
            }
            None => Err(fields.bad("the type is missing", form)),
            Some("local" | "registry" | "s3" | "azblob" | "gha") => Ok(fields),
            Some("inline") if flag == "--cache-to" => Ok(fields),
            Some("inline") => Err(fields.bad("records in an image are read by its name", ValueRemedy::CacheRefForm)),
            Some(other) => Err(fields.bad(format!("unknown type `{other}`"), hints::suggestion(other, &TYPES))),
        }
    }

    /// Returns the value as the user wrote it, for messages.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the last value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub fn bad(&self, problem: impl std::fmt::Display, hint: impl Into<Hint>) -> Failure {
        Failure::usage(format!("{} {}: {problem}", self.flag, self.text)).help(hint)
    }

    /// Checks that the type has all options.
    pub fn check_options(&self) -> Result<(), Failure> {
        let kind = self.get("type").unwrap_or_default();
        let known = options_of(self.flag, kind);
        let Some((key, _)) = self.pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) else { return Ok(()) };
        let (other, form) = match self.flag {
            "--cache-to" => ("--cache-from", ValueRemedy::CacheTargetForm),
            _ => ("--cache-to", ValueRemedy::CacheSourceForm),
        };
        if options_of(other, kind).contains(&key.as_str()) {
            return Err(self.bad(format!("`{key}` is an option of {other}"), form));
        }
        if let Some(other) = TYPES.iter().find(|other| options_of(self.flag, other).contains(&key.as_str())) {
            return Err(self.bad(format!("`{key}` is an option of type={other}"), hints::use_one_of(&known)));
        }
        Err(self.bad(format!("unknown option `{key}`"), hints::suggestion(key, &known)))
    }

    pub fn switch(&self, key: &str) -> Result<bool, Failure> {
        let Some(text) = self.get(key) else { return Ok(false) };
        value::switch(text).map_err(|e| self.bad(format!("`{key}={text}`: {}", e.problem), e.hint))
    }

    /// Returns the keys whose signatures are valid.
    pub fn trusted(&self) -> Result<RecordKeys, Failure> {
        let Some(given) = self.get("verify") else { return Ok(RecordKeys::default()) };
        trusted_keys(given, |problem| Failure::usage(format!("{} {}: `verify`: {problem}", self.flag, self.text)))
    }

    /// Returns the registry of the cache if it may be contacted without a trusted certificate, or
    /// in plain HTTP.
    pub fn insecure_registry(&self) -> Result<Option<String>, Failure> {
        if !self.is_registry() || !self.switch("registry.insecure")? {
            return Ok(None);
        }
        Ok(self.remote()?.first().map(|cache| cache.name().registry().to_string()))
    }

    pub fn is_registry(&self) -> bool {
        self.get("type") == Some("registry")
    }

    /// Returns the caches in a registry, one for each scope.
    pub fn remote(&self) -> Result<Vec<RemoteCache>, Failure> {
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
    pub fn shared(&self) -> Result<Option<Vec<SharedCache>>, Failure> {
        let option = |key: &str| self.get(key);
        let variable = |name: &str| std::env::var(name).ok();
        let options = ObjectOptions { option: &option, variable: &variable, names: self.names()?, login: self.login };
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
    pub fn names(&self) -> Result<Vec<String>, Failure> {
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
    pub fn scopes(&self) -> Option<impl Iterator<Item = &str>> {
        Some(list(self.get("scope")?))
    }

    pub fn shards(&self) -> Result<u32, Failure> {
        let Some(text) = self.get("shards") else { return Ok(SHARDS) };
        let number = text.parse().ok().filter(|number| (1..=MAX_SHARDS).contains(number));
        number.ok_or_else(|| {
            let remedy = ValueRemedy::CacheShardsRange { most: MAX_SHARDS };
            self.bad(format!("`shards={text}`: not a number of shards"), remedy)
        })
    }

    /// Returns the tags of a cache in a directory, one for each scope.
    pub fn tags(&self) -> Vec<String> {
        let given = self.get("tag").filter(|tag| !tag.is_empty());
        match self.scopes() {
            None => vec![given.unwrap_or(TAG).to_string()],
            Some(scopes) => scopes.map(|scope| tag_of_scope(given.unwrap_or(SCOPE_PREFIX), scope)).collect(),
        }
    }

    /// Returns the tags of a cache that is read from a directory, or the digest of its manifest.
    pub fn local_names(&self) -> Result<Vec<String>, Failure> {
        let Some(digest) = self.get("digest") else { return Ok(self.tags()) };
        if self.get("tag").is_some() || self.get("scope").is_some() {
            return Err(self.bad("a digest has no tag and no scope", ValueRemedy::CacheSourceForm));
        }
        match digest.parse::<BlobDigest>() {
            Ok(digest) => Ok(vec![digest.to_string()]),
            Err(e) => Err(self.bad(format!("`digest={digest}`: {e}"), ValueRemedy::CacheSourceForm)),
        }
    }

    /// Fails if a cache that is written has several scopes.
    pub fn check_one_scope(&self) -> Result<(), Failure> {
        match self.scopes().map(Iterator::count) {
            None | Some(1) => Ok(()),
            Some(_) => Err(self.bad("a cache is written to one scope", ValueRemedy::OneScope)),
        }
    }

    /// Returns the form of layers.
    pub fn form(&self) -> Result<LayerForm, Failure> {
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

    pub fn mounts(&self) -> MountChoice {
        mount_choice(self.get("mounts").unwrap_or_default())
    }

    pub fn max_mount(&self) -> Result<u64, Failure> {
        let Some(text) = self.get("mounts-max") else { return Ok(MAX_MOUNT) };
        value::size(text).map_err(|e| self.bad(format!("`mounts-max={text}`: {}", e.problem), e.hint))
    }

    pub fn limits(&self) -> Result<CacheLimits, Failure> {
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

/// Returns the registries of caches with `registry.insecure`. Invalid values are reported where
/// they are used.
pub fn insecure_registries(from: &[String], to: &[String]) -> Vec<String> {
    let values = from.iter().map(|text| ("--cache-from", text)).chain(to.iter().map(|text| ("--cache-to", text)));
    let registry = |(flag, text): (&str, &String)| {
        CacheFields::split(flag, text, ValueRemedy::CacheRefForm).ok()?.insecure_registry().ok()?
    };
    values.filter_map(registry).collect()
}

/// Returns the options of a type of caches. Those of BuildKit that have no effect are among them.
fn options_of(flag: &str, kind: &str) -> Vec<&'static str> {
    let is_target = flag == "--cache-to";
    let all: &[&str] = match (is_target, kind) {
        (true, "inline") => &["type", "mode"],
        (true, _) => &TARGET_KEYS,
        (false, _) => &SOURCE_KEYS,
    };
    let own: &[&str] = match (is_target, kind) {
        (true, "local") => &["dest", "tag", "scope"],
        (false, "local") => &["src", "tag", "scope", "digest"],
        (_, "registry") => &["ref", "scope", "shards", "registry.insecure"],
        (_, "s3") => &S3_KEYS,
        (_, "azblob") => &AZURE_KEYS,
        (_, "gha") => &GITHUB_KEYS,
        _ => &[],
    };
    [all, own].concat()
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
    let variables = ["ACTIONS_RESULTS_URL", "ACTIONS_RUNTIME_TOKEN"];
    let missing: Vec<&str> = variables.into_iter().filter(|name| std::env::var_os(name).is_none()).collect();
    let reason = match &missing[..] {
        [one] => format!("{one} is not set"),
        _ => format!("{} are not set", variables.join(" and ")),
    };
    let text = format!("{flag} type=gha has no effect: {reason}");
    terminal::warning(Warning { text, help: Some(Hint::from(ValueRemedy::PassJobVariables).into()) });
}
