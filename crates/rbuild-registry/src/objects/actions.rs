//! The cache service of GitHub Actions, version 2: entries that never change, found by key or by
//! the beginning of a key. Their content is at signed URLs, which expire.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rbuild_image::BlobDigest;
use rbuild_linux::parallel::locked;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::Client;
use crate::config::certs::CertFiles;
use crate::endpoint::ConnectionSecurity;
use crate::endpoint_modes::EndpointRole;
use crate::error::{
    ConnectionFailure, RegistryError, RegistryProblem, RemoteAction, RemoteObject, RemoteRepository, Result,
};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::interruption::Interruption;
use crate::objects::azure::AzureLogin;
use crate::objects::calls::ObjectStore;
use crate::objects::login::{FoundLogin, StoreLogin};
use crate::objects::reader::{ObjectOrigin, ObjectReader, RangeSource};
use crate::objects::upload::UploadObject;
use crate::push::{OpenAt, ProblemResult};
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{is_temporary_status, repeated};
use crate::secret::Secret;
use crate::shared::ClientState;
use crate::stall::read_document;
use crate::time_limit::TimeLimit;
use crate::url;

/// Path of the service.
const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService";
/// Maximum size of a reply of the service in bytes.
const MAX_REPLY: u64 = 1 << 20;
/// The permission to write, a bit.
const WRITE: u64 = 2;

/// The cache service of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionsPlace {
    /// URL of the service.
    pub url: String,
    /// Version of the entries, which separates those of different programs.
    pub version: String,
}

/// An open cache service.
pub struct ActionsCache {
    shared: Arc<ClientState>,
    /// URL of the service, with its path.
    base: String,
    host: String,
    security: ConnectionSecurity,
    certs: CertFiles,
    token: Secret,
    version: String,
    place: RemoteRepository,
    limit: Option<TimeLimit>,
    /// Signed URLs of entries by key. Several blobs may be in one entry.
    urls: Mutex<HashMap<String, String>>,
}

/// The content of a new entry.
pub struct EntryContent<'a> {
    /// Size in bytes.
    pub size: u64,
    /// Opens it.
    pub open: OpenAt<'a>,
}

/// An entry that was found by the beginning of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestEntry {
    /// The key.
    pub key: String,
    /// The content; `None` if it is lost.
    pub content: Option<Vec<u8>>,
}

/// An entry that was found.
struct SignedContent {
    key: String,
    url: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceReply {
    ok: bool,
    #[serde(alias = "signedDownloadUrl")]
    signed_download_url: String,
    #[serde(alias = "matchedKey")]
    matched_key: String,
    #[serde(alias = "signedUploadUrl")]
    signed_upload_url: String,
    /// The explanation of an error.
    msg: String,
}

/// A scope of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TokenScope {
    #[serde(rename = "Scope")]
    scope: String,
    #[serde(rename = "Permission", default)]
    permission: u64,
}

impl ActionsCache {
    /// Opens the cache service at a place. `login` is the number of its token among the logins of
    /// the client. Connects to nothing.
    ///
    /// # Errors
    ///
    /// Fails if the address is not a URL, or if a file with certificates cannot be read.
    pub fn open(client: &Client, place: &ActionsPlace, login: Option<usize>) -> Result<ActionsCache> {
        let shared = client.shared().clone();
        let base = format!("{}/{SERVICE}", place.url.trim_end_matches('/'));
        let name = |host: &str| RemoteRepository { registry: host.to_string(), repository: String::new() };
        let Some((scheme, host, _)) = url::split(&base).filter(|_| url::is_valid(&base)) else {
            return Err(RegistryError::new(name(""), ReplyFault::InvalidUrl.of("the cache service of GitHub")));
        };
        let given = login.and_then(|number| shared.options.object_logins.get(number)?.token.clone());
        let variable = || shared.environment.variable("ACTIONS_RUNTIME_TOKEN").map(Secret::new);
        let token = given.or_else(variable).unwrap_or_else(|| Secret::new(""));
        shared.http.sent.note(token.reveal());
        let mut certs = CertFiles::default();
        certs.find(&shared.environment, host).map_err(|e| RegistryError::new(name(host), e.into()))?;
        let security = if scheme == "http" { ConnectionSecurity::Plain } else { ConnectionSecurity::Verified };
        let (place, version, host) = (name(host), place.version.clone(), host.to_string());
        let urls = Mutex::default();
        Ok(ActionsCache { base, host, security, certs, token, version, place, limit: None, urls, shared })
    }

    /// Limits the duration of all further requests together, with the waits between them.
    pub fn within(self, time: Duration) -> ActionsCache {
        ActionsCache { limit: Some(TimeLimit::from_now(time)), ..self }
    }

    /// Returns the names of the token's scopes: first the one that can be written, then those that
    /// can only be read, such as that of the default branch.
    pub fn scopes(&self) -> Vec<String> {
        let mut scopes = scopes_of(self.token.reveal());
        scopes.sort_by_key(|scope| scope.permission & WRITE == 0);
        scopes.into_iter().map(|scope| scope.scope).collect()
    }

