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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image name: {reason}")]
pub struct ReferenceError {
    pub name: String,
    pub reason: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";

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
        self.path.strip_prefix("library/").unwrap_or(&self.path).to_string()
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
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path.to_string()),
            Some(_) => (DEFAULT_REGISTRY, rest.to_string()),
            None => (DEFAULT_REGISTRY, format!("library/{rest}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
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
        for bad in ["", "Debian", "a//b", "a:", "a:-x", "a@sha256:1", "-a", "a..b", "a b", "a/", "é"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
