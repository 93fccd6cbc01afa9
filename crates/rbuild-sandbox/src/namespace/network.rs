//! Isolated network of a build, with outbound access.
//!
//! The network namespace belongs to the build and is shared by its commands. Traffic is carried by
//! a program of the host, pasta or slirp4netns, which runs in the builder's PID namespace and ends
//! with it. That program sees the host like its caller; commands see an interface that it creates.

mod forwarding;

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rbuild_linux::fd_passing::{receive_with_byte, send_fds, send_with_byte};
use rustix::fs::Access;
use rustix::io::Errno;

use rbuild_linux::namespaces::enter_loopback_network;
use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{Error, RootDir, attach_mount, bind_clone, described, mount_tmpfs, private_mount_namespace};

use rbuild_container::PublishedPort;
use rbuild_remedy::{MachineRemedy, NetworkObstacle};

use crate::SandboxError;
use crate::error::{Phase, PhaseContext, Refusal, RunnerProblem, refusal};
use crate::namespace::machine::in_path;
use crate::namespace::network::forwarding::TIMEOUT;

/// The program that carries traffic in and out.
#[derive(Debug, Clone)]
pub struct Carrier {
    path: PathBuf,
    kind: CarrierKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CarrierKind {
    Pasta,
    Slirp,
}

impl CarrierKind {
    fn name(self) -> &'static str {
        match self {
            CarrierKind::Pasta => "pasta",
            CarrierKind::Slirp => "slirp4netns",
        }
    }
}

/// Names of the carrier's files.
const NAMESPACE: &str = "net";
const API: &str = "api";

const TUN: &str = "/dev/net/tun";

impl Carrier {
    /// Finds an installed carrier, and fails if it could not work. `forwards` is true if it
    /// forwards ports.
    pub fn find(forwards: bool) -> Result<Carrier, Refusal> {
        // The device through which the commands' interface is created.
        usable(Carrier::installed(forwards), rustix::fs::access(TUN, Access::READ_OK | Access::WRITE_OK))
    }

    /// Prefers pasta, because slirp4netns is slower, unless pasta is too old. To forward ports,
    /// prefers slirp4netns, which reports the ports that it cannot open.
    fn installed(forwards: bool) -> Option<Carrier> {
        let found = |name: &str, kind| in_path(name).map(|path| Carrier { path, kind });
        let (pasta, slirp) = (found("pasta", CarrierKind::Pasta), found("slirp4netns", CarrierKind::Slirp));
        pasta.filter(|pasta| slirp.is_none() || (!forwards && is_new(&pasta.version()))).or(slirp)
    }

    /// Returns the version as the program prints it, empty if it cannot be started.
    fn version(&self) -> String {
        let asked = std::process::Command::new(&self.path).arg("--version").stdin(std::process::Stdio::null()).output();
        asked.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
    }

    /// Returns the name of the program.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Returns the address of the carrier's name server, which forwards to the host's.
    pub fn nameserver(&self) -> &'static str {
        match self.kind {
            CarrierKind::Pasta => "169.254.1.1",
            CarrierKind::Slirp => "10.0.2.3",
        }
    }

    /// Returns arguments that forward only these ports of the host and make its loopback addresses
    /// unreachable. Files of the carrier are in `place`.
    fn arguments(&self, place: &Path, ports: &[PublishedPort]) -> Result<Vec<CString>, NulError> {
        let (namespace, api) = (place.join(NAMESPACE), place.join(API));
        let namespace = namespace.as_os_str().as_bytes();
        let forwarded = match self.kind {
            CarrierKind::Pasta => forwarding::pasta_arguments(ports),
            CarrierKind::Slirp => Vec::new(),
        };
        let words: Vec<&[u8]> = match self.kind {
            CarrierKind::Pasta => vec![
                b"pasta",
                b"--config-net",
                b"--quiet",
                b"--foreground",
                b"--runas",
                b"0",
                b"--netns-only",
                b"--no-map-gw",
                b"-T",
                b"none",
                b"-U",
                b"none",
                b"--dns-forward",
                self.nameserver().as_bytes(),
                b"--netns",
                namespace,
            ],
            CarrierKind::Slirp => vec![
                b"slirp4netns",
                b"--configure",
                b"--mtu=65520",
                b"--disable-host-loopback",
                b"--api-socket",
                api.as_os_str().as_bytes(),
                b"--netns-type=path",
                namespace,
                b"tap0",
            ],
        };
        words.into_iter().chain(forwarded.iter().map(String::as_bytes)).map(CString::new).collect()
    }
}

/// Returns the carrier if an isolated network is possible with it and with this access to the TUN
/// device.
fn usable(installed: Option<Carrier>, tun: Result<(), Errno>) -> Result<Carrier, Refusal> {
    let carrier = installed.ok_or_else(|| {
        refusal(
            "an isolated network requires `pasta` or `slirp4netns`; neither is installed",
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoCarrier),
        )
    })?;
    match tun {
        Ok(()) => Ok(carrier),
        Err(Errno::NOENT) => Err(refusal(
            format!("an isolated network requires `{TUN}`, which does not exist on this machine"),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoTun),
        )),
        Err(e) => Err(refusal(
            format!("an isolated network requires `{TUN}`, which this user cannot open"),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::DeniedTun),
        )
        .because(e)),
    }
}

