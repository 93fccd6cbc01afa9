//! Commands in a container that another command started.
//!
//! No process of that container's builder is involved. The caller forks a process that enters the
//! user and PID namespaces of the container, and forks the command's process, which enters the
//! others. The first one stays outside the container's PID namespace, where no process of the
//! container can see it, and answers the calls that the isolation mode emulates.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rbuild_linux::fd_passing::{receive_fds, receive_with_byte, send_fds};
use rbuild_linux::namespaces::{enter_outer_of, enter_rest_of};
use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{OwnerRecords, UidGid, credentials, described, sealed_program, terminal};

use crate::SandboxError;
use crate::attached::Streams;
use crate::client::fail;
use crate::error::{Phase, PhaseContext, RunnerError, RunnerProblem, library};
use crate::id_emulation::{Credentials, SharedProc, SupervisedContainer, Supervisor};
use crate::protocol::{CommandEnd, CommandOutcome, Input, Report, RunnerMode};
use crate::runner::chroot::enter_working_directory;
use crate::runner::exec::CommandExecutor;
use crate::runner::privileges::{bound_capabilities, confine, confine_bare, keep_for_the_filter};

/// First argument of a program that was executed from a file which containers cannot change.
pub const SEALED: &str = "__sealed";

/// Returns true if this program was executed by [`seal`].
pub fn is_sealed() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == SEALED)
}

/// Executes this program again, with the same arguments after [`SEALED`], from a file that cannot
/// be changed through /proc. Returns only on failure.
pub fn seal() -> Result<Infallible, SandboxError> {
    let program = sealed_program()?;
    let word = |word: OsString| CString::new(word.into_vec()).unwrap_or_default();
    let mut words: Vec<CString> = std::env::args_os().map(word).collect();
    words.insert(1.min(words.len()), word(SEALED.into()));
    let pair = |(name, value): (OsString, OsString)| word([name, "=".into(), value].into_iter().collect());
    let env: Vec<CString> = std::env::vars_os().map(pair).collect();
    nix::unistd::fexecve(&program, &words, &env).map_err(fail_errno)
}

fn fail_errno(e: nix::errno::Errno) -> SandboxError {
    fail("execveat", "the running program")(e.into())
}

/// A command to run in a container.
#[derive(Debug, Clone)]
pub struct InnerRequest {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// Working directory in the container.
    pub cwd: String,
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Standard input.
    pub input: Input,
    /// The way in which the container runs.
    pub mode: RunnerMode,
}

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
}

