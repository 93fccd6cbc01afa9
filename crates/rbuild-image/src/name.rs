use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// An image name in full: registry, path, and a tag or a digest (distribution reference grammar).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// How a Dockerfile names an image: by a reference, or by a digest in full. The beginning of an id is no name here: it would
/// mean another image tomorrow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageName {
    Reference(Reference),
    /// `sha256:` and 64 digits: an image id, or the digest of a manifest.
    Id(Digest),
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<ImageName, ReferenceError> {
        match name.parse() {
            Ok(digest) => Ok(ImageName::Id(digest)),
            Err(_) => name.parse().map(ImageName::Reference),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image name: {reason}")]
pub struct ReferenceError {
    pub name: String,
    pub reason: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";
/// Where names of one part are, in the default registry.
const OFFICIAL: &str = "library/";
/// Bytes of registry and path together.
const MOST_NAME: usize = 255;

impl Reference {
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as people write it, without tag and digest: `debian`, `me/app`, `ghcr.io/me/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.path);
        }
        let official = self.path.strip_prefix(OFFICIAL).filter(|name| !name.contains('/'));
        official.unwrap_or(&self.path).to_string()
    }

    /// The name as people write it, with its tag or digest.
    pub fn familiar(&self) -> String {
        let mut name = self.familiar_name();
        if let Some(tag) = &self.tag {
            name.push_str(&format!(":{tag}"));
        }
        if let Some(digest) = &self.digest {
            name.push_str(&format!("@{digest}"));
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Without tag and digest the tag is `latest`.
    fn from_str(name: &str) -> Result<Reference, ReferenceError> {
        let fail = |reason| ReferenceError { name: name.chars().take(300).collect(), reason };
        if name.is_empty() {
            return Err(fail("it is empty"));
        }
        if name.len() > 255 + 128 + 72 {
            return Err(fail("it is too long"));
        }
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| fail("its digest is not sha256"))?)),
            None => (name, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let valid = tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
            if !valid || tag.len() > 128 {
                return Err(fail("its tag must be letters, digits, `_`, `.` or `-`, 128 at most"));
            }
        }
        if tag.is_none() && digest.is_none() && is_id(rest) {
            return Err(fail("64 hexadecimal digits are an id, which is written with sha256: before it"));
        }
        let (registry, path) = split_registry(rest);
        if !valid_registry(registry) {
            return Err(fail("its registry is not a host name with or without a port"));
        }
        if registry.len() + path.len() >= MOST_NAME {
            return Err(fail("it is too long"));
        }
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("it must be lower case"));
        }
        if !path.split('/').all(valid_component) {
            return Err(fail("each part is lower-case letters and digits, with `.`, `_` or `-` between them"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_string()),
            (tag, _) => tag.map(str::to_string),
        };
        Ok(Reference { registry: registry.to_string(), path, tag, digest })
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Registry and path of a name. Its first part is a registry if it cannot be part of a path: if it has a dot, a port or a capital.
fn split_registry(name: &str) -> (&str, String) {
    let is_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let is_official = registry == DEFAULT_REGISTRY && !path.contains('/');
    (registry, if is_official { format!("{OFFICIAL}{path}") } else { path.to_string() })
}

/// A host name, or an IPv6 address in brackets; then perhaps a port.
fn valid_registry(registry: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, port)) = registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let valid = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        return valid && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let alnum = |c: char| c.is_ascii_alphanumeric();
    let valid_label = |label: &str| {
        label.starts_with(alnum) && label.ends_with(alnum) && label.bytes().all(|b| alnum(b as char) || b == b'-')
    };
    host.split('.').all(valid_label) && port.is_none_or(is_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = part.starts_with(alnum) && part.ends_with(alnum);
    ends && part.split(alnum).all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_up_and_shortened_again() {
        for (name, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:bookworm", "docker.io/library/debian:bookworm", "debian:bookworm"),
            ("go/hello:2", "docker.io/go/hello:2", "go/hello:2"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000/a/b:latest"),
            ("ghcr.io/a-b/c__d:v1.2", "ghcr.io/a-b/c__d:v1.2", "ghcr.io/a-b/c__d:v1.2"),
            ("docker.io/fam", "docker.io/library/fam:latest", "fam:latest"),
            ("index.docker.io/fam:1", "docker.io/library/fam:1", "fam:1"),
            ("docker.io/me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("library/fam", "docker.io/library/fam:latest", "fam:latest"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("localhost/fam", "localhost/fam:latest", "localhost/fam:latest"),
            ("Host/fam", "Host/fam:latest", "Host/fam:latest"),
            ("[::1]:5000/fam", "[::1]:5000/fam:latest", "[::1]:5000/fam:latest"),
        ] {
            let r: Reference = name.parse().unwrap();
            assert_eq!((r.to_string().as_str(), r.familiar().as_str()), (full, familiar));
        }
        let digest = Digest::of(b"x");
        let r: Reference = format!("a@{digest}").parse().unwrap();
        assert_eq!((r.tag(), r.digest()), (None, Some(&digest)));
    }

    #[test]
    fn bad_names_say_why() {
        let id = Digest::of(b"").hex();
        let long = format!("h.io/{}", "a".repeat(251));
        for bad in ["", "Debian", "a//b", "a:", "a:-x", "a@sha256:1", "-a", "a..b", "a b", "a/", "é", &id, &long] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        for bad in ["/a", ".io/a", "a.io:x/a", "a_b.io/a", "[::1/a", "[]/a", "a.io:/a"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_digest_is_an_id_and_a_part_of_one_a_name() {
        let id = Digest::of(b"x");
        assert_eq!(id.to_string().parse(), Ok(ImageName::Id(id)));
        let reference = |text: &str| Ok(ImageName::Reference(text.parse().unwrap()));
        assert_eq!("b8dce".parse(), reference("docker.io/library/b8dce:latest"));
        assert_eq!("sha256:b8dce".parse(), reference("docker.io/library/sha256:b8dce"));
        assert!(id.hex().parse::<ImageName>().is_err());
    }
}
