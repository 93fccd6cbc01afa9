//! Documents with logins: Docker's `config.json` and Podman's `auth.json`.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::config_error::{ConfigError, FileAction};
use crate::credential::Credential;
use crate::credentials::members::JsonMembers;
use crate::secret::Secret;

/// Name of the member with the logins.
const AUTHS: &str = "auths";
const DOCKER: &str = "docker.io";
/// Key of docker.io in Docker's files and helpers.
const DOCKER_URL: &str = "https://index.docker.io/v1/";
const DOCKER_INDEX: &str = "index.docker.io";
/// Maximum size of a document in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The reason why a document with logins is invalid. Messages do not quote logins.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidLogins {
    #[error("line {line}: the file is not a JSON object with logins")]
    NotJson { line: usize },
    #[error("`{AUTHS}` is not an object")]
    NotObject,
    #[error("{entry}: it is not a string")]
    NotString { entry: String },
    #[error(
        "{entry}: `{}` is not a valid name of a credential helper; use letters, digits, `-`, `_` and `.`",
        .name.escape_debug()
    )]
    HelperName { entry: String, name: String },
    #[error("the login for {key}")]
    Login { key: String, source: InvalidAuth },
    #[error("{}", rbuild_remedy::message(.0))]
    Json(serde_json::Error),
}

impl From<serde_json::Error> for InvalidLogins {
    fn from(e: serde_json::Error) -> InvalidLogins {
        InvalidLogins::Json(e)
    }
}

/// The reason why the member `auth` of a login cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidAuth {
    #[error("`auth` is not base64")]
    NotBase64,
    #[error("`auth` is not UTF-8")]
    NotUtf8,
    #[error("`auth` is not of the form user:password")]
    NoPassword,
}

/// A document with logins. Unknown members are kept.
#[derive(Default)]
pub(super) struct AuthFile {
    pub(super) document: JsonMembers,
}

/// Returns the name of a registry in credential helpers.
pub(super) fn helper_key(registry: &str) -> &str {
    if registry == DOCKER { DOCKER_URL } else { registry }
}

