//! Requests to an object store: URLs, signatures, repetition, refusals.

use std::sync::Arc;

use rbuild_linux::Timestamp;

use crate::client::Client;
use crate::config::certs::CertFiles;
use crate::endpoint::ConnectionSecurity;
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryError, RegistryProblem, RemoteAction, RemoteObject, RemoteRepository, Result};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::objects::azure::{self, AzureLogin};
use crate::objects::fault::ObjectFault;
use crate::objects::login::{FoundLogin, ObjectLogin, StoreLogin};
use crate::objects::place::{ObjectPlace, encode_path};
use crate::objects::sigv4::{EMPTY, UnsignedRequest, canonical_query};
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{is_temporary_status, repeated};
use crate::session::{Body, send_stream};
use crate::shared::ClientState;
use crate::time_limit::TimeLimit;
use crate::url;

/// A bucket or a container.
#[derive(Clone)]
pub struct ObjectStore {
    pub(crate) shared: Arc<ClientState>,
    /// URL below which the objects are.
    pub(crate) base: String,
    pub(crate) host: String,
    pub(crate) security: ConnectionSecurity,
    pub(crate) certs: CertFiles,
    /// The duration of all requests together, with the waits between them.
    pub(crate) limit: Option<TimeLimit>,
    pub(crate) found: FoundLogin,
    pub(crate) place: RemoteRepository,
}

/// A request for an object.
pub(crate) struct ObjectCall<'a> {
    pub method: &'static str,
    /// Path of the object below the bucket; empty for the bucket itself.
    pub key: &'a str,
    /// Names and values of the query.
    pub query: &'a [(&'a str, String)],
    pub headers: &'a [(&'a str, String)],
    pub body: Body<'a>,
    /// SHA-256 of the body.
    pub hash: &'a str,
}

impl<'a> ObjectCall<'a> {
    /// Returns a request without a body.
    pub fn plain(method: &'static str, key: &'a str) -> ObjectCall<'a> {
        ObjectCall { method, key, query: &[], headers: &[], body: Body::None, hash: EMPTY }
    }
}

impl ObjectStore {
    /// Opens the store at a place. `login` is the number of its login among those of the client.
    /// Connects to nothing.
    ///
    /// # Errors
    ///
    /// Fails if the address is not a URL, or if a file with logins cannot be read.
    pub fn open(client: &Client, place: &ObjectPlace, login: Option<usize>) -> Result<ObjectStore> {
        let shared = client.shared().clone();
        let fail = |host: &str, problem| RegistryError::new(place.place(host), problem);
        let base = place.base().filter(|base| url::is_valid(base));
        let base = base.ok_or_else(|| fail("", ReplyFault::InvalidUrl.of(place.bucket())))?;
        let (scheme, host, _) = url::split(&base).unwrap_or(("https", "", ""));
        let none = ObjectLogin::default();
        let given = login.and_then(|number| shared.options.object_logins.get(number)).unwrap_or(&none);
        let found = FoundLogin::of(&shared.environment, place, given).map_err(|e| fail(host, e.into()))?;
        found.secrets().iter().for_each(|secret| shared.http.sent.note(secret.reveal()));
        let mut certs = CertFiles::default();
        certs.find(&shared.environment, host).map_err(|e| fail(host, e.into()))?;
        let security = if scheme == "http" { ConnectionSecurity::Plain } else { ConnectionSecurity::Verified };
        let place = place.place(host);
        Ok(ObjectStore { host: host.to_string(), place, certs, security, limit: None, found, base, shared })
    }

    /// Sends a request until its outcome is final. Returns replies of all statuses except for those
    /// of temporary failures. Fails once the transfers end.
    pub(crate) fn call(&self, call: &ObjectCall<'_>) -> std::result::Result<HttpReply, RegistryProblem> {
        self.shared.check_ending()?;
        let attempts = self.shared.attempts(EndpointRole::Registry).within(self.limit);
        let reply = self.shared.repeat(&self.host, attempts, || self.send(call)).map_err(repeated)?;
        if is_temporary_status(reply.status()) {
            return Err(repeated(self.refused(reply, call, RemoteAction::ReadObject)));
        }
        Ok(reply)
    }

