//! From the launcher to the builder: namespaces, id maps, a small root; and dying together.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_linux::{MiniRoot, bind_clone, new_procfs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::SandboxError;
use crate::mounts::{SYSFS, new_sysfs};
use crate::network::{Carrier, Isolated};
use crate::probe::{Isolation, Rung, bare_isolation, isolation, userns_refused};
use crate::zygote::Zygote;

/// Where the builder finds the store.
pub const STORE: &str = "/store";

/// How long the builder may take to clean up after a signal before it is killed.
const GRACE: Duration = Duration::from_millis(1500);

/// What the builder is to see of the machine.
#[derive(Debug, Clone)]
pub struct World {
    pub store: PathBuf,
    /// Directories and files, and where the builder finds them: absolute, in directories of no other purpose.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Carries what goes in and out of an isolated network, if there is to be one.
    pub carrier: Option<Carrier>,
    /// Commands may run: they are to have a /sys, which takes a moment to make.
    pub commands: bool,
}

/// The builder's view of how it was started.
pub struct Builder {
    pub isolation: Isolation,
    pub zygote: Zygote,
    signals: SigSet,
    /// Where things are that have other places in a root of the builder's own; empty if it has one.
    elsewhere: Vec<(PathBuf, PathBuf)>,
}

impl Builder {
    /// Whether commands get nothing but a root directory of their own.
    pub fn is_bare(&self) -> bool {
        self.isolation.maps.is_none()
    }

    /// Where the builder finds what has this place in its world ([`World::binds`], [`STORE`]).
    pub fn path(&self, place: &Path) -> PathBuf {
        let found = self.elsewhere.iter().find(|(at, _)| at == place);
        found.map_or(place, |(_, source)| source).to_path_buf()
    }

    /// Calls `cancel` on another thread when the launcher passes on a signal to stop. Call it once.
    pub fn on_stop(&self, cancel: impl FnOnce() + Send + 'static) {
        let signals = self.signals;
        std::thread::spawn(move || {
            if signals.wait().is_ok() {
                cancel();
            }
        });
    }
}

/// Runs `build` as root of a new user namespace with a small root file system, in a process of its own, and gives
/// its exit code; 128 and more for a signal, as a shell has it. The caller must have one thread.
///
/// SIGINT, SIGTERM and SIGHUP that arrive meanwhile are passed on; `stopped` tells whether one did. If the caller
/// dies, so does the builder and everything below it.
pub fn enter(
    world: &World,
    rung: Rung,
    build: impl FnOnce(Result<Builder, SandboxError>) -> i32,
) -> Result<Ended, SandboxError> {
    let isolation = isolation(rung)?;
    let mut signals = SigSet::empty();
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(s);
    }
    let fail = |call, e: std::io::Error| SandboxError::Kernel(rbuild_linux::Error::new(call, "launcher", e));
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).map_err(|e| fail("sigprocmask", e.into()))?;
    let (ready, go) = std::io::pipe().map_err(|e| fail("pipe2", e))?;
    let launcher = process::own_pidfd()?;
    let (isolation, cloned) = match &isolation.maps {
        None => (isolation, process::fork()?),
        Some(_) => match process::clone_into_namespaces() {
            Ok(cloned) => (isolation, cloned),
            // Root of a container that may make none still can change its root directory.
            Err(_) if rung == Rung::Auto && process::own_ids().0 == 0 => (bare_isolation()?, process::fork()?),
            Err(e) => return Err(userns_refused(e).into()),
        },
    };
    let child = match cloned {
        Cloned::Child => {
            drop(go);
            let bare = isolation.maps.is_none();
            if isolation.records_owners() {
                rbuild_linux::record_owners();
            }
            let made =
                if bare { become_bare_builder(ready, &launcher) } else { become_builder(world, ready, &launcher) };
            let elsewhere = match bare {
                true => world
                    .binds
                    .iter()
                    .map(|(source, at)| (at.clone(), source.clone()))
                    .chain([(STORE.into(), world.store.clone())])
                    .collect(),
                false => Vec::new(),
            };
            let code = build(made.map(|zygote| Builder { isolation, zygote, signals, elsewhere }));
            std::process::exit(code);
        }
        Cloned::Parent { child } => child,
    };
    drop(ready);
    if let Some(Err(e)) = isolation.maps.as_ref().map(|maps| maps.write(child)) {
        process::kill(child);
        let _ = process::wait(child);
        return Err(crate::probe::maps_refused(e).into());
    }
    supervise(child, go, &signals)
}

