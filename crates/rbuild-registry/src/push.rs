//! Upload of blobs and manifests.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::Arc;

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;

use crate::blob_upload::BlobUpload;
use crate::client::Repository;
use crate::config_error::{ConfigError, EndpointUse};
use crate::endpoint::Endpoint;
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryProblem, RemoteAction, RemoteObject, Result, VerifiedContent};
use crate::http::HttpReply;
use crate::manifest::{self, ACCEPT, ReceivedManifest, ResolvedTag};
use crate::open_uploads::UploadRequest;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{is_temporary_status, may_be_temporary};
use crate::session::{ApiRequest, Body, BodyLength, EndpointSession, Repetition};
use crate::url;

/// Size in bytes of the chunks of a chunked upload.
const CHUNK: u64 = 32 << 20;
/// Smallest chunk size in bytes that is tried after larger chunks were refused.
const SMALLEST: u64 = 1 << 20;
/// Size in bytes from which a blob is uploaded with a request that can end at any byte. Registries
/// that count the bytes of an upload, such as Docker's, cancel it only after such an end, and not
/// after a connection that broke. Below it, a second request is not worth its time.
const STREAMED: u64 = 8 << 20;
/// Size in bytes below which a blob is uploaded without checking whether it already exists.
const SMALL: u64 = 4 << 10;

/// Content type of the bytes of a blob.
const OCTETS: &str = "application/octet-stream";

/// The result of a request.
pub(crate) type ProblemResult<T> = std::result::Result<T, RegistryProblem>;

/// Opens the bytes of a blob at a position.
pub type OpenAt<'a> = &'a (dyn Fn(u64) -> io::Result<Box<dyn Read + 'a>> + Sync);

/// A blob to upload.
pub struct UploadBlob<'a> {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size in bytes.
    pub size: u64,
    /// Opens it.
    pub open: OpenAt<'a>,
    /// Path of a repository on the same registry that may contain it.
    pub mount_from: Option<&'a str>,
    /// True if the bytes have to be downloaded first. The registry is then asked for a small blob,
    /// too.
    pub is_remote: bool,
}

/// A blob to upload while it is being written.
pub struct GrowingUpload<'a> {
    /// Opens it. Its reader waits for bytes that do not exist yet.
    pub open: OpenAt<'a>,
    /// Waits until it is complete. Returns its digest and its size in bytes.
    pub complete: &'a (dyn Fn() -> io::Result<(BlobDigest, u64)> + Sync),
}

/// Outcome of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// The repository already contained the blob.
    AlreadyPresent,
    /// The registry mounted the blob from another repository.
    Mounted,
    /// The blob was uploaded.
    Uploaded,
}

impl Repository {
    /// Checks that the login may push, by starting an upload and canceling it.
    ///
    /// # Errors
    ///
    /// Fails if the registry refuses.
    pub fn check_push(&self) -> Result<()> {
        self.pushing(|session| {
            drop(session.start(None)?);
            Ok(())
        })
    }

    /// Uploads a blob, unless the repository has it.
    ///
    /// # Errors
    ///
    /// Fails if the registry refuses the upload or the connection breaks.
    pub fn push_blob(&self, blob: &UploadBlob<'_>) -> Result<PushOutcome> {
        self.pushing(|session| session.push_blob(blob))
    }

    /// Uploads a blob while it is being written, whether or not the repository has it. Returns its
    /// digest and its size in bytes.
    ///
    /// # Errors
    ///
    /// Fails if the blob is not completed, if the registry refuses or the connection does not last.
    pub fn push_growing(&self, blob: &GrowingUpload<'_>) -> Result<(BlobDigest, u64)> {
        self.pushing(|session| session.push_growing(blob))
    }

    /// Returns true if the repository has the manifest or index with that digest, and therefore
    /// everything that it refers to.
    ///
    /// # Errors
    ///
    /// Fails if the registry cannot be reached.
    pub fn has_document(&self, digest: &BlobDigest) -> Result<bool> {
        self.pushing(|session| session.has(&format!("/manifests/{digest}"), ACCEPT))
    }

