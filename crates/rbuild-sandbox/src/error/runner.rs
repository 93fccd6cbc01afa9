//! Errors of runners, which cross the boundary to the builder's process as values.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use rbuild_linux::Object;
use rbuild_remedy::{CommandRemedy, DiskRemedy, IsolationRemedy, MachineRemedy, MountRemedy, Remedy, SessionLimit};
use serde::{Deserialize, Serialize};

use crate::error::mount::MountError;

/// The reason why a command was not started, or why its runner failed afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerError {
    /// The work during which it occurred.
    pub phase: Phase,
    /// The cause.
    pub problem: RunnerProblem,
}

/// The work that a runner was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Starting the runner, and exchanging messages with it.
    Start,
    /// Reading the request.
    Request,
    /// Entering namespaces.
    Namespaces,
    /// Mounting or placing the command's files.
    Files,
    /// Creating the container.
    Container,
    Terminal,
    /// Executing the command.
    Command,
    /// Answering the command's calls about identity.
    Emulation,
    /// Reporting to the builder.
    Report,
    /// Removing the files placed instead of mounts.
    Cleanup,
}

impl Phase {
    /// Returns the message of a failure in this phase; `None` if the problem alone implies it.
    fn failure(self) -> Option<&'static str> {
        match self {
            Phase::Request => Some("cannot read the request"),
            Phase::Terminal => Some("cannot set up the terminal"),
            Phase::Report => Some("cannot report the end of the command"),
            Phase::Cleanup => Some("cannot remove the files that replaced mounts"),
            Phase::Start | Phase::Namespaces | Phase::Files | Phase::Container | Phase::Command | Phase::Emulation => {
                None
            }
        }
    }
}

