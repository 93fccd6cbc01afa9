//! Authorization at one endpoint: Basic, and Bearer tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_linux::parallel::locked;
use serde::Deserialize;

use crate::challenge::Challenge;
use crate::config::certs::CertFiles;
use crate::credential::{Credential, Login};
use crate::credentials::{self, LoginTarget};
use crate::endpoint::{ConnectionSecurity, Endpoint};
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryProblem, RemoteAction};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::login_use::LoginUse;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{Attempts, repeated};
use crate::secret::Secret;
use crate::shared::ClientState;
use crate::stall::read_document;
use crate::{answer, url};

/// Maximum size of a token answer in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Shortest lifetime of a token in seconds; also the default.
const SHORTEST: u64 = 60;
const CLIENT: &str = "rbuild";

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

struct BearerToken {
    value: Secret,
    /// `None` for a token that does not expire.
    until: Option<Instant>,
}

/// Answer of a token server.
#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

impl Auth {
    pub(crate) fn new(endpoint: &Endpoint) -> Auth {
        let registry = if endpoint.host == "registry-1.docker.io" { "docker.io" } else { &endpoint.host };
        Auth {
            registry: registry.to_string(),
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
                let fetched = request.fetch(login.as_ref().map(|login| &login.credential), RefreshToken::Unneeded);
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

/// Returns the header for a user's password.
pub(crate) fn basic_header(user: &str, password: &Secret) -> Secret {
    let pair = BASE64_STANDARD.encode(format!("{user}:{}", password.reveal()));
    Secret::new(format!("Basic {pair}"))
}

fn bearer(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.reveal()))
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

/// A request to a token server.
pub(crate) struct TokenRequest<'a> {
    pub shared: &'a ClientState,
    pub endpoint: &'a Endpoint,
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scopes: &'a [String],
}

/// The token that a login needs besides the access token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RefreshToken {
    Unneeded,
    /// A token that can replace the password in later requests.
    Requested,
}

/// A way to present a login to a token server.
#[derive(Clone, Copy)]
enum Grant<'a> {
    Anonymous,
    Basic(&'a str, &'a Secret),
    Password(&'a str, &'a Secret),
    Refresh(&'a Secret),
}

