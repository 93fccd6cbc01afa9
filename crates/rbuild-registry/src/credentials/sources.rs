//! The sources of logins, in the order of lookup, and the file in which logins are stored.

use std::path::{Path, PathBuf};

use rbuild_linux::quoted;

use crate::config_error::ConfigError;
use crate::credential::CommandLineCredentials;
use crate::credentials::file::{AuthFile, InvalidLogins};
use crate::environment::ProcessEnvironment;

/// A source of logins.
pub(super) enum CredentialSource {
    File(PathBuf),
    /// A file in the system's runtime directory, which may belong to another user.
    Runtime(PathBuf),
    /// Docker's older file, which consists of the logins alone.
    OldFile(PathBuf),
    /// The text of the variable `DOCKER_AUTH_CONFIG`.
    Text(String),
}

impl CredentialSource {
    pub(super) fn name(&self) -> String {
        match self {
            CredentialSource::File(path) | CredentialSource::Runtime(path) | CredentialSource::OldFile(path) => {
                path.display().to_string()
            }
            CredentialSource::Text(_) => "$DOCKER_AUTH_CONFIG".into(),
        }
    }

    /// Returns the error for invalid content.
    pub(super) fn invalid(&self, reason: InvalidLogins) -> ConfigError {
        let place = match self {
            CredentialSource::File(path) | CredentialSource::Runtime(path) | CredentialSource::OldFile(path) => {
                quoted(path)
            }
            CredentialSource::Text(_) => self.name(),
        };
        ConfigError::Content { place, source: reason.into() }
    }

    pub(super) fn read(&self) -> Result<Option<AuthFile>, ConfigError> {
        match self {
            CredentialSource::File(path) => AuthFile::read(path),
            CredentialSource::Runtime(path) => match std::fs::File::open(path) {
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
                _ => AuthFile::read(path),
            },
            CredentialSource::OldFile(path) => AuthFile::read_old(path),
            CredentialSource::Text(text) => AuthFile::parse(text).map(Some).map_err(|e| self.invalid(e)),
        }
    }
}

/// Returns the sources in the order of lookup. As in Docker, the directory in `DOCKER_CONFIG`
/// replaces the one in the home directory.
pub(super) fn sources(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Vec<CredentialSource> {
    let variable = |name| environment.variable(name).map(PathBuf::from);
    let runtime = match variable("XDG_RUNTIME_DIR") {
        Some(dir) => CredentialSource::File(dir.join("containers/auth.json")),
        None => {
            CredentialSource::Runtime(environment.system(&format!("run/containers/{}/auth.json", environment.user())))
        }
    };
    let files =
        |paths: Vec<Option<PathBuf>>| paths.into_iter().flatten().map(CredentialSource::File).collect::<Vec<_>>();
    let mut all = files(vec![given.file.clone(), variable("REGISTRY_AUTH_FILE")]);
    all.extend(environment.variable("DOCKER_AUTH_CONFIG").map(|text| CredentialSource::Text(text.into())));
    let docker = docker_file(environment);
    all.extend(files(vec![docker.clone()]));
    all.push(runtime);
    all.extend(files(vec![environment.user_config("containers/auth.json")]));
    if docker.is_none() {
        all.extend(files(vec![environment.home(".docker/config.json")]));
        all.extend(environment.home(".dockercfg").map(CredentialSource::OldFile));
    }
    all
}

/// Returns the sources from which the logins of a registry are removed: the file to which logins
/// are written if the caller names it, or else all sources.
pub(super) fn emptied(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Vec<CredentialSource> {
    match named(environment, given) {
        Some(path) => vec![CredentialSource::File(path)],
        None => sources(environment, given),
    }
}

/// Returns Docker's file in the directory that `DOCKER_CONFIG` names.
fn docker_file(environment: &ProcessEnvironment) -> Option<PathBuf> {
    environment.variable("DOCKER_CONFIG").map(|dir| Path::new(dir).join("config.json"))
}

/// Returns the file for new logins that the command line or the environment names.
fn named(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Option<PathBuf> {
    let file = || environment.variable("REGISTRY_AUTH_FILE").map(PathBuf::from);
    given.file.clone().or_else(file).or_else(|| docker_file(environment))
}

/// Returns the file that new logins are written to.
pub(super) fn target(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Result<PathBuf, ConfigError> {
    named(environment, given).or_else(|| environment.home(".docker/config.json")).ok_or(ConfigError::NoHome)
}
