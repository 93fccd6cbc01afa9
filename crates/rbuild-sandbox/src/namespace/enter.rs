//! The transition from launcher to builder: namespaces, ID maps, a minimal root, and shared
//! lifetime.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rbuild_container::PublishedPort;
use rbuild_linux::parallel::start;
use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_linux::{
    MiniRoot, OwnerMode, OwnerRecords, StopRequest, StopSignals, bind_clone, credentials, descendants, described,
    new_procfs, request_end, resource_limits, umask,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::SandboxError;
use crate::error::{Phase, PhaseContext, RunnerError};
use crate::namespace::isolation::{
    Isolation, IsolationRequest, bare_isolation, isolation, maps_refused, proc_refused, userns_refused,
};
use crate::namespace::machine::{CallingProcess, KernelSettings};
use crate::namespace::network::{Carrier, Isolated};
use crate::protocol::RunnerMode;
use crate::runner::mount_checks::SYSFS;
use crate::runner::mounts::new_sysfs;
use crate::runner::privileges::check_interception;
use crate::runner::runner_context::{ProcView, RunnerContext};
use crate::runner::zygote::Zygote;

/// Path of the store in the builder's root.
pub const STORE: &str = "/store";

/// Time that the builder has to clean up after a signal before it is killed.
pub const GRACE: Duration = Duration::from_millis(1500);

/// Configuration of a builder: the parts of the host that it sees, and its purpose.
#[derive(Debug, Clone)]
pub struct BuilderConfig {
    /// Path of the store on the host.
    pub store: PathBuf,
    /// The records of owners of the store's files.
    pub owners: OwnerRecords,
    /// Directories and files with their paths in the builder's root: absolute, in otherwise unused
    /// directories.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Program that connects an isolated network to the outside, if one is requested.
    pub carrier: Option<Carrier>,
    /// Ports that it forwards to that network.
    pub ports: Vec<PublishedPort>,
    /// True if commands may run. They require a /sys and a zygote, both of which take time to
    /// create.
    pub commands: bool,
    /// Time that the builder has after a signal before it is killed.
    pub grace: Duration,
    /// True if SIGHUP is only forwarded as long as the caller keeps its terminal.
    pub forwards_hangup: bool,
    /// Children of the caller that may be killed once the builder has ended.
    pub expendable: Vec<u32>,
    /// Children of the caller that go on when the builder has ended.
    pub kept: Vec<u32>,
}

/// The builder's view of how it was started.
pub struct Builder {
    /// The isolation mode.
    pub isolation: Isolation,
    /// The process that starts commands.
    pub zygote: Zygote,
    proc: ProcView,
    signals: SigSet,
    /// Host paths by their paths in a builder's root; empty if the builder has its own root.
    elsewhere: Vec<(PathBuf, PathBuf)>,
}

impl Builder {
    /// Returns true in the `chroot` isolation mode, where commands get only another root directory.
    pub fn is_bare(&self) -> bool {
        self.isolation == Isolation::Chroot
    }

    /// Returns true if commands see the processes of the surrounding container, because the kernel
    /// refuses to mount another /proc.
    pub fn shows_outer_processes(&self) -> bool {
        self.proc == ProcView::Outer
    }

    /// Fails if this machine does not permit the interception of commands' system calls that the
    /// isolation mode needs. The caller must be single-threaded.
    pub fn check_interception(&self) -> Result<(), RunnerError> {
        match self.isolation.runner_mode() {
            RunnerMode::Emulated => check_interception().during(Phase::Emulation),
            RunnerMode::Container | RunnerMode::Chroot => Ok(()),
        }
    }

    /// Returns the actual path of something that has this path in the builder's root
    /// ([`BuilderConfig::binds`], [`STORE`]).
    pub fn path(&self, place: &Path) -> PathBuf {
        let found = self.elsewhere.iter().find(|(at, _)| at == place);
        found.map_or(place, |(_, source)| source).to_path_buf()
    }

    /// Calls `cancel` on another thread when the launcher forwards a stop signal, and again for
    /// later ones as long as it returns [`ControlFlow::Continue`]. Must be called only once.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started.
    pub fn on_stop(
        &self,
        mut cancel: impl FnMut(Signal) -> ControlFlow<()> + Send + 'static,
    ) -> rbuild_linux::Result<()> {
        let signals = self.signals;
        let watch = move || while signals.wait().is_ok_and(|signal| cancel(signal).is_continue()) {};
        start(watch).map(drop)
    }
}

/// Runs `build` as root of a new user namespace with a minimal root file system, in a process of
/// its own. Returns its exit code, or 128 plus the signal number, as a shell does. The caller must
/// be single-threaded.
///
/// If that cannot be set up in the automatic mode, root falls back to the `chroot` mode.
///
/// SIGINT, SIGTERM and SIGHUP received meanwhile are forwarded as requests for the end; `stopped`
/// reports whether there was one. SIGHUP is none if [`BuilderConfig::forwards_hangup`] is set. A
/// second request kills the builder, unless it equals the first one and follows within 100 ms.
/// Afterwards, they have the same effect as before.
/// If the caller dies, the builder and all its descendants are killed.
pub fn enter(
    config: &BuilderConfig,
    request: IsolationRequest,
    build: impl FnOnce(Result<Builder, SandboxError>) -> i32,
) -> Result<BuilderExit, SandboxError> {
    enter_watching(config, request, None, build)
}

/// A socket of the caller that it watches while the builder runs.
pub struct Watched<'a> {
    /// The caller's end.
    pub socket: &'a UnixStream,
    /// Called when there is something to read, as long as it returns true.
    pub read: &'a mut dyn FnMut() -> bool,
}

