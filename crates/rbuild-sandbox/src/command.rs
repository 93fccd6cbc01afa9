//! From a process of the container to the command itself.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::oci_spec::runtime as oci;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rbuild_linux::process;

use crate::request::RunRequest;
use crate::rights::{have_answers, narrow};

/// Runs in the container's first process, right before the command takes its place.
#[derive(Clone)]
pub(crate) struct Environment {
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
    /// Whose calls are to be filtered.
    narrowed: Option<u32>,
    /// Where the answers to calls about owners come from.
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

    /// Has calls about owners answered by whoever gets the listener at the other end of that socket.
    pub(crate) fn answered_through(self, socket: OwnedFd) -> Environment {
        Environment { answers: Some(Arc::new(socket)), ..self }
    }

    /// Where the program is, as execvpe(3) would find it; the error is a sentence for people.
    fn program(&self) -> Result<PathBuf, String> {
        let name = self.args[0].to_string_lossy().into_owned();
        let found = if name.contains('/') {
            Some(PathBuf::from(&name)).filter(|p| p.exists())
        } else {
            let dirs = self.path.split(':').map(|d| Path::new(if d.is_empty() { "." } else { d }));
            dirs.map(|d| d.join(&name)).find(|p| p.is_file())
        };
        found.ok_or_else(|| match name.contains('/') {
            true => format!("the image has no {name}"),
            false => format!("the image has no program `{name}` in PATH={}", self.path),
        })
    }
}

impl Executor for Environment {
    fn validate(&self, _: &oci::Spec) -> Result<(), ExecutorValidationError> {
        self.program().map(|_| ()).map_err(ExecutorValidationError::ArgValidationError)
    }

    /// The environment goes to execve(2) as it is.
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
    /// Takes the place of the calling process; comes back with a sentence if there is no such program.
    pub(crate) fn execute(&self) -> String {
        let program = match self.program() {
            Ok(program) => program,
            Err(why) => return why,
        };
        let shown = program.display().to_string();
        let Ok(path) = CString::new(shown.clone()) else { return format!("{shown:?} holds a zero byte") };
        let Err(e) = nix::unistd::execve(&path, &self.args, &self.env);
        // Past the point where an error could travel; the step's log is what is left.
        let hint = match e {
            nix::errno::Errno::ENOENT => " (its interpreter is missing)",
            nix::errno::Errno::ENOEXEC => " (it is for another platform, or a script without #!)",
            _ => "",
        };
        let _ = std::io::stderr().write_all(format!("exec {shown}: {}{hint}\n", e.desc()).as_bytes());
        std::process::exit(if e == nix::errno::Errno::ENOENT { 127 } else { 126 });
    }
}
