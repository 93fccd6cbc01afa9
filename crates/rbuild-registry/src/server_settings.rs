//! Settings of registries in the configuration of the calling program.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::registries::Location;
use crate::endpoint_modes::{EndpointOperations, EndpointRole, UntrustedServers};

/// The default registry, and the host of its API.
pub(crate) const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Settings of servers, by the host, with the port if it has one.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings(BTreeMap<String, ServerSetting>);

/// Settings of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerSetting {
    /// The places that pulls of this registry try before it. They replace those of other files.
    pub mirrors: Option<Vec<MirrorPlace>>,
    /// True if any certificate is accepted, and plain HTTP if the server does not support TLS;
    /// false if a trusted certificate is required.
    pub insecure: Option<bool>,
    /// True if the server is contacted in plain HTTP only.
    pub plain_http: Option<bool>,
    /// File with authorities besides those of the system.
    pub ca: Option<PathBuf>,
    /// Maximum number of connections for blobs.
    pub connections: Option<usize>,
}

/// A place that has the repositories of a registry: a host, perhaps followed by a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPlace {
    host: String,
    /// Path before that of the repository, which ends with a slash; may be empty.
    path: String,
}

impl MirrorPlace {
    /// Parses `HOST[:PORT][/PATH]`. Returns `None` if the text has another form.
    ///
    /// ```
    /// use rbuild_registry::MirrorPlace;
    ///
    /// assert!(MirrorPlace::parse("mirror.io:5000/hub").is_some());
    /// assert!(MirrorPlace::parse("https://mirror.io").is_none());
    /// ```
    pub fn parse(text: &str) -> Option<MirrorPlace> {
        let text = text.strip_suffix('/').unwrap_or(text);
        // A name below it must be that of a repository.
        format!("{text}/x").parse::<rbuild_image::Reference>().ok()?;
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, format!("{path}/")),
            None => (text, String::new()),
        };
        is_host(host).then(|| MirrorPlace { host: host.to_string(), path })
    }

    /// Returns the location of a repository of the registry.
    pub(crate) fn location(&self, repository: &str) -> Location {
        Location {
            host: self.host.clone(),
            path: format!("{}{repository}", self.path),
            untrusted: UntrustedServers::Refused,
            role: EndpointRole::Mirror,
            operations: EndpointOperations { push: false, ..EndpointOperations::ALL },
        }
    }
}

/// Returns true if the first part of an image's name is a host.
fn is_host(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

impl ServerSettings {
    /// Returns the settings of a host, which are added if there are none. Returns `None` if the
    /// text is not a host.
    pub fn of_host_mut(&mut self, host: &str) -> Option<&mut ServerSetting> {
        (is_host(host) && !host.contains('/')).then(|| self.0.entry(host.to_string()).or_default())
    }

    /// Returns the settings of a server. Those of the default registry apply to its API.
    pub(crate) fn of(&self, host: &str) -> Option<&ServerSetting> {
        self.0.get(host).or_else(|| self.0.get(HUB.0).filter(|_| host == HUB.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_perhaps_a_path() {
        for (text, want) in [
            ("m.io", Some(("m.io", "x/y"))),
            ("m.io/", Some(("m.io", "x/y"))),
            ("m.io:5000/hub", Some(("m.io:5000", "hub/x/y"))),
            ("localhost/a/b", Some(("localhost", "a/b/x/y"))),
            ("[::1]:5000", Some(("[::1]:5000", "x/y"))),
            ("", None),
            ("hub", None),
            ("hub/a", None),
            ("http://m.io", None),
            ("m.io/A", None),
            ("m.io/a:1", None),
            ("m.io//", None),
            ("m.io?x", None),
        ] {
            let found = MirrorPlace::parse(text).map(|place| place.location("x/y"));
            let found = found.as_ref().map(|location| (location.host.as_str(), location.path.as_str()));
            assert_eq!(found, want, "{text}");
        }
    }

    #[test]
    fn settings_are_those_of_hosts() {
        let mut all = ServerSettings::default();
        for (host, is_valid) in [("docker.io", true), ("localhost:5000", true), ("x", false), ("a.io/x", false)] {
            assert_eq!(all.of_host_mut(host).is_some(), is_valid, "{host}");
        }
        all.of_host_mut("docker.io").unwrap().connections = Some(2);
        assert_eq!(all.of("registry-1.docker.io").unwrap().connections, Some(2));
        assert_eq!(all.of("docker.io").unwrap().connections, Some(2));
        assert!(all.of("a.io").is_none());
    }
}
