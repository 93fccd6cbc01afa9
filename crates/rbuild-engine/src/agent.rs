//! ssh agents for commands: a socket of the build's own that passes everything on.
//!
//! The caller's agent is never mounted itself. The command gets a socket with the owner and mode it asked for, which
//! is gone when the command is; behind it is the caller's agent, or keys that the build holds.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

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
        std::fs::create_dir_all(&dir)?;
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

/// Serves connections, each on a thread of its own, until the other end of `stopped` closes; then ends them all.
fn accept(listener: &UnixListener, stopped: &OwnedFd, behind: &Behind) {
    let mut open: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
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
        open.retain(|(_, thread)| !thread.is_finished());
        let Ok(handle) = stream.try_clone() else { continue };
        let behind = behind.clone();
        if let Ok(thread) = std::thread::Builder::new().name("ssh-agent".into()).spawn(move || serve(stream, &behind)) {
            open.push((handle, thread));
        }
    }
    for (stream, thread) in open {
        let _ = stream.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

fn serve(stream: UnixStream, behind: &Behind) {
    match behind {
        Behind::Keys(keys) => answer(stream, keys),
        Behind::Socket(path) => {
            if let Ok(agent) = UnixStream::connect(path) {
                pass_on(&stream, &agent);
            }
        }
    }
}

/// Both ways, until either side ends.
fn pass_on(ours: &UnixStream, agent: &UnixStream) {
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(ours, agent), (agent, ours)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
    });
}

/// A message of the agent protocol is longer than this only if it is none (draft-ietf-sshm-ssh-agent, section 3).
const MAX_MESSAGE: usize = 256 * 1024;

/// Speaks the agent protocol for keys that the build holds.
fn answer(mut stream: UnixStream, keys: &[PrivateKey]) {
    let mut length = [0u8; 4];
    while stream.read_exact(&mut length).is_ok() {
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 || length > MAX_MESSAGE {
            return;
        }
        let mut message = vec![0; length];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        let reply = private_key::reply(&message, keys);
        let framed = [&(reply.len() as u32).to_be_bytes()[..], &reply].concat();
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}
