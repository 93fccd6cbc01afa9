//! SSH agent sockets for commands, with access limited to listing and using keys.
//!
//! The caller's agent socket is never mounted itself. A command gets its own socket, with the owner
//! and mode that it requested, which exists only while the command runs. The socket forwards to the
//! caller's agent or to keys held by the build. Only requests to list keys and to sign are
//! answered; requests that would modify the agent (add, remove, lock) and extensions are refused
//! here.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rbuild_linux::{OwnerRecords, RootDir, UidGid, parallel};
use rbuild_plan::RunAgent;
use rbuild_sandbox::{MountRequest, MountSource};
use rustix::event::{PollFd, PollFlags, poll};

use crate::request::AgentSource;
use crate::ssh_keys::{self, PrivateKey};

/// An agent socket. It is served until this value is dropped.
pub(crate) struct Agent {
    dir: PathBuf,
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

const NAME: &str = "agent";

/// The backend that answers the requests of a connection.
#[derive(Clone)]
enum AgentBackend {
    Socket(PathBuf),
    Keys(Vec<PrivateKey>),
}

impl Agent {
    /// Listens in the new directory `dir`. `socket` is the path of the caller's agent as seen from
    /// this mount namespace; its owner is represented as in `owners`.
    pub fn listen(
        dir: PathBuf,
        owners: &OwnerRecords,
        source: &AgentSource,
        socket: &Path,
        step: &RunAgent,
    ) -> std::io::Result<Agent> {
        // The socket gets its mode only after it has been bound, so the directory must be private.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let opened = RootDir::open(&dir)?.with_owners(owners);
        // The address of a socket has at most 107 bytes (unix(7)), and the path may be longer.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{NAME}", opened.fd().as_raw_fd()))?;
        opened.chown(OsStr::new(NAME), UidGid::new(step.uid, step.gid))?;
        std::fs::set_permissions(dir.join(NAME), std::fs::Permissions::from_mode(step.mode))?;
        let backend = match source {
            AgentSource::Socket(_) => AgentBackend::Socket(socket.to_path_buf()),
            AgentSource::Keys(keys) => AgentBackend::Keys(keys.clone()),
        };
        let (stopped, stop) = std::io::pipe()?;
        let thread = parallel::start(move || accept(&listener, &OwnedFd::from(stopped), &backend))?;
        Ok(Agent { dir, stop: Some(stop.into()), thread: Some(thread) })
    }

