//! Short names of images, which have no registry. By default, their registry is docker.io, as in
//! Docker and BuildKit. With `RBUILD_SHORT_NAMES=podman`, `registries.conf` determines it.

use rbuild_image::Reference;

use crate::config::registries::Registries;
use crate::config_error::ConfigError;
use crate::environment::ProcessEnvironment;

/// Name of the variable that selects the meaning of short names.
const VARIABLE: &str = "RBUILD_SHORT_NAMES";

/// The meaning of short names in `registries.conf`.
pub struct ShortNames(Registries);

impl ShortNames {
    /// Reads the settings. Returns `None` if the registry of all short names is docker.io.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, or if the variable is invalid.
    pub fn read(environment: &ProcessEnvironment) -> Result<Option<ShortNames>, ConfigError> {
        match environment.variable(VARIABLE) {
            None | Some("docker") => Ok(None),
            Some("podman") => Registries::read(environment).map(|all| Some(ShortNames(all))),
            Some(_) => Err(ConfigError::Content {
                place: VARIABLE.into(),
                source: "the value is neither docker nor podman".into(),
            }),
        }
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
        let alias = self.0.aliases.get(name).filter(|full| !full.is_empty());
        let candidates: Vec<String> = match alias {
            Some(full) => vec![format!("{full}{rest}")],
            None => self.0.search.iter().map(|registry| format!("{}/{text}", registry.trim_end_matches('/'))).collect(),
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
    use std::path::Path;

    use super::*;

    fn names(text: &str) -> ShortNames {
        let mut all = Registries::default();
        all.add(text, Path::new("r.conf")).unwrap();
        ShortNames(all)
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
        assert!(of("other").is_err());
    }
}
