//! The builder's side of a command: start a runner, stream what it prints, take its outcome.

use std::collections::HashMap;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_linux::process;
use rustix::event::{PollFd, PollFlags, poll};

use crate::SandboxError;
use crate::request::{Input, Outcome, RunRequest};
use crate::zygote::{Zygote, receive_with_byte};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Stops a build: no further runner starts, and those that run are killed.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    stopped: AtomicBool,
    serial: AtomicU64,
    /// Runners that were started and have not answered yet.
    running: Mutex<HashMap<u64, OwnedFd>>,
}

impl Cancel {
    pub fn cancel(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(process::kill_pidfd);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn add(&self, runner: OwnedFd) -> u64 {
        let serial = self.0.serial.fetch_add(1, Ordering::SeqCst);
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            process::kill_pidfd(&runner);
        }
        running.insert(serial, runner);
        serial
    }

    /// Forgets a runner that has answered: its container is gone, and it ends by itself. One that has not is
    /// killed, and its container with it.
    fn remove(&self, serial: u64, answered: bool) {
        let runner = self.0.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&serial);
        if let (Some(runner), false) = (runner, answered) {
            process::kill_pidfd(&runner);
            let _ = poll(&mut [PollFd::new(&runner, PollFlags::IN)], None);
        }
    }
}

/// Runs one command to its end. `output` gets what it prints, as it comes.
pub fn run(
    zygote: &Zygote,
    request: &RunRequest,
    cancel: &Cancel,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<Outcome, SandboxError> {
    let fail = |what: &'static str| move |e: std::io::Error| SandboxError::Runner(format!("{what}: {e}"));
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair"))?;
    let (out, out_writer) = std::io::pipe().map_err(fail("pipe"))?;
    let (err, err_writer) = std::io::pipe().map_err(fail("pipe"))?;
    let runner = cancel.add(zygote.runner(&[theirs.as_fd(), out_writer.as_fd(), err_writer.as_fd()])?);
    // The other ends must close when the runner ends.
    drop((theirs, out_writer, err_writer));
    let sent = send_request(&mut ours, request);
    let streamed = sent.and_then(|()| stream([(Stream::Stdout, out), (Stream::Stderr, err)], &mut output));
    let mut answer = Vec::new();
    if streamed.is_ok() {
        let _ = ours.read_to_end(&mut answer);
    }
    let outcome = serde_json::from_slice(&answer);
    cancel.remove(runner, outcome.is_ok());
    streamed?;
    outcome.map_err(|_| SandboxError::Runner("it ended without an answer".into()))
}

/// Runs one command on this process's own output, and on its input or on a terminal if the request says so.
pub fn run_attached(zygote: &Zygote, request: &RunRequest, cancel: &Cancel) -> Result<Outcome, SandboxError> {
    let fail = |what: &'static str| move |e: std::io::Error| SandboxError::Runner(format!("{what}: {e}"));
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair"))?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut streams = vec![theirs.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if request.input == Input::Given {
        streams.push(stdin.as_fd());
    }
    let runner = cancel.add(zygote.runner(&streams)?);
    drop(streams);
    drop(theirs);
    let mut answer = Vec::new();
    let attached = send_request(&mut ours, request).and_then(|()| {
        if request.input == Input::Terminal {
            let (terminal, first) = receive_terminal(&ours).map_err(fail("the terminal"))?;
            match terminal {
                Some(terminal) => crate::terminal::connect(&terminal).map_err(fail("the terminal"))?,
                // Without a terminal the answer, whose first byte this is, says why.
                None => answer.extend(first),
            }
        }
        ours.read_to_end(&mut answer).map(drop).map_err(fail("its answer"))
    });
    let outcome = serde_json::from_slice(&answer);
    cancel.remove(runner, outcome.is_ok());
    attached?;
    outcome.map_err(|_| SandboxError::Runner("it ended without an answer".into()))
}

/// The terminal, or the first byte of what comes instead.
fn receive_terminal(socket: &UnixStream) -> std::io::Result<(Option<OwnedFd>, Option<u8>)> {
    match receive_with_byte(socket) {
        Ok((mut fds, byte)) => Ok((fds.pop(), Some(byte))),
        Err(rustix::io::Errno::PIPE) => Ok((None, None)),
        Err(e) => Err(e.into()),
    }
}

fn send_request(socket: &mut UnixStream, request: &RunRequest) -> Result<(), SandboxError> {
    let fail = |e: std::io::Error| SandboxError::Runner(format!("sending the request: {e}"));
    let bytes = serde_json::to_vec(request).map_err(|e| SandboxError::Runner(e.to_string()))?;
    socket.write_all(&bytes).map_err(fail)?;
    socket.shutdown(std::net::Shutdown::Write).map_err(fail)
}

fn stream(mut open: [(Stream, PipeReader); 2], output: &mut impl FnMut(Stream, &[u8])) -> Result<(), SandboxError> {
    let mut done = [false; 2];
    let mut buffer = vec![0; 64 * 1024];
    while done != [true; 2] {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let mut which = Vec::new();
        for (i, (_, pipe)) in open.iter().enumerate().filter(|(i, _)| !done[*i]) {
            fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
            which.push(i);
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(SandboxError::Runner(format!("poll: {e}"))),
        }
        let ready: Vec<usize> =
            fds.iter().zip(&which).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, i)| *i).collect();
        drop(fds);
        for i in ready {
            let (stream, pipe) = &mut open[i];
            match pipe.read(&mut buffer) {
                Ok(0) => done[i] = true,
                Ok(n) => output(*stream, &buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SandboxError::Runner(format!("reading its output: {e}"))),
            }
        }
    }
    Ok(())
}
