//! RUN and its mounts.

use rbuild_dockerfile::ast::{self, Command, Word};
use rbuild_dockerfile::{Diagnostic, Mount, MountKind, PROXY_ARGS, Span, parse_mount};

use rbuild_image::Platform;

use super::args::{CACHE_NAMESPACE, SANDBOX_HOSTNAME};
use super::copy::file_name;
use super::{Planned, Planner, State, join};
use crate::graph::{
    AgentStep, CacheStep, From as Input, InlineFile, MountKindStep, MountStep, Network, RunStep, SecretStep, Security,
    Step,
};
use crate::history;

const HOSTNAME: &str = "buildkitsandbox";

impl Planner<'_> {
    pub(super) fn run(&mut self, state: &mut State, run: &ast::Run, span: Span) -> Planned<()> {
        self.can_run(state, span)?;
        self.devices(&run.devices)?;
        let security = self.security(run.security.as_ref())?;
        let network = match run.network.as_ref().map(|w| (w.text.as_str(), w.span)) {
            None | Some(("default", _)) => self.params.network,
            Some(("host", _)) if self.params.allow_host_network => Network::Host,
            Some(("host", span)) => {
                let d = Diagnostic::new(span, "this build keeps its commands off the machine's network");
                return Err(d.help("add --allow network.host if you trust the Dockerfile").into());
            }
            Some(("none", _)) => Network::None,
            Some((other, span)) => {
                let d = Diagnostic::new(span, format!("`{other}` is not a network"));
                return Err(d.help("the networks are default, none and host").into());
            }
        };
        let mut mounts = Vec::new();
        let mut secrets = Vec::new();
        let mut agents = Vec::new();
        for word in &run.mounts {
            let text = self.mount_text(state, word)?;
            let mount = parse_mount(&text, word.span)?;
            match mount.kind {
                MountKind::Secret => secrets.push(secret(state, &mount, word.span)?),
                MountKind::Ssh => agents.push(agent(state, &mount, agents.len(), word.span)),
                MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {
                    mounts.push(self.mount(state, &mount, word.span)?)
                }
            }
        }
        mounts.extend(self.params.volumes.iter().enumerate().map(|(index, volume)| MountStep {
            target: volume.target.clone(),
            read_only: volume.read_only,
            kind: MountKindStep::Volume { index, source: volume.source.clone() },
            span,
        }));
        let script = script(run)?;
        let (args, shown) = self.run_args(state, run, script.as_ref())?;
        let proxies = self.proxies(state);
        let created_by = history::run(&state.args, &state.vars, &args);
        let text = format!("RUN {shown}");
        let step = RunStep {
            args,
            env: state.vars.clone(),
            proxies,
            cwd: if state.config.config.working_dir.is_empty() {
                "/".into()
            } else {
                state.config.config.working_dir.clone()
            },
            user: state.config.config.user.clone(),
            network,
            security,
            hostname: self.build_arg(SANDBOX_HOSTNAME).unwrap_or_else(|| HOSTNAME.into()),
            hosts: self.params.hosts.clone(),
            mounts,
            secrets,
            agents,
            shm_size: self.params.shm_size,
            ulimits: self.params.ulimits.clone(),
            script,
        };
        self.step(state, Step::Run(step), text, created_by, span);
        Ok(())
    }

    /// Proxies that were given as build arguments and not declared: programs look for either spelling, so each gives
    /// both.
    fn proxies(&self, state: &State) -> Vec<(String, String)> {
        let given = |name: &str| self.params.build_args.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        let twin = |name: &str| {
            let upper = name.to_uppercase();
            if name == upper { name.to_lowercase() } else { upper }
        };
        let undeclared = PROXY_ARGS.iter().filter(|name| state.vars.get(name).is_none());
        undeclared.filter_map(|name| Some((name.to_string(), given(name).or_else(|| given(&twin(name)))?))).collect()
    }

    /// Whether this machine can run the stage's programs at all.
    fn can_run(&self, state: &State, span: Span) -> Planned<()> {
        let (host, wanted) = (Platform::host(), state.config.platform());
        if host.runs(&wanted) || (wanted.os == host.os && self.params.emulated.contains(&wanted.arch)) {
            return Ok(());
        }
        let d = Diagnostic::new(span, format!("this command is for {wanted}, and this machine runs {host} only"));
        Err(d
            .help(
                "install an emulator that the kernel finds by itself (Debian: apt-get install qemu-user-static \
                   binfmt-support), build on a machine of that platform, or keep to COPY in this stage",
            )
            .into())
    }

    fn security(&self, word: Option<&Word>) -> Planned<Security> {
        match word.map(|w| (w.text.as_str(), w.span)) {
            None | Some(("sandbox", _)) => Ok(Security::Sandbox),
            Some(("insecure", _)) if self.params.allow_insecure => Ok(Security::Insecure),
            Some(("insecure", span)) => {
                let d = Diagnostic::new(span, "this command asks for all rights, and the build does not allow that");
                Err(d.help("add --allow security.insecure if you trust the Dockerfile").into())
            }
            Some((other, span)) => {
                let d = Diagnostic::new(span, format!("`{other}` is not a security mode"));
                Err(d.help("the modes are sandbox and insecure").into())
            }
        }
    }

    /// Devices come from descriptions that no builder without a daemon reads; one that need not be there is left out.
    fn devices(&mut self, devices: &[Word]) -> Planned<()> {
        for word in devices {
            let required = word.text.split(',').skip(1).any(|o| o == "required" || o == "required=true");
            let d = Diagnostic::new(word.span, format!("the device `{}` cannot be given to commands", word.text));
            let d = d.help("RUN --device is not supported; /dev/null, zero, full, random, urandom and tty are there");
            if required {
                return Err(d.into());
            }
            self.warnings.push(d);
        }
        Ok(())
    }

    /// The command line of a RUN, and its short form for people.
    fn run_args(
        &mut self,
        state: &State,
        run: &ast::Run,
        script: Option<&InlineFile>,
    ) -> Planned<(Vec<String>, String)> {
        let Command::Shell(word) = &run.command else {
            return Ok((self.argv(state, &run.command), history::shown(&run.command)));
        };
        if run.heredocs.is_empty() {
            return Ok((self.argv(state, &run.command), word.text.clone()));
        }
        let mut argv = self.shell(state);
        let alone =
            run.heredocs.len() == 1 && word.text.split_whitespace().count() == 1 && run.heredocs[0].fd.is_none();
        if alone {
            let doc = &run.heredocs[0];
            if let Some(script) = script {
                argv.push(format!("/dev/pipes/{}", script.name));
                return Ok((argv, format!("<<{}", doc.name)));
            }
            argv.push(doc.body.clone());
            return Ok((argv, format!("<<{} ({})", doc.name, doc.body.trim_end().replace('\n', "; "))));
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

    fn mount(&mut self, state: &State, mount: &Mount, span: Span) -> Planned<MountStep> {
        let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
        let target = match target.as_deref() {
            Some("/") => {
                let d = Diagnostic::new(span, "a mount cannot cover the root directory");
                return Err(d.help("give a target below /").into());
            }
            Some(target) => target.to_string(),
            // The parser has seen to it that these mounts have one.
            None => return Err(Diagnostic::new(span, "the mount needs a target").into()),
        };
        let (kind, read_only) = match mount.kind {
            MountKind::Bind => {
                let from = match &mount.from {
                    None => Input::Context,
                    Some(name) => self.input_named(name, span)?,
                };
                let source = mount.source.clone().unwrap_or_else(|| "/".into());
                (MountKindStep::Bind { from, source }, mount.read_only.unwrap_or(true))
            }
            MountKind::Cache => (self.cache(mount, &target, span)?, mount.read_only.unwrap_or(false)),
            MountKind::Tmpfs => (MountKindStep::Tmpfs { size: mount.size }, false),
            MountKind::Secret | MountKind::Ssh => {
                return Err(Diagnostic::new(span, format!("a {} mount is no file system", mount.kind.name())).into());
            }
        };
        Ok(MountStep { target, read_only, kind, span })
    }

    fn cache(&mut self, mount: &Mount, target: &str, span: Span) -> Planned<MountKindStep> {
        let from = mount.from.as_ref().map(|name| self.input_named(name, span)).transpose()?;
        let id = mount.id.clone().unwrap_or_else(|| target.to_string());
        let id = match self.build_arg(CACHE_NAMESPACE) {
            Some(namespace) => format!("{namespace}/{id}"),
            None => id,
        };
        Ok(MountKindStep::Cache(CacheStep {
            id,
            sharing: mount.sharing,
            from,
            source: join("/", mount.source.as_deref().unwrap_or("/")),
            mode: mount.mode.unwrap_or(0o755),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        }))
    }

    /// Expands every option of a mount but `from`.
    fn mount_text(&mut self, state: &State, word: &Word) -> Planned<String> {
        if !word.text.contains('$') {
            return Ok(word.text.clone());
        }
        let from = word.text.split(',').find(|f| f.to_lowercase().starts_with("from=") && f.contains('$'));
        if from.is_some() {
            let d = Diagnostic::new(word.span, "`from` in a mount takes no variables");
            return Err(d.help("define a stage `FROM $NAME AS x` and use `from=x`").into());
        }
        self.word(state, word)
    }
}

/// The single here-document of a RUN that is nothing else, if it names its interpreter.
fn script(run: &ast::Run) -> Result<Option<InlineFile>, Diagnostic> {
    let ([doc], Command::Shell(word)) = (&run.heredocs[..], &run.command) else { return Ok(None) };
    let alone = word.text.split_whitespace().count() == 1 && doc.fd.is_none();
    if !alone || !doc.body.starts_with("#!") {
        return Ok(None);
    }
    file_name(doc)?;
    Ok(Some(InlineFile { name: doc.name.clone(), content: doc.body.clone() }))
}

fn secret(state: &State, mount: &Mount, span: Span) -> Planned<SecretStep> {
    let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
    let base = target.as_deref().and_then(|t| t.rsplit('/').next()).filter(|b| !b.is_empty());
    let id = mount.id.as_deref().or(mount.source.as_deref()).or(base);
    let Some(id) = id.map(str::to_string) else {
        let d = Diagnostic::new(span, "a secret mount needs to know which secret");
        return Err(d.help("add `id=NAME`").into());
    };
    // A variable alone needs no file.
    let default = || format!("/run/secrets/{}", id.rsplit('/').next().unwrap_or(&id));
    let target = target.or_else(|| mount.env.is_none().then(default));
    Ok(SecretStep {
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

/// Where the `n`th agent of a command is, unless the mount says otherwise.
fn agent(state: &State, mount: &Mount, n: usize, span: Span) -> AgentStep {
    let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
    AgentStep {
        id: mount.id.clone().unwrap_or_else(|| "default".into()),
        target: target.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{n}")),
        required: mount.required,
        mode: mount.mode.unwrap_or(0o600),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        span,
    }
}
