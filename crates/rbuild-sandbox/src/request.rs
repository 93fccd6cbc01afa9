//! What the builder asks a runner to do, and what the runner answers; JSON over one socket.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rbuild_linux::process::{self, Exit};
use serde::{Deserialize, Serialize};

/// One command in one container. All paths outside of the container are the builder's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    pub files: Files,
    /// Nothing but another root directory.
    pub bare: bool,
    /// Owners are written down, and the command's ids are those that it pretends to have.
    pub recorded: bool,
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub hostname: String,
    pub mounts: Vec<MountRequest>,
    pub network: Network,
    /// All capabilities of the namespace, and nothing of /proc masked.
    pub insecure: bool,
    /// Bytes of /dev/shm.
    pub shm_size: u64,
    pub ulimits: Vec<Ulimit>,
    pub input: Input,
    /// Contents of the files that are bound over /etc/hosts and /etc/resolv.conf.
    pub hosts: String,
    pub resolv_conf: String,
}

/// The root file system of a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Files {
    Overlay {
        /// Trees below the step, the topmost first.
        lowers: Vec<PathBuf>,
        /// Receives what the command writes.
        upper: PathBuf,
        /// An empty directory on the same file system as `upper`, for the overlay and for mount points that the
        /// root file system lacks. Its content is of no use afterwards.
        scratch: PathBuf,
    },
    /// A directory that is written to. Mount points that it lacks are made in `scratch`, an empty directory, and then
    /// in it: see [`crate::remove_points`].
    Directory { root: PathBuf, scratch: PathBuf },
}

impl Files {
    pub fn scratch(&self) -> &PathBuf {
        match self {
            Files::Overlay { scratch, .. } | Files::Directory { scratch, .. } => scratch,
        }
    }

    /// The same for another command, with an empty directory for its own use.
    pub fn renew(&mut self, empty: PathBuf) {
        match self {
            Files::Overlay { scratch, .. } | Files::Directory { scratch, .. } => *scratch = empty,
        }
    }
}

/// What a command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    Nothing,
    /// A descriptor that is passed on to it.
    Given,
    /// A terminal of the container's own, for input and output.
    Terminal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// The network of whoever started the build.
    Host,
    /// The build's own ([`crate::Carrier`]).
    Isolated,
    /// A loopback interface and nothing else.
    None,
}

/// A limit on what a process may use (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Upper case and with its prefix, `RLIMIT_NOFILE`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountRequest {
    /// Absolute path in the container.
    pub target: String,
    pub source: Source,
    pub read_only: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    /// A file or directory of the builder's, as it is.
    Bind(PathBuf),
    /// A directory below one of the builder's, found without leaving that one.
    BindBelow {
        dir: PathBuf,
        path: PathBuf,
    },
    /// A directory of the machine's own, which has to stay what it is.
    Machine(PathBuf),
    /// A path inside one of the builder's directories, found without leaving it.
    Part {
        dir: PathBuf,
        path: PathBuf,
    },
    /// A path inside a stack of trees (the topmost first). Unless the mount is read-only, what is written goes to
    /// a directory that is thrown away.
    Trees {
        lowers: Vec<PathBuf>,
        path: PathBuf,
    },
    Tmpfs {
        size: Option<u64>,
    },
    /// A file that is nowhere but in the container's own memory.
    File {
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Exited(i32),
    Signaled(i32),
    /// The command was never started; why, in a sentence.
    NotStarted(String),
}

/// A command that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub outcome: Outcome,
    /// The moment, as [`rbuild_linux::process::moment`] has it: of several that ended side by side it tells which was first.
    pub at: u64,
}

/// A message of a runner: any number of warnings, one when the command has ended, one when the runner has cleaned up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A warning of a library, for the debug log.
    Warned(String),
    Ended(Ended),
    /// Success, or the reason of the failure as a sentence.
    Finished(Result<(), String>),
}

impl Report {
    /// Of a command that has ended just now.
    pub fn of_end(exit: Exit) -> Report {
        let outcome = match exit {
            Exit::Code(code) => Outcome::Exited(code),
            Exit::Signal(signal) => Outcome::Signaled(signal),
        };
        Report::Ended(Ended { outcome, at: process::moment() })
    }

    pub fn send(&self, mut socket: &UnixStream) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        line.push(b'\n');
        socket.write_all(&line)
    }
}