/// The cause of a runner's failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RunnerProblem {
    /// A system call failed.
    #[error(transparent)]
    System(SystemError),
    #[error(transparent)]
    Mount(MountError),
    /// The image has no such program. `path` is the variable in which a name was looked up.
    #[error("{}", no_program(name, path.as_deref()))]
    NoProgram { name: String, path: Option<String> },
    #[error("there is no command to run")]
    NoCommand,
    #[error("{} contains a NUL byte", rbuild_linux::quoted(.0))]
    NulByte(String),
    #[error("the working directory `{0}` does not exist")]
    NoWorkingDirectory(String),
    #[error("the working directory `{0}` is not a directory")]
    WorkingDirectoryIsAFile(String),
    #[error("the mount source `{0}` does not exist")]
    NoMountSource(String),
    #[error("`/dev/{name}` is missing on this machine; every command needs it")]
    NoDevice { name: Cow<'static, str>, major: u32, minor: u32 },
    #[error("an insecure command could reach the builder's files through the masked /proc")]
    ExposedProcesses,
    /// An operation that requires mounts, on a machine that does not permit them.
    #[error("{0} requires mounts, which this machine does not permit")]
    NeedsMounts(Cow<'static, str>),
    #[error("{0} cannot be writable: that requires mounts, which this machine does not permit")]
    WritableVolume(String),
    #[error("a private network requires namespaces, which this machine does not permit")]
    NeedsNamespaces,
    #[error("this build has no isolated network")]
    NoNetwork,
    #[error("cannot start the isolated network: {carrier} printed {}", or_nothing(output))]
    NetworkDown { carrier: Cow<'static, str>, output: String },
    /// The program that connects the isolated network does not forward a port.
    #[error("cannot publish port {port}: {reason}")]
    PortNotForwarded { port: String, reason: String },
    #[error("owners can be recorded on x86_64 and aarch64 only")]
    NoEmulation,
    /// The resource limit that encodes the IDs of a command is too low.
    #[error("the hard limit on the size of message queues (ulimit -q) is too low to emulate IDs")]
    LowQueueLimit,
    #[error("cannot intercept the command's system calls")]
    NoListener,
    /// The kernel permits one filter with a listener for a process (seccomp(2), EBUSY).
    #[error("another program intercepts the system calls of rbuild, so those of commands cannot be intercepted")]
    AlreadyIntercepted,
    /// One of the container's first processes was killed.
    #[error("a process that was setting up the container was killed by signal {0}")]
    Killed(i32),
    /// The builder was started without support for commands.
    #[error("the builder was started without support for commands")]
    CommandsDisabled,
    #[error("the process that starts commands ended unexpectedly")]
    ZygoteExited,
    #[error("cannot re-execute rbuild to start commands")]
    ReexecFailed,
    /// A runner could not be forked.
    #[error("{0}")]
    NoFork(SystemError),
    /// A library failed. `errno` is the kernel's error, if the library passes it on.
    #[error("{message}")]
    Library { message: String, errno: Option<i32> },
}

fn or_nothing(output: &str) -> &str {
    if output.is_empty() { "nothing" } else { output }
}

fn no_program(name: &str, path: Option<&str>) -> String {
    match path {
        None => format!("`{name}` does not exist in the image"),
        Some(path) => format!("the image has no program `{name}` in PATH={path}"),
    }
}

impl fmt::Display for RunnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase.failure() {
            Some(failure) => f.write_str(failure),
            None => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for RunnerError {
    /// Returns the problem, unless the message is that of the problem.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.phase.failure() {
            Some(_) => Some(&self.problem),
            None => self.problem.source(),
        }
    }
}

impl RunnerError {
    /// Returns the kernel's error number, if the kernel caused the failure.
    pub fn errno(&self) -> Option<i32> {
        match &self.problem {
            RunnerProblem::System(e) | RunnerProblem::NoFork(e) => e.errno,
            RunnerProblem::Library { errno, .. } => *errno,
            _ => None,
        }
    }

    /// Returns the target of the mount that cannot be made, if that is the problem.
    pub fn mount_target(&self) -> Option<&Path> {
        match &self.problem {
            RunnerProblem::Mount(e) => Some(e.target()),
            _ => None,
        }
    }

    /// Returns true if the image has no such program.
    pub fn is_no_program(&self) -> bool {
        matches!(self.problem, RunnerProblem::NoProgram { .. })
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match &self.problem {
            RunnerProblem::Mount(e) => Some(e.remedy()),
            RunnerProblem::NoDevice { name, major, minor } => {
                let (name, major, minor) = (name.clone(), *major, *minor);
                Some(MachineRemedy::CreateDevice { name, major, minor }.into())
            }
            RunnerProblem::NoProgram { name, .. } if name == "/bin/sh" => Some(CommandRemedy::UseImageWithShell.into()),
            RunnerProblem::NoProgram { .. } => Some(CommandRemedy::ProvideProgram.into()),
            RunnerProblem::LowQueueLimit => Some(MachineRemedy::RaiseQueueLimit.into()),
            RunnerProblem::AlreadyIntercepted => Some(MachineRemedy::LeaveInterceptor.into()),
            RunnerProblem::ExposedProcesses => Some(Remedy::Isolation(IsolationRemedy::UnmaskProc)),
            RunnerProblem::WritableVolume(_) => Some(Remedy::Mount(MountRemedy::ReadOnlyVolume)),
            RunnerProblem::NeedsNamespaces => Some(Remedy::Isolation(IsolationRemedy::OmitNetwork)),
            RunnerProblem::NoFork(_) => {
                Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Processes }))
            }
            // Namespaces have limits that are reported like a full disk.
            _ if self.phase == Phase::Namespaces => None,
            RunnerProblem::System(e) => e.remedy(),
            RunnerProblem::Library { errno, .. } => of_errno((*errno)?),
            _ => None,
        }
    }
}

/// Returns the remedy against an error of the kernel.
fn of_errno(errno: i32) -> Option<Remedy> {
    let e = std::io::Error::from_raw_os_error(errno);
    if rbuild_linux::is_disk_full(&e) { Some(Remedy::Disk(DiskRemedy::FreeSpace)) } else { rbuild_linux::remedy_of(&e) }
}

/// A failed system call, as it crosses the boundary between processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SystemError {
    /// `None` if the kernel did not report the failure.
    pub errno: Option<i32>,
    message: String,
    /// The file that grants the ID that was not mapped, if that is the cause.
    granted_in: Option<Cow<'static, str>>,
}

impl SystemError {
    fn remedy(&self) -> Option<Remedy> {
        match &self.granted_in {
            Some(file) => Some(Remedy::Isolation(IsolationRemedy::GrantIds { file: file.clone() })),
            None => of_errno(self.errno?),
        }
    }
}

