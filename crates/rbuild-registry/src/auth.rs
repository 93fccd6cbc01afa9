//! Authorization at one endpoint: Basic, and Bearer tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Instant;

use rbuild_linux::parallel::locked;

use crate::challenge::Challenge;
use crate::credential::{Credential, Login, basic_header, bearer};
use crate::credentials::{self, LoginTarget};
use crate::endpoint::Endpoint;
use crate::endpoint_modes::EndpointRole;
use crate::error::RegistryProblem;
use crate::login_use::LoginUse;
use crate::secret::Secret;
use crate::shared::ClientState;
use crate::token_request::{BearerToken, PresentedLogin, RefreshToken, TokenRequest};

/// State of the authorization at an endpoint. Threads that need the same token wait for a single
/// request.
pub(crate) struct Auth {
    /// The registry whose logins are used.
    registry: String,
    repository: String,
    role: EndpointRole,
    state: Mutex<AuthState>,
}

#[derive(Default)]
struct AuthState {
    login: Option<Option<Login>>,
    challenge: Option<Challenge>,
    tokens: HashMap<String, BearerToken>,
}

impl Auth {
    pub(crate) fn new(endpoint: &Endpoint) -> Auth {
        Auth {
            registry: endpoint.login_name().to_string(),
            repository: endpoint.path.clone(),
            role: endpoint.role,
            state: Mutex::default(),
        }
    }

    /// Returns the value of the `Authorization` header; `None` before the first challenge.
    pub(crate) fn header(
        &self,
        shared: &ClientState,
        endpoint: &Endpoint,
        scopes: &[String],
    ) -> Result<Option<Secret>, RegistryProblem> {
        let mut state = locked(&self.state);
        match state.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.login(shared, &mut state)?.and_then(|login| basic(&login.credential))),
            Some(Challenge::Bearer { realm, service, scope, .. }) => {
                let wanted = merged(scope.as_deref().unwrap_or(""), scopes);
                let key = wanted.join(" ");
                let fresh = |token: &&BearerToken| token.until.is_none_or(|until| Instant::now() < until);
                if let Some(token) = state.tokens.get(&key).filter(fresh) {
                    return Ok(Some(bearer(&token.value)));
                }
                let login = self.login(shared, &mut state)?;
                let request =
                    TokenRequest { shared, endpoint, realm: &realm, service: service.as_deref(), scopes: &wanted };
                let fetched = request.fetch(login.as_ref().map(PresentedLogin::of), RefreshToken::Unneeded);
                let (token, _) = fetched.map_err(|problem| match problem {
                    RegistryProblem::Denied { host, action, message, anonymous: true, .. } => {
                        let login = self.not_found(shared);
                        RegistryProblem::Denied { host, action, message, login, anonymous: true }
                    }
                    problem => problem,
                })?;
                let header = bearer(&token.value);
                state.tokens.insert(key, token);
                Ok(Some(header))
            }
        }
    }

    /// Records a challenge. Returns false if another attempt cannot succeed.
    pub(crate) fn challenged(
        &self,
        shared: &ClientState,
        challenge: Challenge,
        used: Option<&Secret>,
    ) -> Result<bool, RegistryProblem> {
        let mut state = locked(&self.state);
        let retry = match (&challenge, used) {
            (Challenge::Basic, None) => self.login(shared, &mut state)?.is_some_and(|l| basic(&l.credential).is_some()),
            (Challenge::Basic, Some(_)) => false,
            (Challenge::Bearer { error, .. }, Some(_)) => {
                error.as_deref() != Some("insufficient_scope") || {
                    // The server may require more than was requested.
                    state.challenge.as_ref().is_some_and(|old| scope_of(old) != scope_of(&challenge))
                }
            }
            (Challenge::Bearer { .. }, None) => true,
        };
        if let Some(used) = used {
            state.tokens.retain(|_, token| bearer(&token.value) != *used);
        }
        state.challenge = Some(challenge);
        Ok(retry)
    }

    fn login(&self, shared: &ClientState, state: &mut AuthState) -> Result<Option<Login>, RegistryProblem> {
        if let Some(known) = &state.login {
            return Ok(known.clone());
        }
        let holder = LoginTarget { registry: &self.registry, repository: &self.repository, role: self.role };
        let found = credentials::find(&shared.environment, &shared.options.given, holder);
        let found = found.map_err(RegistryProblem::Config)?;
        state.login = Some(found.clone());
        Ok(found)
    }

    /// Describes the login for messages, and returns true if there is none.
    pub(crate) fn description(&self, shared: &ClientState) -> (String, bool) {
        let words = |login: LoginUse<'_>| (login.to_string(), login.is_anonymous());
        match &locked(&self.state).login {
            Some(Some(Login { credential: Credential::Password { user, .. }, origin })) => {
                words(LoginUse::User { name: user, origin: Some(origin) })
            }
            Some(Some(Login { origin, .. })) => words(LoginUse::Token { origin: Some(origin) }),
            Some(None) => (self.not_found(shared), true),
            None => words(LoginUse::NotRequested),
        }
    }

    /// Describes the places that were searched for a login and have none.
    fn not_found(&self, shared: &ClientState) -> String {
        let places = credentials::source_names(&shared.environment, &shared.options.given);
        let command_line = credentials::other_login(&shared.options.given);
        let command_line = command_line.as_deref();
        LoginUse::NotFound { registry: &self.registry, command_line, places: &places }.to_string()
    }
}

fn basic(credential: &Credential) -> Option<Secret> {
    match credential {
        Credential::Password { user, password } => Some(basic_header(user, password)),
        Credential::Registry(token) => Some(bearer(token)),
        Credential::Identity(_) => None,
    }
}

fn scope_of(challenge: &Challenge) -> Option<&str> {
    match challenge {
        Challenge::Bearer { scope, .. } => scope.as_deref(),
        Challenge::Basic => None,
    }
}

/// Merges two sets of scopes: sorted, with the actions of each resource in one scope.
fn merged(challenge: &str, ours: &[String]) -> Vec<String> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for scope in challenge.split_whitespace().chain(ours.iter().map(String::as_str)) {
        let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        all.entry(resource).or_default().extend(actions.split(',').filter(|action| !action.is_empty()));
    }
    let text = |(resource, actions): (&str, BTreeSet<&str>)| {
        format!("{resource}:{}", actions.into_iter().collect::<Vec<_>>().join(","))
    };
    all.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_merged_and_sorted() {
        let ours = ["repository:b:pull".to_string(), "repository:a:push,pull".to_string()];
        assert_eq!(merged("", &ours), ["repository:a:pull,push", "repository:b:pull"]);
        let challenge = "repository:a:pull registry:catalog:*";
        assert_eq!(merged(challenge, &ours), ["registry:catalog:*", "repository:a:pull,push", "repository:b:pull"]);
        assert_eq!(merged("repository:localhost:5000/a:pull", &[]), ["repository:localhost:5000/a:pull"]);
    }

    #[test]
    fn credentials_are_not_displayed() {
        let credential = Credential::Password { user: "joe".into(), password: Secret::new("hunter2") };
        let login = Login { credential, origin: "a file".into() };
        assert!(!format!("{login:?} {:?}", basic(&login.credential)).contains("hunter2"));
        assert_eq!(basic(&login.credential).unwrap().reveal(), "Basic am9lOmh1bnRlcjI=");
    }
}
