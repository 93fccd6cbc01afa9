//! `hosts.toml` of containerd (docs/hosts.md there).

use std::path::PathBuf;
use std::time::Duration;

use rbuild_remedy::type_message;
use serde::Deserialize;
use serde::de::Error;
use toml::{Table, Value};

use crate::config_error::{ConfigError, FileAction};
use crate::endpoint_modes::{CertificateCheck, EndpointOperations, EndpointRole};
use crate::environment::ProcessEnvironment;

/// An endpoint of a `hosts.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// URL with scheme, host and an optional path.
    pub url: String,
    pub operations: EndpointOperations,
    /// Files with additional roots.
    pub ca: Vec<PathBuf>,
    /// Files with a certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    pub check: CertificateCheck,
    pub api_path: ApiPath,
    pub headers: Vec<(String, String)>,
    /// Maximum duration of connecting, if it is set.
    pub connect: Option<Duration>,
    pub role: EndpointRole,
}

/// The path of a registry's API on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiPath {
    /// `/v2` below the path of the URL.
    Below,
    /// The path of the URL.
    Exact,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn list(self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore<PathBuf>>,
    client: Option<Value>,
    skip_verify: bool,
    override_path: bool,
    dial_timeout: Option<String>,
    header: toml::map::Map<String, Value>,
}

/// Returns the endpoints of a registry in order, if there is a file for it.
pub(crate) fn read(environment: &ProcessEnvironment, registry: &str) -> Result<Option<Vec<Host>>, ConfigError> {
    let dir = environment.system("etc/containerd/certs.d");
    let with_port = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.into_iter().chain([registry.to_string(), "_default".to_string()]);
    for dir in names.map(|name| dir.join(name)) {
        let file = dir.join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let hosts = parse(&text, registry, &dir);
                return hosts.map(Some).map_err(|e| ConfigError::toml(&file, &e));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ConfigError::file(FileAction::Read, &file)(e)),
        }
    }
    Ok(None)
}

pub(crate) fn parse(text: &str, registry: &str, dir: &std::path::Path) -> Result<Vec<Host>, toml::de::Error> {
    let mut document: Table = toml::from_str(text)?;
    let mut hosts = Vec::new();
    if let Some(listed) = document.remove("host") {
        let Value::Table(listed) = listed else { return Err(toml::de::Error::custom("`host` is not a table")) };
        for (url, entry) in listed {
            hosts.push(host(&url, entry, dir, EndpointRole::Mirror)?);
        }
    }
    let default = match registry {
        "docker.io" => "https://registry-1.docker.io".to_string(),
        other => format!("https://{other}"),
    };
    let server = document.get("server").and_then(Value::as_str).map_or(default, str::to_string);
    if !hosts.iter().any(|host| host.url == server) {
        hosts.push(host(&server, Value::Table(document), dir, EndpointRole::Registry)?);
    }
    Ok(hosts)
}

fn host(url: &str, entry: Value, dir: &std::path::Path, role: EndpointRole) -> Result<Host, toml::de::Error> {
    let entry: HostSettings = entry
        .try_into()
        .map_err(|e: toml::de::Error| toml::de::Error::custom(format!("host {url}: {}", type_message(e.message()))))?;
    let connect = entry.dial_timeout.as_deref().map(|text| {
        let invalid = || format!("host {url}: dial_timeout: `{}` is not a duration such as 5s", text.escape_debug());
        go_duration(text).ok_or_else(|| toml::de::Error::custom(invalid()))
    });
    let can =
        |operation: &str| entry.capabilities.as_ref().is_none_or(|list| list.iter().any(|word| word == operation));
    let headers = entry.header.iter().flat_map(|(name, value)| {
        let values = match value {
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            other => other.as_str().map(str::to_string).into_iter().collect::<Vec<_>>(),
        };
        values.into_iter().map(move |value| (name.clone(), value))
    });
    let ca = entry.ca.map(OneOrMore::list).unwrap_or_default();
    Ok(Host {
        url: if url.contains("://") { url.to_string() } else { format!("https://{url}") },
        operations: EndpointOperations { tags: can("resolve"), digests: can("pull"), push: can("push") },
        ca: ca.into_iter().map(|file| dir.join(file)).collect(),
        client: entry.client.and_then(client).map(|(cert, key)| (dir.join(cert), dir.join(key))),
        check: if entry.skip_verify { CertificateCheck::Skipped } else { CertificateCheck::Required },
        api_path: if entry.override_path { ApiPath::Exact } else { ApiPath::Below },
        headers: headers.collect(),
        // As in containerd, 0 stands for the default.
        connect: connect.transpose()?.filter(|connect| !connect.is_zero()),
        role,
    })
}

