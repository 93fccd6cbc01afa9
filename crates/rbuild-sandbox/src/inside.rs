//! Commands in a container that another command started.
//!
//! No process of that container's builder is involved. The caller forks a guide, which starts an
//! [`entrance`](crate::entrance): the program executed again, without the caller's memory and
//! descriptors. The entrance forks the command's process, which alone can be seen in the container.
//! The guide answers the calls that the isolation mode emulates, and reports the end.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rbuild_linux::fd_passing::{receive_fds, receive_with_byte, send_with_byte};
use rbuild_linux::namespaces::{enter_mounts_of, enter_outer_of};
use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{OwnerRecords, UidGid, bind_clone, credentials, described, sealed_program};

use crate::SandboxError;
use crate::attached::Streams;
use crate::client::fail;
use crate::entrance::{ENTRANCE, Entering, EntranceReport, refuse};
use crate::error::{Phase, PhaseContext, RunnerError, RunnerProblem, library};
use crate::id_emulation::{Credentials, SharedProc, SupervisedContainer, Supervisor};
use crate::protocol::{CommandEnd, CommandOutcome, CommandRequest, Input, Report, RunnerMode};
use crate::runner::terminal::{ConnectionEnds, connect};

/// The first process of a running container.
#[derive(Clone, Copy)]
pub struct FirstProcess<'a> {
    /// A pidfd of the process.
    pub pidfd: &'a OwnedFd,
    /// The ID of the process.
    pub pid: u32,
}

/// The container to enter.
struct Target<'a> {
    process: FirstProcess<'a>,
    /// The root directory of that process.
    root: File,
    /// The caller's /proc.
    proc: File,
    /// A pidfd of the caller.
    caller: OwnedFd,
    /// This program, which the container cannot change (CVE-2019-5736).
    program: OwnedFd,
}

