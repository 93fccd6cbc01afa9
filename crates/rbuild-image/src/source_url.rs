//! URLs of files that a build downloads.

use std::fmt;

/// An absolute http or https URL.
///
/// Its login is never displayed or recorded. Messages omit its query as well, because a query may
/// contain a signature.
///
/// ```
/// use rbuild_image::SourceUrl;
///
/// let url = SourceUrl::parse("https://joe:pw@a.io:8443/d/file%201.tar?sig=1#top")?;
/// assert_eq!(url.to_string(), "https://a.io:8443/d/file%201.tar");
/// assert_eq!(url.written(), "https://***@a.io:8443/d/file%201.tar?sig=1#top");
/// assert_eq!(url.target(), "https://a.io:8443/d/file%201.tar?sig=1");
/// assert_eq!((url.host(), url.file_name().as_deref()), ("a.io", Some("file 1.tar")));
/// # Ok::<(), rbuild_image::SourceUrlError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SourceUrl {
    scheme: &'static str,
    login: Option<String>,
    authority: String,
    path: String,
    /// The query with its `?`, and the fragment with its `#`.
    query: String,
    fragment: String,
}

/// A string that is not an absolute http or https URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceUrlError {
    /// Does not begin with `http://` or `https://`.
    #[error("it does not begin with http:// or https://")]
    Scheme,
    /// The host is missing, or the port is not a number.
    #[error("it has no valid host and port")]
    Host,
    /// A `%` is not followed by two hexadecimal digits.
    #[error("a `%` is not followed by two hexadecimal digits")]
    Escape,
}

const SCHEMES: [&str; 2] = ["http", "https"];

/// Prefixes of named contexts that are images.
const IMAGE_SCHEMES: [&str; 2] = ["docker-image", "oci-layout"];

impl SourceUrl {
    /// Returns true if a text begins with `http://` or `https://`, in lower case as ADD requires.
    pub fn has_scheme(text: &str) -> bool {
        SCHEMES.iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://")))
    }

    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// Fails if the text is not an absolute http or https URL.
    pub fn parse(text: &str) -> Result<SourceUrl, SourceUrlError> {
        let split = |scheme: &'static str| Some((scheme, text.strip_prefix(scheme)?.strip_prefix("://")?));
        let (scheme, rest) = SCHEMES.into_iter().find_map(split).ok_or(SourceUrlError::Scheme)?;
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (rest, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, authority) = match authority.rsplit_once('@') {
            Some((login, authority)) => (Some(login.to_string()), authority),
            None => (None, authority),
        };
        if !is_authority(authority) {
            return Err(SourceUrlError::Host);
        }
        for part in [Some(path), login.as_deref()].into_iter().flatten() {
            decode(part).ok_or(SourceUrlError::Escape)?;
        }
        let (path, query, fragment) = (path.to_string(), query.to_string(), fragment.to_string());
        Ok(SourceUrl { scheme, login, authority: authority.to_string(), path, query, fragment })
    }

    /// Returns true if the URL denotes a git repository (BuildKit: its path ends in `.git`).
    pub fn is_git(&self) -> bool {
        decode(&self.path).is_some_and(|path| path.ends_with(b".git"))
    }

    /// Returns the URL as written, with the login hidden.
    pub fn written(&self) -> String {
        let login = if self.login.is_some() { "***@" } else { "" };
        let SourceUrl { scheme, login: _, authority, path, query, fragment } = self;
        format!("{scheme}://{login}{authority}{path}{query}{fragment}")
    }

    /// Returns the URL of the request, without login and fragment. Characters that no URL may
    /// contain are encoded.
    pub fn target(&self) -> String {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        format!("{}://{}{}{}", self.scheme, self.authority, encoded(path), encoded(&self.query))
    }

    /// Returns the host, without its port and without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        split_port(&self.authority).0.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns user and password, if the URL has them.
    pub fn login(&self) -> Option<(String, String)> {
        let (user, password) = self.login.as_deref().map(|login| login.split_once(':').unwrap_or((login, "")))?;
        let text = |part| decode(part).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Some((text(user)?, text(password)?))
    }

