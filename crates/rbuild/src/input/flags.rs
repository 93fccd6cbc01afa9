//! Parsers for the values of flags that `build` and `run` share, and for those of `build` alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rbuild_dockerfile::{Help, closest};
use rbuild_engine::{AgentSource, PrivateKey, SecretValues, Warning};
use rbuild_image::{ARCHITECTURES, Platform, PlatformError};
use rbuild_linux::quoted;
use rbuild_plan::{Resource, Ulimit, UnknownResource};
use rbuild_remedy::{Remedy, sentence};

use crate::exit::Failure;
use crate::input::{output, value};
use crate::ui::hints::{self, Hint, ValueRemedy};

/// Variable of docker with the platform that is selected if a verb has no `--platform`.
pub const DEFAULT_PLATFORM: &str = "DOCKER_DEFAULT_PLATFORM";

/// Returns the value of [`DEFAULT_PLATFORM`]; `None` if it is empty or unset.
pub fn default_platform() -> Option<String> {
    std::env::var(DEFAULT_PLATFORM).ok().filter(|text| !text.is_empty())
}

/// Parses the values of `--platform` of a build, or else `default`, the value of
/// [`DEFAULT_PLATFORM`]; duplicates are dropped.
pub fn platforms(given: &[String], default: Option<&str>) -> Result<Vec<Platform>, Failure> {
    match (given, default) {
        ([], Some(default)) => platforms_of(DEFAULT_PLATFORM, "=", &[default]),
        (given, _) => platforms_of("--platform", " ", given),
    }
}

