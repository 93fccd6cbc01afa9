//! Stages to vertices.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{self, Command, Dockerfile, Op, Stage, Word};
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Diagnostic, MountKind, Span, closest, parse_mount, parse_trigger};
use rbuild_image::{DEFAULT_PATH, Digest, Healthcheck, ImageConfig, Platform, Reference};
use serde_json::{Map, Value};

use crate::graph::{
    BuildGraph, CopyStep, From as Input, HistoryEntry, InlineFile, MountKindStep, MountStep, Network, RunStep, Step,
    Vertex, VertexId, WorkdirStep,
};
use crate::history;
use crate::scope::{Vars, expand, expand_words};

/// What the caller wants of the Dockerfile.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// A stage by name or number; the last one if not given.
    pub target: Option<String>,
    pub build_args: Vec<(String, String)>,
    /// Set on the result after the Dockerfile's own.
    pub labels: Vec<(String, String)>,
    /// What a RUN gets that asks for nothing else.
    pub network: Network,
    pub platform: Platform,
}

#[derive(Debug, Clone)]
pub struct BaseImage {
    pub manifest: Digest,
    pub config: ImageConfig,
}

/// An image whose configuration the planner lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNeed {
    pub name: String,
    pub span: Span,
    /// Stages that the name may have been meant to be.
    pub stages: Vec<String>,
}

pub enum Plan {
    Graph(Box<BuildGraph>),
    Needs(Vec<ImageNeed>),
}

const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Build arguments that mean something without being declared.
const BUILT_IN_ARGS: [&str; 2] = ["SOURCE_DATE_EPOCH", "BUILDKIT_INLINE_CACHE"];

/// Plans the target. `images` holds the configurations that are known, by the names that FROM and `--from` use.
pub fn plan(
    file: &Dockerfile,
    params: &Parameters,
    images: &HashMap<String, BaseImage>,
) -> Result<Plan, Vec<Diagnostic>> {
    let mut planner = Planner {
        file,
        params,
        images,
        globals: Vars::default(),
        states: HashMap::new(),
        open: Vec::new(),
        vertices: Vec::new(),
        image_vertices: HashMap::new(),
        needs: Vec::new(),
        warnings: Vec::new(),
        used_args: Vec::new(),
    };
    match planner.build() {
        Ok(_) if !planner.needs.is_empty() => Ok(Plan::Needs(planner.needs)),
        Ok(graph) => Ok(Plan::Graph(Box::new(graph))),
        Err(Stop::Needs) => Ok(Plan::Needs(planner.needs)),
        Err(Stop::Error(d)) => Err(vec![d]),
    }
}

enum Stop {
    /// Something must be known first; it is in `needs`.
    Needs,
    Error(Diagnostic),
}

impl From<Diagnostic> for Stop {
    fn from(d: Diagnostic) -> Stop {
        Stop::Error(d)
    }
}

type Planned<T> = std::result::Result<T, Stop>;

/// A stage up to a certain instruction.
#[derive(Debug, Clone)]
struct State {
    vertex: VertexId,
    config: ImageConfig,
    /// ENV and ARG share one space; the later declaration wins.
    vars: Vars,
    /// ARGs declared in the stage that have a value, latest value, for the history.
    args: Vars,
    history: Vec<HistoryEntry>,
    cmd_set: bool,
    /// `(done, of)` steps of the stage, for labels.
    step: usize,
    total: usize,
    stage: String,
}

struct Planner<'a> {
    file: &'a Dockerfile,
    params: &'a Parameters,
    images: &'a HashMap<String, BaseImage>,
    globals: Vars,
    states: HashMap<usize, State>,
    /// Stages being planned, for cycles.
    open: Vec<usize>,
    vertices: Vec<Vertex>,
    image_vertices: HashMap<Digest, VertexId>,
    needs: Vec<ImageNeed>,
    warnings: Vec<Diagnostic>,
    used_args: Vec<String>,
}

