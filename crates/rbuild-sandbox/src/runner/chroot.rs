//! The `chroot` isolation mode: runs a command in another root directory and nothing more. For root
//! in a container that permits neither namespaces nor mounts.
//!
//! Files that would be mounted are placed into the root directory before the command runs and
//! removed afterwards ([`laid_out`]). Processes left behind by the command are killed: this process
//! adopts them (PR_SET_CHILD_SUBREAPER).

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rbuild_linux::RootDir;
use rbuild_linux::fd_passing::send_fds;
use rbuild_linux::process::{self, Cloned, Exit};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::text;
use crate::protocol::{Files, Input, Network, Report, RunRequest};
use crate::runner::exec::Environment;

mod laid_out;
mod material;

use laid_out::LaidOut;
pub use laid_out::restored_files;

/// Runs the command of the request to its end, which is reported before the cleanup.
pub fn run(request: &RunRequest, input: Option<OwnedFd>, socket: &UnixStream) -> Result<(), String> {
    let Files::Directory { root, scratch } = &request.files else {
        return Err("a root directory of layers cannot be entered without mounts".into());
    };
    if request.network != Network::Host {
        return Err(
            "a network of its own takes namespaces, which this machine does not allow; leave --network out".into()
        );
    }
    process::adopt_orphans().map_err(text)?;
    let files = RootDir::from_fd(RootDir::open(root).map_err(text)?.into_fd(), "/");
    let scratch = RootDir::open(scratch).map_err(text)?;
    let mut laid_out = LaidOut::new(&files, &scratch);
    let put = laid_out.put(request);
    let exit = put.and_then(|()| started(request, root, input, socket));
    let reported = exit.and_then(|exit| Report::of_end(exit).send(socket).map_err(text));
    process::kill_children();
    laid_out.take_back().and(reported)
}

fn started(request: &RunRequest, root: &Path, mut input: Option<OwnedFd>, socket: &UnixStream) -> Result<Exit, String> {
    let environment = Environment::new(request)?;
    if request.input == Input::Terminal {
        // A pseudoterminal of the host: it is connected to the command's streams, but has no name
        // in the command's /dev.
        let (ours, theirs) = process::new_terminal().map_err(text)?;
        send_fds(socket, &[ours.as_fd()]).map_err(|e| format!("the terminal: {e}"))?;
        input = Some(theirs);
    }
    // Reports whether the command was executed and, if not, why.
    let (mut said, saying) = std::io::pipe().map_err(text)?;
    let runner = process::own_pidfd().map_err(text)?;
    match process::fork().map_err(text)? {
        Cloned::Child => {
            drop(said);
            let why = match become_command(request, root, input, &runner) {
                Ok(()) => environment.execute(),
                Err(why) => why,
            };
            let mut saying = saying;
            let _ = saying.write_all(why.as_bytes());
            std::process::exit(126);
        }
        Cloned::Parent { child } => {
            drop(saying);
            let mut why = String::new();
            std::io::Read::read_to_string(&mut said, &mut why).map_err(text)?;
            let exit = wait_for(child, socket)?;
            if why.is_empty() { Ok(exit) } else { Err(why) }
        }
    }
}

/// Waits for the command to end. If the builder dies first, kills the command's processes here,
/// because the zygote, which would otherwise do so, may have been killed as well.
fn wait_for(child: u32, socket: &UnixStream) -> Result<Exit, String> {
    let command = process::pidfd(child).map_err(text)?;
    let mut fds = [PollFd::new(&command, PollFlags::IN), PollFd::new(socket, PollFlags::empty())];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    if fds[1].revents().contains(PollFlags::HUP) {
        process::kill_children();
        std::process::exit(70);
    }
    process::wait(child).map_err(text)
}

fn become_command(request: &RunRequest, root: &Path, input: Option<OwnedFd>, runner: &OwnedFd) -> Result<(), String> {
    let input = match input {
        Some(input) => input,
        // A pipe at end of file: the command could change the mode of the host's /dev/null.
        None => std::io::pipe().map_err(text)?.0.into(),
    };
    rustix::stdio::dup2_stdin(&input).map_err(text)?;
    let _ = rustix::process::setsid();
    if request.input == Input::Terminal {
        rustix::process::ioctl_tiocsctty(&input).map_err(|e| format!("the terminal: {e}"))?;
        rustix::stdio::dup2_stdout(&input).and_then(|()| rustix::stdio::dup2_stderr(&input)).map_err(text)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::chroot(root).map_err(|e| format!("chroot: {e}"))?;
    std::env::set_current_dir(&request.cwd).map_err(|e| format!("the working directory {}: {e}", request.cwd))?;
    for limit in &request.ulimits {
        process::set_limit(limit.name.trim_start_matches("RLIMIT_"), limit.soft, limit.hard).map_err(text)?;
    }
    crate::runner::privileges::bound_capabilities(request.insecure)?;
    process::become_user(request.uid, request.gid, &request.groups).map_err(text)?;
    process::die_with(runner).map_err(text)?;
    process::reset_signals().map_err(text)
}
