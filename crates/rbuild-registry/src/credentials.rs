//! Credentials of registries: the files of Docker and Podman, and credential helpers.

use crate::credential::{Credential, Given, Login};
use crate::environment::Environment;

mod file;
mod login;
mod places;
mod program;

use file::AuthFile;
pub use login::{Removed, Stored, forget, store};
use places::{Source, sources};

/// Returns the login for a repository: that of the first source with one.
///
/// # Errors
///
/// Fails with a sentence if a file cannot be read or a helper fails.
pub fn find(
    environment: &Environment,
    given: &Given,
    registry: &str,
    repository: &str,
) -> Result<Option<Login>, String> {
    if let Some((user, password)) = &given.login {
        let credential = Credential::Password { user: user.clone(), password: password.clone() };
        return Ok(Some(Login { credential, origin: "--creds".into() }));
    }
    for source in sources(environment, given) {
        let Some(file) = source.read()? else { continue };
        if let Some(login) = login_in(environment, &file, &source.name(), registry, repository)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// Returns the names of the places where logins are looked for.
pub fn places(environment: &Environment, given: &Given) -> Vec<String> {
    sources(environment, given).iter().map(Source::name).collect()
}

fn login_in(
    environment: &Environment,
    file: &AuthFile,
    name: &str,
    registry: &str,
    repository: &str,
) -> Result<Option<Login>, String> {
    let ask = |helper: &str| {
        let found = program::get(environment, helper, file::helper_key(registry))?;
        Ok::<_, String>(
            found.map(|credential| Login { credential, origin: format!("docker-credential-{helper} ({name})") }),
        )
    };
    if let Some(helper) = file.helper_of(registry) {
        return ask(&helper);
    }
    let found = file.entry(registry, repository).map_err(|e| format!("{name}: {e}"))?;
    if let Some(credential) = found {
        return Ok(Some(Login { credential, origin: name.to_string() }));
    }
    file.store().map_or(Ok(None), |helper| ask(&helper))
}

/// Returns true if a document has a login for a repository.
#[cfg(test)]
pub(crate) fn parses_login(text: &str, registry: &str, repository: &str) -> bool {
    AuthFile::parse(text).is_ok_and(|file| matches!(file.entry(registry, repository), Ok(Some(_))))
}

#[cfg(test)]
mod tests;
