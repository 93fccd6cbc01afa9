//! The caches that a build writes.

use std::path::{Path, PathBuf};

use rbuild_engine::{CacheExport, CacheMode};
use rbuild_transport::{CacheLimits, LocalCache, RecordKeys, SharedCache};

use crate::exit::Failure;
use crate::input::cache::fields::CacheFields;
use crate::input::cache::keys::signing_with;
use crate::input::{output, value};
use crate::ui::hints::ValueRemedy;

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
        signing_with(keys, path, |problem| Failure::usage(format!("--cache-to {}: {problem}", self.text)))
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

/// Parses the values of `--cache-to`, and finds the directories.
///
/// # Errors
///
/// Fails if a value is invalid, or if a directory cannot be written.
pub fn targets(given: &[String]) -> Result<Vec<CacheTarget>, Failure> {
    let mut targets = Vec::new();
    for text in given {
        let fields = CacheFields::parse("--cache-to", text, ValueRemedy::CacheTargetForm)?;
        fields.check_options()?;
        let modes = [("min", CacheMode::Min), ("max", CacheMode::Max)];
        let mode = fields.get("mode").unwrap_or("min");
        let mode =
            value::choice("mode", &modes, mode).map_err(|e| fields.bad(format!("{} `{mode}`", e.problem), e.hint))?;
        let ignores_errors = fields.switch("ignore-error")?;
        let (form, limits) = (fields.form()?, fields.limits()?);
        fields.check_one_scope()?;
        let places = if fields.get("type") == Some("inline") {
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
            targets.push(CacheTarget {
                text: fields.text().to_string(),
                export,
                to,
                limits,
                ignores_errors,
                trusted,
                sign,
            });
        }
    }
    Ok(targets)
}
