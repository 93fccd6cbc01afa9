//! Creates a [`BuildRequest`] from flags, environment variables and the context. After that, a
//! build reads no other inputs than the files of its contexts.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rbuild_engine::{BuildRequest, Export, SecretValues, Squash, Warning};
use rbuild_image::{Platform, Reference, SourceUrl};
use rbuild_linux::Timestamp;
use rbuild_plan::{NamedContext, NetworkMode, NoCache, Parameters};
use rbuild_store::{BuildId, Download, Store, Workspace};

use crate::args::BuildArgs;
use crate::exit::Failure;
use crate::input::cache::{self, CacheReader, CacheTarget};
use crate::input::context::{self, MainContext};
use crate::input::flags::{self, Allowed};
use crate::input::{machine_name, mounts, network, output, proxies, registry, value};
use crate::ui::hints::{Hint, OutputRemedy, ValueRemedy};
use crate::ui::terminal;

/// A request, with the files of contexts from standard input and URLs, which are removed when this
/// is dropped.
pub struct BuildInput {
    pub request: BuildRequest,
    /// Names under which the image is pushed.
    pub push: Vec<Reference>,
    /// Caches that are written after the build.
    pub cache_to: Vec<CacheTarget>,
    pub _contexts: Vec<Workspace>,
}

/// Downloads an input of the build into the store, with a login among its secrets.
pub type FetchInput<'a> = dyn Fn(&SourceUrl, &[(String, Vec<u8>)]) -> Result<Download, Failure> + 'a;

/// Reads the inputs of a build, as often as it is needed.
#[derive(Clone, Copy)]
pub struct InputReader<'a> {
    pub args: &'a BuildArgs,
    pub store: &'a Store,
    /// Downloads inputs at URLs.
    pub fetch: &'a FetchInput<'a>,
    /// Reads caches in registries.
    pub caches: CacheReader<'a>,
}

impl InputReader<'_> {
    /// Reads all inputs.
    ///
    /// # Errors
    ///
    /// Fails if the value of a flag is invalid, or if a file that it names cannot be read or
    /// written.
    pub fn read(&self) -> Result<BuildInput, Failure> {
        registry::check(&self.args.registry)?;
        let secrets = self.args.secret.iter().map(|s| flags::secret(s)).collect::<Result<Vec<_>, _>>()?;
        let values = SecretValues::of(&secrets);
        self.read_others(secrets).map_err(|failure| failure.masked(&values))
    }

    fn read_others(&self, secrets: Vec<(String, Vec<u8>)>) -> Result<BuildInput, Failure> {
        let InputReader { args, store, fetch, caches } = *self;
        let fetch = |url: &SourceUrl| fetch(url, &secrets);
        let MainContext { dir, dockerfile_name, dockerfile, newest, unpacked } = context::main(args, store, &fetch)?;
        let platforms = flags::platforms(&args.platform, flags::default_platform().as_deref())?;
        platforms.iter().filter_map(flags::misspelled_platform).for_each(terminal::warning);
        let platform = platforms.first().cloned().unwrap_or_else(Platform::host);
        let named = context::named(&args.build_context, store, &platform, &fetch)?;
        let allowed = flags::allowed(&args.allow)?;
        let parameters = Parameters {
            platform_given: !platforms.is_empty(),
            context_epoch: newest,
            ..parameters(args, platform, named.contexts, &allowed)?
        };
        warn_of_swallowed_context(args);
        let mut tags = tags(&args.tag)?;
        let carrier = network::carrier(parameters.network, false)?;
        let squash = squash(args.squash.as_deref().or(args.squash_all.then_some("all")))?;
        let mut push = Vec::new();
        let exports = exports(args, squash, &allowed, &mut tags, &mut push)?;
        let cache_to = cache::targets(&args.cache_to)?;
        let mut seen = HashSet::new();
        tags.retain(|tag| seen.insert(tag.to_string()));
        let is_only_pushed = !push.is_empty()
            && tags.iter().all(|tag| push.contains(tag))
            && exports.iter().all(|export| matches!(export, Export::Store { .. }));
        let now = Timestamp::now().sec;
        let cores = rbuild_linux::parallel::cores();
        let request = BuildRequest {
            dockerfile_name,
            dockerfile,
            parameters,
            platforms,
            context: dir,
            git_modes: args.context_modes.unwrap_or_default(),
            tags,
            is_only_pushed,
            annotations: args.annotation.iter().map(|a| flags::annotation(a)).collect::<Result<_, _>>()?,
            secrets,
            agents: args.ssh.iter().map(|s| flags::agent(s)).collect::<Result<_, _>>()?,
            copies: copies()?,
            pull: args.pull.unwrap_or_default(),
            allow_leaks: allowed.leaks,
            salt: None,
            record_sizes: args.timings.is_some(),
            shell_on_error: shell_on_error(args.on_error.as_deref())?,
            cache_limit: args.cache_limit,
            exports,
            squash,
            jobs: args.jobs.unwrap_or(cores.max(4)),
            resolv_conf: network::resolv_conf(carrier.as_ref()),
            carrier,
            now,
            caches: Arc::new(cache::sources(&args.cache_from, caches)?),
            cache_exports: cache_to
                .iter()
                .filter(|target| !target.is_inline())
                .map(|target| target.export.clone())
                .collect(),
            inline_cache: cache_to.iter().any(CacheTarget::is_inline),
            runner: machine_name::given(),
            build_id: build_id(now)?,
        };
        let contexts = unpacked.into_iter().chain(named.downloaded).collect();
        Ok(BuildInput { request, push, cache_to, _contexts: contexts })
    }
}

