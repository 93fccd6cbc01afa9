//! Errors, each with the place it is about and a hint.

use std::fmt;

use rbuild_image::BlobDigest;
use thiserror::Error;

/// A request to a registry that failed.
#[derive(Debug, Error)]
#[error("{place}: {problem}")]
pub struct RegistryError {
    /// The repository, or the registry alone.
    pub place: Place,
    /// The reason.
    pub problem: Box<Problem>,
}

/// Result of a registry operation.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host, with the port if it has one.
    pub registry: String,
    /// Path of the repository; empty for the registry as a whole.
    pub repository: String,
}

impl fmt::Display for Place {
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

/// Hints, one for each kind of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Log in.
    Login { registry: String },
    /// Log in with another account, or ask for permission.
    Permission { registry: String },
    /// Check the name.
    Name,
    /// Check network and proxy.
    Network,
    /// Install the authority's certificate.
    Certificate { registry: String },
    /// Declare the registry as insecure.
    Plain { registry: String },
    /// Try again later.
    Later,
    /// Log in for a higher limit, or configure a mirror.
    Limit { registry: String },
    /// Correct the settings file or helper.
    Settings,
    /// Convert the image with another tool.
    Convert,
}

impl RegistryError {
    /// Returns the error for a place.
    pub fn new(place: Place, problem: Problem) -> RegistryError {
        RegistryError { place, problem: Box::new(problem) }
    }

    /// Returns a hint for the user.
    pub fn remedy(&self) -> Option<Remedy> {
        let registry = || self.place.registry.clone();
        Some(match &*self.problem {
            Problem::Connection { kind: Broken::Certificate, .. } => Remedy::Certificate { registry: registry() },
            Problem::Connection { kind: Broken::NotTls, .. } => Remedy::Plain { registry: registry() },
            Problem::Connection { .. } => Remedy::Network,
            Problem::Status { status: 429, .. } => Remedy::Limit { registry: registry() },
            Problem::Status { .. } | Problem::Digest { .. } | Problem::Answer { .. } => Remedy::Later,
            Problem::Missing { .. } => Remedy::Name,
            Problem::Denied { anonymous: true, .. } => Remedy::Login { registry: registry() },
            Problem::Denied { .. } => Remedy::Permission { registry: registry() },
            Problem::Credentials(_) | Problem::Settings(_) | Problem::Blocked(_) => Remedy::Settings,
            Problem::Unsupported(_) => Remedy::Convert,
            Problem::Local { .. } => return None,
        })
    }
}

impl Problem {
    /// Returns how far the request got: of several endpoints, the error of the one that got
    /// furthest is reported.
    pub(crate) fn reach(&self) -> u8 {
        match self {
            Problem::Connection { .. } => 0,
            Problem::Missing { .. } => 1,
            _ => 2,
        }
    }
}

fn text_of(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
