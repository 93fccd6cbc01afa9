//! Plans stages: their bases, triggers and instructions, in order.

use std::collections::HashMap;

use rbuild_dockerfile::ast::{self, Dockerfile, Instruction, Op, Pair, Stage, Word};
use rbuild_dockerfile::{Diagnostic, PROXY_ARGS, Span, closest, is_windows, parse_trigger};
use rbuild_remedy::{CommandRemedy, Remedy};

use crate::graph::{BuildGraph, Step, WorkdirStep};
use crate::parameters::{NoCache, Parameters};
use crate::planner::args;
use crate::planner::args::BUILT_IN_ARGS;
use crate::planner::copy;
use crate::planner::metadata;
use crate::planner::paths::{cwd, join, native_path};
use crate::planner::run;
use crate::planner::state::{
    BaseImage, ImageNeed, Interrupted, Planned, Planner, PlatformImage, StageState, all, both, steps_of,
};

/// The outcome of planning.
pub enum Plan {
    Graph(Box<BuildGraph>),
    /// Images to resolve before planning can continue.
    Needs(Vec<ImageNeed>),
}

/// Maximum nesting of stages that are planned when another one uses them. Only stages that ONBUILD
/// triggers copy from are planned this way; all others are planned in the order of the file.
const MAX_DEPTH: usize = 100;

/// Plans the target stage and the stages it depends on.
///
/// `images` holds the images resolved so far. Returns [`Plan::Needs`] if others are needed.
///
/// # Errors
///
/// Returns an error in the parameters or in the global scope, or else all errors in instructions
/// that do not depend on each other. Some of them are found only once images are resolved.
pub fn plan(
    file: &Dockerfile,
    params: &Parameters,
    images: &HashMap<PlatformImage, BaseImage>,
) -> Result<Plan, Vec<Diagnostic>> {
    let mut planner = Planner::new(file, params, images);
    let built = planner.build();
    planner.needs.sort_by_key(|need| need.span.start);
    match built {
        Err(Interrupted::Errors(errors)) => planner.errors.extend(errors),
        Ok(graph) if planner.needs.is_empty() => return Ok(Plan::Graph(Box::new(graph))),
        Ok(_) | Err(Interrupted::Needs | Interrupted::Reported) => {}
    }
    planner.needs_or_errors().map(Plan::Needs)
}