impl From<rbuild_linux::Error> for SystemError {
    fn from(e: rbuild_linux::Error) -> SystemError {
        let granted = match e.remedy() {
            Some(Remedy::Isolation(IsolationRemedy::GrantIds { file })) => Some(file),
            _ => None,
        };
        SystemError { errno: e.errno(), message: e.to_string(), granted_in: granted }
    }
}

impl From<rbuild_linux::Error> for RunnerProblem {
    fn from(e: rbuild_linux::Error) -> RunnerProblem {
        RunnerProblem::System(e.into())
    }
}

impl From<MountError> for RunnerProblem {
    fn from(e: MountError) -> RunnerProblem {
        RunnerProblem::Mount(e)
    }
}

impl RunnerProblem {
    /// Returns a conversion for errors of a system call with that object.
    pub(crate) fn of_call<E: Into<std::io::Error>>(
        call: &'static str,
        object: impl Into<Object>,
    ) -> impl FnOnce(E) -> RunnerProblem {
        move |e| rbuild_linux::Error::new(call, object, e).into()
    }

    /// Returns the failure to mount at a target.
    pub(crate) fn of_mount_point(target: &Path, e: rbuild_linux::Error) -> RunnerProblem {
        let message = format!("cannot mount on {}: {}", rbuild_linux::quoted(target), e.of_object());
        RunnerProblem::System(SystemError { message, ..SystemError::from(e) })
    }

    pub(crate) fn during(self, phase: Phase) -> RunnerError {
        RunnerError { phase, problem: self }
    }
}

/// Adds the phase in which a problem occurred.
pub(crate) trait PhaseContext<T> {
    fn during(self, phase: Phase) -> Result<T, RunnerError>;
}

impl<T, E: Into<RunnerProblem>> PhaseContext<T> for Result<T, E> {
    fn during(self, phase: Phase) -> Result<T, RunnerError> {
        self.map_err(|e| e.into().during(phase))
    }
}

/// Returns the failure of a library: the messages of the error and its causes, without
/// repetitions, and the error number of the kernel among them.
pub(crate) fn library<E: std::error::Error + 'static>(e: E) -> RunnerProblem {
    let mut message = rbuild_remedy::message(&e);
    let mut errno = None;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(cause) = next {
        let text = rbuild_remedy::message(cause);
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        errno = errno.or_else(|| errno_of(cause));
        next = cause.source();
    }
    RunnerProblem::Library { message, errno }
}

