//! Image references.

use std::fmt;
use std::str::FromStr;

use crate::{Checksum, ChecksumAlgorithm, ImageDigest, ManifestDigest};

/// A fully qualified image reference: registry, path, and a tag, a digest or both (grammar of the
/// distribution project). Parsing adds the default registry and tag.
///
/// ```
/// use rbuild_image::Reference;
///
/// let reference: Reference = "debian".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/debian:latest");
/// assert_eq!(reference.familiar(), "debian:latest");
/// # Ok::<(), rbuild_image::ReferenceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<ManifestDigest>,
    /// A digest of another algorithm: SHA-512.
    checksum: Option<Checksum>,
}

/// Image name in a Dockerfile: a reference or a full digest. Abbreviated IDs are not accepted,
/// because a prefix may identify another image later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageName {
    /// Registry, path, and tag or digest.
    Reference(Reference),
    /// Image ID or manifest digest: `sha256:` and 64 digits.
    Id(ImageDigest),
    /// An image identified by its manifest. A Dockerfile cannot contain such a name.
    Stored(ManifestDigest),
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

/// A text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name `{name}`: {reason}")]
pub struct ReferenceError {
    /// The first 300 characters of the text.
    pub name: String,
    /// The violated rule.
    pub reason: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";
/// Namespace of names without a slash, in the default registry.
const OFFICIAL: &str = "library/";
/// Maximum length of registry, slash and path in bytes.
const MAX_NAME: usize = 255;
/// Maximum length of a digest in bytes, with `@` and `:`.
const MAX_DIGEST: usize = 137;
/// The digests that a name may have.
const DIGESTS: &str = "digest must be sha256:<64 hexadecimal digits> or sha512:<128 hexadecimal digits>";

impl Reference {
    /// Returns true if a name is written without a registry.
    pub fn is_short(name: &str) -> bool {
        !name.split_once('/').is_some_and(|(first, _)| is_host(first))
    }

    /// Returns the host name of the registry, with its port if any.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the path of the repository.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns true if both names are of the same repository, whatever their tags and digests.
    pub fn is_of_repository(&self, other: &Reference) -> bool {
        (&self.registry, &self.path) == (&other.registry, &other.path)
    }

    /// Returns the tag, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if it is one of SHA-256.
    pub fn digest(&self) -> Option<&ManifestDigest> {
        self.digest.as_ref()
    }

    /// Returns the digest, if it is one of SHA-512. The content is known by it only in names.
    pub fn checksum(&self) -> Option<&Checksum> {
        self.checksum.as_ref()
    }

    /// Returns true if the name has a digest, and therefore always denotes the same content.
    pub fn is_pinned(&self) -> bool {
        self.digest.is_some() || self.checksum.is_some()
    }

