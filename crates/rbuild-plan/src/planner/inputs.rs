//! Resolves FROM and `--from` to stages, images and named contexts.

use rbuild_dockerfile::ast::{Op, Stage, Word};
use rbuild_dockerfile::{Diagnostic, Span, Vars, is_windows, mount_from};
use rbuild_image::{DEFAULT_PATH, ImageConfig, Platform, PlatformError};
use rbuild_paths::SourcePattern;
use rbuild_remedy::{BuildRemedy, DockerfileRemedy, ImageRemedy, Remedy};

use crate::graph::{CopyItem, CopySource, CopyStep, FileSource, Step, StepName};
use crate::ids::{ContextId, VertexId};
use crate::parameters::{ContextSource, NoCache, WrittenImage};
use crate::planner::paths::cwd;
use crate::planner::state::{BaseImage, ImageNeed, Interrupted, Planned, Planner, PlatformImage, StageState, steps_of};

/// Returns the names in `--from` and `from=` of a stage's instructions, with their locations.
fn input_names(stage: &Stage) -> Vec<(String, Span)> {
    let mut names = Vec::new();
    for instruction in &stage.instructions {
        match &instruction.op {
            Op::Copy(copy) => names.extend(copy.from.as_ref().map(|word| (word.text.clone(), word.span))),
            Op::Run(run) => {
                names.extend(run.mounts.iter().filter_map(mount_from).map(|word| (word.text, word.span)));
            }
            _ => {}
        }
    }
    names
}

