//! The servers of a repository.

use std::path::Path;
use std::time::Duration;

use rbuild_image::Reference;

use crate::config::certs::CertFiles;
use crate::config::hosts::{self, ApiPath, Host};
use crate::config::registries::{Location, NameRules, Registries};
use crate::config_error::ConfigError;
use crate::docker_config;
use crate::endpoint_modes::{CertificateCheck, EndpointOperations, EndpointRole, UntrustedServers};
use crate::environment::ProcessEnvironment;
use crate::error::{RegistryError, RegistryProblem, RemoteRepository, Result};
use crate::proxy::is_loopback;
use crate::server_settings::{HUB, ServerSetting, ServerSettings};
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
    /// The user's setting for this server and for those to which it redirects. A registry on this
    /// machine does not need it, but servers to which it redirects do.
    pub untrusted: UntrustedServers,
    pub certs: CertFiles,
    pub headers: Vec<(String, String)>,
    /// Maximum duration of connecting, if it is set.
    pub connect: Option<Duration>,
    /// Maximum number of connections for blobs, if it is set.
    pub connections: Option<usize>,
    /// The registry that a mirror replaces.
    pub namespace: Option<String>,
    pub operations: EndpointOperations,
    pub role: EndpointRole,
}

impl Endpoint {
    /// Returns the endpoint of a location.
    pub(crate) fn at(location: Location) -> Endpoint {
        let Location { host, path, untrusted, role, operations } = location;
        let plain = direct(&host, &path);
        let security = match untrusted {
            UntrustedServers::Allowed => ConnectionSecurity::Any,
            UntrustedServers::Refused => plain.security,
        };
        Endpoint { security, untrusted, operations, role, ..plain }
    }

    /// Returns the registry whose login is looked up for this server.
    pub(crate) fn login_name(&self) -> &str {
        if self.host == HUB.1 { HUB.0 } else { &self.host }
    }

    /// Applies the settings of the server.
    fn apply(&mut self, setting: &ServerSetting) {
        let given = match (setting.plain_http, setting.insecure) {
            (Some(true), _) => Some((ConnectionSecurity::Plain, UntrustedServers::Allowed)),
            (_, Some(true)) => Some((ConnectionSecurity::Any, UntrustedServers::Allowed)),
            (_, Some(false)) => Some((ConnectionSecurity::Verified, UntrustedServers::Refused)),
            (_, None) => None,
        };
        (self.security, self.untrusted) = given.unwrap_or((self.security, self.untrusted));
        self.connections = setting.connections.or(self.connections);
    }

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
        let trusted = self.untrusted == UntrustedServers::Allowed || is_loopback(without_port(authority));
        match (scheme, trusted, self.security) {
            ("https", true, _) => Some(ConnectionSecurity::Unverified),
            ("https", false, _) => Some(ConnectionSecurity::Verified),
            (_, true, ConnectionSecurity::Any | ConnectionSecurity::Plain) => Some(ConnectionSecurity::Plain),
            _ => None,
        }
    }
}

/// Verification of the certificates of registries (`--tls-verify`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVerify {
    /// As the user's configuration files state, or else required, except for registries on this
    /// machine.
    #[default]
    Configured,
    /// Required wherever the configuration does not state plain HTTP.
    Required,
    /// Not required: any certificate is accepted, and plain HTTP if the server does not support
    /// TLS.
    Skipped,
}

impl From<Option<bool>> for TlsVerify {
    /// Converts the value of the flag, if it was given.
    fn from(flag: Option<bool>) -> TlsVerify {
        match flag {
            None => TlsVerify::Configured,
            Some(true) => TlsVerify::Required,
            Some(false) => TlsVerify::Skipped,
        }
    }
}

/// Settings of the calling program, which take precedence over those of other programs.
#[derive(Clone, Copy)]
pub(crate) struct OwnSettings<'a> {
    pub verify: TlsVerify,
    /// Directory with certificates for registries, which replaces those of the settings.
    pub cert_dir: Option<&'a Path>,
    pub servers: &'a ServerSettings,
}

