//! Names of requests in messages.

use std::fmt;

use rbuild_image::BlobDigest;

/// The name of a request in messages, where it precedes the name of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestName<'a> {
    /// A request, named by its path. The query is omitted, because it may contain a signature.
    Path {
        method: &'a str,
        path: &'a str,
    },
    Manifest {
        method: &'a str,
        reference: &'a str,
    },
    Blob {
        method: &'a str,
        digest: BlobDigest,
    },
    /// The rest of a blob.
    BlobFrom {
        digest: BlobDigest,
        at: u64,
        size: u64,
    },
    /// A request about an upload. Its URL is chosen by the server.
    Upload {
        method: &'a str,
    },
    /// A page of the list of tags.
    Tags,
    /// A page of the list of manifests that refer to another one.
    Referrers {
        subject: BlobDigest,
    },
    Token,
    /// A request for an object.
    Object {
        method: &'a str,
        key: &'a str,
    },
}

impl fmt::Display for RequestName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestName::Path { method, path } => write!(f, "{method} {path}"),
            RequestName::Manifest { method, reference } => write!(f, "{method} of manifest {reference}"),
            RequestName::Blob { method, digest } => write!(f, "{method} of blob {digest}"),
            RequestName::BlobFrom { digest, at, size } => write!(f, "GET of blob {digest} from byte {at} of {size}"),
            RequestName::Upload { method } => write!(f, "{method} of an upload"),
            RequestName::Tags => f.write_str("GET of the list of tags"),
            RequestName::Referrers { subject } => write!(f, "GET of the referrers of {subject}"),
            RequestName::Token => f.write_str("the request for a token"),
            RequestName::Object { method, key } => write!(f, "{method} of {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn names_are_as_recorded() {
        let digest = BlobDigest::of(b"a");
        let names = [
            RequestName::Path { method: "GET", path: "/v2/" },
            RequestName::Manifest { method: "GET", reference: "1" },
            RequestName::Blob { method: "PUT", digest },
            RequestName::BlobFrom { digest, at: 5, size: 10 },
            RequestName::Upload { method: "POST" },
            RequestName::Tags,
            RequestName::Referrers { subject: digest },
            RequestName::Token,
            RequestName::Object { method: "PUT", key: "cache/a" },
        ];
        let variants =
            variants!(RequestName { Path, Manifest, Blob, BlobFrom, Upload, Tags, Referrers, Token, Object });
        let line = |name: &RequestName<'_>| format!("{name}\n");
        assert_eq!(variants.words(&names, ToString::to_string).lines().count(), 2 * names.len());
        assert_recorded!("RequestName", names.iter().map(line).collect::<String>());
    }
}
