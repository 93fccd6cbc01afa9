//! Foreground execution: connects a command to the caller's own streams through pipes.
//!
//! The command gets pipes instead of the caller's files, which it could otherwise truncate, read or
//! change the mode of through /proc/self/fd; docker does the same. Each stream has its own thread,
//! so that a slow reader of one does not block the other. When a reader goes away, its pipe is
//! closed, and the command's next write fails with SIGPIPE.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rbuild_linux::parallel::{locked, start};
use rbuild_linux::{ControlGroup, UidGid};
use rustix::event::{PollFd, PollFlags, poll};

use crate::SandboxError;
use crate::client::{
    Cancel, OutputCopy, ReportBuffer, Runner, Stream, fail, follow, pipe_for, send_request, wait_for_descriptor,
};
use crate::protocol::{CommandOutcome, Input, RunRequest};
use crate::runner::terminal::{ConnectionEnds, connect};
use crate::runner::zygote::Zygote;

/// Other parties to a command in the foreground than its caller.
#[derive(Default)]
pub struct Attachments<'a> {
    /// The control group of the command.
    pub group: Option<&'a ControlGroup>,
    /// Called with a pidfd of the first process of the container once it is started. The request
    /// must be announced.
    pub started: Option<&'a mut dyn FnMut(OwnedFd)>,
    /// Receives a copy of the output.
    pub output: Option<OutputCopy>,
}

/// Runs one command with this process's output streams. Its input is this process's, or a terminal
/// if the request specifies one.
pub fn run_attached(
    zygote: &Zygote,
    request: &RunRequest,
    cancel: &Cancel,
    Attachments { group, started, output }: Attachments<'_>,
) -> Result<CommandOutcome, SandboxError> {
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let streams = Streams::new(request.command.input, request.command.owner_of_streams())?;
    let runner = {
        let given = [Some(theirs.as_fd()), Some(streams.out.1.as_fd()), Some(streams.error().as_fd()), streams.input()];
        let given: Vec<BorrowedFd<'_>> = given.into_iter().flatten().collect();
        Runner::start(zygote, cancel, &given)?
    };
    runner.join(group, request.command.mode)?;
    drop(theirs);
    let copying = streams.start_copying(output.as_ref())?;
    let mut reports = ReportBuffer::default();
    if send_request(&mut ours, request).is_ok() {
        let mut no_pipes = [(Stream::Stdout, None), (Stream::Stderr, None)];
        let terminal = if request.command.input == Input::Terminal {
            wait_for_descriptor(&runner, &ours, &mut reports)?
        } else {
            None
        };
        if let Some(started) = started
            && let Some(process) = wait_for_descriptor(&runner, &ours, &mut reports)?
        {
            started(process);
        }
        if let Some(terminal) = terminal {
            let ends = ConnectionEnds { runner: &runner.pidfd, zygote: zygote.process() };
            connect(&terminal, ends, output.as_ref()).map_err(fail("write", "the terminal"))?;
        }
        follow(&runner, &mut ours, &mut reports, &mut no_pipes, &mut |_, _| ())?;
    }
    let outcome = runner.conclude(&reports).map(|ended| ended.outcome);
    // After a cancellation, remaining output is dropped: the reader might never take it.
    if !cancel.is_canceled() {
        copying.finish().map_err(SandboxError::Output)?;
    }
    outcome
}

/// The pipes of a command.
pub(crate) struct Streams {
    pub(crate) out: (PipeReader, PipeWriter),
    /// `None` if the caller's standard output and error are the same file: a single pipe preserves
    /// their order.
    err: Option<(PipeReader, PipeWriter)>,
    input: Option<(PipeReader, PipeWriter)>,
}

impl Streams {
    /// Creates the pipes, which belong to `owner` if it is given.
    pub(crate) fn new(input: Input, owner: Option<UidGid>) -> Result<Streams, SandboxError> {
        let pipe = || pipe_for(owner);
        let input = (input == Input::Given).then(pipe).transpose()?;
        let err = (!is_one_file(io::stdout(), io::stderr())).then(pipe).transpose()?;
        Ok(Streams { out: pipe()?, err, input })
    }

    pub(crate) fn error(&self) -> &PipeWriter {
        self.err.as_ref().map_or(&self.out.1, |(_, writer)| writer)
    }

    pub(crate) fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|(reader, _)| reader.as_fd())
    }

    /// Starts the copying threads and closes the command's ends of the pipes in this process.
    /// `copy` receives the output, too.
    pub(crate) fn start_copying(self, copy: Option<&OutputCopy>) -> rbuild_linux::Result<CopyThreads> {
        // The threads see the end of the command as the end of this pipe.
        let (ended, end_signal) = match io::pipe() {
            Ok((reader, writer)) => (Some(reader), Some(writer)),
            Err(_) => (None, None),
        };
        let out = self.out.0;
        let mut threads = Vec::new();
        let mut start_copy = |stream, from: PipeReader, to: fn() -> io::Result<OwnedFd>| -> rbuild_linux::Result<()> {
            let ended = ended.as_ref().and_then(|ended| ended.try_clone().ok());
            let copy = copy.cloned();
            let show = move |bytes: &[u8]| copy.iter().for_each(|copy| locked(copy)(stream, bytes));
            threads.push(start(move || copy_output(&from, &to()?, ended.as_ref(), show))?);
            Ok(())
        };
        start_copy(Stream::Stdout, out, || io::stdout().as_fd().try_clone_to_owned())?;
        if let Some((err, _)) = self.err {
            start_copy(Stream::Stderr, err, || io::stderr().as_fd().try_clone_to_owned())?;
        }
        if let Some((_, to)) = self.input {
            // Not joined, because its source may never produce input again.
            start(move || copy_input(&to, ended.as_ref()))?;
        }
        Ok(CopyThreads { threads, end_signal })
    }
}

