//! Download of blobs, which is resumed after the connection broke.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;
use ureq::BodyReader;

use crate::blob_connections::CountedConnection;
use crate::blob_request::{BlobRequest, OpenRange};
use crate::client::Repository;
use crate::config_error::{ConfigError, EndpointUse};
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryError, RegistryProblem, VerifiedContent};
use crate::ranges::{Ranges, RangesFailed};
use crate::reply_fault::ReplyFault;
use crate::retry::{Attempts, may_be_temporary};
use crate::session::EndpointSession;
use crate::stall::StallDetector;
use crate::url;

/// Number of times that an endpoint may send a blob with a wrong digest.
const WRONG_BLOBS: usize = 2;
/// Progress in bytes after which earlier failures no longer count.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob. Reading ends after `size` bytes or fails; the read that returns the last
/// byte verifies the digest. The error of a failed read carries a [`RegistryError`]
/// (`rbuild_linux::into_carried`).
///
/// A large blob is requested in ranges. As long as one connection is slow, and others are free, the
/// ranges are requested over several.
pub struct BlobReader<'a> {
    repository: &'a Repository,
    sessions: Vec<&'a Arc<EndpointSession>>,
    /// URLs that are tried before the endpoints.
    urls: Vec<String>,
    request: BlobRequest,
    incoming: Option<BlobStream>,
    /// Counts the first connection, once there is one.
    connection: Option<CountedConnection>,
    pace: ConnectionRate,
    attempts: Attempts,
    /// Position of the last failure.
    failed_at: u64,
    stall: StallDetector,
}

/// The source of the next bytes.
enum BlobStream {
    Body {
        body: BodyReader<'static>,
        /// Position of the end of its bytes.
        end: u64,
        /// Number of bytes that were read, and the time that reading them took.
        read: (u64, Duration),
        /// URL that the endpoint redirected to.
        redirected: Option<String>,
    },
    Ranges(Ranges),
}

/// Decides about the next request for a large blob.
enum ConnectionRate {
    /// The rate of one connection is not known.
    Unknown,
    /// The speed is low. The URL is the one that the endpoint redirected to.
    Slow(Option<String>),
    /// One connection is enough, or the only possible one.
    OneConnection,
}

impl<'a> BlobReader<'a> {
    /// Returns the reader of a blob of a repository. Connects on the first read.
    pub(crate) fn new(repository: &'a Repository, digest: &BlobDigest, size: u64) -> BlobReader<'a> {
        let usable = |session: &&Arc<EndpointSession>| {
            session.endpoint.operations.digests && repository.times_wrong(digest, &session.endpoint.host) < WRONG_BLOBS
        };
        let sessions: Vec<&Arc<EndpointSession>> = repository.sessions.iter().filter(usable).collect();
        let retry_policy = repository.sessions.first().map(|s| s.shared().http.retry_policy()).unwrap_or_default();
        BlobReader {
            repository,
            sessions,
            urls: Vec::new(),
            request: BlobRequest { digest: *digest, at: 0, size },
            incoming: None,
            connection: None,
            pace: ConnectionRate::Unknown,
            attempts: Attempts::new(retry_policy, EndpointRole::Registry),
            failed_at: 0,
            stall: StallDetector::new(retry_policy.idle),
        }
    }

    /// Returns the reader with URLs that are tried before the endpoints, each once: those that a
    /// manifest states for a layer that must not be distributed. URLs with logins are ignored, and
    /// so are those of plain HTTP unless the registry itself is contacted in that way.
    pub fn with_urls(mut self, urls: &[String]) -> BlobReader<'a> {
        let is_usable =
            |url: &&String| url::split(url).is_some() && self.repository.times_wrong(&self.request.digest, url) == 0;
        self.urls = urls.iter().filter(is_usable).cloned().collect();
        self
    }
}