/// How the builder ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub code: i32,
    /// A signal asked for it.
    pub stopped: bool,
}

fn supervise(child: u32, mut go: PipeWriter, signals: &SigSet) -> Result<Ended, SandboxError> {
    let fail = |call, e: std::io::Error| SandboxError::Kernel(rbuild_linux::Error::new(call, "builder", e));
    let pidfd = process::pidfd(child)?;
    let signalfd = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC).map_err(|e| fail("signalfd4", e.into()))?;
    go.write_all(b"g").map_err(|e| fail("write", e))?;
    let mut deadline: Option<Instant> = None;
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left.is_some_and(|l| l.is_zero()) {
            process::kill(child);
        }
        let timeout = left.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: i64::from(l.subsec_nanos()) });
        let timeout = timeout.filter(|t| t.tv_sec > 0 || t.tv_nsec > 0);
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signalfd.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(fail("poll", e.into())),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let _ = signalfd.read_signal();
            if deadline.is_some() {
                // Asked twice: no more patience.
                process::kill(child);
            }
            process::send(child, Signal::SIGTERM);
            deadline = Some(Instant::now() + GRACE);
        }
        if fds[0].revents().contains(PollFlags::IN) {
            let code = match process::wait(child)? {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + signal,
            };
            return Ok(Ended { code, stopped: deadline.is_some() });
        }
    }
}

/// Waits for the launcher's word, and sees to it that this process dies with it.
fn begin(mut ready: PipeReader, launcher: &OwnedFd, become_root: bool) -> Result<(), SandboxError> {
    let mut byte = [0u8; 1];
    // End of file: the launcher died or could not write the maps.
    if ready.read(&mut byte).unwrap_or(0) != 1 {
        std::process::exit(70);
    }
    if become_root {
        process::become_root()?;
    }
    process::die_with(launcher)?;
    // A terminal's signals are for the launcher, which passes them on.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::empty());
    rbuild_linux::join_new_session_keyring();
    Ok(())
}

/// A builder that is where its launcher is.
fn become_bare_builder(ready: PipeReader, launcher: &OwnedFd) -> Result<Zygote, SandboxError> {
    begin(ready, launcher, false)?;
    Zygote::start(true, None, None)
}

fn become_builder(world: &World, ready: PipeReader, launcher: &OwnedFd) -> Result<Zygote, SandboxError> {
    begin(ready, launcher, true)?;
    let store = bind_clone(&world.store)?;
    let binds = world.binds.iter().map(|(source, at)| Ok((bind_clone(source)?, at)));
    let binds = binds.collect::<Result<Vec<_>, SandboxError>>()?;
    let proc = new_procfs().map_err(crate::probe::proc_refused)?;
    let isolated = world.carrier.as_ref().map(|carrier| Isolated::start(carrier, &world.store)).transpose()?;
    let sysfs = world.commands.then(new_sysfs).flatten();
    let root = MiniRoot::new(&world.store)?;
    root.attach_devices()?;
    root.attach_cgroup()?;
    root.attach(&store, Path::new(STORE))?;
    for (mount, at) in &binds {
        root.attach(mount, at)?;
    }
    root.attach(&proc, Path::new("/proc"))?;
    if let Some(sysfs) = &sysfs {
        root.attach(&sysfs.mount, Path::new(SYSFS))?;
    }
    root.enter()?;
    Zygote::start(false, isolated, sysfs.map(|sysfs| sysfs.network))
}
