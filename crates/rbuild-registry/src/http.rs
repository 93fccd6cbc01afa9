//! Single HTTP requests: connections, TLS, proxies.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_linux::parallel::locked;
use rustls::ClientConfig;
use ureq::http::{Request, Response};
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, AsSendBody, Body, Proxy, SendBody};

use crate::config::certs::CertFiles;
use crate::config_error::ConfigError;
use crate::endpoint::{ConnectionSecurity, Endpoint, without_port};
use crate::endpoint_modes::CertificateCheck;
use crate::environment::ProcessEnvironment;
use crate::error::{ConnectionFailure, RegistryProblem};
use crate::interruption::Interruption;
use crate::proxy::proxy_for;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry_policy::RetryPolicy;
use crate::secret::Sent;
use crate::stall::StallReader;
use crate::time_limit::TimeLimit;
use crate::tls::TlsConnector;
use crate::url;

/// A server to connect to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    pub security: ConnectionSecurity,
    pub certs: &'a CertFiles,
    /// Maximum duration of connecting, if it is not the default.
    pub connect: Option<Duration>,
    /// The duration of this request and others together.
    pub limit: Option<TimeLimit>,
}

impl<'a> Server<'a> {
    /// Returns a server with the default duration.
    pub(crate) fn new(security: ConnectionSecurity, certs: &'a CertFiles) -> Server<'a> {
        Server { security, certs, connect: None, limit: None }
    }

    /// Returns the server of an endpoint.
    pub(crate) fn of(endpoint: &'a Endpoint) -> Server<'a> {
        Server { connect: endpoint.connect, ..Server::new(endpoint.security, &endpoint.certs) }
    }
}

/// The body of a request.
pub(crate) enum RequestBody<'a> {
    None,
    Bytes(&'a [u8]),
    Stream { reader: &'a mut dyn Read, size: Option<u64> },
}

/// A request to a URL.
pub(crate) struct HttpRequest<'a> {
    pub method: &'a str,
    /// For [`ConnectionSecurity::Any`], the scheme is only a suggestion.
    pub url: &'a str,
    pub headers: &'a [(String, String)],
    pub content: RequestBody<'a>,
}

/// A response, and the URL that sent it.
pub(crate) struct HttpReply {
    pub response: Response<Body>,
    pub url: String,
}

impl HttpReply {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

/// A reader with an independent lifetime.
struct BorrowedReader<'a>(&'a mut dyn Read);

impl Read for BorrowedReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct AgentKey {
    certs: CertFiles,
    check: CertificateCheck,
    proxy: Option<String>,
    connect: Duration,
}

/// The texts of EAI_AGAIN, in glibc and in musl.
const TRY_AGAIN: [&str; 2] = ["Temporary failure", "Try again"];

/// Sends requests, and keeps connections for the next ones.
pub(crate) struct Http {
    environment: ProcessEnvironment,
    retry_policy: RetryPolicy,
    agents: Mutex<HashMap<AgentKey, Agent>>,
    /// Schemes of hosts that may support http and https.
    schemes: Mutex<HashMap<String, &'static str>>,
    /// Secrets of requests.
    pub sent: Sent,
}

impl Http {
    pub(crate) fn new(environment: ProcessEnvironment, retry_policy: RetryPolicy) -> Http {
        Http { environment, retry_policy, agents: Mutex::default(), schemes: Mutex::default(), sent: Sent::default() }
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }

    /// Returns the policy for the connections of a server.
    fn retry_policy_for(&self, server: Server<'_>) -> RetryPolicy {
        RetryPolicy { connect: server.connect.unwrap_or(self.retry_policy.connect), ..self.retry_policy }
    }

    /// Sends a request once. Follows no redirects.
    pub(crate) fn send(&self, server: Server<'_>, mut request: HttpRequest<'_>) -> Result<HttpReply, RegistryProblem> {
        let valid = url::split(request.url).filter(|_| url::is_valid(request.url));
        let Some((scheme, authority, rest)) = valid else {
            let host = url::split(request.url).map_or("the registry", |(_, host, _)| host);
            return Err(ReplyFault::InvalidUrl.of(host));
        };
        let authority = authority.to_string();
        let known = locked(&self.schemes).get(&authority).copied();
        let schemes: &[&'static str] = match (server.security, known) {
            (ConnectionSecurity::Any, Some("http")) => &["http"],
            (ConnectionSecurity::Any, Some(_)) => &["https"],
            (ConnectionSecurity::Any, None) => &["https", "http"],
            (ConnectionSecurity::Plain, _) => &["http"],
            _ if scheme == "https" => &["https"],
            _ => return Err(ReplyFault::NoTls.of(&authority)),
        };
        let mut last = None;
        for scheme in schemes {
            let url = format!("{scheme}://{authority}{rest}");
            match self.send_to(server, &url, &mut request) {
                Ok(response) => {
                    if schemes.len() > 1 {
                        locked(&self.schemes).insert(authority, scheme);
                    }
                    return Ok(HttpReply { response, url });
                }
                // Of two refusals, the one of TLS is more informative.
                Err(problem) => drop(last.get_or_insert(problem)),
            }
        }
        Err(last.unwrap_or_else(|| ReplyFault::InvalidUrl.of(&authority)))
    }

    /// Sends a request to `url`, which is its URL with one of the schemes that the host may
    /// support.
    fn send_to(
        &self,
        server: Server<'_>,
        url: &str,
        request: &mut HttpRequest<'_>,
    ) -> Result<Response<Body>, RegistryProblem> {
        let HttpRequest { method, headers, content, .. } = request;
        let method = *method;
        let (scheme, authority, _) = url::split(url).unwrap_or(("https", "", ""));
        let agent = self.agent(server, scheme, authority)?;
        let retry_policy = self.retry_policy_for(server);
        let failed = |e: ureq::Error| connection(authority, method, url, e, retry_policy);
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in *headers {
            if name.eq_ignore_ascii_case("authorization") {
                self.sent.note_header(value);
            }
            request = request.header(name, value);
        }
        tracing::debug!(target: "registry", method, url = url::without_query(url), "request");
        let left = match server.limit {
            Some(limit) => Some(limit.left().ok_or_else(|| limit.exceeded().of(authority))?),
            None => None,
        };
        let invalid = |e| failed(ureq::Error::Http(e));
        let response = match content {
            RequestBody::None => agent.run(limited(&agent, request.body(()).map_err(invalid)?, left)),
            RequestBody::Bytes(bytes) => {
                let mut source = *bytes;
                let body = SendBody::from_reader(&mut source);
                let request = request.header("content-length", bytes.len()).body(body).map_err(invalid)?;
                agent.run(limited(&agent, request, left))
            }
            RequestBody::Stream { reader, size } => {
                let mut source = StallReader::new(BorrowedReader(*reader), self.retry_policy.idle);
                let body = SendBody::from_reader(&mut source);
                let request = match size {
                    Some(size) => request.header("content-length", *size),
                    None => request.header("transfer-encoding", "chunked"),
                };
                agent.run(limited(&agent, request.body(body).map_err(invalid)?, left))
            }
        };
        let response = response.map_err(|e| match (e, server.limit) {
            (ureq::Error::Timeout(ureq::Timeout::Global), Some(limit)) => limit.exceeded().of(authority),
            (e, _) => failed(e),
        })?;
        tracing::debug!(target: "registry", status = response.status().as_u16(), "response");
        Ok(response)
    }

    /// Returns the agent for a server: its TLS settings and proxy.
    fn agent(&self, server: Server<'_>, scheme: &str, authority: &str) -> Result<Agent, RegistryProblem> {
        let host = without_port(authority);
        let default = if scheme == "https" { 443 } else { 80 };
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(default);
        let proxy = proxy_for(&self.environment, scheme, host, port);
        let check = match server.security {
            ConnectionSecurity::Verified => CertificateCheck::Required,
            _ => CertificateCheck::Skipped,
        };
        let retry_policy = self.retry_policy_for(server);
        let key = AgentKey { certs: server.certs.clone(), check, proxy, connect: retry_policy.connect };
        if let Some(agent) = locked(&self.agents).get(&key) {
            return Ok(agent.clone());
        }
        let tls = key.certs.tls(&self.environment, check).map_err(RegistryProblem::Config)?;
        let proxy = match &key.proxy {
            Some(url) => Some(Proxy::new(url).map_err(|_| RegistryProblem::Config(ConfigError::Proxy))?),
            None => None,
        };
        let own = key.certs.own(check).map_err(RegistryProblem::Config)?;
        let agent = new_agent(tls, own, proxy, retry_policy);
        locked(&self.agents).insert(key, agent.clone());
        Ok(agent)
    }
}

/// Limits the duration of a request and of reading its response.
fn limited<B: AsSendBody>(agent: &Agent, request: Request<B>, left: Option<Duration>) -> Request<B> {
    match left {
        Some(left) => agent.configure_request(request).timeout_global(Some(left)).build(),
        None => request,
    }
}

/// Returns an agent. `own` replaces `tls` for a server with authorities of its own.
fn new_agent(tls: TlsConfig, own: Option<Arc<ClientConfig>>, proxy: Option<Proxy>, retry_policy: RetryPolicy) -> Agent {
    let config = Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections_per_host(8)
        .timeout_connect(Some(retry_policy.connect))
        .timeout_recv_response(Some(retry_policy.idle))
        .timeout_per_read(Some(retry_policy.idle))
        .timeout_per_write(Some(retry_policy.idle))
        .accept_encoding("identity")
        .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
        .build();
    match own {
        Some(own) => {
            let connector = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
            Agent::with_parts(config, connector.chain(TlsConnector(own)), DefaultResolver::default())
        }
        None => config.into(),
    }
}

/// Describes a failed connection.
pub(crate) fn connection(
    host: &str,
    method: &str,
    url: &str,
    e: ureq::Error,
    retry_policy: RetryPolicy,
) -> RegistryProblem {
    if let ureq::Error::BadUri(_) | ureq::Error::Http(_) = e {
        // The text of the error is not used, because it may contain a signature.
        return ReplyFault::InvalidValue.of(host);
    }
    let text = e.to_string();
    let lookup = text.contains("lookup address") || matches!(e, ureq::Error::HostNotFound);
    let kind = match &e {
        _ if text.contains("invalid peer certificate") => ConnectionFailure::Certificate,
        _ if text.contains("corrupt message") => ConnectionFailure::NotTls,
        _ if lookup && !TRY_AGAIN.iter().any(|reason| text.contains(reason)) => ConnectionFailure::Lookup,
        _ => ConnectionFailure::Transport,
    };
    let source: Box<dyn std::error::Error + Send + Sync> = match (kind, e) {
        (ConnectionFailure::NotTls, _) => Interruption::NotTls.into(),
        (ConnectionFailure::Lookup, _) => Interruption::NoHost.into(),
        (_, ureq::Error::Timeout(ureq::Timeout::Connect)) => Interruption::NoConnection(retry_policy.connect).into(),
        (_, ureq::Error::Timeout(_)) => Interruption::NoResponse(retry_policy.idle).into(),
        (_, ureq::Error::Io(e)) => e.into(),
        // An error of TLS, which repeats its source.
        (_, e) => e.to_string().into(),
    };
    let path = url::split(url).map_or("", |(_, _, rest)| url::without_query(rest));
    RegistryProblem::Connection {
        host: host.to_string(),
        request: RequestName::Path { method, path }.to_string(),
        kind,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::may_be_temporary;

    #[test]
    fn a_server_may_have_its_own_duration_of_connecting() {
        let http = Http::new(ProcessEnvironment::of([], std::path::Path::new("/nosuch")), RetryPolicy::default());
        let certs = CertFiles::default();
        let default = Server::new(ConnectionSecurity::Verified, &certs);
        let slow = Server { connect: Some(Duration::from_secs(61)), ..default };
        assert_eq!(http.retry_policy_for(slow).connect, Duration::from_secs(61));
        assert_eq!(http.retry_policy_for(default).connect, RetryPolicy::default().connect);
        for server in [default, slow] {
            http.agent(server, "https", "a.io").unwrap();
        }
        let durations = |agents: &HashMap<AgentKey, Agent>| -> Vec<(Duration, Option<Duration>)> {
            agents.iter().map(|(key, agent)| (key.connect, agent.config().timeouts().connect)).collect()
        };
        let found = durations(&locked(&http.agents));
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|(key, connect)| Some(*key) == *connect), "{found:?}");
    }

    #[test]
    fn only_temporary_failures_of_name_resolution_are_retried() {
        for (reason, is_retried) in [
            ("Temporary failure in name resolution", true),
            ("Try again", true),
            ("Name or service not known", false),
            ("Name does not resolve", false),
        ] {
            let e = std::io::Error::other(format!("failed to lookup address information: {reason}"));
            let problem = connection("r.io", "GET", "https://r.io/v2/", ureq::Error::Io(e), RetryPolicy::default());
            assert_eq!(may_be_temporary(&problem), is_retried, "{reason}");
        }
    }
}