    /// Uploads a manifest or index under a tag or its digest. Returns true if the registry lists it
    /// among the manifests that refer to its subject.
    ///
    /// # Errors
    ///
    /// Fails if the registry refuses it.
    pub fn push_document(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<bool> {
        self.pushing(|session| {
            let reply = session.call(&ApiRequest {
                method: "PUT",
                to: &format!("/manifests/{reference}"),
                headers: &[("content-type", media_type.to_string())],
                body: Body::Bytes(bytes),
                scopes: &[session.scope("pull,push")],
                repetition: Repetition::Repeated,
            })?;
            if !(200..300).contains(&reply.status()) {
                let request = RequestName::Manifest { method: "PUT", reference };
                let object = RemoteObject::Manifest(reference.to_string());
                return Err(session.refused(reply, request, object, RemoteAction::Push));
            }
            let (own, reported) = (BlobDigest::of(bytes), reply.header("docker-content-digest"));
            match reported.and_then(|digest| digest.parse::<BlobDigest>().ok()).filter(|reported| *reported != own) {
                Some(found) => {
                    let host = session.endpoint.host.clone();
                    Err(RegistryProblem::Digest { host, content: VerifiedContent::PushedManifest, wanted: own, found })
                }
                None => Ok(reply.header("oci-subject").is_some()),
            }
        })
    }

    /// Returns the manifest or index with a tag in the repository that is pushed to; `None` if
    /// there is none.
    ///
    /// # Errors
    ///
    /// Fails if the registry fails or refuses, or if the document is of another type.
    pub fn pushed(&self, tag: &str) -> Result<Option<ReceivedManifest>> {
        self.pushing(|session| match manifest::get(session, tag, None) {
            Ok(found) => Ok(Some(found)),
            Err(RegistryProblem::Missing { .. }) => Ok(None),
            Err(problem) => Err(problem),
        })
    }

    /// Returns the digest of a tag as [`Repository::resolve`] does, in the repository that is
    /// pushed to; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the registry fails or refuses.
    pub fn resolve_pushed(&self, tag: &str) -> Result<Option<ResolvedTag>> {
        self.pushing(|session| match manifest::find(session, tag) {
            Ok(found) => Ok(Some(found)),
            Err(RegistryProblem::Missing { .. }) => Ok(None),
            Err(problem) => Err(problem),
        })
    }

    /// Returns true if the repository that is pushed to has a blob.
    ///
    /// # Errors
    ///
    /// Fails if the registry cannot be reached.
    pub fn has_blob(&self, digest: &BlobDigest) -> Result<bool> {
        self.pushing(|session| session.has(&format!("/blobs/{digest}"), "*/*"))
    }

    /// Pushes to the first endpoint that accepts pushes.
    fn pushing<T>(&self, push: impl Fn(&Arc<EndpointSession>) -> ProblemResult<T>) -> Result<T> {
        let takes = |session: &&Arc<EndpointSession>| session.endpoint.operations.push;
        let Some(session) = self.sessions.iter().find(takes) else {
            return Err(self.fail(ConfigError::NoEndpoint(EndpointUse::Pushes).into()));
        };
        push(session).map_err(|problem| self.fail(problem))
    }
}

impl EndpointSession {
    fn push_blob(self: &Arc<Self>, blob: &UploadBlob<'_>) -> ProblemResult<PushOutcome> {
        if (blob.size >= SMALL || blob.is_remote) && self.has(&format!("/blobs/{}", blob.digest), "*/*")? {
            return Ok(PushOutcome::AlreadyPresent);
        }
        let StartedUpload { is_mounted, mut upload, least_chunk } = self.start(Some(blob))?;
        if is_mounted {
            return Ok(PushOutcome::Mounted);
        }
        if blob.size >= STREAMED {
            let open = upload.take().map_or_else(|| self.restart(), Ok)?;
            if self.push_streamed(open, blob, least_chunk)? {
                return Ok(PushOutcome::Uploaded);
            }
        }
        let mut attempts = self.shared().attempts(EndpointRole::Registry);
        loop {
            let mut open = upload.take().map_or_else(|| self.restart(), Ok)?;
            let put = |location: &str| self.upload(location, blob).map(|()| location.to_string());
            let problem = match open.send(put) {
                Ok(()) => {
                    open.complete();
                    return Ok(PushOutcome::Uploaded);
                }
                Err(problem) => problem,
            };
            drop(open);
            if is_too_large(&problem) || may_be_temporary(&problem) && blob.size > CHUNK {
                // Proxies with a limit answer 413 or just close the connection.
                return self.upload_in_chunks(blob, least_chunk, None).map(|()| PushOutcome::Uploaded);
            }
            match attempts.after(&problem) {
                Some(wait) => self.shared().wait(&self.endpoint.host, sentence(&problem), wait),
                None => return Err(problem),
            }
        }
    }

