//! Requests to one endpoint: authorization, redirects, repetition.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use crate::auth::Auth;
use crate::challenge::Challenge;
use crate::config::certs::CertFiles;
use crate::endpoint::{ConnectionSecurity, Endpoint};
use crate::error::{RegistryProblem, RemoteAction, RemoteObject};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::open_uploads::OpenUploads;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::Attempts;
use crate::retry_policy::RetryMode;
use crate::secret::Secret;
use crate::shared::ClientState;
use crate::url::Redirect;
use crate::{answer, url};

/// Maximum number of redirects.
const MAX_REDIRECTS: usize = 10;

/// Opens the body of a request, once for each attempt.
pub(crate) type BodyOpener<'a> = &'a dyn Fn() -> io::Result<Box<dyn Read + 'a>>;

/// The body of a call.
pub(crate) enum Body<'a> {
    None,
    Bytes(&'a [u8]),
    Stream { open: BodyOpener<'a>, length: BodyLength<'a> },
}

/// The length of a body.
#[derive(Clone, Copy)]
pub(crate) enum BodyLength<'a> {
    /// The number of bytes. If one of them cannot be read, or if the transfers end, the request
    /// breaks.
    Known(u64),
    /// As many bytes as can be read until the transfers end. They are sent in chunks of the
    /// transfer encoding. The failure that ended them is stored here, and the request is completed.
    Open(&'a Cell<Option<io::Error>>),
}

impl BodyLength<'_> {
    /// Returns the number of bytes, if it is known.
    pub(crate) fn known(self) -> Option<u64> {
        match self {
            BodyLength::Known(size) => Some(size),
            BodyLength::Open(_) => None,
        }
    }
}

/// The data of a request. Keeps the error of a failed read; otherwise, it would count as an error
/// of the connection and be retried.
struct LocalSource<'a, R> {
    inner: R,
    /// Ends the data when the transfers end.
    uploads: &'a OpenUploads,
    /// True if a failure is the end of the data.
    is_open: bool,
    failure: Option<io::Error>,
}

/// Sends a request once, with the data that are opened as its body.
pub(crate) fn send_stream(
    shared: &ClientState,
    server: Server<'_>,
    request: &HttpRequest<'_>,
    open: BodyOpener<'_>,
    length: BodyLength<'_>,
) -> Result<HttpReply, RegistryProblem> {
    let uploads = &shared.options.uploads;
    let local = |source| RegistryProblem::Local { data: "the data to send", source };
    let is_open = matches!(length, BodyLength::Open(_));
    let mut source = LocalSource { inner: open().map_err(local)?, uploads, is_open, failure: None };
    let content = RequestBody::Stream { reader: &mut source, size: length.known() };
    let HttpRequest { method, url, headers, .. } = *request;
    let reply = shared.http.send(server, HttpRequest { method, url, headers, content });
    match length {
        BodyLength::Known(_) => source.failure.map_or(reply, |e| Err(local(e))),
        BodyLength::Open(failure) => {
            failure.set(source.failure);
            reply
        }
    }
}

impl<R: Read> Read for LocalSource<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.uploads.check().and_then(|()| self.inner.read(buf));
        read.or_else(|e| match e.kind() {
            io::ErrorKind::Interrupted => Err(e),
            kind => {
                self.failure = Some(e);
                if self.is_open { Ok(0) } else { Err(kind.into()) }
            }
        })
    }
}

/// A request of the protocol.
pub(crate) struct ApiRequest<'a> {
    pub method: &'static str,
    /// Path below the repository (`/manifests/1`), or a whole URL.
    pub to: &'a str,
    pub headers: &'a [(&'static str, String)],
    pub body: Body<'a>,
    pub scopes: &'a [String],
    pub repetition: Repetition,
}

/// The treatment of temporary failures of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repetition {
    /// The request is sent again.
    Repeated,
    /// The caller gets the failure, because it decides how to continue.
    Single,
}

/// The origin of a URL, which determines whether the endpoint's credentials may be sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UrlOrigin {
    /// The protocol. The endpoint gets its credentials, other servers do not.
    Protocol,
    /// A manifest. No server gets credentials, not even the endpoint.
    Manifest,
}

/// An endpoint with its state of authentication.
pub(crate) struct EndpointSession {
    pub endpoint: Endpoint,
    auth: Arc<Auth>,
    shared: Arc<ClientState>,
    retry_mode: RetryMode,
}