    /// Returns the name of the file: the last element of the decoded path. `None` if that is not a
    /// valid file name.
    pub fn file_name(&self) -> Option<String> {
        let path = String::from_utf8(decode(&self.path)?).ok()?;
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or("");
        let is_name = !matches!(name, "" | "." | "..") && !name.chars().any(char::is_control);
        is_name.then(|| name.to_string())
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Replaces the logins of all URLs in a text, for example a part of a Dockerfile, by `***`. A URL
/// of a scheme other than http and https keeps a user without a password. An `@` before a digest
/// (`docker-image://name:tag@sha256:…`) does not end a login.
pub fn hide_logins(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, authority) = rest.split_at(at + 3);
        let end = authority.find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`'));
        let (authority, after) = authority.split_at(end.unwrap_or(authority.len()));
        shown.push_str(before);
        let is_one_of = |schemes: &[&str]| schemes.iter().any(|scheme| before.ends_with(&format!("{scheme}://")));
        let is_digest = |text: &str| is_one_of(&IMAGE_SCHEMES) && text.starts_with("sha256:");
        let is_login = |login: &str, after: &str| is_one_of(&SCHEMES) || login.contains(':') && !is_digest(after);
        match authority.rsplit_once('@').filter(|(login, after)| is_login(login, after)) {
            Some((_, host)) => shown.push_str(&format!("***@{host}")),
            None => shown.push_str(authority),
        }
        rest = after;
    }
    shown + rest
}

/// Splits an authority into the host and `:port`, which may be empty.
fn split_port(authority: &str) -> (&str, &str) {
    let from = authority.rfind(']').map_or(0, |end| end + 1);
    authority.split_at(authority[from..].find(':').map_or(authority.len(), |at| from + at))
}

fn is_authority(authority: &str) -> bool {
    let (host, port) = split_port(authority);
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let valid = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(is_address),
        None => !host.is_empty() && host.bytes().all(name),
    };
    valid && port.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Returns true if a text contains only characters of IPv6 addresses.
fn is_address(text: &str) -> bool {
    text.matches(':').count() >= 2 && text.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
}

/// Decodes `%XX`. Returns `None` for a `%` without two hexadecimal digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || Some(char::from(bytes.next()?).to_digit(16)? as u8);
                16 * digit()? + digit()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

/// Encodes the bytes that no part of a URL may contain (RFC 3986, appendix A).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | b'[' | b']' => {
                encoded.push_str(&format!("%{byte:02X}"))
            }
            byte => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [SourceUrlError::Scheme, SourceUrlError::Host, SourceUrlError::Escape];
        let variants = variants!(SourceUrlError { Scheme, Host, Escape });
        assert_recorded!("SourceUrlError", variants.table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn the_name_of_a_file_is_the_last_element_of_the_path() {
        for (url, name) in [
            ("http://a.io/x.tar", Some("x.tar")),
            ("http://a.io/d/x.tar?y=/z", Some("x.tar")),
            ("http://a.io/d/x.tar#z/w", Some("x.tar")),
            ("http://a.io/d/e/", Some("e")),
            ("http://a.io/a%20b%2Fc", Some("c")),
            ("http://a.io/%C3%A4", Some("ä")),
            ("http://a.io/", None),
            ("http://a.io", None),
            ("http://a.io?x=y", None),
            ("http://a.io/a/..", None),
            ("http://a.io/.", None),
            ("http://a.io/a%00b", None),
            ("http://a.io/a%0Ab", None),
            ("http://a.io/%FF", None),
        ] {
            assert_eq!(SourceUrl::parse(url).unwrap().file_name().as_deref(), name, "{url}");
        }
    }

    #[test]
    fn logins_and_queries_are_in_no_message() {
        let url = SourceUrl::parse("http://j%40e:p:w@[::1]:80/a b?s={é}#f").unwrap();
        assert_eq!(url.to_string(), "http://[::1]:80/a b");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!(url.written(), "http://***@[::1]:80/a b?s={é}#f");
        assert_eq!(url.target(), "http://[::1]:80/a%20b?s=%7B%C3%A9%7D");
        assert_eq!((url.host(), url.login()), ("::1", Some(("j@e".into(), "p:w".into()))));
        let plain = SourceUrl::parse("https://A.io").unwrap();
        assert_eq!((plain.target(), plain.host(), plain.login()), ("https://A.io/".into(), "A.io", None));
    }

    #[test]
    fn logins_are_hidden_in_texts() {
        let text = "ADD http://joe:pw@a.io/x https://b.io/@x [\"https://t@c.io\"] ssh://git@d.io ftp://joe:pw@e.io/x \
            docker-image://a:1@sha256:x docker-image://joe:pw@a http://";
        let shown = "ADD http://***@a.io/x https://b.io/@x [\"https://***@c.io\"] ssh://git@d.io ftp://***@e.io/x \
            docker-image://a:1@sha256:x docker-image://***@a http://";
        assert_eq!((hide_logins(text).as_str(), hide_logins("ä: @").as_str()), (shown, "ä: @"));
    }

    #[test]
    fn other_texts_are_not_urls() {
        for (text, problem) in [
            ("ftp://a.io/x", SourceUrlError::Scheme),
            ("HTTP://a.io/x", SourceUrlError::Scheme),
            ("http:/a.io", SourceUrlError::Scheme),
            ("http://", SourceUrlError::Host),
            ("http:///x", SourceUrlError::Host),
            ("http://a b/x", SourceUrlError::Host),
            ("http://a.io:x/", SourceUrlError::Host),
            ("http://a.io:99999/", SourceUrlError::Host),
            ("http://[::x]/", SourceUrlError::Host),
            ("http://joe@/x", SourceUrlError::Host),
            ("http://a.io/%zz", SourceUrlError::Escape),
            ("http://a.io/%a", SourceUrlError::Escape),
            ("http://j%@a.io/", SourceUrlError::Escape),
        ] {
            assert_eq!(SourceUrl::parse(text), Err(problem), "{text}");
        }
        let git = |text: &str| SourceUrl::parse(text).unwrap().is_git();
        assert!(git("https://a.io/x.git#main") && git("https://a.io/x.git?ref=a"));
        assert!(!git("https://a.io/x.git/y") && !git("https://a.io/x?y.git") && !git("https://a.io/x"));
        assert!(SourceUrl::has_scheme("http://x") && !SourceUrl::has_scheme("https:x") && !SourceUrl::has_scheme("x"));
    }
}
