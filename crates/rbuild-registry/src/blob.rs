//! Download of blobs, which is resumed after the connection broke.

use std::io::{self, Read};

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;
use ureq::BodyReader;

use crate::client::Repository;
use crate::config_error::{ConfigError, EndpointUse};
use crate::error::{
    Broken, RegistryError, RegistryProblem, RemoteAction, RemoteObject, RemoteRepository, VerifiedContent,
};
use crate::flow::{Flow, Watched};
use crate::http::connection;
use crate::interruption::Interruption;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::{Attempts, may_be_temporary};
use crate::session::{ApiRequest, Body, EndpointSession};

/// Progress in bytes after which earlier failures no longer count.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob. Reading ends after `size` bytes or fails; the read that returns the last
/// byte verifies the digest. The error of a failed read carries a [`RegistryError`]
/// (`rbuild_linux::into_carried`).
pub struct BlobReader<'a> {
    sessions: Vec<&'a EndpointSession>,
    place: RemoteRepository,
    digest: BlobDigest,
    size: u64,
    at: u64,
    body: Option<BodyReader<'static>>,
    attempts: Attempts,
    /// Position of the last failure.
    failed_at: u64,
    flow: Flow,
}

impl<'a> BlobReader<'a> {
    /// Returns the reader of a blob of a repository. Connects on the first read.
    pub(crate) fn new(repository: &'a Repository, digest: &BlobDigest, size: u64) -> BlobReader<'a> {
        let sessions: Vec<&EndpointSession> =
            repository.sessions.iter().filter(|session| session.endpoint.digests).collect();
        let retry_policy = repository.sessions.first().map(|s| s.shared().http.retry_policy()).unwrap_or_default();
        BlobReader {
            sessions,
            place: repository.place.clone(),
            digest: *digest,
            size,
            at: 0,
            body: None,
            attempts: Attempts::new(retry_policy, false),
            failed_at: 0,
            flow: Flow::new(retry_policy.idle),
        }
    }
}

impl BlobReader<'_> {
    /// Continues at a position, counted in bytes from the beginning.
    pub fn start_at(&mut self, at: u64) {
        self.body = None;
        (self.at, self.failed_at) = (at, at);
    }

    /// Returns the error for a blob with another digest.
    pub fn wrong_digest(&self, found: BlobDigest) -> RegistryError {
        let host = self.sessions.first().map_or_else(String::new, |session| session.endpoint.host.clone());
        let problem = RegistryProblem::Digest { host, content: VerifiedContent::Blob, wanted: self.digest, found };
        RegistryError::new(self.place.clone(), problem)
    }

    /// Opens the rest of the blob at the first endpoint that has it. From then on, only this
    /// endpoint is used.
    fn open(&mut self) -> Result<(), RegistryProblem> {
        let mut furthest: Option<RegistryProblem> = None;
        for (i, session) in self.sessions.iter().enumerate() {
            match open_at(session, &self.digest, self.at, self.size) {
                Ok(body) => {
                    self.body = Some(body);
                    self.flow = Flow::new(session.shared().http.retry_policy().idle);
                    self.sessions.drain(..i);
                    return Ok(());
                }
                Err(problem) => {
                    if furthest.as_ref().is_none_or(|old| old.reach() <= problem.reach()) {
                        furthest = Some(problem);
                    }
                }
            }
        }
        Err(furthest.unwrap_or_else(|| ConfigError::NoEndpoint(EndpointUse::Blobs).into()))
    }

    /// Handles a broken connection: waits before the next one, or gives up.
    fn broken(&mut self, problem: RegistryProblem) -> io::Result<()> {
        self.body = None;
        if self.at - self.failed_at >= PROGRESS {
            self.attempts.reset();
        }
        self.failed_at = self.at;
        let wait = if may_be_temporary(&problem) { self.attempts.next(None) } else { None };
        match (wait, self.sessions.first()) {
            (Some(wait), Some(session)) => {
                session.shared().wait(&session.endpoint.host, sentence(&problem), wait);
                Ok(())
            }
            _ => Err(self.failed(problem)),
        }
    }

