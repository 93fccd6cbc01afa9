//! Errors, each with the repository or registry that it concerns.

use std::error::Error;
use std::{fmt, io};

use rbuild_image::BlobDigest;
use rbuild_remedy::{RegistryAction, Remedy, ServerRemedy, sentence};

use crate::config_error::ConfigError;
use crate::interruption::Interruption;

/// A request to a registry or an object store that failed.
#[derive(Debug, thiserror::Error)]
#[error("{place}")]
pub struct RegistryError {
    /// The repository, or the registry alone.
    pub place: RemoteRepository,
    /// The reason.
    #[source]
    pub problem: Box<RegistryProblem>,
}

/// Result of a registry operation.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// A repository of a registry, or a bucket of an object store.
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

/// Reasons for a failure. Hosts include the port if there is one.
#[derive(Debug, thiserror::Error)]
pub enum RegistryProblem {
    /// The connection could not be made, or broke.
    #[error("{request} at {host}")]
    Connection {
        /// The host.
        host: String,
        /// Method and path of the request, or its purpose; never the parameters of a URL.
        request: String,
        /// The kind of failure, which determines the remedy and whether it is temporary.
        kind: ConnectionFailure,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An unsuccessful status.
    #[error("{request} at {host} failed with HTTP status {status}{}", text_of(.message))]
    Status {
        /// The host.
        host: String,
        /// Method and path of the request, or its purpose; never the parameters of a URL.
        request: String,
        /// The status, never 401 or 403.
        status: u16,
        /// The explanation in the body of the response, without secrets; empty if there is none.
        message: String,
    },
    /// The object does not exist, or the server hides it.
    #[error("{host} has no {object}{}", text_of(.message))]
    Missing {
        /// The host.
        host: String,
        /// The object.
        object: RemoteObject,
        /// The explanation in the body of the response, without secrets; empty if there is none.
        message: String,
    },
    /// The login is missing or insufficient.
    #[error("{host} refused to {action}{} ({login})", text_of(.message))]
    Denied {
        /// The host.
        host: String,
        /// The action that was denied.
        action: RemoteAction,
        /// The explanation in the body of the response, without secrets; empty if there is none.
        message: String,
        /// Description of the login that was used, as a clause.
        login: String,
        /// True if the request had no login.
        anonymous: bool,
    },
    /// Settings, logins or a credential helper cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rule of registries.conf forbids this registry. Contains the path of the file.
    #[error("blocked by {0}")]
    Blocked(String),
    /// Content with another digest than the requested one.
    #[error("{host} {content} {wanted} with the wrong digest {found}")]
    Digest {
        /// The host.
        host: String,
        /// The content.
        content: VerifiedContent,
        /// The digest of the requested or pushed content.
        wanted: BlobDigest,
        /// The digest of the content that was received, or that the server states.
        found: BlobDigest,
    },
    /// An answer that violates the protocol or contradicts itself.
    #[error("{host}: {reason}")]
    Answer {
        /// The host.
        host: String,
        /// The fault, as a clause without secrets.
        reason: String,
    },
    /// An image in a format that is not supported. Contains the reason as a sentence.
    #[error("{0}")]
    Unsupported(String),
    /// A layer that must not be distributed could be downloaded neither from a URL of its manifest
    /// nor from the registry.
    #[error("the layer's URL at {host} failed ({reason}), and so did the registry")]
    ForeignUrl {
        /// The host of the URL.
        host: String,
        /// The reason for the failure at the URL, as a clause.
        reason: String,
        /// The failure at the registry.
        #[source]
        registry: Box<RegistryProblem>,
    },
    /// A request that still fails after retries. Callers must not retry it.
    #[error(transparent)]
    Repeated(Box<RegistryProblem>),
    /// Local data could not be read.
    #[error("cannot read {data}")]
    Local {
        /// The data, as the object of a sentence.
        data: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Content for which a server returned a wrong digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifiedContent {
    /// A blob that it sent.
    Blob,
    /// A manifest that it sent.
    Manifest,
    /// A manifest that was pushed to it.
    PushedManifest,
}

impl fmt::Display for VerifiedContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VerifiedContent::Blob => "sent the blob",
            VerifiedContent::Manifest => "sent the manifest",
            VerifiedContent::PushedManifest => "confirmed the manifest",
        })
    }
}

/// An object that a request refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteObject {
    /// The manifest of a tag or digest.
    Manifest(String),
    /// A layer or a configuration.
    Blob(BlobDigest),
    /// The repository.
    Repository,
    /// The API itself.
    Api,
    /// An upload that has begun.
    Upload,
    /// An object of an object store.
    Object(String),
    /// A bucket or container of an object store.
    Bucket(String),
}

