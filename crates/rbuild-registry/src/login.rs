//! Verification of a login.

use rbuild_image::Reference;

use crate::answer;
use crate::challenge::Challenge;
use crate::client::Client;
use crate::config_error::{ConfigError, EndpointUse};
use crate::credential::{Credential, basic_header};
use crate::endpoint::{Endpoint, endpoints};
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryError, RegistryProblem, RemoteAction, RemoteObject, RemoteRepository, Result};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::login_use::LoginUse;
use crate::request_name::RequestName;
use crate::retry::Attempts;
use crate::secret::Secret;
use crate::token_request::TokenRequest;

/// A login that a registry has accepted.
#[derive(Debug)]
pub struct VerifiedLogin {
    /// The registry whose login is looked up for requests: the host that the settings name for the
    /// one that was given.
    pub registry: String,
    /// A refresh token if the registry issues one, or else the password.
    pub credential: Credential,
}

impl Client {
    /// Checks a user's password at a registry.
    ///
    /// # Errors
    ///
    /// Fails if the registry refuses the login, or if the host is not a registry.
    pub fn log_in(&self, registry: &str, user: &str, password: &Secret) -> Result<VerifiedLogin> {
        let endpoint = self.login_endpoint(registry)?;
        let credential = Credential::Password { user: user.to_string(), password: password.clone() };
        let credential = self.prove(&endpoint, credential, user).map_err(|problem| login_error(registry, problem))?;
        Ok(VerifiedLogin { registry: endpoint.login_name().to_string(), credential })
    }

    /// Returns the registry whose login is looked up for requests to a registry.
    ///
    /// # Errors
    ///
    /// Fails if the settings cannot be read, or if they block the registry.
    pub fn login_name(&self, registry: &str) -> Result<String> {
        self.login_endpoint(registry).map(|endpoint| endpoint.login_name().to_string())
    }

    fn login_endpoint(&self, registry: &str) -> Result<Endpoint> {
        let name: Reference = format!("{registry}/login")
            .parse()
            .map_err(|_| login_error(registry, ConfigError::NoRegistry(registry.to_string()).into()))?;
        endpoints(&self.shared().environment, &name, self.shared().options.own())?
            .into_iter()
            .rfind(|endpoint| endpoint.role == EndpointRole::Registry)
            .ok_or_else(|| login_error(registry, ConfigError::NoEndpoint(EndpointUse::Logins).into()))
    }

    fn prove(
        &self,
        endpoint: &Endpoint,
        credential: Credential,
        user: &str,
    ) -> std::result::Result<Credential, RegistryProblem> {
        let reply = self.probe(endpoint, &[])?;
        match (reply.status(), Challenge::of(&reply)?) {
            // The registry requires no login, so it cannot confirm that this one is valid.
            (200, _) => Ok(credential),
            (401, Some(Challenge::Bearer { realm, service, scope, .. })) => {
                let scopes: Vec<String> = scope.iter().flat_map(|s| s.split_whitespace()).map(str::to_string).collect();
                let request = TokenRequest {
                    shared: self.shared(),
                    endpoint,
                    realm: &realm,
                    service: service.as_deref(),
                    scopes: &scopes,
                };
                // A token server may issue tokens to anyone, so the token must be tried at the
                // registry.
                let (header, token) = request.offline_token(&credential).map_err(refused_login)?;
                self.accepts(endpoint, &header, user)?;
                Ok(token.map_or(credential, Credential::Identity))
            }
            (401, Some(Challenge::Basic)) => {
                let Credential::Password { user, password } = &credential else { return Ok(credential) };
                let header = basic_header(user, password);
                self.accepts(endpoint, &header, user)?;
                Ok(credential)
            }
            _ => Err(self.refused(reply, endpoint, user)),
        }
    }

    /// Fails if the registry does not accept that `Authorization` header.
    fn accepts(&self, endpoint: &Endpoint, header: &Secret, user: &str) -> std::result::Result<(), RegistryProblem> {
        let reply = self.probe(endpoint, &[("authorization".into(), header.reveal().to_string())])?;
        match reply.status() {
            200 => Ok(()),
            _ => Err(self.refused(reply, endpoint, user)),
        }
    }

    fn probe(
        &self,
        endpoint: &Endpoint,
        headers: &[(String, String)],
    ) -> std::result::Result<HttpReply, RegistryProblem> {
        let shared = self.shared();
        let scheme = if endpoint.security == crate::endpoint::ConnectionSecurity::Plain { "http" } else { "https" };
        let url = format!("{scheme}://{}{}/", endpoint.host, endpoint.base);
        let server = Server::of(endpoint);
        let headers = [&endpoint.headers[..], headers].concat();
        // Headers of the settings may be credentials.
        endpoint.headers.iter().for_each(|(_, value)| shared.http.sent.note(value));
        shared.repeat(&endpoint.host, Attempts::of_login(shared.http.retry_policy()), || {
            let content = RequestBody::None;
            shared.http.send(server, HttpRequest { method: "GET", url: &url, headers: &headers, content })
        })
    }

    fn refused(&self, reply: HttpReply, endpoint: &Endpoint, user: &str) -> RegistryProblem {
        let (host, status) = (endpoint.host.clone(), reply.status());
        let message = answer::message(reply.response.into_body(), &self.shared().http);
        match status {
            401 | 403 => RegistryProblem::Denied {
                host,
                action: RemoteAction::LogIn,
                message,
                login: LoginUse::User { name: user, origin: None }.to_string(),
                anonymous: false,
            },
            404 => RegistryProblem::Missing { host, object: RemoteObject::Api, message },
            _ => {
                let request = RequestName::Path { method: "GET", path: "/v2/" }.to_string();
                RegistryProblem::Status { host, request, status, message }
            }
        }
    }
}

fn login_error(registry: &str, problem: RegistryProblem) -> RegistryError {
    RegistryError::new(RemoteRepository { registry: registry.to_string(), repository: String::new() }, problem)
}

/// Converts the refusal of a token for a login that is being checked: user or password are wrong.
fn refused_login(problem: RegistryProblem) -> RegistryProblem {
    match problem {
        RegistryProblem::Denied { host, message, login, anonymous: false, .. } => {
            RegistryProblem::Denied { host, action: RemoteAction::LogIn, message, login, anonymous: false }
        }
        other => other,
    }
}
