//! Credentials of registries: the files of Docker and Podman, and credential helpers.

use crate::config_error::ConfigError;
use crate::credential::{CommandLineCredentials, CommandLineLogin, Credential, Login};
use crate::endpoint_modes::EndpointRole;
use crate::environment::ProcessEnvironment;

mod file;
mod login;
mod members;
mod program;
mod replace;
mod sources;

use file::{AuthFile, InvalidLogins};
pub use login::{Removed, Stored, forget, store};
use sources::{CredentialSource, sources};

/// The repository that a login is for.
#[derive(Debug, Clone, Copy)]
pub struct LoginTarget<'a> {
    /// Host of the registry.
    pub registry: &'a str,
    /// Path of the repository.
    pub repository: &'a str,
    /// The role of the host. The login of a registry must not be sent to its mirrors.
    pub role: EndpointRole,
}

/// Returns the login for a repository: the one of the command line if it is for this registry, or
/// else that of the first source that has one.
///
/// # Errors
///
/// Fails if a file cannot be read or a helper fails.
pub fn find(
    environment: &ProcessEnvironment,
    given: &CommandLineCredentials,
    holder: LoginTarget<'_>,
) -> Result<Option<Login>, ConfigError> {
    let is_own = |own: &&CommandLineLogin| {
        holder.role == EndpointRole::Registry && own.registry.as_deref() == Some(holder.registry)
    };
    let own = given.login.as_ref().filter(is_own);
    if let Some(CommandLineLogin { user, password, .. }) = own {
        let credential = Credential::Password { user: user.clone(), password: password.clone() };
        return Ok(Some(Login { credential, origin: "the command line".into() }));
    }
    for source in sources(environment, given) {
        let Some(file) = source.read()? else { continue };
        if let Some(login) = login_in(environment, &file, &source, holder)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// Returns the file, variable or helper whose login is used for a registry instead of one that was
/// stored.
pub fn preferred(
    environment: &ProcessEnvironment,
    given: &CommandLineCredentials,
    registry: &str,
    stored: &Stored,
) -> Option<String> {
    let target = LoginTarget { registry, repository: "", role: EndpointRole::Registry };
    let used = find(environment, given, target).ok()??.origin;
    let is_stored = match stored {
        Stored::File(path) => used == *path,
        Stored::Helper(name) => used.split(' ').next() == Some(name),
    };
    (!is_stored).then_some(used)
}

/// Returns the names of the files and variables that are searched for logins, after those of the
/// command line.
pub fn source_names(environment: &ProcessEnvironment, given: &CommandLineCredentials) -> Vec<String> {
    sources(environment, given).iter().map(CredentialSource::name).collect()
}

/// Describes the login on the command line, which is not for the registry in question, if there is
/// one.
pub fn other_login(given: &CommandLineCredentials) -> Option<String> {
    let other = given.login.as_ref()?;
    Some(match &other.registry {
        Some(registry) => format!("the command line (whose login is for {registry})"),
        None => "the command line (whose login is for the registry of a push)".into(),
    })
}

fn login_in(
    environment: &ProcessEnvironment,
    file: &AuthFile,
    source: &CredentialSource,
    holder: LoginTarget<'_>,
) -> Result<Option<Login>, ConfigError> {
    let LoginTarget { registry, repository, .. } = holder;
    let ask = |helper: &str| {
        let found = program::get(environment, helper, file::helper_key(registry))?;
        let origin = |helper| format!("docker-credential-{helper} ({})", source.name());
        Ok::<_, ConfigError>(found.map(|credential| Login { credential, origin: origin(helper) }))
    };
    let named = |e: InvalidLogins| source.invalid(e);
    if let Some(helper) = file.helper_of(registry).map_err(named)? {
        return ask(&helper);
    }
    let found = file.entry(registry, repository).map_err(named)?;
    if let Some(credential) = found {
        return Ok(Some(Login { credential, origin: source.name() }));
    }
    file.store().map_err(named)?.map_or(Ok(None), |helper| ask(&helper))
}

/// Returns true if a document has a login for a repository.
#[cfg(test)]
pub(crate) fn parses_login(text: &str, registry: &str, repository: &str) -> bool {
    AuthFile::parse(text).is_ok_and(|file| matches!(file.entry(registry, repository), Ok(Some(_))))
}

#[cfg(test)]
mod tests;
