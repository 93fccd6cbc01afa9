//! Documents with logins: Docker's `config.json` and Podman's `auth.json`.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::credential::Credential;
use crate::secret::Secret;

const DOCKER: &str = "docker.io";
/// Key of docker.io in Docker's files and helpers.
const DOCKER_URL: &str = "https://index.docker.io/v1/";
const DOCKER_INDEX: &str = "index.docker.io";
/// Maximum size of a document in bytes.
const MAX_FILE: u64 = 4 << 20;

/// A document with logins. Unknown members are kept.
pub(super) struct AuthFile {
    pub(super) document: Map<String, Value>,
}

/// Returns the name under which helpers know a registry.
pub(super) fn helper_key(registry: &str) -> &str {
    if registry == DOCKER { DOCKER_URL } else { registry }
}

impl AuthFile {
    /// Reads a file; `None` if it does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<AuthFile>, String> {
        use std::io::Read;
        let failed = |e: String| format!("{}: {e}", path.display());
        let mut text = String::new();
        let file = match std::fs::File::open(path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map_err(|e| failed(e.to_string()))?,
        };
        file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
        AuthFile::parse(&text).map(Some).map_err(failed)
    }

    /// Reads a file of Docker before 1.7, which consists of the logins alone.
    pub(super) fn read_old(path: &Path) -> Result<Option<AuthFile>, String> {
        let file = AuthFile::read(path)?;
        Ok(file.map(|AuthFile { document }| {
            let auths = Map::from_iter([("auths".to_string(), Value::Object(document))]);
            AuthFile { document: auths }
        }))
    }

    /// Parses a document. Errors do not quote it.
    pub(super) fn parse(text: &str) -> Result<AuthFile, String> {
        if text.trim().is_empty() {
            return Ok(AuthFile { document: Map::new() });
        }
        let document = serde_json::from_str(text)
            .map_err(|e| format!("line {}: the file is not a JSON object with logins", e.line()))?;
        Ok(AuthFile { document })
    }

    /// Returns the helper for one registry, without its prefix.
    pub(super) fn helper_of(&self, registry: &str) -> Option<String> {
        let helpers = self.document.get("credHelpers")?.as_object()?;
        let names: &[&str] = match registry {
            DOCKER => &[DOCKER, DOCKER_URL, DOCKER_INDEX],
            other => &[other],
        };
        names.iter().find_map(|name| helper_name(helpers.get(*name)))
    }

    /// Returns the helper for all registries, without its prefix.
    pub(super) fn store(&self) -> Option<String> {
        helper_name(self.document.get("credsStore"))
    }

    /// Returns the login for a repository: that of the longest key.
    pub(super) fn entry(&self, registry: &str, repository: &str) -> Result<Option<Credential>, String> {
        let Some(auths) = self.document.get("auths").and_then(Value::as_object) else { return Ok(None) };
        for key in keys(registry, repository) {
            if let Some(found) = auths.get(&key) {
                let found = credential(found).map_err(|e| format!("the login for {key}: {e}"))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        let hosts: &[&str] = if registry == DOCKER { &[DOCKER_INDEX, DOCKER] } else { &[registry] };
        for (key, found) in auths.iter().filter(|(key, _)| key.contains("://") || key.ends_with('/')) {
            if hosts.contains(&host_of(key)) {
                let found = credential(found).map_err(|e| format!("the login for {key}: {e}"))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// Returns the keys of a registry's own logins, without those of its namespaces.
    pub(super) fn keys_of(&self, registry: &str) -> Vec<String> {
        let Some(auths) = self.document.get("auths").and_then(Value::as_object) else { return Vec::new() };
        let hosts: &[&str] = if registry == DOCKER { &[DOCKER_INDEX, DOCKER] } else { &[registry] };
        let is_own =
            |key: &&String| hosts.contains(&key.as_str()) || key.contains("://") && hosts.contains(&host_of(key));
        auths.keys().filter(is_own).cloned().collect()
    }
}

fn helper_name(value: Option<&Value>) -> Option<String> {
    let name = value?.as_str()?;
    // The name becomes part of a program's name, and must not lead to another directory.
    let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    valid.then(|| name.to_string())
}

/// Returns the key under which a login is written.
pub(super) fn key_of(registry: &str) -> &str {
    helper_key(registry)
}

/// Returns the keys of a repository, the most specific first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{registry}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(registry.to_string());
    if registry == DOCKER {
        keys.extend([DOCKER_URL.to_string(), DOCKER_INDEX.to_string()]);
    }
    keys
}

fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Returns the login of an entry; `None` if it is empty.
fn credential(entry: &Value) -> Result<Option<Credential>, &'static str> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::Registry(Secret::new(token))));
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::Identity(Secret::new(token))));
    }
    let password = |user: &str, password: &str| {
        let password = Secret::new(password.trim_end_matches('\0'));
        Some(Credential::Password { user: user.to_string(), password })
    };
    if let Some(auth) = text("auth") {
        let bytes = BASE64_STANDARD.decode(auth.trim()).map_err(|_| "`auth` is not base64")?;
        let plain = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
        let (user, secret) = plain.split_once(':').ok_or("`auth` is not of the form user:password")?;
        return Ok(password(user, secret));
    }
    Ok(text("username").and_then(|user| password(user, text("password").unwrap_or(""))))
}
