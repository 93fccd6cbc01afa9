//! Objects of a store: documents that are replaced, and blobs.

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;

use crate::endpoint_modes::EndpointRole;
use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction, Result};
use crate::http::HttpReply;
use crate::interruption::Interruption;
use crate::objects::calls::{ObjectCall, ObjectStore};
use crate::objects::fault::ObjectFault;
use crate::objects::login::StoreLogin;
use crate::objects::place::encode_path;
use crate::objects::reader::{ObjectOrigin, ObjectReader, RangeSource};
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::session::Body;
use crate::stall::read_document;

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The entity tag, which changes with each write.
    pub etag: String,
}

/// An object, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectState {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in seconds since 1970; `None` if the server does not state it.
    pub modified: Option<i64>,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCondition<'a> {
    /// There is no such object.
    Absent,
    /// The object has this entity tag.
    Unchanged(&'a str),
}

/// The outcome of a write with a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The object was written.
    Written,
    /// The condition does not hold.
    Conflict,
}

impl ObjectStore {
    /// Reads a document. Returns `None` if there is no such object.
    ///
    /// # Errors
    ///
    /// Fails if the server fails or refuses, if there is no such bucket, or if the document is
    /// larger than `limit`.
    pub fn read(&self, key: &str, limit: u64) -> Result<Option<StoredObject>> {
        self.read_once_whole(key, limit).map_err(|problem| self.fail(problem))
    }

    fn read_once_whole(&self, key: &str, limit: u64) -> std::result::Result<Option<StoredObject>, RegistryProblem> {
        let call = ObjectCall::plain("GET", key);
        let policy = self.shared.http.retry_policy();
        let mut attempts = self.shared.attempts(EndpointRole::Registry).within(self.limit);
        loop {
            let reply = self.call(&call)?;
            match reply.status() {
                200 => {}
                404 => {
                    let fault = ObjectFault::of(reply, &self.shared.http);
                    // A container of Azure is created by the first write.
                    if fault.lacks_bucket() && matches!(self.found.login, StoreLogin::S3 { .. }) {
                        return Err(self.problem(fault, &call, RemoteAction::ReadObject));
                    }
                    return Ok(None);
                }
                _ => return Err(self.refused(reply, &call, RemoteAction::ReadObject)),
            }
            let etag = reply.header("etag").unwrap_or_default().to_string();
            match read_document(reply.response.into_body().into_reader(), limit, policy) {
                Ok(bytes) if bytes.len() as u64 > limit => {
                    let mebibytes = limit >> 20;
                    return Err(ReplyFault::ManifestTooLarge { reference: key, mebibytes }.of(&self.host));
                }
                Ok(bytes) => return Ok(Some(StoredObject { bytes, etag })),
                Err(e) => {
                    let problem = RegistryProblem::Connection {
                        host: self.host.clone(),
                        request: RequestName::Object { method: "GET", key }.to_string(),
                        kind: ConnectionFailure::Transport,
                        source: Interruption::of_read(e, Interruption::BrokenOff).into(),
                    };
                    match attempts.after(&problem) {
                        Some(wait) => self.shared.wait(&self.host, sentence(&problem), wait),
                        None => return Err(problem),
                    }
                }
            }
        }
    }

    /// Returns the state of an object; `None` if there is no such object.
    ///
    /// # Errors
    ///
    /// Fails if the server fails or refuses.
    pub fn state(&self, key: &str) -> Result<Option<ObjectState>> {
        let call = ObjectCall::plain("HEAD", key);
        let reply = self.call(&call).map_err(|problem| self.fail(problem))?;
        match reply.status() {
            200 => {
                let length = reply.header("content-length").and_then(|length| length.parse().ok());
                let modified = reply.header("last-modified").and_then(seconds_of);
                Ok(length.map(|size| ObjectState { size, modified }))
            }
            404 => Ok(None),
            _ => Err(self.fail(self.refused(reply, &call, RemoteAction::ReadObject))),
        }
    }

