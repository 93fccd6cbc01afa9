//! Requests to token servers.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::answer;
use crate::config::certs::CertFiles;
use crate::credential::{Credential, Login, basic_header, bearer};
use crate::endpoint::{ConnectionSecurity, Endpoint};
use crate::error::{RegistryProblem, RemoteAction};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::login_use::LoginUse;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{Attempts, repeated};
use crate::secret::Secret;
use crate::shared::ClientState;
use crate::stall::read_document;
use crate::url::{self, Redirect};

/// Maximum size of a token answer in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Shortest lifetime of a token in seconds; also the default.
const SHORTEST: f64 = 60.0;
/// Longest lifetime of a token in seconds.
const LONGEST: f64 = 86400.0;
/// Maximum number of redirects of a request for a token.
const MAX_REDIRECTS: usize = 10;
const CLIENT: &str = "rbuild";

/// A token for the requests to a registry.
pub(crate) struct BearerToken {
    pub value: Secret,
    /// `None` for a token that does not expire.
    pub until: Option<Instant>,
}

/// Answer of a token server.
#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
    refresh_token: Option<String>,
}

/// A request to a token server.
pub(crate) struct TokenRequest<'a> {
    pub shared: &'a ClientState,
    pub endpoint: &'a Endpoint,
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scopes: &'a [String],
}

/// A login that is presented to a token server.
#[derive(Clone, Copy)]
pub(crate) struct PresentedLogin<'a> {
    pub credential: &'a Credential,
    /// The source of the login, if it was looked up.
    pub origin: Option<&'a str>,
}

impl<'a> PresentedLogin<'a> {
    pub(crate) fn of(login: &'a Login) -> PresentedLogin<'a> {
        PresentedLogin { credential: &login.credential, origin: Some(&login.origin) }
    }

    fn description(&self) -> LoginUse<'a> {
        match self.credential {
            Credential::Password { user, .. } => LoginUse::User { name: user, origin: self.origin },
            Credential::Identity(_) | Credential::Registry(_) => LoginUse::Token { origin: self.origin },
        }
    }
}

