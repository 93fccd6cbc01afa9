//! The planner: evaluates stages and turns their instructions into vertices.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{self, Command, Dockerfile, Instruction, Op, Stage, Word};
use rbuild_dockerfile::{Diagnostic, PROXY_ARGS, Span, closest, parse_trigger};
use rbuild_image::{DEFAULT_PATH, ImageConfig, ImageName, ManifestDigest, Platform, Reference};

use crate::graph::{BuildGraph, From as Input, HistoryEntry, Network, Step, Ulimit, Vertex, VertexId, WorkdirStep};
use crate::variables::{Vars, expand};

/// Parameters of a build.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Target stage, by name or number; `None` for the last one.
    pub target: Option<String>,
    /// Names and values; the last occurrence of a name wins.
    pub build_args: Vec<(String, String)>,
    /// Labels of the result; they override the Dockerfile's.
    pub labels: Vec<(String, String)>,
    /// Network mode of RUN without `--network`.
    pub network: Network,
    /// Platform of the result.
    pub platform: Platform,
    /// The platform was requested. Otherwise the platform of the base image is kept.
    pub platform_given: bool,
    /// Foreign architectures that this machine can run through an emulator.
    pub emulated: Vec<String>,
    /// `--build-context`: replaces stages, base images and sources of `--from` by name.
    pub contexts: Vec<NamedContext>,
    pub no_cache: NoCache,
    /// Permit `RUN --security=insecure`.
    pub allow_insecure: bool,
    /// Permit `RUN --network=host`.
    pub allow_host_network: bool,
    /// `--add-host`: host names and their addresses.
    pub hosts: Vec<(String, String)>,
    /// Host directories mounted into every command.
    pub volumes: Vec<Volume>,
    /// Size of /dev/shm in bytes; `None` for the default.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// Value of `SOURCE_DATE_EPOCH=context`: modification time in seconds of the newest file of a
    /// context that was sent as an archive.
    pub context_epoch: Option<i64>,
}

impl Parameters {
    /// Returns the defaults: the last stage, for `platform`.
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

/// A named context (`--build-context NAME=…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContext {
    pub name: String,
    pub source: ContextSource,
}

/// Content of a named context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    Directory,
    /// Name of an image in the store.
    Image(String),
    Scratch,
}

/// A host directory mounted into the container of every command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path on the host, as given.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
}

/// Steps that run even if their result is cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    None,
    All,
    /// The steps of these stages, by name or number.
    Stages(Vec<String>),
}

/// A resolved base image.
#[derive(Debug, Clone)]
pub struct BaseImage {
    pub manifest: ManifestDigest,
    pub config: ImageConfig,
}

/// An image whose configuration is needed to continue planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNeed {
    /// The name as written.
    pub name: String,
    /// The parsed name.
    pub image: ImageName,
    pub span: Span,
    /// Stage names, for a suggestion if the image does not exist.
    pub stages: Vec<String>,
}

/// The outcome of planning.
pub enum Plan {
    Graph(Box<BuildGraph>),
    /// Images to resolve before planning can continue.
    Needs(Vec<ImageNeed>),
}

/// Maximum nesting of stages that depend on stages defined later in the file.
const MAX_DEPTH: usize = 100;

