//! Changes to the files with logins.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use crate::config_error::ConfigError;
use crate::credential::{CommandLineCredentials, Credential};
use crate::credentials::file::{AuthFile, InvalidLogins, helper_key, key_of};
use crate::credentials::members::JsonMembers;
use crate::credentials::program;
use crate::credentials::replace::FileLock;
use crate::credentials::sources::{CredentialSource, emptied, sources, target};
use crate::environment::ProcessEnvironment;

/// The place where a login was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A file, where the password is only encoded.
    File(String),
    /// A helper.
    Helper(String),
}

/// The result of removing a login.
#[derive(Debug, Default)]
pub struct Removed {
    /// Files and helpers from which the login was removed.
    pub from: Vec<String>,
    /// The reasons why a login may remain in other files or helpers.
    pub left: Vec<ConfigError>,
    /// Sources that are not changed and have another login.
    pub others: Vec<String>,
}

impl Removed {
    /// Adds the result for another name of the registry.
    pub fn extend(&mut self, other: Removed) {
        self.from.extend(other.from);
        self.left.extend(other.left);
        self.others.extend(other.others);
    }
}

/// Stores a login in the file that `given` names, or else in the user's file, or in the helper that
/// the file names.
///
/// # Errors
///
/// Fails if the file cannot be written or the helper fails.
pub fn store(
    environment: &ProcessEnvironment,
    given: &CommandLineCredentials,
    registry: &str,
    credential: &Credential,
) -> Result<Stored, ConfigError> {
    let path = target(environment, given)?;
    let failed = |e: InvalidLogins| ConfigError::content(&path, e);
    let lock = FileLock::take(&path)?;
    let mut file = AuthFile::read(&path)?.unwrap_or_default();
    if let Some(name) = helper(&file, registry).map_err(failed)? {
        drop(lock);
        program::store(environment, &name, helper_key(registry), credential)?;
        return Ok(Stored::Helper(format!("docker-credential-{name}")));
    }
    if file.document.has("auths") && file.document.get::<JsonMembers>("auths").is_none() {
        return Err(failed(InvalidLogins::NotObject));
    }
    let mut auths = file.auths();
    let entry = to_raw_value(&entry_of(credential)).map_err(|e| failed(e.into()))?;
    auths.set(key_of(registry), entry);
    file.set_auths(&auths).map_err(failed)?;
    lock.replace(&file.document)?;
    Ok(Stored::File(path.display().to_string()))
}

/// Returns the helper that keeps the logins of a registry.
fn helper(file: &AuthFile, registry: &str) -> Result<Option<String>, InvalidLogins> {
    file.helper_of(registry)?.map_or_else(|| file.store(), |name| Ok(Some(name)))
}

fn entry_of(credential: &Credential) -> Value {
    match credential {
        Credential::Password { user, password } => {
            json!({"auth": BASE64_STANDARD.encode(format!("{user}:{}", password.reveal()))})
        }
        Credential::Identity(token) => {
            let auth = BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:");
            json!({"auth": auth, "identitytoken": token.reveal()})
        }
        Credential::Registry(token) => json!({"registrytoken": token.reveal()}),
    }
}

/// Removes the logins of a registry from the file that `given` or the environment names, or else
/// from all sources. Finds the logins in the other sources.
///
/// # Errors
///
/// Fails if a file cannot be read.
pub fn forget(
    environment: &ProcessEnvironment,
    given: &CommandLineCredentials,
    registry: &str,
) -> Result<Removed, ConfigError> {
    let mut removed = Removed::default();
    for source in emptied(environment, given) {
        let Some(file) = source.read()? else { continue };
        let helpers = [file.helper_of(registry), file.store()];
        for name in helpers {
            let erased = match name {
                Ok(Some(name)) => {
                    program::erase(environment, &name, helper_key(registry)).map(|had| had.then_some(name))
                }
                other => other.map(|_| None).map_err(|e| source.invalid(e)),
            };
            match erased {
                Ok(Some(name)) => removed.from.push(format!("docker-credential-{name}")),
                Ok(None) => {}
                Err(reason) => removed.left.push(reason),
            }
        }
        if file.keys_of(registry).is_empty() {
            continue;
        }
        match remove(&source, registry) {
            Ok(()) => removed.from.push(source.name()),
            Err(reason) => removed.left.push(reason),
        }
    }
    let emptied: Vec<String> = emptied(environment, given).iter().map(CredentialSource::name).collect();
    let others = sources(environment, given).into_iter().filter(|source| !emptied.contains(&source.name()));
    removed.others = others.filter(|source| has_login(environment, source, registry)).map(|s| s.name()).collect();
    Ok(removed)
}

/// Returns true if a source has a login for a registry or one of its repositories. One that cannot
/// be read has none.
fn has_login(environment: &ProcessEnvironment, source: &CredentialSource, registry: &str) -> bool {
    let Ok(Some(file)) = source.read() else { return false };
    let helpers = [file.helper_of(registry), file.store()];
    let mut helpers = helpers.into_iter().filter_map(|name| name.ok().flatten());
    let key = helper_key(registry);
    !file.keys_of(registry).is_empty()
        || helpers.any(|name| matches!(program::get(environment, &name, key), Ok(Some(_))))
}

/// Removes the entries of a registry from a file.
fn remove(source: &CredentialSource, registry: &str) -> Result<(), ConfigError> {
    let path = match source {
        CredentialSource::File(path) | CredentialSource::Runtime(path) | CredentialSource::OldFile(path) => path,
        CredentialSource::Text(_) => return Err(ConfigError::Unchanged(source.name())),
    };
    let lock = FileLock::take(path)?;
    let Some(mut file) = source.read()? else { return Ok(()) };
    let mut auths = file.auths();
    file.keys_of(registry).iter().for_each(|key| auths.remove(key));
    if let CredentialSource::OldFile(_) = source {
        return lock.replace(&auths);
    }
    file.set_auths(&auths).map_err(|e| source.invalid(e))?;
    lock.replace(&file.document)
}
