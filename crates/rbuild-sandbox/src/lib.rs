//! The user namespace that builds live in, and the containers that run their commands.
//!
//! Three processes meet here. The launcher (P0) calls [`enter`], which starts the builder (P1) as root of a small
//! world of its own. The builder calls [`run`] for each command, which has a runner (P2) forked by the [`Zygote`] and
//! streams what it prints. A runner mounts, hands over to libcontainer, and reports one outcome.
//! libcontainer and caps are named in this crate only.

mod attached;
mod chroot;
mod command;
mod complaints;
mod container;
mod enter;
mod mounts;
mod network;
mod newuidmap;
mod obstacles;
mod owners;
mod probe;
mod request;
mod rights;
mod run;
mod seccomp;
mod stubs;
mod surroundings;
mod terminal;
mod zygote;

pub use attached::run_attached;
pub use chroot::restored_files;
pub use enter::{Builder, STORE, World, enter};
pub use network::Carrier;
pub use probe::{Check, Isolation, Refusal, Rung, UNMASK, checks, isolation, records_owners};
pub use request::{Ended, Files, Input, MountRequest, Network, Outcome, RunRequest, Source, Ulimit};
pub use run::{Cancel, Stream, run};
pub use stubs::remove_points;
pub use terminal::Restore;
pub use zygote::{ZYGOTE, Zygote, zygote_main};

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    #[error("the runner process failed: {0}")]
    Runner(String),
    /// One of rbuild's own processes ended in the middle of its work.
    #[error("{0} was killed")]
    Killed(&'static str),
    /// What the command printed did not arrive where it was to go.
    #[error("the command's output could not be written: {0}")]
    Output(std::io::Error),
}