impl Planner<'_> {
    /// Evaluates the part before the first stage, and returns the target.
    pub(super) fn prepare(&mut self) -> Planned<usize> {
        args::syntax(self)?;
        let target = self.target()?;
        args::global_args(self, target)?;
        self.epoch = args::epoch(self)?;
        Ok(target)
    }

    pub(super) fn build(&mut self) -> Planned<BuildGraph> {
        let target = self.prepare()?;
        self.plan_dependencies(target)?;
        self.check_unused_stages()?;
        let mut state = self.stage(target)?;
        self.set_result_platform(&mut state.config);
        state.config.config.env = state.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        for (k, v) in &self.params.labels {
            state.config.config.labels.insert(k.clone(), v.clone());
        }
        for (name, _) in &self.params.build_args {
            let is_proxy = PROXY_ARGS.iter().any(|proxy| name.eq_ignore_ascii_case(proxy));
            let known = is_proxy || BUILT_IN_ARGS.contains(&name.as_str());
            if !known && !self.used_args.contains(name) {
                let declared: Vec<String> = args::declared_args(self);
                let warning = |text: String| Diagnostic::new(Span::default(), text);
                self.warnings.push(if declared.contains(name) {
                    warning(format!("build argument `{name}` is declared only in stages that are not built"))
                } else {
                    let d = warning(format!("build argument `{name}` is not declared by any ARG"));
                    d.suggest(name, declared.iter().map(String::as_str))
                });
            }
        }
        self.warn_of_unknown_filters();
        Ok(BuildGraph {
            vertices: std::mem::take(&mut self.vertices),
            target: state.vertex,
            config: state.config,
            history: self.history_up_to(state.history),
            epoch: self.epoch,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    /// Sets the requested platform on the result, regardless of the platforms of its stages, and
    /// normalizes it (BuildKit, `finalizeResultImage`). Without a request for another architecture
    /// or variant, the variant and the version of the system remain those of the base image.
    fn set_result_platform(&self, config: &mut rbuild_image::ImageConfig) {
        let (own, asked) = (config.platform(), &self.params.platform);
        if !self.params.platform_given || (own.runs(asked) && asked.variant.is_none()) {
            config.set_platform(&own);
            return;
        }
        config.set_platform(asked);
        if !own.runs(asked) {
            config.rest.remove("os.version");
        }
    }

    /// Warns about values of `--no-cache-filter` that are not stages.
    fn warn_of_unknown_filters(&mut self) {
        let NoCache::Stages(names) = &self.params.no_cache else { return };
        let known = self.stage_names();
        let unknown = names.iter().filter(|name| self.find_stage(name, self.file.stages.len()).is_none());
        let warning = |name: &String| {
            let message = format!("stage `{name}` does not exist; disabling its cache has no effect");
            let d = Diagnostic::new(Span::default(), message);
            d.suggest(name, known.iter().map(String::as_str))
        };
        let warnings: Vec<Diagnostic> = unknown.map(warning).collect();
        self.warnings.extend(warnings);
    }

    pub(super) fn target(&self) -> Result<usize, Diagnostic> {
        let stages = &self.file.stages;
        let Some(wanted) = &self.params.target else { return Ok(stages.len() - 1) };
        if let Some(i) = self.find_stage(wanted, stages.len()) {
            return Ok(i);
        }
        let names = self.stage_names();
        let close = closest(wanted, names.iter().map(String::as_str));
        let named = stages.iter().filter_map(|stage| stage.from.name.as_ref());
        let span = named.rev().find(|name| Some(name.text.as_str()) == close).map_or(Span::default(), |name| name.span);
        let d = Diagnostic::new(span, format!("target stage `{wanted}` does not exist"));
        Err(match close {
            Some(close) => d.help(Remedy::did_you_mean(close)),
            None if names.is_empty() => d.help(Remedy::from(CommandRemedy::PassStageNumber)),
            None => d.help(Remedy::UseOneOf { words: names }),
        })
    }

    /// Returns the final state of stage `index`, planning the stage on first use. An error is noted
    /// in [`Planner::errors`].
    pub(super) fn stage(&mut self, index: usize) -> Planned<StageState> {
        let depth = self.in_progress.len();
        self.known_or_planned(index).map_err(|interrupted| {
            self.in_progress.truncate(depth);
            self.unresolved.insert(index);
            self.noted(interrupted, None)
        })
    }

    fn known_or_planned(&mut self, index: usize) -> Planned<StageState> {
        if let Some(state) = self.states.get(&index) {
            return Ok(state.clone());
        }
        if self.unresolved.contains(&index) {
            return Err(Interrupted::Needs);
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
            let message = format!("more than {MAX_DEPTH} stages depend on each other through ONBUILD triggers");
            return Err(Diagnostic::new(stage.span, message)
                .help("let fewer triggers copy from stages whose base images have triggers")
                .into());
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
        let triggers = triggers.iter().map(|trigger| (trigger, Some(stage.from.image.span)));
        let mut obstacle = None;
        for (instruction, at) in triggers.chain(stage.instructions.iter().map(|i| (i, None))) {
            match self.instruction(&mut state, instruction, at) {
                Err(found) if !defines_variables(&instruction.op) => {
                    // The following instructions may have errors of their own.
                    obstacle = Some(self.noted(found, obstacle));
                }
                planned => planned?,
            }
        }
        if let Some(obstacle) = obstacle {
            return Err(obstacle);
        }
        self.in_progress.pop();
        self.states.insert(index, state.clone());
        Ok(state)
    }

    /// Notes the errors of an instruction. Returns the reason why its stage cannot be completed,
    /// given that `earlier` of the stage.
    fn noted(&mut self, found: Interrupted, earlier: Option<Interrupted>) -> Interrupted {
        match (found, earlier) {
            (Interrupted::Errors(errors), _) => {
                self.errors.extend(errors);
                Interrupted::Reported
            }
            (Interrupted::Needs, Some(earlier)) => earlier,
            (found, _) => found,
        }
    }

    /// Plans one instruction. If the instruction is an ONBUILD trigger of the base image, which is
    /// not in the Dockerfile, `at` is the location for diagnostics.
    pub(super) fn instruction(
        &mut self,
        state: &mut StageState,
        i: &ast::Instruction,
        at: Option<Span>,
    ) -> Planned<()> {
        state.in_trigger = at.is_some();
        let result = self.dispatch(state, i);
        match (result, at) {
            (Err(Interrupted::Errors(errors)), Some(span)) => {
                let located = |d: Diagnostic| {
                    let message = format!("in the base image's ONBUILD trigger: {}", d.message);
                    Diagnostic { span, message, ..d }
                };
                Err(Interrupted::Errors(errors.into_iter().map(located).collect()))
            }
            (other, _) => other,
        }
    }

    pub(super) fn dispatch(&mut self, state: &mut StageState, i: &ast::Instruction) -> Planned<()> {
        match &i.op {
            Op::Run(run) => run::run(self, state, run, i.span),
            Op::Copy(copy) => copy::copy(self, state, copy, i.span),
            Op::Workdir(word) => self.workdir(state, word, i.span),
            Op::Env(pairs) => {
                let mut text = String::from("ENV");
                for (k, v) in state.vars.env(pairs, self.file.escape)? {
                    text.push_str(&format!(" {k}={v}"));
                    state.env.set(&k, &v);
                }
                self.push_empty_layer(state, text);
                Ok(())
            }
            Op::Label(pairs) => {
                let mut text = String::from("LABEL");
                let mut expanded = |pair: &Pair| both(self.word(state, &pair.name), self.word(state, &pair.value));
                for (k, v) in all(pairs.iter().map(&mut expanded))? {
                    text.push_str(&format!(" {k}={v}"));
                    state.config.config.labels.insert(k, v);
                }
                self.push_empty_layer(state, text);
                Ok(())
            }
            Op::Arg(decls) => args::arg(self, state, decls),
            _ => metadata::metadata(self, state, i),
        }
    }

    pub(super) fn workdir(&mut self, state: &mut StageState, word: &Word, span: Span) -> Planned<()> {
        // An empty path means the current working directory.
        let path = self.word(state, word)?;
        let path = native_path(&state.config, &path, word.span)?;
        // An absolute path is kept as written.
        let shown = match &path[..] {
            "" => Some(cwd(&state.config))
                .filter(|dir| dir.starts_with('/'))
                .unwrap_or_else(|| join("/", &cwd(&state.config))),
            path if path.starts_with('/') && !is_windows(&state.config.os) => path.to_string(),
            path => join(&cwd(&state.config), path),
        };
        state.config.config.working_dir =
            if is_windows(&state.config.os) { shown.replace('/', "\\") } else { shown.clone() };
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
}

/// Returns true for an instruction whose variables later ones may use. Without them, errors that
/// are found in the rest of the stage may be none.
fn defines_variables(op: &Op) -> bool {
    matches!(op, Op::Arg(_) | Op::Env(_))
}

/// Replaces the spans of the words of a trigger by `span`, because the trigger is not in the
/// Dockerfile.
fn relocate(op: &mut Op, span: Span) {
    match op {
        Op::Copy(copy) => {
            let words = copy.sources.iter_mut().chain([&mut copy.dest]).chain(&mut copy.chown);
            words.for_each(|word| word.span = span);
        }
        Op::User(word) => word.span = span,
        Op::Run(run) => run.mounts.iter_mut().for_each(|word| word.span = span),
        _ => {}
    }
}

/// Takes the base image's ONBUILD triggers out of the state. They apply to this stage only.
fn triggers(state: &mut StageState, stage: &Stage) -> Planned<Vec<Instruction>> {
    let mut triggers = Vec::new();
    for trigger in std::mem::take(&mut state.config.config.on_build) {
        let mut instruction = parse_trigger(&trigger).map_err(|mut e| {
            let d = e.remove(0);
            Diagnostic::new(stage.span, format!("invalid ONBUILD trigger `{trigger}` in the base image: {}", d.message))
        })?;
        instruction.span = stage.span;
        relocate(&mut instruction.op, stage.from.image.span);
        triggers.push(instruction);
    }
    Ok(triggers)
}
