//! Errors of this crate.

mod mount;
mod runner;

pub use mount::MountError;
pub(crate) use mount::{FileOrigin, MountProblem};
pub use runner::{Phase, RunnerError, RunnerProblem, SystemError};
pub(crate) use runner::{PhaseContext, library};

use rbuild_remedy::{DiskRemedy, Remedy};

/// An error of the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This machine does not allow the isolation.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A system call of the launcher or the builder failed.
    #[error(transparent)]
    Kernel(#[from] rbuild_linux::Error),
    /// A command could not be prepared.
    #[error("the runner process failed")]
    Runner(#[from] RunnerError),
    /// The builder could not set up its isolation; the launcher tries another one.
    #[error("the builder could not set up its isolation")]
    NotSetUp,
    /// One of rbuild's own processes was killed in the middle of its work.
    #[error("{0} was killed")]
    Killed(&'static str),
    /// The command's output could not be delivered.
    #[error("cannot write the command's output")]
    Output(#[source] std::io::Error),
}

impl SandboxError {
    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            SandboxError::Refused(refusal) => Some(refusal.remedy.clone()),
            SandboxError::Kernel(e) if e.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            SandboxError::Kernel(e) => e.remedy(),
            SandboxError::Runner(e) => e.remedy(),
            SandboxError::Output(e) => rbuild_linux::is_disk_full(e).then_some(Remedy::Disk(DiskRemedy::FreeOutput)),
            SandboxError::NotSetUp | SandboxError::Killed(_) => None,
        }
    }
}

/// The reason why this machine does not permit the requested isolation, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The reason, without the cause.
    pub reason: String,
    /// The remedy.
    pub remedy: Remedy,
    /// The error of the kernel, if there is one.
    pub source: Option<std::io::Error>,
}

pub(crate) fn refusal(reason: impl Into<String>, remedy: impl Into<Remedy>) -> Refusal {
    Refusal { reason: reason.into(), remedy: remedy.into(), source: None }
}

impl Refusal {
    /// Sets the cause.
    pub(crate) fn because(self, cause: impl Into<std::io::Error>) -> Refusal {
        Refusal { source: Some(cause.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn a_message_does_not_repeat_its_source() {
        let e = SandboxError::Runner(RunnerProblem::NoCommand.during(Phase::Command));
        assert_eq!(rbuild_remedy::sentence(&e), "the runner process failed: there is no command to run");
    }

    #[test]
    fn a_full_disk_of_the_output_has_a_remedy() {
        let of = |errno: rustix::io::Errno| SandboxError::Output(errno.into());
        assert_eq!(of(rustix::io::Errno::NOSPC).remedy(), Some(Remedy::Disk(DiskRemedy::FreeOutput)));
        assert_eq!(of(rustix::io::Errno::PIPE).remedy(), None);
    }

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno: rustix::io::Errno| std::io::Error::from(errno);
        let object = || rbuild_linux::described("the builder process");
        let kernel = |errno| rbuild_linux::Error::new("clone3", object(), io(errno));
        let errors = [
            SandboxError::Refused(refusal(
                "`/proc` is not mounted",
                Remedy::Isolation(rbuild_remedy::IsolationRemedy::MountProc),
            )),
            SandboxError::Refused(
                refusal(
                    "the kernel permits no user namespaces",
                    Remedy::Isolation(rbuild_remedy::IsolationRemedy::UnconfineSeccomp),
                )
                .because(io(rustix::io::Errno::PERM)),
            ),
            SandboxError::Kernel(kernel(rustix::io::Errno::NOSPC)),
            SandboxError::Kernel(kernel(rustix::io::Errno::ACCESS)),
            SandboxError::Runner(RunnerProblem::NoCommand.during(Phase::Command)),
            SandboxError::NotSetUp,
            SandboxError::Killed("the process that runs the command"),
            SandboxError::Output(io(rustix::io::Errno::NOSPC)),
        ];
        let variants = variants!(SandboxError { Refused, Kernel, Runner, NotSetUp, Killed, Output });
        assert_recorded!("SandboxError", variants.table(&errors, |e| e, SandboxError::remedy));
    }
}
