//! The builder's side of a command: start a runner, stream what it prints, take its outcome.

use std::collections::HashSet;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_linux::process;
use rustix::event::{PollFd, PollFlags, poll};

use crate::request::{Outcome, RunRequest};
use crate::{RUNNER_VERB, SandboxError};

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
    /// Runners that were started and not yet waited for.
    running: Mutex<HashSet<u32>>,
}

impl Cancel {
    pub fn cancel(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        for pid in self.0.running.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            process::kill(*pid);
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn add(&self, pid: u32) {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        if self.is_cancelled() {
            process::kill(pid);
        }
    }

    fn remove(&self, pid: u32) {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}

/// Runs one command to its end. `output` gets what it prints, as it comes.
pub fn run(
    request: &RunRequest,
    cancel: &Cancel,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<Outcome, SandboxError> {
    let fail = |what: &'static str| move |e: std::io::Error| SandboxError::Runner(format!("{what}: {e}"));
    let (mut ours, theirs) = UnixStream::pair().map_err(fail("socketpair"))?;
    let (out, out_writer) = std::io::pipe().map_err(fail("pipe"))?;
    let (err, err_writer) = std::io::pipe().map_err(fail("pipe"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(RUNNER_VERB).env_clear().current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(out_writer).stderr(err_writer);
    let mut child = command.spawn().map_err(fail("starting it"))?;
    // The command holds the other ends of the pipes; they must close when the runner ends.
    drop(command);
    cancel.add(child.id());
    let sent = serde_json::to_vec(request).map_err(|e| SandboxError::Runner(e.to_string())).and_then(|bytes| {
        ours.write_all(&bytes).map_err(fail("sending the request"))?;
        ours.shutdown(std::net::Shutdown::Write).map_err(fail("sending the request"))
    });
    let streamed = sent.and_then(|()| stream([(Stream::Stdout, out), (Stream::Stderr, err)], &mut output));
    if streamed.is_err() {
        let _ = child.kill();
    }
    let mut answer = Vec::new();
    let _ = ours.read_to_end(&mut answer);
    let status = child.wait();
    cancel.remove(child.id());
    streamed?;
    let status = status.map_err(fail("waiting for it"))?;
    serde_json::from_slice(&answer).map_err(|_| SandboxError::Runner(format!("it ended with {status} and no answer")))
}

fn stream(
    mut open: [(Stream, PipeReader); 2],
    output: &mut impl FnMut(Stream, &[u8]),
) -> Result<(), SandboxError> {
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
        let ready: Vec<usize> = fds.iter().zip(&which).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, i)| *i).collect();
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
