//! Stages to vertices.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{self, Command, Dockerfile, Op, Stage, Word};
use rbuild_dockerfile::{Diagnostic, PROXY_ARGS, Span, closest, parse_trigger};
use rbuild_image::{DEFAULT_PATH, Digest, ImageConfig, Platform, Reference};

use crate::graph::{BuildGraph, From as Input, HistoryEntry, Network, Step, Vertex, VertexId, WorkdirStep};
use crate::scope::{Vars, expand};

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

/// Build arguments that mean something without being declared.
const BUILT_IN_ARGS: [&str; 4] =
    ["SOURCE_DATE_EPOCH", "BUILDKIT_INLINE_CACHE", "BUILDKIT_SYNTAX", "BUILDKIT_DOCKERFILE_CHECK"];

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
    /// The image's own environment. It becomes a part of the configuration when the graph is finished.
    env: Vars,
    /// What words see: ENV and ARG share one space; the later declaration wins.
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
        self.syntax()?;
        let target = self.target()?;
        self.global_args(target)?;
        let mut state = self.stage(target)?;
        state.config.config.env = state.env.list().iter().map(|(k, v)| format!("{k}={v}")).collect();
        for (k, v) in &self.params.labels {
            state.config.config.labels.insert(k.clone(), v.clone());
        }
        for (name, _) in &self.params.build_args {
            let known = PROXY_ARGS.contains(&name.as_str()) || BUILT_IN_ARGS.contains(&name.as_str());
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

    /// The language that the file asks for. The standard ones are built in; no frontend is ever fetched.
    fn syntax(&mut self) -> Planned<()> {
        let directive = self.file.directives.iter().find(|d| d.name == "syntax").map(|d| d.value.clone());
        let argument = self.build_arg("BUILDKIT_SYNTAX");
        let first = Span::new(0, 0);
        let wanted = match argument {
            Some(text) => Some(Word { text, span: directive.as_ref().map_or(first, |d| d.span) }),
            None => directive,
        };
        let Some(wanted) = wanted else { return Ok(()) };
        let image = wanted.text.split_whitespace().next().unwrap_or("");
        let name = image.strip_prefix("docker.io/").unwrap_or(image);
        let standard = ["docker/dockerfile", "docker/dockerfile-upstream"];
        if image == "dockerfile.v0" || standard.contains(&name.split([':', '@']).next().unwrap_or("")) {
            return Ok(());
        }
        let d = Diagnostic::new(wanted.span, format!("the file asks for the frontend `{image}`, and rbuild runs none"));
        Err(d.help("the language of docker/dockerfile is built in; leave the syntax directive out").into())
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
        let automatic: Vec<String> = self.globals.list().iter().map(|(k, _)| k.clone()).collect();
        for key in automatic {
            if let Some(value) = self.build_arg(&key) {
                self.globals.set(&key, &value);
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
        if state.env.get("PATH").is_none() {
            state.env.set("PATH", DEFAULT_PATH);
            state.vars.set("PATH", DEFAULT_PATH);
        }
        Ok(state)
    }

    fn base_state(&self, vertex: VertexId, config: ImageConfig, stage: String, total: usize) -> State {
        let mut env = Vars::default();
        for entry in &config.config.env {
            let (k, v) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(k, v);
        }
        State {
            vertex,
            config,
            vars: env.clone(),
            env,
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
                    state.env.set(&k, &v);
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

    /// The file system that `--from` or `from=` names: a stage by name or number, or an image.
    fn input_named(&mut self, name: &str, span: Span) -> Planned<Input> {
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

mod copy;
mod metadata;
mod run;
#[cfg(test)]
mod tests;