fn platforms_of(setting: &str, sign: &str, lists: &[impl AsRef<str>]) -> Result<Vec<Platform>, Failure> {
    let mut all = Vec::new();
    let lists = lists.iter().map(AsRef::as_ref);
    for (list, text) in lists.flat_map(|list| list.split(',').map(move |text| (list, text))) {
        let platform = match text {
            "local" => Platform::host(),
            "" => {
                let failure = Failure::usage(format!("{setting}{sign}{list}: a platform is empty"));
                return Err(failure.help(ValueRemedy::PlatformsForm));
            }
            text => text.parse().map_err(|e| of_platform(setting, &e, &["linux", "local"]))?,
        };
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

/// Returns the warning about a platform whose system or architecture is similar to a known one. As
/// in BuildKit, unknown ones are accepted.
pub fn misspelled_platform(platform: &Platform) -> Option<Warning<Help>> {
    let near = |word: &str, known: &[&'static str]| {
        if known.contains(&word) { None } else { closest(word, known.iter().copied()).map(str::to_string) }
    };
    let (os, arch) = (near(&platform.os, &SYSTEMS), near(&platform.arch, &[&ARCHITECTURES[..], &ALIASES].concat()));
    if os.is_none() && arch.is_none() {
        return None;
    }
    let meant =
        format!("{}/{}", os.unwrap_or_else(|| platform.os.clone()), arch.unwrap_or_else(|| platform.arch.clone()));
    Some(Warning {
        text: format!("--platform {platform}: unknown platform"),
        help: Some(Remedy::did_you_mean(meant).into()),
    })
}

/// Other names of architectures, which the parser of platforms replaces.
const ALIASES: [&str; 3] = ["x86_64", "aarch64", "armhf"];

/// Operating systems that images are made for.
const SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];

fn of_platform(setting: &str, e: &PlatformError, others: &[&str]) -> Failure {
    Failure::usage(format!("{setting}: {e}")).help(platform_hint(e, others))
}

/// Parses `--platform` of a verb that selects one image, or else [`DEFAULT_PLATFORM`]; `None` if
/// neither is set.
pub fn platform(given: Option<&str>) -> Result<Option<Platform>, Failure> {
    let default = default_platform().filter(|_| given.is_none());
    let setting = if default.is_some() { DEFAULT_PLATFORM } else { "--platform" };
    let text = given.or(default.as_deref());
    text.map(|text| text.parse().map_err(|e| of_platform(setting, &e, &["linux"]))).transpose()
}

/// Suggests an architecture or one of `others` instead of an unknown platform.
pub(super) fn platform_hint(e: &PlatformError, others: &[&str]) -> Hint {
    let close = match e {
        PlatformError::Unknown(word) => closest(word, ARCHITECTURES.iter().chain(others).copied()),
        PlatformError::Invalid(_) => None,
    };
    close.map_or_else(|| ValueRemedy::PlatformForm.into(), hints::did_you_mean)
}

/// Entitlements granted by `--allow`.
#[derive(Default)]
pub struct Allowed {
    /// Commands may run with all privileges (`RUN --security=insecure`).
    pub insecure: bool,
    /// Commands may use the host's network in a build with an isolated one.
    pub host_network: bool,
    /// An output with `mode=delete` may be outside the working directory.
    pub delete: bool,
    /// The result may contain values of secrets.
    pub leaks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entitlement {
    Insecure,
    HostNetwork,
    Delete,
    Leaks,
}

const ENTITLEMENTS: [(&str, Entitlement); 5] = [
    ("security.insecure", Entitlement::Insecure),
    ("network.host", Entitlement::HostNetwork),
    ("local.delete", Entitlement::Delete),
    ("secret-in-image", Entitlement::Leaks),
    ("buildx.local.delete", Entitlement::Delete),
];

/// Parses the values of `--allow`.
pub fn allowed(given: &[String]) -> Result<Allowed, Failure> {
    let mut allowed = Allowed::default();
    for entitlement in given.iter().flat_map(|a| a.split(',')) {
        let known = value::choice("entitlement", &ENTITLEMENTS, entitlement);
        match known.map_err(|bad| bad.of(format!("--allow {entitlement}")))? {
            Entitlement::Insecure => allowed.insecure = true,
            Entitlement::HostNetwork => allowed.host_network = true,
            Entitlement::Delete => allowed.delete = true,
            Entitlement::Leaks => allowed.leaks = true,
        }
    }
    Ok(allowed)
}

/// Parses `NAME:ADDRESS` or `NAME=ADDRESS`; an IPv6 address may be in brackets.
pub fn host(text: &str) -> Result<(String, String), Failure> {
    let bad = |problem: &str| Failure::usage(format!("--add-host {text}: {problem}")).help(ValueRemedy::HostForm);
    let (name, address) =
        text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| bad("the address is missing"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    // Commands share the host's network, so the gateway to it is loopback.
    let address = if address == "host-gateway" { "127.0.0.1" } else { address };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(bad("the name is empty or contains a space"));
    }
    address.parse::<std::net::IpAddr>().map_err(|_| bad(&format!("`{address}` is not an IP address")))?;
    Ok((name.to_string(), address.to_string()))
}

/// Parses a size such as `64m` in bytes; `option` is named in errors. Zero is an error.
pub fn size(option: &str, text: &str) -> Result<u64, Failure> {
    value::size(text).map_err(|bad| bad.of(format!("{option} {text}")))
}

/// Parses `NAME=SOFT[:HARD]`; -1 and `unlimited` mean no limit.
pub fn ulimit(text: &str) -> Result<Ulimit, Failure> {
    let bad = |problem: String| Failure::usage(format!("--ulimit {text}: {problem}"));
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| bad("not of the form NAME=SOFT[:HARD]".into()).help(ValueRemedy::UlimitForm))?;
    let resource = name.parse().map_err(|_: UnknownResource| {
        let names: Vec<&str> = Resource::ALL.iter().map(|known| known.name()).collect();
        bad(format!("unknown limit `{name}`")).help(hints::suggestion(name, &names))
    })?;
    let number = |n: &str| match n {
        "-1" | "unlimited" => Ok(u64::MAX),
        n => n.parse::<u64>().map_err(|_| bad(format!("`{n}` is not a number")).help(ValueRemedy::NumberOrUnlimited)),
    };
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        let swapped = ValueRemedy::SwapLimits { resource: name.into(), soft: soft.to_string(), hard: hard.to_string() };
        return Err(bad("the soft limit exceeds the hard limit".into()).help(swapped));
    }
    let most = rbuild_linux::resource_limits::hard_limit(resource).unwrap_or(u64::MAX);
    if hard > most {
        let failure = bad(format!("the session's hard limit is {most}"));
        return Err(failure.help(ValueRemedy::RaiseHardLimit));
    }
    Ok(Ulimit { resource, soft, hard })
}

