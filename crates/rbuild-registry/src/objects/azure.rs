//! Requests to Azure Blob Storage: signatures with the key of an account.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::objects::sigv4::mac;
use crate::secret::Secret;
use crate::url;

/// Version of the API, which has blobs of 5000 MiB that are uploaded at once.
pub(crate) const VERSION: &str = "2021-08-06";
/// The headers that precede those of Azure in a signature.
const STANDARD: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// The key of an account.
#[derive(Clone)]
pub(crate) struct AzureKey {
    pub account: String,
    pub key: Vec<u8>,
}

/// The login of requests to Azure.
#[derive(Clone)]
pub(crate) enum AzureLogin {
    Key(AzureKey),
    /// A shared access signature: the query of a URL.
    Sas(Secret),
    None,
}

impl AzureKey {
    /// Returns the key of an account from its base64 form; `None` if that is not one.
    pub fn parse(account: &str, key: &Secret) -> Option<AzureKey> {
        let key = BASE64_STANDARD.decode(key.reveal().trim()).ok()?;
        Some(AzureKey { account: account.to_string(), key })
    }

    /// Returns the value of the `Authorization` header. `path` is encoded; `headers` have names in
    /// lower case, with `content-length` if there is a body.
    pub fn authorization(
        &self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        headers: &[(String, String)],
    ) -> String {
        let text = string_to_sign(&self.account, method, path, query, headers);
        format!("SharedKey {}:{}", self.account, BASE64_STANDARD.encode(mac(&self.key, &text)))
    }
}

/// Returns the text that is signed.
fn string_to_sign(
    account: &str,
    method: &str,
    path: &str,
    query: &[(String, String)],
    headers: &[(String, String)],
) -> String {
    let value = |name: &str| {
        let found = headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        found.filter(|value| name != "content-length" || *value != "0").unwrap_or_default()
    };
    let mut text = format!("{method}\n");
    for name in STANDARD {
        text += value(name);
        text += "\n";
    }
    let mut own: Vec<String> = headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    own.sort();
    text += &own.concat();
    text += &format!("/{account}{path}");
    let mut parameters: Vec<String> =
        query.iter().map(|(name, value)| format!("\n{}:{value}", name.to_ascii_lowercase())).collect();
    parameters.sort();
    text + &parameters.concat()
}

/// Returns the encoded form of a query.
pub(crate) fn encoded_query(query: &[(String, String)]) -> String {
    url::form(query.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Returns the time in the form of `x-ms-date`.
pub(crate) fn date(time: i64) -> String {
    let time = std::time::Duration::from_secs(time.unsigned_abs());
    httpdate::fmt_http_date(std::time::SystemTime::UNIX_EPOCH + time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// The example of Microsoft's documentation ("Authorize with Shared Key").
    #[test]
    fn the_text_that_is_signed_is_that_of_microsofts_example() {
        let headers = pairs(&[
            ("x-ms-version", "2015-02-21"),
            ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ("content-length", "0"),
        ]);
        let query = pairs(&[("timeout", "20"), ("restype", "container"), ("comp", "metadata")]);
        let text = string_to_sign("myaccount", "GET", "/mycontainer", &query, &headers);
        let want = "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
            /myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20";
        assert_eq!(text, want);
    }

    #[test]
    fn headers_of_the_protocol_are_signed_by_position() {
        let headers =
            pairs(&[("content-length", "5"), ("content-type", "a/b"), ("if-match", "\"1\""), ("range", "bytes=1-")]);
        let text = string_to_sign("me", "PUT", "/c/a%3Ab", &[], &headers);
        assert_eq!(text, "PUT\n\n\n5\n\na/b\n\n\n\"1\"\n\n\nbytes=1-\n/me/c/a%3Ab");
        let key = AzureKey::parse("me", &Secret::new("a2V5")).unwrap();
        assert!(key.authorization("GET", "/", &[], &[]).starts_with("SharedKey me:"));
        assert!(AzureKey::parse("me", &Secret::new("no base64!")).is_none());
        assert_eq!(date(1_435_361_952), "Fri, 26 Jun 2015 23:39:12 GMT");
    }
}