    /// Returns the mount of the socket at `target`.
    pub fn mount(&self, target: &str) -> MountRequest {
        MountRequest { target: target.to_string(), source: MountSource::Bind(self.dir.join(NAME)), read_only: false }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Maximum number of concurrent connections per command.
const MAX_CONNECTIONS: usize = 256;

/// A connection from a command and the thread that serves it.
struct Connection {
    shared: Arc<AgentState>,
    thread: JoinHandle<()>,
}

struct AgentState {
    ours: UnixStream,
    /// The connection to the caller's agent, once established.
    agent: OnceLock<UnixStream>,
    /// Set when the connection ends; after that, no request is forwarded.
    over: AtomicBool,
}

impl Connection {
    fn begin(ours: UnixStream, backend: &AgentBackend) -> std::io::Result<Connection> {
        let shared = Arc::new(AgentState { ours, agent: OnceLock::new(), over: AtomicBool::new(false) });
        let (own, backend) = (shared.clone(), backend.clone());
        let thread = parallel::start(move || own.serve(&backend))?;
        Ok(Connection { shared, thread })
    }

    fn end(self) {
        self.shared.end();
        let _ = self.thread.join();
    }
}

/// Serves each connection on its own thread until the other end of `stopped` is closed, then
/// ends all connections.
fn accept(listener: &UnixListener, stopped: &OwnedFd, backend: &AgentBackend) {
    let mut open: Vec<Connection> = Vec::new();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        }
        if !fds[1].revents().is_empty() {
            break;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        open.retain(|connection| !connection.thread.is_finished());
        if open.len() < MAX_CONNECTIONS
            && let Ok(connection) = Connection::begin(stream, backend)
        {
            open.push(connection);
        }
    }
    open.into_iter().for_each(Connection::end);
}

impl AgentState {
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        for stream in std::iter::once(&self.ours).chain(self.agent.get()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers requests until either side ends the connection.
    fn serve(&self, backend: &AgentBackend) {
        match backend {
            AgentBackend::Keys(keys) => self.answer(|message| Some(ssh_keys::reply(message, keys))),
            AgentBackend::Socket(path) => {
                if let Ok(agent) = connect(path) {
                    let agent = self.agent.get_or_init(|| agent);
                    self.answer(|message| ask(agent, message));
                }
            }
        }
        self.end();
    }

    /// Answers each message with the result of `reply`. Stops if `reply` returns `None`.
    fn answer(&self, reply: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        while let Some(message) = receive(&self.ours) {
            // A request must not be forwarded after the end of the connection, even if it was
            // received before: nothing would interrupt the wait for the agent's answer.
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let reply = if ssh_keys::is_passed_on(&message) { reply(&message) } else { Some(ssh_keys::refusal()) };
            if reply.and_then(|reply| send(&self.ours, &reply)).is_none() {
                return;
            }
        }
    }
}

/// Time limit for connecting to the caller's agent. After that, the agent counts as unavailable.
const PATIENCE: Duration = Duration::from_secs(5);

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

fn ask(agent: &UnixStream, message: &[u8]) -> Option<Vec<u8>> {
    send(agent, message)?;
    receive(agent)
}

/// Maximum length of a message. The protocol does not allow longer ones (draft-ietf-sshm-ssh-agent,
/// section 3).
const MAX_MESSAGE: usize = 256 * 1024;

/// Reads one message and strips its length. Returns `None` at the end of the stream and for an
/// invalid length.
fn receive(mut stream: &UnixStream) -> Option<Vec<u8>> {
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).ok()?;
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > MAX_MESSAGE {
        return None;
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn send(mut stream: &UnixStream, message: &[u8]) -> Option<()> {
    let framed = [&(message.len() as u32).to_be_bytes()[..], message].concat();
    stream.write_all(&framed).ok()
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    /// Starts an agent that echoes every message; returns the types of the messages it received.
    fn echo(path: &Path) -> JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            while let Some(message) = receive(&stream) {
                seen.push(message[0]);
                send(&stream, &message).unwrap();
            }
            seen
        })
    }

    #[test]
    fn only_listing_and_signing_reach_the_agent() {
        let dir = Scratch::new();
        let agent = echo(&dir.join("sock"));
        let (command, ours) = UnixStream::pair().unwrap();
        let connection = Connection::begin(ours, &AgentBackend::Socket(dir.join("sock"))).unwrap();
        for kind in 0..=255u8 {
            send(&command, &[kind, 1, 2]).unwrap();
            let expected = if matches!(kind, 11 | 13) { vec![kind, 1, 2] } else { vec![5] };
            assert_eq!(receive(&command).unwrap(), expected, "{kind}");
        }
        connection.end();
        assert_eq!(agent.join().unwrap(), [11, 13]);
    }

    #[test]
    fn invalid_agent_messages_close_the_connection() {
        for length in [0, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let (mut command, ours) = UnixStream::pair().unwrap();
            let connection = Connection::begin(ours, &AgentBackend::Keys(Vec::new())).unwrap();
            command.write_all(&length.to_be_bytes()).unwrap();
            assert_eq!(command.read(&mut [0; 8]).unwrap(), 0);
            connection.end();
        }
    }

    #[test]
    fn a_hung_agent_does_not_delay_the_end_of_a_step() {
        let dir = Scratch::new();
        let listener = UnixListener::bind(dir.join("sock")).unwrap();
        let (command, ours) = UnixStream::pair().unwrap();
        let connection = Connection::begin(ours, &AgentBackend::Socket(dir.join("sock"))).unwrap();
        send(&command, &[11]).unwrap();
        let (agent, _) = listener.accept().unwrap();
        assert_eq!(receive(&agent).unwrap(), [11]);
        connection.end();
    }
}
