//! Translates a parsed Dockerfile and the build parameters into an immutable graph of steps.
//!
//! The planner is pure. If it needs the configuration of a base image, it returns [`Plan::Needs`];
//! the caller resolves the image and calls [`plan`] again. Planning expands variables, resolves
//! stage names, and binds `--from` and `FROM` to vertices.

mod chmod;
mod graph;
mod history;
mod key_parts;
mod planner;
mod variables;

pub use chmod::Chmod;
pub use graph::{
    AgentStep, BuildGraph, CacheStep, CopyStep, From, HistoryEntry, InlineFile, MountKindStep, MountStep, Network,
    RunStep, SecretStep, Security, SourceNames, Step, Ulimit, Vertex, VertexId, WorkdirStep,
};
pub use key_parts::Tell;
pub use planner::{
    BaseImage, ContextSource, ImageNeed, NamedContext, NoCache, Parameters, Plan, Volume, automatic_args, plan,
};
pub use variables::Vars;
