//! The process that enters a running container and starts a command there.
//!
//! The program is executed for it, with an empty environment and without the caller's descriptors,
//! because the command's process can be inspected by the root of the container in the moment before
//! it executes the command (CVE-2016-9962): its memory and descriptors must not lead to anything of
//! the machine. In addition, it is not dumpable until then, except in the `single-id` mode, where
//! the supervisor must inspect it.

use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rbuild_linux::fd_passing::{receive_fds, send_fds};
use rbuild_linux::namespaces::{enter_outer_of, enter_rest_of};
use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{UidGid, credentials, described, terminal};
use serde::{Deserialize, Serialize};

use crate::error::{Phase, PhaseContext, RunnerError, RunnerProblem, library};
use crate::protocol::{CommandRequest, Input, Report, RunnerMode};
use crate::runner::chroot::enter_working_directory;
use crate::runner::exec::{CommandExecutor, reserve_limits, set_limits};
use crate::runner::privileges::{
    Confinement, bound_capabilities, confine_bare, keep_for_the_filter, limit_capabilities,
};

/// First argument that makes the program an entrance.
pub const ENTRANCE: &str = "__entrance";

/// The descriptors that an entrance receives.
pub(crate) struct Entering<'a> {
    /// A pidfd of the container's first process.
    pub(crate) process: BorrowedFd<'a>,
    /// The root directory of that process.
    pub(crate) root: BorrowedFd<'a>,
    /// A pidfd of the process that waits for the reports.
    pub(crate) guide: BorrowedFd<'a>,
    /// Receives the reason if the command cannot be executed.
    pub(crate) failure: BorrowedFd<'a>,
    /// Receives the terminal of the command, if it has one.
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) output: BorrowedFd<'a>,
    pub(crate) error: BorrowedFd<'a>,
    /// A pipe that is closed by the execution of the command, and that receives a byte if it is not
    /// executed.
    pub(crate) executing: BorrowedFd<'a>,
    pub(crate) input: Option<BorrowedFd<'a>>,
    /// Receives the listener for calls about owners, if those are emulated.
    pub(crate) answers: Option<BorrowedFd<'a>>,
}

/// The request to an entrance.
#[derive(Serialize, Deserialize)]
struct EntranceRequest<R> {
    /// ID of the container's first process.
    pid: u32,
    request: R,
}

/// A line of an entrance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum EntranceReport {
    /// The command has a process with that ID.
    Started(u32),
    /// The process has ended.
    Ended(Report),
}

impl Entering<'_> {
    /// Sends the descriptors and the request to an entrance.
    pub(crate) fn send(&self, control: &UnixStream, pid: u32, request: &CommandRequest) -> Result<(), RunnerProblem> {
        let entrance = || described("the process that enters the container");
        let groups: [Vec<BorrowedFd<'_>>; 3] = [
            vec![self.process, self.root, self.guide, self.failure],
            vec![self.socket, self.output, self.error, self.executing],
            self.input.into_iter().chain(self.answers).collect(),
        ];
        for group in groups {
            send_fds(control, &group).map_err(RunnerProblem::of_call("sendmsg", entrance()))?;
        }
        let wanted = serde_json::to_vec(&EntranceRequest { pid, request }).map_err(library)?;
        let mut writer = control;
        writer.write_all(&wanted).map_err(RunnerProblem::of_call("send", entrance()))?;
        control.shutdown(Shutdown::Write).map_err(RunnerProblem::of_call("shutdown", entrance()))
    }
}

/// The received request and its descriptors.
struct Received {
    wanted: EntranceRequest<CommandRequest>,
    process: OwnedFd,
    root: OwnedFd,
    guide: OwnedFd,
    failure: File,
    socket: UnixStream,
    output: OwnedFd,
    error: OwnedFd,
    /// `None` once it belongs to the command's process.
    executing: Option<PipeWriter>,
    input: Option<OwnedFd>,
    answers: Option<OwnedFd>,
}

