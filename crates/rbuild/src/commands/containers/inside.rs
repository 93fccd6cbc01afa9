//! Commands in running containers, for `exec` and for health checks.

use std::os::fd::OwnedFd;

use rbuild_engine::{InnerCommand, invoke_inside};
use rbuild_image::RunConfig;
use rbuild_linux::{OwnerRecords, join_group_of};
use rbuild_sandbox::{CommandOutcome, FirstProcess, Input, RunnerMode};
use rbuild_store::{OwnerMode, RunSettings, Started, Store};

use crate::exit::Failure;

/// A running container.
pub struct RunningContainer {
    pub started: Started,
    /// A pidfd of its first process.
    process: OwnedFd,
    mode: RunnerMode,
    owners: OwnerRecords,
}

impl RunningContainer {
    /// Returns `None` if the first process has ended.
    pub fn of(store: &Store, started: Started) -> Option<RunningContainer> {
        let process = started.open()?;
        let mode = RunnerMode::of_name(&started.isolation).unwrap_or(RunnerMode::Container);
        let owners = store.owner_records().with_mode(match mode {
            RunnerMode::Emulated => OwnerMode::Recorded,
            RunnerMode::Container | RunnerMode::Chroot => OwnerMode::Given,
        });
        Some(RunningContainer { started, process, mode, owners })
    }

    /// Returns a pidfd of the first process.
    pub fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// Lets the limits of the container apply to this process and its children.
    ///
    /// # Errors
    ///
    /// Fails if this process cannot be moved to the control group of the container.
    pub fn join_group(&self) -> Result<(), rbuild_linux::Error> {
        join_group_of(self.started.pid)
    }

    /// Runs a command to its end, on the standard streams of this process, which must be
    /// single-threaded. `settings` are those of the container, with the variables, the user and the
    /// working directory of this command. `started` is called once the program is executed.
    pub fn run(
        &self,
        config: &RunConfig,
        args: Vec<String>,
        settings: RunSettings,
        input: Input,
        started: impl FnOnce(),
    ) -> Result<CommandOutcome, Failure> {
        let first = FirstProcess { pidfd: &self.process, pid: self.started.pid };
        let command = InnerCommand { args, settings, input, mode: self.mode };
        Ok(invoke_inside(first, config, command, &self.owners, started)?)
    }
}