    fn failed(&self, problem: RegistryProblem) -> io::Error {
        io::Error::other(RegistryError::new(self.place.clone(), problem))
    }

    fn line(&self, source: Interruption) -> RegistryProblem {
        let host = self.sessions.first().map_or_else(String::new, |session| session.endpoint.host.clone());
        let request = RequestName::BlobFrom { digest: self.digest, at: self.at, size: self.size }.to_string();
        RegistryProblem::Connection { host, request, kind: Broken::Line, source: source.into() }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.at < self.size {
            let Some(body) = &mut self.body else {
                if let Err(problem) = self.open() {
                    // Failed attempts to open the blob have already been retried.
                    return Err(self.failed(problem));
                }
                continue;
            };
            let most = buf.len().min((self.size - self.at).try_into().unwrap_or(usize::MAX));
            match body.read(&mut buf[..most]) {
                Ok(0) => {
                    let problem = self.line(Interruption::Ended { left: self.size - self.at });
                    self.broken(problem)?;
                }
                Ok(n) => {
                    self.at += n as u64;
                    if !self.flow.moves(n as u64) && self.at < self.size {
                        let problem = self.line(self.flow.reason());
                        self.broken(problem)?;
                    }
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let left = self.size - self.at;
                    let problem = self.line(Interruption::of_read(e, |source| Interruption::Broken { left, source }));
                    self.broken(problem)?;
                }
            }
        }
        if let Some(mut body) = self.body.take() {
            let mut more = [0];
            if matches!(body.read(&mut more), Ok(1)) {
                let host = self.sessions.first().map_or("", |session| &session.endpoint.host);
                let fault = ReplyFault::BlobTooLong { digest: self.digest, size: self.size };
                return Err(self.failed(fault.of(host)));
            }
        }
        Ok(0)
    }
}

/// Opens a blob at a position.
fn open_at(
    session: &EndpointSession,
    digest: &BlobDigest,
    at: u64,
    size: u64,
) -> Result<BodyReader<'static>, RegistryProblem> {
    let mut headers = vec![("accept", "*/*".to_string())];
    if at > 0 {
        headers.push(("range", format!("bytes={at}-")));
    }
    let call = ApiRequest {
        method: "GET",
        to: &format!("/blobs/{digest}"),
        headers: &headers,
        body: Body::None,
        scopes: &[session.scope("pull")],
        repeat: true,
    };
    let reply = session.call(&call)?;
    let length = reply.response.body().content_length();
    let start = match reply.status() {
        200 => 0,
        206 => match reply.header("content-range").and_then(start_of) {
            Some(start) if start <= at => start,
            _ => {
                return Err(session.invalid(ReplyFault::OtherRange(*digest)));
            }
        },
        _ => {
            let request = RequestName::Blob { method: "GET", digest: *digest };
            return Err(session.refused(reply, request, RemoteObject::Blob(*digest), RemoteAction::Pull));
        }
    };
    // The server may announce any length, so the sum must not overflow.
    let whole = length.map(|length| start.saturating_add(length));
    if let Some(whole) = whole.filter(|whole| *whole != size) {
        return Err(session.invalid(ReplyFault::BlobSize { digest: *digest, found: whole, size }));
    }
    let url = reply.url.clone();
    let mut body = reply.response.into_body().into_with_config().limit(u64::MAX).reader();
    let retry_policy = session.shared().http.retry_policy();
    let skipped = io::copy(&mut Watched::new(&mut body, retry_policy.idle).take(at - start), &mut io::sink());
    match skipped {
        Ok(n) if n == at - start => Ok(body),
        other => {
            let e = other.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
            Err(connection(&session.endpoint.host, "GET", &url, ureq::Error::Io(e), retry_policy))
        }
    }
}

/// Returns the first byte of `bytes A-B/SIZE`.
fn start_of(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
