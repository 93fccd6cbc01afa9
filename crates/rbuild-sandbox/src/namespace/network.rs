//! Isolated network of a build, with outbound access.
//!
//! The network namespace belongs to the build and is shared by its commands. Traffic is carried by
//! a program of the host, pasta or slirp4netns, which runs in the builder's pid namespace and ends
//! with it. That program sees the host like its caller; commands see an interface that it creates.

use std::ffi::CString;
use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rbuild_linux::fd_passing::{receive_fds, send_fds};
use rustix::fs::Access;
use rustix::io::Errno;

use rbuild_linux::process::{self, Cloned};
use rbuild_linux::{RootDir, bind_clone, mount_tmpfs, private_mount_namespace};

use crate::SandboxError;
use crate::error::text;
use crate::error::{Refusal, refusal};
use crate::namespace::newuidmap::in_path;

/// The program that carries traffic in and out.
#[derive(Debug, Clone)]
pub struct Carrier {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pasta,
    Slirp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Pasta => "pasta",
            Kind::Slirp => "slirp4netns",
        }
    }
}

const TUN: &str = "/dev/net/tun";

/// Maximum time for outbound access to come up.
const PATIENCE: Duration = Duration::from_secs(5);

impl Carrier {
    /// Finds an installed carrier. Prefers pasta, because slirp4netns is slower, unless pasta is
    /// too old.
    pub fn find() -> Result<Carrier, Refusal> {
        let found = |name: &str, kind| in_path(name).map(|path| Carrier { path, kind });
        let (pasta, slirp) = (found("pasta", Kind::Pasta), found("slirp4netns", Kind::Slirp));
        let new = pasta.clone().filter(|pasta| slirp.is_none() || pasta.is_new());
        let carrier = new.or(slirp).ok_or_else(|| {
            refusal(
                "an isolated network takes pasta or slirp4netns, and neither is installed",
                "install one: sudo apt-get install passt (Debian, Ubuntu) or sudo dnf install passt (Fedora); \
                 or use --network host or none",
            )
        })?;
        // The device through which the commands' interface is created.
        match rustix::fs::access(TUN, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => Ok(carrier),
            Err(Errno::NOENT) => Err(refusal(
                format!("an isolated network takes {TUN}, which this machine does not have"),
                "load the kernel's module (sudo modprobe tun), give the container that device, or use --network host or none",
            )),
            Err(e) => Err(refusal(
                format!("an isolated network takes {TUN}, which this user cannot open ({e})"),
                format!("give it the mode that it usually has: sudo chmod 666 {TUN}; or use --network host or none"),
            )),
        }
    }

    /// Returns true for versions of 2024 or later: that of March 2023 duplicates and loses data on
    /// Linux 6.18. A version contains a date, `2024_12_11` or `20230309`.
    fn is_new(&self) -> bool {
        let asked = std::process::Command::new(&self.path).arg("--version").stdin(std::process::Stdio::null()).output();
        let said = asked.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        let year = |at: usize| said.get(at..at + 4)?.parse::<u32>().ok().filter(|year| (2019..2100).contains(year));
        (0..said.len()).find_map(year).is_some_and(|year| year >= 2024)
    }

    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Returns the address of the carrier's name server, which forwards to the host's.
    pub fn nameserver(&self) -> &'static str {
        match self.kind {
            Kind::Pasta => "169.254.1.1",
            Kind::Slirp => "10.0.2.3",
        }
    }

    /// Returns arguments that forward no host ports and make the host's loopback addresses
    /// unreachable.
    fn arguments(&self, namespace: &Path) -> Result<Vec<CString>, String> {
        let namespace = namespace.as_os_str().as_bytes();
        let words: Vec<&[u8]> = match self.kind {
            Kind::Pasta => vec![
                b"pasta",
                b"--config-net",
                b"--quiet",
                b"--foreground",
                b"--runas",
                b"0",
                b"--netns-only",
                b"--no-map-gw",
                b"-t",
                b"none",
                b"-u",
                b"none",
                b"-T",
                b"none",
                b"-U",
                b"none",
                b"--dns-forward",
                self.nameserver().as_bytes(),
                b"--netns",
                namespace,
            ],
            Kind::Slirp => vec![
                b"slirp4netns",
                b"--configure",
                b"--mtu=65520",
                b"--disable-host-loopback",
                b"--netns-type=path",
                namespace,
                b"tap0",
            ],
        };
        words.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(text)
    }
}

/// A network namespace with outbound access.
#[derive(Debug)]
pub(crate) struct Isolated {
    namespace: OwnedFd,
    carrier: &'static str,
    /// The carrier's output.
    said: File,
}

impl Isolated {
    /// Starts the carrier. The caller must be single-threaded and still have the host's root.
    /// `place` is a host directory, which is covered in the carrier's mount namespace only.
    pub(crate) fn start(carrier: &Carrier, place: &Path) -> Result<Isolated, SandboxError> {
        let namespace = new_namespace()?;
        let fail = |e: Errno| SandboxError::Runner(format!("memfd_create: {e}"));
        let said = rustix::fs::memfd_create("carrier", rustix::fs::MemfdFlags::CLOEXEC).map_err(fail)?;
        let isolated = Isolated { namespace, carrier: carrier.name(), said: said.into() };
        let (mut apart, tell) = std::io::pipe().map_err(|e| SandboxError::Runner(format!("pipe2: {e}")))?;
        if let Cloned::Child = process::fork()? {
            drop(apart);
            let why = isolated.become_carrier(carrier, place, tell);
            let _ = writeln!(&isolated.said, "{why}");
            std::process::exit(127);
        }
        drop(tell);
        // Wait until the carrier has its own mount namespace: until then, changing the root here
        // would change its root as well.
        let _ = apart.read(&mut [0]);
        Ok(isolated)
    }

