//! ssh agents for commands: a socket of the build's own, behind which keys can be listed and used.
//!
//! The caller's agent is never mounted itself. The command gets a socket with the owner and mode it asked for, which
//! is gone when the command is; behind it is the caller's agent, or keys that the build holds. Only requests to list keys and to
//! sign get through: what would change the agent (add, remove, lock), and extensions, are refused here.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rbuild_linux::RootDir;
use rbuild_plan::AgentStep;
use rbuild_sandbox::{MountRequest, Source};
use rustix::event::{PollFd, PollFlags, poll};

use crate::private_key::{self, PrivateKey};
use crate::request::AgentSource;

/// A socket that is served until this is dropped.
pub(crate) struct Agent {
    dir: PathBuf,
    /// Its closing ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

const NAME: &str = "agent";

/// What answers at the other end of one connection.
#[derive(Clone)]
enum Behind {
    Socket(PathBuf),
    Keys(Vec<PrivateKey>),
}

impl Agent {
    /// Listens in the new directory `dir`. `socket` is where the caller's agent is in this world.
    pub fn listen(dir: PathBuf, source: &AgentSource, socket: &Path, step: &AgentStep) -> std::io::Result<Agent> {
        // The socket has its mode a moment after it is there.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let path = dir.join(NAME);
        let listener = UnixListener::bind(&path)?;
        let io = |e: rbuild_linux::Error| std::io::Error::other(e.to_string());
        RootDir::open(&dir).and_then(|dir| dir.chown(OsStr::new(NAME), step.uid, step.gid)).map_err(io)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(step.mode))?;
        let behind = match source {
            AgentSource::Socket(_) => Behind::Socket(socket.to_path_buf()),
            AgentSource::Keys(keys) => Behind::Keys(keys.clone()),
        };
        let (stopped, stop) = std::io::pipe()?;
        let thread = std::thread::Builder::new()
            .name("ssh-agent".into())
            .spawn(move || accept(&listener, &OwnedFd::from(stopped), &behind))?;
        Ok(Agent { dir, stop: Some(stop.into()), thread: Some(thread) })
    }

    pub fn mount(&self, target: &str) -> MountRequest {
        MountRequest { target: target.to_string(), source: Source::Bind(self.dir.join(NAME)), read_only: false }
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

/// Connections of one command that are served at a time.
const MOST_CONNECTIONS: usize = 256;

/// A conversation with a command, as whoever ends it sees it.
struct Connection {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    ours: UnixStream,
    /// The caller's agent, once it is connected.
    agent: OnceLock<UnixStream>,
    /// Nothing more is to be asked.
    over: AtomicBool,
}

impl Connection {
    fn begin(ours: UnixStream, behind: &Behind) -> std::io::Result<Connection> {
        let shared = Arc::new(Shared { ours, agent: OnceLock::new(), over: AtomicBool::new(false) });
        let (own, behind) = (shared.clone(), behind.clone());
        let thread = std::thread::Builder::new().name("ssh-agent".into()).spawn(move || own.serve(&behind))?;
        Ok(Connection { shared, thread })
    }

    fn end(self) {
        self.shared.end();
        let _ = self.thread.join();
    }
}

/// Serves connections, each on a thread of its own, until the other end of `stopped` closes; then ends them all.
fn accept(listener: &UnixListener, stopped: &OwnedFd, behind: &Behind) {
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
        if open.len() < MOST_CONNECTIONS
            && let Ok(connection) = Connection::begin(stream, behind)
        {
            open.push(connection);
        }
    }
    open.into_iter().for_each(Connection::end);
}

impl Shared {
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        for stream in std::iter::once(&self.ours).chain(self.agent.get()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers until either side ends.
    fn serve(&self, behind: &Behind) {
        match behind {
            Behind::Keys(keys) => self.answer(|message| Some(private_key::reply(message, keys))),
            Behind::Socket(path) => {
                if let Ok(agent) = connect(path) {
                    let agent = self.agent.get_or_init(|| agent);
                    self.answer(|message| ask(agent, message));
                }
            }
        }
        self.end();
    }

    /// Answers each message with what `reply` says, as long as it says something.
    fn answer(&self, reply: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        while let Some(message) = receive(&self.ours) {
            // What came before the end is not asked after it: nobody would end the wait for the agent.
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let reply =
                if private_key::is_passed_on(&message) { reply(&message) } else { Some(private_key::refusal()) };
            if reply.and_then(|reply| send(&self.ours, &reply)).is_none() {
                return;
            }
        }
    }
}

/// A caller's agent that does not accept connections for this long is none.
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

/// A message of the agent protocol is longer than this only if it is none (draft-ietf-sshm-ssh-agent, section 3).
const MAX_MESSAGE: usize = 256 * 1024;

/// One message without its length; none at the end, and of what is no message.
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
    use super::*;

    /// An agent that answers every message with its own bytes, and the types of the messages that reached it.
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

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rbuild-agent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn keys_can_be_listed_and_used_and_nothing_else_arrives() {
        let dir = scratch("filter");
        let agent = echo(&dir.join("sock"));
        let (command, ours) = UnixStream::pair().unwrap();
        let connection = Connection::begin(ours, &Behind::Socket(dir.join("sock"))).unwrap();
        for kind in 0..=255u8 {
            send(&command, &[kind, 1, 2]).unwrap();
            let expected = if matches!(kind, 11 | 13) { vec![kind, 1, 2] } else { vec![5] };
            assert_eq!(receive(&command).unwrap(), expected, "{kind}");
        }
        connection.end();
        assert_eq!(agent.join().unwrap(), [11, 13]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_no_message_ends_the_connection() {
        let dir = scratch("length");
        for length in [0, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let (mut command, ours) = UnixStream::pair().unwrap();
            let connection = Connection::begin(ours, &Behind::Keys(Vec::new())).unwrap();
            command.write_all(&length.to_be_bytes()).unwrap();
            assert_eq!(command.read(&mut [0; 8]).unwrap(), 0);
            connection.end();
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_agent_that_does_not_answer_holds_nobody_up_at_the_end() {
        let dir = scratch("silent");
        let listener = UnixListener::bind(dir.join("sock")).unwrap();
        let (command, ours) = UnixStream::pair().unwrap();
        let connection = Connection::begin(ours, &Behind::Socket(dir.join("sock"))).unwrap();
        send(&command, &[11]).unwrap();
        let (agent, _) = listener.accept().unwrap();
        assert_eq!(receive(&agent).unwrap(), [11]);
        connection.end();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
