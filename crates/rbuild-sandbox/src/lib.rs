//! The user namespace in which builds run, and the containers that run their commands.
//!
//! Three processes are involved. The launcher (P0) calls [`enter`], which starts the builder (P1)
//! as root of a minimal root file system. The builder calls [`run`] for each command, which makes
//! the [`Zygote`] fork a runner (P2) and streams the command's output. A runner mounts, hands over
//! to libcontainer, and reports one outcome. Only this crate uses libcontainer and caps.

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
    /// One of rbuild's own processes was killed in the middle of its work.
    #[error("{0} was killed")]
    Killed(&'static str),
    /// The command's output could not be delivered.
    #[error("the command's output could not be written: {0}")]
    Output(std::io::Error),
}