/// Plans the target stage and the stages it depends on.
///
/// `images` holds the images resolved so far, by their names in FROM and `--from`. Returns
/// [`Plan::Needs`] if others are needed.
///
/// # Errors
///
/// Returns the first error in the Dockerfile or the parameters.
pub fn plan(
    file: &Dockerfile,
    params: &Parameters,
    images: &HashMap<String, BaseImage>,
) -> Result<Plan, Vec<Diagnostic>> {
    let mut planner = Planner {
        file,
        params,
        images,
        stages_by_name: stages_by_name(file),
        globals: Vars::default(),
        states: HashMap::new(),
        in_progress: Vec::new(),
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

/// Reason for planning to stop early.
enum Stop {
    /// An image must be resolved first; it is in `needs`.
    Needs,
    Error(Diagnostic),
}

impl From<Diagnostic> for Stop {
    fn from(d: Diagnostic) -> Stop {
        Stop::Error(d)
    }
}

type Planned<T> = std::result::Result<T, Stop>;

/// The state of a stage after an instruction.
#[derive(Debug, Clone)]
struct StageState {
    vertex: VertexId,
    config: ImageConfig,
    /// Environment of the image. Written to `config` when the graph is complete.
    env: Vars,
    /// Variables for expansion: ENV and ARG share one namespace, and the later declaration wins.
    vars: Vars,
    /// ARGs declared in the stage, with their latest values, for the history of RUN.
    args: Vars,
    /// Index of the latest entry in [`Planner::history`].
    history: Option<usize>,
    cmd_set: bool,
    /// Steps planned so far and in total, for labels.
    step: usize,
    total: usize,
    stage: String,
    /// The stage is subject to `--no-cache`.
    ignore_cache: bool,
}

struct Planner<'a> {
    file: &'a Dockerfile,
    params: &'a Parameters,
    images: &'a HashMap<String, BaseImage>,
    /// Indices of the stages with a name (in lower case), ascending.
    stages_by_name: HashMap<String, Vec<usize>>,
    globals: Vars,
    states: HashMap<usize, StageState>,
    /// Stack of stages being planned, to detect cycles.
    in_progress: Vec<usize>,
    vertices: Vec<Vertex>,
    /// History entries of all stages, each linked to its predecessor; stages share common prefixes.
    history: Vec<(HistoryEntry, Option<usize>)>,
    image_vertices: HashMap<ManifestDigest, VertexId>,
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
        self.plan_dependencies(target)?;
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
                    format!("build argument `{name}` is not declared by any ARG"),
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
        let d = Diagnostic::new(Span::new(span.start, span.start), format!("target stage `{wanted}` does not exist"));
        let names = self.stage_names();
        Err(match closest(wanted, names.iter().map(String::as_str)) {
            Some(close) => d.help(format!("did you mean `{close}`?")),
            None if names.is_empty() => d.help("pass a stage number, counted from 0: the Dockerfile names no stages"),
            None => d.help(format!("use one of these stages: {}", names.join(", "))),
        }
        .into())
    }

    fn stage_names(&self) -> Vec<String> {
        self.file.stages.iter().filter_map(|s| s.from.name.as_ref()).map(|n| n.text.clone()).collect()
    }

    /// Returns the last stage with that name, or the stage with that number, among the first
    /// `before`.
    fn find_stage(&self, name: &str, before: usize) -> Option<usize> {
        let named = self.stages_by_name.get(&name.to_lowercase()).map_or(&[][..], Vec::as_slice);
        let by_name = named[..named.partition_point(|i| *i < before)].last().copied();
        by_name.or_else(|| name.parse().ok().filter(|i| *i < before))
    }

    /// Returns the final state of stage `index`, planning the stage on first use.
    fn stage(&mut self, index: usize) -> Planned<StageState> {
        if let Some(state) = self.states.get(&index) {
            return Ok(state.clone());
        }
        let stage = &self.file.stages[index];
        if let Some(start) = self.in_progress.iter().position(|i| *i == index) {
            let name = |i: &usize| self.file.stages[*i].from.name.as_ref().map_or(i.to_string(), |n| n.text.clone());
            let mut cycle: Vec<String> = self.in_progress[start..].iter().map(name).collect();
            cycle.push(name(&index));
            let message = format!("stage `{}` depends on itself: {}", name(&index), cycle.join(" → "));
            let d = Diagnostic::new(stage.span, message);
            return Err(d.help("remove one of the references that form the cycle").into());
        }
        if self.in_progress.len() >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} stages depend on stages defined later in the file");
            return Err(Diagnostic::new(stage.span, message).help("move stages above the stages that use them").into());
        }
        self.in_progress.push(index);
        if let Some(state) = self.stage_from_context(index, stage)? {
            self.in_progress.pop();
            self.states.insert(index, state.clone());
            return Ok(state);
        }
        let mut state = self.from(index, stage)?;
        let triggers = triggers(&mut state, stage)?;
        self.raise_total(&mut state, steps_of(&triggers));
        for trigger in &triggers {
            self.instruction(&mut state, trigger, Some(stage.from.image.span))?;
        }
        for instruction in &stage.instructions {
            self.instruction(&mut state, instruction, None)?;
        }
        self.in_progress.pop();
        self.states.insert(index, state.clone());
        Ok(state)
    }

    /// Counts steps of the stage that are not in its text. The label of its base is there already.
    fn raise_total(&mut self, state: &mut StageState, more: usize) {
        let before = label(&state.stage, 1, state.total);
        state.total += more;
        let base = &mut self.vertices[state.vertex];
        if base.label == before {
            base.label = label(&state.stage, 1, state.total);
        }
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
        let label = label(stage, number, total);
        self.vertices.push(Vertex { step, parent, label, text, span, ignore_cache: false });
        self.vertices.len() - 1
    }

    /// Appends a step to the stage, with its history entry.
    fn step(&mut self, state: &mut StageState, step: Step, text: String, created_by: String, span: Span) {
        state.step += 1;
        let total = state.total.max(state.step);
        let id = self.add(step, Some(state.vertex), &state.stage.clone(), state.step, total, text, span);
        // WORKDIR is excluded: creating a directory again has no effect that --no-cache is meant
        // for.
        self.vertices[id].ignore_cache = state.ignore_cache && !matches!(self.vertices[id].step, Step::Workdir(_));
        state.vertex = id;
        self.push_history(state, created_by, Some(id));
    }

    /// Appends a history entry without a layer.
    fn push_empty_layer(&mut self, state: &mut StageState, created_by: String) {
        self.push_history(state, created_by, None);
    }

    fn push_history(&mut self, state: &mut StageState, created_by: String, layer: Option<VertexId>) {
        self.history.push((HistoryEntry { created_by, layer }, state.history));
        state.history = Some(self.history.len() - 1);
    }

    fn history_up_to(&self, last: Option<usize>) -> Vec<HistoryEntry> {
        let entries = std::iter::successors(last, |at| self.history[*at].1);
        let mut entries: Vec<HistoryEntry> = entries.map(|at| self.history[at].0.clone()).collect();
        entries.reverse();
        entries
    }

    fn word(&mut self, state: &StageState, word: &Word) -> Planned<String> {
        Ok(expand(word, self.file.escape, &state.vars)?)
    }

    fn words(&mut self, state: &StageState, words: &[Word]) -> Planned<Vec<String>> {
        words.iter().map(|w| self.word(state, w)).collect()
    }

    /// Plans one instruction. `at` is the location for diagnostics if the instruction is an ONBUILD
    /// trigger of the base image, which is not part of the Dockerfile.
    fn instruction(&mut self, state: &mut StageState, i: &ast::Instruction, at: Option<Span>) -> Planned<()> {
        let result = self.dispatch(state, i);
        match (result, at) {
            (Err(Stop::Error(d)), Some(span)) => {
                let message = format!("in the base image's ONBUILD trigger: {}", d.message);
                Err(Stop::Error(Diagnostic { span, message, help: d.help }))
            }
            (other, _) => other,
        }
    }

    fn dispatch(&mut self, state: &mut StageState, i: &ast::Instruction) -> Planned<()> {
        match &i.op {
            Op::Run(run) => self.run(state, run, i.span),
            Op::Copy(copy) => self.copy(state, copy, i.span),
            Op::Workdir(word) => self.workdir(state, word, i.span),
            Op::Env(pairs) => {
                let mut text = String::from("ENV");
                // All values are expanded in the environment before the instruction.
                let mut set = Vec::new();
                for pair in pairs {
                    set.push((self.word(state, &pair.name)?, self.word(state, &pair.value)?));
                }
                for (k, v) in set {
                    text.push_str(&format!(" {k}={v}"));
                    state.env.set(&k, &v);
                    state.vars.set_last(&k, &v);
                }
                self.push_empty_layer(state, text);
                Ok(())
            }
            Op::Label(pairs) => {
                let mut text = String::from("LABEL");
                for pair in pairs {
                    let (k, v) = (self.word(state, &pair.name)?, self.word(state, &pair.value)?);
                    text.push_str(&format!(" {k}={v}"));
                    state.config.config.labels.insert(k, v);
                }
                self.push_empty_layer(state, text);
                Ok(())
            }
            Op::Arg(decls) => self.arg(state, decls),
            _ => self.metadata(state, i),
        }
    }

    fn workdir(&mut self, state: &mut StageState, word: &Word, span: Span) -> Planned<()> {
        // An empty path means the current working directory.
        let path = self.word(state, word)?;
        let path = native_path(state, &path, word.span)?;
        // An absolute path is kept as written.
        let shown = match &path[..] {
            "" => Some(cwd(state)).filter(|dir| dir.starts_with('/')).unwrap_or_else(|| join("/", &cwd(state))),
            path if path.starts_with('/') && !is_windows(state) => path.to_string(),
            path => join(&cwd(state), path),
        };
        state.config.config.working_dir = if is_windows(state) { shown.replace('/', "\\") } else { shown.clone() };
        let text = format!("WORKDIR {shown}");
        let path = join("/", &shown);
        if shown == "/" {
            self.push_empty_layer(state, text);
        } else {
            let user = state.config.config.user.clone();
            self.step(state, Step::Workdir(WorkdirStep { path, user, time: self.epoch }), text.clone(), text, span);
        }
        Ok(())
    }

    fn shell(&self, state: &StageState) -> Vec<String> {
        match &state.config.config.shell {
            shell if shell.is_empty() && is_windows(state) => ["cmd", "/S", "/C"].map(String::from).into(),
            shell if shell.is_empty() => vec!["/bin/sh".into(), "-c".into()],
            shell => shell.clone(),
        }
    }

    fn argv(&self, state: &StageState, command: &Command) -> Vec<String> {
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

fn is_windows(state: &StageState) -> bool {
    state.config.os == "windows"
}

/// Returns the working directory with forward slashes on every operating system.
fn cwd(state: &StageState) -> String {
    match &state.config.config.working_dir {
        dir if is_windows(state) => dir.replace('\\', "/"),
        dir => dir.clone(),
    }
}

/// Converts a path of the image's operating system to forward slashes. A Windows path may name
/// drive C:, the only drive of an image.
fn native_path(state: &StageState, path: &str, span: Span) -> Result<String, Diagnostic> {
    if !is_windows(state) {
        return Ok(path.to_string());
    }
    let path = path.replace('\\', "/");
    let refused = |what: &str| Err(Diagnostic::new(span, format!("`{path}` {what}")));
    match path.split_once(':') {
        _ if path.starts_with("//") => refused("is a network share, which an image cannot contain"),
        None => Ok(path),
        Some((drive, _)) if !drive.eq_ignore_ascii_case("c") => {
            refused("is not on drive C:, the only drive of an image")
        }
        Some((_, "")) => refused("names a drive but no path"),
        Some((_, rest)) => Ok(rest.to_string()),
    }
}

fn stages_by_name(file: &Dockerfile) -> HashMap<String, Vec<usize>> {
    let mut stages: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, stage) in file.stages.iter().enumerate() {
        if let Some(name) = &stage.from.name {
            stages.entry(name.text.to_lowercase()).or_default().push(i);
        }
    }
    stages
}