/// Warns if the value of a flag is a directory that was probably meant as the context.
fn warn_of_swallowed_context(args: &BuildArgs) {
    let given =
        args.label.iter().map(|text| ("--label", text)).chain(args.build_arg.iter().map(|a| ("--build-arg", a)));
    let is_path = |text: &str| matches!(text, "." | "..") || text.contains('/') && !text.contains('=');
    // A word alone may also be the name of a label or of a variable.
    let is_context = |text: &str| args.context == "." && Path::new(text).join("Dockerfile").exists();
    let is_swallowed = |text: &str| (is_path(text) || is_context(text)) && Path::new(text).is_dir();
    for (flag, text) in given.filter(|(_, text)| is_swallowed(text)) {
        terminal::warning(Warning {
            text: format!("`{text}` was taken as the value of {flag}; the context is `{}`", args.context),
            help: Some(Hint::from(ValueRemedy::PassPair { flag: flag.into(), context: text.clone() }).into()),
        });
    }
}

fn tags(given: &[String]) -> Result<Vec<Reference>, Failure> {
    given.iter().map(|tag| value::new_image_name(tag)).collect()
}

/// Returns the parameters of the plan that flags and environment variables set.
fn parameters(
    args: &BuildArgs,
    platform: Platform,
    contexts: Vec<NamedContext>,
    allowed: &Allowed,
) -> Result<Parameters, Failure> {
    let network = args.network;
    Ok(Parameters {
        target: args.target.clone().filter(|target| !target.is_empty()),
        build_args: proxies::with(build_args(&args.build_arg, args.timestamp.as_deref())?)?,
        labels: args.label.iter().map(|label| pair("--label", label)).collect::<Result<_, _>>()?,
        network,
        emulated: emulated(),
        contexts,
        no_cache: no_cache(args),
        allow_insecure: allowed.insecure,
        allow_host_network: allowed.host_network || network == NetworkMode::Host,
        hosts: args.add_host.iter().map(|h| flags::host(h)).collect::<Result<_, _>>()?,
        volumes: args.volume.iter().map(|v| mounts::volume(v)).collect::<Result<_, _>>()?,
        shm_size: args.shm_size.as_deref().map(|s| flags::size("--shm-size", s)).transpose()?,
        ulimits: args.ulimit.iter().map(|u| flags::ulimit(u)).collect::<Result<_, _>>()?,
        ..Parameters::new(Platform::host(), platform)
    })
}

pub(super) fn no_working_directory(e: std::io::Error) -> Failure {
    Failure::caused("cannot find the working directory", &e)
}

