//! Requests for the bytes of a blob.

use std::io::{self, Read};

use rbuild_image::BlobDigest;
use ureq::BodyReader;

use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction, RemoteObject};
use crate::http::{HttpReply, connection};
use crate::interruption::Interruption;
use crate::login_use::LoginUse;
use crate::reply_fault::ReplyFault;
use crate::request_name::RequestName;
use crate::session::{ApiRequest, Body, EndpointSession, Repetition};
use crate::stall::StallReader;
use crate::{answer, url};

/// A request for the bytes of a blob from a position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlobRequest {
    pub digest: BlobDigest,
    pub at: u64,
    /// Size of the whole blob in bytes.
    pub size: u64,
}

/// The place of a blob.
#[derive(Debug, Clone, Copy)]
enum BlobPlace<'a> {
    /// The repository of the endpoint.
    Endpoint,
    /// The URL that the endpoint redirected to.
    Redirected(&'a str),
    /// A URL that the manifest states.
    Foreign(&'a str),
}

/// Bytes of a blob that are being received.
pub(crate) struct OpenRange {
    pub body: BodyReader<'static>,
    /// Position of the end of the bytes.
    pub end: u64,
    /// True if the server answered with the requested range.
    pub is_range: bool,
    /// URL that the endpoint redirected to, if it did.
    pub redirected: Option<String>,
}

impl BlobRequest {
    /// Opens the blob at the position, up to its end or to that of the range that the server
    /// returns. With `end`, the bytes up to that position are requested.
    pub(crate) fn open(&self, session: &EndpointSession, end: Option<u64>) -> Result<OpenRange, RegistryProblem> {
        self.open_at(session, BlobPlace::Endpoint, end)
    }

    /// Opens the blob at the position, up to its end, at a URL that its manifest states. The URL
    /// gets no credentials of the endpoint.
    pub(crate) fn open_elsewhere(&self, session: &EndpointSession, url: &str) -> Result<OpenRange, RegistryProblem> {
        self.open_at(session, BlobPlace::Foreign(url), None)
    }

    /// Opens the bytes up to the position `end`, which must be those that the server returns; at
    /// `url`, or else at the endpoint.
    pub(crate) fn open_range(
        &self,
        session: &EndpointSession,
        url: Option<&str>,
        end: u64,
    ) -> Result<OpenRange, RegistryProblem> {
        let place = url.map_or(BlobPlace::Endpoint, BlobPlace::Redirected);
        let reply = self.send(session, place, self.range(Some(end)))?;
        let open = self.opened(session, place, Some(end), reply)?;
        if open.is_range && open.end >= end {
            Ok(open)
        } else {
            Err(session.invalid(ReplyFault::OtherRange(self.digest)))
        }
    }

    /// Opens the blob at the position. A server that refuses the range, or returns another one,
    /// sends the blob from its beginning.
    fn open_at(
        &self,
        session: &EndpointSession,
        place: BlobPlace<'_>,
        end: Option<u64>,
    ) -> Result<OpenRange, RegistryProblem> {
        let range = self.range(end);
        let is_range = range.is_some();
        let mut reply = self.send(session, place, range)?;
        if is_range && self.is_refused_range(&reply) {
            tracing::debug!(target: "registry", host = session.endpoint.host, "the range of a blob was refused");
            reply = self.send(session, place, None)?;
        }
        self.opened(session, place, end, reply)
    }

    /// Returns the header for the bytes from the position to `end` or to the end of the blob;
    /// `None` for the whole blob.
    fn range(&self, end: Option<u64>) -> Option<String> {
        let at = self.at;
        match end {
            Some(end) => Some(format!("bytes={at}-{}", end - 1)),
            None => (at > 0).then(|| format!("bytes={at}-")),
        }
    }

    /// Returns true if the reply to the request for a range does not lead to the position.
    fn is_refused_range(&self, reply: &HttpReply) -> bool {
        match reply.status() {
            416 => true,
            206 => ContentRange::of(reply).is_none_or(|range| !range.contains(self.at)),
            _ => false,
        }
    }

    fn send(
        &self,
        session: &EndpointSession,
        place: BlobPlace<'_>,
        range: Option<String>,
    ) -> Result<HttpReply, RegistryProblem> {
        let mut headers = vec![("accept", "*/*".to_string())];
        headers.extend(range.map(|range| ("range", range)));
        let path = self.path();
        // For another URL, the caller returns to the endpoint.
        let (to, repetition) = match place {
            BlobPlace::Endpoint => (&*path, Repetition::Repeated),
            BlobPlace::Redirected(url) | BlobPlace::Foreign(url) => (url, Repetition::Single),
        };
        let scopes = [session.scope("pull")];
        let call = ApiRequest { method: "GET", to, headers: &headers, body: Body::None, scopes: &scopes, repetition };
        match place {
            BlobPlace::Foreign(_) => session.call_foreign(&call),
            BlobPlace::Endpoint | BlobPlace::Redirected(_) => session.call(&call),
        }
    }

    fn path(&self) -> String {
        format!("/blobs/{}", self.digest)
    }

    /// Returns the bytes of a reply, from the position. With `end`, those up to that position were
    /// requested.
    fn opened(
        &self,
        session: &EndpointSession,
        place: BlobPlace<'_>,
        end: Option<u64>,
        reply: HttpReply,
    ) -> Result<OpenRange, RegistryProblem> {
        let BlobRequest { digest, at, size } = *self;
        let host = match place {
            BlobPlace::Foreign(url) => host_of(url),
            BlobPlace::Endpoint | BlobPlace::Redirected(_) => &*session.endpoint.host,
        };
        let length = reply.response.body().content_length();
        let range = ContentRange::of(&reply);
        let (start, whole) = match (reply.status(), range) {
            (200, _) => (0, length),
            (206, Some(range)) if range.contains(at) => {
                (range.first, range.size.or_else(|| (end.is_none()).then_some(range.last + 1)))
            }
            (206, _) => return Err(session.invalid_of(host, ReplyFault::OtherRange(digest))),
            _ => {
                let request = RequestName::Blob { method: "GET", digest };
                if let (BlobPlace::Foreign(_), 401 | 403) = (place, reply.status()) {
                    let message = answer::message(reply.response.into_body(), &session.shared().http);
                    let (login, anonymous) = (LoginUse::None.to_string(), true);
                    let (host, action) = (host.to_string(), RemoteAction::Pull);
                    return Err(RegistryProblem::Denied { host, action, message, login, anonymous });
                }
                return Err(session.refused(reply, request, RemoteObject::Blob(digest), RemoteAction::Pull));
            }
        };
        // The size is the server's claim.
        if let Some(whole) = whole.filter(|whole| *whole != size) {
            return Err(session.invalid_of(host, ReplyFault::BlobSize { digest, found: whole, size }));
        }
        let is_range = reply.status() == 206;
        let stop = match range.filter(|_| is_range) {
            Some(range) => range.last.saturating_add(1).min(size),
            None => size,
        };
        let url = reply.url.clone();
        let own = session.url(&self.path());
        let redirected = (host_and_path(&url) != host_and_path(&own)).then(|| url.clone());
        let mut body = reply.response.into_body().into_with_config().limit(u64::MAX).reader();
        let retry_policy = session.shared().http.retry_policy();
        let skipped = io::copy(&mut StallReader::new(&mut body, retry_policy.idle).take(at - start), &mut io::sink());
        match skipped {
            Ok(n) if n == at - start => Ok(OpenRange { body, end: stop, is_range, redirected }),
            other => {
                let e = other.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                Err(connection(host, "GET", &url, ureq::Error::Io(e), retry_policy))
            }
        }
    }

    /// Returns the problem of a connection that the server closed at a position.
    pub(crate) fn ended(&self, host: &str, at: u64) -> RegistryProblem {
        self.interrupted(host, at, Interruption::Ended { left: self.size - at })
    }

    /// Returns the problem of a connection that broke at a position.
    pub(crate) fn broken(&self, host: &str, at: u64, e: io::Error) -> RegistryProblem {
        let left = self.size - at;
        self.interrupted(host, at, Interruption::of_read(e, |source| Interruption::Broken { left, source }))
    }

    /// Returns the problem of an interruption at a position.
    pub(crate) fn interrupted(&self, host: &str, at: u64, source: Interruption) -> RegistryProblem {
        let request = RequestName::BlobFrom { digest: self.digest, at, size: self.size }.to_string();
        let (host, source) = (host.to_string(), source.into());
        RegistryProblem::Connection { host, request, kind: ConnectionFailure::Transport, source }
    }
}

/// Returns the host of a URL, with the port if it has one.
pub(crate) fn host_of(url: &str) -> &str {
    url::split(url).map_or("", |(_, host, _)| host)
}

/// Returns the host and the path of a URL.
fn host_and_path(url: &str) -> Option<(&str, &str)> {
    url::split(url).map(|(_, host, rest)| (host, url::without_query(rest)))
}

/// A `Content-Range` header: `bytes FIRST-LAST/SIZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub first: u64,
    last: u64,
    /// `None` if the server does not state it.
    size: Option<u64>,
}

impl ContentRange {
    pub(crate) fn of(reply: &HttpReply) -> Option<ContentRange> {
        ContentRange::parse(reply.header("content-range")?)
    }

    fn parse(text: &str) -> Option<ContentRange> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then(|| ContentRange { first, last, size: size.trim().parse().ok() })
    }

    pub(crate) fn contains(self, at: u64) -> bool {
        (self.first..=self.last).contains(&at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_an_order_and_perhaps_a_size() {
        for (text, want) in [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            (" bytes 0-0/*", Some((0, 0, None))),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("5-9/10", None),
            ("bytes 5-9", None),
        ] {
            let range = want.map(|(first, last, size)| ContentRange { first, last, size });
            assert_eq!(ContentRange::parse(text), range, "{text}");
        }
    }
}
