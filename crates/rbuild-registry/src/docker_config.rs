//! Settings in docker's `config.json` other than logins.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderName, HeaderValue};

use crate::config_error::ConfigError;
use crate::environment::ProcessEnvironment;

/// Maximum size of the file in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Prefix of the names of the headers that registries get, as from Docker's daemon. The others are
/// for the connection of a client to the daemon, and may be credentials for it.
const REGISTRY_HEADERS: &str = "x-meta-";

/// Returns the proxies for containers (`proxies.default`), as variables with the names in upper
/// case. The caller gets no other part of the file into its memory, which may contain logins.
///
/// # Errors
///
/// Fails if the proxies have another form.
pub fn proxies(environment: &ProcessEnvironment) -> Result<Vec<(&'static str, String)>, ConfigError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Config {
        proxies: Option<BTreeMap<String, Option<Proxies>>>,
    }
    // As in Docker, null stands for the default of each member.
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Proxies {
        http_proxy: Option<String>,
        https_proxy: Option<String>,
        no_proxy: Option<String>,
        ftp_proxy: Option<String>,
        all_proxy: Option<String>,
    }
    let Some(path) = path(environment) else { return Ok(Vec::new()) };
    let config: Config = read(&path)?;
    let found = config.proxies.and_then(|mut proxies| proxies.remove("default")).flatten().unwrap_or_default();
    let all = [
        ("HTTP_PROXY", found.http_proxy),
        ("HTTPS_PROXY", found.https_proxy),
        ("NO_PROXY", found.no_proxy),
        ("FTP_PROXY", found.ftp_proxy),
        ("ALL_PROXY", found.all_proxy),
    ];
    let set = all.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    Ok(set.collect())
}

/// Returns the headers that are added to requests to registries: those of `HttpHeaders` whose names
/// begin with `X-Meta-`.
///
/// # Errors
///
/// Fails if such a header cannot be sent.
pub(crate) fn headers(environment: &ProcessEnvironment) -> Result<Vec<(String, String)>, ConfigError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Config {
        #[serde(rename = "HttpHeaders")]
        headers: Option<BTreeMap<String, Option<String>>>,
    }
    let Some(path) = path(environment) else { return Ok(Vec::new()) };
    let config: Config = read(&path)?;
    let is_for_registries = |name: &str| name.to_ascii_lowercase().starts_with(REGISTRY_HEADERS);
    let all = config.headers.unwrap_or_default().into_iter();
    let sent = all.filter_map(|(name, value)| Some((name, value?))).filter(|(name, _)| is_for_registries(name));
    let checked = sent.map(|(name, value)| {
        let is_valid =
            HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_bytes(value.as_bytes()).is_ok();
        // The value may be a credential.
        let invalid = || format!("`HttpHeaders`: the header `{}` cannot be sent", name.escape_debug());
        if is_valid { Ok((name, value)) } else { Err(ConfigError::content(&path, invalid())) }
    });
    checked.collect()
}

/// Returns the members of the file that `T` has. A file that does not exist, cannot be read, or is
/// not JSON has none: it is an error only if a login is needed (`credentials`).
fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ConfigError> {
    let Ok(file) = File::open(path) else { return Ok(T::default()) };
    let mut source = Wiped { file: file.take(MAX_FILE), buffer: vec![0; 4096], at: 0, end: 0 };
    match serde_json::from_reader(&mut source) {
        Ok(found) => Ok(found),
        Err(e) if !e.is_data() => Ok(T::default()),
        // The error does not quote the file.
        Err(e) => Err(ConfigError::content(path, format!("line {}: the file has invalid settings", e.line()))),
    }
}

fn path(environment: &ProcessEnvironment) -> Option<PathBuf> {
    match environment.variable("DOCKER_CONFIG") {
        Some(dir) => Some(PathBuf::from(dir).join("config.json")),
        None => environment.home(".docker/config.json"),
    }
}

/// A reader whose buffer is overwritten, so that logins in the file do not stay in memory.
struct Wiped {
    file: io::Take<File>,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Wiped {
    /// Fills the buffer if it is empty. Returns the number of bytes in it; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.at == self.end {
            (self.at, self.end) = (0, self.file.read(&mut self.buffer)?);
        }
        Ok(self.end - self.at)
    }
}

impl Read for Wiped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill()?.min(buf.len());
        buf[..n].copy_from_slice(&self.buffer[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.buffer.fill(0);
        std::hint::black_box(&self.buffer);
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded};

    use super::*;

    /// A home directory with this file.
    fn scene(text: &str) -> (Scratch, ProcessEnvironment) {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join(".docker")).unwrap();
        std::fs::write(dir.join(".docker/config.json"), text).unwrap();
        let environment = ProcessEnvironment::of([("HOME", dir.to_str().unwrap())], &dir);
        (dir, environment)
    }

    #[test]
    fn proxies_and_headers_are_read() {
        let text = r#"{
            "auths": {"r.io": {"auth": "am9lOmh1bnRlcjI="}},
            "proxies": {
                "tcp://other:1": {"httpProxy": "http://other:1"},
                "default": {"httpProxy": "http://p:1", "noProxy": "a.io", "ftpProxy": "", "unknown": 1}
            },
            "HttpHeaders": {
                "X-Meta-Team": "a", "x-meta-other": "b", "X-Meta-Null": null, "authorization": "Basic eDp5",
                "Cookie": "c=d", "Proxy-Authorization": "Basic eDp5", "Range": "bytes=0-1", "User-Agent": "x",
                "X-Metadata": "e", "Accept-Encoding": "gzip", "in valid": "f"
            },
            "credsStore": "none"
        }"#;
        let (dir, environment) = scene(text);
        let want = [("HTTP_PROXY", "http://p:1".to_string()), ("NO_PROXY", "a.io".to_string())];
        assert_eq!(proxies(&environment).unwrap(), want);
        let want = [("X-Meta-Team", "a"), ("x-meta-other", "b")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(headers(&environment).unwrap(), want);
        // Another directory.
        let elsewhere = environment.clone().with("DOCKER_CONFIG", dir.join("nosuch").to_str().unwrap());
        assert!(proxies(&elsewhere).unwrap().is_empty() && headers(&elsewhere).unwrap().is_empty());
        let nulls = [
            r#"{"proxies": null, "HttpHeaders": null}"#,
            r#"{"proxies": {"default": null}, "HttpHeaders": {"X-Meta-A": null}}"#,
            r#"{"proxies": {"default": {"httpProxy": null, "noProxy": null}}}"#,
        ];
        for text in ["", "{}", "{\n]"].into_iter().chain(nulls) {
            std::fs::write(dir.join(".docker/config.json"), text).unwrap();
            assert!(proxies(&environment).unwrap().is_empty() && headers(&environment).unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_reported_as_recorded() {
        let texts = [
            r#"{"proxies": {"default": "hunter2"}}"#,
            r#"{"proxies": 1}"#,
            r#"{"HttpHeaders": {"X-Meta-A": "hunter2\n"}}"#,
            r#"{"HttpHeaders": {"X-Meta-\u001b": "hunter2"}}"#,
        ];
        let line = |text: &&str| {
            let (dir, environment) = scene(text);
            let e = proxies(&environment).map(drop).and_then(|()| headers(&environment).map(drop)).unwrap_err();
            format!("{}\n", rbuild_remedy::sentence(&e).replace(dir.to_str().unwrap(), ""))
        };
        let table = texts.iter().map(line).collect::<String>();
        assert!(!table.contains("hunter2"), "{table}");
        assert_recorded!("docker-config", table);
    }
}