/// Returns the endpoints of a name, in the order in which they are tried.
pub(crate) fn endpoints(
    environment: &ProcessEnvironment,
    name: &Reference,
    own: OwnSettings<'_>,
) -> Result<Vec<Endpoint>> {
    let place = || RemoteRepository { registry: name.registry().to_string(), repository: name.path().to_string() };
    let settings = |e: ConfigError| RegistryError::new(place(), e.into());
    let rules = Registries::read(environment).map_err(settings)?;
    let mut found = match rules.rule(name.registry(), name.path()) {
        NameRules::Blocked(file) => {
            return Err(RegistryError::new(place(), RegistryProblem::Blocked(file.display().to_string())));
        }
        NameRules::Targets(targets) => targets.into_iter().map(Endpoint::at).collect(),
        NameRules::None => match hosts::read(environment, name.registry()).map_err(settings)? {
            Some(hosts) => hosts.into_iter().filter_map(|host| of_host(host, name)).collect(),
            None => vec![direct(name.registry(), name.path())],
        },
    };
    if let Some(mirrors) = own.servers.of(name.registry()).and_then(|setting| setting.mirrors.as_ref()) {
        found.retain(|endpoint| endpoint.role == EndpointRole::Registry);
        found.splice(0..0, mirrors.iter().map(|mirror| Endpoint::at(mirror.location(name.path()))));
    }
    let headers = docker_config::headers(environment).map_err(settings)?;
    for endpoint in &mut found {
        let setting = own.servers.of(&endpoint.host);
        match own.cert_dir {
            Some(dir) => endpoint.certs.add(dir).map_err(settings)?,
            None => {
                endpoint.certs.find(environment, &endpoint.host).map_err(settings)?;
                endpoint.certs.roots.extend(setting.and_then(|setting| setting.ca.clone()));
            }
        }
        setting.into_iter().for_each(|setting| endpoint.apply(setting));
        // As with logins, those of a registry are not sent to its mirrors.
        if endpoint.role == EndpointRole::Registry {
            endpoint.headers.extend(headers.iter().cloned());
        }
        match own.verify {
            TlsVerify::Required if endpoint.security != ConnectionSecurity::Plain => {
                (endpoint.security, endpoint.untrusted) = (ConnectionSecurity::Verified, UntrustedServers::Refused);
            }
            TlsVerify::Skipped => {
                endpoint.untrusted = UntrustedServers::Allowed;
                if endpoint.security == ConnectionSecurity::Verified {
                    endpoint.security = ConnectionSecurity::Any;
                }
            }
            TlsVerify::Required | TlsVerify::Configured => {}
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
        untrusted: UntrustedServers::Refused,
        certs: CertFiles::default(),
        headers: Vec::new(),
        connect: None,
        connections: None,
        namespace: None,
        operations: EndpointOperations::ALL,
        role: EndpointRole::Registry,
    }
}

/// Returns the host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    }
}

