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
use rustix::fs::OFlags;

use crate::SandboxError;
use crate::mounts::{SYSFS, new_sysfs};
use crate::network::{Carrier, Isolated};
use crate::probe::{Isolation, Rung, bare_isolation, isolation, userns_refused};
use crate::surroundings::{Proc, Surroundings};
use crate::zygote::Zygote;

/// Where the builder finds the store.
pub const STORE: &str = "/store";

/// How long a process that was killed may take to be a zombie.
const DYING: Duration = Duration::from_millis(50);

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
    /// Commands may run: they are to have a /sys, and a process that starts them, both of which take a moment to make.
    pub commands: bool,
}

/// The builder's view of how it was started.
pub struct Builder {
    pub isolation: Isolation,
    pub zygote: Zygote,
    proc: Proc,
    signals: SigSet,
    /// Where things are that have other places in a root of the builder's own; empty if it has one.
    elsewhere: Vec<(PathBuf, PathBuf)>,
}

impl Builder {
    /// Whether commands get nothing but a root directory of their own.
    pub fn is_bare(&self) -> bool {
        self.isolation.maps.is_none()
    }

    /// Whether commands see the processes around this machine's container, as it shows no other /proc.
    pub fn shows_outer_processes(&self) -> bool {
        self.proc == Proc::Outer
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
/// Where that cannot be set up and any way is welcome, root does with another root directory.
///
/// SIGINT, SIGTERM and SIGHUP that arrive meanwhile are passed on; `stopped` tells whether one did. If the caller
/// dies, so does the builder and everything below it.
pub fn enter(
    world: &World,
    rung: Rung,
    build: impl FnOnce(Result<Builder, SandboxError>) -> i32,
) -> Result<Ended, SandboxError> {
    let isolation = isolation(rung)?;
    // Where owners are written down, the caller has made its keys for that already.
    let has_spare = rung == Rung::Auto && isolation.maps.is_some() && !isolation.records_owners();
    let spare = if has_spare { bare_isolation().ok() } else { None };
    let mut signals = SigSet::empty();
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(s);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).map_err(|e| failed("sigprocmask")(e.into()))?;
    let launcher = Launcher { world, signals, pidfd: process::own_pidfd()? };
    let mut build = Some(build);
    match (launcher.launch(isolation, spare.is_some(), &mut build), spare) {
        (Err(_), Some(spare)) => launcher.launch(spare, false, &mut build)?,
        (launched, _) => launched?,
    }
}

fn failed(call: &'static str) -> impl FnOnce(std::io::Error) -> SandboxError {
    move |e| SandboxError::Kernel(rbuild_linux::Error::new(call, "launcher", e))
}

struct Launcher<'a> {
    world: &'a World,
    signals: SigSet,
    /// Of the calling process.
    pidfd: OwnedFd,
}

impl Launcher<'_> {
    /// Has one builder with that isolation, and waits for its end. An outer error means that `build` was never called, and stays
    /// where it was; a builder that cannot set up its world calls it with that error, unless there is a `spare` isolation.
    fn launch<F: FnOnce(Result<Builder, SandboxError>) -> i32>(
        &self,
        isolation: Isolation,
        spare: bool,
        build: &mut Option<F>,
    ) -> Result<Result<Ended, SandboxError>, SandboxError> {
        let (ready, go) = std::io::pipe().map_err(failed("pipe2"))?;
        let (told, tell) = std::io::pipe().map_err(failed("pipe2"))?;
        // What came of a builder that is killed together with all who would see to its end comes to this process, where there is no
        // pid namespace. Children that the caller had before are not the builder's, and could not be told from those.
        let bare = isolation.maps.is_none();
        let adopts = bare && process::children().is_empty() && process::adopt_orphans().is_ok();
        let cloned = match &isolation.maps {
            None => process::fork()?,
            Some(_) => process::clone_into_namespaces().map_err(userns_refused)?,
        };
        let child = match cloned {
            Cloned::Child => {
                drop((go, told));
                std::process::exit(self.become_builder(isolation, ready, tell, spare, build.take()))
            }
            Cloned::Parent { child } => child,
        };
        drop((ready, tell));
        let pidfd = process::pidfd(child)?;
        if let Some(Err(e)) = isolation.maps.as_ref().map(|maps| maps.write(child)) {
            // It waits for the launcher's word, so that it ends now only if somebody kills it.
            let killed = process::ends_within(&pidfd, DYING) && process::was_killed(&pidfd);
            process::kill(child);
            let exit = process::wait(child)?;
            return match killed {
                true => Ok(Ok(Ended { code: exit_code(exit), stopped: false })),
                false => Err(crate::probe::maps_refused(e).into()),
            };
        }
        let ended = supervise(child, &pidfd, go, told, &self.signals);
        if adopts {
            process::kill_children();
        }
        ended
    }

    fn become_builder<F: FnOnce(Result<Builder, SandboxError>) -> i32>(
        &self,
        isolation: Isolation,
        ready: PipeReader,
        mut tell: PipeWriter,
        spare: bool,
        build: Option<F>,
    ) -> i32 {
        if isolation.records_owners() {
            rbuild_linux::record_owners();
        }
        let bare = isolation.maps.is_none();
        let made = match bare {
            true => become_bare_builder(ready, &self.pidfd).map(|zygote| (zygote, Proc::Own)),
            false => become_builder(self.world, ready, &self.pidfd),
        };
        if let (Err(e), true) = (&made, spare) {
            let _ = tell.write_all(e.to_string().as_bytes());
            return 70;
        }
        drop(tell);
        let binds = self.world.binds.iter().map(|(source, at)| (at.clone(), source.clone()));
        let elsewhere = match bare {
            true => binds.chain([(STORE.into(), self.world.store.clone())]).collect(),
            false => Vec::new(),
        };
        let signals = self.signals;
        let builder = made.map(|(zygote, proc)| Builder { isolation, zygote, proc, signals, elsewhere });
        build.map_or(70, |build| build(builder))
    }
}

