//! Where runners come from: a process that the builder forks off before its first thread.
//!
//! A runner must have one thread and come quickly, and the builder has many. So a copy of the builder waits, with
//! one thread, for three descriptors on a socket, forks a runner that has them as its standard streams, and
//! answers with a pidfd.
//!
//! Where commands may come to see /proc, the copy executes rbuild once more, from a file that cannot be changed through it
//! ([`sealed_program`]): a command that an image starts as /proc/self/exe would otherwise have the machine's own rbuild in its hands
//! (CVE-2019-5736). It does so before the builder has a root of its own, which holds no dynamic linker.

use std::ffi::{CStr, CString, OsString};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{OwnerKey, sealed_program};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::SandboxError;
use crate::container::runner_main;
use crate::network::Isolated;
use crate::surroundings::{Proc, Surroundings};

/// What the builder asks for, and the byte that an answer repeats.
const RUNNER: u8 = b'r';
const SWEEP: u8 = b's';
/// The first message to a zygote that executed rbuild anew, with the key of owners and the descriptors of the isolated network, and
/// its answer.
const BEGIN: u8 = b'b';

/// How a zygote comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZygoteKind {
    /// A fork of the builder where there is no pid namespace that the kernel would empty, and no /proc for commands.
    Bare,
    /// Executes rbuild anew from a file that commands cannot change.
    Executed,
    /// A fork of the builder that starts no commands.
    Idle,
}

/// The builder's end.
#[derive(Debug)]
pub struct Zygote {
    /// Closed to let the zygote end.
    socket: Mutex<Option<OwnedFd>>,
    process: OwnedFd,
    kind: ZygoteKind,
    /// The network that commands see in /sys; kept, not used.
    _network: Option<OwnedFd>,
}

impl Zygote {
    /// Forks the zygote, which starts commands if that is announced. The caller must have one thread still. In a pid namespace the
    /// kernel ends what is left; where there is none, and so no surroundings of the builder's making, the zygote does, and should it
    /// be killed, the builder.
    pub(crate) fn start(
        around: Option<Surroundings>,
        commands: bool,
        network: Option<OwnedFd>,
    ) -> Result<Zygote, SandboxError> {
        let kind = match (&around, commands) {
            (None, _) => ZygoteKind::Bare,
            (Some(_), true) => ZygoteKind::Executed,
            (Some(_), false) => ZygoteKind::Idle,
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| failed("socketpair", e))?;
        if kind == ZygoteKind::Bare {
            process::adopt_orphans()?;
        }
        let program = (kind == ZygoteKind::Executed).then(sealed_program).transpose()?;
        match process::fork()? {
            Cloned::Parent { child } => {
                drop(theirs);
                let process = process::pidfd(child)?;
                if let (ZygoteKind::Executed, Some(around)) = (kind, &around) {
                    begin(&ours, around.isolated.as_ref())?;
                }
                Ok(Zygote { socket: Mutex::new(Some(ours)), process, kind, _network: network })
            }
            Cloned::Child => {
                drop(ours);
                match (program, &around) {
                    (Some(program), Some(around)) => execute(&program, &theirs, around),
                    _ => serve(theirs, around.as_ref()),
                }
                std::process::exit(70);
            }
        }
    }

    /// Waits until a zygote that executes rbuild anew has what it needs of the machine's files.
    pub(crate) fn wait_until_loaded(&self) -> Result<(), SandboxError> {
        if self.kind != ZygoteKind::Executed {
            return Ok(());
        }
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        match socket.as_ref().map(|socket| self.answer(socket)) {
            Some(Ok((_, BEGIN))) => Ok(()),
            _ if self.has_ended() && !process::has_exited(&self.process) => Err(self.end()),
            _ => Err(SandboxError::Runner("rbuild could not be executed once more to start commands".into())),
        }
    }

