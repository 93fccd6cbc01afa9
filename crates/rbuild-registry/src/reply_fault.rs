//! Answers of servers that violate the protocol or contradict themselves.

use std::io;

use rbuild_image::BlobDigest;
use rbuild_remedy::{counted, sentence};

use crate::error::RegistryProblem;
use crate::request_name::RequestName;

/// A fault of an answer. The message is shown after the name of the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyFault<'a> {
    #[error("redirect to {0} over plain HTTP, without TLS")]
    UnprotectedRedirect(&'a str),
    #[error("redirect to an invalid URL")]
    InvalidRedirect,
    #[error("too many redirects")]
    TooManyRedirects,
    /// The name of a host, or a URL that it returned, is not a URL.
    #[error("invalid URL")]
    InvalidUrl,
    /// A URL or a token cannot be sent.
    #[error("invalid URL or token in the response")]
    InvalidValue,
    #[error("connection without TLS")]
    NoTls,
    #[error("no response after redirects and repetitions within {seconds} s")]
    Late { seconds: u64 },
    #[error("unrequested HTTP status {0}")]
    UnrequestedStatus(u16),
    #[error("the token server's response ended early: {}", sentence(.0))]
    TokenCutOff(io::Error),
    #[error("the token server's response contains no token")]
    NoToken,
    #[error("the challenge's token server is not an http(s) URL")]
    InvalidTokenServer,
    #[error("the token server {0} is not protected by TLS, so no login is sent to it")]
    UnprotectedTokenServer(&'a str),
    #[error("manifest {reference} is larger than {mebibytes} MiB")]
    ManifestTooLarge { reference: &'a str, mebibytes: u64 },
    #[error("manifest {0} is not a JSON document")]
    ManifestNotJson(&'a str),
    #[error("document {reference} is not the {media_type} that it claims to be")]
    OtherDocument { reference: &'a str, media_type: &'a str },
    #[error("manifest {reference} has the digest {found}")]
    OtherChecksum { reference: &'a str, found: &'a str },
    #[error("the response to the {0} is not a list")]
    InvalidList(RequestName<'a>),
    #[error("the response to the {request} is larger than {mebibytes} MiB")]
    PageTooLarge { request: RequestName<'a>, mebibytes: u64 },
    #[error("the response to the {request} has more than {pages} pages")]
    LongList { request: RequestName<'a>, pages: usize },
    #[error("blob {digest} has {}; the manifest states {size}", counted(*found, "byte"))]
    BlobSize { digest: BlobDigest, found: u64, size: u64 },
    #[error("the response is longer than the {} of blob {digest}", counted(*size, "byte"))]
    BlobTooLong { digest: BlobDigest, size: u64 },
    #[error("the response contains a range of blob {0} that was not requested")]
    OtherRange(BlobDigest),
    #[error("the response to the start of an upload has no Location header")]
    NoLocation,
    #[error("{} of an upload were acknowledged; {sent} were sent", counted(*received, "byte"))]
    UploadTooLong { received: u64, sent: u64 },
}

impl ReplyFault<'_> {
    /// Returns the problem of an answer of that host.
    pub(crate) fn of(self, host: &str) -> RegistryProblem {
        RegistryProblem::Answer { host: host.to_string(), reason: self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let digest = BlobDigest::of(b"a");
        let faults = [
            ReplyFault::UnprotectedRedirect("cdn.io"),
            ReplyFault::InvalidRedirect,
            ReplyFault::TooManyRedirects,
            ReplyFault::InvalidUrl,
            ReplyFault::InvalidValue,
            ReplyFault::NoTls,
            ReplyFault::Late { seconds: 300 },
            ReplyFault::UnrequestedStatus(304),
            ReplyFault::TokenCutOff(io::ErrorKind::UnexpectedEof.into()),
            ReplyFault::NoToken,
            ReplyFault::InvalidTokenServer,
            ReplyFault::UnprotectedTokenServer("auth.io"),
            ReplyFault::ManifestTooLarge { reference: "1", mebibytes: 4 },
            ReplyFault::ManifestNotJson("1"),
            ReplyFault::OtherDocument { reference: "1", media_type: "application/vnd.oci.image.index.v1+json" },
            ReplyFault::OtherChecksum { reference: "sha512:0", found: "sha512:1" },
            ReplyFault::InvalidList(RequestName::Tags),
            ReplyFault::PageTooLarge { request: RequestName::Tags, mebibytes: 4 },
            ReplyFault::LongList { request: RequestName::Tags, pages: 1000 },
            ReplyFault::BlobSize { digest, found: 1, size: 10 },
            ReplyFault::BlobTooLong { digest, size: 10 },
            ReplyFault::OtherRange(digest),
            ReplyFault::NoLocation,
            ReplyFault::UploadTooLong { received: 10, sent: 5 },
        ];
        let variants = variants!(ReplyFault {
            UnprotectedRedirect,
            InvalidRedirect,
            TooManyRedirects,
            InvalidUrl,
            InvalidValue,
            NoTls,
            Late,
            UnrequestedStatus,
            TokenCutOff,
            NoToken,
            InvalidTokenServer,
            UnprotectedTokenServer,
            ManifestTooLarge,
            ManifestNotJson,
            OtherDocument,
            OtherChecksum,
            InvalidList,
            PageTooLarge,
            LongList,
            BlobSize,
            BlobTooLong,
            OtherRange,
            NoLocation,
            UploadTooLong,
        });
        assert_recorded!("ReplyFault", variants.table(&faults, |fault| fault, no_remedy));
    }
}