    /// Reads the newest entry whose key begins so. Returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the service fails or refuses, or if the content is larger than `limit`.
    pub fn newest(&self, prefix: &str, limit: u64) -> Result<Option<NewestEntry>> {
        let Some(found) = self.find(prefix, true).map_err(|problem| self.fail(problem))? else { return Ok(None) };
        let content = self.signed(&found.url).map_err(|problem| self.fail(problem))?.read("", limit)?;
        Ok(Some(NewestEntry { key: found.key, content: content.map(|content| content.bytes) }))
    }

    /// Reads the content of an entry; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the service fails or refuses, or if the content is larger than `limit`.
    pub fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.find(key, false).map_err(|problem| self.fail(problem))? else { return Ok(None) };
        let content = self.signed(&found.url).map_err(|problem| self.fail(problem))?.read("", limit)?;
        Ok(content.map(|content| content.bytes))
    }

    /// Returns true if there is an entry.
    ///
    /// # Errors
    ///
    /// Fails if the service fails or refuses.
    pub fn has(&self, key: &str) -> Result<bool> {
        Ok(self.find(key, false).map_err(|problem| self.fail(problem))?.is_some())
    }

    /// Returns the reader of a blob that begins at a position of an entry. Connects on the first
    /// read.
    pub fn blob(&self, key: &str, offset: u64, digest: &BlobDigest, size: u64) -> ObjectReader<'_> {
        let source = SignedEntry { cache: self, key: key.to_string(), open: None };
        ObjectReader::new(Box::new(source), digest, size).at_offset(offset)
    }

    /// Creates an entry. Returns false if there is one, or if another machine creates it.
    ///
    /// # Errors
    ///
    /// Fails if the service fails or refuses, or if the content cannot be read.
    pub fn create(&self, key: &str, content: &EntryContent<'_>) -> Result<bool> {
        let begun = self.call("CreateCacheEntry", key, json!({"key": key, "version": self.version}));
        let Some(begun) = begun.map_err(|problem| self.fail(problem))?.filter(|begun| begun.ok) else {
            return Ok(false);
        };
        let store = self.signed(&begun.signed_upload_url).map_err(|problem| self.fail(problem))?;
        let EntryContent { size, open } = *content;
        store.upload(&UploadObject { key: "", digest: None, size, open })?;
        let end = json!({"key": key, "size_bytes": size.to_string(), "version": self.version});
        let ended = self.call("FinalizeCacheEntryUpload", key, end).map_err(|problem| self.fail(problem))?;
        Ok(ended.is_some_and(|ended| ended.ok))
    }

    /// Returns the URL of an entry: the one with that key, or the newest whose key begins so.
    fn find(&self, key: &str, is_prefix: bool) -> ProblemResult<Option<SignedContent>> {
        let prefixes: &[&str] = if is_prefix { &[key] } else { &[] };
        let request = json!({"key": key, "restore_keys": prefixes, "version": self.version});
        let reply = self.call("GetCacheEntryDownloadURL", key, request)?;
        let found = reply.filter(|reply| reply.ok && !reply.signed_download_url.is_empty());
        Ok(found.map(|reply| SignedContent { key: reply.matched_key, url: reply.signed_download_url }))
    }

    /// Returns the signed URL of an entry, which is requested unless one other than `expired` is
    /// known.
    fn url_of(&self, key: &str, expired: Option<&str>) -> ProblemResult<String> {
        let mut urls = locked(&self.urls);
        if let Some(known) = urls.get(key).filter(|known| Some(known.as_str()) != expired) {
            return Ok(known.clone());
        }
        let missing = || RegistryProblem::Missing {
            host: self.host.clone(),
            object: RemoteObject::Object(key.to_string()),
            message: String::new(),
        };
        let url = self.find(key, false)?.ok_or_else(missing)?.url;
        urls.insert(key.to_string(), url.clone());
        Ok(url)
    }

    /// Calls a method of the service. Returns `None` if there is no such entry, or if it exists.
    fn call(&self, method: &str, key: &str, request: serde_json::Value) -> ProblemResult<Option<ServiceReply>> {
        self.shared.check_ending()?;
        let url = format!("{}/{method}", self.base);
        let headers = [
            ("authorization".to_string(), format!("Bearer {}", self.token.reveal())),
            ("content-type".to_string(), "application/json".to_string()),
        ];
        let bytes = request.to_string().into_bytes();
        let send = || {
            let content = RequestBody::Bytes(&bytes);
            let request = HttpRequest { method: "POST", url: &url, headers: &headers, content };
            let server = Server { limit: self.limit, ..Server::new(self.security, &self.certs) };
            self.shared.http.send(server, request)
        };
        let attempts = self.shared.attempts(EndpointRole::Registry).within(self.limit);
        let reply = self.shared.repeat(&self.host, attempts, send).map_err(repeated)?;
        let status = reply.status();
        let body = read_document(reply.response.into_body().into_reader(), MAX_REPLY, self.shared.http.retry_policy());
        let body = match body {
            // What was created or found is not known.
            Err(e) if status == 200 => {
                let request = RequestName::Object { method, key }.to_string();
                let (kind, source) = (ConnectionFailure::Transport, Interruption::of_read(e, Interruption::BrokenOff));
                let host = self.host.clone();
                return Err(repeated(RegistryProblem::Connection { host, request, kind, source: source.into() }));
            }
            body => body.unwrap_or_default(),
        };
        let answer: ServiceReply = serde_json::from_slice(&body).unwrap_or_default();
        match status {
            200 => Ok(Some(answer)),
            404 | 409 => Ok(None),
            _ => Err(self.refused(status, method, key, &answer.msg)),
        }
    }

    fn refused(&self, status: u16, method: &str, key: &str, message: &str) -> RegistryProblem {
        let (host, message) = (self.host.clone(), self.shared.http.sent.hidden_in(message));
        if matches!(status, 401 | 403) {
            let action = if method.starts_with("Get") { RemoteAction::ReadObject } else { RemoteAction::WriteObject };
            let anonymous = self.token.is_empty();
            let login = if anonymous { "without ACTIONS_RUNTIME_TOKEN" } else { "with the token of the job" };
            return RegistryProblem::Denied { host, action, message, login: login.into(), anonymous };
        }
        let request = RequestName::Object { method, key }.to_string();
        let problem = RegistryProblem::Status { host, request, status, message };
        if is_temporary_status(status) { repeated(problem) } else { problem }
    }

    /// Returns the store of a single object, whose URL is signed.
    fn signed(&self, url: &str) -> ProblemResult<ObjectStore> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, host, _) = url::split(base).filter(|_| url::is_valid(base)).ok_or_else(|| self.invalid_url())?;
        let security = match (scheme, self.security) {
            ("https", _) => ConnectionSecurity::Verified,
            (_, ConnectionSecurity::Plain) => ConnectionSecurity::Plain,
            _ => return Err(ReplyFault::NoTls.of(host)),
        };
        let mut certs = CertFiles::default();
        certs.find(&self.shared.environment, host).map_err(RegistryProblem::Config)?;
        // The signature must not be displayed.
        self.shared.http.sent.note(query);
        let login = StoreLogin::Azure(AzureLogin::Sas(Secret::new(query)));
        let found = FoundLogin { login, description: "with a signed URL".into() };
        let (base, host, shared) = (base.to_string(), host.to_string(), self.shared.clone());
        Ok(ObjectStore { place: self.place.clone(), base, host, security, certs, limit: self.limit, found, shared })
    }

    fn invalid_url(&self) -> RegistryProblem {
        ReplyFault::InvalidUrl.of(&self.host)
    }

    fn fail(&self, problem: RegistryProblem) -> RegistryError {
        RegistryError::new(self.place.clone(), problem)
    }
}

