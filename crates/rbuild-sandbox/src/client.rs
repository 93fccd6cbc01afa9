//! The builder's side of a command: starts a runner, streams its output, and collects its outcome.
//!
//! Nothing here waits for the end of a pipe or a socket, which any stray process could hold open:
//! the runner itself is watched through its pidfd. All descendants of a runner are gone when it has
//! ended ([`Zygote::runner`]), so that afterwards only data already in the pipes remains to be
//! read.

use std::collections::HashMap;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use rbuild_linux::fd_passing::receive_with_bytes;
use rbuild_linux::parallel::locked;
use rbuild_linux::signal_forwarding::forward_signal;
use rbuild_linux::{ControlGroup, UidGid, clock, described, process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::SandboxError;
use crate::error::{Phase, RunnerProblem, library};
use crate::protocol::{CommandEnd, CommandOutcome, Report, RunRequest, RunnerMode};
use crate::runner::zygote::Zygote;

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Receives pieces of the output of a command, from several threads.
pub type OutputCopy = Arc<Mutex<dyn FnMut(Stream, &[u8]) + Send>>;

/// Cancels a build: no more runners are started, and running ones are killed.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    stopped: AtomicBool,
    serial: AtomicU64,
    /// Runners that were started and are not known to have ended.
    running: Mutex<HashMap<u64, Arc<OwnedFd>>>,
}

impl Cancel {
    /// Cancels the build.
    pub fn cancel(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        locked(&self.0.running).values().for_each(|fd| process::kill_pidfd(fd));
    }

    /// Sends a signal to the running commands that receive it, by a handler or by waiting for it
    /// ([`forward_signal`]). Returns true if there is one. A signal that is blocked counts
    /// as received unless it is soon unblocked without a handler.
    pub fn forward(&self, signal: Signal) -> bool {
        // Not locked meanwhile: a runner that ends must not wait.
        let running: Vec<Arc<OwnedFd>> = locked(&self.0.running).values().cloned().collect();
        running.iter().map(|runner| forward_signal(runner, signal)).fold(false, |any, sent| any | sent)
    }

    /// Returns true if the build has been canceled.
    pub fn is_canceled(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn add(&self, runner: Arc<OwnedFd>) -> u64 {
        let serial = self.0.serial.fetch_add(1, Ordering::SeqCst);
        let mut running = locked(&self.0.running);
        if self.is_canceled() {
            process::kill_pidfd(&runner);
        }
        running.insert(serial, runner);
        serial
    }

    fn remove(&self, serial: u64) {
        locked(&self.0.running).remove(&serial);
    }
}

/// An active runner. If it has not finished when this is dropped, it is killed with all
/// descendants.
pub(crate) struct Runner<'a> {
    zygote: &'a Zygote,
    cancel: &'a Cancel,
    serial: u64,
    pub(crate) pidfd: Arc<OwnedFd>,
    finished: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn start(
        zygote: &'a Zygote,
        cancel: &'a Cancel,
        streams: &[BorrowedFd<'_>],
    ) -> Result<Runner<'a>, SandboxError> {
        let pidfd = Arc::new(zygote.runner(streams)?);
        let serial = cancel.add(pidfd.clone());
        Ok(Runner { zygote, cancel, serial, pidfd, finished: false })
    }

    /// Adds the runner, and with it its command, to a control group. Must be called before the
    /// runner receives its request.
    pub(crate) fn join(&self, group: Option<&ControlGroup>, mode: RunnerMode) -> Result<(), SandboxError> {
        let Some(group) = group else { return Ok(()) };
        Ok(group.add(&self.pidfd, mode != RunnerMode::Chroot)?)
    }

    fn kill(&self) {
        process::kill_pidfd(&self.pidfd);
        process::wait_for_end(&self.pidfd);
        self.zygote.sweep();
    }

    /// Finishes the runner and returns the outcome of its command.
    pub(crate) fn conclude(mut self, reports: &ReportBuffer) -> Result<CommandEnd, SandboxError> {
        self.finished = reports.is_complete();
        let has_zygote_ended = self.zygote.has_ended();
        match end_of(&reports.list, has_zygote_ended) {
            Some(end) => Ok(end),
            None if has_zygote_ended => Err(self.zygote.end()),
            None => Err(SandboxError::Killed("the process that runs the command")),
        }
    }
}

/// Returns the end of a command according to the reports of its runner, or `None` if the runner was
/// killed. The kernel kills a runner and its command when their zygote ends; the command may be the
/// first of them.
fn end_of(reports: &[Report], has_zygote_ended: bool) -> Option<CommandEnd> {
    const SIGKILL: CommandOutcome = CommandOutcome::Signaled(Signal::SIGKILL as i32);
    match (reports.first(), reports.last()) {
        (Some(Report::Ended(ended)), _) if ended.outcome == SIGKILL && has_zygote_ended => None,
        // A failure of the command takes precedence over failures of its runner afterwards.
        (Some(Report::Ended(ended)), _) if ended.outcome != CommandOutcome::Exited(0) => Some(ended.clone()),
        (_, Some(Report::Finished(Err(error)))) => {
            let (phase, errno) = (error.phase, error.errno());
            tracing::debug!(target: "sandbox", ?phase, errno, "the command was not started");
            let outcome = CommandOutcome::NotStarted(error.clone());
            Some(CommandEnd { outcome, at: clock::monotonic_nanoseconds() })
        }
        (Some(Report::Ended(ended)), Some(Report::Finished(Ok(())))) => Some(ended.clone()),
        _ => None,
    }
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.kill();
        }
        self.cancel.remove(self.serial);
    }
}

