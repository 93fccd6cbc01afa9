//! Commands in the container of another command.

use std::path::PathBuf;

use rbuild_image::RunConfig;
use rbuild_linux::{OwnerRecords, RootDir};
use rbuild_plan::Ulimit;
use rbuild_remedy::CommandRemedy;
use rbuild_sandbox::{CommandOutcome, FirstProcess, InnerRequest, Input, RunnerMode, run_inside};

use crate::containers::run::variables;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::users;

/// A command to run in a container that runs another one.
pub struct InnerCommand {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Variables that precede those of the image.
    pub env: Vec<(String, String)>,
    /// User; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub cwd: String,
    /// Host name of the container.
    pub hostname: String,
    /// Limits on the resources of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Standard input.
    pub input: Input,
    /// The way in which the container runs.
    pub mode: RunnerMode,
}

/// Runs a command in the container of that process, on the standard streams of this process. The
/// caller must be single-threaded.
///
/// # Errors
///
/// Fails if the user is unknown, or if the container cannot be entered.
pub fn invoke_inside(
    process: FirstProcess<'_>,
    config: &RunConfig,
    command: InnerCommand,
    owners: &OwnerRecords,
) -> Result<CommandOutcome> {
    let root = PathBuf::from(format!("/proc/{}/root", process.pid));
    let files = RootDir::open(&root).map_err(BuildError::kernel(ErrorContext::ContainerFiles))?;
    let who = users::identity(&users::in_root(&files), &command.user)
        .map_err(|e| BuildError::Other { message: e.to_string(), help: Some(CommandRemedy::OtherAccount.into()) })?;
    drop(files);
    let InnerCommand { args, env, cwd, hostname, ulimits, input, mode, .. } = command;
    let request = InnerRequest {
        args,
        env: variables(&config.env, &env, who.home.as_deref(), &hostname, input),
        cwd: if cwd.is_empty() { "/".into() } else { cwd },
        uid: who.uid,
        gid: who.gid,
        groups: who.groups,
        ulimits,
        input,
        mode,
    };
    Ok(run_inside(process, &request, owners)?)
}
