//! The last step from a container's first process to the command itself.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::oci_spec::runtime as oci;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rbuild_linux::process;

use crate::protocol::{NO_PROGRAM, RunRequest};
use crate::runner::privileges::{have_answers, narrow};

/// The executor, which runs in the container's first process right before the command replaces it.
#[derive(Clone)]
pub(crate) struct Environment {
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
    /// The user ID whose system calls are to be filtered.
    narrowed: Option<u32>,
    /// Socket for the listener of calls about file owners.
    answers: Option<Arc<OwnedFd>>,
}

impl Environment {
    pub(crate) fn new(request: &RunRequest) -> Result<Environment, String> {
        let c = |s: &String| CString::new(s.as_bytes()).map_err(|_| format!("{s:?} holds a zero byte"));
        if request.args.is_empty() {
            return Err("there is no command to run".to_string());
        }
        let path = request.env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default().to_string();
        Ok(Environment {
            args: request.args.iter().map(c).collect::<Result<_, _>>()?,
            env: request.env.iter().map(c).collect::<Result<_, _>>()?,
            path,
            narrowed: (!request.insecure).then_some(if request.recorded { 0 } else { request.uid }),
            answers: None,
        })
    }

    /// Makes calls about owners go to the supervisor that receives the listener at the other end of
    /// `socket`.
    pub(crate) fn answered_through(self, socket: OwnedFd) -> Environment {
        Environment { answers: Some(Arc::new(socket)), ..self }
    }

    /// Finds the program as execvpe(3) would. The error is a user-facing sentence.
    fn program(&self) -> Result<PathBuf, String> {
        let name = self.args[0].to_string_lossy().into_owned();
        let found = if name.contains('/') {
            Some(PathBuf::from(&name)).filter(|p| p.exists())
        } else {
            let dirs = self.path.split(':').map(|d| Path::new(if d.is_empty() { "." } else { d }));
            dirs.map(|d| d.join(&name)).find(|p| p.is_file())
        };
        found.ok_or_else(|| match name.contains('/') {
            true => format!("{NO_PROGRAM}{name}"),
            false => format!("{NO_PROGRAM}program `{name}` in PATH={}", self.path),
        })
    }
}

impl Executor for Environment {
    fn validate(&self, _: &oci::Spec) -> Result<(), ExecutorValidationError> {
        self.program().map(|_| ()).map_err(ExecutorValidationError::ArgValidationError)
    }

    /// The environment is passed to execve(2) directly.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &oci::Spec) -> Result<(), ExecutorError> {
        let answers = self.answers.as_ref().map(|socket| socket.as_fd());
        match (self.narrowed, answers) {
            (Some(uid), answers) => narrow(uid, answers).map_err(ExecutorError::Other)?,
            (None, Some(answers)) => have_answers(answers).map_err(ExecutorError::Other)?,
            (None, None) => {}
        }
        process::reset_signals().map_err(|e| ExecutorError::Other(e.to_string()))?;
        Err(ExecutorError::Other(self.execute()))
    }
}

impl Environment {
    /// Replaces the calling process. Returns a user-facing sentence on failure.
    pub(crate) fn execute(&self) -> String {
        let program = match self.program() {
            Ok(program) => program,
            Err(why) => return why,
        };
        let shown = program.display().to_string();
        let Ok(path) = CString::new(shown.clone()) else { return format!("{shown:?} holds a zero byte") };
        let Err(e) = nix::unistd::execve(&path, &self.args, &self.env);
        // Errors can no longer be reported to the parent here, so the message goes to the step's
        // log.
        let hint = match e {
            nix::errno::Errno::ENOENT => " (its interpreter is missing)",
            nix::errno::Errno::ENOEXEC => " (it is for another platform, or a script without #!)",
            _ => "",
        };
        let _ = std::io::stderr().write_all(format!("exec {shown}: {}{hint}\n", e.desc()).as_bytes());
        std::process::exit(if e == nix::errno::Errno::ENOENT { 127 } else { 126 });
    }
}
