//! The protocol between builder and runner: JSON over one socket.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rbuild_container::{Capabilities, NetworkMode, SecurityMode, TmpfsOptions, Ulimit};
use rbuild_linux::fd_passing::send_fds;
use rbuild_linux::process::{self, Exit};
use rbuild_linux::{RootDir, UidGid, clock, described};
use serde::{Deserialize, Serialize};

use crate::error::{RunnerError, RunnerProblem};

/// A command, its user and its privileges.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandRequest {
    /// The way in which its container runs.
    pub mode: RunnerMode,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// Working directory in the container.
    pub cwd: String,
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Limits on the resources of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Standard input.
    pub input: Input,
    /// Privileges.
    pub privileges: Privileges,
    /// True if the first process of the container is a small one that forwards signals to the
    /// command and reaps processes. Without a PID namespace of the container, it has no effect.
    pub init: bool,
}

/// Privileges of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Security mode.
    pub security: SecurityMode,
    /// Capabilities of root. Other users have none, but may regain them through set-uid programs.
    /// `None` for those of the security mode; the user of an insecure command then has all.
    pub capabilities: Option<Capabilities>,
    /// True if set-uid programs give no privileges.
    pub no_new_privileges: bool,
}

impl Privileges {
    /// Returns the privileges of a step of a build.
    pub fn of_step(security: SecurityMode) -> Privileges {
        Privileges { security, capabilities: None, no_new_privileges: false }
    }
}

impl CommandRequest {
    pub(crate) fn is_emulated(&self) -> bool {
        self.mode == RunnerMode::Emulated
    }

    pub(crate) fn is_insecure(&self) -> bool {
        self.privileges.security == SecurityMode::Insecure
    }

    /// Returns the capabilities of root.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let usual = if self.is_insecure() { Capabilities::ALL } else { Capabilities::DOCKER };
        let all = self.privileges.capabilities.unwrap_or(usual);
        // To the kernel, an emulated user is root. Which of Docker's it may use is emulated, too.
        let is_emulated_user = self.is_emulated() && self.uid != 0 && !self.keeps_capabilities();
        if is_emulated_user { all.intersection(Capabilities::DOCKER) } else { all }
    }

    /// Returns true if root lacks capabilities that Docker's has by default.
    pub(crate) fn lacks_capabilities(&self) -> bool {
        self.capabilities().intersection(Capabilities::DOCKER) != Capabilities::DOCKER
    }

    /// Returns true if users other than root have the capabilities, too.
    pub(crate) fn keeps_capabilities(&self) -> bool {
        self.is_insecure() && self.privileges.capabilities.is_none()
    }

    /// Returns the owner of the command's streams; `None` for root.
    pub(crate) fn owner_of_streams(&self) -> Option<UidGid> {
        (self.uid != 0 && !self.is_emulated()).then(|| UidGid::new(self.uid, self.gid))
    }

    /// Returns the command's user and group ID in the kernel.
    pub(crate) fn kernel_ids(&self) -> UidGid {
        if self.is_emulated() { UidGid::ROOT } else { UidGid::new(self.uid, self.gid) }
    }
}

/// One command in one container. All paths outside of the container are in the builder's root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    /// The command.
    pub command: CommandRequest,
    /// The root file system.
    pub files: RootFiles,
    /// True if the command must not write to the root file system.
    pub read_only: bool,
    /// Host name.
    pub hostname: String,
    /// Mounts besides those that every container has, in the order in which they are made.
    pub mounts: Vec<MountRequest>,
    /// Network mode.
    pub network: NetworkMode,
    /// Size of /dev/shm in bytes.
    pub shm_size: u64,
    /// True if the runner sends a pidfd of the container's first process once it is started.
    pub announced: bool,
    /// Content of /etc/hosts.
    pub hosts: String,
    /// Content of /etc/resolv.conf.
    pub resolv_conf: String,
}

/// The way in which a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunnerMode {
    /// In a container.
    Container,
    /// In a container that maps only root: file owners are recorded, and the command's IDs are
    /// emulated.
    Emulated,
    /// In another root directory and nothing more.
    Chroot,
}

impl RunnerMode {
    /// All ways.
    const ALL: [RunnerMode; 3] = [RunnerMode::Container, RunnerMode::Emulated, RunnerMode::Chroot];

    /// Returns the way with that name of the isolation mode.
    pub fn of_name(name: &str) -> Option<RunnerMode> {
        RunnerMode::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Returns the name of the isolation mode.
    pub fn name(self) -> &'static str {
        match self {
            RunnerMode::Container => "userns",
            RunnerMode::Emulated => "single-id",
            RunnerMode::Chroot => "chroot",
        }
    }
}

