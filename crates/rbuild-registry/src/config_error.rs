//! Errors of local settings, logins and credential helpers.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rbuild_linux::quoted;
use rbuild_remedy::{DiskRemedy, FileAccess, FileRemedy, Remedy, ServerRemedy, type_message};

/// An operation on a settings file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAction {
    /// The file is read.
    Read,
    /// The file, or one beside it, is written.
    Write,
    /// The file is locked against changes by other programs.
    Lock,
}

impl FileAction {
    fn access(self) -> FileAccess {
        match self {
            FileAction::Read => FileAccess::Read,
            FileAction::Write => FileAccess::Write,
            FileAction::Lock => FileAccess::Lock,
        }
    }
}

/// A purpose that an endpoint may be excluded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointUse {
    /// Pulls of manifests.
    Pulls,
    /// Pulls of blobs.
    Blobs,
    /// Pushes.
    Pushes,
    /// Logins. Mirrors are not used for them.
    Logins,
}

impl fmt::Display for EndpointUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndpointUse::Pulls => "pulls",
            EndpointUse::Blobs => "blobs",
            EndpointUse::Pushes => "pushes",
            EndpointUse::Logins => "logins",
        })
    }
}

/// Settings, logins or a credential helper that cannot be used. Messages do not quote the content
/// of files.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An operation on a file or a directory failed.
    #[error("cannot {} {}", verb(.action), quoted(.path))]
    File {
        /// The operation.
        action: FileAction,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content of a file or a variable is invalid.
    #[error("{place}")]
    Content {
        /// The quoted path, or the name of the variable.
        place: String,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another program did not release its lock on a file.
    #[error("{} has been locked by another program for {seconds} s", quoted(.path))]
    Locked {
        /// The locked file.
        path: PathBuf,
        /// Seconds spent waiting.
        seconds: u64,
    },
    /// There is no such credential helper.
    #[error("program {0} not found in PATH")]
    NoHelper(String),
    /// A credential helper could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The helper.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// A credential helper failed, or its output is invalid.
    #[error("{program} failed: {reason}")]
    Helper {
        /// The helper.
        program: String,
        /// The message of the helper, or the problem with its output.
        reason: String,
    },
    /// A login cannot be removed from a source other than a file or a helper.
    #[error("{0} contains a login and was not changed")]
    Unchanged(String),
    /// There is no file for a new login.
    #[error("HOME is not set")]
    NoHome,
    /// The settings leave no endpoint for a purpose.
    #[error("no endpoint for {0} is configured")]
    NoEndpoint(EndpointUse),
    /// The text is not the host of a registry.
    #[error("`{0}` is not the name of a registry")]
    NoRegistry(String),
    /// The settings do not determine the registry of a short name.
    #[error("{}", short_name(.name, .candidates))]
    ShortName {
        /// The name.
        name: String,
        /// The images that it may stand for.
        candidates: Vec<String>,
    },
    /// The proxy is invalid.
    #[error("the proxy in http_proxy or https_proxy is not a URL")]
    Proxy,
}

fn verb(action: &FileAction) -> &'static str {
    match action {
        FileAction::Read => "read",
        FileAction::Write => "write",
        FileAction::Lock => "lock",
    }
}

fn short_name(name: &str, candidates: &[String]) -> String {
    match candidates {
        [] => format!("registries.conf has no registry for the short name `{name}`"),
        _ => format!("the short name `{name}` is ambiguous: {}", candidates.join(", ")),
    }
}

