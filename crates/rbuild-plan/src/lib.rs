//! Translates a parsed Dockerfile and the build parameters into an immutable graph of steps.
//!
//! The planner is pure. If it needs the configuration of a base image, it returns [`Plan::Needs`];
//! the caller resolves the image and calls [`plan`] again. Planning expands variables, resolves
//! stage names, and binds `--from` and `FROM` to vertices.

mod chmod;
mod graph;
mod history;
mod ids;
mod key_parts;
mod parameters;
mod planner;

pub use chmod::Chmod;
pub use graph::{
    BuildGraph, CacheRoot, CopyItem, CopySource, CopyStep, FileSource, HistoryEntry, InlineFile, RunAgent, RunCache,
    RunMount, RunMountKind, RunSecret, RunStep, Step, StepName, UrlSource, Vertex, WordSpans, WorkdirStep,
};
pub use ids::{ContextId, VertexId, VolumeId};
pub use key_parts::{KeyPartSink, StepPart};
pub use parameters::{ContextDir, ContextSource, IgnoreFile, NamedContext, NoCache, Parameters, WrittenImage};
pub use planner::{
    Analysis, BaseImage, ImageNeed, Outline, OutlineArg, OutlineMount, Plan, PlatformImage, StageUse, analyze, check,
    description, outline, plan,
};
pub use rbuild_container::{
    Capabilities, ContainerMount, ContainerPort, GroupLimits, InvalidPort, NamedVolume, NetworkMode, PortProtocol,
    PublishedPort, Resource, SecurityMode, TmpfsMount, TmpfsOptions, Ulimit, UnknownCapability, UnknownResource,
    Volume, VolumeOrigin,
};
pub use rbuild_dockerfile::Vars;
