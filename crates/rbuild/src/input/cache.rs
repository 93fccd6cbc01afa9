//! Parses the values of `--cache-from` and `--cache-to`, and opens the caches.

use std::path::Path;

use rbuild_engine::{CacheExport, CacheMode};
use rbuild_layer::LayerForm;
use rbuild_linux::Directory;
use rbuild_transport::{CacheLimits, ImportedCache, ImportedCaches, LocalCache};

use crate::exit::Failure;
use crate::input::output::{self, csv_fields, layer_form};
use crate::input::value;
use crate::ui::hints::{self, Hint, OutputRemedy, ValueRemedy, VerbRemedy};
use crate::ui::terminal;

/// Tag of a cache without `tag=`, as in BuildKit.
const TAG: &str = "latest";
/// Types of caches, with those of BuildKit that are not supported yet.
const TYPES: [&str; 6] = ["local", "registry", "inline", "gha", "s3", "azblob"];
const SOURCE_KEYS: [&str; 4] = ["type", "src", "tag", "required"];
const TARGET_KEYS: [&str; 12] = [
    "type",
    "dest",
    "tag",
    "mode",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "image-manifest",
    "ignore-error",
    "max-size",
    "max-age",
];

/// A cache that is written after the build.
pub struct CacheTarget {
    /// The value of the flag.
    pub text: String,
    pub export: CacheExport,
    pub to: LocalCache,
    pub limits: CacheLimits,
    /// A failure is only a warning.
    pub ignores_errors: bool,
}

/// A value of one of the flags, as pairs in lower case and values.
struct CacheFields<'a> {
    flag: &'a str,
    text: &'a str,
    pairs: Vec<(String, String)>,
}

