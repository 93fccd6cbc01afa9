//! What was typed and what the environment says, as one request; nothing is read from outside after this.

use std::path::PathBuf;

use rbuild_engine::{AgentSource, BuildRequest, ImageForm, Output, PrivateKey, Squash};
use rbuild_image::{Platform, Reference, ReferenceError};
use rbuild_plan::{Network, NoCache, Parameters, Volume};
use rbuild_sandbox::{Carrier, SandboxError, Ulimit};
use rbuild_store::{Store, Workspace};

use crate::args::BuildArgs;
use crate::exit::Failure;
use crate::input::context::{self, MainContext};
use crate::input::output;

/// A request, and the place of a context that arrived by standard input, for as long as it is needed.
pub struct BuildInput {
    pub request: BuildRequest,
    pub _arrived: Option<Workspace>,
}

impl BuildInput {
    /// `recorded_owners` as the rung has it that the build will be on.
    pub fn read(args: &BuildArgs, store: &Store, recorded_owners: bool) -> Result<BuildInput, Failure> {
        let MainContext { dir, dockerfile_name, dockerfile, newest, arrived } = context::main(args, store)?;
        let mut volumes = Vec::new();
        let mut volume_paths = Vec::new();
        for text in &args.volume {
            let (path, volume) = volume(text)?;
            volumes.push(volume);
            volume_paths.push(path);
        }
        let platforms = platforms(&args.platform)?;
        let platform = platforms.first().cloned().unwrap_or_else(Platform::host);
        let (contexts, named) = context::named(&args.build_context, store, &platform)?;
        let platform_given = !platforms.is_empty();
        let allowed = allowed(&args.allow)?;
        let cwd = std::env::current_dir().map_err(|e| Failure::new(format!("the working directory: {e}")))?;
        let parameters = Parameters {
            target: args.target.clone(),
            build_args: build_args(&args.build_arg),
            labels: args.label.iter().map(|l| pair(l)).collect(),
            network: network(&args.network)?,
            platform_given,
            emulated: emulated(),
            contexts,
            no_cache: no_cache(args),
            allow_insecure: allowed.insecure,
            allow_host_network: allowed.host_network || network(&args.network)? != Network::Isolated,
            hosts: args.add_host.iter().map(|h| host(h)).collect::<Result<_, _>>()?,
            volumes,
            shm_size: args.shm_size.as_deref().map(|s| size("--shm-size", s)).transpose()?,
            ulimits: args.ulimit.iter().map(|u| Ok(in_plan(ulimit(u)?))).collect::<Result<_, Failure>>()?,
            context_epoch: newest,
            ..Parameters::new(platform)
        };
        let mut tags: Vec<Reference> = Vec::new();
        for tag in &args.tag {
            tags.push(tag.parse().map_err(|e: ReferenceError| Failure::usage(e.to_string()))?);
        }
        let carrier = carrier(parameters.network)?;
        let squash = squash(args.squash.as_deref())?;
        let (mut outputs, mut stdout_is_taken) = (Vec::new(), false);
        for text in &args.output {
            let parsed = output::parse(text)?;
            if parsed.is_stdout() && std::mem::replace(&mut stdout_is_taken, true) {
                return Err(Failure::usage("only one output can go to standard output"));
            }
            tags.extend(parsed.names.iter().cloned());
            if parsed.delete && !allowed.delete && !parsed.is_below(&cwd) {
                let failure =
                    Failure::usage(format!("--output {text}: it would delete files outside the working directory"));
                return Err(failure.help("add --allow local.delete if that is meant"));
            }
            outputs.push(Output { form: ImageForm { squash, ..parsed.form }, ..parsed.open()? });
        }
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let request = BuildRequest {
            dockerfile_name,
            dockerfile,
            parameters,
            platforms,
            context: dir,
            named,
            git_modes: git_modes(args.context_modes.as_deref())?,
            volumes: volume_paths,
            tags,
            annotations: args.annotation.iter().map(|a| annotation(a)).collect::<Result<_, _>>()?,
            secrets: args.secret.iter().map(|s| secret(s)).collect::<Result<_, _>>()?,
            agents: args.ssh.iter().map(|s| agent(s)).collect::<Result<_, _>>()?,
            copies: copies()?,
            allow_leaks: allowed.leaks,
            salt: None,
            recorded_owners,
            weigh: args.timings.is_some(),
            shell_on_error: shell_on_error(args.on_error.as_deref())?,
            cache_limit: args.cache_limit.as_deref().map(|s| size("--cache-limit", s)).transpose()?,
            outputs,
            squash,
            jobs: args.jobs.unwrap_or(cores.max(4)),
            resolv_conf: resolv_conf(carrier.as_ref()),
            carrier,
            now,
            build_id: build_id(now)?,
        };
        Ok(BuildInput { request, _arrived: arrived })
    }
}