impl fmt::Display for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteObject::Manifest(reference) => write!(f, "manifest {reference}"),
            RemoteObject::Blob(digest) => write!(f, "blob {digest}"),
            RemoteObject::Repository => f.write_str("repository of that name"),
            RemoteObject::Api => f.write_str("registry API (GET /v2/)"),
            RemoteObject::Upload => f.write_str("such upload"),
            RemoteObject::Object(key) => write!(f, "object {key}"),
            RemoteObject::Bucket(name) => write!(f, "bucket or container {name}"),
        }
    }
}

/// An action that a server can deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteAction {
    /// Sending an image.
    Pull,
    /// Receiving an image.
    Push,
    /// Accepting a login.
    LogIn,
    /// Issuing a token.
    IssueToken,
    /// Sending a file that is not in a registry.
    SendFile,
    /// Sending an object.
    ReadObject,
    /// Receiving an object.
    WriteObject,
}

impl fmt::Display for RemoteAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RemoteAction::Pull => "pull",
            RemoteAction::Push => "push",
            RemoteAction::LogIn => "log in",
            RemoteAction::IssueToken => "issue a token",
            RemoteAction::SendFile => "send the file",
            RemoteAction::ReadObject => "send the object",
            RemoteAction::WriteObject => "accept the object",
        })
    }
}

/// Kinds of failed connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionFailure {
    /// The host name does not exist.
    Lookup,
    /// The certificate is not trusted.
    Certificate,
    /// The server does not support TLS.
    NotTls,
    /// Refused, reset, timed out, or truncated.
    Transport,
}

impl RegistryError {
    /// Returns the error for a place.
    pub fn new(place: RemoteRepository, problem: RegistryProblem) -> RegistryError {
        match problem {
            RegistryProblem::Repeated(problem) => RegistryError { place, problem },
            problem => RegistryError { place, problem: Box::new(problem) },
        }
    }

    /// Returns the I/O error among the causes.
    fn io(&self) -> Option<&io::Error> {
        self.problem.io()
    }

    /// Returns the message, followed by those of its causes, as one sentence. A registry as a whole
    /// is not named before a problem that names its host.
    pub fn message(&self) -> String {
        if self.place.repository.is_empty() && self.problem.host() == Some(&self.place.registry) {
            sentence(&*self.problem)
        } else {
            sentence(self)
        }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        let registry =
            |action| Remedy::Server(ServerRemedy::Registry { registry: self.place.registry.clone(), action });
        if let Some(remedy) = self.io().and_then(rbuild_linux::remedy_of) {
            return Some(remedy);
        }
        let problem = match &*self.problem {
            RegistryProblem::ForeignUrl { registry, .. } => &**registry,
            problem => problem,
        };
        Some(match problem {
            RegistryProblem::Connection { kind: ConnectionFailure::Certificate, .. } => {
                registry(RegistryAction::TrustAuthority)
            }
            RegistryProblem::Connection { kind: ConnectionFailure::NotTls, .. } => {
                registry(RegistryAction::AllowPlainHttp)
            }
            RegistryProblem::Connection { .. } if problem.is_refused() => ServerRemedy::CheckPort.into(),
            RegistryProblem::Connection { .. } if problem.is_malformed() => ServerRemedy::AwaitRegistry.into(),
            RegistryProblem::Connection { .. } => Remedy::Server(ServerRemedy::CheckNetwork),
            RegistryProblem::Status { status: 429, .. } => registry(RegistryAction::RaiseRateLimit),
            RegistryProblem::Status { .. } | RegistryProblem::Digest { .. } | RegistryProblem::Answer { .. } => {
                ServerRemedy::AwaitRegistry.into()
            }
            RegistryProblem::Missing { object, .. } => match object {
                RemoteObject::Manifest(_) => ServerRemedy::CheckTag.into(),
                RemoteObject::Repository => ServerRemedy::CreateRepository.into(),
                RemoteObject::Blob(_) => ServerRemedy::PushAgain.into(),
                RemoteObject::Api => ServerRemedy::CheckRegistry.into(),
                RemoteObject::Upload => ServerRemedy::TryAgain.into(),
                RemoteObject::Object(_) => return None,
                RemoteObject::Bucket(_) => ServerRemedy::CreateBucket.into(),
            },
            RegistryProblem::Denied { action: RemoteAction::ReadObject | RemoteAction::WriteObject, .. } => {
                ServerRemedy::CheckObjectLogin.into()
            }
            RegistryProblem::Denied { action: RemoteAction::LogIn, .. } => ServerRemedy::CheckPassword.into(),
            RegistryProblem::Denied { anonymous: true, .. } => registry(RegistryAction::LogIn),
            RegistryProblem::Denied { .. } => registry(RegistryAction::CheckLogin),
            RegistryProblem::Config(e) => return e.remedy(),
            RegistryProblem::Blocked(file) => ServerRemedy::RemoveRule { file: file.clone() }.into(),
            RegistryProblem::Unsupported(_) => ServerRemedy::ConvertImage.into(),
            RegistryProblem::Local { .. } | RegistryProblem::Repeated(_) | RegistryProblem::ForeignUrl { .. } => {
                return None;
            }
        })
    }
}

