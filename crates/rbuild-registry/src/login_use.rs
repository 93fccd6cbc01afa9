//! Description of the login of a refused request.

use std::fmt;

/// The login that a request was sent with, or the reason why it had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginUse<'a> {
    /// A user name; `origin` is the source of the login, if it was looked up.
    User {
        name: &'a str,
        origin: Option<&'a str>,
    },
    /// A token; `origin` is the source of the token, if it was looked up.
    Token {
        origin: Option<&'a str>,
    },
    /// No source has a login for the registry.
    NotFound {
        registry: &'a str,
        /// The command line, if it has a login for another registry.
        command_line: Option<&'a str>,
        /// The files and variables that were searched.
        places: &'a [String],
    },
    /// The server has not requested one.
    NotRequested,
    /// The login that the caller gave for a download.
    Given,
    None,
}

impl LoginUse<'_> {
    /// Returns true if the request had no login.
    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(self, LoginUse::NotFound { .. } | LoginUse::NotRequested | LoginUse::None)
    }
}

impl fmt::Display for LoginUse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoginUse::User { name, origin: Some(origin) } => write!(f, "as {name}, with the login of {origin}"),
            LoginUse::User { name, origin: None } => write!(f, "as {name}"),
            LoginUse::Token { origin: Some(origin) } => write!(f, "with the token of {origin}"),
            LoginUse::Token { origin: None } => f.write_str("with a token"),
            LoginUse::NotFound { registry, command_line, places } => {
                write!(f, "no login for {registry}")?;
                let places = places.join(", ");
                match command_line {
                    Some(command_line) => write!(f, " on {command_line} or in {places}"),
                    None => write!(f, " in {places}"),
                }
            }
            LoginUse::NotRequested => f.write_str("no login was requested"),
            LoginUse::Given => f.write_str("with the login that was given"),
            LoginUse::None => f.write_str("without a login"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn words_are_as_recorded() {
        let places = ["`/h/auth.json`".to_string(), "`/h/config.json`".to_string()];
        let uses = [
            LoginUse::User { name: "joe", origin: Some("`/h/auth.json`") },
            LoginUse::User { name: "joe", origin: None },
            LoginUse::Token { origin: Some("docker-credential-pass (`/h/auth.json`)") },
            LoginUse::Token { origin: None },
            LoginUse::NotFound { registry: "r.io", command_line: None, places: &places },
            LoginUse::NotFound {
                registry: "r.io",
                command_line: Some("the command line (whose login is for q.io)"),
                places: &places,
            },
            LoginUse::NotRequested,
            LoginUse::Given,
            LoginUse::None,
        ];
        let variants = variants!(LoginUse { User, Token, NotFound, NotRequested, Given, None });
        let words = |login: &LoginUse<'_>| format!("{login}\n  anonymous: {}", login.is_anonymous());
        assert_recorded!("LoginUse", variants.words(&uses, words));
    }
}