/// Copying threads in progress.
pub(crate) struct CopyThreads {
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Dropped when the command can write no more.
    end_signal: Option<PipeWriter>,
}

impl CopyThreads {
    /// Waits until all output has been delivered.
    pub(crate) fn finish(self) -> io::Result<()> {
        drop(self.end_signal);
        self.threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    }
}

fn is_one_file(a: impl AsFd, b: impl AsFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// Bytes copied at a time, and the requested pipe capacity, if the user may have pipes of that
/// size.
const CHUNK: usize = 256 * 1024;

/// Maximum number of reads from a pipe after its last writer should have ended.
const LAST_READS: usize = 8;

/// Copies a pipe's content until end of file, until `to` accepts no more, or until the command has
/// ended and the pipe is empty. Passes each piece to `show` first.
fn copy_output(
    from: &PipeReader,
    to: &OwnedFd,
    ended: Option<&PipeReader>,
    mut show: impl FnMut(&[u8]),
) -> io::Result<()> {
    let _ = rustix::pipe::fcntl_setpipe_size(from, CHUNK);
    let mut buffer = vec![0; CHUNK];
    let mut last = LAST_READS;
    while last > 0 {
        let mut fds = vec![PollFd::new(from, PollFlags::IN), PollFd::new(to, PollFlags::empty())];
        fds.extend(ended.map(|ended| PollFd::new(ended, PollFlags::IN)));
        wait(&mut fds)?;
        let (readable, broken) = (fds[0].revents(), fds[1].revents());
        let over = fds.get(2).is_some_and(|ended| !ended.revents().is_empty());
        if !broken.is_empty() || (readable.is_empty() && over) {
            return Ok(());
        }
        if !readable.is_empty() {
            last -= usize::from(over);
            match read(from, &mut buffer)? {
                Some(0) => return Ok(()),
                Some(n) => {
                    show(&buffer[..n]);
                    if !write_all(to, &buffer[..n])? {
                        return Ok(());
                    }
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// Copies the caller's input into a pipe until either end closes or the command ends.
fn copy_input(to: &PipeWriter, ended: Option<&PipeReader>) -> io::Result<()> {
    let from = io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = vec![PollFd::new(&from, PollFlags::IN), PollFd::new(to, PollFlags::empty())];
        fds.extend(ended.map(|ended| PollFd::new(ended, PollFlags::IN)));
        wait(&mut fds)?;
        if fds[1..].iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
        match read(&from, &mut buffer)? {
            Some(0) => return Ok(()),
            Some(n) if !write_all(to, &buffer[..n])? => return Ok(()),
            _ => {}
        }
    }
}

fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// Reads once; returns `None` if no data was available.
fn read(from: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match rustix::io::read(from, buffer) {
        Ok(n) => Ok(Some(n)),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes everything, waiting for non-blocking files to become writable. Returns false if the
/// reader is gone.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait(&mut [PollFd::new(&to, PollFlags::OUT)])?,
            Err(rustix::io::Errno::PIPE) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Copies the output that `write` produces to the pipe that `read` reads. `write` drops its
    /// second argument at the end of the command.
    fn copied(write: impl FnOnce(PipeWriter, PipeWriter) + Send, read: impl FnOnce(PipeReader)) -> io::Result<()> {
        let (from, command) = io::pipe().unwrap();
        let (reader, to) = io::pipe().unwrap();
        let (ended, end_signal) = io::pipe().unwrap();
        std::thread::scope(|scope| {
            let copier = scope.spawn(move || copy_output(&from, &to.into(), Some(&ended), |_| ()));
            let writer = scope.spawn(move || write(command, end_signal));
            read(reader);
            writer.join().unwrap();
            copier.join().unwrap()
        })
    }

    #[test]
    fn output_arrives_completely_and_in_order() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut arrived = Vec::new();
        let write = |mut command: PipeWriter, _| command.write_all(&bytes).unwrap();
        copied(write, |mut reader| drop(reader.read_to_end(&mut arrived))).unwrap();
        assert!(arrived == bytes);
    }

    #[test]
    fn a_closed_reader_closes_the_pipe() {
        let write = |mut command: PipeWriter, _| {
            let error = (0..1000).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                command.write_all(b"x").err()
            });
            assert_eq!(error.unwrap().kind(), io::ErrorKind::BrokenPipe);
        };
        copied(write, drop).unwrap();
    }

    #[test]
    fn failed_writes_are_errors() {
        let (from, mut command) = io::pipe().unwrap();
        command.write_all(b"lost").unwrap();
        let read_only = std::fs::File::open("/proc/self/maps").unwrap();
        assert!(copy_output(&from, &read_only.into(), None, |_| ()).is_err());
    }

    #[test]
    fn a_pipe_held_open_by_another_process_is_not_waited_for() {
        let mut arrived = String::new();
        let write = |mut command: PipeWriter, end_signal| {
            command.write_all(b"last words").unwrap();
            drop(end_signal);
            // Held by a thread that outlives the command.
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_secs(600));
                drop(command);
            });
        };
        copied(write, |mut reader| drop(reader.read_to_string(&mut arrived))).unwrap();
        assert_eq!(arrived, "last words");
    }
}
