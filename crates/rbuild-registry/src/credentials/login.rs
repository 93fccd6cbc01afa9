//! Changes to the files with logins.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::file::{AuthFile, helper_key, key_of};
use super::places::{Source, sources, target};
use super::program;
use crate::credential::{Credential, Given};
use crate::environment::Environment;

/// The place where a login was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A file, where the password is only encoded.
    File(String),
    /// A helper.
    Helper(String),
}

/// The places that a login was removed from, and those where one remains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files and helpers without the login now.
    pub from: Vec<String>,
    /// Places that still have one, and the reason.
    pub left: Vec<String>,
}

/// Stores a login: in the file that `given` names, or the user's, or in its helper.
///
/// # Errors
///
/// Fails with a sentence if the file cannot be written or the helper fails.
pub fn store(
    environment: &Environment,
    given: &Given,
    registry: &str,
    credential: &Credential,
) -> Result<Stored, String> {
    let path = target(environment, given)?;
    let mut file = AuthFile::read(&path)?.unwrap_or(AuthFile { document: Map::new() });
    if let Some(name) = file.helper_of(registry).or_else(|| file.store()) {
        program::store(environment, &name, helper_key(registry), credential)?;
        return Ok(Stored::Helper(format!("docker-credential-{name}")));
    }
    let entry = match credential {
        Credential::Password { user, password } => {
            json!({"auth": BASE64_STANDARD.encode(format!("{user}:{}", password.reveal()))})
        }
        Credential::Identity(token) => {
            json!({"auth": BASE64_STANDARD.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": token.reveal()})
        }
        Credential::Registry(token) => json!({"registrytoken": token.reveal()}),
    };
    let auths = file.document.entry("auths").or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        return Err(format!("{}: `auths` is not an object", path.display()));
    };
    auths.insert(key_of(registry).to_string(), entry);
    write(&path, &file)?;
    Ok(Stored::File(path.display().to_string()))
}

/// Removes the logins of a registry from all places where logins are looked for.
///
/// # Errors
///
/// Fails with a sentence if a file cannot be read.
pub fn forget(environment: &Environment, given: &Given, registry: &str) -> Result<Removed, String> {
    let mut removed = Removed::default();
    for source in sources(environment, given) {
        let Some(mut file) = source.read()? else { continue };
        for name in file.helper_of(registry).into_iter().chain(file.store()) {
            match program::erase(environment, &name, helper_key(registry)) {
                Ok(true) => removed.from.push(format!("docker-credential-{name}")),
                Ok(false) => {}
                Err(reason) => removed.left.push(reason),
            }
        }
        let keys = file.keys_of(registry);
        if keys.is_empty() {
            continue;
        }
        match remove(&source, &mut file, &keys) {
            Ok(()) => removed.from.push(source.name()),
            Err(reason) => removed.left.push(reason),
        }
    }
    Ok(removed)
}

fn remove(source: &Source, file: &mut AuthFile, keys: &[String]) -> Result<(), String> {
    let auths = file.document.get_mut("auths").and_then(Value::as_object_mut);
    if let Some(auths) = auths {
        keys.iter().for_each(|key| drop(auths.shift_remove(key)));
    }
    match source {
        Source::File(path) | Source::Runtime(path) => write(path, file),
        Source::OldFile(path) => {
            let auths = file.document.get("auths").and_then(Value::as_object).cloned().unwrap_or_default();
            write(path, &AuthFile { document: auths })
        }
        Source::Text(_) => Err(format!("{} has a login, and is not changed", source.name())),
    }
}

/// Replaces a file, readable by its owner only.
fn write(path: &Path, file: &AuthFile) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    // A link, for example to a file under version control, stays one.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut text = serde_json::to_string_pretty(&file.document).map_err(|e| failed(e.into()))?;
    text.push('\n');
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written =
        new_file(&temporary).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    let replaced = written.and_then(|()| std::fs::rename(&temporary, &path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    replaced.map_err(failed)
}

fn new_file(path: &Path) -> std::io::Result<File> {
    let _ = std::fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