fn errno_of(e: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let of_nix = || e.downcast_ref::<nix::errno::Errno>().map(|e| *e as i32);
    e.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error).or_else(of_nix)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn failed(errno: rustix::io::Errno) -> RunnerProblem {
        let e = rbuild_linux::Error::new("mkdirat", Path::new("/store/tmp/work"), errno);
        e.within("the command's temporary files").into()
    }

    /// Returns the error as it arrives in another process.
    fn sent(e: &RunnerError) -> RunnerError {
        serde_json::from_slice(&serde_json::to_vec(e).unwrap()).unwrap()
    }

    #[test]
    fn errno_and_remedy_cross_the_process_boundary() {
        let full = sent(&failed(rustix::io::Errno::NOSPC).during(Phase::Files));
        assert_eq!((full.errno(), full.remedy()), (Some(28), Some(Remedy::Disk(DiskRemedy::FreeSpace))));
        let files = sent(&failed(rustix::io::Errno::MFILE).during(Phase::Container));
        assert_eq!(
            files.remedy(),
            Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Files }))
        );
        let denied = sent(&failed(rustix::io::Errno::ACCESS).during(Phase::Files));
        assert_eq!(denied.errno(), Some(13));
        assert_eq!(denied.to_string(), "cannot write to the command's temporary files: permission denied");
    }

    #[test]
    fn a_namespace_limit_is_not_reported_as_a_full_disk() {
        let e = failed(rustix::io::Errno::NOSPC).during(Phase::Namespaces);
        assert_eq!(e.remedy(), None);
    }

    #[test]
    fn errno_is_kept_through_library_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("no container")]
        struct Outer(#[source] std::io::Error);
        let e = library(Outer(std::io::Error::from_raw_os_error(28))).during(Phase::Container);
        assert_eq!((e.errno(), e.remedy()), (Some(28), Some(Remedy::Disk(DiskRemedy::FreeSpace))));
        assert_eq!(e.to_string(), "no container: no space left on device");
    }

    #[test]
    fn a_missing_program_has_its_own_variant() {
        let e = RunnerProblem::NoProgram { name: "x".into(), path: Some("/bin".into()) }.during(Phase::Command);
        assert!(sent(&e).is_no_program());
        assert_eq!(e.to_string(), "the image has no program `x` in PATH=/bin");
        let other = RunnerProblem::Library { message: "the image has no luck".into(), errno: None };
        assert!(!other.during(Phase::Container).is_no_program());
    }

    /// One problem of each kind.
    fn problems() -> Vec<RunnerProblem> {
        let system = |errno: rustix::io::Errno| {
            SystemError::from(rbuild_linux::Error::new("clone3", rbuild_linux::described("the runner process"), errno))
        };
        let library = |errno| RunnerProblem::Library { message: "the container cannot be created".into(), errno };
        let at = Path::new("/data");
        vec![
            failed(rustix::io::Errno::NOSPC),
            failed(rustix::io::Errno::MFILE),
            RunnerProblem::of_mount_point(at, rbuild_linux::Error::new("move_mount", at, rustix::io::Errno::ACCESS)),
            RunnerProblem::Mount(crate::error::MountProblem::OverRoot.at(Path::new("/"))),
            RunnerProblem::NoProgram { name: "x".into(), path: Some("/bin".into()) },
            RunnerProblem::NoProgram { name: "/x".into(), path: None },
            RunnerProblem::NoCommand,
            RunnerProblem::NulByte("a\0b".into()),
            RunnerProblem::NoWorkingDirectory("/srv".into()),
            RunnerProblem::WorkingDirectoryIsAFile("/srv".into()),
            RunnerProblem::NoMountSource("/src".into()),
            RunnerProblem::NoDevice { name: "null".into(), major: 1, minor: 3 },
            RunnerProblem::ExposedProcesses,
            RunnerProblem::NeedsMounts("a secret".into()),
            RunnerProblem::WritableVolume("the volume at `/data`".into()),
            RunnerProblem::NeedsNamespaces,
            RunnerProblem::NoNetwork,
            RunnerProblem::NetworkDown { carrier: "pasta".into(), output: String::new() },
            RunnerProblem::NetworkDown { carrier: "pasta".into(), output: "no interface".into() },
            RunnerProblem::PortNotForwarded { port: "0.0.0.0:80/tcp".into(), reason: "refused".into() },
            RunnerProblem::NoEmulation,
            RunnerProblem::LowQueueLimit,
            RunnerProblem::NoListener,
            RunnerProblem::AlreadyIntercepted,
            RunnerProblem::Killed(9),
            RunnerProblem::CommandsDisabled,
            RunnerProblem::ZygoteExited,
            RunnerProblem::ReexecFailed,
            RunnerProblem::NoFork(system(rustix::io::Errno::AGAIN)),
            library(None),
            library(Some(28)),
        ]
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors: Vec<RunnerError> = problems().into_iter().map(|problem| problem.during(Phase::Command)).collect();
        let variants = variants!(RunnerProblem {
            System,
            Mount,
            NoProgram,
            NoCommand,
            NulByte,
            NoWorkingDirectory,
            WorkingDirectoryIsAFile,
            NoMountSource,
            NoDevice,
            ExposedProcesses,
            NeedsMounts,
            WritableVolume,
            NeedsNamespaces,
            NoNetwork,
            NetworkDown,
            PortNotForwarded,
            NoEmulation,
            LowQueueLimit,
            NoListener,
            AlreadyIntercepted,
            Killed,
            CommandsDisabled,
            ZygoteExited,
            ReexecFailed,
            NoFork,
            Library,
        });
        assert_recorded!("RunnerProblem", variants.table(&errors, |e| &e.problem, RunnerError::remedy));
        let phases = [
            Phase::Start,
            Phase::Request,
            Phase::Namespaces,
            Phase::Files,
            Phase::Container,
            Phase::Terminal,
            Phase::Command,
            Phase::Emulation,
            Phase::Report,
            Phase::Cleanup,
        ];
        let errors = phases.map(|phase| RunnerProblem::Killed(9).during(phase));
        let variants = variants!(Phase {
            Start,
            Request,
            Namespaces,
            Files,
            Container,
            Terminal,
            Command,
            Emulation,
            Report,
            Cleanup,
        });
        assert_recorded!("Phase", variants.table(&errors, |e| &e.phase, RunnerError::remedy));
    }
}
