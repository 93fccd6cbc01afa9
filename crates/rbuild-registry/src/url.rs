//! The few operations on URLs that the protocol needs.

/// Returns scheme, authority and the rest of an absolute http(s) URL.
pub(crate) fn split(url: &str) -> Option<(&'static str, &str, &str)> {
    let (scheme, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => ("https", rest),
        (_, Some(rest)) => ("http", rest),
        _ => return None,
    };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    (!authority.is_empty() && !authority.contains('@')).then_some((scheme, authority, path))
}

/// Returns true if a URL can be sent, and its port exists.
pub(crate) fn is_valid(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let after_host = &authority.as_str()[authority.host().len()..];
    !authority.host().is_empty() && (after_host.is_empty() || authority.port_u16().is_some())
}

/// Resolves the target of a `Location` or `Link` header against the URL of the request.
pub(crate) fn resolve(base: &str, target: &str) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return split(target).map(|_| target.to_string());
    }
    let (scheme, authority, path) = split(base)?;
    if let Some(rest) = target.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if target.starts_with('/') {
        return Some(format!("{scheme}://{authority}{target}"));
    }
    if target.contains("://") {
        return None;
    }
    let dir = path.split(['?', '#']).next().unwrap_or("").rsplit_once('/').map_or("", |(dir, _)| dir);
    Some(format!("{scheme}://{authority}{dir}/{target}"))
}

/// The target of a `Location` header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    Url(String),
    /// The redirect would leave TLS. Contains the host.
    Unprotected(String),
    Invalid,
}

/// Resolves a `Location` header. TLS is never downgraded to plain HTTP. A server behind a TLS proxy
/// may refer to itself with `http`, which is replaced by `https`; a redirect to plain HTTP on any
/// other server is refused.
pub(crate) fn follow(base: &str, location: &str) -> Redirect {
    let Some(next) = resolve(base, location).filter(|next| is_valid(next)) else { return Redirect::Invalid };
    match (split(base), split(&next)) {
        (Some(("https", own, _)), Some(("http", host, rest))) if host.eq_ignore_ascii_case(own) => {
            Redirect::Url(format!("https://{own}{rest}"))
        }
        (Some(("https", ..)), Some(("http", host, _))) => Redirect::Unprotected(host.to_string()),
        (_, None) => Redirect::Invalid,
        _ => Redirect::Url(next),
    }
}

/// Returns true if both URLs have the same scheme, host and port.
pub(crate) fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url| {
        let (scheme, authority, _) = split(url)?;
        let default = if scheme == "https" { ":443" } else { ":80" };
        Some((scheme, authority.strip_suffix(default).unwrap_or(authority).to_ascii_lowercase()))
    };
    origin(a).is_some() && origin(a) == origin(b)
}

/// Returns a URL without its query, which may hold a signature.
pub(crate) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Adds a parameter to the query.
pub(crate) fn with_parameter(url: &str, name: &str, value: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{name}={}", encode(value))
}

/// Encodes a query value (RFC 3986, section 2.3).
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// Encodes a form, or the query of a URL.
pub(crate) fn form<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let fields = fields.into_iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    fields.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base = "https://a.io:5000/v2/x/blobs/uploads/?q=1";
        for (target, want) in [
            ("http://b.io/c?d", Some("http://b.io/c?d")),
            ("/v2/y?s=1", Some("https://a.io:5000/v2/y?s=1")),
            ("y", Some("https://a.io:5000/v2/x/blobs/uploads/y")),
            ("//b.io/y", Some("https://b.io/y")),
            ("ftp://b.io/y", None),
            ("http://user@b.io/", None),
        ] {
            assert_eq!(resolve(base, target).as_deref(), want, "{target}");
        }
        let leads = |location| follow(base, location);
        assert_eq!(leads("http://A.io:5000/c?d"), Redirect::Url("https://a.io:5000/c?d".into()));
        assert_eq!(leads("http://a.io/c"), Redirect::Unprotected("a.io".into()), "another port");
        assert_eq!(leads("http://b.io/c"), Redirect::Unprotected("b.io".into()));
        assert_eq!(leads("https://b.io/c"), Redirect::Url("https://b.io/c".into()));
        assert_eq!(leads("//user@b.io/c"), Redirect::Invalid);
        assert_eq!(follow("http://a.io/x", "http://b.io/c"), Redirect::Url("http://b.io/c".into()));
        let valid = |url| assert!(is_valid(url), "{url}");
        ["https://a.io/b?c=%20", "http://[::1]:5000/", "https://a.io:443"].into_iter().for_each(valid);
        let invalid = |url| assert!(!is_valid(url), "{url}");
        ["https://a.io:99999/", "https://[/", "https://a b/", "https://a.io:/", "https://a/ b", "//a"]
            .into_iter()
            .for_each(invalid);
        assert!(same_origin("https://a.io/x", "https://A.io:443/y"));
        assert!(!same_origin("https://a.io/x", "http://a.io/x") && !same_origin("https://a.io/", "https://a.io:1/"));
        assert_eq!(with_parameter("/u?a=b", "digest", "sha256:0f"), "/u?a=b&digest=sha256%3A0f");
        assert_eq!(without_query("https://a/b?sig=secret"), "https://a/b");
    }
}