    /// Starts a runner with these: the socket for its request, the output and the errors of its command, and what the
    /// command reads, if it is to read anything. Gives a pidfd of it. When it has ended, nothing is left of what came of it,
    /// except where there are no namespaces: there, what one leaves that was killed is left to [`Zygote::sweep`].
    pub(crate) fn runner(&self, streams: &[BorrowedFd<'_>]) -> Result<OwnedFd, SandboxError> {
        if self.kind == ZygoteKind::Idle {
            return Err(SandboxError::Runner("no commands were announced when the builder was started".into()));
        }
        let mut fds = self.ask(RUNNER, streams).map_err(|e| match e {
            _ if self.has_ended() => self.end(),
            e => failed("asking for it", e),
        })?;
        match (fds.pop(), fds.is_empty()) {
            (Some(pidfd), true) => Ok(pidfd),
            _ => Err(SandboxError::Runner("it could not be forked; is there a limit on processes?".into())),
        }
    }

    fn ask(&self, what: u8, streams: &[BorrowedFd<'_>]) -> rustix::io::Result<Vec<OwnedFd>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = socket.as_ref().ok_or(rustix::io::Errno::PIPE)?;
        send_with_byte(socket, what, streams)?;
        self.answer(socket).map(|(fds, _)| fds)
    }

    /// Waits for the next message of the zygote, or for its end: the socket alone does not tell of that as long as a runner that
    /// was forked a moment ago has the other end open as well.
    fn answer(&self, socket: &OwnedFd) -> rustix::io::Result<(Vec<OwnedFd>, u8)> {
        process::wait_for_input_or_end(socket, &self.process)?;
        receive_with_byte(socket)
    }

    /// Kills what killed runners left behind, where the kernel does not.
    pub(crate) fn sweep(&self) {
        if self.kind == ZygoteKind::Bare && self.ask(SWEEP, &[]).is_err() {
            // What was the zygote's is the builder's now.
            process::kill_children();
        }
    }

    /// A pidfd of it.
    pub(crate) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(crate) fn has_ended(&self) -> bool {
        process::has_ended(&self.process)
    }

    /// The error for its end, which is to come after the builder's.
    pub(crate) fn end(&self) -> SandboxError {
        // A builder without a pid namespace waits for whatever it has adopted, this one included.
        match process::has_exited(&self.process) {
            true => SandboxError::Runner("the process that starts commands ended by itself".into()),
            false => SandboxError::Killed("the process that starts commands"),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if self.kind == ZygoteKind::Bare {
            self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
            process::wait_for_end(&self.process);
            process::kill_children();
        }
    }
}

fn failed(what: &str, e: rustix::io::Errno) -> SandboxError {
    SandboxError::Runner(format!("{what}: {e}"))
}

/// Sends one byte with these descriptors, four at most.
pub(crate) fn send_fds(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    send_with_byte(socket, RUNNER, fds)
}

fn send_with_byte(socket: impl AsFd, byte: u8, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    send_with_bytes(socket, &[byte], fds)
}

fn send_with_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// One message's descriptors; an error at the end of the stream.
pub(crate) fn receive_fds(socket: impl AsFd) -> rustix::io::Result<Vec<OwnedFd>> {
    receive_with_byte(socket).map(|(fds, _)| fds)
}

/// The next byte, and the descriptors that came with it.
pub(crate) fn receive_with_byte(socket: impl AsFd) -> rustix::io::Result<(Vec<OwnedFd>, u8)> {
    let mut byte = [0u8; 1];
    receive_with_bytes(socket, &mut byte).map(|(fds, _)| (fds, byte[0]))
}

/// The next bytes, their number, and the descriptors that came with them.
fn receive_with_bytes(socket: impl AsFd, bytes: &mut [u8]) -> rustix::io::Result<(Vec<OwnedFd>, usize)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Err(rustix::io::Errno::PIPE);
    }
    let rights =
        control.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None });
    Ok((rights.flatten().collect(), message.bytes))
}

/// Hands a new zygote what it does not inherit.
fn begin(socket: &OwnedFd, isolated: Option<&Isolated>) -> Result<(), SandboxError> {
    let fds = isolated.map(Isolated::descriptors);
    // Not an argument, which all processes see of each other.
    let key = rbuild_linux::owner_key();
    let message: Vec<u8> = [BEGIN].into_iter().chain(key.into_iter().flatten()).collect();
    send_with_bytes(socket, &message, fds.as_ref().map_or(&[][..], |fds| &fds[..]))
        .map_err(|e| failed("beginning with it", e))
}

/// Executes rbuild as [`zygote_main`], with nothing of the launcher's environment; comes back if that is not possible.
fn execute(program: &OwnedFd, socket: &OwnedFd, around: &Surroundings) {
    let recorded = if rbuild_linux::owners_are_recorded() { RECORDED } else { "" };
    let proc = if around.proc == Proc::Outer { OUTER_PROC } else { "" };
    let carrier = around.isolated.as_ref().map_or("", Isolated::carrier);
    let args = ["rbuild", ZYGOTE, recorded, proc, carrier].map(|arg| CString::new(arg).unwrap_or_default());
    // The working directory would lead out of the builder's root.
    if std::env::set_current_dir("/").is_ok() && rustix::stdio::dup2_stdin(socket).is_ok() {
        let _ = nix::unistd::fexecve(program, &args, &[] as &[&CStr]);
    }
}