/// Runs a command to its end, on the standard streams of this process, in the container of that
/// process. The caller must be single-threaded. `owners` are the records of the owners of the
/// container's files.
pub fn run_inside(
    process: FirstProcess<'_>,
    request: &InnerRequest,
    owners: &OwnerRecords,
) -> Result<CommandOutcome, SandboxError> {
    let opened = |path: String| File::open(&path).map_err(|e| rbuild_linux::Error::new("openat", Path::new(&path), e));
    let root = opened(format!("/proc/{}/root", process.pid))?;
    let caller = process::own_pidfd()?;
    let target = Target { process, root, proc: opened("/proc".into())?, caller };
    let (ours, theirs) = UnixStream::pair().map_err(fail("socketpair", "a pair of sockets"))?;
    let streams = Streams::new(request.input, None)?;
    // Descriptors inherited from the caller's shell must not reach the command.
    process::close_descriptors_on_exec()?;
    let runner = match process::fork()? {
        Cloned::Child => {
            drop(ours);
            std::process::exit(guide(&target, request, streams, theirs, owners));
        }
        Cloned::Parent { child } => child,
    };
    drop(theirs);
    let pidfd = process::pidfd(runner)?;
    let mut reported = Vec::new();
    let copying = if request.input == Input::Terminal {
        match receive_with_byte(&ours).map(|(mut fds, byte)| (fds.pop(), byte)) {
            Ok((Some(terminal), _)) => {
                crate::runner::terminal::connect(&terminal, &pidfd, process.pidfd.as_fd())
                    .map_err(fail("write", "the terminal"))?;
            }
            // The beginning of the report of a failure.
            Ok((None, byte)) => reported.push(byte),
            Err(_) => {}
        }
        None
    } else {
        Some(streams.start_copying()?)
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
    request: &InnerRequest,
    streams: Streams,
    socket: UnixStream,
    owners: &OwnerRecords,
) -> i32 {
    let ended = start(target, request, streams, &socket).and_then(|(command, answers)| {
        if let Some(answers) = answers
            && let Err(e) = answer(target, request, &answers, owners, command.pid)
        {
            // The command's process reports why it has sent no listener. It must not be left to the
            // container's first process, which need not wait for it.
            let pid = command.pid;
            let why = command.failure();
            process::kill(pid);
            process::wait(pid).during(Phase::Command)?;
            return Err(why?.unwrap_or_else(|| e.during(Phase::Emulation)));
        }
        let exit = process::wait(command.pid).during(Phase::Command)?;
        match command.failure()? {
            Some(why) => Err(why),
            None => Ok(exit),
        }
    });
    let report = match ended {
        Ok(exit) => Report::of_end(exit),
        Err(why) => Report::Finished(Err(why)),
    };
    if report.send(&socket).is_ok() { 0 } else { 70 }
}

/// The process of a command.
struct InnerProcess {
    pid: u32,
    /// The reason why the command was not executed; empty if it was.
    failure: std::io::PipeReader,
}

impl InnerProcess {
    fn failure(mut self) -> Result<Option<RunnerError>, RunnerError> {
        let mut why = Vec::new();
        let read = self.failure.read_to_end(&mut why);
        read.map_err(RunnerProblem::of_call("recv", described("the command's process"))).during(Phase::Command)?;
        if why.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&why).map(Some).map_err(library).during(Phase::Command)
    }
}

/// Enters the user and PID namespaces, and starts the command, which gets the only copies of its
/// ends of the streams. Also returns the socket that receives the listener for calls about owners,
/// if those are emulated.
fn start(
    target: &Target<'_>,
    request: &InnerRequest,
    streams: Streams,
    socket: &UnixStream,
) -> Result<(InnerProcess, Option<UnixStream>), RunnerError> {
    if request.mode != RunnerMode::Chroot {
        enter_outer_of(target.process.pidfd.as_fd(), target.process.pid).during(Phase::Namespaces)?;
        credentials::become_root().during(Phase::Namespaces)?;
    }
    process::die_with(&target.caller).during(Phase::Start)?;
    let pipe = std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe"))).during(Phase::Start)?;
    let (failure, mut failure_writer) = pipe;
    let answers = (request.mode == RunnerMode::Emulated).then(UnixStream::pair).transpose();
    let answers = answers
        .map_err(RunnerProblem::of_call("socketpair", described("a pair of sockets")))
        .during(Phase::Emulation)?;
    let guide = process::own_pidfd().during(Phase::Start)?;
    match process::fork().during(Phase::Start)? {
        Cloned::Child => {
            let answers = answers.map(|(_, theirs)| theirs);
            let why = match become_inner(target, request, &streams, socket, answers.as_ref(), &guide) {
                Ok(command) => command.execute().during(Phase::Command),
                Err(why) => why,
            };
            let _ = serde_json::to_vec(&why).map(|bytes| failure_writer.write_all(&bytes));
            std::process::exit(126);
        }
        Cloned::Parent { child } => {
            // The input ends when the caller closes it.
            drop(streams);
            Ok((InnerProcess { pid: child, failure }, answers.map(|(ours, _)| ours)))
        }
    }
}