/// Does the same as [`enter`], and watches a socket meanwhile.
pub fn enter_watching(
    config: &BuilderConfig,
    request: IsolationRequest,
    mut watched: Option<Watched<'_>>,
    build: impl FnOnce(Result<Builder, SandboxError>) -> i32,
) -> Result<BuilderExit, SandboxError> {
    let isolation = isolation(request)?;
    // With recorded owners there is no fallback: the caller has already derived its keys for that
    // mode.
    let has_fallback = request == IsolationRequest::Auto && matches!(isolation, Isolation::Userns(_));
    let fallback = if has_fallback { bare_isolation(&CallingProcess::read()).ok() } else { None };
    let hangup = if config.forwards_hangup { Hangup::Forward { from_terminal: has_terminal() } } else { Hangup::Stop };
    let stop = StopPolicy { grace: config.grace, hangup };
    let launcher = Launcher { config, stop, signals: StopSignals::block()?, pidfd: process::own_pidfd()? };
    let mut build = Some(build);
    match (launcher.launch(isolation, fallback.is_some(), &mut watched, &mut build), fallback) {
        (Err(_), Some(fallback)) => launcher.launch(fallback, false, &mut watched, &mut build)?,
        (launched, _) => launched?,
    }
}

fn failed(call: &'static str, object: &'static str) -> impl FnOnce(std::io::Error) -> SandboxError {
    move |e| SandboxError::Kernel(rbuild_linux::Error::new(call, described(object), e))
}

struct Launcher<'a> {
    config: &'a BuilderConfig,
    stop: StopPolicy,
    signals: StopSignals,
    /// A pidfd of the calling process.
    pidfd: OwnedFd,
}

impl Launcher<'_> {
    /// Runs one builder with that isolation and waits for its end. An outer error means that
    /// `build` was never called and has not been consumed. A builder that cannot be set up
    /// calls `build` with that error, unless there is a fallback.
    fn launch<F: FnOnce(Result<Builder, SandboxError>) -> i32>(
        &self,
        isolation: Isolation,
        fallback: bool,
        watched: &mut Option<Watched<'_>>,
        build: &mut Option<F>,
    ) -> Result<Result<BuilderExit, SandboxError>, SandboxError> {
        let (ready, go) = std::io::pipe().map_err(failed("pipe2", "a pipe"))?;
        let (failure_reader, failure_writer) = std::io::pipe().map_err(failed("pipe2", "a pipe"))?;
        // Without a PID namespace, descendants of a builder that is killed together with its zygote
        // and runners are reparented to this process. It adopts them only if it has no children of
        // its own, which could not be told apart from the builder's.
        let bare = isolation == Isolation::Chroot;
        let BuilderConfig { expendable, kept, .. } = self.config;
        let is_own = |pid: &u32| !expendable.contains(pid) && !kept.contains(pid);
        let adopts = bare && !descendants::children().iter().any(is_own) && descendants::adopt_orphans().is_ok();
        let cloned = match isolation.maps() {
            None => process::fork()?,
            Some(_) => process::clone_into_namespaces().map_err(|e| userns_refused(e, &KernelSettings::read()))?,
        };
        let child = match cloned {
            Cloned::Child => {
                drop((go, failure_reader));
                std::process::exit(self.become_builder(isolation, ready, failure_writer, fallback, build.take()))
            }
            Cloned::Parent { child } => child,
        };
        drop((ready, failure_writer));
        let pidfd = process::pidfd(child)?;
        if let Some(Err(e)) = isolation.maps().map(|maps| maps.write(child)) {
            // The child waits for the launcher's byte, so it ends at this point only if it is
            // killed.
            let killed = process::ends_within(&pidfd, process::MAX_EXIT_DELAY) && process::was_killed(&pidfd);
            process::kill(child);
            let exit = process::wait(child)?;
            return if killed {
                Ok(Ok(BuilderExit { code: exit_code(exit), stopped: false }))
            } else {
                Err(maps_refused(e, &KernelSettings::read()).into())
            };
        }
        let supervised = Supervised { child, pidfd: &pidfd, signals: &self.signals, stop: self.stop };
        let ended = supervised.supervise(go, failure_reader, watched);
        if adopts {
            descendants::kill_children_except(kept);
        }
        ended
    }

    fn become_builder<F: FnOnce(Result<Builder, SandboxError>) -> i32>(
        &self,
        isolation: Isolation,
        ready: PipeReader,
        mut failure_writer: PipeWriter,
        fallback: bool,
        build: Option<F>,
    ) -> i32 {
        let bare = isolation == Isolation::Chroot;
        let made = if bare {
            become_bare_builder(ready, &self.pidfd).map(|zygote| (zygote, ProcView::Own))
        } else {
            become_builder(self.config, isolation.owner_mode(), ready, &self.pidfd)
        };
        if let (Err(e), true) = (&made, fallback) {
            tracing::debug!(target: "sandbox", error = rbuild_remedy::sentence(e), "isolation not set up");
            let _ = failure_writer.write_all(b"f");
            return 70;
        }
        drop(failure_writer);
        let binds = self.config.binds.iter().map(|(source, at)| (at.clone(), source.clone()));
        let elsewhere =
            if bare { binds.chain([(STORE.into(), self.config.store.clone())]).collect() } else { Vec::new() };
        let signals = self.signals.signals();
        let builder = made.map(|(zygote, proc)| Builder { isolation, zygote, proc, signals, elsewhere });
        build.map_or(70, |build| build(builder))
    }
}

