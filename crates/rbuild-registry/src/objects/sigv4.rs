//! Signatures of requests to S3 (AWS Signature Version 4, in the `Authorization` header).

use hmac::{Hmac, KeyInit, Mac};
use rbuild_image::BlobDigest;
use sha2::Sha256;

use crate::secret::Secret;
use crate::url;

/// The hash of an empty body.
pub(crate) const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SERVICE: &str = "s3";

/// A key that signs requests.
#[derive(Clone)]
pub(crate) struct AwsKey {
    pub id: Secret,
    pub secret: Secret,
    /// Token of a temporary login.
    pub session: Option<Secret>,
}

/// A request that is signed.
pub(crate) struct UnsignedRequest<'a> {
    pub method: &'a str,
    /// Host, with the port if it is not the default one.
    pub host: &'a str,
    /// Path, encoded.
    pub path: &'a str,
    /// Names and values of the query, not encoded.
    pub query: &'a [(String, String)],
    /// Headers that are signed besides `host` and those of the signature.
    pub headers: &'a [(String, String)],
    /// The hash of the body.
    pub body: &'a str,
}

impl AwsKey {
    /// Returns the headers that authenticate a request. `time` is in seconds since 1970.
    pub fn headers(&self, request: &UnsignedRequest<'_>, region: &str, time: i64) -> Vec<(String, String)> {
        let moment = moment(time);
        let day = &moment[..8];
        let mut added = vec![
            ("x-amz-content-sha256".to_string(), request.body.to_string()),
            ("x-amz-date".to_string(), moment.clone()),
        ];
        if let Some(token) = &self.session {
            added.push(("x-amz-security-token".to_string(), token.reveal().to_string()));
        }
        let host = ("host".to_string(), request.host.to_string());
        let mut signed: Vec<(String, &str)> =
            request.headers.iter().chain(&added).chain([&host]).map(trimmed).collect();
        signed.sort();
        let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let UnsignedRequest { method, path, body, .. } = request;
        let query = canonical_query(request.query);
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{body}");
        let scope = format!("{day}/{region}/{SERVICE}/aws4_request");
        let hash = BlobDigest::of(canonical.as_bytes()).hex().to_string();
        let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hash}");
        let key = mac(format!("AWS4{}", self.secret.reveal()).as_bytes(), day);
        let key = [region, SERVICE, "aws4_request"].iter().fold(key, |key, part| mac(&key, part));
        let signature: String = mac(&key, &text).iter().map(|byte| format!("{byte:02x}")).collect();
        let id = self.id.reveal();
        let value = format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}");
        added.push(("authorization".to_string(), value));
        added
    }
}

/// Returns the name and the value of a header as they are signed.
fn trimmed(header: &(String, String)) -> (String, &str) {
    (header.0.to_ascii_lowercase(), header.1.trim())
}

/// Returns the query as it is signed: encoded, sorted, each name with `=`.
pub(crate) fn canonical_query(query: &[(String, String)]) -> String {
    let mut pairs: Vec<String> =
        query.iter().map(|(name, value)| format!("{}={}", url::encode(name), url::encode(value))).collect();
    pairs.sort();
    pairs.join("&")
}

/// Returns a time in the form `20130524T000000Z`.
fn moment(time: i64) -> String {
    let time = jiff::Timestamp::from_second(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Returns the HMAC-SHA256 of a text.
pub(crate) fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // A key of any length is valid.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of Amazon's documentation ("Signature Calculations for the Authorization
    /// Header: Transferring Payload in a Single Chunk").
    #[test]
    fn signatures_are_those_of_amazons_examples() {
        let key = AwsKey {
            id: Secret::new("AKIAIOSFODNN7EXAMPLE"),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session: None,
        };
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let welcome = BlobDigest::of(b"Welcome to Amazon S3.").hex().to_string();
        let stored = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        for (method, path, query, headers, body, want) in [
            (
                "GET",
                "/test.txt",
                &[][..],
                &[("Range", "bytes=0-9")][..],
                EMPTY,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                &[],
                &stored,
                &welcome,
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                &[("lifecycle", "")],
                &[],
                EMPTY,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                &[("prefix", "J"), ("max-keys", "2")],
                &[],
                EMPTY,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let (query, headers) = (pairs(query), pairs(headers));
            let host = "examplebucket.s3.amazonaws.com";
            let request = UnsignedRequest { method, host, path, query: &query, headers: &headers, body };
            let headers = key.headers(&request, "us-east-1", 1_369_353_600);
            let (_, value) = headers.iter().find(|(name, _)| name == "authorization").unwrap();
            assert!(value.ends_with(&format!(",Signature={want}")), "{method} {path}: {value}");
        }
        assert_eq!(BlobDigest::of(b"").hex().to_string(), EMPTY);
    }

    #[test]
    fn a_temporary_login_has_a_token_that_is_signed() {
        let (id, secret) = (Secret::new("id"), Secret::new("secret"));
        let key = AwsKey { id, secret, session: Some(Secret::new("token")) };
        let request = UnsignedRequest { method: "GET", host: "h", path: "/", query: &[], headers: &[], body: EMPTY };
        let headers = key.headers(&request, "eu-west-1", 0);
        assert!(headers.contains(&("x-amz-security-token".into(), "token".into())));
        let (_, value) = headers.last().unwrap();
        assert!(value.contains("Credential=id/19700101/eu-west-1/s3/aws4_request"), "{value}");
        assert!(value.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"), "{value}");
    }
}
