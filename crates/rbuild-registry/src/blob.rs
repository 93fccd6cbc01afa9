//! Download of blobs, which is resumed after the connection broke.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;
use ureq::BodyReader;

use crate::blob_connections::CountedConnection;
use crate::blob_request::{BlobRequest, OpenRange, host_of};
use crate::client::Repository;
use crate::config_error::{ConfigError, EndpointUse};
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryError, RegistryProblem, VerifiedContent};
use crate::range_policy::RangePolicy;
use crate::ranges::{Ranges, RangesFailed};
use crate::reply_fault::ReplyFault;
use crate::retry::Attempts;
use crate::retry_policy::RetryMode;
use crate::session::EndpointSession;
use crate::stall::StallDetector;
use crate::url;

/// Maximum number of URLs of a layer that are tried.
const MAX_URLS: usize = 8;
/// Progress in bytes after which earlier failures no longer count.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob. Reading ends after `size` bytes or fails; the caller verifies the digest.
/// The error of a failed read carries a [`RegistryError`] (`rbuild_linux::into_carried`).
///
/// A large blob is requested in ranges. As long as one connection is slow, and others are free, the
/// ranges are requested over several.
pub struct BlobReader<'a> {
    repository: &'a Repository,
    sessions: Vec<&'a Arc<EndpointSession>>,
    /// URLs that are tried before the endpoints. While one sends the blob, it is the first.
    urls: Vec<String>,
    /// The same, with those that have failed.
    stated_urls: Vec<String>,
    request: BlobRequest,
    range_policy: RangePolicy,
    incoming: Option<BlobStream>,
    /// The URL or the endpoint of what is open.
    source: String,
    /// The sources of the bytes that were read, in order.
    contributors: Vec<String>,
    /// Counts the first connection, once there is one.
    connection: Option<CountedConnection>,
    pace: ConnectionRate,
    retry_mode: RetryMode,
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
            session.endpoint.operations.digests && !has_only_wrong(repository, digest, session)
        };
        let sessions: Vec<&Arc<EndpointSession>> = repository.sessions.iter().filter(usable).collect();
        let shared = repository.sessions.first().map(|session| session.shared());
        let retry_policy = shared.map(|shared| shared.http.retry_policy()).unwrap_or_default();
        let retry_mode = repository.sessions.first().map(|session| session.retry_mode()).unwrap_or_default();
        BlobReader {
            repository,
            sessions,
            urls: Vec::new(),
            stated_urls: Vec::new(),
            request: BlobRequest { digest: *digest, at: 0, size },
            range_policy: shared.map(|shared| shared.options.ranges).unwrap_or_default(),
            incoming: None,
            source: String::new(),
            contributors: Vec::new(),
            connection: None,
            pace: ConnectionRate::Unknown,
            retry_mode,
            attempts: Attempts::new(retry_policy, EndpointRole::Registry).in_mode(retry_mode),
            failed_at: 0,
            stall: StallDetector::new(retry_policy.idle),
        }
    }

    /// Returns the reader with URLs that are tried before the endpoints, each once: those that a
    /// manifest states for a layer that must not be distributed. The first few are used. URLs with
    /// logins are ignored, and so are those of plain HTTP unless the registry itself is contacted
    /// in that way.
    pub fn with_urls(mut self, urls: &[String]) -> BlobReader<'a> {
        let is_usable =
            |url: &&String| url::split(url).is_some() && self.repository.faults(&self.request.digest, url) == 0;
        let stated = urls.iter().take(MAX_URLS);
        self.urls = stated.clone().filter(is_usable).cloned().collect();
        self.stated_urls = stated.cloned().collect();
        self
    }

    /// Returns the session whose settings apply to URLs: that of the registry, because a mirror may
    /// permit servers that the registry does not.
    fn registry(&self) -> Option<&'a Arc<EndpointSession>> {
        self.repository.sessions.iter().rfind(|session| session.endpoint.role == EndpointRole::Registry)
    }
}

