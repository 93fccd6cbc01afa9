//! The planner's state: stages, vertices and history so far.

use std::collections::{HashMap, HashSet};

use rbuild_dockerfile::ast::{Command, Dockerfile, Instruction, Op, Word};
use rbuild_dockerfile::{Diagnostic, Span, Vars, is_windows};
use rbuild_image::{ImageConfig, ImageName, ManifestDigest, Platform};

use crate::graph::{HistoryEntry, Step, StepName, Vertex, WordSpans};
use crate::ids::VertexId;
use crate::parameters::{Parameters, WrittenImage};

/// An image name together with a platform. One name may refer to images for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlatformImage {
    pub name: ImageName,
    pub platform: Platform,
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
    pub image: WrittenImage,
    /// The platform of `FROM --platform`, or else that of the build.
    pub platform: Platform,
    pub span: Span,
    /// Names of the other stages, for a suggestion if the image does not exist.
    pub stages: Vec<String>,
    /// True if a later stage has this name. In that case only an image in the store is used;
    /// nothing is pulled.
    pub later_stage: bool,
}

impl ImageNeed {
    /// Returns the key under which the planner looks up the resolved image.
    pub fn key(&self) -> PlatformImage {
        PlatformImage { name: self.image.name.clone(), platform: self.platform.clone() }
    }
}

/// Reason why a stage, or the whole plan, cannot be completed.
pub(super) enum Interrupted {
    /// An image must be resolved first; it is in [`Planner::needs`].
    Needs,
    /// Errors that do not depend on each other. The vector is never empty.
    Errors(Vec<Diagnostic>),
    /// Errors in instructions were found; they are in [`Planner::errors`].
    Reported,
}

impl From<Diagnostic> for Interrupted {
    fn from(d: Diagnostic) -> Interrupted {
        Interrupted::Errors(vec![d])
    }
}

impl From<Vec<Diagnostic>> for Interrupted {
    fn from(errors: Vec<Diagnostic>) -> Interrupted {
        Interrupted::Errors(errors)
    }
}

impl Interrupted {
    /// Returns both reasons as one. Errors are reported before images are resolved.
    fn and(self, other: Interrupted) -> Interrupted {
        match (self, other) {
            (Interrupted::Errors(mut errors), Interrupted::Errors(more)) => {
                errors.extend(more);
                Interrupted::Errors(errors)
            }
            (Interrupted::Errors(errors), _) | (_, Interrupted::Errors(errors)) => Interrupted::Errors(errors),
            (first, _) => first,
        }
    }
}

pub(super) type Planned<T> = std::result::Result<T, Interrupted>;

/// Returns two results that do not depend on each other, or all of their errors.
pub(super) fn both<A, B>(a: Planned<A>, b: Planned<B>) -> Planned<(A, B)> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(a.and(b)),
        (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(e),
    }
}

/// Returns results that do not depend on each other, or all of their errors.
pub(super) fn all<T>(results: impl IntoIterator<Item = Planned<T>>) -> Planned<Vec<T>> {
    let mut done = Ok(Vec::new());
    for result in results {
        done = both(done, result).map(|(mut done, value)| {
            done.push(value);
            done
        });
    }
    done
}

/// The state of a stage after an instruction.
#[derive(Debug, Clone)]
pub(super) struct StageState {
    pub(super) vertex: VertexId,
    pub(super) config: ImageConfig,
    /// Platform of the commands: the one that was requested for the base, even if its configuration
    /// states another one, or else the platform of the base.
    pub(super) platform: Platform,
    /// Environment of the image. Written to `config` when the graph is complete.
    pub(super) env: Vars,
    /// Variables for expansion: ENV and ARG share one namespace, and the later declaration wins.
    pub(super) vars: Vars,
    /// ARGs declared in the stage, with their latest values, for the history of RUN.
    pub(super) args: Vars,
    /// Index of the latest entry in [`Planner::history`].
    pub(super) history: Option<usize>,
    pub(super) cmd_set: bool,
    /// Location of the value of USER, if it is in the Dockerfile.
    pub(super) user_at: Option<Span>,
    /// Steps planned so far and in total, for labels.
    pub(super) step: usize,
    pub(super) total: usize,
    pub(super) stage: String,
    /// The current instruction is a trigger of the base image.
    pub(super) in_trigger: bool,
    /// The stage is subject to `--no-cache`.
    pub(super) ignore_cache: bool,
}

pub(super) struct Planner<'a> {
    pub(super) file: &'a Dockerfile,
    pub(super) params: &'a Parameters,
    pub(super) images: &'a HashMap<PlatformImage, BaseImage>,
    /// Indices of the stages with a name (in lower case), ascending.
    pub(super) stages_by_name: HashMap<String, Vec<usize>>,
    pub(super) globals: Vars,
    pub(super) states: HashMap<usize, StageState>,
    /// Stack of stages being planned, to detect cycles.
    pub(super) in_progress: Vec<usize>,
    /// Stages whose planning failed: they need images that are not resolved, or a check found an
    /// error in them.
    pub(super) unresolved: HashSet<usize>,
    pub(super) vertices: Vec<Vertex>,
    /// History entries of all stages, each linked to its predecessor; stages share common prefixes.
    pub(super) history: Vec<(HistoryEntry, Option<usize>)>,
    pub(super) image_vertices: HashMap<ManifestDigest, VertexId>,
    pub(super) needs: Vec<ImageNeed>,
    pub(super) warnings: Vec<Diagnostic>,
    /// Errors in the stages planned so far.
    pub(super) errors: Vec<Diagnostic>,
    pub(super) used_args: Vec<String>,
    pub(super) epoch: Option<i64>,
}

