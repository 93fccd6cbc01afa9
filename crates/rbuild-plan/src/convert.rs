//! Stages to vertices.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{self, Command, Dockerfile, Op, Stage, Word};
use rbuild_dockerfile::{Diagnostic, PROXY_ARGS, Span, closest, parse_trigger};
use rbuild_image::{DEFAULT_PATH, Digest, ImageConfig, ImageName, Platform, Reference};

use crate::graph::{BuildGraph, From as Input, HistoryEntry, Network, Step, Ulimit, Vertex, VertexId, WorkdirStep};
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
    /// What the result is for. Unless it was asked for, a base image of another platform decides.
    pub platform: Platform,
    pub platform_given: bool,
    /// Architectures whose programs this machine runs besides its own.
    pub emulated: Vec<String>,
    /// `--build-context`: they take the place of stages, of base images and of what `--from` names.
    pub contexts: Vec<NamedContext>,
    pub no_cache: NoCache,
    /// Whether `RUN --security=insecure` may.
    pub allow_insecure: bool,
    /// Whether `RUN --network=host` may.
    pub allow_host_network: bool,
    /// Names that every command can resolve, and their addresses.
    pub hosts: Vec<(String, String)>,
    /// Directories of the machine that every command sees.
    pub volumes: Vec<Volume>,
    /// Bytes of each command's /dev/shm; what the builder has by itself if not given.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// The time of the newest file of a context that came as an archive; what `SOURCE_DATE_EPOCH=context` means.
    pub context_epoch: Option<i64>,
}

impl Parameters {
    /// The last stage, for this platform, and nothing else asked for.
    pub fn new(platform: Platform) -> Parameters {
        Parameters {
            target: None,
            build_args: Vec::new(),
            labels: Vec::new(),
            network: Network::Host,
            platform,
            platform_given: false,
            emulated: Vec::new(),
            contexts: Vec::new(),
            no_cache: NoCache::default(),
            allow_insecure: false,
            allow_host_network: true,
            hosts: Vec::new(),
            volumes: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            context_epoch: None,
        }
    }
}

/// What `--build-context NAME=…` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContext {
    pub name: String,
    pub source: ContextSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    Directory,
    /// An image by a name that the store knows.
    Image(String),
    Scratch,
}

/// A directory of the machine in every command's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// On the machine, as it was given.
    pub source: String,
    /// Absolute, in the container.
    pub target: String,
    pub read_only: bool,
}

/// Which steps run though the cache may hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    None,
    All,
    /// Those of these stages, by name or number.
    Stages(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct BaseImage {
    pub manifest: Digest,
    pub config: ImageConfig,
}

/// An image whose configuration the planner lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNeed {
    /// As it is written.
    pub name: String,
    /// What that means.
    pub image: ImageName,
    pub span: Span,
    /// Stages that the name may have been meant to be.
    pub stages: Vec<String>,
}

pub enum Plan {
    Graph(Box<BuildGraph>),
    Needs(Vec<ImageNeed>),
}

/// How many stages may each need one that stands further down in the file.
const MAX_DEPTH: usize = 100;

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
        stage_places: stage_places(file),
        globals: Vars::default(),
        states: HashMap::new(),
        open: Vec::new(),
        vertices: Vec::new(),
        history: Vec::new(),
        image_vertices: HashMap::new(),
        needs: Vec::new(),
        warnings: Vec::new(),
        used_args: Vec::new(),
        epoch: None,
    };
    let built = planner.build();
    planner.needs.sort_by_key(|need| need.span.start);
    match built {
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
    /// The last entry, among the planner's.
    history: Option<usize>,
    cmd_set: bool,
    /// `(done, of)` steps of the stage, for labels.
    step: usize,
    total: usize,
    stage: String,
    /// The stage's steps run though the cache may hold them.
    ignore_cache: bool,
}

struct Planner<'a> {
    file: &'a Dockerfile,
    params: &'a Parameters,
    images: &'a HashMap<String, BaseImage>,
    /// Stages by their names in lower case, in order.
    stage_places: HashMap<String, Vec<usize>>,
    globals: Vars,
    states: HashMap<usize, State>,
    /// Stages being planned, for cycles.
    open: Vec<usize>,
    vertices: Vec<Vertex>,
    /// Entries of all stages, each with the one before it: stages share what they have in common.
    history: Vec<(HistoryEntry, Option<usize>)>,
    image_vertices: HashMap<Digest, VertexId>,
    needs: Vec<ImageNeed>,
    warnings: Vec<Diagnostic>,
    used_args: Vec<String>,
    epoch: Option<i64>,
}