impl BlobReader<'_> {
    /// Continues at a position, counted in bytes from the beginning.
    pub fn start_at(&mut self, at: u64) {
        self.incoming = None;
        (self.request.at, self.failed_at) = (at, at);
    }

    /// Records that the blob has a wrong digest. Returns true if it should be read again: the
    /// endpoint may send it once more, or there is another one.
    pub fn note_wrong(&self) -> bool {
        let digest = &self.request.digest;
        match (self.urls.first(), self.sessions.first()) {
            (Some(url), _) => {
                self.repository.note_wrong(digest, url);
                true
            }
            (None, Some(session)) => {
                self.repository.note_wrong(digest, &session.endpoint.host) < WRONG_BLOBS || self.sessions.len() > 1
            }
            (None, None) => false,
        }
    }

    /// Returns the error for a blob with another digest.
    pub fn wrong_digest(&self, found: BlobDigest) -> RegistryError {
        let host = self.sessions.first().map_or_else(String::new, |session| session.endpoint.host.clone());
        let problem =
            RegistryProblem::Digest { host, content: VerifiedContent::Blob, wanted: self.request.digest, found };
        self.repository.fail(problem)
    }

    /// Opens the rest of the blob at the first URL that has it. Returns false if none has.
    fn open_elsewhere(&mut self) -> bool {
        let Some(session) = self.sessions.first() else { return false };
        let shared = session.shared();
        while let Some(url) = self.urls.first() {
            match self.request.open_elsewhere(session, url) {
                Ok(OpenRange { body, end, .. }) => {
                    self.pace = ConnectionRate::OneConnection;
                    self.incoming = Some(BlobStream::Body { body, end, read: (0, Duration::ZERO), redirected: None });
                    self.stall = StallDetector::new(shared.http.retry_policy().idle);
                    return true;
                }
                Err(problem) => {
                    self.repository.note_wrong(&self.request.digest, url);
                    let (url, reason) = (url::without_query(url), sentence(&problem));
                    tracing::debug!(target: "registry", url, reason, "the URL of a layer failed");
                    self.urls.remove(0);
                }
            }
        }
        self.pace = ConnectionRate::Unknown;
        false
    }

    /// Opens the rest of the blob, or the next range, at the first endpoint that has it. From
    /// then on, only this endpoint is used.
    fn open(&mut self) -> Result<(), RegistryProblem> {
        if !self.urls.is_empty() && self.open_elsewhere() {
            return Ok(());
        }
        let BlobRequest { digest, at, size } = self.request;
        let mut furthest: Option<RegistryProblem> = None;
        for (i, session) in self.sessions.iter().enumerate() {
            let shared = session.shared();
            if self.connection.is_none() {
                self.connection = Some(shared.blob_connections.count());
            }
            let range_policy = shared.options.ranges;
            let is_large = size - at >= range_policy.large && !matches!(self.pace, ConnectionRate::OneConnection);
            if let ConnectionRate::Slow(redirected) = &self.pace
                && is_large
                && let Some(ranges) = Ranges::start(session, digest, at, size, redirected.clone())
            {
                self.incoming = Some(BlobStream::Ranges(ranges));
                self.stall = StallDetector::new(shared.http.retry_policy().idle);
                return Ok(());
            }
            match self.request.open(session, is_large.then(|| at + range_policy.measured.min(size - at))) {
                Ok(OpenRange { body, end, is_range, redirected }) => {
                    if !is_range {
                        self.pace = ConnectionRate::OneConnection;
                    }
                    self.incoming = Some(BlobStream::Body { body, end, read: (0, Duration::ZERO), redirected });
                    self.stall = StallDetector::new(shared.http.retry_policy().idle);
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

    /// Reads from what is open. Returns `None` if something else has to be opened.
    fn read_open(&mut self, buf: &mut [u8]) -> Result<Option<usize>, RegistryProblem> {
        let BlobRequest { at, size, .. } = self.request;
        let length = buf.len();
        let most = |end: u64| length.min((end - at).try_into().unwrap_or(usize::MAX));
        let Some(session) = self.sessions.first() else { return Ok(None) };
        match &mut self.incoming {
            None => Ok(None),
            Some(BlobStream::Ranges(ranges)) => match ranges.read(&mut buf[..most(size)]) {
                Ok(n) => Ok(Some(n)),
                Err(RangesFailed) => {
                    (self.pace, self.incoming) = (ConnectionRate::OneConnection, None);
                    Ok(None)
                }
            },
            Some(BlobStream::Body { body, end, read, redirected }) if at == *end => {
                // The end of the body returns the connection to the pool.
                let _ = body.read(&mut [0]);
                let (bytes, time) = *read;
                let rate = bytes as f64 / time.as_secs_f64();
                self.pace = if rate >= session.shared().options.ranges.fast as f64 {
                    ConnectionRate::OneConnection
                } else {
                    ConnectionRate::Slow(redirected.take())
                };
                self.incoming = None;
                Ok(None)
            }
            Some(BlobStream::Body { body, end, read, .. }) => {
                let started = Instant::now();
                match body.read(&mut buf[..most(*end)]) {
                    Ok(0) => Err(self.request.ended(session, at)),
                    Ok(n) => {
                        *read = (read.0 + n as u64, read.1 + started.elapsed());
                        Ok(Some(n))
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
                    Err(e) => Err(self.request.broken(session, at, e)),
                }
            }
        }
    }

    /// Handles a broken connection: waits before the next one, or gives up.
    fn broken(&mut self, problem: RegistryProblem) -> io::Result<()> {
        self.incoming = None;
        if !self.urls.is_empty() {
            self.urls.remove(0);
            return Ok(());
        }
        let at = self.request.at;
        if at - self.failed_at >= PROGRESS {
            self.attempts.reset();
        }
        self.failed_at = at;
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
        io::Error::other(self.repository.fail(problem))
    }

    /// Fails if the server sends more than the blob.
    fn check_end(&mut self) -> io::Result<()> {
        if let Some(BlobStream::Body { mut body, .. }) = self.incoming.take()
            && matches!(body.read(&mut [0]), Ok(1))
        {
            let BlobRequest { digest, size, .. } = self.request;
            let host = self.sessions.first().map_or("", |session| &session.endpoint.host);
            return Err(self.failed(ReplyFault::BlobTooLong { digest, size }.of(host)));
        }
        Ok(())
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.request.at < self.request.size {
            if self.incoming.is_none()
                && let Err(problem) = self.open()
            {
                // Failed attempts to open the blob have already been retried.
                return Err(self.failed(problem));
            }
            match self.read_open(buf) {
                Ok(Some(n)) => {
                    self.request.at += n as u64;
                    if !self.stall.progresses(n as u64) && self.request.at < self.request.size {
                        let stalled = self.sessions.first().map(|session| {
                            self.request.interrupted(session, self.request.at, self.stall.interruption())
                        });
                        stalled.map_or(Ok(()), |problem| self.broken(problem))?;
                    }
                    return Ok(n);
                }
                Ok(None) => {}
                Err(problem) => self.broken(problem)?,
            }
        }
        self.check_end()?;
        Ok(0)
    }
}
