//! Download of files from URLs, with revalidation, and resumed after the connection broke.

use std::io::{self, Read};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_image::SourceUrl;
use rbuild_remedy::{BuildRemedy, Remedy, ServerRemedy, sentence};

use crate::answer;
use crate::client::Client;
use crate::config::certs::CertFiles;
use crate::endpoint::ConnectionSecurity;
use crate::endpoint_modes::EndpointRole;
use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction};
use crate::http::{HttpReply, HttpRequest, RequestBody, Server};
use crate::interruption::Interruption;
use crate::login_use::LoginUse;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::retry::may_be_temporary;
use crate::secret::Secret;
use crate::stall::StallDetector;
use crate::url::{self, Redirect};

/// Maximum number of redirects.
const MAX_REDIRECTS: usize = 10;
/// Progress in bytes after which earlier failures no longer count.
const PROGRESS: u64 = 1 << 20;
/// Number of bytes that are passed on at once.
const CHUNK: usize = 64 << 10;

/// A file to download.
#[derive(Debug, Clone)]
pub struct FileRequest<'a> {
    /// The URL.
    pub url: &'a SourceUrl,
    /// Value of the `Authorization` header; sent to the URL's own server only. Without it, the
    /// login in the URL is used.
    pub authorization: Option<Secret>,
    /// The stored version. It is not downloaded again if it is current.
    pub stored: Option<Validators>,
}

/// The headers that identify a version of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// The `ETag` header.
    pub etag: Option<String>,
    /// The `Last-Modified` header, in seconds since the Unix epoch.
    pub modified: Option<i64>,
}

/// Receives the content of a file.
pub trait FileSink {
    /// Starts the file, or starts it again, which discards all bytes so far. `size` is the number
    /// of bytes that the server announced.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written, or is too large.
    fn start(&mut self, size: Option<u64>) -> io::Result<()>;

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written, or is too large.
    fn add(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Encoding of a downloaded file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileEncoding {
    /// The bytes are those of the file.
    #[default]
    Identity,
    /// The server compressed the file with gzip, although that was not requested.
    Gzip,
}

/// The outcome of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileAnswer {
    /// The stored version is current.
    Unchanged,
    /// The sink has the file.
    Received {
        /// Identifies this version.
        validators: Validators,
        /// Encoding of the received bytes.
        encoding: FileEncoding,
    },
}

/// A failed download.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server or the connection failed.
    #[error("cannot download {url}")]
    Server {
        /// The URL.
        url: Box<SourceUrl>,
        /// The reason.
        source: Box<RegistryProblem>,
    },
    /// The sink failed.
    #[error("cannot store {url}")]
    Sink {
        /// The URL.
        url: Box<SourceUrl>,
        /// The reason.
        source: io::Error,
    },
}

impl DownloadError {
    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        let DownloadError::Server { url, source } = self else { return None };
        Some(match &**source {
            RegistryProblem::Connection { host, kind: ConnectionFailure::Certificate, .. } => {
                ServerRemedy::TrustAuthority { host: host.clone() }.into()
            }
            RegistryProblem::Connection { .. } if source.is_refused() => ServerRemedy::CheckPort.into(),
            RegistryProblem::Connection { .. } if source.is_malformed() => ServerRemedy::AwaitServer.into(),
            RegistryProblem::Connection { .. } => Remedy::Server(ServerRemedy::CheckNetwork),
            RegistryProblem::Status { status: 404 | 410, .. } => ServerRemedy::CheckAddress.into(),
            RegistryProblem::Denied { anonymous: true, .. } => {
                Remedy::Build(BuildRemedy::PassSecret { id: format!("HTTP_AUTH_TOKEN_{}", url.host()) })
            }
            RegistryProblem::Denied { .. } => ServerRemedy::CheckLogin.into(),
            RegistryProblem::Status { .. } => ServerRemedy::AwaitServer.into(),
            RegistryProblem::Config(e) => return e.remedy(),
            _ => return None,
        })
    }
}

impl Client {
    /// Downloads a file into `sink`, unless the stored version is current.
    ///
    /// # Errors
    ///
    /// Fails if the server does not send the file, or if the sink fails.
    pub fn download(&self, request: &FileRequest<'_>, sink: &mut dyn FileSink) -> Result<FileAnswer, DownloadError> {
        let server = |problem| {
            let source = match problem {
                RegistryProblem::Repeated(source) => source,
                other => Box::new(other),
            };
            DownloadError::Server { url: Box::new(request.url.clone()), source }
        };
        let mut file = FileDownload { client: self, request, state: Progress::default() };
        match file.run(sink) {
            Ok(answer) => Ok(answer),
            Err(TransferFailure::Server(problem)) => Err(server(problem)),
            Err(TransferFailure::Sink(source)) => {
                Err(DownloadError::Sink { url: Box::new(request.url.clone()), source })
            }
        }
    }
}