impl StageState {
    /// Returns the name of the step with that number.
    pub(super) fn name(&self, number: usize) -> StepName {
        StepName { stage: self.stage.clone(), number, total: self.total }
    }
}

impl<'a> Planner<'a> {
    /// Returns a planner in its initial state. `images` are the images resolved so far.
    pub(super) fn new(
        file: &'a Dockerfile,
        params: &'a Parameters,
        images: &'a HashMap<PlatformImage, BaseImage>,
    ) -> Planner<'a> {
        Planner {
            file,
            params,
            images,
            stages_by_name: stages_by_name(file),
            globals: Vars::default(),
            states: HashMap::new(),
            in_progress: Vec::new(),
            unresolved: HashSet::new(),
            vertices: Vec::new(),
            history: Vec::new(),
            image_vertices: HashMap::new(),
            needs: Vec::new(),
            warnings: Vec::new(),
            errors: Vec::new(),
            used_args: Vec::new(),
            epoch: None,
        }
    }
}

impl Planner<'_> {
    /// Returns the images to resolve, or the errors if there are any, in the order of the file.
    pub(super) fn needs_or_errors(mut self) -> Result<Vec<ImageNeed>, Vec<Diagnostic>> {
        self.errors.sort_by_key(|d| d.span.start);
        if self.errors.is_empty() { Ok(self.needs) } else { Err(self.errors) }
    }

    pub(super) fn stage_names(&self) -> Vec<String> {
        self.file.stages.iter().filter_map(|s| s.from.name.as_ref()).map(|n| n.text.clone()).collect()
    }

    /// Returns the last stage with that name, or the stage with that number, among the first
    /// `before`.
    pub(super) fn find_stage(&self, name: &str, before: usize) -> Option<usize> {
        let named = self.stages_by_name.get(&name.to_lowercase()).map_or(&[][..], Vec::as_slice);
        let by_name = named[..named.partition_point(|i| *i < before)].last().copied();
        by_name.or_else(|| name.parse().ok().filter(|i| *i < before))
    }

    /// Adds `more` steps that are not in the text of the stage to its total. The name of the base
    /// step, which already contains the total, is updated.
    pub(super) fn raise_total(&mut self, state: &mut StageState, more: usize) {
        let before = state.name(1);
        state.total += more;
        let base = &mut self.vertices[state.vertex];
        if base.name == before {
            base.name.total = state.total;
        }
    }

    /// Adds a vertex to the graph.
    pub(super) fn add(
        &mut self,
        step: Step,
        parent: Option<VertexId>,
        name: StepName,
        text: String,
        span: Span,
    ) -> VertexId {
        self.vertices.push(Vertex {
            step,
            parent,
            name,
            text,
            span,
            word_spans: WordSpans::default(),
            ignore_cache: false,
            is_trigger: false,
        });
        VertexId::new(self.vertices.len() - 1)
    }

    /// Appends a step to the stage, with its history entry.
    pub(super) fn step(&mut self, state: &mut StageState, step: Step, text: String, created_by: String, span: Span) {
        state.step += 1;
        state.total = state.total.max(state.step);
        let text = if state.in_trigger { format!("ONBUILD {text}") } else { text };
        let id = self.add(step, Some(state.vertex), state.name(state.step), text, span);
        // WORKDIR is excluded: --no-cache is meant for steps that may produce another result when
        // they run again, and creating a directory does not.
        self.vertices[id].ignore_cache = state.ignore_cache && !matches!(self.vertices[id].step, Step::Workdir(_));
        self.vertices[id].is_trigger = state.in_trigger;
        self.vertices[id].word_spans.owner = state.user_at;
        state.vertex = id;
        self.push_history(state, created_by, Some(id));
    }

    /// Appends a history entry without a layer.
    pub(super) fn push_empty_layer(&mut self, state: &mut StageState, created_by: String) {
        self.push_history(state, created_by, None);
    }

    pub(super) fn push_history(&mut self, state: &mut StageState, created_by: String, layer: Option<VertexId>) {
        self.history.push((HistoryEntry { created_by, layer }, state.history));
        state.history = Some(self.history.len() - 1);
    }

    pub(super) fn history_up_to(&self, last: Option<usize>) -> Vec<HistoryEntry> {
        let entries = std::iter::successors(last, |at| self.history[*at].1);
        let mut entries: Vec<HistoryEntry> = entries.map(|at| self.history[at].0.clone()).collect();
        entries.reverse();
        entries
    }

    /// Expands the variables of a word.
    pub(super) fn word(&mut self, state: &StageState, word: &Word) -> Planned<String> {
        Ok(state.vars.expand(word, self.file.escape)?)
    }

    pub(super) fn shell(&self, state: &StageState) -> Vec<String> {
        match &state.config.config.shell {
            shell if shell.is_empty() && is_windows(&state.config.os) => ["cmd", "/S", "/C"].map(String::from).into(),
            shell if shell.is_empty() => vec!["/bin/sh".into(), "-c".into()],
            shell => shell.clone(),
        }
    }

    pub(super) fn argv(&self, state: &StageState, command: &Command) -> Vec<String> {
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

fn stages_by_name(file: &Dockerfile) -> HashMap<String, Vec<usize>> {
    let mut stages: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, stage) in file.stages.iter().enumerate() {
        if let Some(name) = &stage.from.name {
            stages.entry(name.text.to_lowercase()).or_default().push(i);
        }
    }
    stages
}

pub(super) fn unsupported(span: Span, feature: &str) -> Diagnostic {
    Diagnostic::new(span, format!("{feature} is not supported yet"))
}

/// Returns the number of steps that instructions produce.
pub(super) fn steps_of(instructions: &[Instruction]) -> usize {
    instructions.iter().filter(|i| matches!(i.op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_))).count()
}