    /// Returns the reader of a blob that is an object. Connects on the first read.
    pub fn blob(&self, key: &str, digest: &BlobDigest, size: u64) -> ObjectReader<'_> {
        ObjectReader::new(Box::new(ObjectRange { store: self, key: key.to_string() }), digest, size)
    }

    /// Requests the bytes of a range of an object, or all of them.
    pub(crate) fn range(&self, key: &str, range: Option<String>) -> std::result::Result<HttpReply, RegistryProblem> {
        let headers: Vec<(&str, String)> = range.map(|range| ("range", range)).into_iter().collect();
        let call = ObjectCall { headers: &headers, ..ObjectCall::plain("GET", key) };
        let reply = self.call(&call)?;
        match reply.status() {
            200 | 206 => Ok(reply),
            _ => Err(self.refused(reply, &call, RemoteAction::ReadObject)),
        }
    }

    /// Writes a document if a condition holds.
    ///
    /// # Errors
    ///
    /// Fails if the server fails or refuses.
    pub fn write(&self, key: &str, bytes: &[u8], condition: WriteCondition<'_>) -> Result<WriteOutcome> {
        let hash = BlobDigest::of(bytes).hex().to_string();
        let condition = match condition {
            WriteCondition::Absent => ("if-none-match", "*".to_string()),
            WriteCondition::Unchanged(etag) => ("if-match", etag.to_string()),
        };
        let headers: Vec<(&str, String)> = self.kind_of_object().into_iter().chain([condition]).collect();
        let call =
            ObjectCall { headers: &headers, body: Body::Bytes(bytes), hash: &hash, ..ObjectCall::plain("PUT", key) };
        let reply = self.call_in_container(&call).map_err(|problem| self.fail(problem))?;
        if matches!(reply.status(), 200 | 201) {
            return Ok(WriteOutcome::Written);
        }
        let fault = ObjectFault::of(reply, &self.shared.http);
        if fault.is_conflict() || (fault.status == 404 && !fault.lacks_bucket()) {
            return Ok(WriteOutcome::Conflict);
        }
        Err(self.fail(self.problem(fault, &call, RemoteAction::WriteObject)))
    }

    /// Returns the headers of an upload that state the kind of the object.
    pub(crate) fn kind_of_object(&self) -> Option<(&'static str, String)> {
        let is_azure = matches!(self.found.login, StoreLogin::Azure(_));
        is_azure.then(|| ("x-ms-blob-type", "BlockBlob".to_string()))
    }

    /// Sends a request that writes an object. If the container of Azure does not exist, it is
    /// created.
    pub(crate) fn call_in_container(&self, call: &ObjectCall<'_>) -> std::result::Result<HttpReply, RegistryProblem> {
        let reply = self.call(call)?;
        let is_absent = reply.status() == 404 && reply.header("x-ms-error-code") == Some("ContainerNotFound");
        if !is_absent {
            return Ok(reply);
        }
        let query = [("restype", "container".to_string())];
        let create = ObjectCall { query: &query, body: Body::Bytes(&[]), ..ObjectCall::plain("PUT", "") };
        let created = self.call(&create)?;
        // Another machine may have created it meanwhile.
        match created.status() {
            201 | 409 => self.call(call),
            _ => Err(self.refused(created, &create, RemoteAction::WriteObject)),
        }
    }

    /// Sets the time of the last change of an object of S3 to the present time, so that rules for
    /// old objects do not remove it.
    ///
    /// # Errors
    ///
    /// Fails if the server fails or refuses.
    pub fn touch(&self, key: &str) -> Result<()> {
        let source = format!("/{}/{}", self.place.repository, encode_path(key));
        let headers = [("x-amz-copy-source", source), ("x-amz-metadata-directive", "REPLACE".to_string())];
        let call = ObjectCall { headers: &headers, body: Body::Bytes(&[]), ..ObjectCall::plain("PUT", key) };
        let reply = self.call(&call).map_err(|problem| self.fail(problem))?;
        match reply.status() {
            200 => Ok(()),
            _ => Err(self.fail(self.refused(reply, &call, RemoteAction::WriteObject))),
        }
    }
}

/// An object of a store.
struct ObjectRange<'a> {
    store: &'a ObjectStore,
    key: String,
}

impl RangeSource for ObjectRange<'_> {
    fn request(&mut self, range: Option<String>) -> std::result::Result<HttpReply, RegistryProblem> {
        self.store.range(&self.key, range)
    }

    fn origin(&self) -> ObjectOrigin<'_> {
        let ObjectStore { shared, host, place, limit, .. } = self.store;
        ObjectOrigin { shared, host, place, limit: *limit }
    }
}

/// Returns the time of a `Last-Modified` header in seconds since 1970.
fn seconds_of(text: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(text).ok()?;
    i64::try_from(time.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok()
}