/// A failure of the server or of the sink.
enum TransferFailure {
    Server(RegistryProblem),
    Sink(io::Error),
}

/// The state of a download.
#[derive(Default)]
struct Progress {
    /// Number of bytes received.
    at: u64,
    /// Size of the whole file, if it is known.
    size: Option<u64>,
    /// The version that is being received.
    validators: Validators,
    encoding: FileEncoding,
}

impl Progress {
    /// Returns the value of `If-Range` with which the rest of the file can be requested: a strong
    /// entity tag (RFC 9110, section 13.1.5).
    fn resumable(&self) -> Option<&str> {
        self.validators.etag.as_deref().filter(|etag| self.at > 0 && !etag.starts_with("W/"))
    }
}

struct FileDownload<'a> {
    client: &'a Client,
    request: &'a FileRequest<'a>,
    state: Progress,
}

impl FileDownload<'_> {
    fn run(&mut self, sink: &mut dyn FileSink) -> Result<FileAnswer, TransferFailure> {
        let shared = self.client.shared();
        let host = authority(&self.request.url.target());
        let mut attempts = shared.attempts(EndpointRole::Registry);
        let mut furthest = 0;
        loop {
            // Failed attempts to open the file have already been retried.
            let reply = shared
                .repeat(&host, shared.attempts(EndpointRole::Registry), || self.open())
                .map_err(TransferFailure::Server)?;
            if self.is_unchanged(&reply) {
                return Ok(FileAnswer::Unchanged);
            }
            let problem = if self.lacks_rest(&reply) {
                let problem = self.refused(reply, host.clone());
                self.state = Progress::default();
                problem
            } else {
                match self.receive(reply, sink)? {
                    None => {
                        let Progress { validators, encoding, .. } = std::mem::take(&mut self.state);
                        return Ok(FileAnswer::Received { validators, encoding });
                    }
                    Some(problem) => problem,
                }
            };
            // Only bytes beyond the furthest offset so far count as progress.
            if self.state.at.saturating_sub(furthest) >= PROGRESS {
                attempts.reset();
            }
            furthest = furthest.max(self.state.at);
            // A download from the beginning may succeed even though resuming failed.
            let again = may_be_temporary(&problem) || self.state.at == 0;
            match attempts.next(None).filter(|_| again) {
                Some(wait) => shared.wait(&host, sentence(&problem), wait),
                None => return Err(TransferFailure::Server(problem)),
            }
        }
    }

    /// Requests the file, or the rest of it, and follows redirects.
    fn open(&self) -> Result<HttpReply, RegistryProblem> {
        let mut target = self.request.url.target();
        let own = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let login = self.authorization().filter(|_| may_receive_login(&own, &target));
            let reply = self.send(&target, login)?;
            let moved = matches!(reply.status(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = reply.header("location").filter(|_| moved) else { return Ok(reply) };
            target = match url::follow(&reply.url, location) {
                Redirect::Url(url) => url,
                Redirect::Unprotected(host) => {
                    return Err(ReplyFault::UnprotectedRedirect(&host).of(&authority(&target)));
                }
                Redirect::Invalid => {
                    return Err(ReplyFault::InvalidRedirect.of(&authority(&target)));
                }
            };
        }
        Err(ReplyFault::TooManyRedirects.of(&authority(&own)))
    }

    fn send(&self, target: &str, authorization: Option<Secret>) -> Result<HttpReply, RegistryProblem> {
        let (scheme, host, _) = url::split(target).unwrap_or(("https", "", ""));
        let mut certs = CertFiles::default();
        certs.find(&self.client.shared().environment, host).map_err(RegistryProblem::Config)?;
        let security = if scheme == "http" { ConnectionSecurity::Plain } else { ConnectionSecurity::Verified };
        let mut headers = self.headers();
        if let Some(authorization) = authorization {
            headers.push(("authorization".to_string(), authorization.reveal().to_string()));
        }
        let request = HttpRequest { method: "GET", url: target, headers: &headers, content: RequestBody::None };
        self.client.shared().http.send(Server::new(security, &certs), request)
    }

    /// Returns the headers of a request, without the login.
    fn headers(&self) -> Vec<(String, String)> {
        let mut headers = vec![("accept".to_string(), "*/*".to_string())];
        let mut put = |name: &str, value: String| headers.push((name.to_string(), value));
        if let Some(etag) = self.state.resumable() {
            put("range", format!("bytes={}-", self.state.at));
            put("if-range", etag.to_string());
        } else if let Some(stored) = &self.request.stored {
            match (&stored.etag, stored.modified.and_then(http_date)) {
                (Some(etag), _) => put("if-none-match", etag.clone()),
                (None, Some(date)) => put("if-modified-since", date),
                (None, None) => {}
            }
        }
        headers
    }

    fn authorization(&self) -> Option<Secret> {
        self.request.authorization.clone().or_else(|| {
            let (user, password) = self.request.url.login()?;
            Some(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))))
        })
    }

    /// Returns true if the server has the stored version. Some servers have entity tags and ignore
    /// `If-None-Match`.
    fn is_unchanged(&self, reply: &HttpReply) -> bool {
        let Some(stored) = self.request.stored.as_ref().filter(|_| self.state.resumable().is_none()) else {
            return false;
        };
        let same_tag = || matches!((&stored.etag, reply.header("etag")), (Some(a), Some(b)) if weak(a) == weak(b));
        match reply.status() {
            304 => stored.etag.is_none() || reply.header("etag").is_none() || same_tag(),
            200 => same_tag(),
            _ => false,
        }
    }

    /// Returns true if the rest of the file was requested and the reply is something else. Some
    /// servers ignore `If-Range` and send the rest of another version.
    fn lacks_rest(&self, reply: &HttpReply) -> bool {
        let Some(version) = self.state.resumable() else { return false };
        let (start, size) = reply.header("content-range").and_then(range_of).unwrap_or_default();
        let fits = start == self.state.at
            && (size.is_none() || self.state.size.is_none() || size == self.state.size)
            && reply.header("etag").is_none_or(|etag| etag.trim() == version);
        reply.status() == 416 || reply.status() == 206 && !fits
    }

    /// Receives the body of a reply. Returns the problem if the connection broke.
    fn receive(
        &mut self,
        reply: HttpReply,
        sink: &mut dyn FileSink,
    ) -> Result<Option<RegistryProblem>, TransferFailure> {
        let host = authority(&reply.url);
        if !self.accepts(&reply, sink)? {
            return Err(TransferFailure::Server(self.refused(reply, host)));
        }
        let path = url::split(&reply.url).map_or("", |(_, _, rest)| url::without_query(rest));
        let request = RequestName::Path { method: "GET", path }.to_string();
        let broken = |source: Interruption| {
            let source = source.into();
            Ok(Some(RegistryProblem::Connection {
                host: host.clone(),
                request: request.clone(),
                kind: ConnectionFailure::Transport,
                source,
            }))
        };
        let mut body = reply.response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut stall = StallDetector::new(self.client.shared().http.retry_policy().idle);
        let mut chunk = vec![0; CHUNK];
        loop {
            let at = self.state.at;
            let n = match body.read(&mut chunk) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return broken(Interruption::of_read(e, |source| Interruption::BrokenAt { at, source })),
            };
            match self.state.size {
                _ if n > 0 => {}
                Some(size) if at < size => return broken(Interruption::EndedAt { at, size }),
                _ => return Ok(None),
            }
            sink.add(&chunk[..n]).map_err(TransferFailure::Sink)?;
            self.state.at += n as u64;
            if !stall.progresses(n as u64) {
                return broken(stall.interruption());
            }
        }
    }

    /// Prepares for the body of a reply: the whole file or the rest of it. Returns false if it is
    /// neither.
    fn accepts(&mut self, reply: &HttpReply, sink: &mut dyn FileSink) -> Result<bool, TransferFailure> {
        let length = reply.response.body().content_length();
        match reply.status() {
            206 => {
                let (_, size) = reply.header("content-range").and_then(range_of).unwrap_or_default();
                self.state.size = self.state.size.or(size);
                Ok(self.state.resumable().is_some())
            }
            200..=299 => {
                let encoding = reply.header("content-encoding").unwrap_or_default();
                let validators = Validators {
                    etag: reply.header("etag").map(|etag| etag.trim().to_string()).filter(|etag| !etag.is_empty()),
                    modified: reply.header("last-modified").and_then(seconds_of),
                };
                // Go's client, and so BuildKit's, decodes no other encoding. Servers send `x-gzip`
                // for archives that are to stay as they are.
                let is_gzip = encoding.eq_ignore_ascii_case("gzip");
                let encoding = if is_gzip { FileEncoding::Gzip } else { FileEncoding::Identity };
                self.state = Progress { at: 0, size: length, validators, encoding };
                sink.start(length).map_err(TransferFailure::Sink)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Converts an unsuccessful reply.
    fn refused(&self, reply: HttpReply, host: String) -> RegistryProblem {
        let (status, shared) = (reply.status(), self.client.shared());
        let path = url::split(&reply.url).map_or("/", |(_, _, rest)| url::without_query(rest)).to_string();
        let message = answer::message(reply.response.into_body(), &shared.http);
        match status {
            401 | 403 => {
                let login = if self.authorization().is_none() { LoginUse::None } else { LoginUse::Given };
                RegistryProblem::Denied {
                    host,
                    action: RemoteAction::SendFile,
                    message,
                    login: login.to_string(),
                    anonymous: login.is_anonymous(),
                }
            }
            206 | 304 => ReplyFault::UnrequestedStatus(status).of(&host),
            _ => {
                let request = RequestName::Path { method: "GET", path: &path }.to_string();
                RegistryProblem::Status { host, request, status, message }
            }
        }
    }
}

/// Returns host and port of a URL.
fn authority(url: &str) -> String {
    url::split(url).map_or_else(String::new, |(_, authority, _)| authority.to_string())
}

/// Returns true if the login for `own` may be sent to `target`: to the same server, or to its
/// default port for https if `own` is its default port for http.
fn may_receive_login(own: &str, target: &str) -> bool {
    let secure = own.strip_prefix("http://").map(|rest| format!("https://{rest}"));
    let default =
        |url: &str| url::split(url).is_some_and(|(_, authority, _)| !authority.trim_end_matches(']').contains(':'));
    url::same_origin(own, target)
        || secure.is_some_and(|secure| default(own) && default(target) && url::same_origin(&secure, target))
}

fn weak(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/")
}

/// Returns the first byte and the total size of `bytes A-B/SIZE`.
fn range_of(range: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, size.trim().parse().ok()))
}