impl AuthFile {
    /// Reads a file; `None` if it does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<AuthFile>, ConfigError> {
        use std::io::Read;
        let failed = ConfigError::file(FileAction::Read, path);
        let mut text = String::new();
        let file = match std::fs::File::open(path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map_err(&failed)?,
        };
        file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        AuthFile::parse(&text).map(Some).map_err(|e| ConfigError::content(path, e))
    }

    /// Reads a file of Docker before 1.7, which consists of the logins alone.
    pub(super) fn read_old(path: &Path) -> Result<Option<AuthFile>, ConfigError> {
        let Some(AuthFile { document: logins }) = AuthFile::read(path)? else { return Ok(None) };
        let mut document = JsonMembers::default();
        let logins = logins.value(1).map_err(|e| ConfigError::content(path, e))?;
        document.set(AUTHS, logins);
        Ok(Some(AuthFile { document }))
    }

    /// Parses a document. Errors do not quote it.
    pub(super) fn parse(text: &str) -> Result<AuthFile, InvalidLogins> {
        if text.trim().is_empty() {
            return Ok(AuthFile::default());
        }
        let document =
            serde_json::from_str(text).map_err(|e: serde_json::Error| InvalidLogins::NotJson { line: e.line() })?;
        Ok(AuthFile { document })
    }

    /// Returns the helper for one registry, without its prefix. Errors name the entry.
    pub(super) fn helper_of(&self, registry: &str) -> Result<Option<String>, InvalidLogins> {
        let helpers: JsonMembers = self.document.get("credHelpers").unwrap_or_default();
        let names: &[&str] = match registry {
            DOCKER => &[DOCKER, DOCKER_URL, DOCKER_INDEX],
            other => &[other],
        };
        let Some(name) = names.iter().find(|name| helpers.has(name)) else { return Ok(None) };
        helper_name(format!("`credHelpers` for {name}"), helpers.get(name))
    }

    /// Returns the helper for all registries, without its prefix.
    pub(super) fn store(&self) -> Result<Option<String>, InvalidLogins> {
        let name = "credsStore";
        if !self.document.has(name) {
            return Ok(None);
        }
        helper_name(format!("`{name}`"), self.document.get(name))
    }

    /// Returns the members of `auths`.
    pub(super) fn auths(&self) -> JsonMembers {
        self.document.get(AUTHS).unwrap_or_default()
    }

    /// Replaces `auths`.
    pub(super) fn set_auths(&mut self, auths: &JsonMembers) -> Result<(), InvalidLogins> {
        let value = auths.value(1)?;
        self.document.set(AUTHS, value);
        Ok(())
    }

    /// Returns the login with the longest key that matches a repository.
    pub(super) fn entry(&self, registry: &str, repository: &str) -> Result<Option<Credential>, InvalidLogins> {
        let auths = self.auths();
        let hosts: &[&str] = if registry == DOCKER { &[DOCKER_INDEX, DOCKER] } else { &[registry] };
        let urls = auths.names().filter(|key| key.contains("://") || key.ends_with('/'));
        let urls = urls.filter(|key| hosts.contains(&host_of(key))).map(str::to_string);
        for key in keys(registry, repository).into_iter().chain(urls) {
            let Some(entry) = auths.get::<Value>(&key) else { continue };
            let found = credential(&entry).map_err(|source| InvalidLogins::Login { key: key.clone(), source })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the keys of a registry's own logins, without those of its namespaces.
    pub(super) fn keys_of(&self, registry: &str) -> Vec<String> {
        let hosts: &[&str] = if registry == DOCKER { &[DOCKER_INDEX, DOCKER] } else { &[registry] };
        let is_own = |key: &&str| hosts.contains(key) || key.contains("://") && hosts.contains(&host_of(key));
        self.auths().names().filter(is_own).map(str::to_string).collect()
    }
}

/// Checks the name of a helper; `None` for the empty text.
fn helper_name(entry: String, value: Option<Value>) -> Result<Option<String>, InvalidLogins> {
    let Some(Value::String(name)) = value else { return Err(InvalidLogins::NotString { entry }) };
    // The name becomes part of the name of a program, which must not contain a path.
    if name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        Ok(Some(name).filter(|name| !name.is_empty()))
    } else {
        Err(InvalidLogins::HelperName { entry, name })
    }
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
fn credential(entry: &Value) -> Result<Option<Credential>, InvalidAuth> {
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
        let bytes = BASE64_STANDARD.decode(auth.trim()).map_err(|_| InvalidAuth::NotBase64)?;
        let plain = String::from_utf8(bytes).map_err(|_| InvalidAuth::NotUtf8)?;
        let (user, secret) = plain.split_once(':').ok_or(InvalidAuth::NoPassword)?;
        return Ok(password(user, secret));
    }
    Ok(text("username").and_then(|user| password(user, text("password").unwrap_or(""))))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [
            AuthFile::parse("{\n]").err().unwrap(),
            AuthFile::parse(r#"{"credHelpers": {"r.io": "../x"}}"#).unwrap().helper_of("r.io").unwrap_err(),
            AuthFile::parse(r#"{"credsStore": 1}"#).unwrap().store().unwrap_err(),
            InvalidLogins::NotObject,
            InvalidLogins::Login { key: "r.io".into(), source: InvalidAuth::NotBase64 },
            InvalidLogins::Json(serde_json::from_str::<u8>("{").unwrap_err()),
        ];
        let variants = variants!(InvalidLogins { NotJson, NotObject, NotString, HelperName, Login, Json });
        assert_recorded!("InvalidLogins", variants.table(&errors, |e| e, no_remedy));
        let of = |auth: &str| credential(&serde_json::json!({ "auth": auth })).err().unwrap();
        let errors = [of("=a="), of("/w=="), of("YQ==")];
        let variants = variants!(InvalidAuth { NotBase64, NotUtf8, NoPassword });
        assert_recorded!("InvalidAuth", variants.table(&errors, |e| e, no_remedy));
    }
}
