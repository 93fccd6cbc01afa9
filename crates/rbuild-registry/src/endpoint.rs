//! The servers of a repository.

use rbuild_image::Reference;

use crate::config::certs::CertFiles;
use crate::config::hosts::{self, Host};
use crate::config::registries::{Location, NameRules, Registries};
use crate::config_error::ConfigError;
use crate::environment::ProcessEnvironment;
use crate::error::{RegistryError, RegistryProblem, RemoteRepository, Result};
use crate::proxy::is_loopback;
use crate::url;

/// Transport security of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ConnectionSecurity {
    /// TLS with a trusted certificate.
    Verified,
    /// TLS with any certificate.
    Unverified,
    /// TLS with any certificate, or else plain HTTP.
    Any,
    /// Plain HTTP.
    Plain,
}

/// A server, and the repository on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host, with the port if it has one.
    pub host: String,
    /// Path before the repository, without a slash at its end: `/v2`.
    pub base: String,
    /// Path of the repository.
    pub path: String,
    pub security: ConnectionSecurity,
    /// True if the user's settings allow servers without a trusted certificate. A registry on this
    /// machine does not need this setting, but servers to which it redirects do.
    pub lax: bool,
    pub certs: CertFiles,
    pub headers: Vec<(String, String)>,
    /// The registry that a mirror replaces.
    pub namespace: Option<String>,
    pub tags: bool,
    pub digests: bool,
    pub push: bool,
    /// True for a mirror of another registry, which gets fewer retries.
    pub mirror: bool,
}

impl Endpoint {
    /// Returns true if a URL is on this server.
    pub(crate) fn is_origin_of(&self, url: &str) -> bool {
        let Some((scheme, ..)) = url::split(url) else { return false };
        let own = match self.security {
            ConnectionSecurity::Any => scheme,
            ConnectionSecurity::Plain => "http",
            ConnectionSecurity::Verified | ConnectionSecurity::Unverified => "https",
        };
        url::same_origin(url, &format!("{own}://{}/", self.host))
    }

    /// Returns the transport security for a server that this one redirects to or names as its token
    /// server; `None` if that server must not be used.
    pub(crate) fn protection_of(&self, scheme: &str, authority: &str) -> Option<ConnectionSecurity> {
        let trusted = self.lax || is_loopback(without_port(authority));
        match (scheme, trusted, self.security) {
            ("https", true, _) => Some(ConnectionSecurity::Unverified),
            ("https", false, _) => Some(ConnectionSecurity::Verified),
            (_, true, ConnectionSecurity::Any | ConnectionSecurity::Plain) => Some(ConnectionSecurity::Plain),
            _ => None,
        }
    }
}

/// The value of `--tls-verify`, if given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsVerify(pub Option<bool>);

