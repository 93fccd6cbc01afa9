//! Detached containers: the command goes on after the end of the program that started it.

use std::os::fd::OwnedFd;

use rbuild_sandbox::{Builder, Cancel, CommandOutcome, run_detached};
use rbuild_store::{Store, Workspace};

use crate::containers::run::{ContainerCommand, kept_output, prepared, release};
use crate::error::Result;

/// Runs the command of a container to its end, and keeps its output in the store. `started` is
/// called with a pidfd of its first process once it is started. Afterwards, the container uses its
/// files without a lock of the store. If `again` returns true for the end of the command, it is
/// started again on the same files, and `started` is called again.
///
/// # Errors
///
/// Fails if the container cannot be prepared, or if one of its supervising processes is killed.
pub fn invoke_detached(
    store: Store,
    command: ContainerCommand<'_>,
    builder: &Builder,
    cancel: &Cancel,
    mut started: impl FnMut(OwnedFd),
    mut again: impl FnMut(&CommandOutcome) -> bool,
) -> Result<CommandOutcome> {
    let work = Workspace::open(&store)?;
    let mut request = prepared(&store, &work, command, builder)?;
    let mut output = kept_output(&store, command.container)?;
    let group = command.invocation.group.as_ref();
    let mut locked = Some(store);
    loop {
        let started = |process| {
            started(process);
            locked.take().into_iter().for_each(release);
        };
        let outcome = run_detached(&builder.zygote, &request, cancel, group, started, &mut output)?;
        if !again(&outcome) {
            return Ok(outcome);
        }
        request.files.renew(work.new_dir()?.0);
    }
}