/// The code by which a shell tells of an end.
fn exit_code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    }
}

/// How the builder ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub code: i32,
    /// A signal asked for it.
    pub stopped: bool,
}

/// Passes on signals until the builder ends. An outer error is what it says on `told` before it begins.
fn supervise(
    child: u32,
    pidfd: &OwnedFd,
    mut go: PipeWriter,
    mut told: PipeReader,
    signals: &SigSet,
) -> Result<Result<Ended, SandboxError>, SandboxError> {
    let signalfd = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC).map_err(|e| failed("signalfd4")(e.into()))?;
    match go.write_all(b"g") {
        // It was killed before it read that, which its end will say.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.map_err(failed("write"))?,
    }
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
            Err(e) => return Ok(Err(failed("poll")(e.into()))),
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
            let code = exit_code(process::wait(child)?);
            // What it wrote is there; others may have the other end still.
            let mut why = Vec::new();
            let _ = rustix::fs::fcntl_setfl(&told, OFlags::NONBLOCK).map(|()| told.read_to_end(&mut why));
            return match why.is_empty() {
                true => Ok(Ok(Ended { code, stopped: deadline.is_some() })),
                false => Err(SandboxError::Runner(String::from_utf8_lossy(&why).into_owned())),
            };
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
    // What the caller's shell has open is for nothing that is executed from here on.
    process::keep_descriptors_from_programs()?;
    // A terminal's signals are for the launcher, which passes them on.
    let _ = rustix::process::setsid();
    process::clear_umask();
    rbuild_linux::join_new_session_keyring();
    Ok(())
}

/// A builder that is where its launcher is.
fn become_bare_builder(ready: PipeReader, launcher: &OwnedFd) -> Result<Zygote, SandboxError> {
    begin(ready, launcher, false)?;
    Zygote::start(None, true, None)
}

fn become_builder(world: &World, ready: PipeReader, launcher: &OwnedFd) -> Result<(Zygote, Proc), SandboxError> {
    begin(ready, launcher, true)?;
    let store = bind_clone(&world.store)?;
    let binds = world.binds.iter().map(|(source, at)| Ok((bind_clone(source)?, at)));
    let binds = binds.collect::<Result<Vec<_>, SandboxError>>()?;
    let (proc, whose) = match new_procfs() {
        Ok(proc) => (proc, Proc::Own),
        // Where parts of /proc are covered, the kernel shows no other one that would uncover them.
        Err(e) => (bind_clone(Path::new("/proc")).map_err(|_| crate::probe::proc_refused(e))?, Proc::Outer),
    };
    let isolated = world.carrier.as_ref().map(|carrier| Isolated::start(carrier, &world.store)).transpose()?;
    let sysfs = world.commands.then(new_sysfs).flatten();
    let (sysfs, network) = sysfs.map_or((None, None), |sysfs| (Some(sysfs.mount), Some(sysfs.network)));
    let zygote = Zygote::start(Some(Surroundings { proc: whose, isolated }), world.commands, network)?;
    let root = MiniRoot::new(&world.store)?;
    root.attach_devices()?;
    root.attach_cgroup()?;
    root.attach(&store, Path::new(STORE))?;
    for (mount, at) in &binds {
        root.attach(mount, at)?;
    }
    root.attach(&proc, Path::new("/proc"))?;
    if let Some(sysfs) = &sysfs {
        root.attach(sysfs, Path::new(SYSFS))?;
    }
    zygote.wait_until_loaded()?;
    root.enter()?;
    Ok((zygote, whose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_that_is_killed_before_it_begins_is_one_that_was_killed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = process::pidfd(child.id()).unwrap();
        child.kill().unwrap();
        process::wait_for_end(&pidfd);
        assert!(process::was_killed(&pidfd));
        let (ready, go) = std::io::pipe().unwrap();
        let (told, _tell) = std::io::pipe().unwrap();
        drop(ready);
        let ended = supervise(child.id(), &pidfd, go, told, &SigSet::empty()).unwrap().unwrap();
        assert_eq!((ended.code, ended.stopped), (128 + 9, false));
        assert!(child.wait().is_err(), "it has been waited for");
    }
}
