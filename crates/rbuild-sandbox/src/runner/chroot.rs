//! The `chroot` isolation mode: runs a command in another root directory and nothing more. For root
//! in a container that permits neither namespaces nor mounts.
//!
//! Files that would be mounted are placed into the root directory before the command runs and
//! removed afterwards ([`emulated_mounts`]). Processes left behind by the command are killed: this
//! process adopts them (PR_SET_CHILD_SUBREAPER).

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rbuild_container::NetworkMode;
use rbuild_linux::fd_passing::send_fds;
use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_linux::{RootDir, UidGid, credentials, descendants, described, terminal};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Phase, PhaseContext, RunnerError, RunnerProblem, library};
use crate::protocol::{Input, Report, RootFiles, RunRequest, announce};
use crate::runner::exec::{CommandExecutor, set_limits};
use crate::runner::privileges::{Confinement, become_privileged, bound_capabilities, confine_bare, limit_capabilities};
use crate::runner::working_directory;

mod emulated_mounts;
mod mount_content;

use emulated_mounts::EmulatedMounts;
pub use emulated_mounts::restored_files;

/// Runs the command of the request to its end, which is reported before the cleanup.
pub fn run(request: &RunRequest, input: Option<OwnedFd>, socket: &UnixStream) -> Result<(), RunnerError> {
    let RootFiles::Directory { root, .. } = &request.files else {
        return Err(RunnerProblem::NeedsMounts("a root directory of layers".into()).during(Phase::Files));
    };
    if request.network != NetworkMode::Host {
        return Err(RunnerProblem::NeedsNamespaces.during(Phase::Namespaces));
    }
    if request.read_only {
        return Err(RunnerProblem::NeedsMounts("a read-only root file system".into()).during(Phase::Files));
    }
    descendants::adopt_orphans().during(Phase::Start)?;
    let files = RootDir::open(root).map_err(|e| e.within("the command's files")).during(Phase::Files)?.shown_as_root();
    let scratch = request.files.open_scratch().during(Phase::Files)?;
    let mut emulated_mounts = EmulatedMounts::new(&files, &scratch);
    let working_directory = |owner| working_directory::create(&files, &request.command.cwd, owner).during(Phase::Files);
    working_directory(UidGid { uid: request.command.uid, gid: request.command.gid })?;
    let placed = emulated_mounts.place_all(request).during(Phase::Files);
    // An emulated mount may cover it.
    let placed = placed.and_then(|()| working_directory(UidGid::ROOT));
    let exit = placed.and_then(|()| started(request, root, input, socket));
    let report = |exit| {
        Report::of_end(exit).send(socket).map_err(RunnerProblem::of_call("send", described("the builder process")))
    };
    let reported = exit.and_then(|exit| report(exit).during(Phase::Report));
    descendants::kill_children();
    emulated_mounts.remove_all().during(Phase::Cleanup).and(reported)
}

fn started(
    request: &RunRequest,
    root: &Path,
    mut input: Option<OwnedFd>,
    socket: &UnixStream,
) -> Result<Exit, RunnerError> {
    let environment = CommandExecutor::new(request).during(Phase::Command)?;
    if request.command.input == Input::Terminal {
        // A pseudoterminal of the host: it is connected to the command's streams, but has no name
        // in the command's /dev.
        let (ours, theirs) = terminal::open_pseudoterminal().during(Phase::Terminal)?;
        send_fds(socket, &[ours.as_fd()])
            .map_err(RunnerProblem::of_call("sendmsg", described("the builder process")))
            .during(Phase::Terminal)?;
        input = Some(theirs);
    }
    // Reports whether the command was executed and, if not, why.
    let (mut failure_reader, failure_writer) =
        std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe"))).during(Phase::Start)?;
    let runner = process::own_pidfd().during(Phase::Start)?;
    match process::fork().during(Phase::Start)? {
        Cloned::Child => {
            drop(failure_reader);
            let why = match become_command(request, root, input, &runner) {
                Ok(()) => environment.execute().during(Phase::Command),
                Err(why) => why,
            };
            let mut failure_writer = failure_writer;
            let _ = serde_json::to_vec(&why).map(|bytes| failure_writer.write_all(&bytes));
            std::process::exit(126);
        }
        Cloned::Parent { child } => {
            drop(failure_writer);
            let mut why = Vec::new();
            let read = std::io::Read::read_to_end(&mut failure_reader, &mut why);
            read.map_err(RunnerProblem::of_call("recv", described("the runner process"))).during(Phase::Command)?;
            if request.announced && why.is_empty() {
                announce(child, socket).during(Phase::Report)?;
            }
            let exit = wait_for(child, socket).during(Phase::Command)?;
            if why.is_empty() {
                Ok(exit)
            } else {
                Err(serde_json::from_slice(&why).unwrap_or_else(|e| library(e).during(Phase::Command)))
            }
        }
    }
}