impl ConfigError {
    /// Returns a conversion of the error of an operation on a file.
    pub(crate) fn file(action: FileAction, path: &Path) -> impl Fn(io::Error) -> ConfigError {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::InvalidData => ConfigError::content(&path, "the file is not UTF-8"),
            _ => ConfigError::File { action, path: path.clone(), source },
        }
    }

    /// Returns the error for an invalid file.
    pub(crate) fn content(path: &Path, reason: impl Into<Box<dyn Error + Send + Sync>>) -> ConfigError {
        ConfigError::Content { place: quoted(path), source: reason.into() }
    }

    /// Returns the error for a file that is not valid TOML, with the lines that are wrong.
    pub(crate) fn toml(path: &Path, e: &toml::de::Error) -> ConfigError {
        let text = e.to_string();
        let text = text.trim_end();
        match text.strip_suffix(e.message()) {
            Some(excerpt) => ConfigError::content(path, excerpt.to_string() + &type_message(e.message())),
            None => ConfigError::content(path, text),
        }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        Some(match self {
            ConfigError::File { path, source, .. } if rbuild_linux::is_disk_full(source) => {
                Remedy::Disk(DiskRemedy::FreeSpaceAt { place: path.clone() })
            }
            ConfigError::File { action, path, source } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    FileRemedy::Permit { access: action.access(), path: path.clone() }.into()
                }
                io::ErrorKind::ReadOnlyFilesystem => FileRemedy::WritableFileSystem.into(),
                _ => return None,
            },
            ConfigError::Run { program, source } => match source.kind() {
                io::ErrorKind::PermissionDenied => FileRemedy::PermitProgram { program: program.clone() }.into(),
                _ => return None,
            },
            ConfigError::Content { place, .. } => FileRemedy::Correct { place: place.clone() }.into(),
            ConfigError::Locked { .. } => FileRemedy::AwaitLock.into(),
            ConfigError::NoHelper(_) => ServerRemedy::InstallHelper.into(),
            ConfigError::Helper { .. } => ServerRemedy::CheckHelper.into(),
            ConfigError::Unchanged(place) => ServerRemedy::RemoveLogin { place: place.clone() }.into(),
            ConfigError::NoHome => ServerRemedy::SetHome.into(),
            ConfigError::NoEndpoint(_) => ServerRemedy::CorrectRegistries.into(),
            ConfigError::Proxy => ServerRemedy::CorrectProxy.into(),
            ConfigError::ShortName { name, candidates } => {
                let example = candidates.first().cloned().unwrap_or_else(|| format!("docker.io/{name}"));
                ServerRemedy::WriteRegistry { example }.into()
            }
            ConfigError::NoRegistry(_) => ServerRemedy::UseHost.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let path = Path::new("/h/auth.json");
        let program = || "docker-credential-x".to_string();
        let errors = [
            ConfigError::file(FileAction::Read, path)(io(13)),
            ConfigError::file(FileAction::Write, path)(io(28)),
            ConfigError::file(FileAction::Lock, path)(io(30)),
            ConfigError::file(FileAction::Read, path)(io(5)),
            ConfigError::file(FileAction::Read, path)(io::ErrorKind::InvalidData.into()),
            ConfigError::content(path, "`auths` is not an object"),
            ConfigError::Content { place: "DOCKER_AUTH_CONFIG".into(), source: "`auths` is not an object".into() },
            ConfigError::Locked { path: path.into(), seconds: 5 },
            ConfigError::NoHelper(program()),
            ConfigError::Run { program: program(), source: io(13) },
            ConfigError::Run { program: program(), source: io(8) },
            ConfigError::Helper { program: program(), reason: "the keychain is locked".into() },
            ConfigError::Unchanged("DOCKER_AUTH_CONFIG".into()),
            ConfigError::NoHome,
            ConfigError::NoEndpoint(EndpointUse::Pulls),
            ConfigError::NoEndpoint(EndpointUse::Blobs),
            ConfigError::NoEndpoint(EndpointUse::Pushes),
            ConfigError::NoEndpoint(EndpointUse::Logins),
            ConfigError::NoRegistry("a b".into()),
            ConfigError::Proxy,
            ConfigError::ShortName { name: "x".into(), candidates: Vec::new() },
            ConfigError::ShortName { name: "x".into(), candidates: vec!["a.io/x".into(), "b.io/x".into()] },
        ];
        let variants = variants!(ConfigError {
            File,
            Content,
            Locked,
            NoHelper,
            Run,
            Helper,
            Unchanged,
            NoHome,
            NoEndpoint,
            NoRegistry,
            Proxy,
            ShortName,
        });
        assert_recorded!("ConfigError", variants.table(&errors, |e| e, ConfigError::remedy));
    }
}