/// The first argument of the program when it is to be a zygote.
pub const ZYGOTE: &str = "__zygote";
const RECORDED: &str = "--owners-recorded";
const OUTER_PROC: &str = "--outer-proc";

/// The whole life of a zygote that was executed; `args` follow [`ZYGOTE`]. Standard input is its socket.
pub fn zygote_main(args: &[OsString]) -> i32 {
    let is = |i: usize, text: &str| args.get(i).is_some_and(|arg| arg == text);
    if is(0, RECORDED) {
        rbuild_linux::record_owners();
    }
    // The kernel named it after the descriptor.
    let _ = rustix::thread::set_name(c"rbuild");
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 70 };
    let mut message = [0; 1 + size_of::<OwnerKey>()];
    let fds = match receive_with_bytes(&socket, &mut message) {
        Ok((fds, n)) if message[0] == BEGIN => {
            message[1..n].try_into().into_iter().for_each(rbuild_linux::set_owner_key);
            fds
        }
        _ => return 70,
    };
    let isolated = Isolated::from_descriptors(args.get(2).and_then(|arg| arg.to_str()).unwrap_or_default(), fds);
    let around = Surroundings { proc: if is(1, OUTER_PROC) { Proc::Outer } else { Proc::Own }, isolated };
    if send_with_byte(&socket, BEGIN, &[]).is_err() {
        return 70;
    }
    serve(socket, Some(&around));
    0
}

/// The zygote's life: until the builder closes its end, or dies.
fn serve(socket: OwnedFd, around: Option<&Surroundings>) {
    if around.is_none() {
        let _ = process::adopt_orphans();
    }
    let mut runners = Vec::new();
    while let Ok((fds, what)) = receive_with_byte(&socket) {
        let ended = process::reap();
        runners.retain(|runner| !ended.iter().any(|(pid, _)| pid == runner));
        let answered = match what {
            SWEEP => {
                kill_strays(&mut runners);
                send_with_byte(&socket, SWEEP, &[])
            }
            _ => match fork_runner(around) {
                Ok(Cloned::Child) => {
                    // Whose end tells the builder of the zygote's.
                    drop(socket);
                    std::process::exit(become_runner(fds).map_or(70, |input| runner_main(input, around)));
                }
                Ok(Cloned::Parent { child }) => {
                    runners.push(child);
                    let pidfd = process::pidfd(child);
                    drop(fds);
                    let answer: Vec<BorrowedFd<'_>> = pidfd.iter().map(|fd| fd.as_fd()).collect();
                    send_with_byte(&socket, RUNNER, &answer)
                }
                Err(_) => send_with_byte(&socket, RUNNER, &[]),
            },
        };
        if answered.is_err() {
            break;
        }
    }
    if around.is_none() {
        wait_for_runners(&runners);
        process::kill_children();
    }
}

/// How long a runner may take to end what its command has started.
const ENDING: Duration = Duration::from_secs(1);

/// Waits for the runners, which see the builder's end themselves and kill what their commands have started. Killed before that, a
/// runner would leave it to the zygote, which may be the next to be killed.
fn wait_for_runners(runners: &[u32]) {
    let end = Instant::now() + ENDING;
    for runner in runners.iter().filter_map(|pid| process::pidfd(*pid).ok()) {
        process::ends_within(&runner, end.saturating_duration_since(Instant::now()));
    }
}

/// Kills the children that are no runners, and those that come to the zygote because of that, until there is none.
fn kill_strays(runners: &mut Vec<u32>) {
    loop {
        let strays: Vec<u32> = process::children().into_iter().filter(|pid| !runners.contains(pid)).collect();
        strays.iter().for_each(|pid| process::kill(*pid));
        if strays.is_empty() {
            return;
        }
        for pid in strays {
            let _ = process::wait(pid);
        }
        let ended = process::reap();
        runners.retain(|runner| !ended.iter().any(|(pid, _)| pid == runner));
    }
}

fn fork_runner(around: Option<&Surroundings>) -> rbuild_linux::Result<Cloned> {
    if around.is_none() { process::fork() } else { process::fork_into_pid_namespace() }
}

/// Takes the streams; gives what the command is to read.
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
    fn the_end_of_a_zygote_ends_the_wait_for_its_answer_whoever_holds_its_socket() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (zygote, held) = zygote(&child);
        child.kill().unwrap();
        assert!(matches!(zygote.wait_until_loaded(), Err(SandboxError::Killed(_))));
        assert!(matches!(zygote.runner(&[]), Err(SandboxError::Killed(_))));
        child.wait().unwrap();
        drop(held);
    }

    #[test]
    fn an_answer_that_came_before_the_end_counts() {
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