fn of_host(host: Host, name: &Reference) -> Option<Endpoint> {
    let (scheme, rest) = host.url.split_once("://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    let base = match (path, host.api_path) {
        ("", ApiPath::Below) => "/v2".to_string(),
        ("", ApiPath::Exact) => String::new(),
        (path, ApiPath::Exact) => format!("/{path}"),
        (path, ApiPath::Below) if path == "v2" || path.ends_with("/v2") => format!("/{path}"),
        (path, ApiPath::Below) => format!("/{path}/v2"),
    };
    let plain = direct(authority, name.path());
    let security = match scheme {
        "http" => ConnectionSecurity::Plain,
        _ if host.check == CertificateCheck::Skipped => ConnectionSecurity::Unverified,
        _ => plain.security,
    };
    let is_registry = authority == name.registry() || authority == HUB.1 && name.registry() == HUB.0;
    let role = if is_registry { EndpointRole::Registry } else { host.role };
    let untrusted = match security {
        ConnectionSecurity::Plain => UntrustedServers::Allowed,
        _ if host.check == CertificateCheck::Skipped => UntrustedServers::Allowed,
        _ => UntrustedServers::Refused,
    };
    Some(Endpoint {
        base,
        security,
        untrusted,
        certs: CertFiles { roots: host.ca, client: host.client },
        headers: host.headers,
        connect: host.connect,
        namespace: (role == EndpointRole::Mirror).then(|| name.registry().to_string()),
        operations: host.operations,
        role,
        ..plain
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rbuild_testkit::Scratch;

    use super::*;
    use crate::server_settings::MirrorPlace;

    fn scene(files: &[(&str, &str)]) -> (Scratch, ProcessEnvironment) {
        let dir = Scratch::new();
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let environment = ProcessEnvironment::of([("HOME", dir.join("home").to_str().unwrap())], &dir);
        (dir, environment)
    }

    fn tls(verify: TlsVerify) -> OwnSettings<'static> {
        static NO_SERVERS: LazyLock<ServerSettings> = LazyLock::new(ServerSettings::default);
        OwnSettings { verify, cert_dir: None, servers: &NO_SERVERS }
    }

    fn shown(environment: &ProcessEnvironment, name: &str) -> Vec<String> {
        let all = endpoints(environment, &name.parse().unwrap(), tls(TlsVerify::Configured)).unwrap();
        all.iter().map(|e| format!("{:?} {}{}/{}", e.security, e.host, e.base, e.path)).collect()
    }

    #[test]
    fn names_resolve_to_their_registry() {
        let (_dir, environment) = scene(&[]);
        assert_eq!(shown(&environment, "alpine"), ["Verified registry-1.docker.io/v2/library/alpine"]);
        assert_eq!(shown(&environment, "localhost:5000/a/b"), ["Any localhost:5000/v2/a/b"]);
        assert_eq!(shown(&environment, "[::1]:5000/a"), ["Any [::1]:5000/v2/a"]);
        assert_eq!(shown(&environment, "a.io/b"), ["Verified a.io/v2/b"]);
    }

    #[test]
    fn plain_http_is_allowed_only_between_loopback_hosts() {
        let (_dir, environment) = scene(&[]);
        let of = |name: &str, verify| endpoints(&environment, &name.parse().unwrap(), tls(verify)).unwrap().remove(0);
        let (local, remote) = (of("localhost:5000/a", TlsVerify::Configured), of("a.io/b", TlsVerify::Configured));
        for (scheme, host, by_local, by_remote) in [
            ("https", "b.io", Some(ConnectionSecurity::Verified), Some(ConnectionSecurity::Verified)),
            ("https", "127.0.0.1:1", Some(ConnectionSecurity::Unverified), Some(ConnectionSecurity::Unverified)),
            ("http", "127.0.0.1:1", Some(ConnectionSecurity::Plain), None),
            ("http", "b.io", None, None),
        ] {
            assert_eq!(local.protection_of(scheme, host), by_local, "{scheme} {host}");
            assert_eq!(remote.protection_of(scheme, host), by_remote, "{scheme} {host}");
        }
        let lax = of("a.io/b", TlsVerify::Skipped);
        assert_eq!(lax.protection_of("http", "b.io"), Some(ConnectionSecurity::Plain), "the user said so");
        let strict = of("localhost/b", TlsVerify::Required);
        assert_eq!(strict.protection_of("http", "localhost"), None);
        assert!(remote.is_origin_of("https://A.io:443/x") && !remote.is_origin_of("http://a.io/x"));
        assert!(!remote.is_origin_of("https://a.io:444/x") && local.is_origin_of("http://localhost:5000/"));
    }

    #[test]
    fn a_directory_of_certificates_replaces_those_of_the_settings() {
        let files = [
            ("etc/docker/certs.d/a.io/own.crt", ""),
            ("given/ca.crt", ""),
            ("given/me.cert", ""),
            ("given/me.key", ""),
            ("lone/me.cert", ""),
        ];
        let (dir, environment) = scene(&files);
        let of = |cert_dir: Option<&str>| {
            let cert_dir = cert_dir.map(|name| dir.join(name));
            let own = OwnSettings { cert_dir: cert_dir.as_deref(), ..tls(TlsVerify::Configured) };
            endpoints(&environment, &"a.io/b".parse().unwrap(), own).map(|mut found| found.remove(0).certs)
        };
        assert_eq!(of(None).unwrap().roots, [dir.join("etc/docker/certs.d/a.io/own.crt")]);
        let given = of(Some("given")).unwrap();
        assert_eq!(given.roots, [dir.join("given/ca.crt")]);
        assert_eq!(given.client, Some((dir.join("given/me.cert"), dir.join("given/me.key"))));
        assert!(of(Some("lone")).is_err(), "a certificate without a key");
    }

    #[test]
    fn settings_of_the_program_take_precedence() {
        let conf = "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\n\
                    [[registry]]\nlocation = \"lax.io\"\ninsecure = true\n\
                    [[registry]]\nlocation = \"no.io\"\nblocked = true\n";
        let (_dir, environment) = scene(&[("home/.config/containers/registries.conf", conf)]);
        let mut servers = ServerSettings::default();
        let mut set = |host: &str, change: &dyn Fn(&mut ServerSetting)| change(servers.of_host_mut(host).unwrap());
        let mirrors = |list: &[&str]| Some(list.iter().map(|place| MirrorPlace::parse(place).unwrap()).collect());
        set("a.io", &|s| (s.mirrors, s.ca) = (mirrors(&["n.io/hub", "localhost:1"]), Some("/ca.crt".into())));
        set("n.io", &|s| (s.insecure, s.connections) = (Some(true), Some(2)));
        set("docker.io", &|s| (s.mirrors, s.connections) = (mirrors(&["n.io"]), Some(3)));
        set("lax.io", &|s| s.insecure = Some(false));
        set("localhost:7", &|s| s.insecure = Some(false));
        set("plain.io", &|s| (s.plain_http, s.insecure) = (Some(true), Some(true)));
        set("no.io", &|s| s.mirrors = mirrors(&["n.io"]));
        let of = |name: &str, verify| {
            let own = OwnSettings { servers: &servers, ..tls(verify) };
            endpoints(&environment, &name.parse().unwrap(), own)
        };
        for (name, verify, want) in [
            ("a.io/b", TlsVerify::Configured, &["Any n.io/v2/hub/b", "Any localhost:1/v2/b", "Verified a.io/v2/b"][..]),
            ("x", TlsVerify::Configured, &["Any n.io/v2/library/x", "Verified registry-1.docker.io/v2/library/x"]),
            ("x", TlsVerify::Required, &["Verified n.io/v2/library/x", "Verified registry-1.docker.io/v2/library/x"]),
            ("lax.io/b", TlsVerify::Configured, &["Verified lax.io/v2/b"]),
            ("lax.io/b", TlsVerify::Skipped, &["Any lax.io/v2/b"]),
            ("localhost:7/b", TlsVerify::Configured, &["Verified localhost:7/v2/b"]),
            ("plain.io/b", TlsVerify::Configured, &["Plain plain.io/v2/b"]),
            ("other.io/b", TlsVerify::Configured, &["Verified other.io/v2/b"]),
        ] {
            let found = of(name, verify).unwrap();
            let shown = found.iter().map(|e| format!("{:?} {}{}/{}", e.security, e.host, e.base, e.path));
            assert_eq!(shown.collect::<Vec<_>>(), want, "{name} {verify:?}");
        }
        let found = of("a.io/b", TlsVerify::Configured).unwrap();
        let roles: Vec<_> = found.iter().map(|e| (e.role, e.operations.push, e.connections)).collect();
        let mirror = |connections| (EndpointRole::Mirror, false, connections);
        assert_eq!(roles, [mirror(Some(2)), mirror(None), (EndpointRole::Registry, true, None)]);
        assert_eq!(found[2].certs.roots, [Path::new("/ca.crt")]);
        assert_eq!(of("x", TlsVerify::Configured).unwrap()[1].connections, Some(3));
        assert!(of("no.io/b", TlsVerify::Configured).is_err(), "blocked");
    }

    #[test]
    fn settings_of_podman_and_containerd_apply() {
        let conf =
            "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.io/hub\"\ninsecure = true\n";
        let hosts = "server = \"https://a.io\"\n[host.\"http://b.io/x\"]\ncapabilities = [\"pull\"]\n\
                     dial_timeout = \"7s\"\n";
        let (_dir, environment) = scene(&[
            ("home/.config/containers/registries.conf", conf),
            ("etc/containerd/certs.d/a.io/hosts.toml", hosts),
        ]);
        assert_eq!(
            shown(&environment, "x"),
            ["Any m.io/v2/hub/library/x", "Verified registry-1.docker.io/v2/library/x"]
        );
        assert_eq!(shown(&environment, "a.io/y"), ["Plain b.io/x/v2/y", "Verified a.io/v2/y"]);
        let all = endpoints(&environment, &"a.io/y".parse().unwrap(), tls(TlsVerify::Skipped)).unwrap();
        assert_eq!(
            (all[0].operations.tags, all[0].operations.push, all[0].namespace.as_deref()),
            (false, false, Some("a.io"))
        );
        assert_eq!((all[1].security, all[1].namespace.as_deref()), (ConnectionSecurity::Any, None));
        let connect = |endpoint| crate::http::Server::of(endpoint).connect;
        assert_eq!((connect(&all[0]), connect(&all[1])), (Some(Duration::from_secs(7)), None));
    }
}
