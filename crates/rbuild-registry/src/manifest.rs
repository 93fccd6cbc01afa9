//! Manifests and indexes.

use rbuild_image::{BlobDigest, Checksum};
use rbuild_remedy::sentence;
use serde_json::{Map, Value};

use crate::blob::BlobReader;
use crate::client::Repository;
use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction, RemoteObject, Result, VerifiedContent};
use crate::http::HttpReply;
use crate::interruption::Interruption;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::repeated;
use crate::retry_policy::RetryMode;
use crate::session::{ApiRequest, Body, EndpointSession, Repetition};
use crate::stall::read_document;

/// Maximum size of a manifest in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Media types that are requested. Without this header, some registries convert manifests or answer
/// that there is none.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// A manifest or index as it was received.
#[derive(Debug, Clone)]
pub struct ReceivedManifest {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: BlobDigest,
    /// Media type without parameters.
    pub media_type: String,
}

impl ReceivedManifest {
    /// Returns true for a list of manifests.
    pub fn is_index(&self) -> bool {
        INDEXES.contains(&self.media_type.as_str())
    }
}

/// Resolution of a tag.
#[derive(Debug, Clone)]
pub enum ResolvedTag {
    /// Only the digest.
    Digest(BlobDigest),
    /// The manifest, because the registry does not report the digest alone.
    Manifest(ReceivedManifest),
}

