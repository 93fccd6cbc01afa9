//! Logins, and those given on the command line.

use std::path::PathBuf;

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

/// A login, and the file or helper that holds it.
#[derive(Debug, Clone)]
pub struct Login {
    /// The login.
    pub credential: Credential,
    /// Name of the file, helper or flag.
    pub origin: String,
}

/// A login given on the command line: for one registry, and for no other.
#[derive(Debug, Clone)]
pub struct OwnLogin {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// Host of the registry; `None` if the command gives it no registry to be used for.
    pub registry: Option<String>,
}

/// Credentials given on the command line.
#[derive(Debug, Clone, Default)]
pub struct CommandLineCredentials {
    /// User and password.
    pub login: Option<OwnLogin>,
    /// A credentials file.
    pub file: Option<PathBuf>,
}