/// Returns the exit code that a shell would report.
fn exit_code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    }
}

/// The exit status of the builder.
#[derive(Debug, Clone, Copy)]
pub struct BuilderExit {
    /// The exit code.
    pub code: i32,
    /// True if a signal requested the end.
    pub stopped: bool,
}

/// The effect of signals on a builder.
#[derive(Debug, Clone, Copy)]
struct StopPolicy {
    /// Time that the builder has after a request for its end before it is killed.
    grace: Duration,
    hangup: Hangup,
}

/// The effect of SIGHUP.
#[derive(Debug, Clone, Copy)]
enum Hangup {
    /// A request for the end.
    Stop,
    /// The builder receives it. A request for the end only if this process had a terminal, which is
    /// gone.
    Forward { from_terminal: bool },
}

impl StopPolicy {
    /// Returns true if a signal requests the end of the builder.
    fn requests_end(self, signal: Signal) -> bool {
        match self.hangup {
            Hangup::Forward { from_terminal } if signal == Signal::SIGHUP => from_terminal && !has_terminal(),
            _ => true,
        }
    }
}

/// Returns true if this process has a controlling terminal.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// A builder that was started.
struct Supervised<'a> {
    child: u32,
    pidfd: &'a OwnedFd,
    signals: &'a StopSignals,
    stop: StopPolicy,
}

impl Supervised<'_> {
    /// Forwards signals until the builder ends. The builder writes to `failure_reader` if it fails
    /// before it calls `build`.
    fn supervise(
        self,
        mut go: PipeWriter,
        mut failure_reader: PipeReader,
        watched: &mut Option<Watched<'_>>,
    ) -> Result<Result<BuilderExit, SandboxError>, SandboxError> {
        let Supervised { child, pidfd, signals, stop } = self;
        match go.write_all(b"g") {
            // The builder was killed before it read the byte; its exit status reports that.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.map_err(failed("send", "the builder process"))?,
        }
        let mut requested: Option<StopRequest> = None;
        loop {
            let left = requested.map(|requested| stop.grace.saturating_sub(requested.at.elapsed()));
            if left.is_some_and(|l| l.is_zero()) {
                process::kill(child);
            }
            let timeout = left.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: i64::from(l.subsec_nanos()) });
            let timeout = timeout.filter(|t| t.tv_sec > 0 || t.tv_nsec > 0);
            let polled =
                [Some(pidfd.as_fd()), Some(signals.as_fd()), watched.as_ref().map(|watched| watched.socket.as_fd())];
            let polled = polled.into_iter().flatten();
            let mut fds: Vec<PollFd<'_>> = polled.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Ok(Err(failed("poll", "the builder process")(e.into()))),
            }
            let (has_ended, is_readable) =
                (fds[0].revents().contains(PollFlags::IN), fds.get(2).is_some_and(|fd| !fd.revents().is_empty()));
            if is_readable && watched.as_mut().is_some_and(|watched| !(watched.read)()) {
                *watched = None;
            }
            for signal in signals.take_all() {
                let now = StopRequest::now(signal);
                match requested {
                    Some(first) if first.is_repeated_by(now) => continue,
                    // Second request: kill without waiting for the grace period.
                    Some(_) => process::kill(child),
                    None => process::send_signal(child, signal),
                }
                if requested.is_some() || stop.requests_end(signal) {
                    request_end(signal);
                    requested = Some(now);
                }
            }
            if has_ended {
                let code = exit_code(process::wait(child)?);
                // The builder's report is complete; other processes may still hold the other end
                // open.
                let mut byte = [0];
                let failed = rustix::fs::fcntl_setfl(&failure_reader, OFlags::NONBLOCK)
                    .is_ok_and(|()| failure_reader.read(&mut byte).is_ok_and(|n| n > 0));
                let stopped = requested.is_some() || signals.arrived();
                return if failed { Err(SandboxError::NotSetUp) } else { Ok(Ok(BuilderExit { code, stopped })) };
            }
        }
    }
}