impl Received {
    /// Returns `None` if the guide has ended.
    fn read(mut control: &UnixStream) -> Option<Received> {
        let groups = [receive_fds(control).ok()?, receive_fds(control).ok()?, receive_fds(control).ok()?];
        let mut bytes = Vec::new();
        control.read_to_end(&mut bytes).ok()?;
        let wanted: EntranceRequest<CommandRequest> = serde_json::from_slice(&bytes).ok()?;
        let mut fds = groups.into_iter().flatten();
        let mut next = || fds.next();
        let (process, root, guide, failure) = (next()?, next()?, next()?, next()?);
        let (socket, output, error, executing) = (next()?, next()?, next()?, Some(PipeWriter::from(next()?)));
        let input = if wanted.request.input == Input::Given { Some(next()?) } else { None };
        let answers = if wanted.request.mode == RunnerMode::Emulated { Some(next()?) } else { None };
        let (failure, socket) = (failure.into(), socket.into());
        Some(Received { wanted, process, root, guide, failure, socket, output, error, executing, input, answers })
    }
}

/// Runs an executed entrance to completion. Standard input is its socket.
pub fn entrance_main() -> i32 {
    if nix::sys::prctl::set_dumpable(false).is_err() {
        return 70;
    }
    // The kernel named the process after the descriptor's number.
    let _ = rustix::thread::set_name(c"rbuild");
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map(UnixStream::from) else {
        return 70;
    };
    let Some(received) = Received::read(&control) else { return 70 };
    let Ok(failure) = received.failure.try_clone() else { return 70 };
    match enter(received, control) {
        Ok(()) => 0,
        Err(why) => {
            tell(&failure, &why);
            126
        }
    }
}

fn tell(mut failure: &File, why: &RunnerError) {
    let _ = serde_json::to_vec(why).map(|bytes| failure.write_all(&bytes));
}

/// Reports that the command is not executed.
pub(crate) fn refuse(mut executing: &PipeWriter) {
    let _ = executing.write_all(b"f");
}

/// Enters the user and PID namespaces, starts the command, and reports its end.
fn enter(mut received: Received, control: UnixStream) -> Result<(), RunnerError> {
    let (forked, own) = fork_inside(&received).inspect_err(|_| received.executing.iter().for_each(refuse))?;
    match forked {
        Cloned::Child => {
            drop(control);
            let Ok(failure) = received.failure.try_clone() else { std::process::exit(70) };
            // The guide takes the end of this socket for a missing listener, before it gets the
            // reason.
            let answers = received.answers.take();
            let executing = received.executing.take();
            let why = match become_inner(received, answers.as_ref(), &own) {
                Ok(command) => command.execute().during(Phase::Command),
                Err(why) => why,
            };
            executing.iter().for_each(refuse);
            tell(&failure, &why);
            std::process::exit(126);
        }
        Cloned::Parent { child } => {
            // The guide sees the end of the streams when the command has closed them.
            drop(received);
            report(&control, EntranceReport::Started(child))?;
            let exit = process::wait(child).during(Phase::Command)?;
            report(&control, EntranceReport::Ended(Report::of_end(exit)))
        }
    }
}

/// Enters the user and PID namespaces, and forks. Returns a pidfd of the parent as well.
fn fork_inside(received: &Received) -> Result<(Cloned, OwnedFd), RunnerError> {
    if received.wanted.request.mode != RunnerMode::Chroot {
        enter_outer_of(received.process.as_fd(), received.wanted.pid).during(Phase::Namespaces)?;
        credentials::become_root().during(Phase::Namespaces)?;
        // A change of credentials resets the attribute to a setting of the machine.
        let set = nix::sys::prctl::set_dumpable(false);
        set.map_err(RunnerProblem::of_call("prctl", described("the dumpable attribute of the process")))
            .during(Phase::Namespaces)?;
    }
    process::die_with(&received.guide).during(Phase::Start)?;
    let own = process::own_pidfd().during(Phase::Start)?;
    Ok((process::fork().during(Phase::Start)?, own))
}

fn report(mut control: &UnixStream, report: EntranceReport) -> Result<(), RunnerError> {
    let mut line = serde_json::to_vec(&report).map_err(library).during(Phase::Command)?;
    line.push(b'\n');
    let sent = control.write_all(&line);
    sent.map_err(RunnerProblem::of_call("send", described("the end of the command"))).during(Phase::Command)
}