    /// Uploads a blob in one request that can end at any byte, and ends the upload in another one.
    /// If the first one breaks, continues in chunks. Returns false if the registry refuses it, as
    /// one may that requires the size.
    fn push_streamed(
        self: &Arc<Self>,
        mut upload: BlobUpload,
        blob: &UploadBlob<'_>,
        least_chunk: u64,
    ) -> ProblemResult<bool> {
        match self.send_all(&mut upload, blob.open, Some(blob.digest)) {
            Ok(()) => self.close(upload, blob)?,
            Err(problem) if is_too_large(&problem) || may_be_temporary(&problem) => {
                let has = self.state(&mut upload).unwrap_or(None);
                self.upload_in_chunks(blob, least_chunk, has.map(|has| (upload, has)))?;
            }
            Err(RegistryProblem::Status { .. }) => return Ok(false),
            Err(problem) => return Err(problem),
        }
        Ok(true)
    }

    /// Uploads a blob in one request while it grows. If that breaks, continues in chunks once the
    /// blob is complete.
    fn push_growing(self: &Arc<Self>, blob: &GrowingUpload<'_>) -> ProblemResult<(BlobDigest, u64)> {
        let StartedUpload { upload, least_chunk, .. } = self.start(None)?;
        let mut upload = upload.ok_or_else(|| self.invalid(ReplyFault::NoLocation))?;
        let sent = self.send_all(&mut upload, blob.open, None);
        if let Err(problem @ RegistryProblem::Local { .. }) = sent {
            // The upload is canceled at once, not when the blob is complete.
            return Err(problem);
        }
        let local = |source| RegistryProblem::Local { data: "the data to send", source };
        let (digest, size) = (blob.complete)().map_err(local)?;
        let whole = UploadBlob { digest, size, open: blob.open, mount_from: None, is_remote: false };
        match sent {
            Ok(()) => self.close(upload, &whole)?,
            Err(problem) if is_too_large(&problem) || may_be_temporary(&problem) => {
                let has = self.state(&mut upload)?;
                self.upload_in_chunks(&whole, least_chunk, has.map(|has| (upload, has)))?;
            }
            Err(problem) => return Err(problem),
        }
        Ok((digest, size))
    }

    /// Returns true if an object exists in the repository. `to` is its path below the repository.
    fn has(&self, to: &str, accept: &str) -> ProblemResult<bool> {
        let reply = self.call(&ApiRequest {
            method: "HEAD",
            to,
            headers: &[("accept", accept.to_string())],
            body: Body::None,
            scopes: &[self.scope("pull,push")],
            repetition: Repetition::Repeated,
        })?;
        // Any other answer leads to an upload. If that is refused, the answer contains a message.
        Ok(reply.status() == 200)
    }

    /// Starts an upload, or mounts the blob from another repository.
    fn start(self: &Arc<Self>, blob: Option<&UploadBlob<'_>>) -> ProblemResult<StartedUpload> {
        let mut scopes = vec![self.scope("pull,push")];
        let mount =
            blob.and_then(|blob| Some((blob, blob.mount_from?))).filter(|(_, from)| *from != self.endpoint.path);
        if let Some((blob, from)) = mount {
            let query = url::form([("mount", blob.digest.to_string().as_str()), ("from", from)]);
            scopes.push(format!("repository:{from}:pull"));
            let beginning = self.shared().begin_upload()?;
            let reply = self.post(&format!("/blobs/uploads/?{query}"), &scopes)?;
            if matches!(reply.status(), 201 | 202) {
                return self.started(&reply, beginning);
            }
            scopes.truncate(1);
        }
        let beginning = self.shared().begin_upload()?;
        let reply = self.post("/blobs/uploads/", &scopes)?;
        match reply.status() {
            200..300 => self.started(&reply, beginning),
            _ => {
                let request = RequestName::Upload { method: "POST" };
                Err(self.refused(reply, request, RemoteObject::Repository, RemoteAction::Push))
            }
        }
    }

    fn started(self: &Arc<Self>, reply: &HttpReply, beginning: UploadRequest) -> ProblemResult<StartedUpload> {
        let least_chunk = smallest_chunk(reply);
        if reply.status() == 201 {
            return Ok(StartedUpload { is_mounted: true, upload: None, least_chunk });
        }
        let upload = self.location(reply)?.map(|location| BlobUpload::new(self, location, beginning));
        Ok(StartedUpload { is_mounted: false, upload, least_chunk })
    }

    fn restart(self: &Arc<Self>) -> ProblemResult<BlobUpload> {
        self.start(None)?.upload.ok_or_else(|| self.invalid(ReplyFault::NoLocation))
    }

