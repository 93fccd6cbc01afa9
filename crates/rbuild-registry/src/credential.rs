//! Logins, and those given on the command line.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::secret::Secret;

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, exchanged for access tokens.
    Identity(Secret),
    /// An access token.
    Registry(Secret),
}

/// A login and its origin.
#[derive(Debug, Clone)]
pub struct Login {
    /// The login.
    pub credential: Credential,
    /// Name of the file, helper or flag.
    pub origin: String,
}

/// A login given on the command line. It is used for one registry only.
#[derive(Debug, Clone)]
pub struct CommandLineLogin {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// Host of the registry; `None` if the command does not determine one, so the login is not
    /// used.
    pub registry: Option<String>,
}

/// Credentials given on the command line.
#[derive(Debug, Clone, Default)]
pub struct CommandLineCredentials {
    /// User and password.
    pub login: Option<CommandLineLogin>,
    /// A credentials file.
    pub file: Option<PathBuf>,
}

/// Returns the header for a user's password.
pub(crate) fn basic_header(user: &str, password: &Secret) -> Secret {
    let pair = BASE64_STANDARD.encode(format!("{user}:{}", password.reveal()));
    Secret::new(format!("Basic {pair}"))
}

pub(crate) fn bearer(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.reveal()))
}
