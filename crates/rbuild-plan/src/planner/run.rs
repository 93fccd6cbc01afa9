//! RUN: command line, mounts, network and security mode.

use rbuild_container::{NetworkMode, SecurityMode};
use rbuild_dockerfile::ast::{self, Command, Word};
use rbuild_dockerfile::{Diagnostic, Help, Mount, MountKind, PROXY_ARGS, Sharing, Span, expand_mount};
use rbuild_remedy::{BuildRemedy, DockerfileRemedy, MachineRemedy, Remedy};

use crate::graph::{
    CacheRoot, FileSource, InlineFile, RunAgent, RunCache, RunMount, RunMountKind, RunSecret, RunStep, Step,
};
use crate::history;
use crate::ids::VolumeId;
use crate::planner::args;
use crate::planner::args::{CACHE_NAMESPACE, SANDBOX_HOSTNAME};
use crate::planner::copy::file_name;
use crate::planner::paths::join;
use crate::planner::state::{Planned, Planner, StageState, all, both};

const HOSTNAME: &str = "buildkitsandbox";

pub(super) fn run(planner: &mut Planner<'_>, state: &mut StageState, run: &ast::Run, span: Span) -> Planned<()> {
    let machine = both(check_runnable(planner, state, span), devices(planner, &run.devices));
    let modes = both(security(planner, run.security.as_ref()), network(planner, run.network.as_ref()));
    let (_, ((security, network), mounts)) = both(machine, both(modes, step_mounts(planner, state, &run.mounts)))?;
    let StepMounts { mut mounts, secrets, agents } = mounts;
    mounts.extend(planner.params.volumes.iter().enumerate().map(|(position, volume)| RunMount {
        target: volume.target.clone(),
        read_only: volume.read_only,
        kind: RunMountKind::Volume {
            id: VolumeId::new(position),
            source: volume.source.to_string_lossy().into_owned(),
        },
        from_name: None,
        span,
    }));
    sort_mounts(&mut mounts);
    let script = script(run)?;
    if matches!(&run.command, Command::Exec(argv) if argv.is_empty()) {
        let d = Diagnostic::new(span, "RUN requires a command");
        return Err(d.help("use the form `RUN command` or `RUN [\"program\", \"argument\"]`").into());
    }
    let (args, shown) = run_args(planner, state, run, script.as_ref())?;
    let proxies = proxies(planner);
    let created_by = history::run(&state.args, &state.vars, &args);
    let text = format!("RUN {}{shown}", flags(run));
    let step = RunStep {
        platform: state.platform.clone(),
        args,
        env: state.vars.clone(),
        proxies,
        cwd: working_directory(&state.config.config.working_dir),
        user: state.config.config.user.clone(),
        network,
        security,
        hostname: args::builder_arg(planner, SANDBOX_HOSTNAME).unwrap_or_else(|| HOSTNAME.into()),
        hosts: planner.params.hosts.clone(),
        mounts,
        secrets,
        agents,
        shm_size: planner.params.shm_size,
        ulimits: planner.params.ulimits.clone(),
        script,
    };
    planner.step(state, Step::Run(step), text, created_by, span);
    Ok(())
}

/// The mounts of a step.
#[derive(Default)]
struct StepMounts {
    mounts: Vec<RunMount>,
    secrets: Vec<RunSecret>,
    agents: Vec<RunAgent>,
}

/// Returns the mounts of a step in the order of its flags, or the errors of all of them.
fn step_mounts(planner: &mut Planner<'_>, state: &StageState, words: &[Word]) -> Planned<StepMounts> {
    let mut of_step = StepMounts::default();
    let added = words.iter().map(|word| {
        let parsed = expand_mount(word, &state.vars, planner.file.escape)?;
        match parsed.kind {
            MountKind::Secret => of_step.secrets.push(secret(state, &parsed, word.span)?),
            MountKind::Ssh => of_step.agents.push(agent(state, &parsed, of_step.agents.len(), word.span)),
            MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {
                of_step.mounts.push(mount(planner, state, &parsed, word.span)?);
            }
        }
        Ok(())
    });
    all(added)?;
    Ok(of_step)
}