fn not_yet(span: Span, what: &str) -> Diagnostic {
    Diagnostic::new(span, format!("{what} is not supported yet"))
}

/// Resolves `path` against `base` lexically: the result is absolute, without `.`, `..` and `//`.
fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_string() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Returns the base image's ONBUILD triggers, which are those of this stage only.
fn triggers(state: &mut StageState, stage: &Stage) -> Planned<Vec<Instruction>> {
    let mut triggers = Vec::new();
    for trigger in std::mem::take(&mut state.config.config.on_build) {
        let mut instruction = parse_trigger(&trigger).map_err(|mut e| {
            let d = e.remove(0);
            Diagnostic::new(stage.span, format!("invalid ONBUILD trigger `{trigger}` in the base image: {}", d.message))
        })?;
        instruction.span = stage.span;
        triggers.push(instruction);
    }
    Ok(triggers)
}

/// Returns how many steps instructions make.
fn steps_of(instructions: &[Instruction]) -> usize {
    instructions.iter().filter(|i| matches!(i.op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_))).count()
}

fn label(stage: &str, number: usize, total: usize) -> String {
    if stage.is_empty() { format!("{number}/{total}") } else { format!("{stage} {number}/{total}") }
}

pub use args::automatic_args;

mod args;
mod copy;
mod inputs;
mod metadata;
mod run;
#[cfg(test)]
mod tests;