/// The token that a login needs besides the access token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshToken {
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
    pub(crate) fn fetch(
        &self,
        login: Option<PresentedLogin<'_>>,
        refresh: RefreshToken,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        self.exchange(login, refresh).map_err(repeated)
    }

    fn exchange(
        &self,
        login: Option<PresentedLogin<'_>>,
        refresh: RefreshToken,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        let reply = match login.map(|login| login.credential) {
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
        let (access, refresh) =
            self.fetch(Some(PresentedLogin { credential: login, origin: None }), RefreshToken::Requested)?;
        Ok((bearer(&access.value), refresh))
    }

    fn granted(
        &self,
        reply: HttpReply,
        login: Option<PresentedLogin<'_>>,
    ) -> Result<(BearerToken, Option<Secret>), RegistryProblem> {
        let host = self.host().to_string();
        let status = reply.status();
        if !(200..300).contains(&status) {
            let message = answer::message(reply.response.into_body(), &self.shared.http);
            let who = login.map_or(LoginUse::None, |login| login.description());
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
        let value = Secret::new(token.ok_or_else(bad)?);
        Ok((BearerToken { value, until: Some(Instant::now() + lifetime(expires_in)) }, refresh_token.map(Secret::new)))
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
        let query = |account: Option<&str>| {
            let account = account.map(|user| ("account", user));
            let extra = offline.into_iter().chain(offline.is_some().then_some(client));
            let fields = url::form(service.into_iter().chain(scopes.iter().copied()).chain(account).chain(extra));
            let separator = if self.realm.contains('?') { '&' } else { '?' };
            if fields.is_empty() { self.realm.to_string() } else { format!("{}{separator}{fields}", self.realm) }
        };
        let joined = self.scopes.join(" ");
        let post = |fields: &[(&str, &str)]| {
            let access = offline.map(|_| ("access_type", "offline"));
            let common = service.into_iter().chain([client, ("scope", joined.as_str())]).chain(access);
            let form = url::form(fields.iter().copied().chain(common));
            let headers = [("content-type".to_string(), "application/x-www-form-urlencoded".to_string())];
            let content = RequestBody::Bytes(form.as_bytes());
            let (certs, security) = self.protection(self.realm)?;
            let server = Server::new(security, &certs);
            self.shared.http.send(server, HttpRequest { method: "POST", url: self.realm, headers: &headers, content })
        };
        match grant {
            Grant::Anonymous => self.get(query(None), None),
            Grant::Basic(user, password) => self.get(query(Some(user)), Some(&basic_header(user, password))),
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

    /// Sends a GET request and follows redirects. Another server than that of the first URL gets no
    /// login.
    fn get(&self, url: String, authorization: Option<&Secret>) -> Result<HttpReply, RegistryProblem> {
        let mut target = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (certs, security) = self.protection(&target)?;
            let login = authorization.filter(|_| url::same_origin(&url, &target));
            let headers: Vec<(String, String)> =
                login.iter().map(|header| ("authorization".to_string(), header.reveal().to_string())).collect();
            let content = RequestBody::None;
            let request = HttpRequest { method: "GET", url: &target, headers: &headers, content };
            let reply = self.shared.http.send(Server::new(security, &certs), request)?;
            let is_moved = matches!(reply.status(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = reply.header("location").filter(|_| is_moved) else { return Ok(reply) };
            target = match url::follow(&reply.url, location) {
                Redirect::Url(next) => next,
                Redirect::Unprotected(host) => return Err(self.faulty(ReplyFault::UnprotectedRedirect(&host))),
                Redirect::Invalid => return Err(self.faulty(ReplyFault::InvalidRedirect)),
            };
        }
        Err(self.faulty(ReplyFault::TooManyRedirects))
    }

    fn faulty(&self, fault: ReplyFault<'_>) -> RegistryProblem {
        fault.of(self.host())
    }

    /// Returns the host of the token server.
    fn host(&self) -> &str {
        url::split(self.realm).map_or("the token server", |(_, host, _)| host)
    }

    /// Returns the transport security of a connection to the token server, or to the server that it
    /// redirects to.
    fn protection(&self, target: &str) -> Result<(CertFiles, ConnectionSecurity), RegistryProblem> {
        let Some((scheme, authority, _)) = url::split(target) else {
            return Err(ReplyFault::InvalidTokenServer.of(&self.endpoint.host));
        };
        let own = self.endpoint.is_origin_of(target);
        let certs = if own { self.endpoint.certs.clone() } else { self.shared.certs_of_other(authority)? };
        let security = if own { Some(self.endpoint.security) } else { self.endpoint.protection_of(scheme, authority) };
        let unprotected = || ReplyFault::UnprotectedTokenServer(authority).of(&self.endpoint.host);
        let security = security.ok_or_else(unprotected)?;
        Ok((certs, security))
    }
}

/// Returns the time for which a token is used. The server's clock may differ from that of this
/// machine, so the stated lifetime in seconds is shortened, and counted from now.
fn lifetime(stated: Option<f64>) -> Duration {
    Duration::from_secs_f64(stated.unwrap_or(SHORTEST).clamp(SHORTEST, LONGEST) * 0.9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_is_a_lifetime() {
        for (stated, seconds) in [
            ("-1", 54.0),
            ("0", 54.0),
            ("300", 270.0),
            ("300.5", 270.45),
            ("1e99", 77760.0),
            ("18446744073709551616", 77760.0),
            ("null", 54.0),
        ] {
            let granted: Granted = serde_json::from_str(&format!(r#"{{"token":"t","expires_in":{stated}}}"#)).unwrap();
            assert_eq!(lifetime(granted.expires_in), Duration::from_secs_f64(seconds), "{stated}");
        }
    }
}