/// Waits for the command to end. If the builder dies first, kills the command's processes here,
/// because the zygote, which would otherwise do so, may have been killed as well.
fn wait_for(child: u32, socket: &UnixStream) -> rbuild_linux::Result<Exit> {
    let command = process::pidfd(child)?;
    let mut fds = [PollFd::new(&command, PollFlags::IN), PollFd::new(socket, PollFlags::empty())];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    if fds[1].revents().contains(PollFlags::HUP) {
        descendants::kill_children();
        std::process::exit(70);
    }
    process::wait(child)
}

/// Turns the calling process into the command's, up to the execution of its program.
fn become_command(
    request: &RunRequest,
    root: &Path,
    input: Option<OwnedFd>,
    runner: &OwnedFd,
) -> Result<(), RunnerError> {
    take_input(request, input).during(Phase::Terminal)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let entered = rustix::process::chroot(root).map_err(RunnerProblem::of_call("chroot", root));
    entered.and_then(|()| enter_working_directory(&request.command.cwd)).during(Phase::Files)?;
    confine(request, runner).during(Phase::Command)
}

fn take_input(request: &RunRequest, input: Option<OwnedFd>) -> Result<(), RunnerProblem> {
    let input = match input {
        Some(input) => input,
        // A pipe at end of file: the command could change the mode of the host's /dev/null.
        None => std::io::pipe().map_err(RunnerProblem::of_call("pipe2", described("a pipe")))?.0.into(),
    };
    rustix::stdio::dup2_stdin(&input).map_err(RunnerProblem::of_call("dup2", described("standard input")))?;
    let _ = rustix::process::setsid();
    if request.command.input == Input::Terminal {
        rustix::process::ioctl_tiocsctty(&input).map_err(RunnerProblem::of_call("ioctl", described("the terminal")))?;
        rustix::stdio::dup2_stdout(&input).map_err(RunnerProblem::of_call("dup2", described("standard output")))?;
        rustix::stdio::dup2_stderr(&input).map_err(RunnerProblem::of_call("dup2", described("standard error")))?;
    }
    Ok(())
}

pub(crate) fn enter_working_directory(path: &str) -> Result<(), RunnerProblem> {
    std::env::set_current_dir(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => RunnerProblem::NoWorkingDirectory(path.to_string()),
        std::io::ErrorKind::NotADirectory => RunnerProblem::WorkingDirectoryIsAFile(path.to_string()),
        _ => RunnerProblem::of_call("chdir", Path::new(path))(e),
    })
}

/// Sets capabilities, user and, last, limits, which may be too low for the rest.
fn confine(request: &RunRequest, runner: &OwnedFd) -> Result<(), RunnerProblem> {
    let command = &request.command;
    confine_bare(command.is_insecure());
    bound_capabilities(command.capabilities())?;
    let user = UidGid::new(command.uid, command.gid);
    if command.keeps_capabilities() {
        become_privileged(user, &command.groups)?;
    } else {
        credentials::become_user(user, &command.groups)?;
    }
    limit_capabilities(command.capabilities())?;
    Confinement::of(command).forbid_new_privileges()?;
    process::die_with(runner)?;
    process::reset_signals()?;
    set_limits(&command.ulimits)
}