impl Repository {
    /// Returns the reader of a blob. Connects on the first read.
    pub fn blob(&self, digest: &BlobDigest, size: u64) -> BlobReader<'_> {
        BlobReader::new(self, digest, size)
    }

    /// Returns the digest of a tag: with a single HEAD request if the registry supports that.
    ///
    /// # Errors
    ///
    /// Fails if no endpoint has the tag.
    pub fn resolve(&self, tag: &str) -> Result<ResolvedTag> {
        self.first(|endpoint| endpoint.operations.tags, |session| resolve(session, tag))
    }

    /// Returns the digest of a tag as [`Repository::resolve`] does; `None` if there is none, which
    /// takes a single request, too.
    ///
    /// # Errors
    ///
    /// Fails if the registry fails or refuses.
    pub fn find(&self, tag: &str) -> Result<Option<ResolvedTag>> {
        match self.first(|endpoint| endpoint.operations.tags, |session| find(session, tag)) {
            Ok(found) => Ok(Some(found)),
            Err(e) if matches!(&*e.problem, RegistryProblem::Missing { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the manifest or index with that tag.
    ///
    /// # Errors
    ///
    /// Fails if no endpoint has it, or if it is not a manifest.
    pub fn tagged(&self, tag: &str) -> Result<ReceivedManifest> {
        self.first(|endpoint| endpoint.operations.tags, |session| get(session, tag, None))
    }

    /// Returns the manifest or index with that digest of another algorithm than SHA-256.
    ///
    /// # Errors
    ///
    /// Fails if no endpoint has it.
    pub fn checked(&self, checksum: &Checksum) -> Result<ReceivedManifest> {
        self.first(|endpoint| endpoint.operations.digests, |session| checked(session, checksum))
    }

    /// Returns the manifest or index with that digest.
    ///
    /// # Errors
    ///
    /// Fails if no endpoint has it.
    pub fn document(&self, digest: &BlobDigest) -> Result<ReceivedManifest> {
        self.first(|endpoint| endpoint.operations.digests, |session| get(session, &digest.to_string(), Some(digest)))
    }
}

/// Returns the manifest or index with that checksum at one endpoint.
fn checked(session: &EndpointSession, checksum: &Checksum) -> std::result::Result<ReceivedManifest, RegistryProblem> {
    let reference = checksum.to_string();
    let found = get(session, &reference, None)?;
    let actual = Checksum::of(checksum.algorithm(), &found.bytes);
    if actual == *checksum {
        Ok(found)
    } else {
        Err(session.invalid(ReplyFault::OtherChecksum { reference: &reference, found: &actual.to_string() }))
    }
}

/// Returns the digest of a tag at one endpoint as [`resolve`] does, but asks for no reason if there
/// is none.
pub(crate) fn find(session: &EndpointSession, tag: &str) -> std::result::Result<ResolvedTag, RegistryProblem> {
    let reply = ask(session, "HEAD", tag)?;
    let digest = reply.header("docker-content-digest").and_then(|digest| digest.parse().ok());
    match (reply.status(), digest) {
        (200, Some(digest)) => Ok(ResolvedTag::Digest(digest)),
        (404, _) => {
            let request = RequestName::Manifest { method: "HEAD", reference: tag };
            let object = RemoteObject::Manifest(tag.to_string());
            Err(session.refused(reply, request, object, RemoteAction::Pull))
        }
        _ => get(session, tag, None).map(ResolvedTag::Manifest),
    }
}

/// Returns the digest of a tag at one endpoint.
pub(crate) fn resolve(session: &EndpointSession, tag: &str) -> std::result::Result<ResolvedTag, RegistryProblem> {
    let reply = ask(session, "HEAD", tag)?;
    let digest = reply.header("docker-content-digest").and_then(|digest| digest.parse().ok());
    match (reply.status(), digest) {
        (200, Some(digest)) => Ok(ResolvedTag::Digest(digest)),
        // The answer to HEAD contains no text with the reason.
        _ => get(session, tag, None).map(ResolvedTag::Manifest),
    }
}

fn ask(
    session: &EndpointSession,
    method: &'static str,
    reference: &str,
) -> std::result::Result<HttpReply, RegistryProblem> {
    session.call(&ApiRequest {
        method,
        to: &format!("/manifests/{reference}"),
        headers: &[("accept", ACCEPT.to_string())],
        body: Body::None,
        scopes: &[session.scope("pull")],
        repetition: Repetition::Repeated,
    })
}

/// Returns the manifest or index with that tag or digest at an endpoint.
pub(crate) fn get(
    session: &EndpointSession,
    reference: &str,
    wanted: Option<&BlobDigest>,
) -> std::result::Result<ReceivedManifest, RegistryProblem> {
    let shared = session.shared();
    let mut attempts = session.attempts();
    let mut wrong = 0;
    loop {
        let reply = ask(session, "GET", reference)?;
        if reply.status() != 200 {
            let request = RequestName::Manifest { method: "GET", reference };
            let object = RemoteObject::Manifest(reference.to_string());
            return Err(session.refused(reply, request, object, RemoteAction::Pull));
        }
        let content_type = reply.header("content-type").unwrap_or("").split(';').next().unwrap_or("").trim();
        let content_type = content_type.to_string();
        let read = read_document(reply.response.into_body().into_reader(), MAX_MANIFEST, shared.http.retry_policy());
        // The connection may break within the body, or the body may be damaged in transit. A wrong
        // digest is retried without waiting.
        let problem = match read {
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return Err(repeated(broken(session, reference, e))),
            Err(e) => broken(session, reference, e),
            Ok(bytes) if bytes.len() as u64 > MAX_MANIFEST => {
                return Err(session.invalid(ReplyFault::ManifestTooLarge { reference, mebibytes: MAX_MANIFEST >> 20 }));
            }
            Ok(bytes) => {
                let found = BlobDigest::of(&bytes);
                let Some(wanted) = wanted.filter(|wanted| **wanted != found) else {
                    return document(session, bytes, found, content_type, reference);
                };
                wrong += 1;
                if wrong < wrong_digests(session.retry_mode()) {
                    continue;
                }
                let host = session.endpoint.host.clone();
                return Err(RegistryProblem::Digest {
                    host,
                    content: VerifiedContent::Manifest,
                    wanted: *wanted,
                    found,
                });
            }
        };
        match attempts.next(None) {
            Some(wait) => shared.wait(&session.endpoint.host, sentence(&problem), wait),
            None => return Err(repeated(problem)),
        }
    }
}

/// Number of manifests with a wrong digest after which a request fails.
fn wrong_digests(mode: RetryMode) -> u32 {
    match mode {
        RetryMode::Standard => 3,
        RetryMode::Quick => 1,
    }
}

/// Returns the problem of a body that could not be read to its end.
fn broken(session: &EndpointSession, reference: &str, e: std::io::Error) -> RegistryProblem {
    let request = RequestName::Manifest { method: "GET", reference }.to_string();
    RegistryProblem::Connection {
        host: session.endpoint.host.clone(),
        request,
        kind: ConnectionFailure::Transport,
        source: Interruption::of_read(e, Interruption::BrokenOff).into(),
    }
}

/// Checks that the bytes are a manifest or an index. The media type in the document takes
/// precedence over that in the header.
fn document(
    session: &EndpointSession,
    bytes: Vec<u8>,
    digest: BlobDigest,
    content_type: String,
    reference: &str,
) -> std::result::Result<ReceivedManifest, RegistryProblem> {
    let known = |media_type: &str| INDEXES.contains(&media_type) || MANIFESTS.contains(&media_type);
    let head: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|_| session.invalid(ReplyFault::ManifestNotJson(reference)))?;
    let lists = head.get("manifests").is_some_and(Value::is_array);
    if head.get("schemaVersion").and_then(Value::as_u64) == Some(1)
        || content_type.starts_with("application/vnd.docker.distribution.manifest.v1")
    {
        let problem = format!("manifest {reference} uses Docker's schema 1, which is obsolete");
        return Err(RegistryProblem::Unsupported(problem));
    }
    let declared = head.get("mediaType").and_then(Value::as_str).filter(|media_type| !media_type.is_empty());
    let media_type = match declared {
        Some(declared) => declared.to_string(),
        None if known(&content_type) => content_type,
        None if lists => INDEXES[0].to_string(),
        None => MANIFESTS[0].to_string(),
    };
    if !known(&media_type) {
        let media_type = session.shared().http.sent.hidden_in(&media_type);
        return Err(RegistryProblem::Unsupported(format!(
            "manifest {reference} has type {media_type}, which is not an image"
        )));
    }
    if INDEXES.contains(&media_type.as_str()) != lists {
        return Err(session.invalid(ReplyFault::OtherDocument { reference, media_type: &media_type }));
    }
    Ok(ReceivedManifest { bytes, digest, media_type })
}
