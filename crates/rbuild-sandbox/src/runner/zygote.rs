//! The zygote: a process from which runners are forked, started before the builder's first thread.
//!
//! A runner must be single-threaded and start quickly, but the builder has many threads. Therefore
//! a single-threaded copy of the builder waits on a socket for three or four descriptors, forks a
//! runner that has them as its streams, and answers with a pidfd.
//!
//! If commands may see /proc, the copy executes rbuild again, from a file that cannot be changed
//! through it ([`sealed_program`]): otherwise an image could start /proc/self/exe as its command
//! and get write access to the host's rbuild binary (CVE-2019-5736). It does so before the builder
//! has its own root, which contains no dynamic linker.

use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rbuild_linux::fd_passing::{receive_with_byte, receive_with_bytes, send_with_byte, send_with_bytes};
use rbuild_linux::parallel::locked;
use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{OwnerKey, OwnerMode, OwnerRecords, descendants, described, sealed_program};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::SandboxError;
use crate::error::{Phase, PhaseContext, RunnerProblem};
use crate::namespace::network::Isolated;
use crate::runner::container::runner_main;
use crate::runner::runner_context::{ProcView, RunnerContext};

/// Requests of the builder. The answer repeats the byte; if a runner cannot be forked, it is the
/// kernel's error number, without descriptors.
const RUNNER: u8 = b'r';
const SWEEP: u8 = b's';
/// The first message to a zygote that executed rbuild again, with the owner key and the descriptors
/// of the isolated network; and its answer.
const BEGIN: u8 = b'b';

/// The way in which a zygote was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZygoteKind {
    /// A fork of the builder in the `chroot` mode: there is no PID namespace for the kernel to
    /// clean up, and commands have no /proc.
    Bare,
    /// Executes rbuild again, from a file that commands cannot change.
    Executed,
    /// A fork of the builder that starts no commands.
    Idle,
}

/// The builder's handle of the zygote.
#[derive(Debug)]
pub struct Zygote {
    /// Closed to make the zygote exit.
    socket: Mutex<Option<OwnedFd>>,
    process: OwnedFd,
    kind: ZygoteKind,
    /// The network namespace that commands see in /sys; only kept alive.
    _network: Option<OwnedFd>,
}

/// Maximum time between the closing of a killed process's descriptors and its end.
const CLOSING: Duration = Duration::from_secs(1);