/// A name that no other build of the store has: process ids are not enough, as containers have their own.
fn build_id(now: i64) -> Result<String, Failure> {
    let random = rbuild_linux::random_bytes().map_err(|e| Failure::new(e.to_string()))?;
    Ok(format!("{now:x}-{:08x}", u32::from_le_bytes(random)))
}

fn in_plan(limit: Ulimit) -> rbuild_plan::Ulimit {
    rbuild_plan::Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard }
}

fn git_modes(text: Option<&str>) -> Result<bool, Failure> {
    match text.unwrap_or("as-is") {
        "as-is" | "" => Ok(false),
        "git" => Ok(true),
        other => Err(Failure::usage(format!("--context-modes {other}: as-is or git"))),
    }
}

/// How file systems are put together; the kernel's way wherever it works, unless somebody wants to compare.
fn copies() -> Result<bool, Failure> {
    match std::env::var("RBUILD_SNAPSHOTS").unwrap_or_default().as_str() {
        "" | "auto" => Ok(false),
        "copy" => Ok(true),
        other => Err(Failure::usage(format!("RBUILD_SNAPSHOTS={other}: auto or copy"))),
    }
}

fn shell_on_error(text: Option<&str>) -> Result<bool, Failure> {
    use std::io::IsTerminal;
    match text {
        None | Some("fail") => Ok(false),
        Some("shell") if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() => Ok(true),
        Some("shell") => Err(Failure::usage("--on-error shell: standard input and output are no terminal")
            .help("leave it out where nobody types")),
        Some(other) => Err(Failure::usage(format!("--on-error {other}: shell or fail"))),
    }
}

fn squash(text: Option<&str>) -> Result<Squash, Failure> {
    match text {
        None | Some("false") => Ok(Squash::None),
        Some("steps" | "true") => Ok(Squash::Steps),
        Some("all") => Ok(Squash::All),
        Some(other) => Err(Failure::usage(format!("--squash={other}: steps or all"))),
    }
}

fn pair(text: &str) -> (String, String) {
    let (k, v) = text.split_once('=').unwrap_or((text, ""));
    (k.to_string(), v.to_string())
}

/// A name alone passes the environment's value on, if there is one; SOURCE_DATE_EPOCH needs no asking.
fn build_args(given: &[String]) -> Vec<(String, String)> {
    let from_env = |name: &str| std::env::var(name).ok().map(|v| (name.to_string(), v));
    let mut args: Vec<(String, String)> =
        given.iter().filter_map(|arg| if arg.contains('=') { Some(pair(arg)) } else { from_env(arg) }).collect();
    if !args.iter().any(|(k, _)| k == "SOURCE_DATE_EPOCH") {
        args.extend(from_env("SOURCE_DATE_EPOCH"));
    }
    args
}

pub fn network(text: &str) -> Result<Network, Failure> {
    match text {
        "default" | "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        // As others call it.
        "isolated" | "private" => Ok(Network::Isolated),
        other => Err(Failure::usage(format!("`{other}` is not a network")).help("default, host, isolated or none")),
    }
}

/// What an isolated network takes.
pub fn carrier(network: Network) -> Result<Option<Carrier>, Failure> {
    match network {
        Network::Isolated => Ok(Some(Carrier::find().map_err(SandboxError::from)?)),
        Network::Host | Network::None => Ok(None),
    }
}

