//! Errors, each with the place it is about and a hint.

use std::fmt;

use rbuild_image::BlobDigest;
use rbuild_remedy::{RegistryAction, Remedy};
use thiserror::Error;

/// A request to a registry that failed.
#[derive(Debug, Error)]
#[error("{place}: {problem}")]
pub struct RegistryError {
    /// The repository, or the registry alone.
    pub place: RemoteRepository,
    /// The reason.
    pub problem: Box<Problem>,
}

/// Result of a registry operation.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRepository {
    /// Host, with the port if it has one.
    pub registry: String,
    /// Path of the repository; empty for the registry as a whole.
    pub repository: String,
}

impl fmt::Display for RemoteRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.repository.as_str() {
            "" => write!(f, "{}", self.registry),
            repository => write!(f, "{}/{repository}", self.registry),
        }
    }
}

/// Reasons for a failure.
#[derive(Debug, Error)]
pub enum Problem {
    /// The connection could not be made, or broke.
    #[error("{request} at {host}: {reason}")]
    Connection { host: String, request: String, reason: String, kind: Broken },
    /// A status that is no success.
    #[error("{request} at {host} was answered with HTTP status {status}{}", text_of(.message))]
    Status { host: String, request: String, status: u16, message: String },
    /// The manifest, blob or repository does not exist, or is hidden.
    #[error("{host} has no {what}{}", text_of(.message))]
    Missing { host: String, what: String, message: String },
    /// The login is missing or insufficient.
    #[error("{host} refused to {action}{} ({login})", text_of(.message))]
    Denied { host: String, action: &'static str, message: String, login: String, anonymous: bool },
    /// A credentials file or helper failed.
    #[error("{0}")]
    Credentials(String),
    /// A settings file is unusable.
    #[error("{0}")]
    Settings(String),
    /// A rule of registries.conf forbids this registry.
    #[error("blocked by {0}")]
    Blocked(String),
    /// Bytes with another digest than asked for.
    #[error("{host} sent {what} {wanted}, but with the digest {found}")]
    Digest { host: String, what: &'static str, wanted: BlobDigest, found: BlobDigest },
    /// An answer that contradicts the protocol or itself.
    #[error("{host}: {reason}")]
    Answer { host: String, reason: String },
    /// An image in a format that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// A failure of a request that was repeated in vain, so that nothing around it repeats it
    /// again.
    #[error("{0}")]
    Repeated(Box<Problem>),
    /// Local data could not be read.
    #[error("reading {what}: {reason}")]
    Local { what: String, reason: String },
}

/// Kinds of failed connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The host name does not exist.
    Name,
    /// The certificate is not trusted.
    Certificate,
    /// The server does not speak TLS.
    NotTls,
    /// Refused, reset, timed out, or cut.
    Line,
}

impl RegistryError {
    /// Returns the error for a place.
    pub fn new(place: RemoteRepository, problem: Problem) -> RegistryError {
        match problem {
            Problem::Repeated(problem) => RegistryError { place, problem },
            problem => RegistryError { place, problem: Box::new(problem) },
        }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        let registry = |action| Remedy::Registry { registry: self.place.registry.clone(), action };
        Some(match &*self.problem {
            Problem::Connection { kind: Broken::Certificate, .. } => registry(RegistryAction::TrustAuthority),
            Problem::Connection { kind: Broken::NotTls, .. } => registry(RegistryAction::AllowPlainHttp),
            Problem::Connection { .. } => {
                "check the network, the host name and the proxy (https_proxy, no_proxy)".into()
            }
            Problem::Status { status: 429, .. } => registry(RegistryAction::RaiseRateLimit),
            Problem::Status { .. } | Problem::Digest { .. } | Problem::Answer { .. } => {
                "try again later, or tell the operator of the registry".into()
            }
            Problem::Missing { .. } => "check the name and the tag".into(),
            Problem::Denied { anonymous: true, .. } => registry(RegistryAction::LogIn),
            Problem::Denied { .. } => registry(RegistryAction::CheckLogin),
            Problem::Credentials(_) => "correct the file or the credential helper".into(),
            Problem::Settings(_) => "correct the settings".into(),
            Problem::Blocked(file) => format!("remove the rule from {file} if this registry may be used").into(),
            Problem::Unsupported(_) => "convert the image, for example with skopeo copy".into(),
            Problem::Local { .. } | Problem::Repeated(_) => return None,
        })
    }
}

impl Problem {
    /// Returns how far the request got: of several endpoints, the error of the one that got
    /// furthest is reported.
    pub(crate) fn reach(&self) -> u8 {
        match self {
            Problem::Repeated(problem) => problem.reach(),
            Problem::Connection { .. } => 0,
            Problem::Missing { .. } => 1,
            _ => 2,
        }
    }
}

fn text_of(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