impl TokenRequest<'_> {
    /// Returns an access token, and a refresh token if one was requested and issued.
    fn fetch(
        &self,
        login: Option<&Credential>,
        refresh: RefreshToken,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        self.exchange(login, refresh).map_err(repeated)
    }

    fn exchange(
        &self,
        login: Option<&Credential>,
        refresh: RefreshToken,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        let reply = match login {
            Some(Credential::Registry(token)) => return Ok((BearerToken { value: token.clone(), until: None }, None)),
            None => self.send(Grant::Anonymous, refresh)?,
            Some(Credential::Identity(token)) => self.send(Grant::Refresh(token), refresh)?,
            Some(Credential::Password { user, password }) => {
                let reply = self.send(Grant::Basic(user, password), refresh)?;
                match reply.status() {
                    400 | 401 | 404 | 405 => {
                        let second = self.send(Grant::Password(user, password), refresh)?;
                        // A server without POST support does not verify the password.
                        if matches!(second.status(), 404 | 405) { reply } else { second }
                    }
                    _ => reply,
                }
            }
        };
        self.granted(reply, login)
    }

    /// Returns the header with an access token for a login, and a refresh token if the server
    /// issues one.
    pub(crate) fn offline_token(&self, login: &Credential) -> Result<(Secret, Option<Secret>), RegistryProblem> {
        let (access, refresh) = self.fetch(Some(login), RefreshToken::Requested)?;
        Ok((bearer(&access.value), refresh))
    }

    fn granted(
        &self,
        reply: HttpReply,
        login: Option<&Credential>,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        let host = url::split(self.realm).map_or("the token server", |(_, host, _)| host).to_string();
        let status = reply.status();
        if !(200..300).contains(&status) {
            let message = answer::message(reply.response.into_body(), &self.shared.http);
            let who = match login {
                Some(Credential::Password { user, .. }) => LoginUse::User { name: user, origin: None },
                Some(_) => LoginUse::Token { origin: None },
                None => LoginUse::None,
            };
            return Err(match status {
                401 | 403 => RegistryProblem::Denied {
                    host,
                    action: RemoteAction::IssueToken,
                    message,
                    login: who.to_string(),
                    anonymous: who.is_anonymous(),
                },
                _ => RegistryProblem::Status { host, request: RequestName::Token.to_string(), status, message },
            });
        }
        let retry_policy = self.shared.http.retry_policy();
        let body = read_document(reply.response.into_body().into_reader(), MAX_TOKEN, retry_policy);
        let bytes = body.map_err(|e| ReplyFault::TokenCutOff(e).of(&host))?;
        let granted: Option<Granted> = serde_json::from_slice(&bytes).ok();
        let bad = || ReplyFault::NoToken.of(&host);
        let Granted { token, access_token, expires_in, refresh_token } = granted.ok_or_else(bad)?;
        let token = token.filter(|t| !t.is_empty()).or(access_token).filter(|t| !t.is_empty());
        // Clocks of servers differ, so the lifetime is counted from now and shortened.
        let lifetime = Duration::from_secs(expires_in.unwrap_or(SHORTEST).clamp(SHORTEST, 86400)).mul_f64(0.9);
        let value = Secret::new(token.ok_or_else(bad)?);
        Ok((BearerToken { value, until: Some(Instant::now() + lifetime) }, refresh_token.map(Secret::new)))
    }

    fn send(&self, grant: Grant<'_>, refresh: RefreshToken) -> Result<HttpReply, RegistryProblem> {
        let attempts = match refresh {
            RefreshToken::Unneeded => self.shared.attempts(self.endpoint.role),
            RefreshToken::Requested => Attempts::of_login(self.shared.http.retry_policy()),
        };
        self.shared.repeat(&self.endpoint.host, attempts, || self.send_once(grant, refresh))
    }

    fn send_once(&self, grant: Grant<'_>, refresh: RefreshToken) -> Result<HttpReply, RegistryProblem> {
        let scopes: Vec<(&str, &str)> = self.scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        let service = self.service.map(|service| ("service", service));
        let offline = (refresh == RefreshToken::Requested).then_some(("offline_token", "true"));
        let client = ("client_id", CLIENT);
        let (certs, security) = self.protection()?;
        let server = Server::new(security, &certs);
        let query = |account: Option<&str>| {
            let account = account.map(|user| ("account", user));
            let extra = offline.into_iter().chain(offline.is_some().then_some(client));
            let fields = url::form(service.into_iter().chain(scopes.iter().copied()).chain(account).chain(extra));
            let separator = if self.realm.contains('?') { '&' } else { '?' };
            if fields.is_empty() { self.realm.to_string() } else { format!("{}{separator}{fields}", self.realm) }
        };
        let get = |account, headers: &[(String, String)]| {
            let url = query(account);
            self.shared.http.send(server, HttpRequest { method: "GET", url: &url, headers, content: RequestBody::None })
        };
        let joined = self.scopes.join(" ");
        let post = |fields: &[(&str, &str)]| {
            let access = offline.map(|_| ("access_type", "offline"));
            let common = service.into_iter().chain([client, ("scope", joined.as_str())]).chain(access);
            let form = url::form(fields.iter().copied().chain(common));
            let headers = [("content-type".to_string(), "application/x-www-form-urlencoded".to_string())];
            let content = RequestBody::Bytes(form.as_bytes());
            self.shared.http.send(server, HttpRequest { method: "POST", url: self.realm, headers: &headers, content })
        };
        match grant {
            Grant::Anonymous => get(None, &[]),
            Grant::Basic(user, password) => {
                let header = basic_header(user, password).reveal().to_string();
                get(Some(user), &[("authorization".to_string(), header)])
            }
            Grant::Password(user, password) => {
                self.shared.http.sent.note(password.reveal());
                post(&[("grant_type", "password"), ("username", user), ("password", password.reveal())])
            }
            Grant::Refresh(token) => {
                self.shared.http.sent.note(token.reveal());
                post(&[("grant_type", "refresh_token"), ("refresh_token", token.reveal())])
            }
        }
    }

    /// Returns the transport security of the connection to the token server.
    fn protection(&self) -> Result<(CertFiles, ConnectionSecurity), RegistryProblem> {
        let Some((scheme, authority, _)) = url::split(self.realm) else {
            return Err(ReplyFault::InvalidTokenServer.of(&self.endpoint.host));
        };
        let own = self.endpoint.is_origin_of(self.realm);
        let certs = if own { self.endpoint.certs.clone() } else { self.shared.certs_of_other(authority)? };
        let security = if own { Some(self.endpoint.security) } else { self.endpoint.protection_of(scheme, authority) };
        let unprotected = || ReplyFault::UnprotectedTokenServer(authority).of(&self.endpoint.host);
        let security = security.ok_or_else(unprotected)?;
        Ok((certs, security))
    }
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
