//! The user namespace in which builds run, and the containers that run their commands.
//!
//! Three processes are involved. The launcher (P0) calls [`enter`], which starts the builder (P1)
//! as root of a minimal root file system. The builder calls [`run`] for each command, which makes
//! the [`Zygote`] fork a runner (P2) and streams the command's output. A runner mounts, hands over
//! to libcontainer, and reports one outcome. Only this crate uses libcontainer and caps.

mod attached;
mod client;
mod detached;
mod entrance;
mod error;
mod id_emulation;
mod inside;
mod namespace;
mod protocol;
mod runner;
mod seccomp;

pub use attached::{Attachments, run_attached};
pub use client::{Cancel, OutputCopy, Stream, run};
pub use detached::run_detached;
pub use entrance::{ENTRANCE, entrance_main};
pub use error::{MountError, Phase, Refusal, RunnerError, RunnerProblem, SandboxError, SystemError};
pub use inside::{FirstProcess, root_mount_of, run_inside};
pub use namespace::checks::{Check, checks};
pub use namespace::enter::{Builder, BuilderConfig, BuilderExit, GRACE, STORE, Watched, enter, enter_watching};
pub use namespace::isolation::{Isolation, IsolationRequest, isolation};
pub use namespace::network::Carrier;
pub use protocol::{
    CommandEnd, CommandOutcome, CommandRequest, Input, MountRequest, MountSource, Privileges, RootFiles, RunRequest,
    RunnerMode,
};
pub use runner::chroot::restored_files;
pub use runner::mount_checks::is_of_every_container;
pub use runner::mount_points::remove_mount_points;
pub use runner::terminal::Restore;
pub use runner::zygote::{ZYGOTE, Zygote, zygote_main};
