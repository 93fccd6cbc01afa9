//! Exit codes, and errors on their way to the terminal.

use rbuild_engine::BuildError;
use rbuild_registry::{RegistryError, Remedy};
use rbuild_store::StoreError;

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

/// A message and an exit code.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    pub help: Option<String>,
}

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
        match e {
            BuildError::Registry(e) => e.into(),
            e => Failure { code: build_code(&e), message: e.message(), help: e.help() },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Failure {
        Failure { code: code::FAILED, message: e.to_string(), help: e.remedy() }
    }
}

impl From<RegistryError> for Failure {
    fn from(e: RegistryError) -> Failure {
        let help = e.remedy().as_ref().map(registry_help);
        Failure { code: code::FAILED, message: e.to_string(), help }
    }
}

impl From<rbuild_sandbox::SandboxError> for Failure {
    fn from(e: rbuild_sandbox::SandboxError) -> Failure {
        BuildError::from(e).into()
    }
}

/// Returns the words of a hint about a registry.
fn registry_help(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Login { registry } => format!("check the name, or log in: rbuild login {registry}"),
        Remedy::Permission { registry } => {
            format!("check user, password and permissions; log in again with rbuild login {registry}")
        }
        Remedy::Name => "check the name and the tag".into(),
        Remedy::Network => "check the network, the name of the host and the proxy (https_proxy, no_proxy)".into(),
        Remedy::Certificate { registry } => format!(
            "put the certificate of its authority into /etc/containers/certs.d/{registry}/ca.crt, or pass --tls-verify=false"
        ),
        Remedy::Plain { registry } => format!(
            "for plain HTTP pass --tls-verify=false, or set `insecure = true` for {registry} in registries.conf"
        ),
        Remedy::Later => "try again later, or tell the operator of the registry".into(),
        Remedy::Limit { registry } => {
            format!("log in for a higher limit (rbuild login {registry}), or set a mirror in registries.conf")
        }
        Remedy::Settings => "correct that file or helper".into(),
        Remedy::Convert => "convert it, for example with skopeo copy".into(),
    }
}
