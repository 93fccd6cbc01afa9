//! Exit codes, and errors on their way to the terminal.

use rbuild_engine::{BuildError, SecretValues};
use rbuild_registry::{ConfigError, RegistryError};
use rbuild_remedy::sentence;
use rbuild_store::StoreError;
use rbuild_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::ui::hints;

pub mod code {
    pub const OK: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    /// This machine does not allow the requested isolation.
    pub const REFUSED: u8 = 3;
    /// A bug in rbuild (EX_SOFTWARE of sysexits.h).
    pub const BUG: u8 = 70;
    /// Exit code of the docker command for usage errors.
    pub const DOCKER_USAGE: u8 = 125;
    pub const INTERRUPTED: u8 = 130;
}

/// A message and an exit code. Crosses the boundaries of processes as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    pub help: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { code: code::FAILED, message: message.into(), help: None }
    }

    /// Returns a failure with the exit code for usage errors.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: code::USAGE, ..Failure::new(message) }
    }

    /// Adds help, printed below the message.
    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.help = Some(help.into());
        self
    }

    /// Masks the values of secrets.
    pub fn masked(self, values: &SecretValues) -> Failure {
        Failure { message: values.mask(self.message), help: self.help.map(|help| values.mask(help)), ..self }
    }

    /// Prints the message and returns the exit code.
    pub fn report(&self) -> u8 {
        crate::ui::terminal::error(&self.message, self.help.as_deref());
        self.code
    }
}

/// Returns the exit code for a build error.
pub fn build_code(e: &BuildError) -> u8 {
    match e {
        BuildError::Dockerfile(_) => code::USAGE,
        BuildError::Refused(_) => code::REFUSED,
        BuildError::Cancelled => code::INTERRUPTED,
        _ => code::FAILED,
    }
}

impl From<BuildError> for Failure {
    fn from(e: BuildError) -> Failure {
        Failure { code: build_code(&e), message: e.message(), help: e.help().as_ref().map(hints::words) }
    }
}

impl From<TransportError> for Failure {
    fn from(e: TransportError) -> Failure {
        BuildError::from(e).into()
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Failure {
        Failure { code: code::FAILED, message: sentence(&e), help: e.remedy().as_ref().map(hints::words) }
    }
}

impl From<RegistryError> for Failure {
    fn from(e: RegistryError) -> Failure {
        let help = e.remedy().as_ref().map(hints::words);
        Failure { code: code::FAILED, message: e.message(), help }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Failure {
        Failure { code: code::FAILED, message: sentence(&e), help: e.remedy().as_ref().map(hints::words) }
    }
}

impl From<rbuild_sandbox::SandboxError> for Failure {
    fn from(e: rbuild_sandbox::SandboxError) -> Failure {
        BuildError::from(e).into()
    }
}