fn no_cache(args: &BuildArgs) -> NoCache {
    if args.no_cache {
        return NoCache::All;
    }
    let stages: Vec<String> = args.no_cache_filter.iter().flat_map(|f| f.split(',')).map(str::to_string).collect();
    if stages.is_empty() { NoCache::None } else { NoCache::Stages(stages) }
}

/// The platforms to build for, each once; none if none was asked for.
fn platforms(given: &[String]) -> Result<Vec<Platform>, Failure> {
    let mut all = Vec::new();
    for text in given.iter().flat_map(|p| p.split(',')).filter(|p| !p.is_empty()) {
        let platform = match text {
            "local" => Platform::host(),
            text => text.parse().map_err(|e: String| Failure::usage(format!("--platform: {e}")))?,
        };
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

/// Architectures whose programs the kernel hands to an emulator that works inside of containers too (flag F,
/// Documentation/admin-guide/binfmt-misc.rst).
fn emulated() -> Vec<String> {
    const NAMES: [(&str, &str); 10] = [
        ("aarch64", "arm64"),
        ("arm", "arm"),
        ("i386", "386"),
        ("loongarch64", "loong64"),
        ("mips64el", "mips64le"),
        ("ppc64le", "ppc64le"),
        ("riscv64", "riscv64"),
        ("s390x", "s390x"),
        ("x86_64", "amd64"),
        ("mips64", "mips64"),
    ];
    let works = |handler: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{handler}")).unwrap_or_default();
        let fixed = |l: &str| l.strip_prefix("flags:").is_some_and(|flags| flags.contains('F'));
        text.lines().any(|l| l == "enabled") && text.lines().any(fixed)
    };
    NAMES.iter().filter(|(handler, _)| works(handler)).map(|(_, arch)| arch.to_string()).collect()
}

/// What `--allow` gives leave for.
#[derive(Default)]
struct Allowed {
    /// Commands may ask for all rights.
    insecure: bool,
    /// Commands may ask for the machine's network where they are kept off it.
    host_network: bool,
    /// A mirrored directory may be anywhere.
    delete: bool,
    /// The result may hold values of secrets.
    leaks: bool,
}

fn allowed(given: &[String]) -> Result<Allowed, Failure> {
    let mut allowed = Allowed::default();
    for entitlement in given.iter().flat_map(|a| a.split(',')) {
        match entitlement {
            "security.insecure" => allowed.insecure = true,
            "local.delete" | "buildx.local.delete" => allowed.delete = true,
            "secret-in-image" => allowed.leaks = true,
            "network.host" => allowed.host_network = true,
            other => {
                let failure = Failure::usage(format!("--allow: `{other}` is nothing that can be allowed"));
                return Err(failure.help("security.insecure, local.delete, secret-in-image and network.host can be"));
            }
        }
    }
    Ok(allowed)
}

/// `name:address` or `name=address`, the address in brackets or not.
pub fn host(text: &str) -> Result<(String, String), Failure> {
    let bad = |what: &str| Failure::usage(format!("--add-host {text}: {what}")).help("write it like name:10.0.0.1");
    let (name, address) =
        text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| bad("it has no address"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    // Commands share the network of the machine.
    let address = if address == "host-gateway" { "127.0.0.1" } else { address };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(bad("it has no name"));
    }
    address.parse::<std::net::IpAddr>().map_err(|_| bad(&format!("`{address}` is not an address")))?;
    Ok((name.to_string(), address.to_string()))
}

/// The size that an option was given.
pub fn size(option: &str, text: &str) -> Result<u64, Failure> {
    let size = rbuild_dockerfile::parse_size(text).filter(|s| *s > 0);
    size.ok_or_else(|| Failure::usage(format!("{option} {text} is not a size")).help("write it like 64m or 10g"))
}

/// `name=soft[:hard]`; -1 is no limit.
pub fn ulimit(text: &str) -> Result<Ulimit, Failure> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let bad = |what: String| Failure::usage(format!("--ulimit {text}: {what}"));
    let (name, value) = text.split_once('=').ok_or_else(|| bad("it is not of the form name=soft:hard".into()))?;
    if !NAMES.contains(&name) {
        let failure = bad(format!("there is no limit `{name}`"));
        return Err(match rbuild_dockerfile::closest(name, NAMES) {
            Some(close) => failure.help(format!("did you mean `{close}`?")),
            None => failure.help(format!("the limits are {}", NAMES.join(", "))),
        });
    }
    let number = |n: &str| match n {
        "-1" | "unlimited" => Ok(u64::MAX),
        n => n.parse::<u64>().map_err(|_| bad(format!("`{n}` is not a number"))),
    };
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(bad("the soft limit is above the hard one".into()));
    }
    let most = rbuild_linux::process::hard_limit(name).unwrap_or(u64::MAX);
    if hard > most {
        let failure = bad(format!("{most} is the most that this session may have"));
        return Err(failure.help("raise the limit of the session first (ulimit -H, limits.conf, LimitNOFILE=)"));
    }
    Ok(Ulimit { name: format!("RLIMIT_{}", name.to_uppercase()), soft, hard })
}