/// The reports received from a runner so far.
#[derive(Default)]
pub(crate) struct ReportBuffer {
    bytes: Vec<u8>,
    list: Vec<Report>,
}

impl ReportBuffer {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            match serde_json::from_slice::<Report>(&line) {
                Ok(Report::Warned(warning)) => tracing::warn!(target: "libcontainer", "{warning}"),
                Ok(report) => self.list.push(report),
                // The runner is trusted code: a truncated line means that it was killed while
                // writing.
                Err(_) => {}
            }
        }
    }

    /// Returns true once the runner has sent a report other than a warning.
    pub(crate) fn has_reports(&self) -> bool {
        !self.list.is_empty()
    }

    fn is_complete(&self) -> bool {
        matches!(self.list.last(), Some(Report::Finished(_)))
    }
}

/// Returns a conversion for errors of a system call that concerns a runner.
pub(crate) fn fail(call: &'static str, object: &'static str) -> impl Fn(std::io::Error) -> SandboxError {
    move |e| RunnerProblem::of_call(call, described(object))(e).during(Phase::Start).into()
}

/// Creates a pipe for a stream of the command. The command's user, if it is not root, owns it and
/// may reopen it as /dev/stdout, as under docker.
pub(crate) fn pipe_for(owner: Option<UidGid>) -> Result<(PipeReader, PipeWriter), SandboxError> {
    let (reader, writer) = std::io::pipe().map_err(fail("pipe2", "a pipe for the command's output"))?;
    if let Some(UidGid { uid, gid }) = owner {
        std::os::unix::fs::fchown(&writer, Some(uid), Some(gid)).map_err(fail("fchown", "the command's output"))?;
    }
    Ok((reader, writer))
}

/// Runs one command to completion. `output` is called with its output as it arrives.
pub fn run(
    zygote: &Zygote,
    request: &RunRequest,
    cancel: &Cancel,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<CommandEnd, SandboxError> {
    let _span =
        tracing::debug_span!(target: "sandbox", "runner", mode = ?request.command.mode, uid = request.command.uid)
            .entered();
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let owner = request.command.owner_of_streams();
    let ((out, out_writer), (err, err_writer)) = (pipe_for(owner)?, pipe_for(owner)?);
    let runner = Runner::start(zygote, cancel, &[theirs.as_fd(), out_writer.as_fd(), err_writer.as_fd()])?;
    drop((theirs, out_writer, err_writer));
    let mut reports = ReportBuffer::default();
    // A request that cannot be sent means that the runner is gone, which is reported below.
    if send_request(&mut ours, request).is_ok() {
        let mut pipes = [(Stream::Stdout, Some(out)), (Stream::Stderr, Some(err))];
        follow(&runner, &mut ours, &mut reports, &mut pipes, &mut output)?;
    }
    let ended = runner.conclude(&reports);
    tracing::debug!(target: "sandbox", ?ended, "command ended");
    ended
}

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Forwards the command's output until its runner has finished or died.
pub(crate) fn follow(
    runner: &Runner<'_>,
    socket: &mut UnixStream,
    reports: &mut ReportBuffer,
    pipes: &mut [(Stream, Option<PipeReader>); 2],
    output: &mut impl FnMut(Stream, &[u8]),
) -> Result<(), SandboxError> {
    for pipe in pipes.iter().filter_map(|(_, pipe)| pipe.as_ref()) {
        rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)
            .map_err(|e| fail("fcntl(F_SETFL)", "the pipes of the command")(e.into()))?;
    }
    socket.set_nonblocking(true).map_err(fail("fcntl(F_SETFL)", "the pipes of the command"))?;
    let mut buffer = vec![0; CHUNK];
    let mut ended = false;
    while !ended && !reports.is_complete() {
        ended = wait_for_activity(runner, socket, pipes)?;
        if ended {
            runner.kill();
        }
        while let Ok(n @ 1..) = socket.read(&mut buffer) {
            reports.add(&buffer[..n]);
        }
        read_pipes(pipes, &mut buffer, 1, output)?;
    }
    // All writers are gone.
    read_pipes(pipes, &mut buffer, LAST_PIECES, output)
}

/// Maximum number of reads after the end of a runner. They return more than the capacity of a pipe
/// (fs.pipe-max-size is 1 MiB unless root raised it).
const LAST_PIECES: usize = 64;

