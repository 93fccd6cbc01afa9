//! The planner: evaluates stages and turns their instructions into vertices.

mod args;
mod copy;
mod inputs;
mod metadata;
mod paths;
mod run;
mod stages;
mod state;
#[cfg(test)]
mod tests;

pub use args::{automatic_args, global_scope};
pub use stages::{Plan, needed_stages, plan};
pub use state::{BaseImage, ImageNeed};