/// Returns the time of an HTTP date in seconds since the Unix epoch.
fn seconds_of(date: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(date.trim()).ok()?;
    time.duration_since(UNIX_EPOCH).ok()?.as_secs().try_into().ok()
}

fn http_date(seconds: i64) -> Option<String> {
    // Dates of this form end with the year 9999.
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds < 253_402_300_800)?;
    Some(httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let url = || Box::new(SourceUrl::parse("https://me:secret@a.io/x?token=1").unwrap());
        let connection = |kind| RegistryProblem::Connection {
            host: "a.io".into(),
            request: "GET /x".into(),
            kind,
            source: io(111).into(),
        };
        let status = |status| RegistryProblem::Status {
            host: "a.io".into(),
            request: "GET /x".into(),
            status,
            message: String::new(),
        };
        let denied = |anonymous| RegistryProblem::Denied {
            host: "a.io".into(),
            action: RemoteAction::SendFile,
            message: String::new(),
            login: "without a login".into(),
            anonymous,
        };
        let problems = [
            connection(ConnectionFailure::Transport),
            connection(ConnectionFailure::Certificate),
            status(404),
            status(500),
            denied(true),
            denied(false),
            RegistryProblem::Config(crate::ConfigError::Proxy),
        ];
        let server = |problem| DownloadError::Server { url: url(), source: Box::new(problem) };
        let sink = DownloadError::Sink { url: url(), source: io(28) };
        let errors: Vec<DownloadError> = problems.into_iter().map(server).chain([sink]).collect();
        let variants = variants!(DownloadError { Server, Sink });
        assert_recorded!("DownloadError", variants.table(&errors, |e| e, DownloadError::remedy));
    }

    #[test]
    fn logins_stay_with_their_server() {
        for (own, target, takes) in [
            ("https://a.io/x", "https://a.io/y", true),
            ("https://a.io/x", "https://A.io:443/y", true),
            ("http://a.io/x", "https://a.io/y", true),
            ("http://a.io/x", "http://a.io:8080/y", false),
            ("http://a.io:8080/x", "https://a.io/y", false),
            ("http://a.io/x", "https://a.io:8443/y", false),
            ("https://a.io/x", "https://b.a.io/y", false),
            ("https://a.io/x", "https://b.io/y", false),
            ("https://a.io/x", "http://a.io/y", false),
        ] {
            assert_eq!(may_receive_login(own, target), takes, "{own} {target}");
        }
    }

    #[test]
    fn only_strong_entity_tags_permit_resuming() {
        let state = |at, etag: &str| Progress {
            at,
            validators: Validators { etag: Some(etag.into()), modified: Some(1) },
            ..Progress::default()
        };
        assert_eq!(state(5, "\"a\"").resumable(), Some("\"a\""));
        assert_eq!((state(0, "\"a\"").resumable(), state(5, "W/\"a\"").resumable()), (None, None));
        assert_eq!(Progress { at: 5, ..Progress::default() }.resumable(), None);
    }

    #[test]
    fn headers_are_parsed() {
        assert_eq!(range_of("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range_of("bytes 5-9/*"), Some((5, None)));
        assert_eq!((range_of("bytes */10"), range_of("5-9/10")), (None, None));
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(seconds_of(date), Some(1_445_412_480));
        assert_eq!(http_date(1_445_412_480).as_deref(), Some(date));
        assert_eq!((seconds_of("yesterday"), http_date(-1), http_date(i64::MAX)), (None, None, None));
        assert_eq!((weak("W/\"a\""), weak(" \"a\"")), ("\"a\"", "\"a\""));
    }
}