/// Turns the calling process into the command's, up to the execution of its program.
fn become_inner(
    target: &Target<'_>,
    request: &InnerRequest,
    streams: &Streams,
    socket: &UnixStream,
    answers: Option<&UnixStream>,
    guide: &OwnedFd,
) -> Result<CommandExecutor, RunnerError> {
    let is_bare = request.mode == RunnerMode::Chroot;
    let command = CommandExecutor::of_words(&request.args, &request.env).during(Phase::Command)?;
    if is_bare {
        // The root directory has no names for terminals.
        take_streams(request, streams, socket, is_bare).during(Phase::Terminal)?;
        let fd = target.root.as_fd();
        let entered = rustix::process::fchdir(fd).and_then(|()| rustix::process::chroot("."));
        entered.map_err(RunnerProblem::of_call("chroot", Path::new("/"))).during(Phase::Files)?;
    } else {
        enter_rest_of(target.process.pidfd.as_fd(), target.process.pid).during(Phase::Namespaces)?;
        take_streams(request, streams, socket, is_bare).during(Phase::Terminal)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    enter_working_directory(&request.cwd).during(Phase::Files)?;
    restrict(request, answers).during(Phase::Command)?;
    process::die_with(guide).during(Phase::Command)?;
    process::reset_signals().during(Phase::Command)?;
    Ok(command)
}

/// Switches to the user of the command, and drops the privileges that commands lack.
fn restrict(request: &InnerRequest, answers: Option<&UnixStream>) -> Result<(), RunnerProblem> {
    let user = UidGid::new(request.uid, request.gid);
    match request.mode {
        RunnerMode::Chroot => {
            confine_bare(false);
            bound_capabilities(false)?;
            Ok(credentials::become_user(user, &request.groups)?)
        }
        RunnerMode::Container => {
            keep_for_the_filter()?;
            rustix::thread::set_keep_capabilities(true)
                .map_err(RunnerProblem::of_call("prctl", described("the flag that keeps capabilities")))?;
            credentials::become_user(user, &request.groups)?;
            keep_for_the_filter()?;
            confine(request.uid, None)
        }
        // The kernel knows only root; the supervisor emulates the user.
        RunnerMode::Emulated => {
            keep_for_the_filter()?;
            confine(0, answers.map(|socket| socket.as_fd()))
        }
    }
}

/// Installs the streams of the command, in a session of its own.
fn take_streams(
    request: &InnerRequest,
    streams: &Streams,
    socket: &UnixStream,
    is_bare: bool,
) -> Result<(), RunnerProblem> {
    let _ = rustix::process::setsid();
    let stdio = |which: &str, done: rustix::io::Result<()>| {
        done.map_err(RunnerProblem::of_call("dup2", described(format!("standard {which}"))))
    };
    if request.input == Input::Terminal {
        let (ours, theirs) = terminal::open_pseudoterminal()?;
        send_fds(socket, &[ours.as_fd()]).map_err(RunnerProblem::of_call("sendmsg", described("the terminal")))?;
        rustix::process::ioctl_tiocsctty(&theirs)
            .map_err(RunnerProblem::of_call("ioctl", described("the terminal")))?;
        stdio("input", rustix::stdio::dup2_stdin(&theirs))?;
        stdio("output", rustix::stdio::dup2_stdout(&theirs))?;
        return stdio("error", rustix::stdio::dup2_stderr(&theirs));
    }
    match streams.input() {
        Some(input) => stdio("input", rustix::stdio::dup2_stdin(input))?,
        // A pipe at end of file in the `chroot` mode: /dev/null may be a file of the image.
        None if is_bare => {
            let pipe = std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe")))?;
            stdio("input", rustix::stdio::dup2_stdin(&pipe.0))?;
        }
        None => {
            let null = File::open("/dev/null").map_err(RunnerProblem::of_call("open", Path::new("/dev/null")))?;
            stdio("input", rustix::stdio::dup2_stdin(&null))?;
        }
    }
    stdio("output", rustix::stdio::dup2_stdout(&streams.out.1))?;
    stdio("error", rustix::stdio::dup2_stderr(streams.error()))
}

/// Answers the command's calls about owners until it has ended.
fn answer(
    target: &Target<'_>,
    request: &InnerRequest,
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
    let container = SupervisedContainer { pid, credentials: first, proc, owners: owners.clone(), leaves_mounts: false };
    Supervisor::enter(listener, container)?.serve(&ended);
    Ok(())
}
