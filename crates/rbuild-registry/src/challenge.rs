//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1).

use crate::error::RegistryProblem;
use crate::http::HttpReply;
use crate::reply_fault::ReplyFault;
use crate::url;

/// An authentication scheme that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password in each request.
    Basic,
    /// A token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        /// Scopes, separated by spaces.
        scope: Option<String>,
        /// Reason for the rejection of the token that was sent.
        error: Option<String>,
    },
}

impl Challenge {
    /// Returns the challenge of a reply, if it has a supported one. A token server receives the
    /// login, so the connection to it must be as secure as that to the registry.
    pub(crate) fn of(reply: &HttpReply) -> Result<Option<Challenge>, RegistryProblem> {
        let headers = reply.response.headers().get_all("www-authenticate");
        let found = Challenge::preferred(headers.iter().filter_map(|header| header.to_str().ok()));
        match &found {
            Some(Challenge::Bearer { realm, .. }) if reply.url.starts_with("https:") && realm.starts_with("http:") => {
                let host = |url| url::split(url).map_or("", |(_, host, _)| host);
                Err(ReplyFault::UnprotectedTokenServer(host(realm)).of(host(&reply.url)))
            }
            _ => Ok(found),
        }
    }

    /// Returns the preferred challenge of all headers: Bearer, else Basic.
    pub(crate) fn preferred<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
        let mut basic = None;
        for header in headers {
            for (scheme, params) in schemes(header) {
                let get = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
                match (scheme.as_str(), get("realm")) {
                    ("bearer", Some(realm)) => {
                        let (service, scope, error) = (get("service"), get("scope"), get("error"));
                        return Some(Challenge::Bearer { realm, service, scope, error });
                    }
                    ("basic", _) => basic = Some(Challenge::Basic),
                    _ => {}
                }
            }
        }
        basic
    }
}

type Params = Vec<(String, String)>;

/// Splits a header into its schemes with their parameters; names are in lower case.
fn schemes(header: &str) -> Vec<(String, Params)> {
    let mut found: Vec<(String, Params)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return found;
        }
        let (word, after) = rest.split_at(end);
        let word = word.to_ascii_lowercase();
        match (after.trim_start().strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, params))) => {
                let (value, after) = read_value(value.trim_start());
                params.push((word, value));
                rest = after;
            }
            // A parameter without a scheme, or one whose name is a base64 token.
            (Some(value), None) => rest = read_value(value.trim_start()).1,
            (None, _) => {
                found.push((word, Params::new()));
                rest = after;
            }
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

/// Reads a quoted string or a token; returns it and the text after it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_string(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_preferred_and_quoted_values_are_parsed() {
        let header = r#"BASIC realm="a, b", bearer Realm="https://a/t",service="x \"y\"", scope="repository:a:pull,push repository:b:pull""#;
        let want = Challenge::Bearer {
            realm: "https://a/t".into(),
            service: Some("x \"y\"".into()),
            scope: Some("repository:a:pull,push repository:b:pull".into()),
            error: None,
        };
        assert_eq!(Challenge::preferred([header]), Some(want));
        let separate = ["Basic realm=\"r\"", "Bearer realm=https://a/t , error=\"invalid_token\""];
        let Some(Challenge::Bearer { realm, error, .. }) = Challenge::preferred(separate) else { panic!() };
        assert_eq!((realm.as_str(), error.as_deref()), ("https://a/t", Some("invalid_token")));
    }

    #[test]
    fn malformed_headers_are_not_errors() {
        assert_eq!(Challenge::preferred(["Basic realm=\"unclosed"]), Some(Challenge::Basic));
        for odd in ["", "Bearer", "Negotiate YII==", "realm=\"x\"", "Digest realm=\"x\", nonce=\"\\", "=,=\"", "é"] {
            assert_eq!(Challenge::preferred([odd]), None, "{odd}");
        }
    }
}