/// Waits for a report or for output. Returns true if the runner or the zygote has ended.
pub(crate) fn wait_for_activity(
    runner: &Runner<'_>,
    socket: &UnixStream,
    pipes: &[(Stream, Option<PipeReader>); 2],
) -> Result<bool, SandboxError> {
    let open = pipes.iter().filter_map(|(_, pipe)| pipe.as_ref()).map(|pipe| pipe.as_fd());
    let watched = [runner.pidfd.as_fd(), runner.zygote.process(), socket.as_fd()].into_iter().chain(open);
    let mut fds: Vec<PollFd<'_>> = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    match poll(&mut fds, None) {
        Ok(_) => Ok(fds[..2].iter().any(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(fail("poll", "the command")(e.into())),
    }
}

/// Waits for the next descriptor that the runner sends. Returns `None` if the runner ends or
/// reports a failure instead. Warnings that precede the descriptor, and the failure, are added to
/// `reports`.
pub(crate) fn wait_for_descriptor(
    runner: &Runner<'_>,
    socket: &UnixStream,
    reports: &mut ReportBuffer,
) -> Result<Option<OwnedFd>, SandboxError> {
    let no_pipes = [(Stream::Stdout, None), (Stream::Stderr, None)];
    let mut bytes = [0; 512];
    while !reports.has_reports() {
        if wait_for_activity(runner, socket, &no_pipes)? {
            // The socket contains all that the runner sent before its end. A process that it left
            // behind may hold the other end open.
            socket.set_nonblocking(true).map_err(fail("fcntl(F_SETFL)", "the socket of the command"))?;
        }
        // Does not continue past the byte that carries it (unix(7), "Ancillary messages").
        match receive_with_bytes(socket, &mut bytes) {
            Ok((mut fds, length)) => match fds.pop() {
                Some(descriptor) => {
                    reports.add(&bytes[..length - 1]);
                    return Ok(Some(descriptor));
                }
                None => reports.add(&bytes[..length]),
            },
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::AGAIN) => break,
            Err(e) => return Err(fail("recvmsg", "a descriptor of the command")(e.into())),
        }
    }
    Ok(None)
}

/// Forwards the contents of the pipes, with at most this many reads each, and closes pipes that
/// have reached their end.
fn read_pipes(
    pipes: &mut [(Stream, Option<PipeReader>); 2],
    buffer: &mut [u8],
    reads: usize,
    output: &mut impl FnMut(Stream, &[u8]),
) -> Result<(), SandboxError> {
    for (stream, open) in pipes {
        for _ in 0..reads {
            let Some(pipe) = open else { break };
            match pipe.read(buffer) {
                Ok(0) => *open = None,
                Ok(n) => output(*stream, &buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // The last descriptor of the other end of a terminal was closed.
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => *open = None,
                Err(e) => return Err(fail("read", "the command's output")(e)),
            }
        }
    }
    Ok(())
}

pub(crate) fn send_request(socket: &mut UnixStream, request: &RunRequest) -> Result<(), SandboxError> {
    let bytes = serde_json::to_vec(request).map_err(|e| library(e).during(Phase::Start))?;
    socket.write_all(&bytes).map_err(fail("send", "the runner process"))?;
    socket.shutdown(std::net::Shutdown::Write).map_err(fail("send", "the runner process"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_parsed_for_any_chunking() {
        let ended = Report::Ended(CommandEnd { outcome: CommandOutcome::Exited(3), at: 17 });
        let text: Vec<u8> = [&ended, &Report::Finished(Ok(()))]
            .into_iter()
            .flat_map(|report| [serde_json::to_vec(report).unwrap(), vec![b'\n']].concat())
            .collect();
        for size in [1, 7, 1000] {
            let mut reports = ReportBuffer::default();
            text.chunks(size).for_each(|bytes| reports.add(bytes));
            assert_eq!(reports.list, [ended.clone(), Report::Finished(Ok(()))]);
        }
        let mut cut = ReportBuffer::default();
        cut.add(&text[..text.len() - 1]);
        assert!(!cut.is_complete() && cut.list == [ended]);
    }

    /// A command that the kernel kills with its zygote was not killed by one of its own.
    #[test]
    fn a_command_that_dies_with_its_zygote_has_no_end() {
        let ended = |outcome| Report::Ended(CommandEnd { outcome, at: 17 });
        let [killed, failed, done] =
            [CommandOutcome::Signaled(9), CommandOutcome::Exited(3), CommandOutcome::Exited(0)];
        let finished = Report::Finished(Ok(()));
        for (reports, has_zygote_ended, want) in [
            (vec![ended(killed.clone())], true, None),
            (vec![ended(killed.clone()), finished.clone()], false, Some(killed.clone())),
            (vec![ended(killed.clone())], false, Some(killed)),
            (vec![ended(failed.clone())], true, Some(failed)),
            (vec![ended(done.clone())], true, None),
            (vec![ended(done.clone()), finished], true, Some(done)),
            (vec![], false, None),
        ] {
            let end = end_of(&reports, has_zygote_ended).map(|end| end.outcome);
            assert_eq!(end, want, "{reports:?}, {has_zygote_ended}");
        }
    }
}