    fn post(&self, to: &str, scopes: &[String]) -> ProblemResult<HttpReply> {
        self.call(&ApiRequest {
            method: "POST",
            to,
            headers: &[],
            body: Body::Bytes(&[]),
            scopes,
            repetition: Repetition::Repeated,
        })
    }

    /// Returns the URL at which an upload continues; `None` if the reply does not contain one.
    fn location(&self, reply: &HttpReply) -> ProblemResult<Option<String>> {
        reply.header("location").map(|location| self.next(&reply.url, location)).transpose()
    }

    /// Uploads a blob in one request.
    fn upload(&self, location: &str, blob: &UploadBlob<'_>) -> ProblemResult<()> {
        let open = || (blob.open)(0);
        let reply = self.call(&ApiRequest {
            method: "PUT",
            to: &url::with_parameter(location, "digest", &blob.digest.to_string()),
            headers: &[("content-type", OCTETS.into())],
            body: Body::Stream { open: &open, length: BodyLength::Known(blob.size) },
            scopes: &[self.scope("pull,push")],
            repetition: Repetition::Single,
        })?;
        self.closed(reply, blob)
    }

    fn closed(&self, reply: HttpReply, blob: &UploadBlob<'_>) -> ProblemResult<()> {
        match reply.status() {
            200..300 => Ok(()),
            _ => {
                let request = RequestName::Blob { method: "PUT", digest: blob.digest };
                Err(self.refused(reply, request, RemoteObject::Upload, RemoteAction::Push))
            }
        }
    }

    /// Uploads a blob in chunks. After a failure, resumes at the offset that the registry reports.
    /// `begun` is an upload that has begun, and its offset.
    fn upload_in_chunks(
        self: &Arc<Self>,
        blob: &UploadBlob<'_>,
        least: u64,
        begun: Option<(BlobUpload, u64)>,
    ) -> ProblemResult<()> {
        let mut attempts = self.shared().attempts(EndpointRole::Registry);
        let (mut upload, mut at) = begun.filter(|(_, has)| *has <= blob.size).map_or_else(|| self.fresh(), Ok)?;
        let mut chunk = CHUNK.max(least);
        let mut furthest = 0;
        while at < blob.size {
            let end = (at + chunk).min(blob.size);
            let problem = match upload.send(|location| self.patch(location, blob, at, end)) {
                Ok(()) => {
                    at = end;
                    // A registry that reports fewer bytes than before has made no progress.
                    if at > furthest {
                        furthest = at;
                        attempts.reset();
                    }
                    continue;
                }
                Err(problem) => problem,
            };
            if is_too_large(&problem) && chunk / 2 >= SMALLEST.max(least) {
                chunk /= 2;
            } else {
                let Some(wait) = attempts.after(&problem) else { return Err(problem) };
                self.shared().wait(&self.endpoint.host, sentence(&problem), wait);
            }
            // A chunk is sent again only after a query of the upload state, because some registries
            // would append it twice.
            match self.state(&mut upload)? {
                Some(has) if has > end => {
                    return Err(self.invalid(ReplyFault::UploadTooLong { received: has, sent: end }));
                }
                Some(has) => at = has,
                None => (upload, at) = self.fresh()?,
            }
        }
        self.close(upload, blob)
    }

    /// Starts another upload. Returns it with its offset.
    fn fresh(self: &Arc<Self>) -> ProblemResult<(BlobUpload, u64)> {
        Ok((self.restart()?, 0))
    }

    /// Ends an upload whose bytes the registry has. If the answer is lost, the registry may have
    /// the blob all the same.
    fn close(&self, mut upload: BlobUpload, blob: &UploadBlob<'_>) -> ProblemResult<()> {
        let mut attempts = self.shared().attempts(EndpointRole::Registry);
        loop {
            let put = |location: &str| {
                let reply = self.call(&ApiRequest {
                    method: "PUT",
                    to: &url::with_parameter(location, "digest", &blob.digest.to_string()),
                    headers: &[],
                    body: Body::Bytes(&[]),
                    scopes: &[self.scope("pull,push")],
                    repetition: Repetition::Single,
                })?;
                self.closed(reply, blob).map(|()| location.to_string())
            };
            let Err(problem) = upload.send(put) else { break };
            let Some(wait) = attempts.after(&problem) else { return Err(problem) };
            self.shared().wait(&self.endpoint.host, sentence(&problem), wait);
            if self.has(&format!("/blobs/{}", blob.digest), "*/*")? {
                break;
            }
        }
        upload.complete();
        Ok(())
    }

