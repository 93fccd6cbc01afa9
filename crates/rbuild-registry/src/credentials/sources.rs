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

/// Returns the sources in the order of lookup.
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
    all.extend(files(vec![variable("DOCKER_CONFIG").map(|dir| dir.join("config.json"))]));
    all.push(runtime);
    all.extend(files(vec![environment.user_config("containers/auth.json"), environment.home(".docker/config.json")]));
    all.extend(environment.home(".dockercfg").map(CredentialSource::OldFile));
    all
}

/// Returns the file that new logins are written to.
pub(super) fn target(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Result<PathBuf, ConfigError> {
    let variable = |name| environment.variable(name).map(Path::new);
    let docker = variable("DOCKER_CONFIG").map(|dir| dir.join("config.json"));
    let path = given.file.clone().or_else(|| variable("REGISTRY_AUTH_FILE").map(Path::to_path_buf)).or(docker);
    path.or_else(|| environment.home(".docker/config.json")).ok_or(ConfigError::NoHome)
}