impl RegistryProblem {
    /// Returns the I/O error among the causes.
    fn io(&self) -> Option<&io::Error> {
        let mut next = self.source();
        while let Some(cause) = next {
            if let Some(e) = cause.downcast_ref() {
                return Some(e);
            }
            next = cause.source();
        }
        None
    }

    /// Returns the host that the message names, if it names one.
    pub(crate) fn host(&self) -> Option<&String> {
        match self {
            RegistryProblem::Connection { host, .. }
            | RegistryProblem::Status { host, .. }
            | RegistryProblem::Missing { host, .. }
            | RegistryProblem::Denied { host, .. }
            | RegistryProblem::Digest { host, .. }
            | RegistryProblem::Answer { host, .. } => Some(host),
            RegistryProblem::Repeated(problem) => problem.host(),
            RegistryProblem::ForeignUrl { .. }
            | RegistryProblem::Config(_)
            | RegistryProblem::Blocked(_)
            | RegistryProblem::Unsupported(_)
            | RegistryProblem::Local { .. } => None,
        }
    }

    /// Returns true if the machine exists, but refused the connection.
    pub(crate) fn is_refused(&self) -> bool {
        self.io().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Returns true if the reply violates the protocol of the connection.
    pub(crate) fn is_malformed(&self) -> bool {
        let RegistryProblem::Connection { source, .. } = self else { return false };
        matches!(source.downcast_ref(), Some(Interruption::Malformed(_)))
    }

    /// Returns a number that grows with the progress of the request. Of several endpoints, the
    /// error with the highest number is reported.
    pub(crate) fn reach(&self) -> u8 {
        match self {
            RegistryProblem::Repeated(problem) => problem.reach(),
            RegistryProblem::ForeignUrl { registry, .. } => registry.reach(),
            RegistryProblem::Connection { .. } => 0,
            RegistryProblem::Missing { .. } => 1,
            _ => 2,
        }
    }
}

fn text_of(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn a_registry_as_a_whole_is_named_once() {
        let message = |host: &str, repository: &str| {
            let place = RemoteRepository { registry: "r.io".into(), repository: repository.into() };
            let (host, request) = (host.to_string(), "logging in".to_string());
            let status = RegistryProblem::Status { host, request, status: 500, message: String::new() };
            RegistryError::new(place, status).message()
        };
        assert_eq!(message("r.io", ""), "logging in at r.io failed with HTTP status 500");
        assert_eq!(message("auth.r.io", ""), "r.io: logging in at auth.r.io failed with HTTP status 500");
        assert_eq!(message("r.io", "a"), "r.io/a: logging in at r.io failed with HTTP status 500");
    }

    #[test]
    fn the_errno_of_a_cause_determines_the_remedy() {
        let source = io::Error::from_raw_os_error(24).into();
        let problem = RegistryProblem::Connection {
            host: "r.io".into(),
            request: "GET /".into(),
            kind: ConnectionFailure::Transport,
            source,
        };
        let place = RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
        let remedy = RegistryError::new(place, problem).remedy();
        assert!(
            matches!(remedy, Some(Remedy::Machine(rbuild_remedy::MachineRemedy::RaiseSessionLimit { .. }))),
            "{remedy:?}"
        );
    }

    #[test]
    fn a_refused_connection_is_not_reported_as_a_network_failure() {
        for (errno, remedy) in [(111, ServerRemedy::CheckPort), (104, ServerRemedy::CheckNetwork)] {
            let source = io::Error::from_raw_os_error(errno).into();
            let (host, request, kind) = ("r.io:1".into(), "GET /".into(), ConnectionFailure::Transport);
            let place = RemoteRepository { registry: "r.io:1".into(), repository: "a/b".into() };
            let error = RegistryError::new(place, RegistryProblem::Connection { host, request, kind, source });
            assert_eq!(error.remedy(), Some(remedy.into()));
        }
    }

    fn host() -> String {
        "mirror.io:5000".into()
    }

    fn status(status: u16, message: &str) -> RegistryProblem {
        let request = "requesting a blob".into();
        RegistryProblem::Status { host: host(), request, status, message: message.into() }
    }

    /// Returns the errors of requests that did not succeed, except for refusals.
    fn failures() -> Vec<RegistryProblem> {
        let connection = |kind| {
            let source = io::Error::from_raw_os_error(111).into();
            RegistryProblem::Connection { host: host(), request: "requesting the manifest".into(), kind, source }
        };
        let missing =
            |object, message: &str| RegistryProblem::Missing { host: host(), object, message: message.into() };
        vec![
            connection(ConnectionFailure::Lookup),
            connection(ConnectionFailure::Certificate),
            connection(ConnectionFailure::NotTls),
            connection(ConnectionFailure::Transport),
            RegistryProblem::Connection {
                host: host(),
                request: "requesting the manifest".into(),
                kind: ConnectionFailure::Transport,
                source: Interruption::Malformed(io::Error::other("no chunk")).into(),
            },
            status(500, ""),
            status(429, "too many requests"),
            missing(RemoteObject::Manifest("1".into()), ""),
            missing(RemoteObject::Manifest("1".into()), "manifest unknown"),
            missing(RemoteObject::Blob(BlobDigest::of(b"a")), ""),
            missing(RemoteObject::Repository, ""),
            missing(RemoteObject::Api, ""),
            missing(RemoteObject::Upload, ""),
            missing(RemoteObject::Object("cache/a".into()), ""),
            missing(RemoteObject::Bucket("cache".into()), ""),
        ]
    }

    fn refusals() -> Vec<RegistryProblem> {
        let denied = |anonymous, login: &str| {
            let message = "authentication required".to_string();
            RegistryProblem::Denied {
                host: host(),
                action: RemoteAction::Pull,
                message,
                login: login.into(),
                anonymous,
            }
        };
        let refused = |action| RegistryProblem::Denied {
            host: host(),
            action,
            message: String::new(),
            login: "as me".into(),
            anonymous: false,
        };
        vec![
            denied(true, "without a login"),
            denied(false, "as `me`"),
            refused(RemoteAction::Push),
            refused(RemoteAction::LogIn),
            refused(RemoteAction::IssueToken),
            refused(RemoteAction::SendFile),
            refused(RemoteAction::ReadObject),
            refused(RemoteAction::WriteObject),
        ]
    }

    fn other_problems() -> Vec<RegistryProblem> {
        let digest = |content| RegistryProblem::Digest {
            host: host(),
            content,
            wanted: BlobDigest::of(b"a"),
            found: BlobDigest::of(b"b"),
        };
        vec![
            RegistryProblem::Config(ConfigError::NoHome),
            RegistryProblem::Blocked("`/etc/containers/registries.conf`".into()),
            digest(VerifiedContent::Blob),
            digest(VerifiedContent::Manifest),
            digest(VerifiedContent::PushedManifest),
            RegistryProblem::Answer { host: host(), reason: "the answer has no digest".into() },
            RegistryProblem::Unsupported("the image has the format of schema 1".into()),
            RegistryProblem::Local { data: "the data to send", source: io::Error::from_raw_os_error(5) },
            RegistryProblem::ForeignUrl {
                host: "cdn.io".into(),
                reason: "GET /layer at cdn.io failed with HTTP status 410".into(),
                registry: Box::new(RegistryProblem::Missing {
                    host: host(),
                    object: RemoteObject::Blob(BlobDigest::of(b"a")),
                    message: String::new(),
                }),
            },
        ]
    }

    #[test]
    fn messages_are_as_recorded() {
        let place = || RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
        let problems = [failures(), refusals(), other_problems()].into_iter().flatten();
        let errors = problems.map(|problem| RegistryError::new(place(), problem));
        let repeated = RegistryProblem::Repeated(Box::new(status(500, "")));
        let errors: Vec<RegistryError> =
            errors.chain([RegistryError { place: place(), problem: Box::new(repeated) }]).collect();
        let variants = variants!(RegistryProblem {
            Connection,
            Status,
            Missing,
            Denied,
            Config,
            Blocked,
            Digest,
            Answer,
            Unsupported,
            ForeignUrl,
            Repeated,
            Local,
        });
        assert_recorded!("RegistryProblem", variants.table(&errors, |e| &*e.problem, RegistryError::remedy));
    }
}
