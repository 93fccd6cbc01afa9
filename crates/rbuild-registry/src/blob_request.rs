//! Requests for the bytes of a blob.

use std::io::{self, Read};

use rbuild_image::BlobDigest;
use ureq::BodyReader;

use crate::error::{ConnectionFailure, RegistryProblem, RemoteAction, RemoteObject};
use crate::http::connection;
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
        let open = self.open_at(session, place, Some(end))?;
        if open.is_range && open.end >= end {
            Ok(open)
        } else {
            Err(session.invalid(ReplyFault::OtherRange(self.digest)))
        }
    }

    fn open_at(
        &self,
        session: &EndpointSession,
        place: BlobPlace<'_>,
        end: Option<u64>,
    ) -> Result<OpenRange, RegistryProblem> {
        let BlobRequest { digest, at, size } = *self;
        let mut headers = vec![("accept", "*/*".to_string())];
        match end {
            Some(end) => headers.push(("range", format!("bytes={at}-{}", end - 1))),
            None if at > 0 => headers.push(("range", format!("bytes={at}-"))),
            None => {}
        }
        let path = format!("/blobs/{digest}");
        let own = session.url(&path);
        // For another URL, the caller returns to the endpoint.
        let (to, repetition) = match place {
            BlobPlace::Endpoint => (&*path, Repetition::Repeated),
            BlobPlace::Redirected(url) | BlobPlace::Foreign(url) => (url, Repetition::Single),
        };
        let scopes = [session.scope("pull")];
        let call = ApiRequest { method: "GET", to, headers: &headers, body: Body::None, scopes: &scopes, repetition };
        let (reply, host) = match place {
            BlobPlace::Foreign(url) => (session.call_foreign(&call)?, host_of(url)),
            BlobPlace::Endpoint | BlobPlace::Redirected(_) => (session.call(&call)?, &*session.endpoint.host),
        };
        let length = reply.response.body().content_length();
        let range = reply.header("content-range").and_then(content_range);
        let (start, whole) = match (reply.status(), range) {
            (200, _) => (0, length),
            (206, Some((start, last, whole))) if start <= at && last >= at => {
                (start, whole.or_else(|| (end.is_none()).then_some(last + 1)))
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
            Some((_, last, _)) => last.saturating_add(1).min(size),
            None => size,
        };
        let url = reply.url.clone();
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

/// Returns the first and the last byte and the size of `bytes A-B/SIZE`; `None` for the size if the
/// server does not state it.
pub(crate) fn content_range(range: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then(|| (first, last, size.trim().parse().ok()))
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
            assert_eq!(content_range(text), want, "{text}");
        }
    }
}