    /// Returns the carrier's name.
    pub(crate) fn carrier(&self) -> &'static str {
        self.carrier
    }

    /// Returns the descriptors that another process needs to use the network, besides the carrier's
    /// name.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.namespace.as_fd(), self.said.as_fd()]
    }

    /// Restores the network from [`Isolated::descriptors`] and a carrier's name; `None` if there
    /// are no descriptors.
    pub(crate) fn from_descriptors(carrier: &str, fds: Vec<OwnedFd>) -> Option<Isolated> {
        let carrier = [Kind::Pasta, Kind::Slirp].map(Kind::name).into_iter().find(|name| *name == carrier)?;
        let [namespace, said] = <[OwnedFd; 2]>::try_from(fds).ok()?;
        Some(Isolated { namespace, carrier, said: said.into() })
    }

    /// Executes the carrier. Returns the reason if that fails.
    fn become_carrier(&self, carrier: &Carrier, place: &Path, apart: PipeWriter) -> String {
        let prepare = || -> Result<(), String> {
            private_mount_namespace().map_err(text)?;
            drop(apart);
            let namespace = bind_clone(Path::new(&format!("/proc/self/fd/{}", self.namespace.as_raw_fd())));
            let namespace = namespace.map_err(text)?;
            // All versions accept a path, and pasta ends when it disappears.
            mount_tmpfs(place).map_err(text)?;
            let dir = RootDir::open(place).map_err(text)?;
            drop(dir.create_file("net".as_ref(), 0o600).map_err(text)?);
            dir.attach(&namespace, "net").map_err(text)?;
            let null = File::open("/dev/null").map_err(text)?;
            rustix::stdio::dup2_stdin(&null).map_err(text)?;
            rustix::stdio::dup2_stdout(&self.said).map_err(text)?;
            rustix::stdio::dup2_stderr(&self.said).map_err(text)?;
            process::reset_signals().map_err(text)
        };
        if let Err(why) = prepare() {
            return why;
        }
        let arguments = match carrier.arguments(&place.join("net")) {
            Ok(arguments) => arguments,
            Err(why) => return why,
        };
        let Ok(path) = CString::new(carrier.path.as_os_str().as_bytes()) else {
            return "its path has a zero byte".into();
        };
        let environment = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        let Err(e) = nix::unistd::execve(&path, &arguments, &environment);
        format!("exec {}: {e}", carrier.path.display())
    }

    /// Moves the calling process, which must be single-threaded, into the network, and waits until
    /// outbound access is available.
    pub(crate) fn join(&self) -> Result<(), String> {
        nix::sched::setns(self.namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|e| format!("setns(CLONE_NEWNET): {e}"))?;
        let end = Instant::now() + PATIENCE;
        while !has_way_out() {
            if Instant::now() > end {
                return Err(format!("the isolated network did not come up; {}", self.told()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn told(&self) -> String {
        let mut bytes = vec![0; 4096];
        let n = self.said.read_at(&mut bytes, 0).unwrap_or(0);
        let said = String::from_utf8_lossy(&bytes[..n]);
        let said =
            said.lines().map(str::trim).filter(|line| !line.ends_with("to syslog")).collect::<Vec<_>>().join("; ");
        let carrier = self.carrier;
        if said.is_empty() { format!("{carrier} says nothing") } else { format!("{carrier} says: {said}") }
    }
}

/// Returns true if the calling process's network has a default route. The tables are described in
/// proc_pid_net(5).
fn has_way_out() -> bool {
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
    let [namespace] = made_in_a_network_of_its_own(|| Ok([own_namespace()?]))?;
    Ok(namespace)
}

/// Returns the network namespace of the calling process.
pub(crate) fn own_namespace() -> rbuild_linux::Result<OwnedFd> {
    let open = |e: std::io::Error| rbuild_linux::Error::new("openat", "/proc/self/ns/net", e);
    Ok(File::open("/proc/self/ns/net").map_err(open)?.into())
}

/// Runs `make` in a child process inside such a namespace and returns its descriptors. The caller,
/// which must be single-threaded, stays in its own namespace.
pub(crate) fn made_in_a_network_of_its_own<const N: usize>(
    make: impl FnOnce() -> rbuild_linux::Result<[OwnedFd; N]>,
) -> Result<[OwnedFd; N], SandboxError> {
    let fail = |e: std::io::Error| SandboxError::Runner(format!("a network of its own: {e}"));
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    match process::fork()? {
        Cloned::Child => {
            if let Ok(made) = process::enter_lonely_network().and_then(|()| make()) {
                let _ = send_fds(&theirs, &made.each_ref().map(|fd| fd.as_fd()));
            }
            std::process::exit(0);
        }
        Cloned::Parent { child } => {
            drop(theirs);
            let received = receive_fds(&ours);
            process::wait(child)?;
            let made = received.ok().and_then(|fds| fds.try_into().ok());
            made.ok_or_else(|| SandboxError::Runner("a network of its own could not be made".into()))
        }
    }
}
