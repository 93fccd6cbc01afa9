//! Where runners come from: a process that the builder forks off before its first thread.
//!
//! A runner must have one thread and come quickly, and the builder has many. So a copy of the builder waits, with
//! one thread, for three descriptors on a socket, forks a runner that has them as its standard streams, and
//! answers with a pidfd. No program is executed for it: the builder's small root holds none.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rbuild_linux::process::{self, Cloned};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::SandboxError;
use crate::container::runner_main;
use crate::network::Isolated;

/// The builder's end.
#[derive(Debug)]
pub struct Zygote {
    socket: Mutex<OwnedFd>,
    /// The network that commands see in /sys; kept, not used.
    _network: Option<OwnedFd>,
}

impl Zygote {
    /// Forks the zygote, whose runners may join the isolated network. The caller must have one thread still. In a pid namespace the kernel ends what is left; where
    /// there is none (`bare`), the zygote does.
    pub(crate) fn start(
        bare: bool,
        isolated: Option<Isolated>,
        network: Option<OwnedFd>,
    ) -> Result<Zygote, SandboxError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| failed("socketpair", e))?;
        match process::fork()? {
            Cloned::Parent { .. } => Ok(Zygote { socket: Mutex::new(ours), _network: network }),
            Cloned::Child => {
                drop(ours);
                serve(&theirs, bare, isolated.as_ref());
                std::process::exit(0);
            }
        }
    }

    /// Starts a runner with these: the socket for its request, the output and the errors of its command, and what the
    /// command reads, if it is to read anything. Gives a pidfd of it.
    pub fn runner(&self, streams: &[BorrowedFd<'_>]) -> Result<OwnedFd, SandboxError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send_fds(&*socket, streams).map_err(|e| failed("asking for it", e))?;
        let mut fds = receive_fds(&*socket).map_err(|e| failed("being given it", e))?;
        match (fds.pop(), fds.is_empty()) {
            (Some(pidfd), true) => Ok(pidfd),
            _ => Err(SandboxError::Runner("it could not be forked; is there a limit on processes?".into())),
        }
    }
}

fn failed(what: &str, e: rustix::io::Errno) -> SandboxError {
    SandboxError::Runner(format!("{what}: {e}"))
}

/// Sends one byte with these descriptors, four at most.
pub(crate) fn send_fds(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(b"r")], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// One message's descriptors; an error at the end of the stream.
pub(crate) fn receive_fds(socket: impl AsFd) -> rustix::io::Result<Vec<OwnedFd>> {
    receive_with_byte(socket).map(|(fds, _)| fds)
}

/// The next byte, and the descriptors that came with it.
pub(crate) fn receive_with_byte(socket: impl AsFd) -> rustix::io::Result<(Vec<OwnedFd>, u8)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Err(rustix::io::Errno::PIPE);
    }
    let rights =
        control.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None });
    Ok((rights.flatten().collect(), byte[0]))
}

/// The zygote's life: until the builder closes its end, or dies.
fn serve(socket: &OwnedFd, bare: bool, isolated: Option<&Isolated>) {
    if bare {
        // Dies with its parent all the same: then the socket closes.
        let _ = process::adopt_orphans();
        serve_requests(socket, &mut Some(Vec::new()), isolated);
        process::kill_children();
    } else {
        let _ = process::die_with_parent();
        serve_requests(socket, &mut None, isolated);
    }
}

/// How often strays are looked for.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Waits for the next request; meanwhile kills the children that are not among the runners, which are what killed
/// runners left behind.
fn wait_for_request(socket: &OwnedFd, runners: &[u32]) -> bool {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
        process::reap();
        process::children().iter().filter(|pid| !runners.contains(pid)).for_each(|pid| process::kill(*pid));
    }
}

fn serve_requests(socket: &OwnedFd, runners: &mut Option<Vec<u32>>, isolated: Option<&Isolated>) {
    loop {
        if let Some(runners) = runners
            && !wait_for_request(socket, runners)
        {
            return;
        }
        let Ok(fds) = receive_fds(socket) else { return };
        process::reap();
        match process::fork() {
            Ok(Cloned::Child) => {
                let code = match become_runner(fds) {
                    Ok(input) => runner_main(input, isolated),
                    Err(_) => 70,
                };
                std::process::exit(code);
            }
            Ok(Cloned::Parent { child }) => {
                if let Some(runners) = runners {
                    runners.push(child);
                }
                let pidfd = process::pidfd(child);
                drop(fds);
                let answer: Vec<BorrowedFd<'_>> = pidfd.iter().map(|fd| fd.as_fd()).collect();
                if send_fds(socket, &answer).is_err() {
                    return;
                }
            }
            Err(_) => {
                if send_fds(socket, &[]).is_err() {
                    return;
                }
            }
        }
    }
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
