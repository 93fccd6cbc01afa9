//! The planner: evaluates stages and turns their instructions into vertices.

mod analysis;
mod args;
mod copy;
mod inputs;
mod metadata;
mod outline;
mod paths;
mod run;
mod stages;
mod state;
#[cfg(test)]
mod tests;

pub use analysis::{Analysis, StageUse, analyze, check};
pub use outline::{Outline, OutlineArg, OutlineMount, description, outline};
pub use stages::{Plan, plan};
pub use state::{BaseImage, ImageNeed, PlatformImage};