/// The root file system of a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RootFiles {
    /// An overlay, which the runner mounts.
    Overlay {
        /// Trees below the step, the topmost first.
        lowers: Vec<PathBuf>,
        /// Receives the changes of the command.
        upper: PathBuf,
        /// An empty directory on the same file system as `upper`, for the overlay and for mount
        /// points that the root file system lacks. Its contents can be discarded afterwards.
        scratch: PathBuf,
    },
    /// A directory that is written to directly. Missing mount points are created in `scratch`, an
    /// empty directory, and then in `root`: see [`crate::remove_mount_points`].
    Directory { root: PathBuf, scratch: PathBuf },
}

impl RootFiles {
    /// Returns the path of the scratch directory.
    pub fn scratch(&self) -> &PathBuf {
        match self {
            RootFiles::Overlay { scratch, .. } | RootFiles::Directory { scratch, .. } => scratch,
        }
    }

    /// Opens the scratch directory.
    pub fn open_scratch(&self) -> rbuild_linux::Result<RootDir> {
        let place = "the command's temporary files";
        Ok(RootDir::open(self.scratch()).map_err(|e| e.within(place))?.named(place))
    }

    /// Replaces the scratch directory for another command.
    pub fn renew(&mut self, empty: PathBuf) {
        match self {
            RootFiles::Overlay { scratch, .. } | RootFiles::Directory { scratch, .. } => *scratch = empty,
        }
    }
}

/// The input of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// An input without content.
    Nothing,
    /// A descriptor that is passed to the runner.
    Given,
    /// A pseudoterminal in the container, for input and output.
    Terminal,
}

/// A mount of a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountRequest {
    /// Absolute path in the container.
    pub target: String,
    /// The content.
    pub source: MountSource,
    /// True if the command must not write to the mount.
    pub read_only: bool,
}

impl MountRequest {
    /// Returns true for a tmpfs at /dev, which every container has.
    pub(crate) fn is_of_dev(&self) -> bool {
        matches!(self.source, MountSource::Tmpfs(_)) && Path::new(&self.target) == Path::new("/dev")
    }
}

/// The content of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the builder, shown directly.
    Bind(PathBuf),
    /// A directory below one of the builder's, resolved without leaving that one.
    BindBelow { dir: PathBuf, path: PathBuf },
    /// A directory of the host, which must not change.
    Machine(PathBuf),
    /// A path inside one of the builder's directories, resolved without leaving it.
    Part { dir: PathBuf, path: PathBuf },
    /// A path inside a stack of trees (topmost first). Unless the mount is read-only, writes go to
    /// a directory that is discarded.
    Trees { lowers: Vec<PathBuf>, path: PathBuf },
    /// An empty tmpfs.
    Tmpfs(TmpfsOptions),
    /// A file that exists only in the container's own memory (a tmpfs).
    File { content: Vec<u8>, mode: u32, uid: u32, gid: u32 },
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandOutcome {
    /// Exited with this code.
    Exited(i32),
    /// A signal with this number killed it.
    Signaled(i32),
    /// Not started.
    NotStarted(RunnerError),
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnd {
    /// The outcome.
    pub outcome: CommandOutcome,
    /// Time of the end, from [`rbuild_linux::clock::monotonic_nanoseconds`]. Orders the ends of
    /// concurrent commands.
    pub at: u64,
}

/// A message of a runner: any number of warnings, one when the command has ended, one when the
/// runner has cleaned up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A warning of a library, for the debug log.
    Warned(String),
    Ended(CommandEnd),
    /// Success, or the reason of the failure.
    Finished(Result<(), RunnerError>),
}

impl Report {
    /// Reports a command that has just ended.
    pub fn of_end(exit: Exit) -> Report {
        let outcome = match exit {
            Exit::Code(code) => CommandOutcome::Exited(code),
            Exit::Signal(signal) => CommandOutcome::Signaled(signal),
        };
        Report::Ended(CommandEnd { outcome, at: clock::monotonic_nanoseconds() })
    }

    /// Sends the report as one line of JSON.
    pub fn send(&self, mut socket: &UnixStream) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        line.push(b'\n');
        socket.write_all(&line)
    }
}

/// Sends a pidfd of the command's first process to the builder.
pub(crate) fn announce(pid: u32, socket: &UnixStream) -> Result<(), RunnerProblem> {
    let pidfd = process::pidfd(pid)?;
    send_fds(socket, &[pidfd.as_fd()]).map_err(RunnerProblem::of_call("sendmsg", described("the builder process")))
}