impl Planner<'_> {
    fn build(&mut self) -> Planned<BuildGraph> {
        self.syntax()?;
        let target = self.target()?;
        self.global_args(target)?;
        let epoch = self.epoch()?;
        self.epoch = epoch;
        self.stages_below(target)?;
        let mut state = self.stage(target)?;
        state.config.config.env = state.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        for (k, v) in &self.params.labels {
            state.config.config.labels.insert(k.clone(), v.clone());
        }
        for (name, _) in &self.params.build_args {
            let known = PROXY_ARGS.contains(&name.as_str()) || args::BUILT_IN_ARGS.contains(&name.as_str());
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
            history: self.history_up_to(state.history),
            epoch,
            warnings: std::mem::take(&mut self.warnings),
        })
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
        let places = self.stage_places.get(&name.to_lowercase()).map_or(&[][..], Vec::as_slice);
        let by_name = places[..places.partition_point(|i| *i < before)].last().copied();
        by_name.or_else(|| name.parse().ok().filter(|i| *i < before))
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
        if self.open.len() >= MAX_DEPTH {
            let d = Diagnostic::new(stage.span, format!("more than {MAX_DEPTH} stages wait for stages further down"));
            return Err(d.help("put stages above those that use them").into());
        }
        self.open.push(index);
        if let Some(state) = self.stage_from_context(index, stage)? {
            self.open.pop();
            self.states.insert(index, state.clone());
            return Ok(state);
        }
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
        self.vertices.push(Vertex { step, parent, label, text, span, ignore_cache: false });
        self.vertices.len() - 1
    }

    /// Adds a step to the stage, with its line of history.
    fn step(&mut self, state: &mut State, step: Step, text: String, created_by: String, span: Span) {
        state.step += 1;
        let total = state.total.max(state.step);
        let id = self.add(step, Some(state.vertex), &state.stage.clone(), state.step, total, text, span);
        // Making a directory again is not what anybody means by building without the cache.
        self.vertices[id].ignore_cache = state.ignore_cache && !matches!(self.vertices[id].step, Step::Workdir(_));
        state.vertex = id;
        self.remember(state, created_by, Some(id));
    }

    fn note(&mut self, state: &mut State, created_by: String) {
        self.remember(state, created_by, None);
    }

    fn remember(&mut self, state: &mut State, created_by: String, layer: Option<VertexId>) {
        self.history.push((HistoryEntry { created_by, layer }, state.history));
        state.history = Some(self.history.len() - 1);
    }

    fn history_up_to(&self, last: Option<usize>) -> Vec<HistoryEntry> {
        let entries = std::iter::successors(last, |at| self.history[*at].1);
        let mut entries: Vec<HistoryEntry> = entries.map(|at| self.history[at].0.clone()).collect();
        entries.reverse();
        entries
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
                    state.vars.set_last(&k, &v);
                }
                self.note(state, text);
                Ok(())
            }
            Op::Label(pairs) => {
                let mut text = String::from("LABEL");
                for pair in pairs {
                    let (k, v) = (self.word(state, &pair.name)?, self.word(state, &pair.value)?);
                    text.push_str(&format!(" {k}={v}"));
                    state.config.config.labels.insert(k, v);
                }
                self.note(state, text);
                Ok(())
            }
            Op::Arg(decls) => self.arg(state, decls),
            _ => self.metadata(state, i),
        }
    }

    fn workdir(&mut self, state: &mut State, word: &Word, span: Span) -> Planned<()> {
        // No path at all is where one is already.
        let path = self.word(state, word)?;
        let path = native_path(state, &path, word.span)?;
        // An absolute path is kept as it is written.
        let shown = match &path[..] {
            "" => Some(cwd(state)).filter(|dir| dir.starts_with('/')).unwrap_or_else(|| join("/", &cwd(state))),
            path if path.starts_with('/') && !is_windows(state) => path.to_string(),
            path => join(&cwd(state), path),
        };
        state.config.config.working_dir = if is_windows(state) { shown.replace('/', "\\") } else { shown.clone() };
        let text = format!("WORKDIR {shown}");
        let path = join("/", &shown);
        if shown == "/" {
            self.note(state, text);
        } else {
            let user = state.config.config.user.clone();
            self.step(state, Step::Workdir(WorkdirStep { path, user, time: self.epoch }), text.clone(), text, span);
        }
        Ok(())
    }

    fn shell(&self, state: &State) -> Vec<String> {
        match &state.config.config.shell {
            shell if shell.is_empty() && is_windows(state) => ["cmd", "/S", "/C"].map(String::from).into(),
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
}

fn is_windows(state: &State) -> bool {
    state.config.os == "windows"
}

/// The working directory, with slashes on every system.
fn cwd(state: &State) -> String {
    match &state.config.config.working_dir {
        dir if is_windows(state) => dir.replace('\\', "/"),
        dir => dir.clone(),
    }
}

/// A path as the image's system writes it, with slashes. That of windows may name the drive that is the image's.
fn native_path(state: &State, path: &str, span: Span) -> Result<String, Diagnostic> {
    if !is_windows(state) {
        return Ok(path.to_string());
    }
    let path = path.replace('\\', "/");
    let refused = |what: &str| Err(Diagnostic::new(span, format!("`{path}` {what}")));
    match path.split_once(':') {
        _ if path.starts_with("//") => refused("names a share, and an image has none"),
        None => Ok(path),
        Some((drive, _)) if !drive.eq_ignore_ascii_case("c") => refused("is not on the drive of the image (C:)"),
        Some((_, "")) => refused("names a drive and no path"),
        Some((_, rest)) => Ok(rest.to_string()),
    }
}

fn stage_places(file: &Dockerfile) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, stage) in file.stages.iter().enumerate() {
        if let Some(name) = &stage.from.name {
            places.entry(name.text.to_lowercase()).or_default().push(i);
        }
    }
    places
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

pub use args::automatic_args;

mod args;
mod copy;
mod inputs;
mod metadata;
mod run;
#[cfg(test)]
mod tests;