impl Planner<'_> {
    /// Plans the stages that the target depends on, dependencies first, so that long chains of
    /// stages do not recurse. Stages used only by ONBUILD triggers are found later, by
    /// [`Planner::stage`].
    pub(super) fn plan_dependencies(&mut self, target: usize) -> Planned<()> {
        let needed = self.needed(target);
        // Collect all needs; the caller resolves them together.
        for index in (0..=target).filter(|i| needed[*i]) {
            self.request_inputs(index);
        }
        for index in (0..target).filter(|i| needed[*i]) {
            // The reason of a failure is noted; other stages are planned nevertheless.
            let _ = self.stage(index);
        }
        Ok(())
    }

    /// Returns a list with one item per stage: true if the target needs the stage.
    pub(super) fn needed(&self, target: usize) -> Vec<bool> {
        let mut needed = vec![false; self.file.stages.len()];
        let mut pending = vec![target];
        while let Some(index) = pending.pop() {
            if !std::mem::replace(&mut needed[index], true) {
                pending.extend(self.stage_dependencies(index));
            }
        }
        needed
    }

    /// Returns the stages named by the instructions of stage `index`, FROM included.
    fn stage_dependencies(&self, index: usize) -> Vec<usize> {
        let stage = &self.file.stages[index];
        if self.is_replaced(stage) {
            return Vec::new();
        }
        let count = self.file.stages.len();
        let base = self.globals.expand(&stage.from.image, self.file.escape).ok();
        let mut used: Vec<usize> = base.and_then(|name| self.base_stage(&name, index)).into_iter().collect();
        let named = input_names(stage);
        let named = named.iter().filter_map(|(name, _)| self.find_stage(name, count));
        used.extend(named.filter(|used| !self.is_later(*used, index)));
        used
    }

    /// Returns the named context that replaces the stage, if there is one.
    pub(super) fn replacement(&self, stage: &Stage) -> Option<ContextId> {
        self.params.context_index(&stage.from.name.as_ref()?.text, &self.stage_platform(stage))
    }

    /// Returns the platform of a stage. A `FROM --platform` that is invalid is reported when the
    /// stage is planned.
    pub(super) fn stage_platform(&self, stage: &Stage) -> Platform {
        self.platform(stage).ok().flatten().unwrap_or_else(|| self.params.platform.clone())
    }

    /// Returns true if a named context replaces the stage.
    fn is_replaced(&self, stage: &Stage) -> bool {
        self.replacement(stage).is_some()
    }

    /// Records the images that a stage copies from or mounts. Invalid names are reported later,
    /// when the instruction is planned.
    fn request_inputs(&mut self, index: usize) {
        let file = self.file;
        let stage = &file.stages[index];
        if self.is_replaced(stage) {
            return;
        }
        for (name, span) in input_names(stage) {
            let number = name.bytes().all(|b| b.is_ascii_digit());
            if number || name.contains('$') || self.find_stage(&name, file.stages.len()).is_some() {
                continue;
            }
            let context = self.params.context_index(&name, &self.params.platform);
            let image = match context.map(|context| &self.params.contexts[context].source) {
                Some(ContextSource::Image(image)) => Ok(image.clone()),
                Some(ContextSource::Directory(_) | ContextSource::Scratch) => continue,
                None if name == "scratch" => continue,
                None => self.written_image(&name, span),
            };
            if let Ok(image) = image {
                self.image(&image, None, span, false);
            }
        }
    }

    /// Returns the earlier stage that `FROM name` refers to in stage `index`. A number is an image
    /// name.
    pub(super) fn base_stage(&self, name: &str, index: usize) -> Option<usize> {
        self.find_stage(name, index).filter(|_| name.parse::<usize>().is_err())
    }

    pub(super) fn from(&mut self, index: usize, stage: &Stage) -> Planned<StageState> {
        let platform = self.platform(stage)?;
        let image = &stage.from.image;
        let name = self.base_name(stage)?;
        let total = 1 + steps_of(&stage.instructions);
        let first = StepName { stage: self.stage_label(index, stage), number: 1, total };
        // As in BuildKit, the platform of FROM selects the image, whose configuration then
        // determines the platform of the stage. It is also the platform of a context that is a
        // directory. Stages keep their own platforms, and `scratch` has the platform of the build.
        let mut state = match self.base_stage(&name, index) {
            Some(base) => {
                let mut state = self.stage(base)?;
                // As in BuildKit, the environment of the image hides inherited ARGs.
                state.env.iter().for_each(|(name, value)| state.vars.set_last(name, value));
                StageState { stage: first.stage, step: 1, total, cmd_set: false, ..state }
            }
            None => match self.params.context_index(&name, &self.stage_platform(stage)) {
                Some(context) => self.context_state(context, platform.as_ref(), first, image.span)?,
                None if name == "scratch" => self.scratch_state(None, first, stage.span),
                None => {
                    let written = self.base_image(&name, image)?;
                    self.image_state(&written, platform.as_ref(), first, image.span)?
                }
            },
        };
        if is_windows(&state.config.os) {
            state.config.config.working_dir = cwd(&state.config).replace('/', "\\");
        }
        state.ignore_cache = match &self.params.no_cache {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(names) => names.iter().any(|n| self.find_stage(n, self.file.stages.len()) == Some(index)),
        };
        // Windows sets its own PATH.
        if state.env.get("PATH").is_none() && !is_windows(&state.config.os) {
            state.env.set("PATH", DEFAULT_PATH);
            state.vars.set_last("PATH", DEFAULT_PATH);
        }
        Ok(state)
    }

    /// Checks FROM in the stages that are not planned. As in BuildKit, it must be valid there, too.
    pub(super) fn check_unused_stages(&self) -> Planned<()> {
        let stages = self.file.stages.iter().enumerate();
        for (index, stage) in
            stages.filter(|(index, _)| !self.states.contains_key(index) && !self.unresolved.contains(index))
        {
            self.platform(stage)?;
            let name = self.base_name(stage)?;
            let is_image = name != "scratch" && self.base_stage(&name, index).is_none() && !self.is_replaced(stage);
            if is_image && self.params.context_index(&name, &self.stage_platform(stage)).is_none() {
                self.base_image(&name, &stage.from.image)?;
            }
        }
        Ok(())
    }

    /// Returns the name after FROM, which is that of an image, a stage or a named context.
    fn base_name(&self, stage: &Stage) -> Planned<String> {
        let image = &stage.from.image;
        let name = self.globals.expand(image, self.file.escape)?;
        if name.is_empty() { Err(self.empty_global("image name", image).into()) } else { Ok(name) }
    }

    /// Returns the platform requested by `FROM --platform` or by the caller, if any.
    fn platform(&self, stage: &Stage) -> Planned<Option<Platform>> {
        // As in BuildKit, an empty value counts as none, but not one that is empty after expansion.
        let Some(word) = stage.from.platform.as_ref().filter(|word| !word.text.is_empty()) else {
            return Ok(self.params.platform_given.then(|| self.params.platform.clone()));
        };
        let text = self.globals.expand(word, self.file.escape)?;
        if text.is_empty() {
            return Err(self.empty_global("platform", word).into());
        }
        let invalid =
            |e: PlatformError| Diagnostic::new(word.span, e.to_string()).help("use a form such as linux/arm64");
        Ok(Some(text.parse().map_err(invalid)?))
    }

    /// Returns the error about a word of FROM that is empty after expansion because none of its
    /// variables has a value.
    fn empty_global(&self, noun: &str, word: &Word) -> Diagnostic {
        let remedy = match self.globals.undeclared(word, self.file.escape).into_iter().next() {
            Some(name) => BuildRemedy::DeclareArgument { name },
            None => BuildRemedy::SetArgument,
        };
        let message = format!("{noun} `{}` is empty after expansion", word.text);
        Diagnostic::new(word.span, message).help(Remedy::Build(remedy))
    }

    fn stage_label(&self, index: usize, stage: &Stage) -> String {
        match &stage.from.name {
            Some(name) => name.text.to_lowercase(),
            None if self.file.stages.len() == 1 => String::new(),
            None => format!("stage-{index}"),
        }
    }

    /// Returns the state of a stage that a named context replaces; its instructions are ignored.
    pub(super) fn stage_from_context(&mut self, index: usize, stage: &Stage) -> Planned<Option<StageState>> {
        let Some(context) = self.replacement(stage) else { return Ok(None) };
        let first = StepName { stage: self.stage_label(index, stage), number: 1, total: 2 };
        let platform = self.platform(stage)?;
        self.context_state(context, platform.as_ref(), first, stage.span).map(Some)
    }

    /// Returns the state of a named context, whose first step is named `first`. As in BuildKit, an
    /// image is selected for `platform`.
    fn context_state(
        &mut self,
        context: ContextId,
        platform: Option<&Platform>,
        first: StepName,
        span: Span,
    ) -> Planned<StageState> {
        let params = self.params;
        let named = &params.contexts[context];
        match &named.source {
            ContextSource::Scratch => Ok(self.scratch_state(platform, first, span)),
            ContextSource::Image(image) => self.image_state(image, platform, first, span),
            ContextSource::Directory(_) => {
                let mut state = self.scratch_state(platform, first, span);
                let copy = CopyStep {
                    from: FileSource::Named(context),
                    sources: vec![CopySource { item: CopyItem::Files(SourcePattern::literal("/")), span }],
                    dest: "/".into(),
                    dest_is_dir: true,
                    ..CopyStep::default()
                };
                let text = format!("context {named}");
                self.step(&mut state, Step::Copy(copy), text.clone(), text, span);
                Ok(state)
            }
        }
    }

    /// Returns the state of an empty file system. Its platform is that of the build unless
    /// `platform` is given.
    fn scratch_state(&mut self, platform: Option<&Platform>, first: StepName, span: Span) -> StageState {
        let vertex = self.add(Step::Scratch, None, first.clone(), "FROM scratch".into(), span);
        let mut config = ImageConfig::empty(platform.unwrap_or(&self.params.platform));
        config.config.working_dir = "/".into();
        let platform = config.platform();
        base_state(vertex, config, platform, first)
    }

    fn image_state(
        &mut self,
        image: &WrittenImage,
        platform: Option<&Platform>,
        first: StepName,
        span: Span,
    ) -> Planned<StageState> {
        let Some(base) = self.image(image, platform, span, false) else { return Err(Interrupted::Needs) };
        let base = base.clone();
        let vertex = self.image_vertex(&image.text, &base, first.clone(), span);
        let platform = platform.cloned().unwrap_or_else(|| base.config.platform());
        Ok(base_state(vertex, base.config, platform, first))
    }

    /// Parses the name of an image.
    fn written_image(&self, name: &str, span: Span) -> Result<WrittenImage, Diagnostic> {
        WrittenImage::parse(name).map_err(|e| {
            let d = Diagnostic::new(span, e.to_string());
            let d = d.help(Remedy::from(ImageRemedy::CorrectName));
            d.suggest(name, self.stage_names().iter().map(String::as_str))
        })
    }

    /// Parses the name of the image in FROM. A name with an empty part usually lacks the value of a
    /// variable.
    fn base_image(&self, name: &str, word: &Word) -> Result<WrittenImage, Diagnostic> {
        self.written_image(name, word.span).map_err(|d| {
            let undeclared = self.globals.undeclared(word, self.file.escape).into_iter().next();
            match undeclared {
                Some(name) => d.help(Remedy::Build(BuildRemedy::DeclareArgument { name })),
                None if name.ends_with(':') => d.help(Remedy::Build(BuildRemedy::SetArgument)),
                None => d,
            }
        })
    }

    /// Returns a resolved image. Otherwise records the need and returns `None`.
    fn image(
        &mut self,
        image: &WrittenImage,
        platform: Option<&Platform>,
        span: Span,
        later_stage: bool,
    ) -> Option<&BaseImage> {
        let platform = platform.unwrap_or(&self.params.platform);
        let key = PlatformImage { name: image.name.clone(), platform: platform.clone() };
        if let Some(found) = self.images.get(&key) {
            return Some(found);
        }
        match self.needs.iter_mut().find(|need| need.image.name == image.name && need.platform == *platform) {
            Some(need) => {
                need.later_stage &= later_stage;
                // Report the first use in the file.
                if span.start < need.span.start {
                    need.span = span;
                    need.image = image.clone();
                }
            }
            None => {
                let all = &self.file.stages;
                let own = all.iter().rposition(|stage| stage.span.start <= span.start).unwrap_or_default();
                let others = all.iter().enumerate().filter(|(i, _)| *i != own);
                let names = others.filter_map(|(_, stage)| stage.from.name.as_ref());
                let stages = names.map(|name| name.text.clone()).collect();
                let platform = key.platform;
                self.needs.push(ImageNeed { image: image.clone(), platform, span, stages, later_stage });
            }
        }
        None
    }

    fn image_vertex(&mut self, text: &str, image: &BaseImage, name: StepName, span: Span) -> VertexId {
        let manifest = image.manifest;
        if let Some(id) = self.image_vertices.get(&manifest) {
            return *id;
        }
        let (platform, diff_ids) = (image.config.platform(), image.config.rootfs.diff_ids.clone());
        let step = Step::Image { name: text.to_string(), manifest, platform, diff_ids };
        let id = self.add(step, None, name, format!("FROM {text}"), span);
        self.image_vertices.insert(manifest, id);
        id
    }

    /// Returns true if stage `used` comes after stage `index`, which therefore cannot use it. A
    /// stage that a named context replaces may be anywhere.
    fn is_later(&self, used: usize, index: usize) -> bool {
        used > index && !self.is_replaced(&self.file.stages[used])
    }

    /// Resolves a name as that of an image although a later stage has the same name.
    fn instead_of_later_stage(&mut self, name: &str, span: Span) -> Planned<FileSource> {
        let number = name.bytes().all(|b| b.is_ascii_digit());
        match WrittenImage::parse(name) {
            Ok(image) if !number => self.input_image(&image, span, true),
            _ => {
                let d = Diagnostic::new(span, format!("stage `{name}` is defined after its use"));
                Err(d.help(Remedy::from(DockerfileRemedy::MoveStage)).into())
            }
        }
    }

    /// Resolves `--from` or `from=`: a stage by name or number, a named context, or an image.
    pub(super) fn input_named(&mut self, name: &str, span: Span) -> Planned<FileSource> {
        let count = self.file.stages.len();
        if let Some(index) = self.find_stage(name, count) {
            if self.in_progress.last().is_some_and(|current| self.is_later(index, *current)) {
                return self.instead_of_later_stage(name, span);
            }
            if self.in_progress.last() == Some(&index)
                && self.params.context_index(name, &self.params.platform).is_none()
            {
                let d = Diagnostic::new(span, format!("stage `{name}` depends on itself: {name} → {name}"));
                return Err(d.help("name an earlier stage, or an image").into());
            }
            return Ok(FileSource::Vertex(self.stage(index)?.vertex));
        }
        if let Some(context) = self.params.context_index(name, &self.params.platform) {
            return match self.params.contexts[context].source {
                ContextSource::Directory(_) => Ok(FileSource::Named(context)),
                _ => {
                    let first = StepName { stage: name.to_string(), number: 1, total: 1 };
                    Ok(FileSource::Vertex(self.context_state(context, None, first, span)?.vertex))
                }
            };
        }
        if name.bytes().all(|b| b.is_ascii_digit()) {
            let d = Diagnostic::new(span, format!("stage {name} does not exist"));
            // The stage itself cannot be used, nor those after it.
            let help = match self.in_progress.last().copied().unwrap_or(count).min(count) {
                0 => "name an image; no stage precedes this one".to_string(),
                1 => "use 0, the number of the only earlier stage".to_string(),
                earlier => format!("use a stage number from 0 to {}", earlier - 1),
            };
            return Err(d.help(help).into());
        }
        if name == "scratch" {
            let name = StepName { stage: String::new(), number: 1, total: 1 };
            return Ok(FileSource::Vertex(self.add(Step::Scratch, None, name, "FROM scratch".into(), span)));
        }
        let image = self.written_image(name, span)?;
        self.input_image(&image, span, false)
    }

    /// Resolves an image to copy or mount files from.
    fn input_image(&mut self, image: &WrittenImage, span: Span, later_stage: bool) -> Planned<FileSource> {
        let Some(base) = self.image(image, None, span, later_stage) else { return Err(Interrupted::Needs) };
        let (base, name) = (base.clone(), StepName { stage: image.text.clone(), number: 1, total: 1 });
        Ok(FileSource::Vertex(self.image_vertex(&image.text, &base, name, span)))
    }
}

/// Returns the state of a stage after its first step, whose name is `first`.
fn base_state(vertex: VertexId, config: ImageConfig, platform: Platform, first: StepName) -> StageState {
    let env = Vars::of_environment(&config.config.env);
    StageState {
        vertex,
        config,
        platform,
        vars: env.clone(),
        env,
        args: Vars::default(),
        history: None,
        cmd_set: false,
        user_at: None,
        step: first.number,
        total: first.total,
        stage: first.stage,
        in_trigger: false,
        ignore_cache: false,
    }
}