/// Returns true for versions of pasta from 2024 or later: the one of March 2023 duplicates and
/// loses data on Linux 6.18. A version contains a date, `2024_12_11` or `20230309`.
fn is_new(version: &str) -> bool {
    let year = |at: usize| version.get(at..at + 4)?.parse::<u32>().ok().filter(|year| (2019..2100).contains(year));
    (0..version.len()).find_map(year).is_some_and(|year| year >= 2024)
}

/// A network namespace with outbound access.
#[derive(Debug)]
pub(crate) struct Isolated {
    namespace: OwnedFd,
    carrier: &'static str,
    /// The carrier's output.
    log: File,
}

impl Isolated {
    /// Starts the carrier, and waits until it forwards the ports. The caller must be
    /// single-threaded and still have the host's root. `place` is a host directory, which is
    /// covered in the carrier's mount namespace only.
    pub(crate) fn start(carrier: &Carrier, place: &Path, ports: &[PublishedPort]) -> Result<Isolated, SandboxError> {
        let namespace = new_namespace()?;
        let log = rustix::fs::memfd_create("carrier", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| Error::new("memfd_create", described("a file in memory"), e))?;
        let isolated = Isolated { namespace, carrier: carrier.name(), log: log.into() };
        let pipe = || std::io::pipe().map_err(|e| Error::new("pipe2", described("a pipe"), e));
        let ((mut apart, ready), (mut forwarded, result)) = (pipe()?, pipe()?);
        let child = match process::fork()? {
            Cloned::Child => {
                drop((apart, forwarded));
                let Err(error) = isolated.become_carrier(carrier, ports, place, ready, result);
                let _ = writeln!(&isolated.log, "{error}");
                std::process::exit(127);
            }
            Cloned::Parent { child } => child,
        };
        drop((ready, result));
        // Wait until the carrier has its own mount namespace: until then, changing the root here
        // would change its root as well.
        let _ = apart.read(&mut [0]);
        if !ports.is_empty() && carrier.kind == CarrierKind::Slirp {
            forwarding::result(&mut forwarded).during(Phase::Namespaces)?;
            process::wait(child)?;
        }
        Ok(isolated)
    }

