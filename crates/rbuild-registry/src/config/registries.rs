//! `registries.conf`, version 2, of Podman, Buildah and skopeo (containers-registries.conf(5)).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config_error::{ConfigError, FileAction};
use crate::endpoint_modes::{EndpointOperations, EndpointRole, UntrustedServers};
use crate::environment::ProcessEnvironment;

/// A rule for names with a prefix.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
    /// The file with the rule.
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: PullFromMirror,
}

/// The references that are requested from a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RegistriesConf {
    registry: Vec<Registry>,
}

/// A location that a name resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// Host, with the port if it has one.
    pub host: String,
    pub path: String,
    pub untrusted: UntrustedServers,
    pub role: EndpointRole,
    pub operations: EndpointOperations,
}

/// The result of the rules for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameRules {
    /// No rule applies.
    None,
    /// Forbidden by a rule of this file.
    Blocked(PathBuf),
    /// Mirrors in order, and the location itself.
    Targets(Vec<Location>),
}

/// The rules of all files.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    rules: BTreeMap<String, Registry>,
}

impl Registries {
    /// Reads the user's files, or else the system's.
    pub(crate) fn read(environment: &ProcessEnvironment) -> Result<Registries, ConfigError> {
        let mut all = Registries::default();
        texts(environment)?.iter().try_for_each(|(file, text)| all.add(text, file))?;
        Ok(all)
    }

    pub(crate) fn add(&mut self, text: &str, file: &Path) -> Result<(), ConfigError> {
        let document: RegistriesConf = toml::from_str(text).map_err(|e| ConfigError::toml(file, &e))?;
        for mut rule in document.registry {
            let empty = rule.prefix.is_empty();
            if empty {
                rule.prefix = rule.location.clone();
            }
            rule.prefix = rule.prefix.trim_end_matches('/').to_string();
            rule.location = rule.location.trim_end_matches('/').to_string();
            if rule.prefix.is_empty() {
                return Err(ConfigError::content(file, "a [[registry]] has neither a prefix nor a location"));
            }
            rule.file = file.to_path_buf();
            self.rules.insert(rule.prefix.clone(), rule);
        }
        Ok(())
    }

    /// Returns the rule with the longest prefix that matches a name.
    pub(crate) fn rule(&self, registry: &str, path: &str) -> NameRules {
        let name = format!("{registry}/{path}");
        let fitting = self.rules.values().filter_map(|rule| Some((rule, matched(&rule.prefix, registry, &name)?)));
        let Some((rule, length)) = fitting.max_by_key(|(rule, _)| (!rule.prefix.starts_with("*."), rule.prefix.len()))
        else {
            return NameRules::None;
        };
        if rule.blocked {
            return NameRules::Blocked(rule.file.clone());
        }
        let rest = &name[length..];
        let target = |location: &str, insecure| {
            let full = if location.is_empty() { name.clone() } else { format!("{location}{rest}") };
            let (host, path) = full.split_once('/').unwrap_or((&full, ""));
            Location {
                host: host.into(),
                path: path.into(),
                untrusted: if insecure { UntrustedServers::Allowed } else { UntrustedServers::Refused },
                role: EndpointRole::Registry,
                operations: EndpointOperations::ALL,
            }
        };
        let mirrors = rule.mirror.iter().filter(|mirror| !mirror.location.is_empty()).map(|mirror| Location {
            role: EndpointRole::Mirror,
            operations: EndpointOperations {
                tags: mirror.pull_from_mirror != PullFromMirror::DigestOnly && !rule.mirror_by_digest_only,
                digests: mirror.pull_from_mirror != PullFromMirror::TagOnly,
                // Pushes go to the location itself.
                push: false,
            },
            ..target(mirror.location.trim_end_matches('/'), mirror.insecure)
        });
        NameRules::Targets(mirrors.chain([target(&rule.location, rule.insecure)]).collect())
    }
}