/// Waits for the launcher's byte, and ties this process's lifetime to the launcher's.
fn begin(mut ready: PipeReader, launcher: &OwnedFd, become_root: bool) -> Result<(), SandboxError> {
    rbuild_linux::drop_withheld();
    let mut byte = [0u8; 1];
    // End of file: the launcher died or could not write the maps.
    if ready.read(&mut byte).unwrap_or(0) != 1 {
        std::process::exit(70);
    }
    if become_root {
        credentials::become_root()?;
    }
    process::die_with(launcher)?;
    // Descriptors inherited from the caller's shell must not reach any program executed from here
    // on.
    process::close_descriptors_on_exec()?;
    // A terminal's signals are for the launcher, which forwards them.
    let _ = rustix::process::setsid();
    umask::clear_umask();
    rbuild_linux::join_new_session_keyring();
    Ok(())
}

/// Sets up a builder in the launcher's own namespaces and root.
fn become_bare_builder(ready: PipeReader, launcher: &OwnedFd) -> Result<Zygote, SandboxError> {
    begin(ready, launcher, false)?;
    let zygote = Zygote::start(None, true, None)?;
    resource_limits::raise_open_files();
    Ok(zygote)
}

fn become_builder(
    config: &BuilderConfig,
    owners: OwnerMode,
    ready: PipeReader,
    launcher: &OwnedFd,
) -> Result<(Zygote, ProcView), SandboxError> {
    begin(ready, launcher, true)?;
    let store = bind_clone(&config.store)?;
    let binds = config.binds.iter().map(|(source, at)| Ok((bind_clone(source)?, at)));
    let binds = binds.collect::<Result<Vec<_>, SandboxError>>()?;
    let (proc, proc_view) = match new_procfs() {
        Ok(proc) => (proc, ProcView::Own),
        // If parts of /proc are covered, the kernel refuses to mount a procfs that would reveal
        // them.
        Err(e) => (bind_clone(Path::new("/proc")).map_err(|_| proc_refused(e))?, ProcView::Outer),
    };
    let isolated = config.carrier.as_ref().map(|carrier| Isolated::start(carrier, &config.store, &config.ports));
    let isolated = isolated.transpose()?;
    let sysfs = config.commands.then(new_sysfs).flatten();
    let (sysfs, network) = sysfs.map_or((None, None), |sysfs| (Some(sysfs.mount), Some(sysfs.network)));
    let context = RunnerContext { owners: config.owners.with_mode(owners), proc: proc_view, isolated };
    let zygote = Zygote::start(Some(context), config.commands, network)?;
    // Commands, which the zygote starts, keep the caller's limit.
    resource_limits::raise_open_files();
    let root = MiniRoot::new(&config.store)?;
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
    Ok((zygote, proc_view))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_killed_before_its_start_is_reported_as_killed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = process::pidfd(child.id()).unwrap();
        child.kill().unwrap();
        process::wait_for_end(&pidfd);
        assert!(process::was_killed(&pidfd));
        let (ready, go) = std::io::pipe().unwrap();
        let (failure_reader, _failure_writer) = std::io::pipe().unwrap();
        drop(ready);
        let stop = StopPolicy { grace: GRACE, hangup: Hangup::Stop };
        let signals = &StopSignals::block().unwrap();
        let supervised = Supervised { child: child.id(), pidfd: &pidfd, signals, stop };
        let ended = supervised.supervise(go, failure_reader, &mut None);
        let ended = ended.unwrap().unwrap();
        assert_eq!((ended.code, ended.stopped), (128 + 9, false));
        assert!(child.wait().is_err(), "it has been waited for");
    }
}