/// Returns the text of an error of a file as the rest of a sentence about it.
pub fn reason(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::IsADirectory => "it is a directory".into(),
        std::io::ErrorKind::NotADirectory => "a component of the path is not a directory".into(),
        _ => sentence(e),
    }
}

/// Parses `[manifest[OS/ARCH]:]KEY=VALUE`. An image for one platform has no index to annotate.
pub fn annotation(text: &str) -> Result<(String, String), Failure> {
    let bad = |problem: &str| Failure::usage(format!("--annotation {text}: {problem}"));
    let (key, value) =
        text.split_once('=').ok_or_else(|| bad("not of the form KEY=VALUE").help(ValueRemedy::AnnotationForm))?;
    let (kind, key) = key.split_once(':').unwrap_or(("manifest", key));
    match kind.split('[').next().unwrap_or(kind) {
        "manifest" => Ok((key.to_string(), value.to_string())),
        "index" | "index-descriptor" | "manifest-descriptor" => {
            Err(bad("an image for one platform has only a manifest").help(ValueRemedy::OmitType))
        }
        _ => Err(bad("unknown type").help(ValueRemedy::ManifestOrOmitType)),
    }
}

/// Returns those secrets named on a command line that can be read. Used to mask messages about
/// errors in the command line itself, which occur before the secrets are read.
pub fn secrets_of_line(line: &[OsString]) -> SecretValues {
    let mut words = line.iter().filter_map(|word| word.to_str());
    let mut secrets = Vec::new();
    while let Some(word) = words.next() {
        let given = if word == "--secret" { words.next() } else { word.strip_prefix("--secret=") };
        let Some(text) = given else { continue };
        let Ok(wanted) = SecretSource::parse(text) else { continue };
        // Only regular files are read: reading a pipe would consume its content.
        if wanted.file().is_none_or(|path| Path::new(path).is_file()) {
            secrets.extend(wanted.read(text).ok());
        }
    }
    SecretValues::of(&secrets)
}

/// Maximum size of a secret in bytes, the same as BuildKit's.
const MAX_SECRET: usize = 500 * 1024;

/// Parses `id=ID[,src=PATH|source=PATH][,env=NAME][,type=file|env]` and reads the value.
pub fn secret(text: &str) -> Result<(String, Vec<u8>), Failure> {
    SecretSource::parse(text)?.read(text)
}

