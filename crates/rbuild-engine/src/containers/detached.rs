//! Detached containers: the command goes on after the end of the program that started it.

use std::os::fd::OwnedFd;

use rbuild_sandbox::{Builder, Cancel, CommandOutcome, Stream, run_detached};
use rbuild_store::{ContainerId, Image, OutputStream, Store, Workspace};

use crate::containers::run::{Invocation, place, request};
use crate::error::Result;

/// A container to start in the background.
#[derive(Clone, Copy)]
pub struct DetachedCommand<'a> {
    /// ID of the container, which exists in the store.
    pub container: &'a ContainerId,
    /// The image of the container.
    pub image: &'a Image,
    /// The command of the container.
    pub invocation: &'a Invocation,
}

/// Runs the command of a container to its end, and keeps its output in the store. `started` is
/// called with a pidfd of its first process once it is started. Afterwards, the container uses its
/// files without a lock of the store.
///
/// # Errors
///
/// Fails if the container cannot be prepared, or if one of its supervising processes is killed.
pub fn invoke_detached(
    store: Store,
    command: DetachedCommand<'_>,
    builder: &Builder,
    cancel: &Cancel,
    started: impl FnOnce(OwnedFd),
) -> Result<CommandOutcome> {
    let DetachedCommand { container, image, invocation } = command;
    let work = Workspace::open(&store)?;
    let place = place(&store, &work, image, builder, invocation.now)?;
    let request = rbuild_sandbox::RunRequest { announced: true, ..request(place, image, invocation, builder)? };
    if let rbuild_sandbox::RootFiles::Overlay { lowers, .. } = &request.files {
        store.containers().pin_trees(container, lowers)?;
    }
    let mut log = store.containers().create_output(container)?;
    let started = |process| {
        started(process);
        // Without the lock, other processes remove content of the store that nothing uses. If it
        // stays, they only report that the store is in use.
        if let Err(e) = store.release_lock() {
            tracing::debug!(target: "engine", error = rbuild_remedy::sentence(&e), "the store stays locked");
        }
    };
    let output = |stream, bytes: &[u8]| {
        let stream = match stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        // Output is lost if the disk is full; the command goes on, as under docker.
        let _ = log.append(stream, bytes);
    };
    Ok(run_detached(&builder.zygote, &request, cancel, invocation.group.as_ref(), started, output)?)
}
