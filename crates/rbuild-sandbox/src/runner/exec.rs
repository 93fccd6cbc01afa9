//! The last step from a container's first process to the command itself.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::oci_spec::runtime as oci;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use rbuild_container::{Resource, Ulimit};
use rbuild_linux::{described, process, quoted, resource_limits};

use crate::error::RunnerProblem;
use crate::protocol::RunRequest;
use crate::runner::privileges::Confinement;

/// A file in memory that carries one failure from the container's first process to the runner.
pub(crate) struct FailureFile(File);

impl FailureFile {
    pub(crate) fn new() -> Result<FailureFile, RunnerProblem> {
        let made = rustix::fs::memfd_create("failure", rustix::fs::MemfdFlags::CLOEXEC);
        Ok(FailureFile(made.map_err(RunnerProblem::of_call("memfd_create", described("a file in memory")))?.into()))
    }

    /// Keeps the first failure.
    fn keep(&self, problem: &RunnerProblem) {
        if self.get().is_none() {
            // Without it, the failure is described only by libcontainer's text.
            let _ = serde_json::to_vec(problem).map(|bytes| (&self.0).write_all(&bytes));
        }
    }

    /// Returns the failure, if there was one.
    pub(crate) fn get(&self) -> Option<RunnerProblem> {
        let mut bytes = vec![0; self.0.metadata().ok()?.len().try_into().ok()?];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// The executor, which runs in the container's first process right before the command replaces it.
#[derive(Clone)]
pub(crate) struct CommandExecutor {
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
    /// `None` if the caller has restricted the process already.
    confinement: Option<Confinement>,
    limits: Vec<Ulimit>,
    /// True if the command becomes a child of the container's first process.
    init: bool,
    /// Socket for the listener of calls about file owners.
    answers: Option<Arc<OwnedFd>>,
    /// Receives the reason if the command cannot be executed.
    failure: Option<Arc<FailureFile>>,
}

impl CommandExecutor {
    pub(crate) fn new(request: &RunRequest) -> Result<CommandExecutor, RunnerProblem> {
        let command = &request.command;
        let confinement = Some(Confinement::of(command));
        let limits = command.ulimits.clone();
        let init = command.init;
        Ok(CommandExecutor { confinement, limits, init, ..CommandExecutor::of_words(&command.args, &command.env)? })
    }

    /// Returns the executor of a command without limits. It only executes: the caller has dropped
    /// privileges.
    pub(crate) fn of_words(args: &[String], env: &[String]) -> Result<CommandExecutor, RunnerProblem> {
        let c = |s: &String| CString::new(s.as_bytes()).map_err(|_| RunnerProblem::NulByte(s.clone()));
        if args.is_empty() {
            return Err(RunnerProblem::NoCommand);
        }
        let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default().to_string();
        Ok(CommandExecutor {
            args: args.iter().map(c).collect::<Result<_, _>>()?,
            env: env.iter().map(c).collect::<Result<_, _>>()?,
            path,
            confinement: None,
            limits: Vec::new(),
            init: false,
            answers: None,
            failure: None,
        })
    }

    /// Forwards calls about owners to the supervisor that receives the listener at the other end of
    /// `socket`.
    pub(crate) fn with_supervisor(self, socket: OwnedFd) -> CommandExecutor {
        CommandExecutor { answers: Some(Arc::new(socket)), ..self }
    }

    /// Writes failures to execute the command to `file`, because libcontainer passes errors of the
    /// container's first process on as text only.
    pub(crate) fn with_failure_file(self, file: Arc<FailureFile>) -> CommandExecutor {
        CommandExecutor { failure: Some(file), ..self }
    }

    /// Keeps a failure, and returns its message.
    fn keep(&self, problem: RunnerProblem) -> String {
        let message = problem.to_string();
        self.failure.iter().for_each(|file| file.keep(&problem));
        message
    }

    /// Finds the program as execvpe(3) would.
    fn program(&self) -> Result<PathBuf, RunnerProblem> {
        let name = self.args[0].to_string_lossy().into_owned();
        let found = if name.contains('/') {
            Some(PathBuf::from(&name)).filter(|p| p.exists())
        } else {
            let dirs = self.path.split(':').map(|d| Path::new(if d.is_empty() { "." } else { d }));
            dirs.map(|d| d.join(&name)).find(|p| p.is_file())
        };
        found.ok_or_else(|| {
            let path = (!name.contains('/')).then(|| self.path.clone());
            RunnerProblem::NoProgram { name, path }
        })
    }
}

impl Executor for CommandExecutor {
    fn validate(&self, _: &oci::Spec) -> Result<(), ExecutorValidationError> {
        self.program().map(|_| ()).map_err(|reason| ExecutorValidationError::ArgValidationError(self.keep(reason)))
    }

    /// The environment is passed to execve(2) directly.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &oci::Spec) -> Result<(), ExecutorError> {
        // Limits come last: those of the command may be too low for the work before it.
        let prepared = self.drop_privileges().and_then(|()| self.begin()).and_then(|()| set_limits(&self.limits));
        let reason = match prepared {
            Ok(()) => self.execute(),
            Err(reason) => reason,
        };
        Err(ExecutorError::Other(self.keep(reason)))
    }
}

/// Sets those limits on the calling process that cannot be set once calls about owners are
/// emulated.
pub(crate) fn reserve_limits(limits: &[Ulimit]) -> Result<(), RunnerProblem> {
    // The difference of the two limits encodes the IDs of a process. Once the filter is installed,
    // changes of the limits only appear to succeed.
    for limit in limits.iter().filter(|limit| limit.resource == Resource::Msgqueue) {
        resource_limits::set_limit(&Ulimit { soft: limit.hard, ..*limit })?;
    }
    Ok(())
}

/// Sets the limits of the command on the calling process.
pub(crate) fn set_limits(limits: &[Ulimit]) -> Result<(), RunnerProblem> {
    for limit in limits {
        resource_limits::set_limit(limit)?;
    }
    Ok(())
}

impl CommandExecutor {
    fn drop_privileges(&self) -> Result<(), RunnerProblem> {
        let answers = self.answers.as_ref().map(|socket| socket.as_fd());
        if answers.is_some() {
            reserve_limits(&self.limits)?;
        }
        if let Some(confinement) = self.confinement {
            confinement.apply(answers)?;
        }
        Ok(process::reset_signals()?)
    }