/// The source of a secret's value. Without source and type, the environment variable named ID is
/// used if it is set, else the file named ID.
struct SecretSource {
    id: String,
    file: Option<String>,
    env: Option<String>,
    of_type: Option<SecretType>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SecretType {
    File,
    Env,
}

impl SecretSource {
    fn parse(text: &str) -> Result<SecretSource, Failure> {
        let bad = |problem: String| Failure::usage(format!("--secret {text}: {problem}"));
        let (mut id, mut file, mut env, mut of_type) = (None, None, None, None);
        for field in output::csv_fields(text).map_err(|e| bad(e.to_string()))? {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| bad(format!("`{field}` is not of the form KEY=VALUE")).help(ValueRemedy::SecretForm))?;
            match key.to_lowercase().as_str() {
                "id" => id = Some(value.to_string()),
                "src" | "source" => file = Some(value.to_string()),
                "env" => env = Some(value.to_string()),
                "type" if value == "file" => of_type = Some(SecretType::File),
                "type" if value == "env" => of_type = Some(SecretType::Env),
                "type" => {
                    let failure = bad(format!("`{value}` is not a secret type"));
                    return Err(failure.help(hints::use_one_of(&["type=file", "type=env"])));
                }
                _ => {
                    let unknown = value::unknown_option(key, &["id", "src", "env", "type"]);
                    return Err(unknown.of(format!("--secret {text}")));
                }
            }
        }
        let id = id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| bad("the ID is missing".into()).help(ValueRemedy::AddSecretId))?;
        if of_type == Some(SecretType::Env) {
            env = env.or(file.take());
        }
        Ok(SecretSource { id, file, env, of_type })
    }

    /// Returns the name of the variable that must be set.
    fn variable(&self) -> Option<&str> {
        self.env.as_deref()
    }

    /// Returns the file to read, unless the value is in a variable.
    fn file(&self) -> Option<&str> {
        let by_id = self.variable().is_none() && self.of_type != Some(SecretType::File) && self.file.is_none();
        let has_variable = self.variable().is_some() || by_id && std::env::var_os(&self.id).is_some();
        (!has_variable).then(|| self.file.as_deref().unwrap_or(&self.id))
    }

    fn read(self, text: &str) -> Result<(String, Vec<u8>), Failure> {
        let bad = |problem: String| Failure::usage(format!("--secret {text}: {problem}"));
        let value = match self.file() {
            None => {
                let name = self.variable().unwrap_or(&self.id);
                let value = std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
                value.ok_or_else(|| bad(format!("the environment variable `{name}` is not set")))?
            }
            Some(path) => std::fs::read(path).map_err(|e| {
                bad(format!("cannot read `{path}`: {}", reason(&e))).help(remedy_of_file(e.kind())).because(&e)
            })?,
        };
        if value.len() > MAX_SECRET {
            return Err(bad(format!("the value has {} bytes; the limit is {MAX_SECRET}", value.len())));
        }
        Ok((self.id, value))
    }
}

/// Returns the remedy for a file that a flag names and that cannot be read.
pub fn remedy_of_file(kind: std::io::ErrorKind) -> ValueRemedy {
    match kind {
        std::io::ErrorKind::PermissionDenied => ValueRemedy::PermitFile,
        std::io::ErrorKind::IsADirectory => ValueRemedy::PassFile,
        _ => ValueRemedy::CreateFile,
    }
}

/// Parses `default|ID[=PATH[,PATH]…]`. The paths are one agent's socket or private keys; without
/// paths, the agent at `SSH_AUTH_SOCK` is used.
pub fn agent(text: &str) -> Result<(String, AgentSource), Failure> {
    let bad = |problem: String| Failure::usage(format!("--ssh {text}: {problem}"));
    let (id, paths) = text.split_once('=').map_or((text, None), |(id, paths)| (id, Some(paths)));
    let paths: Vec<PathBuf> = match paths {
        Some(paths) => paths.split(',').map(PathBuf::from).collect(),
        None => {
            let own = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty());
            let own = own.ok_or_else(|| bad("SSH_AUTH_SOCK is not set".into()).help(ValueRemedy::StartAgent))?;
            vec![own.into()]
        }
    };
    let mut keys = Vec::new();
    for path in &paths {
        let fail = |e: std::io::Error| bad(format!("cannot open {}: {}", quoted(path), reason(&e))).because(&e);
        let path = std::fs::canonicalize(path).map_err(fail)?;
        let kind = std::fs::metadata(&path).map_err(fail)?.file_type();
        if std::os::unix::fs::FileTypeExt::is_socket(&kind) {
            if paths.len() > 1 {
                return Err(bad("an agent socket cannot be combined with other paths".into())
                    .help(ValueRemedy::SeparateSockets));
            }
            return Ok((id.to_string(), AgentSource::Socket(path)));
        }
        let bytes = std::fs::read(&path).map_err(fail)?;
        keys.push(PrivateKey::parse(&bytes).map_err(|e| {
            let help = e.remedy().as_ref().map(Hint::from);
            Failure { help, ..bad(format!("{}: {e}", quoted(&path))) }
        })?);
    }
    Ok((id.to_string(), AgentSource::Keys(keys)))
}