/// Host of the default registry's API.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Returns the endpoints of a name, in the order in which they are tried.
pub(crate) fn endpoints(
    environment: &ProcessEnvironment,
    name: &Reference,
    verify: TlsVerify,
) -> Result<Vec<Endpoint>> {
    let place = || RemoteRepository { registry: name.registry().to_string(), repository: name.path().to_string() };
    let settings = |e: ConfigError| RegistryError::new(place(), e.into());
    let rules = Registries::read(environment).map_err(settings)?;
    let mut found = match rules.rule(name.registry(), name.path()) {
        NameRules::Blocked(file) => {
            return Err(RegistryError::new(place(), RegistryProblem::Blocked(file.display().to_string())));
        }
        NameRules::Targets(targets) => targets.into_iter().map(of_target).collect(),
        NameRules::None => match hosts::read(environment, name.registry()).map_err(settings)? {
            Some(hosts) => hosts.into_iter().filter_map(|host| of_host(host, name)).collect(),
            None => vec![direct(name.registry(), name.path())],
        },
    };
    for endpoint in &mut found {
        endpoint.certs.find(environment, &endpoint.host).map_err(settings)?;
        match verify.0 {
            Some(true) if endpoint.security != ConnectionSecurity::Plain => {
                (endpoint.security, endpoint.lax) = (ConnectionSecurity::Verified, false);
            }
            Some(false) => {
                endpoint.lax = true;
                if endpoint.security == ConnectionSecurity::Verified {
                    endpoint.security = ConnectionSecurity::Any;
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Returns the endpoint of a registry without settings.
fn direct(registry: &str, path: &str) -> Endpoint {
    let host = if registry == HUB.0 { HUB.1 } else { registry };
    let security = if is_loopback(without_port(host)) { ConnectionSecurity::Any } else { ConnectionSecurity::Verified };
    Endpoint {
        host: host.to_string(),
        base: "/v2".into(),
        path: path.to_string(),
        security,
        lax: false,
        certs: CertFiles::default(),
        headers: Vec::new(),
        namespace: None,
        tags: true,
        digests: true,
        push: true,
        mirror: false,
    }
}

/// Returns the host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    }
}

fn of_target(target: Location) -> Endpoint {
    let Location { host, path, insecure, mirror, tags, digests } = target;
    let plain = direct(&host, &path);
    let security = if insecure { ConnectionSecurity::Any } else { plain.security };
    // Pushes go to the location itself.
    Endpoint { security, lax: insecure, tags, digests, mirror, push: !mirror, ..plain }
}

fn of_host(host: Host, name: &Reference) -> Option<Endpoint> {
    let (scheme, rest) = host.url.split_once("://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    let base = match (path, host.override_path) {
        ("", false) => "/v2".to_string(),
        ("", true) => String::new(),
        (path, true) => format!("/{path}"),
        (path, false) if path == "v2" || path.ends_with("/v2") => format!("/{path}"),
        (path, false) => format!("/{path}/v2"),
    };
    let plain = direct(authority, name.path());
    let security = match scheme {
        "http" => ConnectionSecurity::Plain,
        _ if host.skip_verify => ConnectionSecurity::Unverified,
        _ => plain.security,
    };
    let own = host.server || authority == name.registry() || authority == HUB.1 && name.registry() == HUB.0;
    Some(Endpoint {
        base,
        security,
        lax: host.skip_verify || scheme == "http",
        certs: CertFiles { roots: host.ca, client: host.client },
        headers: host.headers,
        namespace: (!own).then(|| name.registry().to_string()),
        tags: host.resolve,
        digests: host.pull,
        push: host.push,
        mirror: !own,
        ..plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(name: &str, files: &[(&str, &str)]) -> (std::path::PathBuf, ProcessEnvironment) {
        let dir = std::env::temp_dir().join(format!("rbuild-endpoint-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let environment = ProcessEnvironment::of([("HOME", dir.join("home").to_str().unwrap())], &dir);
        (dir, environment)
    }

    fn shown(environment: &ProcessEnvironment, name: &str) -> Vec<String> {
        let all = endpoints(environment, &name.parse().unwrap(), TlsVerify(None)).unwrap();
        all.iter().map(|e| format!("{:?} {}{}/{}", e.security, e.host, e.base, e.path)).collect()
    }

    #[test]
    fn names_resolve_to_their_registry() {
        let (_, environment) = scene("plain", &[]);
        assert_eq!(shown(&environment, "alpine"), ["Verified registry-1.docker.io/v2/library/alpine"]);
        assert_eq!(shown(&environment, "localhost:5000/a/b"), ["Any localhost:5000/v2/a/b"]);
        assert_eq!(shown(&environment, "[::1]:5000/a"), ["Any [::1]:5000/v2/a"]);
        assert_eq!(shown(&environment, "a.io/b"), ["Verified a.io/v2/b"]);
    }

    #[test]
    fn plain_http_is_allowed_only_between_loopback_hosts() {
        let (_, environment) = scene("trust", &[]);
        let of =
            |name: &str, verify| endpoints(&environment, &name.parse().unwrap(), TlsVerify(verify)).unwrap().remove(0);
        let (local, remote) = (of("localhost:5000/a", None), of("a.io/b", None));
        for (scheme, host, by_local, by_remote) in [
            ("https", "b.io", Some(ConnectionSecurity::Verified), Some(ConnectionSecurity::Verified)),
            ("https", "127.0.0.1:1", Some(ConnectionSecurity::Unverified), Some(ConnectionSecurity::Unverified)),
            ("http", "127.0.0.1:1", Some(ConnectionSecurity::Plain), None),
            ("http", "b.io", None, None),
        ] {
            assert_eq!(local.protection_of(scheme, host), by_local, "{scheme} {host}");
            assert_eq!(remote.protection_of(scheme, host), by_remote, "{scheme} {host}");
        }
        let lax = of("a.io/b", Some(false));
        assert_eq!(lax.protection_of("http", "b.io"), Some(ConnectionSecurity::Plain), "the user said so");
        let strict = of("localhost/b", Some(true));
        assert_eq!(strict.protection_of("http", "localhost"), None);
        assert!(remote.is_origin_of("https://A.io:443/x") && !remote.is_origin_of("http://a.io/x"));
        assert!(!remote.is_origin_of("https://a.io:444/x") && local.is_origin_of("http://localhost:5000/"));
    }

    #[test]
    fn settings_of_podman_and_containerd_apply() {
        let conf =
            "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.io/hub\"\ninsecure = true\n";
        let hosts = "server = \"https://a.io\"\n[host.\"http://b.io/x\"]\ncapabilities = [\"pull\"]\n";
        let (dir, environment) = scene(
            "set",
            &[("home/.config/containers/registries.conf", conf), ("etc/containerd/certs.d/a.io/hosts.toml", hosts)],
        );
        assert_eq!(
            shown(&environment, "x"),
            ["Any m.io/v2/hub/library/x", "Verified registry-1.docker.io/v2/library/x"]
        );
        assert_eq!(shown(&environment, "a.io/y"), ["Plain b.io/x/v2/y", "Verified a.io/v2/y"]);
        let all = endpoints(&environment, &"a.io/y".parse().unwrap(), TlsVerify(Some(false))).unwrap();
        assert_eq!((all[0].tags, all[0].push, all[0].namespace.as_deref()), (false, false, Some("a.io")));
        assert_eq!((all[1].security, all[1].namespace.as_deref()), (ConnectionSecurity::Any, None));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