impl BlobReader<'_> {
    /// Continues at a position, counted in bytes from the beginning. Endpoints that sent the blob
    /// with a wrong digest too often are skipped.
    pub fn start_at(&mut self, at: u64) {
        self.incoming = None;
        (self.request.at, self.failed_at) = (at, at);
        if at == 0 {
            self.contributors.clear();
            let (repository, digest) = (self.repository, self.request.digest);
            let is_usable = |session: &&Arc<EndpointSession>| !has_only_wrong(repository, &digest, session);
            if self.sessions.iter().any(is_usable) {
                self.sessions.retain(is_usable);
            }
        }
    }

    /// Records that the blob has the wrong digest `found`. Returns true if it should be read again:
    /// the endpoint may send it once more, or there is another one.
    pub fn note_wrong(&self, found: &BlobDigest) -> bool {
        let digest = &self.request.digest;
        let Some((last, earlier)) = self.contributors.split_last() else { return false };
        if !earlier.is_empty() {
            // The last source sent the rest of the blob of another one.
            for source in earlier {
                self.repository.note_fault(digest, source, None);
            }
            return true;
        }
        let times = self.repository.note_fault(digest, last, Some(self.wrong_blob(*found)));
        !self.urls.is_empty() || times < wrong_blobs(self.retry_mode) || self.sessions.len() > 1
    }

    /// Returns the error for a blob with another digest.
    pub fn wrong_digest(&self, found: BlobDigest) -> RegistryError {
        self.error(self.wrong_blob(found))
    }

    fn wrong_blob(&self, found: BlobDigest) -> RegistryProblem {
        let (host, wanted) = (self.host().to_string(), self.request.digest);
        RegistryProblem::Digest { host, content: VerifiedContent::Blob, wanted, found }
    }

    /// Returns the host that sends the blob.
    fn host(&self) -> &str {
        match (self.urls.first(), self.sessions.first()) {
            (Some(url), _) => host_of(url),
            (None, Some(session)) => &session.endpoint.host,
            (None, None) => "",
        }
    }

    /// Opens the rest of the blob at the first URL that has it. Returns false if none has.
    fn open_elsewhere(&mut self) -> bool {
        while let Some(url) = self.urls.first().cloned() {
            let Some(session) = self.registry() else {
                self.urls.clear();
                break;
            };
            match self.request.open_elsewhere(session, &url) {
                Ok(OpenRange { body, end, .. }) => {
                    self.stall = StallDetector::new(session.shared().http.retry_policy().idle);
                    self.pace = ConnectionRate::OneConnection;
                    self.incoming = Some(BlobStream::Body { body, end, read: (0, Duration::ZERO), redirected: None });
                    self.source = url;
                    return true;
                }
                Err(problem) => self.skip_url(problem),
            }
        }
        false
    }

    /// Skips the first URL, which failed. It is not tried for this blob again.
    fn skip_url(&mut self, problem: RegistryProblem) {
        let url = self.urls.remove(0);
        let (shown, reason) = (url::without_query(&url), sentence(&problem));
        tracing::debug!(target: "registry", url = shown, reason, "the URL of a layer failed");
        self.repository.note_fault(&self.request.digest, &url, Some(problem));
        self.pace = ConnectionRate::Unknown;
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
            let range_policy = self.range_policy;
            let is_large = size - at >= range_policy.large && !matches!(self.pace, ConnectionRate::OneConnection);
            if let ConnectionRate::Slow(redirected) = &self.pace
                && is_large
                && let Some(ranges) = Ranges::start(session, digest, at, size, redirected.clone())
            {
                self.source = session.source();
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
                    self.source = session.source();
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
                self.pace = if rate >= self.range_policy.fast as f64 {
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
                    Ok(0) => Err(self.request.ended(self.host(), at)),
                    Ok(n) => {
                        *read = (read.0 + n as u64, read.1 + started.elapsed());
                        Ok(Some(n))
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
                    Err(e) => Err(self.request.broken(self.host(), at, e)),
                }
            }
        }
    }

    /// Handles a broken connection: waits before the next one, or gives up. A URL is not tried
    /// again.
    fn broken(&mut self, problem: RegistryProblem) -> io::Result<()> {
        self.incoming = None;
        if !self.urls.is_empty() {
            self.skip_url(problem);
            return Ok(());
        }
        let at = self.request.at;
        if at - self.failed_at >= PROGRESS {
            self.attempts.reset();
        }
        self.failed_at = at;
        let wait = self.attempts.after(&problem);
        match (wait, self.sessions.first()) {
            (Some(wait), Some(session)) => {
                session.shared().wait(&session.endpoint.host, sentence(&problem), wait);
                Ok(())
            }
            _ => Err(self.failed(problem)),
        }
    }

    fn failed(&self, problem: RegistryProblem) -> io::Error {
        io::Error::other(self.error(problem))
    }

    /// Returns the error of the blob: the problem of the server where the request got furthest, and
    /// that of a URL, if one was tried.
    fn error(&self, problem: RegistryProblem) -> RegistryError {
        let digest = &self.request.digest;
        let mut furthest = match problem {
            RegistryProblem::Repeated(problem) => *problem,
            problem => problem,
        };
        for session in &self.repository.sessions {
            let is_unused = matches!(furthest, RegistryProblem::Config(ConfigError::NoEndpoint(_)));
            if let Some(earlier) = self.repository.take_problem(digest, &session.source())
                && (is_unused || earlier.reach() > furthest.reach())
            {
                furthest = earlier;
            }
        }
        let failed_url = |url: &String| Some((host_of(url).to_string(), self.repository.take_problem(digest, url)?));
        let problem = match self.stated_urls.iter().find_map(failed_url) {
            Some((host, problem)) => {
                let reason = sentence(&problem);
                RegistryProblem::ForeignUrl { host, reason, registry: Box::new(furthest) }
            }
            None => furthest,
        };
        self.repository.fail(problem)
    }

    /// Fails if the server sends more than the blob, unless there is another one: then the digest
    /// of the blob decides.
    fn check_end(&mut self) -> io::Result<()> {
        if let Some(BlobStream::Body { mut body, .. }) = self.incoming.take()
            && matches!(body.read(&mut [0]), Ok(1))
            && self.urls.is_empty()
            && self.sessions.len() <= 1
        {
            let BlobRequest { digest, size, .. } = self.request;
            return Err(self.failed(ReplyFault::BlobTooLong { digest, size }.of(self.host())));
        }
        Ok(())
    }
}

/// Number of times that an endpoint may send a blob with a wrong digest.
fn wrong_blobs(mode: RetryMode) -> usize {
    match mode {
        RetryMode::Standard => 2,
        RetryMode::Quick => 1,
    }
}
/// Returns true if an endpoint sent a blob with a wrong digest as often as it may.
fn has_only_wrong(repository: &Repository, digest: &BlobDigest, session: &EndpointSession) -> bool {
    repository.faults(digest, &session.source()) >= wrong_blobs(session.retry_mode())
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
                    if self.contributors.last() != Some(&self.source) {
                        self.contributors.push(self.source.clone());
                    }
                    if !self.stall.progresses(n as u64) && self.request.at < self.request.size {
                        let interruption = self.stall.interruption();
                        self.broken(self.request.interrupted(self.host(), self.request.at, interruption))?;
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