#[cfg(test)]
mod tests {
    use rbuild_plan::Volume;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::input::mounts::volume;

    #[test]
    fn hosts_limits_and_volumes_are_parsed() {
        let text = |s: &str| s.to_string();
        assert_eq!(host("a:10.0.0.1").unwrap(), (text("a"), text("10.0.0.1")));
        assert_eq!(host("a=[::1]").unwrap(), (text("a"), text("::1")));
        assert_eq!(host("a:::1").unwrap(), (text("a"), text("::1")));
        assert_eq!(host("gate:host-gateway").unwrap(), (text("gate"), text("127.0.0.1")));
        let limit = ulimit("nofile=16:32").unwrap();
        assert_eq!(limit, Ulimit { resource: Resource::Nofile, soft: 16, hard: 32 });
        let v = volume("/:/host:ro").unwrap();
        assert_eq!(v, Volume { source: "/".into(), target: text("/host"), read_only: true });
        assert_eq!(annotation("manifest:a.b=c=d").unwrap(), (text("a.b"), text("c=d")));
        for (given, want) in [
            (host("a").map(drop), "the address is missing"),
            (host("a:b").map(drop), "`b` is not an IP address"),
            (ulimit("nofiel=1").map(drop), "did you mean `nofile`"),
            (ulimit("nofile=3:2").map(drop), "exceeds the hard limit"),
            (volume("/nowhere-at-all:/x").map(drop), "no such file"),
            (volume("/:relative").map(drop), "absolute"),
            (annotation("index:a=b").map(drop), "has only a manifest"),
        ] {
            let f = given.unwrap_err();
            let all = format!("{} {}", f.message, f.help.map_or(String::new(), |help| help.to_string()));
            assert!(all.contains(want), "{want}: {all}");
        }
    }

    #[test]
    fn hints_about_files_of_secrets_are_as_recorded() {
        use std::io::ErrorKind;
        let kinds = [ErrorKind::PermissionDenied, ErrorKind::IsADirectory, ErrorKind::NotFound];
        let text = kinds.map(|kind| format!("{kind}: {}\n", Hint::from(remedy_of_file(kind))));
        rbuild_testkit::assert_recorded!("secret-files", text.concat());
    }

    #[test]
    fn misspelled_platforms_cause_a_warning() {
        for (text, want) in [
            ("linux/amr64", Some("linux/arm64")),
            ("linux/aarch46", Some("linux/aarch64")),
            ("lnux/amd64", Some("linux/amd64")),
            ("linux/arm64", None),
            ("linux/arm/v7", None),
            ("windows/amd64", None),
            ("plan9/z80", None),
        ] {
            let warning = misspelled_platform(&text.parse().unwrap());
            let help = warning.and_then(|warning| warning.help);
            assert_eq!(help, want.map(|want| Remedy::did_you_mean(want).into()), "{text}");
        }
    }

    #[test]
    fn quoted_fields_of_a_secret_contain_commas() {
        let dir = Scratch::new();
        let file = dir.join("a,b");
        std::fs::write(&file, "squeamish").unwrap();
        let given = format!("id=a,\"SRC={}\"", file.display());
        let read = secret(&given);
        let values = secrets_of_line(&["--secret".into(), given.into()]);
        assert_eq!(read.unwrap(), ("a".into(), b"squeamish".to_vec()));
        assert!(!values.mask("squeamish".into()).contains("squeamish"));
        for (text, want) in [("id=a,\"src=b", "unclosed quote"), ("id=a,src=\"b\"", "enclose a whole field")] {
            let message = secret(text).unwrap_err().message;
            assert!(message.contains(want), "{text}: {message}");
        }
    }
}