/// Returns the flags as shown to the user, each followed by a blank.
fn flags(run: &ast::Run) -> String {
    let one = |name: &str, word: &Word| format!("--{name}={} ", word.text);
    let mounts = run.mounts.iter().map(|word| one("mount", word));
    let network = run.network.iter().map(|word| one("network", word));
    let security = run.security.iter().map(|word| one("security", word));
    let devices = run.devices.iter().map(|device| one("device", &device.word));
    mounts.chain(network).chain(security).chain(devices).collect()
}

/// Returns the proxy settings from build arguments. Some programs read the name in upper case,
/// others in lower case, so each setting is returned under both. The case of the arguments does not
/// matter. If several are given, that with the last name applies; if it is empty, the setting is
/// omitted (BuildKit, `proxyEnvFromBuildArgs`).
fn proxies(planner: &Planner<'_>) -> Vec<(String, String)> {
    let args = &planner.params.build_args;
    let value = |name: &str| {
        let given = args.iter().map(|(given, _)| given).filter(|given| given.eq_ignore_ascii_case(name));
        planner.params.build_arg(given.max()?)
    };
    let set = PROXY_ARGS.iter().filter_map(|name| Some((name.to_string(), value(name)?.to_string())));
    set.filter(|(_, value)| !value.is_empty()).collect()
}

/// Checks that this machine can run programs of the stage's platform.
fn check_runnable(planner: &Planner<'_>, state: &StageState, span: Span) -> Planned<()> {
    let (host, wanted) = (&planner.params.host, &state.platform);
    if host.runs(wanted) || (wanted.os == host.os && planner.params.emulated.contains(&wanted.arch)) {
        return Ok(());
    }
    let d = Diagnostic::new(span, format!("the command requires {wanted}, but this machine runs only {host}"));
    if let Some(os) = rbuild_dockerfile::closest(&wanted.os, ["linux"]).filter(|os| *os != wanted.os) {
        return Err(d.help(Remedy::did_you_mean(format!("{os}/{}", wanted.arch))).into());
    }
    if !rbuild_image::ARCHITECTURES.contains(&wanted.arch.as_str()) {
        let close = rbuild_dockerfile::closest(&wanted.arch, rbuild_image::ARCHITECTURES);
        let help = close.map_or_else(
            || Help::from("use an existing architecture, such as amd64, arm64, arm, riscv64, ppc64le or s390x"),
            |close| Remedy::did_you_mean(format!("{}/{close}", wanted.os)).into(),
        );
        return Err(d.help(help).into());
    }
    if wanted.os != host.os {
        return Err(d.help(Remedy::from(MachineRemedy::BuildOnPlatform)).into());
    }
    Err(d.help(Remedy::from(MachineRemedy::InstallEmulator)).into())
}

fn network(planner: &Planner<'_>, word: Option<&Word>) -> Planned<NetworkMode> {
    match word.map(|w| (w.text.as_str(), w.span)) {
        None | Some(("default", _)) => Ok(planner.params.network),
        Some(("host", _)) if planner.params.allow_host_network => Ok(NetworkMode::Host),
        Some(("host", span)) => {
            let d = Diagnostic::new(span, "`--network=host` is not allowed in this build");
            Err(d.help(Remedy::Build(BuildRemedy::Allow { entitlement: "network.host".into() })).into())
        }
        Some(("none", _)) => Ok(NetworkMode::None),
        Some((other, span)) => {
            let d = Diagnostic::new(span, format!("unknown network mode `{other}`"));
            Err(d.suggest_one_of(other, &["default", "none", "host"]).into())
        }
    }
}

fn security(planner: &Planner<'_>, word: Option<&Word>) -> Planned<SecurityMode> {
    match word.map(|w| (w.text.as_str(), w.span)) {
        None | Some(("sandbox", _)) => Ok(SecurityMode::Sandbox),
        Some(("insecure", _)) if planner.params.allow_insecure => Ok(SecurityMode::Insecure),
        Some(("insecure", span)) => {
            let d = Diagnostic::new(span, "`--security=insecure` is not allowed in this build");
            Err(d.help(Remedy::Build(BuildRemedy::Allow { entitlement: "security.insecure".into() })).into())
        }
        Some((other, span)) => {
            let d = Diagnostic::new(span, format!("unknown security mode `{other}`"));
            Err(d.suggest_one_of(other, &["sandbox", "insecure"]).into())
        }
    }
}