/// Opens the outputs. Appends the names of the image in them to `tags`, and those to push to
/// `push`.
fn exports(
    args: &BuildArgs,
    squash: Squash,
    allowed: &Allowed,
    tags: &mut Vec<Reference>,
    push: &mut Vec<Reference>,
) -> Result<Vec<Export>, Failure> {
    let registry = args.push.then(|| "type=registry".to_string());
    let mut pushes_tags = false;
    let cwd = std::env::current_dir().map_err(no_working_directory)?;
    let (mut exports, mut stdout_is_taken) = (Vec::new(), false);
    for text in args.output.iter().chain(&registry) {
        let parsed = output::parse(text)?;
        if parsed.is_stdout() && std::mem::replace(&mut stdout_is_taken, true) {
            return Err(Failure::usage("only one output can go to standard output"));
        }
        tags.extend(parsed.names.iter().cloned());
        if parsed.push {
            push.extend(parsed.names.iter().cloned());
            pushes_tags |= parsed.names.is_empty();
        }
        if parsed.delete && !allowed.delete && !parsed.is_below(&cwd) {
            let failure = Failure::usage(format!(
                "--output {text}: mode=delete would delete files outside the working directory"
            ));
            return Err(failure.help(ValueRemedy::PermitDelete));
        }
        exports.push(parsed.open(squash)?);
    }
    if pushes_tags {
        if tags.is_empty() {
            return Err(Failure::usage("pushing requires a name for the image").help(OutputRemedy::AddName));
        }
        push.extend(tags.iter().filter(|tag| !push.contains(tag)).cloned().collect::<Vec<_>>());
    }
    Ok(exports)
}

/// Returns an ID that is unique in the store. Process IDs are not unique, because containers have
/// their own PID namespaces.
pub fn build_id(now: i64) -> Result<BuildId, Failure> {
    let random = rbuild_linux::random_bytes().map_err(|e| Failure::new(e.to_string()).because(&e))?;
    Ok(BuildId::new(now, u32::from_le_bytes(random)))
}

/// Returns true if root file systems are assembled by copying even where overlay mounts work
/// (`RBUILD_SNAPSHOTS=copy`).
fn copies() -> Result<bool, Failure> {
    let text = std::env::var("RBUILD_SNAPSHOTS").unwrap_or_default();
    let words = [("auto", false), ("copy", true), ("", false)];
    value::choice("value", &words, &text).map_err(|bad| bad.of(format!("RBUILD_SNAPSHOTS={text}")))
}

pub(super) fn shell_on_error(text: Option<&str>) -> Result<bool, Failure> {
    use std::io::IsTerminal;
    let text = text.unwrap_or("fail");
    let shell = value::choice("action", &[("shell", true), ("fail", false)], text);
    let shell = shell.map_err(|bad| bad.of(format!("--on-error {text}")))?;
    if shell && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        let failure = Failure::usage("--on-error shell: standard input and output are not a terminal");
        return Err(failure.help(ValueRemedy::OmitInScripts));
    }
    Ok(shell)
}

pub(super) fn squash(text: Option<&str>) -> Result<Squash, Failure> {
    let Some(text) = text else { return Ok(Squash::None) };
    if let Some(on) = rbuild_dockerfile::parse_bool(text) {
        return Ok(if on { Squash::Steps } else { Squash::None });
    }
    let words = [("steps", Squash::Steps), ("all", Squash::All), ("false", Squash::None), ("true", Squash::Steps)];
    value::choice("value", &words, text).map_err(|bad| bad.of(format!("--squash={text}")))
}

/// Splits `NAME[=VALUE]`, the value of a flag. Messages do not contain the text, because it may be
/// confidential.
pub(super) fn pair(flag: &str, text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => {
            let failure = Failure::usage(format!("{flag}: the name is empty"));
            Err(failure.help(ValueRemedy::PairForm { flag: flag.into() }))
        }
        (name, value) => Ok((name.to_string(), value.to_string())),
    }
}

/// Parses the values of `--build-arg`. A name alone takes its value from the environment, and is
/// dropped if it is unset there. SOURCE_DATE_EPOCH is always taken from the environment.
fn build_args(given: &[String], epoch: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
    let from_env = |name: &str| std::env::var(name).ok().map(|v| (name.to_string(), v));
    let mut args = Vec::new();
    for arg in given {
        let (name, value) = pair("--build-arg", arg)?;
        args.extend(if arg.contains('=') { Some((name, value)) } else { from_env(&name) });
    }
    if !args.iter().any(|(k, _)| k == "SOURCE_DATE_EPOCH") {
        let given = epoch.map(|epoch| ("SOURCE_DATE_EPOCH".to_string(), epoch.to_string()));
        args.extend(given.or_else(|| from_env("SOURCE_DATE_EPOCH")));
    }
    Ok(args)
}

fn no_cache(args: &BuildArgs) -> NoCache {
    if args.no_cache {
        return NoCache::All;
    }
    let stages: Vec<String> = args.no_cache_filter.iter().flat_map(|f| f.split(',')).map(str::to_string).collect();
    if stages.is_empty() { NoCache::None } else { NoCache::Stages(stages) }
}

/// Returns the architectures with programs that the kernel runs with an emulator, also inside
/// containers (flag F, Documentation/admin-guide/binfmt-misc.rst).
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
