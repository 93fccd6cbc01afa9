//! A Dockerfile and its parameters to an immutable graph of steps.
//!
//! Pure: what the planner lacks (the configurations of base images) it asks for by returning [`Plan::Needs`], and
//! is called again. Variables are expanded, stages and names are bound, users see none of it but in errors.

mod chmod;
mod convert;
mod graph;
mod history;
mod parts;
mod scope;

pub use chmod::Chmod;
pub use convert::{
    BaseImage, ContextSource, ImageNeed, NamedContext, NoCache, Parameters, Plan, Volume, automatic_args, plan,
};
pub use graph::{
    AgentStep, BuildGraph, CacheStep, CopyStep, From, HistoryEntry, InlineFile, MountKindStep, MountStep, Network,
    RunStep, SecretStep, Security, SourceNames, Step, Ulimit, Vertex, VertexId, WorkdirStep,
};
pub use parts::Tell;
pub use scope::Vars;