    /// Returns the carrier's name.
    pub(crate) fn carrier(&self) -> &'static str {
        self.carrier
    }

    /// Returns the descriptors that another process needs to use the network, besides the carrier's
    /// name.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.namespace.as_fd(), self.log.as_fd()]
    }

    /// Restores the network from [`Isolated::descriptors`] and a carrier's name; `None` if there
    /// are no descriptors.
    pub(crate) fn from_descriptors(carrier: &str, fds: Vec<OwnedFd>) -> Option<Isolated> {
        let carrier = [CarrierKind::Pasta, CarrierKind::Slirp]
            .map(CarrierKind::name)
            .into_iter()
            .find(|name| *name == carrier)?;
        let [namespace, log] = <[OwnedFd; 2]>::try_from(fds).ok()?;
        Some(Isolated { namespace, carrier, log: log.into() })
    }

    /// Executes the carrier. Returns only if that fails.
    fn become_carrier(
        &self,
        carrier: &Carrier,
        ports: &[PublishedPort],
        place: &Path,
        apart: PipeWriter,
        forwarded: PipeWriter,
    ) -> Result<Infallible, RunnerProblem> {
        private_mount_namespace()?;
        drop(apart);
        let namespace = bind_clone(Path::new(&format!("/proc/self/fd/{}", self.namespace.as_raw_fd())))?;
        // All versions accept a path, and pasta ends when it disappears.
        mount_tmpfs(place)?;
        let name = "the directory of the isolated network";
        let dir = RootDir::open(place).map_err(|e| e.within(name))?.named(name);
        drop(dir.create_file(NAMESPACE.as_ref(), 0o600)?);
        attach_mount(&namespace, &dir, NAMESPACE)?;
        if !ports.is_empty()
            && carrier.kind == CarrierKind::Slirp
            && let Cloned::Parent { .. } = process::fork()?
        {
            // The carrier is the child, because it waits for no children of its own. The builder
            // adopts it.
            forwarding::forward(ports, &place.join(API), forwarded);
            std::process::exit(0);
        }
        let null = File::open("/dev/null").map_err(RunnerProblem::of_call("open", Path::new("/dev/null")))?;
        rustix::stdio::dup2_stdin(&null).map_err(RunnerProblem::of_call("dup2", described("standard input")))?;
        rustix::stdio::dup2_stdout(&self.log).map_err(RunnerProblem::of_call("dup2", described("standard output")))?;
        rustix::stdio::dup2_stderr(&self.log).map_err(RunnerProblem::of_call("dup2", described("standard error")))?;
        process::reset_signals()?;
        let zero_byte = |_| RunnerProblem::NulByte(carrier.path.display().to_string());
        let arguments = carrier.arguments(place, ports).map_err(zero_byte)?;
        let path = CString::new(carrier.path.as_os_str().as_bytes()).map_err(zero_byte)?;
        let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        nix::unistd::execve(&path, &arguments, &environment).map_err(RunnerProblem::of_call("execve", &carrier.path))
    }

    /// Moves the calling process, which must be single-threaded, into the network, and waits until
    /// outbound access is available.
    pub(crate) fn join(&self) -> Result<(), RunnerProblem> {
        nix::sched::setns(self.namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(RunnerProblem::of_call("setns", described("the isolated network")))?;
        let end = Instant::now() + TIMEOUT;
        while !has_default_route() {
            if Instant::now() > end {
                return Err(RunnerProblem::NetworkDown { carrier: self.carrier.into(), output: self.output() });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Returns the text that the carrier has written.
    fn output(&self) -> String {
        let mut bytes = vec![0; 4096];
        let n = self.log.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..n]);
        text.lines().map(str::trim).filter(|line| !line.ends_with("to syslog")).collect::<Vec<_>>().join("; ")
    }
}

/// Returns true if the calling process's network has a default route. The tables are described in
/// proc_pid_net(5).
fn has_default_route() -> bool {
    let table = |path| std::fs::read_to_string(path).unwrap_or_default();
    let old = table("/proc/self/net/route");
    let all_zero = |word: Option<&str>| word.is_some_and(|w| w.bytes().all(|b| b == b'0'));
    if old.lines().skip(1).any(|line| all_zero(line.split_whitespace().nth(1))) {
        return true;
    }
    table("/proc/self/net/ipv6_route").lines().any(|line| {
        let mut words = line.split_whitespace();
        let (to, length) = (words.next(), words.next());
        all_zero(to) && all_zero(length) && words.last() != Some("lo")
    })
}

/// Creates a network namespace, owned by the caller's user namespace, with its loopback interface
/// up.
fn new_namespace() -> Result<OwnedFd, SandboxError> {
    let make = || {
        // As in Docker's networks. Commands in user namespaces of their own have no capability in
        // this network. Without the setting, ports below 1024 are refused to them.
        let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        Ok([own_namespace()?])
    };
    let [namespace] = make_in_new_network(make)?;
    Ok(namespace)
}

/// Returns the network namespace of the calling process.
pub(crate) fn own_namespace() -> rbuild_linux::Result<OwnedFd> {
    let open = |e: std::io::Error| rbuild_linux::Error::new("openat", Path::new("/proc/self/ns/net"), e);
    Ok(File::open("/proc/self/ns/net").map_err(open)?.into())
}

/// Runs `make` in a child process inside such a namespace and returns its descriptors. The caller,
/// which must be single-threaded, stays in its own namespace.
pub(crate) fn make_in_new_network<const N: usize>(
    make: impl FnOnce() -> rbuild_linux::Result<[OwnedFd; N]>,
) -> Result<[OwnedFd; N], SandboxError> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::new("socketpair", described("a pair of sockets"), e))?;
    match process::fork()? {
        Cloned::Child => {
            let made = enter_loopback_network().and_then(|()| make());
            let _ = match &made {
                Ok(made) => send_fds(&theirs, &made.each_ref().map(|fd| fd.as_fd())),
                Err(e) => send_with_byte(&theirs, e.errno().and_then(|errno| errno.try_into().ok()).unwrap_or(0), &[]),
            };
            std::process::exit(0);
        }
        Cloned::Parent { child } => {
            drop(theirs);
            let received = receive_with_byte(&ours);
            process::wait(child)?;
            let failed = |errno| Error::new("unshare", described("a network namespace"), errno);
            let (fds, errno) = received.map_err(failed)?;
            fds.try_into().map_err(|_| failed(Errno::from_raw_os_error(errno.into())).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn pasta() -> Carrier {
        Carrier { path: "/usr/bin/pasta".into(), kind: CarrierKind::Pasta }
    }

    #[test]
    fn versions_of_pasta_are_told_apart_by_their_year() {
        let cases = [
            ("pasta 0.0~git20230309.7c7625d-1\nCopyright Red Hat\nGNU General Public License, version 2\n", false),
            ("pasta 0.0~git20240220.1e6f92b-1\nCopyright Red Hat\n", true),
            ("pasta 2024_12_11.09478d5\nCopyright Red Hat\n", true),
            ("pasta 2023_12_04.b86afe3\n", false),
            ("pasta unknown\n", false),
            ("", false),
        ];
        for (version, expected) in cases {
            assert_eq!(is_new(version), expected, "{version}");
        }
    }

    #[test]
    fn refusals_are_as_recorded() {
        assert_eq!(usable(Some(pasta()), Ok(())).unwrap().name(), "pasta");
        let refused =
            [usable(None, Ok(())), usable(Some(pasta()), Err(Errno::NOENT)), usable(Some(pasta()), Err(Errno::ACCESS))];
        let refused = refused.map(Result::unwrap_err);
        let table = variants!(Refusal).table(&refused, |e| e, |e| Some(e.remedy.clone()));
        assert_recorded!("network", table);
    }
}