/// An entry that is read. Its URL expires.
struct SignedEntry<'a> {
    cache: &'a ActionsCache,
    key: String,
    /// The URL, and the store of the content.
    open: Option<(String, ObjectStore)>,
}

impl RangeSource for SignedEntry<'_> {
    fn request(&mut self, range: Option<String>) -> ProblemResult<HttpReply> {
        let mut expired = None;
        loop {
            let (url, store) = match self.open.take() {
                Some(open) => open,
                None => {
                    let url = self.cache.url_of(&self.key, expired.as_deref())?;
                    let store = self.cache.signed(&url)?;
                    (url, store)
                }
            };
            match store.range("", range.clone()) {
                Err(RegistryProblem::Denied { .. }) if expired.is_none() => expired = Some(url),
                reply => {
                    self.open = Some((url, store));
                    return reply;
                }
            }
        }
    }

    fn origin(&self) -> ObjectOrigin<'_> {
        let ActionsCache { shared, host, place, limit, .. } = self.cache;
        ObjectOrigin { shared, host, place, limit: *limit }
    }
}

/// Returns the scopes in the claim `ac` of a token. A token in another form has none.
fn scopes_of(token: &str) -> Vec<TokenScope> {
    let payload =
        token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
    let claims: Option<serde_json::Value> = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let scopes = claims.and_then(|claims| serde_json::from_str(claims["ac"].as_str()?).ok());
    scopes.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_states_its_scopes() {
        let token =
            |claims: serde_json::Value| format!("e30.{}.signature", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let list = json!([{"Scope": "refs/heads/main", "Permission": 1}, {"Scope": "refs/heads/x", "Permission": 3}]);
        let scopes = scopes_of(&token(json!({"ac": list.to_string()})));
        let names: Vec<(&str, u64)> = scopes.iter().map(|scope| (scope.scope.as_str(), scope.permission)).collect();
        assert_eq!(names, [("refs/heads/main", 1), ("refs/heads/x", 3)]);
        assert!(scopes_of(&token(json!({}))).is_empty());
    }

    proptest! {
        #[test]
        fn any_token_is_parsed(token in ".*", claims in ".*") {
            scopes_of(&token);
            scopes_of(&format!("a.{}.b", BASE64_URL_SAFE_NO_PAD.encode(claims)));
        }
    }
}