impl<'a> CacheFields<'a> {
    /// Splits a value. Returns `None`, after a warning, for a type that is not supported yet.
    fn parse(flag: &'a str, text: &'a str, form: ValueRemedy) -> Result<Option<CacheFields<'a>>, Failure> {
        let bad = |problem: String| Failure::usage(format!("{flag} {text}: {problem}"));
        let fields = csv_fields(text).map_err(|e| bad(e.to_string()).help(form.clone()))?;
        // As in BuildKit, a single word is the name of an image.
        if let [only] = &fields[..]
            && !only.contains('=')
        {
            unsupported(flag, "registry");
            return Ok(None);
        }
        let mut pairs = Vec::new();
        for field in &fields {
            let (key, value) = field.split_once('=').unwrap_or((field, "true"));
            pairs.push((key.trim().to_lowercase(), value.to_string()));
        }
        let fields = CacheFields { flag, text, pairs };
        match fields.get("type") {
            None => Err(bad("the type is missing".into()).help(form)),
            Some("local") => Ok(Some(fields)),
            Some(known) if TYPES.contains(&known) => {
                unsupported(flag, known);
                Ok(None)
            }
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

    fn tag(&self) -> String {
        self.get("tag").filter(|tag| !tag.is_empty()).unwrap_or(TAG).to_string()
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

    fn limits(&self) -> Result<CacheLimits, Failure> {
        let mut limits = CacheLimits::default();
        if let Some(text) = self.get("max-size") {
            limits.bytes =
                value::size(text).map_err(|e| self.bad(format!("`max-size={text}`: {}", e.problem), e.hint))?;
        }
        if let Some(text) = self.get("max-age") {
            let bad = || self.bad(format!("`max-age={text}`: not a duration"), VerbRemedy::DurationForm);
            limits.age = seconds(text).ok_or_else(bad)?;
        }
        Ok(limits)
    }
}

fn unsupported(flag: &str, kind: &str) {
    terminal::err(&format!("warning: {flag} is not supported yet for type={kind} and has no effect\n"));
}

/// Parses a duration. Days have 24 hours.
fn seconds(text: &str) -> Option<u64> {
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
        return days.checked_mul(86_400);
    }
    text.parse::<jiff::SignedDuration>().ok()?.as_secs().try_into().ok()
}

/// Opens the caches of `--cache-from`. One that cannot be read is left out with a warning, unless
/// it is required. One that does not exist yet is left out silently.
///
/// # Errors
///
/// Fails if a value is invalid, or if a required cache cannot be read.
pub fn sources(given: &[String]) -> Result<ImportedCaches, Failure> {
    let mut caches = Vec::new();
    for text in given {
        let Some(fields) = CacheFields::parse("--cache-from", text, ValueRemedy::CacheSourceForm)? else { continue };
        fields.check_keys(&SOURCE_KEYS)?;
        let src = fields.get("src").filter(|src| !src.is_empty());
        let src = src.ok_or_else(|| fields.bad("`src` is missing", ValueRemedy::CacheSourceForm))?;
        let is_required = fields.switch("required")?;
        match ImportedCache::local(Path::new(src), &fields.tag()) {
            Ok(Some(cache)) => caches.push(cache),
            Ok(None) if is_required => {
                return Err(Failure::new(format!(
                    "--cache-from {text}: there is no cache with the tag `{}`",
                    fields.tag()
                )));
            }
            Ok(None) => {}
            Err(e) if is_required => {
                return Err(
                    Failure::new(format!("--cache-from {text}: cannot read the cache: {}", e.message())).because(&e)
                );
            }
            Err(e) => {
                let text = format!("--cache-from {text}: cannot read the cache, so it is not used: {}", e.message());
                terminal::warning(rbuild_engine::Warning { text, help: None });
            }
        }
    }
    Ok(ImportedCaches::new(caches))
}

/// Parses the values of `--cache-to`, and finds the directories.
///
/// # Errors
///
/// Fails if a value is invalid, or if a directory cannot be written.
pub fn targets(given: &[String]) -> Result<Vec<CacheTarget>, Failure> {
    let mut targets = Vec::new();
    for text in given {
        let Some(fields) = CacheFields::parse("--cache-to", text, ValueRemedy::CacheTargetForm)? else { continue };
        fields.check_keys(&TARGET_KEYS)?;
        let dest = fields.get("dest").filter(|dest| !dest.is_empty());
        let dest = dest.ok_or_else(|| fields.bad("`dest` is missing", ValueRemedy::CacheTargetForm))?;
        let modes = [("min", CacheMode::Min), ("max", CacheMode::Max)];
        let mode = value::choice("mode", &modes, fields.get("mode").unwrap_or("min"));
        let mode = mode.map_err(|e| fields.bad(e.problem, e.hint))?;
        let ignores_errors = fields.switch("ignore-error")?;
        let (form, limits) = (fields.form()?, fields.limits()?);
        let dir: Directory = output::directory(Path::new(dest))?;
        let to = LocalCache { dir, tag: fields.tag() };
        let export = CacheExport { form, mode };
        targets.push(CacheTarget { text: text.clone(), export, to, limits, ignores_errors });
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_days() {
        for (text, want) in [("30d", Some(2_592_000)), ("1h30m", Some(5400)), ("d", None), ("-1h", None), ("x", None)] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }

    #[test]
    fn values_are_parsed_as_in_buildkit() {
        let place = rbuild_testkit::Scratch::new();
        let dest = place.join("a/b");
        let text = format!(
            "type=local,dest={},mode=max,compression=zstd,compression-level=5,ignore-error=true,max-size=1g,max-age=2d",
            dest.display()
        );
        let [target] = &targets(&[text, "type=registry,ref=a/b".into(), "a/b".into()]).unwrap()[..] else { panic!() };
        assert_eq!((target.export.form.name().as_str(), target.export.mode), ("zstd-5", CacheMode::Max));
        assert_eq!((target.to.tag.as_str(), target.ignores_errors), (TAG, true));
        assert_eq!(target.limits.age, 172_800);
        let text = format!("\"type=local\",DEST={},tag=main", dest.display());
        let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
        assert_eq!((target.export.form, target.export.mode), (LayerForm::default(), CacheMode::Min));
        assert_eq!((target.to.tag.as_str(), target.limits), ("main", CacheLimits::default()));
        assert!(!dest.exists(), "nothing is created before the build");
        let src = format!("type=local,src={}", dest.display());
        assert!(sources(std::slice::from_ref(&src)).unwrap().is_empty());
        assert!(sources(&[format!("{src},required")]).is_err());
    }
}
