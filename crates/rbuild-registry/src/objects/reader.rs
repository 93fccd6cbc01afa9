//! Download of objects whose digest is known, which is resumed after the connection broke.

use std::io::{self, Read};

use rbuild_image::BlobDigest;
use rbuild_remedy::sentence;
use ureq::BodyReader;

use crate::blob_request::{BlobRequest, ContentRange};
use crate::endpoint_modes::EndpointRole;
use crate::error::{RegistryError, RegistryProblem, RemoteRepository, VerifiedContent};
use crate::http::HttpReply;
use crate::reply_fault::ReplyFault;
use crate::retry::Attempts;
use crate::shared::ClientState;
use crate::stall::StallDetector;
use crate::time_limit::TimeLimit;

/// Progress in bytes after which earlier failures no longer count.
const PROGRESS: u64 = 1 << 20;
/// Number of times that an object may have a wrong digest.
const WRONG: u32 = 2;

/// The bytes of a blob that is an object, or a part of one. Reading ends after its size or fails;
/// the caller verifies the digest. The error of a failed read carries a [`RegistryError`].
pub struct ObjectReader<'a> {
    source: Box<dyn RangeSource + 'a>,
    /// Position of the blob in the object; `None` if the blob is the object.
    offset: Option<u64>,
    request: BlobRequest,
    body: Option<BodyReader<'static>>,
    attempts: Attempts,
    failed_at: u64,
    stall: StallDetector,
    wrong: std::cell::Cell<u32>,
}

/// An object that is read in ranges.
pub(crate) trait RangeSource {
    /// Requests the bytes of a range, or the whole object. Returns the reply if it is successful.
    fn request(&mut self, range: Option<String>) -> Result<HttpReply, RegistryProblem>;

    /// Returns the server of the object.
    fn origin(&self) -> ObjectOrigin<'_>;

    /// Returns the state of the client.
    fn shared(&self) -> &ClientState {
        self.origin().shared
    }

    /// Returns the host in messages.
    fn host(&self) -> &str {
        self.origin().host
    }

    /// Returns the error for a problem.
    fn fail(&self, problem: RegistryProblem) -> RegistryError {
        RegistryError::new(self.origin().place.clone(), problem)
    }
}

/// The server of an object.
pub(crate) struct ObjectOrigin<'a> {
    pub shared: &'a ClientState,
    /// The host in messages.
    pub host: &'a str,
    pub place: &'a RemoteRepository,
    /// The duration of all requests together.
    pub limit: Option<TimeLimit>,
}

impl<'a> ObjectReader<'a> {
    /// Returns the reader of a blob. Connects on the first read.
    pub(crate) fn new(source: Box<dyn RangeSource + 'a>, digest: &BlobDigest, size: u64) -> ObjectReader<'a> {
        let origin = source.origin();
        let policy = origin.shared.http.retry_policy();
        let attempts = origin.shared.attempts(EndpointRole::Registry).within(origin.limit);
        ObjectReader {
            source,
            offset: None,
            request: BlobRequest { digest: *digest, at: 0, size },
            body: None,
            attempts,
            failed_at: 0,
            stall: StallDetector::new(policy.idle),
            wrong: std::cell::Cell::new(0),
        }
    }

    /// Returns the reader for a blob that begins at a position of the object and may be a part of
    /// it.
    pub(crate) fn at_offset(self, offset: u64) -> ObjectReader<'a> {
        ObjectReader { offset: Some(offset), ..self }
    }

    /// Continues at a position, counted in bytes from the beginning of the blob.
    pub fn start_at(&mut self, at: u64) {
        self.body = None;
        (self.request.at, self.failed_at) = (at, at);
    }

    /// Records that the blob has a wrong digest. Returns true if it should be read again.
    pub fn note_wrong(&self) -> bool {
        self.wrong.set(self.wrong.get() + 1);
        self.wrong.get() < WRONG
    }

    /// Returns the error for a blob with another digest.
    pub fn wrong_digest(&self, found: BlobDigest) -> RegistryError {
        let (host, wanted) = (self.source.host().to_string(), self.request.digest);
        self.source.fail(RegistryProblem::Digest { host, content: VerifiedContent::Blob, wanted, found })
    }

    /// Requests the rest of the blob.
    fn open(&mut self) -> Result<(), RegistryProblem> {
        let BlobRequest { at, size, .. } = self.request;
        let position = |at: u64| self.offset.unwrap_or(0).saturating_add(at);
        let range = format!("bytes={}-{}", position(at), position(size - 1));
        let is_whole = self.offset.is_none() && at == 0;
        let reply = self.source.request((!is_whole).then_some(range))?;
        let skipped = self.skipped(&reply)?;
        let mut body = reply.response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut rest = (&mut body).take(skipped);
        match io::copy(&mut rest, &mut io::sink()) {
            Ok(n) if n == skipped => {}
            Ok(_) => return Err(self.request.ended(self.source.host(), at)),
            Err(e) => return Err(self.request.broken(self.source.host(), at, e)),
        }
        self.body = Some(body);
        Ok(())
    }

    /// Returns the number of bytes of a reply that precede the position.
    fn skipped(&self, reply: &HttpReply) -> Result<u64, RegistryProblem> {
        let BlobRequest { digest, at, size } = self.request;
        let wanted = self.offset.unwrap_or(0).saturating_add(at);
        let length = reply.response.body().content_length();
        match (reply.status(), ContentRange::of(reply)) {
            (200, _) if self.offset.is_none() && length.is_some_and(|length| length != size) => {
                let found = length.unwrap_or_default();
                Err(ReplyFault::BlobSize { digest, found, size }.of(self.source.host()))
            }
            (200, _) => Ok(wanted),
            (_, Some(range)) if range.contains(wanted) => Ok(wanted - range.first),
            _ => Err(ReplyFault::OtherRange(digest).of(self.source.host())),
        }
    }

    /// Reads from the reply, which is requested first if there is none.
    fn read_open(&mut self, buf: &mut [u8]) -> Result<usize, RegistryProblem> {
        let BlobRequest { at, size, .. } = self.request;
        if self.body.is_none() {
            self.open()?;
        }
        let host = self.source.host();
        let Some(body) = &mut self.body else { return Ok(0) };
        let most = buf.len().min((size - at).try_into().unwrap_or(usize::MAX));
        loop {
            match body.read(&mut buf[..most]) {
                Ok(0) => return Err(self.request.ended(host, at)),
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.request.broken(host, at, e)),
            }
        }
    }

    /// Waits before the next connection, or gives up.
    fn broken(&mut self, problem: RegistryProblem) -> io::Result<()> {
        self.body = None;
        let at = self.request.at;
        if at - self.failed_at >= PROGRESS {
            self.attempts.reset();
        }
        self.failed_at = at;
        match self.attempts.after(&problem) {
            Some(wait) => {
                self.source.shared().wait(self.source.host(), sentence(&problem), wait);
                Ok(())
            }
            None => Err(io::Error::other(self.source.fail(problem))),
        }
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.request.at < self.request.size {
            match self.read_open(buf) {
                Ok(n) => {
                    self.request.at += n as u64;
                    if !self.stall.progresses(n as u64) && self.request.at < self.request.size {
                        let interruption = self.stall.interruption();
                        self.broken(self.request.interrupted(self.source.host(), self.request.at, interruption))?;
                    }
                    return Ok(n);
                }
                Err(problem) => self.broken(problem)?,
            }
        }
        if let Some(mut body) = self.body.take() {
            // The end of the body returns the connection to the pool.
            let _ = body.read(&mut [0]);
        }
        Ok(0)
    }
}