/// Runs a command to its end, on the standard streams of this process, in the container of that
/// process. The caller must be single-threaded. `owners` are the records of the owners of the
/// container's files. `started` is called once the program is executed.
pub fn run_inside(
    process: FirstProcess<'_>,
    request: &CommandRequest,
    owners: &OwnerRecords,
    started: impl FnOnce(),
) -> Result<CommandOutcome, SandboxError> {
    let opened = |path: String| File::open(&path).map_err(|e| rbuild_linux::Error::new("openat", Path::new(&path), e));
    let root = opened(format!("/proc/{}/root", process.pid))?;
    let caller = process::own_pidfd()?;
    let program = sealed_program()?;
    let target = Target { process, root, proc: opened("/proc".into())?, caller, program };
    let (ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let (mut executed, executing) = std::io::pipe().map_err(fail("pipe2", "a pipe"))?;
    let streams = Streams::new(request.input, None)?;
    // Descriptors inherited from the caller's shell must not reach the command.
    process::close_descriptors_on_exec()?;
    let runner = match process::fork()? {
        Cloned::Child => {
            drop((ours, executed));
            std::process::exit(guide(&target, request, streams, theirs, owners, executing));
        }
        Cloned::Parent { child } => child,
    };
    drop((theirs, executing));
    let pidfd = process::pidfd(runner)?;
    // Its end without a byte is the execution of the program.
    if matches!(executed.read(&mut [0]), Ok(0)) {
        started();
    }
    let mut reported = Vec::new();
    let copying = if request.input == Input::Terminal {
        match receive_with_byte(&ours).map(|(mut fds, byte)| (fds.pop(), byte)) {
            Ok((Some(terminal), _)) => {
                let ends = ConnectionEnds { runner: &pidfd, zygote: process.pidfd.as_fd() };
                connect(&terminal, ends, None).map_err(fail("write", "the terminal"))?;
            }
            // The beginning of the report of a failure.
            Ok((None, byte)) => reported.push(byte),
            Err(_) => {}
        }
        None
    } else {
        Some(streams.start_copying(None)?)
    };
    process::wait_for_end(&pidfd);
    let report = report(ours, reported);
    process::wait(runner)?;
    if let Some(copying) = copying {
        copying.finish().map_err(SandboxError::Output)?;
    }
    match report {
        Some(Report::Ended(CommandEnd { outcome, .. })) => Ok(outcome),
        Some(Report::Finished(Err(e))) => Ok(CommandOutcome::NotStarted(e)),
        _ => Err(SandboxError::Killed("the process that runs the command")),
    }
}

/// Returns the root file system of a running container without the file systems that are mounted in
/// it, as a detached mount. The caller must be single-threaded.
///
/// # Errors
///
/// Fails if the container cannot be entered.
pub fn root_mount_of(process: FirstProcess<'_>) -> Result<OwnedFd, SandboxError> {
    let (ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let caller = process::own_pidfd()?;
    // Another process enters the namespaces, so that this one need not leave them.
    let child = match process::fork()? {
        Cloned::Child => {
            match root_mount(process, &caller).during(Phase::Namespaces) {
                Ok(mount) => drop(send_with_byte(&theirs, b'm', &[mount.as_fd()])),
                Err(why) => drop(serde_json::to_vec(&why).map(|bytes| (&theirs).write_all(&bytes))),
            }
            std::process::exit(0)
        }
        Cloned::Parent { child } => child,
    };
    drop(theirs);
    let received = receive_with_byte(&ours).map(|(mut fds, byte)| (fds.pop(), byte));
    process::wait(child)?;
    let killed = || SandboxError::Killed("the process that enters the container");
    match received {
        Ok((Some(mount), _)) => Ok(mount),
        // The beginning of the reason.
        Ok((None, byte)) => {
            let mut text = vec![byte];
            let _ = (&ours).read_to_end(&mut text);
            Err(serde_json::from_slice(&text).map_or_else(|_| killed(), SandboxError::Runner))
        }
        Err(_) => Err(killed()),
    }
}

/// Enters the user and mount namespaces of a process, and clones its root mount.
fn root_mount(process: FirstProcess<'_>, caller: &OwnedFd) -> Result<OwnedFd, rbuild_linux::Error> {
    process::die_with(caller)?;
    enter_outer_of(process.pidfd.as_fd(), process.pid)?;
    credentials::become_root()?;
    enter_mounts_of(process.pidfd.as_fd())?;
    bind_clone(Path::new("/"))
}

/// Reads the report of the process that has ended, whose beginning is `text`.
fn report(mut socket: UnixStream, mut text: Vec<u8>) -> Option<Report> {
    // A process of the container may hold the other end open for a moment.
    socket.set_nonblocking(true).ok()?;
    let _ = socket.read_to_end(&mut text);
    serde_json::from_slice(&text).ok()
}

/// Guides the command: starts it, answers its calls, and reports its end. Returns the exit code of
/// this process.
fn guide(
    target: &Target<'_>,
    request: &CommandRequest,
    streams: Streams,
    socket: UnixStream,
    owners: &OwnerRecords,
    executing: PipeWriter,
) -> i32 {
    let started = start(target, request, streams, &socket, &executing).inspect_err(|_| refuse(&executing));
    drop(executing);
    let ended = started.and_then(|mut entrance| {
        let started = entrance.next()?;
        if let (Some(EntranceReport::Started(pid)), Some(answers)) = (&started, &entrance.answers)
            && let Err(e) = answer(target, request, answers, owners, *pid)
        {
            // The command's process reports why it has sent no listener.
            process::kill(*pid);
            return Err(entrance.end()?.unwrap_or_else(|| e.during(Phase::Emulation)));
        }
        let ended = entrance.next()?;
        match (entrance.end()?, ended) {
            (Some(why), _) => Err(why),
            (None, Some(EntranceReport::Ended(report))) => Ok(report),
            (None, _) => {
                let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Err(RunnerProblem::of_call("recv", described("the command's process"))(ended)).during(Phase::Command)
            }
        }
    });
    let report = ended.unwrap_or_else(|why| Report::Finished(Err(why)));
    if report.send(&socket).is_ok() { 0 } else { 70 }
}

/// The process that starts the command.
struct Entrance {
    pid: u32,
    reports: BufReader<UnixStream>,
    /// The reason why the command was not executed; empty if it was.
    failure: std::io::PipeReader,
    /// Receives the listener for calls about owners, if those are emulated.
    answers: Option<UnixStream>,
}

impl Entrance {
    /// Returns its next report; `None` if it has ended.
    fn next(&mut self) -> Result<Option<EntranceReport>, RunnerError> {
        let mut line = String::new();
        let read = self.reports.read_line(&mut line);
        read.map_err(RunnerProblem::of_call("recv", described("the command's process"))).during(Phase::Command)?;
        Ok(serde_json::from_str(&line).ok())
    }

    /// Waits until it has ended. Returns the reason if the command was not executed.
    fn end(mut self) -> Result<Option<RunnerError>, RunnerError> {
        process::wait(self.pid).during(Phase::Command)?;
        let mut why = Vec::new();
        let read = self.failure.read_to_end(&mut why);
        read.map_err(RunnerProblem::of_call("recv", described("the command's process"))).during(Phase::Command)?;
        if why.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&why).map(Some).map_err(library).during(Phase::Command)
    }
}

/// Starts the entrance, which gets the only copies of the command's ends of the streams, and enters
/// the user namespace of the container, to answer calls.
fn start(
    target: &Target<'_>,
    request: &CommandRequest,
    streams: Streams,
    socket: &UnixStream,
    executing: &PipeWriter,
) -> Result<Entrance, RunnerError> {
    let pair = || {
        let made = UnixStream::pair().map_err(RunnerProblem::of_call("socketpair", described("a pair of sockets")));
        made.during(Phase::Start)
    };
    let (control, theirs) = pair()?;
    let guide = process::own_pidfd().during(Phase::Start)?;
    let pid = match process::fork().during(Phase::Start)? {
        Cloned::Child => execute_entrance(&target.program, theirs.as_fd()),
        Cloned::Parent { child } => child,
    };
    drop(theirs);
    if request.mode != RunnerMode::Chroot {
        enter_outer_of(target.process.pidfd.as_fd(), target.process.pid).during(Phase::Namespaces)?;
        credentials::become_root().during(Phase::Namespaces)?;
    }
    process::die_with(&target.caller).during(Phase::Start)?;
    let pipe = std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe"))).during(Phase::Start)?;
    let (failure, failure_writer) = pipe;
    let answers = if request.mode == RunnerMode::Emulated { Some(pair()?) } else { None };
    let entering = Entering {
        process: target.process.pidfd.as_fd(),
        root: target.root.as_fd(),
        guide: guide.as_fd(),
        failure: failure_writer.as_fd(),
        socket: socket.as_fd(),
        output: streams.out.1.as_fd(),
        error: streams.error().as_fd(),
        executing: executing.as_fd(),
        input: streams.input(),
        answers: answers.as_ref().map(|(_, theirs)| theirs.as_fd()),
    };
    entering.send(&control, target.process.pid, request).during(Phase::Start)?;
    // The input ends when the caller closes it.
    drop(streams);
    Ok(Entrance { pid, reports: BufReader::new(control), failure, answers: answers.map(|(ours, _)| ours) })
}

/// Executes the program as an entrance, whose standard input is `control`, with an empty
/// environment.
fn execute_entrance(program: &OwnedFd, control: BorrowedFd<'_>) -> ! {
    let args = ["rbuild", ENTRANCE].map(|arg| CString::new(arg).unwrap_or_default());
    if rustix::stdio::dup2_stdin(control).is_ok() {
        let _ = nix::unistd::fexecve(program, &args, &[] as &[&CStr]);
    }
    std::process::exit(70)
}

/// Answers the command's calls about owners until it has ended.
fn answer(
    target: &Target<'_>,
    request: &CommandRequest,
    socket: &UnixStream,
    owners: &OwnerRecords,
    pid: u32,
) -> Result<(), RunnerProblem> {
    let ended = process::pidfd(pid)?;
    if process::wait_for_input_or_end(socket, &ended).is_err() {
        return Ok(());
    }
    let listener = receive_fds(socket).ok().and_then(|mut fds| fds.pop()).ok_or(RunnerProblem::NoListener)?;
    let dir = target.proc.try_clone().map_err(RunnerProblem::of_call("dup", Path::new("/proc")))?.into();
    let first = Credentials::starting(UidGid::new(request.uid, request.gid), request.groups.clone());
    let proc = SharedProc { dir, outer: false };
    let container = SupervisedContainer {
        pid,
        credentials: first,
        proc,
        owners: owners.clone(),
        leaves_mounts: request.is_insecure(),
        lacks_capabilities: request.lacks_capabilities(),
    };
    Supervisor::enter(listener, container)?.serve(&ended);
    Ok(())
}
