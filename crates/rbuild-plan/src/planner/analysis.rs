//! Facts about a Dockerfile for analyses that plan no steps: the lint rules.

use std::collections::HashMap;

use rbuild_dockerfile::ast::Dockerfile;
use rbuild_dockerfile::{Diagnostic, Vars};
use rbuild_image::Platform;

use crate::parameters::{NamedContext, Parameters};
use crate::planner::args;
use crate::planner::state::{BaseImage, ImageNeed, Interrupted, Planner, PlatformImage};

/// The global scope of a Dockerfile, and the use of each stage in a build.
pub struct Analysis<'p> {
    /// The predefined global arguments: `BUILD*` for the platform of this machine, `TARGET*` for
    /// the platform of the result, and `TARGETSTAGE`.
    pub automatic: Vec<(String, String)>,
    /// Variables that are visible to FROM, and to stages that declare them: the predefined
    /// arguments and the ARGs before the first FROM.
    pub globals: Vars,
    /// Position of the target.
    pub target: usize,
    /// The use of each stage.
    pub stages: Vec<StageUse<'p>>,
}

/// The use of a stage for the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageUse<'p> {
    /// The target itself, or a stage that it needs.
    Needed,
    /// The target does not need it, unless an ONBUILD trigger of a base image does.
    Unneeded,
    /// A named context replaces it. If the context is an image, the build uses it for this
    /// platform.
    Replaced(&'p NamedContext, Platform),
}

/// Analyzes a Dockerfile without its images.
///
/// # Errors
///
/// Fails if the target stage does not exist, or if defaults of global arguments cannot be expanded.
pub fn analyze<'p>(file: &Dockerfile, params: &'p Parameters) -> Result<Analysis<'p>, Vec<Diagnostic>> {
    let images = HashMap::new();
    let mut planner = Planner::new(file, params, &images);
    let target = planner.target().map_err(|d| vec![d])?;
    let automatic = args::automatic_args(&file.stages[target], params);
    args::global_args(&mut planner, target)?;
    let needed = planner.needed(target);
    let stages = file.stages.iter().zip(needed).map(|(stage, needed)| match planner.replacement(stage) {
        Some(context) => StageUse::Replaced(&params.contexts[context], planner.stage_platform(stage)),
        None if needed => StageUse::Needed,
        None => StageUse::Unneeded,
    });
    let stages = stages.collect();
    Ok(Analysis { automatic, globals: planner.globals, target, stages })
}

/// Checks the target and the stages that it needs, or all stages if no target was requested, by
/// planning them. Assumes that all entitlements are granted and that all architectures can be
/// emulated. Returns the images that are not in `images`; the stages that use them were not
/// checked.
///
/// # Errors
///
/// Returns the errors in the parameters and in the global scope, or else those of the stages: all
/// errors in instructions that do not depend on each other.
pub fn check(
    file: &Dockerfile,
    params: &Parameters,
    images: &HashMap<PlatformImage, BaseImage>,
) -> Result<Vec<ImageNeed>, Vec<Diagnostic>> {
    let emulated = rbuild_image::ARCHITECTURES.map(String::from).to_vec();
    let params = Parameters { emulated, allow_host_network: true, allow_insecure: true, ..params.clone() };
    let mut planner = Planner::new(file, &params, images);
    let stages = match planner.prepare() {
        Ok(target) if params.target.is_some() => planner.needed(target),
        Ok(_) => vec![true; file.stages.len()],
        Err(Interrupted::Errors(errors)) => return Err(errors),
        Err(Interrupted::Needs | Interrupted::Reported) => return planner.needs_or_errors(),
    };
    for index in (0..stages.len()).filter(|index| stages[*index]) {
        let _ = planner.stage(index);
    }
    planner.needs_or_errors()
}