impl Planner<'_> {
    fn build(&mut self) -> Planned<BuildGraph> {
        let target = self.target()?;
        self.global_args(target)?;
        let mut state = self.stage(target)?;
        for (k, v) in &self.params.labels {
            state.config.config.labels.insert(k.clone(), v.clone());
        }
        for (name, _) in &self.params.build_args {
            let known = PROXIES.contains(&name.as_str()) || BUILT_IN_ARGS.contains(&name.as_str());
            if !known && !self.used_args.contains(name) {
                let span = self.file.stages[target].span;
                let d = Diagnostic::new(
                    Span::new(span.start, span.start),
                    format!("no ARG takes the build argument `{name}`"),
                );
                let declared: Vec<String> = self.declared_args();
                self.warnings.push(d.suggest(name, declared.iter().map(String::as_str)));
            }
        }
        Ok(BuildGraph {
            vertices: std::mem::take(&mut self.vertices),
            target: state.vertex,
            config: state.config,
            history: state.history,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    fn declared_args(&self) -> Vec<String> {
        let all = self.file.global_args.iter().chain(self.file.stages.iter().flat_map(|s| &s.instructions));
        all.filter_map(|i| if let Op::Arg(decls) = &i.op { Some(decls) } else { None })
            .flatten()
            .map(|d| d.name.text.clone())
            .collect()
    }

    fn target(&self) -> Planned<usize> {
        let stages = &self.file.stages;
        let Some(wanted) = &self.params.target else { return Ok(stages.len() - 1) };
        if let Some(i) = self.find_stage(wanted, stages.len()) {
            return Ok(i);
        }
        let span = stages[stages.len() - 1].span;
        let d = Diagnostic::new(Span::new(span.start, span.start), format!("there is no stage `{wanted}` to build"));
        let names = self.stage_names();
        Err(match closest(wanted, names.iter().map(String::as_str)) {
            Some(close) => d.help(format!("did you mean `{close}`?")),
            None if names.is_empty() => d.help("no stage has a name; give its number, counted from 0"),
            None => d.help(format!("the stages are {}", names.join(", "))),
        }
        .into())
    }

    fn stage_names(&self) -> Vec<String> {
        self.file.stages.iter().filter_map(|s| s.from.name.as_ref()).map(|n| n.text.clone()).collect()
    }

    /// The last stage of that name (or number) among the first `before`.
    fn find_stage(&self, name: &str, before: usize) -> Option<usize> {
        let by_name = self.file.stages[..before]
            .iter()
            .rposition(|s| s.from.name.as_ref().is_some_and(|n| n.text.eq_ignore_ascii_case(name)));
        by_name.or_else(|| name.parse().ok().filter(|i| *i < before))
    }

    fn build_arg(&mut self, name: &str) -> Option<String> {
        let value = self.params.build_args.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        if value.is_some() && !self.used_args.iter().any(|a| a == name) {
            self.used_args.push(name.to_string());
        }
        value
    }

    fn global_args(&mut self, target: usize) -> Planned<()> {
        let host = Platform::host();
        let name = self.file.stages[target].from.name.as_ref().map_or("default".into(), |n| n.text.to_lowercase());
        for (prefix, p) in [("BUILD", &host), ("TARGET", &self.params.platform)] {
            let variant = p.variant.clone().unwrap_or_default();
            for (key, value) in
                [("PLATFORM", p.to_string()), ("OS", p.os.clone()), ("ARCH", p.arch.clone()), ("VARIANT", variant)]
            {
                self.globals.set(&format!("{prefix}{key}"), &value);
            }
        }
        self.globals.set("TARGETSTAGE", &name);
        for i in 0..self.globals.0.len() {
            let key = self.globals.0[i].0.clone();
            if let Some(value) = self.build_arg(&key) {
                self.globals.0[i].1 = value;
            }
        }
        for instruction in &self.file.global_args {
            let Op::Arg(decls) = &instruction.op else { continue };
            for decl in decls {
                let value = match (self.build_arg(&decl.name.text), &decl.default) {
                    (Some(value), _) => Some(value),
                    (None, Some(word)) => Some(expand(word, self.file.escape, &self.globals, &mut self.warnings)?),
                    (None, None) => None,
                };
                if let Some(value) = value {
                    self.globals.set(&decl.name.text, &value);
                }
            }
        }
        Ok(())
    }

    /// The finished state of stage `index`; planned when it is first asked for.
    fn stage(&mut self, index: usize) -> Planned<State> {
        if let Some(state) = self.states.get(&index) {
            return Ok(state.clone());
        }
        let stage = &self.file.stages[index];
        if self.open.contains(&index) {
            let d = Diagnostic::new(stage.span, "this stage needs itself, by way of the stages it copies from");
            return Err(d.help("break the circle: one of the stages must not use the other").into());
        }
        self.open.push(index);
        let mut state = self.from(index, stage)?;
        for trigger in std::mem::take(&mut state.config.config.on_build) {
            let mut instruction = parse_trigger(&trigger).map_err(|mut e| {
                let d = e.remove(0);
                Diagnostic::new(stage.span, format!("the base image's ONBUILD trigger `{trigger}`: {}", d.message))
            })?;
            instruction.span = stage.span;
            self.instruction(&mut state, &instruction, Some(stage.from.image.span))?;
        }
        for instruction in &stage.instructions {
            self.instruction(&mut state, instruction, None)?;
        }
        self.open.pop();
        self.states.insert(index, state.clone());
        Ok(state)
    }

    fn from(&mut self, index: usize, stage: &Stage) -> Planned<State> {
        if let Some(platform) = &stage.from.platform {
            let text = expand(platform, self.file.escape, &self.globals, &mut self.warnings)?;
            let asked: Platform = text.parse().map_err(|e: String| Diagnostic::new(platform.span, e))?;
            if !Platform::host().runs(&asked) {
                let d = Diagnostic::new(
                    platform.span,
                    format!("building for {asked} on {} is not supported yet", Platform::host()),
                );
                return Err(d.help("build on a machine of that platform").into());
            }
        }
        let image = &stage.from.image;
        let name = expand(image, self.file.escape, &self.globals, &mut self.warnings)?;
        if name.is_empty() {
            let d = Diagnostic::new(image.span, format!("`{}` is empty after expansion", image.text));
            return Err(d.help("give the ARG a default before FROM, or pass --build-arg").into());
        }
        let label = match &stage.from.name {
            Some(name) => name.text.to_lowercase(),
            None if self.file.stages.len() == 1 => String::new(),
            None => format!("stage-{index}"),
        };
        let works =
            stage.instructions.iter().filter(|i| matches!(i.op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_))).count();
        let total = 1 + works;
        let base_stage = self.find_stage(&name, index).filter(|_| name.parse::<usize>().is_err());
        let mut state = match base_stage {
            Some(base) => {
                let state = self.stage(base)?;
                State { stage: label, step: 1, total, cmd_set: false, ..state }
            }
            None if name == "scratch" => {
                let vertex = self.add(Step::Scratch, None, &label, 1, total, "FROM scratch".into(), stage.span);
                let mut config = ImageConfig::empty(&self.params.platform);
                config.config.working_dir = "/".into();
                self.base_state(vertex, config, label, total)
            }
            None => {
                let Some(base) = self.image(&name, image.span)? else { return Err(Stop::Needs) };
                let (manifest, config) = (base.manifest, base.config.clone());
                let vertex = self.image_vertex(&name, manifest, &label, total, stage.span);
                self.base_state(vertex, config, label, total)
            }
        };
        if state.config.config.env("PATH").is_none() {
            state.config.config.set_env("PATH", DEFAULT_PATH);
            state.vars.set("PATH", DEFAULT_PATH);
        }
        Ok(state)
    }

    fn base_state(&self, vertex: VertexId, config: ImageConfig, stage: String, total: usize) -> State {
        let mut vars = Vars::default();
        for entry in &config.config.env {
            let (k, v) = entry.split_once('=').unwrap_or((entry, ""));
            vars.set(k, v);
        }
        State {
            vertex,
            config,
            vars,
            args: Vars::default(),
            history: Vec::new(),
            cmd_set: false,
            step: 1,
            total,
            stage,
        }
    }

    /// A known image; `None` (and a need on record) if it has to be resolved first.
    fn image(&mut self, name: &str, span: Span) -> Planned<Option<&BaseImage>> {
        if let Err(e) = name.parse::<Reference>() {
            let d = Diagnostic::new(span, e.to_string());
            return Err(d.suggest(name, self.stage_names().iter().map(String::as_str)).into());
        }
        if !self.images.contains_key(name) && !self.needs.iter().any(|n| n.name == name) {
            let stages = self.stage_names();
            self.needs.push(ImageNeed { name: name.to_string(), span, stages });
        }
        Ok(self.images.get(name))
    }

    fn image_vertex(&mut self, name: &str, manifest: Digest, label: &str, total: usize, span: Span) -> VertexId {
        if let Some(id) = self.image_vertices.get(&manifest) {
            return *id;
        }
        let step = Step::Image { name: name.to_string(), manifest };
        let id = self.add(step, None, label, 1, total, format!("FROM {name}"), span);
        self.image_vertices.insert(manifest, id);
        id
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        step: Step,
        parent: Option<VertexId>,
        stage: &str,
        number: usize,
        total: usize,
        text: String,
        span: Span,
    ) -> VertexId {
        let label = if stage.is_empty() { format!("{number}/{total}") } else { format!("{stage} {number}/{total}") };
        self.vertices.push(Vertex { step, parent, label, text, span });
        self.vertices.len() - 1
    }

    /// Adds a step to the stage, with its line of history.
    fn step(&mut self, state: &mut State, step: Step, text: String, created_by: String, span: Span) {
        state.step += 1;
        let total = state.total.max(state.step);
        let id = self.add(step, Some(state.vertex), &state.stage.clone(), state.step, total, text, span);
        state.vertex = id;
        state.history.push(HistoryEntry { created_by, layer: Some(id) });
    }

    fn note(state: &mut State, created_by: String) {
        state.history.push(HistoryEntry { created_by, layer: None });
    }

    fn word(&mut self, state: &State, word: &Word) -> Planned<String> {
        Ok(expand(word, self.file.escape, &state.vars, &mut self.warnings)?)
    }

    fn words(&mut self, state: &State, words: &[Word]) -> Planned<Vec<String>> {
        words.iter().map(|w| self.word(state, w)).collect()
    }

    /// `at`: where to point when the instruction is a trigger of a base image and stands in no file.
    fn instruction(&mut self, state: &mut State, i: &ast::Instruction, at: Option<Span>) -> Planned<()> {
        let result = self.dispatch(state, i);
        match (result, at) {
            (Err(Stop::Error(d)), Some(span)) => {
                let message = format!("in the base image's ONBUILD trigger: {}", d.message);
                Err(Stop::Error(Diagnostic { span, message, help: d.help }))
            }
            (other, _) => other,
        }
    }

    fn dispatch(&mut self, state: &mut State, i: &ast::Instruction) -> Planned<()> {
        match &i.op {
            Op::Run(run) => self.run(state, run, i.span),
            Op::Copy(copy) => self.copy(state, copy, i.span),
            Op::Workdir(word) => self.workdir(state, word, i.span),
            Op::Env(pairs) => {
                let mut text = String::from("ENV");
                // All values see the environment as it was before the instruction.
                let mut set = Vec::new();
                for pair in pairs {
                    set.push((self.word(state, &pair.name)?, self.word(state, &pair.value)?));
                }
                for (k, v) in set {
                    text.push_str(&format!(" {k}={v}"));
                    state.config.config.set_env(&k, &v);
                    state.vars.set(&k, &v);
                }
                Self::note(state, text);
                Ok(())
            }
            Op::Label(pairs) => {
                let mut text = String::from("LABEL");
                for pair in pairs {
                    let (k, v) = (self.word(state, &pair.name)?, self.word(state, &pair.value)?);
                    text.push_str(&format!(" {k}={v}"));
                    state.config.config.labels.insert(k, v);
                }
                Self::note(state, text);
                Ok(())
            }
            Op::Arg(decls) => self.arg(state, decls),
            _ => self.metadata(state, i),
        }
    }

    fn arg(&mut self, state: &mut State, decls: &[ast::ArgDecl]) -> Planned<()> {
        let mut text = String::from("ARG");
        for decl in decls {
            let name = decl.name.text.as_str();
            let value = match (self.build_arg(name), &decl.default) {
                (Some(value), _) => Some(value),
                (None, Some(default)) => Some(self.word(state, default)?),
                (None, None) => self.globals.get(name).map(str::to_string),
            };
            match value {
                Some(value) => {
                    text.push_str(&format!(" {name}={value}"));
                    state.vars.set(name, &value);
                    state.args.set(name, &value);
                }
                None => text.push_str(&format!(" {name}")),
            }
        }
        Self::note(state, text);
        Ok(())
    }

    fn workdir(&mut self, state: &mut State, word: &Word, span: Span) -> Planned<()> {
        let path = self.word(state, word)?;
        if path.is_empty() {
            return Err(Diagnostic::new(word.span, "the working directory is empty after expansion").into());
        }
        let path = join(&state.config.config.working_dir, &path);
        state.config.config.working_dir = path.clone();
        let text = format!("WORKDIR {path}");
        if path == "/" {
            Self::note(state, text);
        } else {
            let user = state.config.config.user.clone();
            self.step(state, Step::Workdir(WorkdirStep { path, user }), text.clone(), text, span);
        }
        Ok(())
    }

    /// Instructions that change the configuration only.
    fn metadata(&mut self, state: &mut State, i: &ast::Instruction) -> Planned<()> {
        let empty = || Value::Object(Map::new());
        let text = match &i.op {
            Op::User(word) => {
                let user = self.word(state, word)?;
                if user.is_empty() {
                    return Err(Diagnostic::new(word.span, "the user is empty after expansion").into());
                }
                state.config.config.user = user.clone();
                format!("USER {user}")
            }
            Op::Expose(words) => {
                let mut ports = Vec::new();
                for word in words {
                    for port in expand_words(word, self.file.escape, &state.vars, &mut self.warnings)? {
                        ports.extend(expose(&port, word.span)?);
                    }
                }
                ports.sort();
                ports.iter().for_each(|p| drop(state.config.config.exposed_ports.insert(p.clone(), empty())));
                format!("EXPOSE [{}]", ports.join(" "))
            }
            Op::Volume(words) => {
                let volumes = self.words(state, words)?;
                volumes.iter().for_each(|v| drop(state.config.config.volumes.insert(v.clone(), empty())));
                format!("VOLUME [{}]", volumes.join(" "))
            }
            Op::Shell(argv) => {
                state.config.config.shell = argv.clone();
                format!("SHELL [{}]", argv.join(" "))
            }
            Op::Stopsignal(word) => {
                let signal = self.word(state, word)?;
                if !valid_signal(&signal) {
                    let d = Diagnostic::new(word.span, format!("`{signal}` is not a signal"));
                    return Err(d.help("give a name such as SIGTERM or a number from 1 to 64").into());
                }
                state.config.config.stop_signal = signal.clone();
                format!("STOPSIGNAL {signal}")
            }
            Op::Healthcheck(check) => {
                let check = self.healthcheck(check);
                let text = history::healthcheck(&check);
                state.config.config.healthcheck = Some(check);
                text
            }
            Op::Cmd(command) => {
                let argv = self.argv(state, command);
                state.cmd_set = true;
                let text = format!("CMD {}", history::quoted_list(&argv));
                state.config.config.cmd = Some(argv);
                state.config.config.args_escaped = true;
                text
            }
            Op::Entrypoint(command) => {
                let argv = self.argv(state, command);
                let text = format!("ENTRYPOINT {}", history::quoted_list(&argv));
                state.config.config.entrypoint = if argv.is_empty() { None } else { Some(argv) };
                if !state.cmd_set {
                    state.config.config.cmd = None;
                }
                text
            }
            Op::Maintainer(word) => {
                state.config.author = Some(word.text.clone());
                format!("MAINTAINER {}", word.text)
            }
            Op::Onbuild { text, inner: _ } => {
                state.config.config.on_build.push(text.clone());
                return Ok(());
            }
            Op::Run(_) | Op::Copy(_) | Op::Workdir(_) | Op::Env(_) | Op::Label(_) | Op::Arg(_) => return Ok(()),
        };
        Self::note(state, text);
        Ok(())
    }

    fn shell(&self, state: &State) -> Vec<String> {
        match &state.config.config.shell {
            shell if shell.is_empty() => vec!["/bin/sh".into(), "-c".into()],
            shell => shell.clone(),
        }
    }

    fn argv(&self, state: &State, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(word) => {
                let mut argv = self.shell(state);
                argv.push(word.text.clone());
                argv
            }
        }
    }

    fn healthcheck(&self, check: &ast::Healthcheck) -> Healthcheck {
        match check {
            ast::Healthcheck::None => Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() },
            ast::Healthcheck::Check { interval, timeout, start_period, start_interval, retries, command } => {
                let test = match command {
                    Command::Exec(argv) => [vec!["CMD".to_string()], argv.clone()].concat(),
                    Command::Shell(word) => vec!["CMD-SHELL".into(), word.text.clone()],
                };
                Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    start_interval: *start_interval,
                    retries: *retries,
                }
            }
        }
    }

    fn run(&mut self, state: &mut State, run: &ast::Run, span: Span) -> Planned<()> {
        for (flag, word) in [("--security", &run.security), ("--device", &run.devices.first().cloned())] {
            if let Some(word) = word.as_ref().filter(|w| w.text != "sandbox") {
                return Err(not_yet(word.span, &format!("RUN {flag}")).into());
            }
        }
        let network = match run.network.as_ref().map(|w| (w.text.as_str(), w.span)) {
            None | Some(("default", _)) => self.params.network,
            Some(("host", _)) => Network::Host,
            Some(("none", _)) => Network::None,
            Some((other, span)) => {
                let d = Diagnostic::new(span, format!("`{other}` is not a network"));
                return Err(d.help("the networks are default, none and host").into());
            }
        };
        let mut mounts = Vec::new();
        for word in &run.mounts {
            mounts.push(self.mount(state, word)?);
        }
        let (args, shown) = self.run_args(state, run)?;
        let mut env = state.vars.clone();
        let mut proxies = Vec::new();
        for name in PROXIES {
            if state.args.get(name).is_none() && env.get(name).is_none() {
                proxies.extend(self.params.build_args.iter().rev().find(|(k, _)| k == name).cloned());
            }
        }
        env.0.retain(|(k, _)| !k.is_empty());
        let created_by = history::run(&state.args.0, &args);
        let text = format!("RUN {shown}");
        let step = RunStep {
            args,
            env: env.0,
            proxies,
            cwd: if state.config.config.working_dir.is_empty() {
                "/".into()
            } else {
                state.config.config.working_dir.clone()
            },
            user: state.config.config.user.clone(),
            network,
            mounts,
        };
        self.step(state, Step::Run(step), text, created_by, span);
        Ok(())
    }

    /// The command line of a RUN, and its short form for people.
    fn run_args(&mut self, state: &State, run: &ast::Run) -> Planned<(Vec<String>, String)> {
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
            if doc.body.starts_with("#!") {
                return Err(not_yet(doc.opener, "a here-document that is a script with `#!`").into());
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

    fn mount(&mut self, state: &State, word: &Word) -> Planned<MountStep> {
        let text = self.mount_text(state, word)?;
        let mount = parse_mount(&text, word.span)?;
        let target = mount.target.as_deref().map(|t| join(&state.config.config.working_dir, t));
        let target = match target.as_deref() {
            Some("/") => {
                let d = Diagnostic::new(word.span, "a mount cannot cover the root directory");
                return Err(d.help("give a target below /").into());
            }
            Some(target) => target.to_string(),
            None => return Err(not_yet(word.span, &format!("a {} mount", mount.kind.name())).into()),
        };
        let (kind, read_only) = match mount.kind {
            MountKind::Bind => {
                let from = match &mount.from {
                    None => Input::Context,
                    Some(name) => self.from_vertex(name, word.span)?,
                };
                let source = mount.source.clone().unwrap_or_else(|| "/".into());
                (MountKindStep::Bind { from, source }, mount.read_only.unwrap_or(true))
            }
            MountKind::Cache => {
                if mount.from.is_some() || mount.source.is_some() {
                    return Err(not_yet(word.span, "a cache mount with `from` or `source`").into());
                }
                let kind = MountKindStep::Cache {
                    id: mount.id.clone().unwrap_or_else(|| target.clone()),
                    sharing: mount.sharing,
                    mode: mount.mode.unwrap_or(0o755),
                    uid: mount.uid.unwrap_or(0),
                    gid: mount.gid.unwrap_or(0),
                };
                if mount.sharing == rbuild_dockerfile::Sharing::Private {
                    return Err(not_yet(word.span, "sharing=private").into());
                }
                (kind, mount.read_only.unwrap_or(false))
            }
            MountKind::Tmpfs => (MountKindStep::Tmpfs { size: mount.size }, false),
            MountKind::Secret | MountKind::Ssh => {
                return Err(not_yet(word.span, &format!("a {} mount", mount.kind.name())).into());
            }
        };
        Ok(MountStep { target, read_only, kind, span: word.span })
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

    /// The file system that `--from` or `from=` names: a stage by name or number, or an image.
    fn from_vertex(&mut self, name: &str, span: Span) -> Planned<Input> {
        let count = self.file.stages.len();
        if let Some(index) = self.find_stage(name, count) {
            return Ok(Input::Vertex(self.stage(index)?.vertex));
        }
        if name.bytes().all(|b| b.is_ascii_digit()) {
            let d = Diagnostic::new(span, format!("there is no stage {name}"));
            return Err(d.help(format!("the stages are numbered from 0 to {}", count - 1)).into());
        }
        if name == "scratch" {
            return Ok(Input::Vertex(self.add(Step::Scratch, None, "", 1, 1, "FROM scratch".into(), span)));
        }
        match self.image(name, span)? {
            Some(base) => {
                let manifest = base.manifest;
                Ok(Input::Vertex(self.image_vertex(name, manifest, name, 1, span)))
            }
            None => Err(Stop::Needs),
        }
    }

    fn copy(&mut self, state: &mut State, copy: &ast::Copy, span: Span) -> Planned<()> {
        let name = if copy.add { "ADD" } else { "COPY" };
        let later = [
            ("--link", &copy.link),
            ("--parents", &copy.parents),
            ("--exclude", &copy.exclude.first().cloned()),
            ("--checksum", &copy.checksum),
            ("--keep-git-dir", &copy.keep_git_dir),
        ];
        for (flag, word) in later {
            if let Some(word) = word {
                return Err(not_yet(word.span, &format!("{name} {flag}")).into());
            }
        }
        let from = match &copy.from {
            None => Input::Context,
            Some(word) if word.text.contains('$') => {
                let d = Diagnostic::new(word.span, "--from takes no variables");
                return Err(d.help("define a stage `FROM $NAME AS x` and use `--from=x`").into());
            }
            Some(word) => self.from_vertex(&word.text, word.span)?,
        };
        let sources = self.words(state, &copy.sources)?;
        for (source, word) in sources.iter().zip(&copy.sources) {
            let remote = ["http://", "https://", "git://", "git@", "ssh://"].iter().any(|p| source.starts_with(p));
            if remote && copy.add {
                return Err(not_yet(word.span, "ADD of a URL").into());
            }
            if remote {
                let d = Diagnostic::new(word.span, "COPY takes files of the context, not a URL");
                return Err(d.help("use ADD for URLs").into());
            }
        }
        let dest = self.word(state, &copy.dest)?;
        let dest_is_dir = dest.is_empty() || dest == "." || dest.ends_with('/') || dest.ends_with("/.");
        if sources.len() + copy.heredocs.len() > 1 && !dest_is_dir {
            let d = Diagnostic::new(copy.dest.span, "with several sources the destination must be a directory");
            return Err(d.help(format!("end it with a slash: `{dest}/`")).into());
        }
        let chown = copy.chown.as_ref().map(|w| self.word(state, w)).transpose()?;
        let chmod_text = copy.chmod.as_ref().map(|w| self.word(state, w)).transpose()?;
        let chmod = match (&chmod_text, &copy.chmod) {
            (Some(text), Some(word)) => Some(chmod(text, word.span)?),
            _ => None,
        };
        let inline = self.inline_files(state, &copy.heredocs)?;
        let created_by =
            history::copy(copy.add, chown.as_deref(), chmod_text.as_deref(), &sources, &copy.heredocs, &dest);
        let mut text = created_by.trim_end_matches(" # buildkit").to_string();
        if let Some(from) = &copy.from {
            text = text.replacen(name, &format!("{name} --from={}", from.text), 1);
        }
        let step = CopyStep {
            from,
            sources,
            inline,
            dest: join(&state.config.config.working_dir, &dest),
            dest_is_dir,
            chown,
            chmod,
            unpack: copy.unpack.as_ref().map_or(copy.add, |w| w.text == "true"),
            source_spans: copy.sources.iter().map(|w| w.span).collect(),
        };
        self.step(state, Step::Copy(step), text, created_by, span);
        Ok(())
    }

    fn inline_files(&mut self, state: &State, docs: &[ast::Heredoc]) -> Planned<Vec<InlineFile>> {
        let lexer = Lexer { escape: '\\', raw_quotes: true, skip_unset: false };
        docs.iter()
            .map(|doc| {
                let content = if doc.expand {
                    let lookup = |name: &str| state.vars.get(name).map(str::to_string);
                    let got = lexer.word(&doc.body, &lookup);
                    got.map_err(|e| Diagnostic::new(doc.body_span, e.to_string()))?.text
                } else {
                    doc.body.clone()
                };
                Ok(InlineFile { name: doc.name.clone(), content })
            })
            .collect()
    }
}

fn not_yet(span: Span, what: &str) -> Diagnostic {
    Diagnostic::new(span, format!("{what} is not supported yet"))
}

/// `path` below `base` if it is relative; without `.`, `..` and doubled slashes.
fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_string() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn chmod(text: &str, span: Span) -> Result<u32, Diagnostic> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        if let Some(mode) = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777) {
            return Ok(mode);
        }
        let d = Diagnostic::new(span, format!("`{text}` is not a file mode"));
        return Err(d.help("give octal digits from 0 to 7777, for example 644"));
    }
    Err(not_yet(span, "a symbolic --chmod").help("give octal digits, for example --chmod=755"))
}

/// `80`, `80/udp`, `8000-8010/tcp` to one entry a port.
fn expose(text: &str, span: Span) -> Result<Vec<String>, Diagnostic> {
    let (ports, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = proto.to_lowercase();
    // `ip:host:container` maps a port at run time, which an image cannot; the container's port is what counts.
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let bad = |why: &str| {
        Diagnostic::new(span, format!("`{text}` is not a port: {why}")).help("write it like 80, 80/udp or 8000-8010")
    };
    if !["tcp", "udp", "sctp"].contains(&proto.as_str()) {
        return Err(bad("the protocol is tcp, udp or sctp"));
    }
    let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |s: &str| s.parse::<u16>().map_err(|_| bad("ports go from 0 to 65535"));
    let (low, high) = (number(low)?, number(high)?);
    if high < low {
        return Err(bad("the range ends before it starts"));
    }
    Ok((low..=high).map(|p| format!("{p}/{proto}")).collect())
}

fn valid_signal(text: &str) -> bool {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(n) = text.parse::<u32>() {
        return (1..=64).contains(&n);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.contains(&name) || name == "POLL" || name.starts_with("RTMIN") || name.starts_with("RTMAX")
}

#[cfg(test)]
mod tests;