/// Turns the calling process into the command's, up to the execution of its program. Keeps no
/// descriptor that the command's process does not need for that.
fn become_inner(
    received: Received,
    answers: Option<&OwnedFd>,
    entrance: &OwnedFd,
) -> Result<CommandExecutor, RunnerError> {
    let request = &received.wanted.request;
    let is_bare = request.mode == RunnerMode::Chroot;
    let command = CommandExecutor::of_words(&request.args, &request.env).during(Phase::Command)?;
    if is_bare {
        // The root directory has no names for terminals.
        take_streams(&received).during(Phase::Terminal)?;
        let entered = rustix::process::fchdir(&received.root).and_then(|()| rustix::process::chroot("."));
        entered.map_err(RunnerProblem::of_call("chroot", Path::new("/"))).during(Phase::Files)?;
    } else {
        enter_rest_of(received.process.as_fd(), received.wanted.pid).during(Phase::Namespaces)?;
        take_streams(&received).during(Phase::Terminal)?;
    }
    let Received { wanted: EntranceRequest { request, .. }, .. } = received;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    enter_working_directory(&request.cwd).during(Phase::Files)?;
    restrict(&request, answers.map(|socket| socket.as_fd())).during(Phase::Command)?;
    process::die_with(entrance).during(Phase::Command)?;
    process::reset_signals().during(Phase::Command)?;
    // Those may be too low for the work before.
    set_limits(&request.ulimits).during(Phase::Command)?;
    Ok(command)
}

/// Switches to the user of the command, and drops the privileges that commands lack.
fn restrict(request: &CommandRequest, answers: Option<BorrowedFd<'_>>) -> Result<(), RunnerProblem> {
    let user = UidGid::new(request.uid, request.gid);
    match request.mode {
        RunnerMode::Chroot => {
            confine_bare(request.is_insecure());
            bound_capabilities(request.capabilities())?;
            credentials::become_user(user, &request.groups)?;
            limit_capabilities(request.capabilities())?;
            Confinement::of(request).forbid_new_privileges()
        }
        RunnerMode::Container => {
            keep_for_the_filter(request.capabilities())?;
            rustix::thread::set_keep_capabilities(true)
                .map_err(RunnerProblem::of_call("prctl", described("the flag that keeps capabilities")))?;
            credentials::become_user(user, &request.groups)?;
            keep_for_the_filter(request.capabilities())?;
            Confinement::of(request).apply(None)
        }
        // The kernel knows only root; the supervisor emulates the user.
        RunnerMode::Emulated => {
            keep_for_the_filter(request.capabilities())?;
            reserve_limits(&request.ulimits)?;
            Confinement::of(request).apply(answers)
        }
    }
}

/// Installs the streams of the command, in a session of its own.
fn take_streams(received: &Received) -> Result<(), RunnerProblem> {
    let request = &received.wanted.request;
    let _ = rustix::process::setsid();
    let stdio = |which: &str, done: rustix::io::Result<()>| {
        done.map_err(RunnerProblem::of_call("dup2", described(format!("standard {which}"))))
    };
    if request.input == Input::Terminal {
        let (ours, theirs) = terminal::open_pseudoterminal()?;
        send_fds(&received.socket, &[ours.as_fd()])
            .map_err(RunnerProblem::of_call("sendmsg", described("the terminal")))?;
        rustix::process::ioctl_tiocsctty(&theirs)
            .map_err(RunnerProblem::of_call("ioctl", described("the terminal")))?;
        stdio("input", rustix::stdio::dup2_stdin(&theirs))?;
        stdio("output", rustix::stdio::dup2_stdout(&theirs))?;
        return stdio("error", rustix::stdio::dup2_stderr(&theirs));
    }
    match &received.input {
        Some(input) => stdio("input", rustix::stdio::dup2_stdin(input))?,
        // A pipe at end of file in the `chroot` mode: /dev/null may be a file of the image.
        None if request.mode == RunnerMode::Chroot => {
            let pipe = std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe")))?;
            stdio("input", rustix::stdio::dup2_stdin(&pipe.0))?;
        }
        None => {
            let null = File::open("/dev/null").map_err(RunnerProblem::of_call("open", Path::new("/dev/null")))?;
            stdio("input", rustix::stdio::dup2_stdin(&null))?;
        }
    }
    stdio("output", rustix::stdio::dup2_stdout(&received.output))?;
    stdio("error", rustix::stdio::dup2_stderr(&received.error))
}