/// `SOURCE:TARGET[:ro|rw]`.
pub fn volume(text: &str) -> Result<(PathBuf, Volume), Failure> {
    let bad = |what: String| Failure::usage(format!("--volume {text}: {what}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(bad("it is not of the form SOURCE:TARGET[:ro]".into())),
    };
    if !target.starts_with('/') || target.trim_matches('/').is_empty() {
        return Err(bad("the target is not an absolute path below /".into()));
    }
    let mut read_only = false;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // Labels of SELinux: files are not relabelled.
            "z" | "Z" => {}
            other => return Err(bad(format!("`{other}` is not an option")).help("the options are ro and rw")),
        }
    }
    let path = std::fs::canonicalize(source).map_err(|e| bad(format!("{source}: {e}")))?;
    let shown = path.to_string_lossy().into_owned();
    Ok((path, Volume { source: shown, target: target.to_string(), read_only }))
}

/// `[manifest[os/arch]:]key=value`. An image of one platform has no index to annotate.
fn annotation(text: &str) -> Result<(String, String), Failure> {
    let bad = |what: &str| Failure::usage(format!("--annotation {text}: {what}"));
    let (key, value) = text.split_once('=').ok_or_else(|| bad("it is not of the form key=value"))?;
    let (kind, key) = key.split_once(':').unwrap_or(("manifest", key));
    match kind.split('[').next().unwrap_or(kind) {
        "manifest" => Ok((key.to_string(), value.to_string())),
        "index" | "index-descriptor" | "manifest-descriptor" => {
            Err(bad("an image of one platform has a manifest only").help("leave the type out"))
        }
        _ => Err(bad("there is no such type").help("the type is manifest, or nothing")),
    }
}

/// BuildKit's limit, so that a Dockerfile that builds here builds there.
const MAX_SECRET: usize = 500 * 1024;