    /// Uploads the bytes from `at` up to `end`; returns the next location.
    fn patch(&self, location: &str, blob: &UploadBlob<'_>, at: u64, end: u64) -> ProblemResult<String> {
        let open = || Ok(Box::new((blob.open)(at)?.take(end - at)) as Box<dyn Read>);
        let call = ApiRequest {
            method: "PATCH",
            to: location,
            headers: &[("content-type", OCTETS.into()), ("content-range", format!("{at}-{}", end - 1))],
            body: Body::Stream { open: &open, length: BodyLength::Known(end - at) },
            scopes: &[self.scope("pull,push")],
            repetition: Repetition::Single,
        };
        self.patched(&call, Some(blob.digest))
    }

    /// Uploads all bytes of a blob, whose digest may be unknown. If they end early, the request
    /// ends with them, and fails after the upload has moved on: it can be canceled.
    fn send_all(&self, upload: &mut BlobUpload, source: OpenAt<'_>, digest: Option<BlobDigest>) -> ProblemResult<()> {
        let failure = Cell::new(None);
        let sent = upload.send(|location| {
            let call = ApiRequest {
                method: "PATCH",
                to: location,
                headers: &[("content-type", OCTETS.into())],
                body: Body::Stream { open: &|| source(0), length: BodyLength::Open(&failure) },
                scopes: &[self.scope("pull,push")],
                repetition: Repetition::Single,
            };
            self.patched(&call, digest)
        });
        match failure.take() {
            Some(source) => Err(RegistryProblem::Local { data: "the data to send", source }),
            None => sent,
        }
    }

    /// Sends a request with bytes of a blob, whose digest may be unknown. Returns the next
    /// location.
    fn patched(&self, call: &ApiRequest<'_>, digest: Option<BlobDigest>) -> ProblemResult<String> {
        let reply = self.call(call)?;
        match (reply.status(), self.location(&reply)?) {
            (200..300, Some(next)) => Ok(next),
            (200..300, None) => Ok(call.to.to_string()),
            _ => {
                let method = "PATCH";
                let request =
                    digest.map_or(RequestName::Upload { method }, |digest| RequestName::Blob { method, digest });
                Err(self.refused(reply, request, RemoteObject::Upload, RemoteAction::Push))
            }
        }
    }

    /// Queries the progress of an upload: its size in bytes; `None` if it no longer exists, or if
    /// its size is not known.
    fn state(&self, upload: &mut BlobUpload) -> ProblemResult<Option<u64>> {
        let reply = self.call(&ApiRequest {
            method: "GET",
            to: upload.location(),
            headers: &[],
            body: Body::None,
            scopes: &[self.scope("pull,push")],
            repetition: Repetition::Repeated,
        })?;
        if is_temporary_status(reply.status()) {
            let request = RequestName::Upload { method: "GET" };
            return Err(self.refused(reply, request, RemoteObject::Upload, RemoteAction::Push));
        }
        if !(200..300).contains(&reply.status()) {
            return Ok(None);
        }
        let end = reply.header("range").and_then(|range| range.rsplit_once('-')?.1.trim().parse::<u64>().ok());
        if let Some(next) = self.location(&reply)? {
            upload.move_to(next);
        }
        // `0-0` is also the answer for an upload without bytes.
        Ok(end.filter(|end| *end > 0).and_then(|end| end.checked_add(1)))
    }
}

/// The answer to the request for an upload.
struct StartedUpload {
    /// True if the registry mounted the blob from another repository.
    is_mounted: bool,
    /// The upload, if the reply has its location.
    upload: Option<BlobUpload>,
    /// Size in bytes of the smallest chunk that the registry accepts, except the last one.
    least_chunk: u64,
}

fn is_too_large(problem: &RegistryProblem) -> bool {
    matches!(problem, RegistryProblem::Status { status: 413, .. })
}

/// Returns the size in bytes of the smallest chunk that the registry accepts, except the last one.
fn smallest_chunk(reply: &HttpReply) -> u64 {
    reply.header("oci-chunk-min-length").and_then(|length| length.trim().parse().ok()).unwrap_or(0).min(1 << 30)
}

impl Endpoint {
    /// Returns true if blobs can be mounted from a repository with this name.
    pub(crate) fn is_at(&self, registry: &str) -> bool {
        self.host == registry || registry == "docker.io" && self.host == "registry-1.docker.io"
    }
}

impl Repository {
    /// Returns true if pushes of this repository and pulls of another one go to the same registry.
    pub fn may_mount_from(&self, registry: &str) -> bool {
        self.sessions.iter().any(|session| session.endpoint.operations.push && session.endpoint.is_at(registry))
    }
}
