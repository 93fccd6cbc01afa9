//! The user namespace that builds live in, and the containers that run their commands.
//!
//! Three processes meet here. The launcher (P0) calls [`enter`], which starts the builder (P1) as root of a small
//! world of its own. The builder calls [`run`] for each command, which starts a runner (P2) and streams what it
//! prints. The runner's `main` is [`runner_main`]: it mounts, hands over to libcontainer, and reports one outcome.
//! libcontainer and caps are named in this crate only.

mod container;
mod enter;
mod probe;
mod request;
mod run;
mod stubs;

pub use container::runner_main;
pub use enter::{Builder, CONTEXT, STORE, World, enter};
pub use probe::{Check, Isolation, Refusal, checks, isolation};
pub use request::{MountRequest, Network, Outcome, RunRequest, Source};
pub use run::{Cancel, Stream, run};

/// The hidden verb under which the binary is a runner.
pub const RUNNER_VERB: &str = "__run";

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    #[error("the runner process failed: {0}")]
    Runner(String),
}