/// Rejects required devices and warns about optional ones: `--device` names CDI devices, which
/// are not supported.
fn devices(planner: &mut Planner<'_>, devices: &[ast::Device]) -> Planned<()> {
    let mut errors = Vec::new();
    for ast::Device { word, required } in devices {
        let d = Diagnostic::new(
            word.span,
            format!("device `{}` is not available: RUN --device is not supported", word.text),
        );
        let d = d.help(Remedy::from(DockerfileRemedy::RemoveDevice));
        if *required { errors.push(d) } else { planner.warnings.push(d) }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}

/// Returns the command line of a RUN and its short form for display.
fn run_args(
    planner: &mut Planner<'_>,
    state: &StageState,
    run: &ast::Run,
    script: Option<&InlineFile>,
) -> Planned<(Vec<String>, String)> {
    let Command::Shell(word) = &run.command else {
        return Ok((planner.argv(state, &run.command), history::display(&run.command)));
    };
    if run.heredocs.is_empty() {
        return Ok((planner.argv(state, &run.command), word.text.clone()));
    }
    let mut argv = planner.shell(state);
    if let Some(doc) = only_heredoc(run) {
        if let Some(script) = script {
            argv.push(format!("/dev/pipes/{}", script.name));
            return Ok((argv, format!("<<{}", doc.name)));
        }
        let content = doc.content();
        let short = format!("<<{} ({})", doc.name, content.trim_end().replace('\n', "; "));
        argv.push(content.into_owned());
        return Ok((argv, short));
    }
    let mut line = word.text.clone();
    for doc in &run.heredocs {
        line.push('\n');
        line.push_str(&doc.body);
        line.push_str(&doc.name);
    }
    argv.push(line);
    Ok((argv, word.text.clone()))
}

fn mount(planner: &mut Planner<'_>, state: &StageState, mount: &Mount, span: Span) -> Planned<RunMount> {
    // Without a target, the mount covers the working directory.
    let target = join(&state.config.config.working_dir, mount.target.as_deref().unwrap_or("."));
    if target == "/" {
        let message = match &mount.target {
            Some(_) => "mount target `/` would cover the root file system",
            None => "a mount without `target` would cover the root file system, which is the working directory",
        };
        return Err(Diagnostic::new(span, message).help("set `target` to a path below /").into());
    }
    let (kind, read_only) = match mount.kind {
        MountKind::Bind => {
            let from = match &mount.from {
                None => FileSource::Context,
                Some(name) => planner.input_named(name, mount.from_span.unwrap_or(span))?,
            };
            let source = mount.source.clone().unwrap_or_else(|| "/".into());
            (RunMountKind::Bind { from, source }, mount.read_only.unwrap_or(true))
        }
        MountKind::Cache => (cache(planner, mount, &target, span)?, mount.read_only.unwrap_or(false)),
        MountKind::Tmpfs => (RunMountKind::Tmpfs { size: mount.size }, mount.read_only.unwrap_or(false)),
        MountKind::Secret | MountKind::Ssh => {
            return Err(Diagnostic::new(span, format!("a {} mount is not a file system", mount.kind.name())).into());
        }
    };
    let from_name = mount.from.clone().filter(|_| mount.kind != MountKind::Tmpfs);
    // Errors that concern the files of a mount point at the path or the name of its source.
    let span = mount.source_span.or(mount.from_span).unwrap_or(span);
    Ok(RunMount { target, read_only, kind, from_name, span })
}

fn cache(planner: &mut Planner<'_>, mount: &Mount, target: &str, span: Span) -> Planned<RunMountKind> {
    let from_span = mount.from_span.unwrap_or(span);
    let from = mount.from.as_ref().map(|name| planner.input_named(name, from_span)).transpose()?;
    // The path as written: the ID must not depend on the working directory.
    let default = || rbuild_paths::as_go(mount.target.as_deref().unwrap_or_default());
    let id = mount.id.clone().unwrap_or_else(default);
    let namespace = args::builder_arg(planner, CACHE_NAMESPACE);
    // Like BuildKit, omits the ID from the key unless it is the default (the target, after an
    // optional namespace) and the cache is shared.
    let whole = format!("{}/{id}", namespace.as_deref().unwrap_or_default());
    let is_default = whole == target || whole.split_once('/').is_some_and(|(_, rest)| rest == target);
    let id = if namespace.is_some() { whole } else { id };
    let source = join("/", mount.source.as_deref().unwrap_or("/"));
    Ok(RunMountKind::Cache(RunCache {
        id,
        id_in_key: is_default && mount.sharing == Sharing::Shared,
        sharing: mount.sharing,
        from,
        root: cache_root(mount, from.is_some(), &source),
        source,
    }))
}

/// Returns owner and permissions of the root of a cache. As in BuildKit, the root is the source
/// itself, and what the mount states does not apply to a directory below that of `from`.
fn cache_root(mount: &Mount, is_seeded: bool, source: &str) -> CacheRoot {
    let is_stated = mount.mode.is_some() || mount.uid.is_some() || mount.gid.is_some();
    let mode = mount.mode.unwrap_or(0o755) & 0o777;
    let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
    if is_seeded && (source != "/" || !is_stated) {
        CacheRoot::OfSource { mode, uid, gid }
    } else {
        CacheRoot::Stated { mode, uid, gid }
    }
}

/// Orders mounts by target, parents first, as BuildKit does (client/llb/exec.go): a mount never
/// hides one below it. Of several mounts with the same target, the last one applies.
fn sort_mounts(mounts: &mut Vec<RunMount>) {
    mounts.reverse();
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    mounts.dedup_by(|later, kept| later.target == kept.target);
}

/// Returns the working directory of a command. WORKDIR created the lexically resolved path; the
/// kernel would look for the directories before each `..`.
fn working_directory(configured: &str) -> String {
    match configured {
        "" => "/".into(),
        path if path.split('/').any(|part| part == "..") => join("/", path),
        path => path.into(),
    }
}

/// Returns the here-document of a RUN if it is the whole command. As in BuildKit, the number of a
/// file descriptor before it has no meaning then.
fn only_heredoc(run: &ast::Run) -> Option<&ast::Heredoc> {
    let ([doc], Command::Shell(word)) = (&run.heredocs[..], &run.command) else { return None };
    (word.span == doc.opener).then_some(doc)
}

/// Returns the here-document of a RUN if it is the whole command and starts with `#!`.
fn script(run: &ast::Run) -> Result<Option<InlineFile>, Diagnostic> {
    let Some(doc) = only_heredoc(run).filter(|doc| doc.content().starts_with("#!")) else { return Ok(None) };
    file_name(doc)?;
    Ok(Some(InlineFile { name: doc.name.clone(), content: doc.content().into_owned() }))
}

fn secret(state: &StageState, mount: &Mount, span: Span) -> Planned<RunSecret> {
    let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
    let Some(id) = mount.secret_id() else {
        let d = Diagnostic::new(span, "the secret mount has no ID");
        return Err(d.help("add `id=NAME`").into());
    };
    // If only `env` is given, there is no file.
    let default = || format!("/run/secrets/{}", id.rsplit('/').next().unwrap_or(&id));
    let target = target.or_else(|| mount.env.is_none().then(default));
    Ok(RunSecret {
        target,
        env: mount.env.clone(),
        required: mount.required,
        mode: mount.mode.unwrap_or(0o400),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        span,
        id,
    })
}

/// Returns the SSH agent mount; `n` numbers the default socket paths of a command.
fn agent(state: &StageState, mount: &Mount, n: usize, span: Span) -> RunAgent {
    let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
    RunAgent {
        id: mount.agent_id(),
        target: target.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{n}")),
        required: mount.required,
        mode: mount.mode.unwrap_or(0o600),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        span,
    }
}