impl EndpointSession {
    pub(crate) fn new(endpoint: Endpoint, shared: Arc<ClientState>) -> EndpointSession {
        // Headers of the settings may be credentials.
        endpoint.headers.iter().for_each(|(_, value)| shared.http.sent.note(value));
        let auth = Arc::new(Auth::new(&endpoint));
        EndpointSession { auth, endpoint, shared, retry_mode: RetryMode::default() }
    }

    /// Returns a session with the same login whose requests are repeated in a mode.
    pub(crate) fn in_mode(&self, retry_mode: RetryMode) -> EndpointSession {
        let EndpointSession { endpoint, auth, shared, .. } = self;
        EndpointSession { endpoint: endpoint.clone(), auth: auth.clone(), shared: shared.clone(), retry_mode }
    }

    pub(crate) fn retry_mode(&self) -> RetryMode {
        self.retry_mode
    }

    /// Returns the counter of attempts of a request.
    pub(crate) fn attempts(&self) -> Attempts {
        self.shared.attempts(self.endpoint.role).in_mode(self.retry_mode)
    }

    pub(crate) fn shared(&self) -> &ClientState {
        &self.shared
    }

    /// Returns the scope of actions on the repository.
    pub(crate) fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.endpoint.path)
    }

    /// Returns a name of the endpoint that no other endpoint of the repository has.
    pub(crate) fn source(&self) -> String {
        self.url("")
    }

    /// Returns the URL of a path below the repository.
    pub(crate) fn url(&self, to: &str) -> String {
        if to.contains("://") {
            return to.to_string();
        }
        let Endpoint { host, base, path, security, namespace, .. } = &self.endpoint;
        let scheme = if *security == ConnectionSecurity::Plain { "http" } else { "https" };
        let url = format!("{scheme}://{host}{base}/{path}{to}");
        namespace.as_ref().map_or(url.clone(), |registry| url::with_parameter(&url, "ns", registry))
    }

    /// Sends a request. Returns replies of all statuses, except for 401 and, if it is repeated,
    /// those of temporary failures. Fails once the transfers end.
    pub(crate) fn call(&self, call: &ApiRequest<'_>) -> Result<HttpReply, RegistryProblem> {
        self.shared.check_ending()?;
        let deadline = match call.body {
            // An upload has a minimum data rate and no maximum duration.
            Body::Stream { .. } => None,
            Body::None | Body::Bytes(_) => Some(Instant::now() + self.shared.http.retry_policy().whole),
        };
        if call.repetition == Repetition::Single {
            return self.authorized(call, deadline);
        }
        self.shared.repeat(&self.endpoint.host, self.attempts(), || self.authorized(call, deadline))
    }

    /// Sends a request that cancels an upload, once.
    pub(crate) fn call_at_end(&self, call: &ApiRequest<'_>) -> Result<HttpReply, RegistryProblem> {
        self.authorized(call, None)
    }

    /// Sends a request to a URL that a manifest states, once. No server that it leads to gets a
    /// login, headers of the settings or the certificate of the client.
    pub(crate) fn call_foreign(&self, call: &ApiRequest<'_>) -> Result<HttpReply, RegistryProblem> {
        let deadline = Instant::now() + self.shared.http.retry_policy().whole;
        let reply = self.follow(call, UrlOrigin::Manifest, None, Some(deadline))?;
        self.shared.show_warnings(&reply);
        Ok(reply)
    }

    /// Sends a request, and again after a challenge.
    fn authorized(&self, call: &ApiRequest<'_>, deadline: Option<Instant>) -> Result<HttpReply, RegistryProblem> {
        let mut left = 2;
        loop {
            let header = self.auth.header(&self.shared, &self.endpoint, call.scopes)?;
            let reply = self.follow(call, UrlOrigin::Protocol, header.as_ref(), deadline)?;
            let own = self.endpoint.is_origin_of(&reply.url);
            if reply.status() != 401 || left == 0 || !own {
                self.shared.show_warnings(&reply);
                return Ok(reply);
            }
            let Some(challenge) = Challenge::of(&reply)? else { return Ok(reply) };
            left -= 1;
            if !self.auth.challenged(&self.shared, challenge, header.as_ref())? {
                return Ok(reply);
            }
        }
    }

    /// Sends a request and follows redirects of GET and HEAD. Credentials and headers of the
    /// endpoint are sent only to the endpoint.
    fn follow(
        &self,
        call: &ApiRequest<'_>,
        origin: UrlOrigin,
        authorization: Option<&Secret>,
        deadline: Option<Instant>,
    ) -> Result<HttpReply, RegistryProblem> {
        let mut target = self.url(call.to);
        for _ in 0..=MAX_REDIRECTS {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let seconds = self.shared.http.retry_policy().whole.as_secs();
                return Err(self.invalid(ReplyFault::Late { seconds }));
            }
            let server = if self.endpoint.is_origin_of(&target) && origin == UrlOrigin::Protocol {
                None
            } else {
                Some(self.elsewhere(&target, origin)?)
            };
            let reply = self.send(call, &target, server.as_ref(), authorization)?;
            let moved = matches!(reply.status(), 301 | 302 | 303 | 307 | 308) && matches!(call.method, "GET" | "HEAD");
            let Some(location) = reply.header("location").filter(|_| moved) else { return Ok(reply) };
            target = self.next(&reply.url, location)?;
        }
        Err(self.invalid(ReplyFault::TooManyRedirects))
    }

    /// Returns the URL of a `Location` header in the reply of `base`.
    pub(crate) fn next(&self, base: &str, location: &str) -> Result<String, RegistryProblem> {
        match url::follow(base, location) {
            Redirect::Url(url) => Ok(url),
            Redirect::Unprotected(host) => Err(self.unprotected(&host)),
            Redirect::Invalid => Err(self.invalid(ReplyFault::InvalidRedirect)),
        }
    }

    fn unprotected(&self, host: &str) -> RegistryProblem {
        self.invalid(ReplyFault::UnprotectedRedirect(host))
    }

    /// Sends a request to the endpoint, or to another server with its own transport security and
    /// certificates. That server gets no credentials.
    fn send(
        &self,
        call: &ApiRequest<'_>,
        target: &str,
        elsewhere: Option<&(ConnectionSecurity, CertFiles)>,
        authorization: Option<&Secret>,
    ) -> Result<HttpReply, RegistryProblem> {
        let mut headers: Vec<(String, String)> =
            call.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let server = match elsewhere {
            None => {
                headers.extend(self.endpoint.headers.iter().cloned());
                headers.extend(authorization.map(|value| ("authorization".to_string(), value.reveal().to_string())));
                Server::of(&self.endpoint)
            }
            Some((security, certs)) => Server::new(*security, certs),
        };
        let request = |content| HttpRequest { method: call.method, url: target, headers: &headers, content };
        match &call.body {
            Body::None => self.shared.http.send(server, request(RequestBody::None)),
            Body::Bytes(bytes) => self.shared.http.send(server, request(RequestBody::Bytes(bytes))),
            Body::Stream { open, length } => {
                send_stream(&self.shared, server, &request(RequestBody::None), *open, *length)
            }
        }
    }

    /// Returns the transport security and the certificates for a host to which a redirect or a
    /// manifest leads.
    fn elsewhere(&self, target: &str, origin: UrlOrigin) -> Result<(ConnectionSecurity, CertFiles), RegistryProblem> {
        let (scheme, host, _) = url::split(target).unwrap_or(("https", "", ""));
        let mut certs = self.shared.certs_of_other(host)?;
        if origin == UrlOrigin::Manifest {
            certs.client = None;
        }
        let security = self.endpoint.protection_of(scheme, host).ok_or_else(|| self.unprotected(host))?;
        Ok((security, certs))
    }

    /// Returns the problem of a faulty answer, without the secrets of requests.
    pub(crate) fn invalid(&self, fault: ReplyFault<'_>) -> RegistryProblem {
        self.invalid_of(&self.endpoint.host, fault)
    }

    /// Returns the problem of a faulty answer of another host, without the secrets of requests.
    pub(crate) fn invalid_of(&self, host: &str, fault: ReplyFault<'_>) -> RegistryProblem {
        let reason = self.shared.http.sent.hidden_in(&fault.to_string());
        RegistryProblem::Answer { host: host.to_string(), reason }
    }

    /// Converts an unsuccessful reply. `object` is the object of the request.
    pub(crate) fn refused(
        &self,
        reply: HttpReply,
        request: RequestName<'_>,
        object: RemoteObject,
        action: RemoteAction,
    ) -> RegistryProblem {
        let status = reply.status();
        let host = url::split(&reply.url).map_or_else(|| self.endpoint.host.clone(), |(_, host, _)| host.to_string());
        let message = answer::message(reply.response.into_body(), &self.shared.http);
        match status {
            401 | 403 => {
                let (login, anonymous) = self.auth.description(&self.shared);
                RegistryProblem::Denied { host, action, message, login, anonymous }
            }
            404 => RegistryProblem::Missing { host, object, message },
            _ => RegistryProblem::Status { host, request: request.to_string(), status, message },
        }
    }
}
