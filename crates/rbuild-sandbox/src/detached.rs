//! Detached execution: the command has neither the caller's streams nor its terminal.

use std::io::PipeReader;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rbuild_linux::ControlGroup;

use crate::SandboxError;
use crate::client::{Cancel, ReportBuffer, Runner, Stream, fail, follow, pipe_for, send_request, wait_for_descriptor};
use crate::protocol::{CommandOutcome, Input, RunRequest};
use crate::runner::zygote::Zygote;

/// Runs one command to its end, which may be far in the future. `started` is called with a pidfd of
/// its first process once it is started, `output` with its output as it arrives. An input that the
/// request specifies never contains anything, and never ends. The request must be announced.
pub fn run_detached(
    zygote: &Zygote,
    request: &RunRequest,
    cancel: &Cancel,
    group: Option<&ControlGroup>,
    started: impl FnOnce(OwnedFd),
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<CommandOutcome, SandboxError> {
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let owner = request.command.owner_of_streams();
    let ((out, out_writer), (err, err_writer)) = (pipe_for(owner)?, pipe_for(owner)?);
    // Kept open until the end.
    let input = (request.command.input == Input::Given).then(|| pipe_for(None)).transpose()?;
    let runner = {
        let input = input.as_ref().map(|(reader, _)| reader.as_fd());
        let given = [Some(theirs.as_fd()), Some(out_writer.as_fd()), Some(err_writer.as_fd()), input];
        let given: Vec<BorrowedFd<'_>> = given.into_iter().flatten().collect();
        Runner::start(zygote, cancel, &given)?
    };
    runner.join(group, request.command.mode)?;
    drop((theirs, out_writer, err_writer));
    let mut reports = ReportBuffer::default();
    if send_request(&mut ours, request).is_ok() {
        let mut pipes = [(Stream::Stdout, Some(out)), (Stream::Stderr, Some(err))];
        if request.command.input == Input::Terminal {
            let terminal = wait_for_descriptor(&runner, &ours, &mut reports)?;
            pipes = [(Stream::Stdout, terminal.map(PipeReader::from)), (Stream::Stderr, None)];
        }
        if let Some(process) = wait_for_descriptor(&runner, &ours, &mut reports)? {
            started(process);
        }
        follow(&runner, &mut ours, &mut reports, &mut pipes, &mut output)?;
    }
    runner.conclude(&reports).map(|ended| ended.outcome)
}