    /// Makes the calling process the first one of the container, and continues in a child, if the
    /// command is to have such a parent.
    fn begin(&self) -> Result<(), RunnerProblem> {
        if self.init {
            rbuild_linux::continue_below_init()?;
        }
        Ok(())
    }

    /// Replaces the calling process. Returns only if the program is missing.
    pub(crate) fn execute(&self) -> RunnerProblem {
        let program = match self.program() {
            Ok(program) => program,
            Err(reason) => return reason,
        };
        let shown = program.display().to_string();
        let Ok(path) = CString::new(shown.clone()) else { return RunnerProblem::NulByte(shown) };
        let Err(e) = nix::unistd::execve(&path, &self.args, &self.env);
        // Errors can no longer be reported to the parent here, so the message goes to the step's
        // log.
        let _ = std::io::stderr().write_all(not_executed(&program, e).as_bytes());
        std::process::exit(if e == Errno::ENOENT { 127 } else { 126 });
    }
}

/// Returns the line of the step's log about a program that the kernel did not execute.
fn not_executed(program: &Path, e: Errno) -> String {
    let reason = match e {
        Errno::ENOENT => "its interpreter is missing",
        Errno::ENOEXEC => "it is for another platform, or a script without #!",
        Errno::EACCES if program.is_dir() => "it is a directory",
        Errno::EACCES => "it is not executable (permission denied)",
        e => e.desc(),
    };
    format!("error: cannot execute {}: {reason}\n", quoted(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_executed_are_reported_as_recorded() {
        let cases = [
            ("/a b", Errno::ENOENT),
            ("/a\n", Errno::ENOEXEC),
            ("/", Errno::EACCES),
            ("/dev/null", Errno::EACCES),
            ("/a", Errno::E2BIG),
        ];
        let lines = cases.map(|(program, e)| not_executed(Path::new(program), e));
        rbuild_testkit::assert_recorded!("not-executed", lines.concat());
    }
}
