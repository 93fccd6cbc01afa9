//! Short names of images, which have no registry. By default, their registry is docker.io, as in
//! Docker and BuildKit. With `RBUILD_SHORT_NAMES=podman`, `registries.conf` determines it.

use std::collections::BTreeMap;
use std::path::Path;

use rbuild_image::Reference;
use serde::Deserialize;

use crate::config::registries::texts;
use crate::config_error::ConfigError;
use crate::environment::ProcessEnvironment;

/// Name of the variable that selects the meaning of short names.
const VARIABLE: &str = "RBUILD_SHORT_NAMES";

/// The meaning of short names in `registries.conf`.
#[derive(Debug, Default)]
pub struct ShortNames {
    /// Full names of short ones, both without a tag.
    aliases: BTreeMap<String, String>,
    /// The registries of other short names.
    search: Vec<String>,
}

impl ShortNames {
    /// Reads the settings. Returns `None` if the registry of all short names is docker.io.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, or if the variable is invalid.
    pub fn read(environment: &ProcessEnvironment) -> Result<Option<ShortNames>, ConfigError> {
        if !ShortNames::are_configured(environment)? {
            return Ok(None);
        }
        let mut all = ShortNames::default();
        texts(environment)?.iter().try_for_each(|(file, text)| all.add(text, file))?;
        Ok(Some(all))
    }

    /// Returns true if `registries.conf` determines the registry of short names.
    ///
    /// # Errors
    ///
    /// Fails if the variable is invalid.
    pub fn are_configured(environment: &ProcessEnvironment) -> Result<bool, ConfigError> {
        match environment.variable(VARIABLE) {
            None | Some("docker") => Ok(false),
            Some("podman") => Ok(true),
            Some(other) => Err(ConfigError::Content {
                place: VARIABLE.into(),
                source: format!("`{}` is neither docker nor podman", other.escape_debug()).into(),
            }),
        }
    }

    /// Adds the settings of a file, which take precedence over those before.
    fn add(&mut self, text: &str, file: &Path) -> Result<(), ConfigError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct RegistriesConf {
            aliases: BTreeMap<String, String>,
            #[serde(rename = "unqualified-search-registries")]
            search: Option<Vec<String>>,
        }
        let document: RegistriesConf = toml::from_str(text).map_err(|e| ConfigError::toml(file, &e))?;
        self.aliases.extend(document.aliases);
        self.search = document.search.unwrap_or(std::mem::take(&mut self.search));
        Ok(())
    }

    /// Returns the image that a text names: for a short name, the alias, or else the image in the
    /// only search registry. Returns `None` if the text is not a short name.
    ///
    /// # Errors
    ///
    /// Fails if there is no search registry, or if there are several.
    pub fn full(&self, text: &str) -> Result<Option<Reference>, ConfigError> {
        if !Reference::is_short(text) || text.parse::<Reference>().is_err() {
            return Ok(None);
        }
        let name = &text[..text.find(['@', ':']).unwrap_or(text.len())];
        let rest = &text[name.len()..];
        let alias = self.aliases.get(name).filter(|full| !full.is_empty());
        let candidates: Vec<String> = match alias {
            Some(full) => vec![format!("{full}{rest}")],
            None => self.search.iter().map(|registry| format!("{}/{text}", registry.trim_end_matches('/'))).collect(),
        };
        match &candidates[..] {
            [full] => full
                .parse()
                .map(Some)
                .map_err(|e| ConfigError::Content { place: "registries.conf".into(), source: Box::new(e) }),
            _ => Err(ConfigError::ShortName { name: text.to_string(), candidates }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::config::registries::Registries;

    fn names(text: &str) -> ShortNames {
        let mut all = ShortNames::default();
        all.add(text, Path::new("r.conf")).unwrap();
        all
    }

    #[test]
    fn aliases_come_before_the_search_registry() {
        let one = names(
            "unqualified-search-registries = [\"quay.io\"]\n[aliases]\nfedora = \"r.fp.org/fedora\"\n\
             \"me/app\" = \"a.io/b/c\"\ngone = \"\"",
        );
        for (text, want) in [
            ("fedora", Some("r.fp.org/fedora:latest")),
            ("fedora:40", Some("r.fp.org/fedora:40")),
            ("me/app:1", Some("a.io/b/c:1")),
            ("app", Some("quay.io/app:latest")),
            ("gone", Some("quay.io/gone:latest")),
            ("docker.io/fedora", None),
            ("localhost/fedora", None),
            ("not a name", None),
        ] {
            assert_eq!(one.full(text).unwrap().map(|name| name.to_string()).as_deref(), want, "{text}");
        }
        let hub = names("unqualified-search-registries = [\"docker.io\"]");
        assert_eq!(hub.full("debian").unwrap().unwrap().to_string(), "docker.io/library/debian:latest");
    }

    #[test]
    fn other_numbers_of_search_registries_are_errors() {
        for (text, want) in [("", 0), ("unqualified-search-registries = [\"a.io\", \"b.io\"]", 2)] {
            let e = names(text).full("x:1").unwrap_err();
            assert!(matches!(&e, ConfigError::ShortName { candidates, .. } if candidates.len() == want), "{e}");
        }
        let invalid = names("[aliases]\nx = \"A B\"").full("x").unwrap_err();
        assert!(matches!(invalid, ConfigError::Content { .. }));
    }

    #[test]
    fn only_podman_reads_the_settings() {
        let of = |value| ShortNames::read(&ProcessEnvironment::of([(VARIABLE, value)], Path::new("/nosuch")));
        assert!(of("").unwrap().is_none() && of("docker").unwrap().is_none() && of("podman").unwrap().is_some());
        let invalid = rbuild_remedy::sentence(&of("other").unwrap_err());
        assert_eq!(invalid, "RBUILD_SHORT_NAMES: `other` is neither docker nor podman");
    }

    #[test]
    fn mistakes_in_short_names_matter_only_if_they_are_used() {
        for text in ["aliases = 1", "[aliases]\nx = 1", "unqualified-search-registries = \"a.io\""] {
            let dir = Scratch::new();
            std::fs::create_dir_all(dir.join("etc/containers")).unwrap();
            std::fs::write(dir.join("etc/containers/registries.conf"), text).unwrap();
            let of = |mode| ProcessEnvironment::of([(VARIABLE, mode)], &dir);
            assert!(Registries::read(&of("docker")).is_ok() && ShortNames::read(&of("docker")).unwrap().is_none());
            assert!(Registries::read(&of("podman")).is_ok() && ShortNames::read(&of("podman")).is_err(), "{text}");
        }
    }
}