impl Zygote {
    /// Starts the zygote; it can start commands only if `commands` is true. The caller must still
    /// be single-threaded. In a PID namespace the kernel kills leftover processes. Without one (and
    /// thus without `context`), the zygote does or, if it is killed, the builder.
    pub(crate) fn start(
        context: Option<RunnerContext>,
        commands: bool,
        network: Option<OwnedFd>,
    ) -> Result<Zygote, SandboxError> {
        let kind = match (&context, commands) {
            (None, _) => ZygoteKind::Bare,
            (Some(_), true) => ZygoteKind::Executed,
            (Some(_), false) => ZygoteKind::Idle,
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(RunnerProblem::of_call("socketpair", described("a pair of sockets")))
            .during(Phase::Start)?;
        if kind == ZygoteKind::Bare {
            descendants::adopt_orphans()?;
        }
        let program = (kind == ZygoteKind::Executed).then(sealed_program).transpose()?;
        match process::fork()? {
            Cloned::Parent { child } => {
                drop(theirs);
                let process = process::pidfd(child)?;
                if let (ZygoteKind::Executed, Some(context)) = (kind, &context) {
                    begin(&ours, context)?;
                }
                Ok(Zygote { socket: Mutex::new(Some(ours)), process, kind, _network: network })
            }
            Cloned::Child => {
                drop(ours);
                match (program, &context) {
                    (Some(program), Some(context)) => execute(&program, &theirs, context),
                    _ => serve(theirs, context.as_ref()),
                }
                std::process::exit(70);
            }
        }
    }

    /// Waits until a zygote that executes rbuild again has loaded what it needs from the host's
    /// files.
    pub(crate) fn wait_until_loaded(&self) -> Result<(), SandboxError> {
        if self.kind != ZygoteKind::Executed {
            return Ok(());
        }
        let socket = locked(&self.socket);
        match socket.as_ref().map(|socket| self.answer(socket)) {
            Some(Ok((_, BEGIN))) => Ok(()),
            _ if self.is_ending() && !process::has_exited(&self.process) => Err(self.end()),
            _ => Err(RunnerProblem::ReexecFailed.during(Phase::Start).into()),
        }
    }

    /// Starts a runner with these streams: the socket for its request, the output and errors of its
    /// command, and optionally the command's input. Returns a pidfd of the runner. When the runner
    /// has ended, its descendants are gone, except in the `chroot` mode, where those of a killed
    /// runner remain until [`Zygote::sweep`].
    pub(crate) fn runner(&self, streams: &[BorrowedFd<'_>]) -> Result<OwnedFd, SandboxError> {
        if self.kind == ZygoteKind::Idle {
            return Err(RunnerProblem::CommandsDisabled.during(Phase::Start).into());
        }
        let (mut fds, answer) = self.ask(RUNNER, streams).map_err(|e| match e {
            _ if self.is_ending() => self.end(),
            e => RunnerProblem::of_call("sendmsg", described("the process that starts commands"))(e)
                .during(Phase::Start)
                .into(),
        })?;
        match (fds.pop(), fds.is_empty()) {
            (Some(pidfd), true) => Ok(pidfd),
            _ => {
                let errno = std::io::Error::from_raw_os_error(answer.into());
                let e = rbuild_linux::Error::new("clone3", described("the runner process"), errno);
                Err(RunnerProblem::NoFork(e.into()).during(Phase::Start).into())
            }
        }
    }

    fn ask(&self, kind: u8, streams: &[BorrowedFd<'_>]) -> rustix::io::Result<(Vec<OwnedFd>, u8)> {
        let socket = locked(&self.socket);
        let socket = socket.as_ref().ok_or(rustix::io::Errno::PIPE)?;
        send_with_byte(socket, kind, streams)?;
        self.answer(socket)
    }

    /// Waits for the zygote's next message or its end. The socket alone does not signal the end
    /// while a just-forked runner also has the other end open.
    fn answer(&self, socket: &OwnedFd) -> rustix::io::Result<(Vec<OwnedFd>, u8)> {
        process::wait_for_input_or_end(socket, &self.process)?;
        receive_with_byte(socket)
    }

    /// Kills the remaining descendants of killed runners, where the kernel does not.
    pub(crate) fn sweep(&self) {
        if self.kind == ZygoteKind::Bare && self.ask(SWEEP, &[]).is_err() {
            // If the zygote is gone, its children have been reparented to the builder.
            descendants::kill_children();
        }
    }

    /// Returns a pidfd of the zygote.
    pub(crate) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(crate) fn has_ended(&self) -> bool {
        process::has_ended(&self.process)
    }

    /// Returns true if the zygote is ending; to be called when its socket has failed. The kernel
    /// closes the descriptors of a killed process before its pidfd reports the end.
    fn is_ending(&self) -> bool {
        process::ends_within(&self.process, CLOSING)
    }

    /// Returns the error for a zygote that ended before the builder.
    pub(crate) fn end(&self) -> SandboxError {
        // A builder without a PID namespace reaps all adopted children, this one included.
        if process::has_exited(&self.process) {
            RunnerProblem::ZygoteExited.during(Phase::Start).into()
        } else {
            SandboxError::Killed("the process that starts commands")
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if self.kind == ZygoteKind::Bare {
            locked(&self.socket).take();
            process::wait_for_end(&self.process);
            descendants::kill_children();
        }
    }
}

/// Sends a new zygote the state that it does not inherit.
fn begin(socket: &OwnedFd, context: &RunnerContext) -> Result<(), SandboxError> {
    let fds = context.isolated.as_ref().map(Isolated::descriptors);
    // Not passed as an argument, because all processes can see each other's arguments.
    let message: Vec<u8> = [BEGIN].into_iter().chain(context.owners.key()).collect();
    send_with_bytes(socket, &message, fds.as_ref().map_or(&[][..], |fds| &fds[..]))
        .map_err(RunnerProblem::of_call("sendmsg", described("the process that starts commands")))
        .during(Phase::Start)?;
    Ok(())
}

/// Executes rbuild as [`zygote_main`], with an empty environment. Returns only on failure.
fn execute(program: &OwnedFd, socket: &OwnedFd, context: &RunnerContext) {
    let recorded = if context.owners.mode() == OwnerMode::Recorded { RECORDED } else { "" };
    let proc = if context.proc == ProcView::Outer { OUTER_PROC } else { "" };
    let carrier = context.isolated.as_ref().map_or("", Isolated::carrier);
    let args = ["rbuild", ZYGOTE, recorded, proc, carrier].map(|arg| CString::new(arg).unwrap_or_default());
    // The working directory would lead out of the builder's root.
    if std::env::set_current_dir("/").is_ok() && rustix::stdio::dup2_stdin(socket).is_ok() {
        let _ = nix::unistd::fexecve(program, &args, &[] as &[&CStr]);
    }
}

/// First argument that makes the program a zygote.
pub const ZYGOTE: &str = "__zygote";
const RECORDED: &str = "--owners-recorded";
const OUTER_PROC: &str = "--outer-proc";

/// Runs an executed zygote to completion; `args` follow [`ZYGOTE`]. Standard input is its socket.
pub fn zygote_main(args: &[OsString]) -> i32 {
    let is = |i: usize, text: &str| args.get(i).is_some_and(|arg| arg == text);
    let mode = if is(0, RECORDED) { OwnerMode::Recorded } else { OwnerMode::Given };
    // The kernel named the process after the descriptor's number.
    let _ = rustix::thread::set_name(c"rbuild");
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 70 };
    let mut message = [0; 1 + size_of::<OwnerKey>()];
    let fds = match receive_with_bytes(&socket, &mut message) {
        Ok((fds, n)) if message[0] == BEGIN && n == message.len() => fds,
        _ => return 70,
    };
    let [_, key @ ..] = message;
    let isolated = Isolated::from_descriptors(args.get(2).and_then(|arg| arg.to_str()).unwrap_or_default(), fds);
    let proc = if is(1, OUTER_PROC) { ProcView::Outer } else { ProcView::Own };
    let context = RunnerContext { owners: OwnerRecords::new(mode, key), proc, isolated };
    if send_with_byte(&socket, BEGIN, &[]).is_err() {
        return 70;
    }
    serve(socket, Some(&context));
    0
}

/// Serves requests until the builder closes its end or dies.
fn serve(socket: OwnedFd, context: Option<&RunnerContext>) {
    if context.is_none() {
        let _ = descendants::adopt_orphans();
    }
    let mut runners = Vec::new();
    while let Ok((fds, kind)) = receive_with_byte(&socket) {
        let ended = descendants::reap();
        runners.retain(|runner| !ended.iter().any(|(pid, _)| pid == runner));
        let answered = match kind {
            SWEEP => {
                kill_strays(&mut runners);
                send_with_byte(&socket, SWEEP, &[])
            }
            _ => match fork_runner(context) {
                Ok(Cloned::Child) => {
                    // End of file on this descriptor means that the zygote has ended.
                    drop(socket);
                    std::process::exit(become_runner(fds).map_or(70, |input| runner_main(input, context)));
                }
                Ok(Cloned::Parent { child }) => {
                    runners.push(child);
                    let pidfd = process::pidfd(child);
                    drop(fds);
                    let answer: Vec<BorrowedFd<'_>> = pidfd.iter().map(|fd| fd.as_fd()).collect();
                    send_with_byte(&socket, RUNNER, &answer)
                }
                Err(e) => send_with_byte(&socket, e.errno().and_then(|errno| errno.try_into().ok()).unwrap_or(0), &[]),
            },
        };
        if answered.is_err() {
            break;
        }
    }
    if context.is_none() {
        wait_for_runners(&runners);
        descendants::kill_children();
    }
}

/// Maximum time for a runner to kill its command's processes.
const ENDING: Duration = Duration::from_secs(1);

/// Waits for the runners, which notice the builder's end themselves and kill their commands'
/// processes. A runner killed before that would leave them to the zygote, which could be killed
/// next.
fn wait_for_runners(runners: &[u32]) {
    let end = Instant::now() + ENDING;
    for runner in runners.iter().filter_map(|pid| process::pidfd(*pid).ok()) {
        process::ends_within(&runner, end.saturating_duration_since(Instant::now()));
    }
}

/// Kills all children that are not runners, and those reparented to the zygote as a result, until
/// none are left.
fn kill_strays(runners: &mut Vec<u32>) {
    loop {
        let strays: Vec<u32> = descendants::children().into_iter().filter(|pid| !runners.contains(pid)).collect();
        strays.iter().for_each(|pid| process::kill(*pid));
        if strays.is_empty() {
            return;
        }
        for pid in strays {
            let _ = process::wait(pid);
        }
        let ended = descendants::reap();
        runners.retain(|runner| !ended.iter().any(|(pid, _)| pid == runner));
    }
}

fn fork_runner(context: Option<&RunnerContext>) -> rbuild_linux::Result<Cloned> {
    if context.is_none() { process::fork() } else { process::fork_into_pid_namespace() }
}

/// Installs the streams, and returns the command's input, if any.
fn become_runner(mut fds: Vec<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    let input = (fds.len() == 4).then(|| fds.pop()).flatten();
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| rustix::io::Errno::BADF)?;
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zygote(process: &std::process::Child) -> (Zygote, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let process = process::pidfd(process.id()).unwrap();
        (Zygote { socket: Mutex::new(Some(ours)), process, kind: ZygoteKind::Executed, _network: None }, theirs)
    }

    #[test]
    fn the_end_of_a_zygote_ends_the_wait_even_if_its_socket_is_open() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (zygote, held) = zygote(&child);
        child.kill().unwrap();
        assert!(matches!(zygote.wait_until_loaded(), Err(SandboxError::Killed(_))));
        assert!(matches!(zygote.runner(&[]), Err(SandboxError::Killed(_))));
        child.wait().unwrap();
        drop(held);
    }

    #[test]
    fn an_answer_received_before_the_end_is_used() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (zygote, held) = zygote(&child);
        send_with_byte(&held, BEGIN, &[]).unwrap();
        process::wait_for_end(&zygote.process);
        zygote.wait_until_loaded().unwrap();
        assert!(matches!(zygote.wait_until_loaded(), Err(SandboxError::Runner(_))), "it was not killed");
        child.wait().unwrap();
        drop(held);
    }
}
