//! Commands in the container of another command.

use std::path::PathBuf;

use rbuild_image::RunConfig;
use rbuild_linux::{OwnerRecords, RootDir};
use rbuild_remedy::CommandRemedy;
use rbuild_sandbox::{CommandOutcome, CommandRequest, FirstProcess, Input, RunnerMode, run_inside};
use rbuild_store::RunSettings;

use crate::containers::run::{privileges, variables};
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::users;

/// A command to run in a container that runs another one.
pub struct InnerCommand {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Settings of the container, with the variables, the user and the working directory of this
    /// command.
    pub settings: RunSettings,
    /// Standard input.
    pub input: Input,
    /// The way in which the container runs.
    pub mode: RunnerMode,
}

/// Runs a command in the container of that process, on the standard streams of this process. The
/// caller must be single-threaded. `started` is called once the program is executed.
///
/// # Errors
///
/// Fails if the user is unknown, or if the container cannot be entered.
pub fn invoke_inside(
    process: FirstProcess<'_>,
    config: &RunConfig,
    command: InnerCommand,
    owners: &OwnerRecords,
    started: impl FnOnce(),
) -> Result<CommandOutcome> {
    let root = PathBuf::from(format!("/proc/{}/root", process.pid));
    let files = RootDir::open(&root).map_err(BuildError::kernel(ErrorContext::ContainerFiles))?;
    let InnerCommand { args, settings, input, mode } = command;
    let accounts = users::in_root(&files);
    let who = users::identity(&accounts, &settings.user)
        .and_then(|who| users::with_groups(&accounts, who, &settings.groups))
        .map_err(|e| BuildError::Other { message: e.to_string(), help: Some(CommandRemedy::OtherAccount.into()) })?;
    let request = CommandRequest {
        args,
        env: variables(&config.env, &settings.env, who.home.as_deref(), &settings.hostname, input),
        cwd: if settings.cwd.is_empty() { "/".into() } else { settings.cwd },
        uid: who.uid,
        gid: who.gid,
        groups: who.groups,
        ulimits: settings.ulimits,
        input,
        mode,
        privileges: privileges(&settings.security),
        init: false,
    };
    Ok(run_inside(process, &request, owners, started)?)
}