/// Reads `id=x[,src=path|source=path][,env=NAME][,type=file|env]`. With neither source nor type, the variable of
/// that name if it is set, and else the file of that name.
fn secret(text: &str) -> Result<(String, Vec<u8>), Failure> {
    let bad = |what: String| Failure::usage(format!("--secret {text}: {what}"));
    let (mut id, mut file, mut env, mut kind) = (None, None, None, None);
    for field in output::csv_record(text).map_err(bad)? {
        let (key, value) =
            field.split_once('=').ok_or_else(|| bad(format!("`{field}` is not of the form key=value")))?;
        match key {
            "id" => id = Some(value.to_string()),
            "src" | "source" => file = Some(value.to_string()),
            "env" => env = Some(value.to_string()),
            "type" if value == "file" || value == "env" => kind = Some(value.to_string()),
            _ => return Err(bad(format!("`{field}` is not an option")).help("the options are id, src, env and type")),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("it has no id".into()))?;
    let variable = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
    let from_env = match (&env, &file, kind.as_deref()) {
        (Some(name), _, _) => Some(variable(name).ok_or_else(|| bad(format!("the variable {name} is not set")))?),
        (None, Some(name), Some("env")) => {
            Some(variable(name).ok_or_else(|| bad(format!("the variable {name} is not set")))?)
        }
        (None, None, None | Some("env")) => variable(&id),
        _ => None,
    };
    let value = match from_env {
        Some(value) => value,
        None => {
            let path = file.unwrap_or_else(|| id.clone());
            std::fs::read(&path).map_err(|e| bad(format!("{path}: {e}")))?
        }
    };
    if value.len() > MAX_SECRET {
        return Err(bad(format!("it has {} bytes; {MAX_SECRET} are the most", value.len())));
    }
    Ok((id, value))
}

/// Reads `default|id[=path[,path]]`. Paths are sockets of agents, or private keys; with none, it is the caller's
/// own agent.
fn agent(text: &str) -> Result<(String, AgentSource), Failure> {
    let bad = |what: String| Failure::usage(format!("--ssh {text}: {what}"));
    let (id, paths) = text.split_once('=').map_or((text, None), |(id, paths)| (id, Some(paths)));
    let paths: Vec<PathBuf> = match paths {
        Some(paths) => paths.split(',').map(PathBuf::from).collect(),
        None => {
            let own = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty());
            let own = own.ok_or_else(|| {
                bad("there is no SSH_AUTH_SOCK".into())
                    .help("start an ssh-agent and add a key, or give a key: --ssh default=FILE")
            })?;
            vec![own.into()]
        }
    };
    let mut keys = Vec::new();
    for path in &paths {
        let fail = |e: std::io::Error| bad(format!("{}: {e}", path.display()));
        let path = std::fs::canonicalize(path).map_err(fail)?;
        let kind = std::fs::metadata(&path).map_err(fail)?.file_type();
        if std::os::unix::fs::FileTypeExt::is_socket(&kind) {
            if paths.len() > 1 {
                return Err(bad("one socket stands alone".into()).help("give each an id of its own"));
            }
            return Ok((id.to_string(), AgentSource::Socket(path)));
        }
        let bytes = std::fs::read(&path).map_err(fail)?;
        keys.push(PrivateKey::parse(&bytes).map_err(|e| bad(format!("{}: {e}", path.display())))?);
    }
    Ok((id.to_string(), AgentSource::Keys(keys)))
}

/// The resolver file for commands, which ask the carrier of an isolated network if there is one. Where only systemd's local stub is named, the file with the real servers.
pub fn resolv_conf(carrier: Option<&Carrier>) -> String {
    let machines = machines_resolv_conf();
    let Some(carrier) = carrier else { return machines };
    let rest = machines.lines().filter(|line| !line.trim_start().starts_with("nameserver"));
    [format!("nameserver {}", carrier.nameserver()).as_str()].into_iter().chain(rest).flat_map(|l| [l, "\n"]).collect()
}

fn machines_resolv_conf() -> String {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    let mut servers = own.lines().filter_map(|l| l.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    if servers.peek().is_some() && servers.all(|s| s == "127.0.0.53") {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_limits_and_volumes() {
        let text = |s: &str| s.to_string();
        assert_eq!(host("a:10.0.0.1").unwrap(), (text("a"), text("10.0.0.1")));
        assert_eq!(host("a=[::1]").unwrap(), (text("a"), text("::1")));
        assert_eq!(host("a:::1").unwrap(), (text("a"), text("::1")));
        assert_eq!(host("gate:host-gateway").unwrap(), (text("gate"), text("127.0.0.1")));
        let limit = ulimit("nofile=16:32").unwrap();
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 16, 32));
        let (path, v) = volume("/:/host:ro").unwrap();
        assert_eq!((path, v.target.as_str(), v.read_only), (PathBuf::from("/"), "/host", true));
        assert_eq!(annotation("manifest:a.b=c=d").unwrap(), (text("a.b"), text("c=d")));
        for (given, want) in [
            (host("a").map(drop), "no address"),
            (host("a:b").map(drop), "`b` is not an address"),
            (ulimit("nofiel=1").map(drop), "did you mean `nofile`"),
            (ulimit("nofile=3:2").map(drop), "above the hard one"),
            (volume("/nowhere-at-all:/x").map(drop), "No such file"),
            (volume("/:relative").map(drop), "absolute"),
            (annotation("index:a=b").map(drop), "has a manifest only"),
        ] {
            let f = given.unwrap_err();
            let all = format!("{} {}", f.message, f.help.unwrap_or_default());
            assert!(all.contains(want), "{want}: {all}");
        }
    }
}