/// Parses a duration in the format of Go: numbers with units, such as `1m30s` or `1.5s`. As there,
/// it is less than 2^63 nanoseconds.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let length = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(length);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        if tail.is_empty() {
            // A longer one would overflow the clock.
            return Duration::try_from_secs_f64(seconds).ok().filter(|found| found.as_nanos() < 1 << 63);
        }
        rest = tail;
    }
}

/// Returns certificate and key: one file with both, or the first of a list of pairs.
fn client(value: Value) -> Option<(PathBuf, PathBuf)> {
    match value {
        Value::String(both) => Some((both.clone().into(), both.into())),
        Value::Array(list) => match &list[..] {
            [Value::Array(pair), ..] => match &pair[..] {
                [Value::String(cert), Value::String(key)] => Some((cert.into(), key.into())),
                _ => None,
            },
            [Value::String(cert), ..] => Some((cert.into(), cert.into())),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_in_the_order_of_the_file_and_the_server_is_last() {
        let text = r#"
            server = "https://a.io"
            [host."https://z.io"]
            capabilities = ["pull"]
            ca = "z.crt"
            client = [["z.cert", "z.key"]]
            [host."http://b.io/v2/hub"]
            override_path = true
            skip_verify = true
            dial_timeout = "1m1.5s"
            [host."http://b.io/v2/hub".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#;
        let hosts = parse(text, "a.io", std::path::Path::new("/d")).unwrap();
        let urls: Vec<&str> = hosts.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["https://z.io", "http://b.io/v2/hub", "https://a.io"]);
        assert_eq!(hosts[0].operations, EndpointOperations { tags: false, digests: true, push: false });
        assert_eq!(hosts[0].ca, [PathBuf::from("/d/z.crt")]);
        assert_eq!(hosts[0].client, Some(("/d/z.cert".into(), "/d/z.key".into())));
        assert_eq!((hosts[1].api_path, hosts[1].check), (ApiPath::Exact, CertificateCheck::Skipped));
        assert_eq!((hosts[1].operations, hosts[1].role), (EndpointOperations::ALL, EndpointRole::Mirror));
        assert_eq!(hosts[1].headers.len(), 3);
        assert_eq!((hosts[0].connect, hosts[1].connect), (None, Some(Duration::from_millis(61_500))));
        assert_eq!((hosts[2].operations, hosts[2].role), (EndpointOperations::ALL, EndpointRole::Registry));
        let default = parse("", "docker.io", std::path::Path::new("/d")).unwrap();
        assert_eq!(default[0].url, "https://registry-1.docker.io");
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5s", Some(5000)),
            ("+250ms", Some(250)),
            ("1h2m3s", Some(3_723_000)),
            (".5s", Some(500)),
            ("2000us", Some(2)),
            ("", None),
            ("+", None),
            ("2562048h", None),
            ("9999999999999h", None),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("5 s", None),
            ("1.2.3s", None),
            ("5d", None),
        ] {
            assert_eq!(go_duration(text), want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn mistakes_are_reported_as_recorded() {
        let line = |text: &&str| {
            let e = parse(text, "a.io", std::path::Path::new("/d")).unwrap_err();
            format!("{text}\n  {}\n", e.to_string().trim_end().replace('\n', "\n  "))
        };
        let late = "dial_timeout = \"5\"";
        let texts = ["host = 1", "[host.\"https://a\"]\nskip_verify = 1", late, "["];
        rbuild_testkit::assert_recorded!("hosts-toml", texts.iter().map(line).collect::<String>());
    }
}