    /// Returns the short name without tag and digest: `debian`, `me/app`, `ghcr.io/me/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.path);
        }
        let official = self.path.strip_prefix(OFFICIAL).filter(|name| !name.contains('/'));
        official.unwrap_or(&self.path).to_string()
    }

    /// Returns the shortest name of the image: without the tag `latest`.
    pub fn shortest(&self) -> String {
        match (self.tag(), self.is_pinned()) {
            (Some("latest"), false) => self.familiar_name(),
            _ => self.familiar(),
        }
    }

    /// Returns the short name with tag and digest.
    pub fn familiar(&self) -> String {
        let mut name = self.familiar_name();
        if let Some(tag) = &self.tag {
            name.push_str(&format!(":{tag}"));
        }
        if let Some(digest) = &self.digest {
            name.push_str(&format!("@{digest}"));
        }
        if let Some(checksum) = &self.checksum {
            name.push_str(&format!("@{checksum}"));
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
        if let Some(checksum) = &self.checksum {
            write!(f, "@{checksum}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Parses a reference. Without tag and digest, the tag is `latest`.
    fn from_str(name: &str) -> Result<Reference, ReferenceError> {
        let fail = |reason| ReferenceError { name: name.chars().take(300).collect(), reason };
        if name.is_empty() {
            return Err(fail("name is empty"));
        }
        if name.len() > 255 + 128 + MAX_DIGEST {
            return Err(fail("name is too long"));
        }
        let (rest, digest, checksum) = match name.split_once('@') {
            Some((rest, text)) => {
                let (digest, checksum) = (text.parse().ok(), text.parse().ok());
                let checksum = checksum.filter(|sum: &Checksum| sum.algorithm() == ChecksumAlgorithm::Sha512);
                if digest.is_none() && checksum.is_none() {
                    return Err(fail(DIGESTS));
                }
                (rest, digest, checksum)
            }
            None => (name, None, None),
        };
        let is_pinned = digest.is_some() || checksum.is_some();
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            if tag.is_empty() {
                return Err(fail("the tag is empty"));
            }
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let valid = tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
            if !valid || tag.len() > 128 {
                return Err(fail("tag must consist of at most 128 letters, digits, `_`, `.` or `-`"));
            }
        }
        if tag.is_none() && !is_pinned && is_id(rest) {
            return Err(fail("64 hexadecimal digits are an image ID, which requires the prefix `sha256:`"));
        }
        let (registry, path) = split_registry(rest);
        if !valid_registry(registry) {
            return Err(fail("registry must be a host name with an optional port"));
        }
        if registry.len() + path.len() >= MAX_NAME {
            return Err(fail("name is too long"));
        }
        if path.contains(':') {
            return Err(fail("name has more than one tag"));
        }
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("the repository name must be lower case"));
        }
        if !path.split('/').all(valid_component) {
            return Err(fail("path components must be lower-case letters and digits, separated by `.`, `_` or `-`"));
        }
        let tag = match (tag, is_pinned) {
            (None, false) => Some("latest".to_string()),
            (tag, _) => tag.map(str::to_string),
        };
        Ok(Reference { registry: registry.to_string(), path, tag, digest, checksum })
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns true if the first component of a name is a registry: `localhost`, or a word with a dot,
/// a port or an upper-case letter.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
}

/// Splits a name into registry and path.
fn split_registry(name: &str) -> (&str, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let is_official = registry == DEFAULT_REGISTRY && !path.contains('/');
    (registry, if is_official { format!("{OFFICIAL}{path}") } else { path.to_string() })
}

/// Checks for a host name, or an IPv6 address in brackets, with an optional port.
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

/// Matches `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn valid_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = part.starts_with(alnum) && part.ends_with(alnum);
    ends && part.split(alnum).all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn a_name_without_a_registry_is_short() {
        for (name, is_short) in [
            ("debian", true),
            ("me/app:1.0", true),
            ("debian@sha256:0", true),
            ("localhost/x", false),
            ("a.io/x", false),
            ("a:5000/x", false),
            ("docker.io/x", false),
        ] {
            assert_eq!(Reference::is_short(name), is_short, "{name}");
        }
    }

    #[test]
    fn names_are_qualified_and_shortened() {
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
        let digest = ManifestDigest::of(b"x");
        let r: Reference = format!("a@{digest}").parse().unwrap();
        assert_eq!((r.tag(), r.digest()), (None, Some(&digest)));
        let checksum = Checksum::of(ChecksumAlgorithm::Sha512, b"x");
        for (text, tag) in [(format!("a@{checksum}"), None), (format!("a:1@{checksum}"), Some("1"))] {
            let r: Reference = text.parse().unwrap();
            assert_eq!((r.tag(), r.digest(), r.checksum()), (tag, None, Some(&checksum)));
            assert!(r.is_pinned() && r.familiar() == text && r.shortest() == text);
            assert_eq!(r.to_string(), format!("docker.io/library/{text}"));
        }
        let other = Checksum::of(ChecksumAlgorithm::Sha384, b"x");
        assert_eq!(format!("a@{other}").parse::<Reference>().unwrap_err().reason, DIGESTS);
    }

    #[test]
    fn invalid_names_are_rejected_as_recorded() {
        let id = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let long = ["h.io/".to_string() + &"a".repeat(251), "a".repeat(521)];
        let names = ["", "Debian", "a//b", "a:", "a:-x", "a:b:c", "a@sha256:1", "-a", "a..b", "a b", "a/", "é", id];
        let hosts = ["/a", ".io/a", "a.io:x/a", "a_b.io/a", "[::1/a", "[]/a", "a.io:/a"];
        let all = names.into_iter().chain(hosts).chain(long.iter().map(String::as_str));
        let errors: Vec<ReferenceError> = all.map(|name| name.parse::<Reference>().expect_err(name)).collect();
        let table = variants!(ReferenceError).table(&errors, |e| e, no_remedy);
        assert_recorded!("ReferenceError", table);
    }

    #[test]
    fn full_digests_are_ids_and_prefixes_are_names() {
        let id = ImageDigest::of(b"x");
        assert_eq!(id.to_string().parse(), Ok(ImageName::Id(id)));
        let reference = |text: &str| Ok(ImageName::Reference(text.parse().unwrap()));
        assert_eq!("b8dce".parse(), reference("docker.io/library/b8dce:latest"));
        assert_eq!("sha256:b8dce".parse(), reference("docker.io/library/sha256:b8dce"));
        assert!(id.hex().parse::<ImageName>().is_err());
    }
}