/// Returns the length of the part of `name` that a prefix matches, if it does.
fn matched(prefix: &str, registry: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = registry.split(':').next().unwrap_or(registry);
        return host.strip_suffix(domain).is_some_and(|left| left.ends_with('.')).then_some(registry.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(prefix.len())
}

/// Returns the existing files with their texts: the user's, or else the system's.
pub(crate) fn texts(environment: &ProcessEnvironment) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let mut all = Vec::new();
    for file in files(environment) {
        match std::fs::read_to_string(&file) {
            Ok(text) => all.push((file, text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ConfigError::file(FileAction::Read, &file)(e)),
        }
    }
    Ok(all)
}

fn files(environment: &ProcessEnvironment) -> Vec<PathBuf> {
    let user = environment.user_config("containers/registries.conf");
    let (main, is_system) = match environment.variable("CONTAINERS_REGISTRIES_CONF") {
        Some(file) => (PathBuf::from(file), false),
        None => match user.filter(|path| path.exists()) {
            Some(path) => (path, false),
            None => (environment.system("etc/containers/registries.conf"), true),
        },
    };
    let system_dir = is_system.then(|| environment.system("etc/containers/registries.conf.d"));
    let user_dir = environment.user_config("containers/registries.conf.d");
    let mut files = vec![main];
    for dir in system_dir.into_iter().chain(user_dir) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "conf")).collect();
        found.sort();
        files.extend(found);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Registries {
        let mut all = Registries::default();
        all.add(text, Path::new("r.conf")).unwrap();
        all
    }

    /// Places as `HOST/PATH`, with `~` if insecure, and `t` or `d` if for tags or digests only.
    fn places(rule: &NameRules) -> Vec<String> {
        let NameRules::Targets(targets) = rule else { panic!("{rule:?}") };
        let text = |t: &Location| {
            let kind = match (t.operations.tags, t.operations.digests) {
                (true, false) => " t",
                (false, true) => " d",
                _ => "",
            };
            format!("{}{}/{}{kind}", if t.untrusted == UntrustedServers::Allowed { "~" } else { "" }, t.host, t.path)
        };
        targets.iter().map(text).collect()
    }

    #[test]
    fn the_longest_prefix_wins_and_is_replaced() {
        let all = rules(
            r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            location = "a.io"
            [[registry]]
            prefix = "a.io/team"
            location = "b.io:5000/x/"
            insecure = true
            [[registry]]
            prefix = "*.c.io"
            location = "d.io"
            [[registry]]
            prefix = "bad.io"
            blocked = true
            "#,
        );
        assert_eq!(places(&all.rule("a.io", "y")), ["a.io/y"]);
        assert_eq!(places(&all.rule("a.io", "team/y")), ["~b.io:5000/x/y"]);
        assert_eq!(places(&all.rule("a.io", "teams/y")), ["a.io/teams/y"]);
        assert_eq!(places(&all.rule("x.y.c.io", "z")), ["d.io/z"]);
        assert_eq!(all.rule("c.io", "z"), NameRules::None);
        assert_eq!(
            all.rule("a.io:5000", "z"),
            NameRules::Targets(vec![Location {
                host: "a.io:5000".into(),
                path: "z".into(),
                untrusted: UntrustedServers::Refused,
                role: EndpointRole::Registry,
                operations: EndpointOperations::ALL,
            }])
        );
        assert_eq!(all.rule("bad.io", "z"), NameRules::Blocked("r.conf".into()));
    }

    #[test]
    fn mirrors_come_first_and_later_rules_replace_earlier_ones() {
        let mut all = rules(
            r#"
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "m.io/hub"
            [[registry.mirror]]
            location = "n.io"
            insecure = true
            pull-from-mirror = "digest-only"
            "#,
        );
        let rule = all.rule("docker.io", "library/x");
        assert_eq!(places(&rule), ["m.io/hub/library/x", "~n.io/library/x d", "docker.io/library/x"]);
        all.add(
            "[[registry]]\nprefix = \"docker.io\"\nmirror-by-digest-only = true\nmirror = [{location = \"o.io\"}]",
            Path::new("s"),
        )
        .unwrap();
        assert_eq!(places(&all.rule("docker.io", "library/x")), ["o.io/library/x d", "docker.io/library/x"]);
    }

    #[test]
    fn errors_name_the_file() {
        let mut all = Registries::default();
        for (bad, end) in [
            ("[[registry]]\ninsecure = true", "neither a prefix nor a location"),
            ("[[registry]]\nlocation = 1", "expected a string, found the number 1"),
            ("[", ""),
        ] {
            let error = rbuild_remedy::sentence(&all.add(bad, Path::new("r.conf")).unwrap_err());
            assert!(error.starts_with("`r.conf`: ") && error.ends_with(end), "{error}");
        }
    }
}