    /// Sends a request once.
    pub(crate) fn send(&self, call: &ObjectCall<'_>) -> std::result::Result<HttpReply, RegistryProblem> {
        let query: Vec<(String, String)> =
            call.query.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let mut headers: Vec<(String, String)> =
            call.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let (_, host, root) = url::split(&self.base).unwrap_or(("", "", ""));
        let path = match call.key {
            "" if root.is_empty() => "/".to_string(),
            "" => root.to_string(),
            key => format!("{root}/{}", encode_path(key)),
        };
        let origin = &self.base[..self.base.len() - root.len()];
        let time = Timestamp::now().sec;
        let query = match &self.found.login {
            StoreLogin::S3 { key, region } => {
                if let Some(key) = key {
                    let request = UnsignedRequest {
                        method: call.method,
                        host,
                        path: &path,
                        query: &query,
                        headers: &headers,
                        body: call.hash,
                    };
                    headers.extend(key.headers(&request, region, time));
                }
                canonical_query(&query)
            }
            StoreLogin::Azure(login) => {
                headers.push(("x-ms-version".into(), azure::VERSION.into()));
                headers.push(("x-ms-date".into(), azure::date(time)));
                if let AzureLogin::Key(key) = login {
                    let mut signed = headers.clone();
                    signed.extend(length_of(&call.body).map(|length| ("content-length".into(), length.to_string())));
                    headers.push(("authorization".into(), key.authorization(call.method, &path, &query, &signed)));
                }
                let own = azure::encoded_query(&query);
                match login {
                    AzureLogin::Sas(token) if own.is_empty() => token.reveal().to_string(),
                    AzureLogin::Sas(token) => format!("{own}&{}", token.reveal()),
                    _ => own,
                }
            }
        };
        let url = if query.is_empty() { format!("{origin}{path}") } else { format!("{origin}{path}?{query}") };
        self.send_to(call, &url, &headers)
    }

    fn send_to(
        &self,
        call: &ObjectCall<'_>,
        url: &str,
        headers: &[(String, String)],
    ) -> std::result::Result<HttpReply, RegistryProblem> {
        let http = &self.shared.http;
        let server = Server { limit: self.limit, ..Server::new(self.security, &self.certs) };
        let request = |content| HttpRequest { method: call.method, url, headers, content };
        match &call.body {
            Body::None => http.send(server, request(RequestBody::None)),
            Body::Bytes(bytes) => http.send(server, request(RequestBody::Bytes(bytes))),
            Body::Stream { open, length } => {
                send_stream(&self.shared, server, &request(RequestBody::None), *open, *length)
            }
        }
    }

    /// Converts an unsuccessful reply.
    pub(crate) fn refused(&self, reply: HttpReply, call: &ObjectCall<'_>, action: RemoteAction) -> RegistryProblem {
        self.problem(ObjectFault::of(reply, &self.shared.http), call, action)
    }

    /// Converts the fault of a reply.
    pub(crate) fn problem(&self, fault: ObjectFault, call: &ObjectCall<'_>, action: RemoteAction) -> RegistryProblem {
        let (host, message) = (self.host.clone(), fault.message.clone());
        match fault.status {
            401 | 403 => {
                let (login, anonymous) = (self.found.description.clone(), self.found.is_anonymous());
                RegistryProblem::Denied { host, action, message, login, anonymous }
            }
            404 if fault.lacks_bucket() => {
                RegistryProblem::Missing { host, object: RemoteObject::Bucket(self.place.repository.clone()), message }
            }
            404 => RegistryProblem::Missing { host, object: RemoteObject::Object(call.key.to_string()), message },
            status => {
                let request = RequestName::Object { method: call.method, key: call.key }.to_string();
                RegistryProblem::Status { host, request, status, message }
            }
        }
    }

    pub(crate) fn fail(&self, problem: RegistryProblem) -> RegistryError {
        RegistryError::new(self.place.clone(), problem)
    }
}

/// Returns the length of a body; `None` without one.
fn length_of(body: &Body<'_>) -> Option<u64> {
    match body {
        Body::None => None,
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::Stream { length, .. } => length.known(),
    }
}
