//! The runner process: one request, one container, one outcome.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::NOTIFY_FILE;
use libcontainer::oci_spec::runtime as oci;
use libcontainer::syscall::syscall::SyscallType;
use rbuild_container::NetworkMode;
use rbuild_linux::fd_passing::{receive_fds, send_fds};
use rbuild_linux::process::{self, Exit};
use rbuild_linux::{
    MOUNT_POINTS, OwnerRecords, RootDir, UidGid, attach_mount, bind_clone, credentials, descendants, described,
    detached_overlay, enter_nested_user_namespace, enter_root, mount_tmpfs, namespaces, new_procfs, private_namespaces,
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Phase, PhaseContext, RunnerError, RunnerProblem, library};
use crate::id_emulation::{self, Credentials, SupervisedContainer, Supervisor};
use crate::protocol::{Input, Report, RootFiles, RunRequest, announce};
use crate::runner::chroot;
use crate::runner::devices::DEVICES;
use crate::runner::exec::{CommandExecutor, FailureFile};
use crate::runner::library_log::LibraryLog;
use crate::runner::mount_points::{MountPoints, create_mount_points};
use crate::runner::mounts::{self, RunnerDirs, mounts_inside, mounts_of};
use crate::runner::privileges::{FOR_THE_FILTER, granted};
use crate::runner::runner_context::{ProcView, RunnerContext};
use crate::runner::working_directory;

/// Paths private to the runner.
const BUNDLE: &str = "/run/bundle";
const ROOTFS: &str = "/run/bundle/rootfs";
const STATE: &str = "/run/state";
const NAME: &str = "run";
const CONSOLE: &str = "/run/console";

/// Runs a runner process to completion. Standard input is a socket that carries the request and the
/// reports; standard output and error belong to the command, and `input` is the command's input.
pub(crate) fn runner_main(input: Option<OwnedFd>, context: Option<&RunnerContext>) -> i32 {
    let Ok(stdin) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 70 };
    let mut socket = UnixStream::from(stdin);
    let finished = request(&mut socket).and_then(|request| match context {
        None => chroot::run(&request, input, &socket),
        Some(context) => {
            let exit = container(&request, input, &socket, context)?;
            Report::of_end(exit)
                .send(&socket)
                .map_err(RunnerProblem::of_call("send", described("the builder process")))
                .during(Phase::Report)
        }
    });
    if Report::Finished(finished).send(&socket).is_ok() { 0 } else { 70 }
}

fn request(socket: &mut UnixStream) -> Result<RunRequest, RunnerError> {
    let mut text = Vec::new();
    socket
        .read_to_end(&mut text)
        .map_err(RunnerProblem::of_call("recv", described("the builder process")))
        .during(Phase::Request)?;
    serde_json::from_slice(&text).map_err(library).during(Phase::Request)
}

/// Enters the namespaces of the container that libcontainer does not make.
fn enter_namespaces(request: &RunRequest, context: &RunnerContext) -> Result<(), RunnerProblem> {
    if context.proc == ProcView::Outer && request.command.is_insecure() {
        return Err(RunnerProblem::ExposedProcesses);
    }
    if request.network == NetworkMode::Isolated {
        context.isolated.as_ref().ok_or(RunnerProblem::NoNetwork)?.join()?;
    }
    if request.command.is_insecure() {
        // In a cgroup namespace of its own, the command could mount the cgroups that hold this
        // process, and change them with the rights of the caller.
        namespaces::forbid_cgroup_namespaces()?;
    }
    // The kernel lets the root of a user namespace inspect and join the processes of that
    // namespace. This /proc may show those of other commands, and a command with all capabilities
    // obtains descriptors of the builder (SO_PEERPIDFD). Some settings apply to all processes of a
    // user namespace: limits on namespaces, interpreters of programs (binfmt_misc).
    if context.proc == ProcView::Outer || request.command.is_insecure() {
        enter_nested_user_namespace()?;
    }
    private_namespaces(&request.hostname)?;
    if request.network == NetworkMode::None {
        namespaces::enter_loopback_network()?;
    }
    Ok(())
}

/// Mounts the container's files, and writes its configuration.
fn make_bundle(request: &RunRequest, context: &RunnerContext) -> Result<(), RunnerProblem> {
    // Bundle and state belong to this runner alone, and disappear with its mount namespace.
    mount_tmpfs(Path::new("/run"))?;
    for dir in [BUNDLE, ROOTFS, STATE, mounts::FILES] {
        std::fs::create_dir_all(dir).map_err(RunnerProblem::of_call("mkdirat", Path::new(dir)))?;
    }
    let root = RootDir::open("/")?;
    prepare(request, context, &root)?;
    // The supervisor must not keep a descriptor that leads out of the container.
    drop(root);
    let spec = spec(request, mounts_inside(context.proc)?)?;
    spec.save(Path::new(BUNDLE).join("config.json")).map_err(library)
}

fn container(
    request: &RunRequest,
    input: Option<OwnedFd>,
    socket: &UnixStream,
    context: &RunnerContext,
) -> Result<Exit, RunnerError> {
    // With the launcher's mask, signals that are sent before the command is executed would be
    // pending, and lost when the mask is reset. This process ignores them without a mask: it is the
    // first one of its PID namespace.
    process::unblock_signals().during(Phase::Start)?;
    // The PID namespace of this process belongs to the builder's user namespace, which has the
    // right to mount its procfs.
    let proc = (request.command.is_emulated() && context.proc == ProcView::Own).then(new_procfs);
    let proc = proc.transpose().map_err(RunnerProblem::from).during(Phase::Emulation)?;
    enter_namespaces(request, context).during(Phase::Namespaces)?;
    make_bundle(request, context).during(Phase::Files)?;
    let null = || {
        std::fs::File::open("/dev/null")
            .map(OwnedFd::from)
            .map_err(RunnerProblem::of_call("open", Path::new("/dev/null")))
    };
    let input = input.map_or_else(null, Ok).during(Phase::Container)?;
    let terminal = (request.command.input == Input::Terminal).then(|| UnixListener::bind(CONSOLE)).transpose();
    let terminal = terminal.map_err(RunnerProblem::of_call("bind", Path::new(CONSOLE))).during(Phase::Terminal)?;
    let failure = Arc::new(FailureFile::new().during(Phase::Container)?);
    let mut environment = CommandExecutor::new(request).during(Phase::Command)?.with_failure_file(failure.clone());
    let mut answers = None;
    if request.command.is_emulated() {
        let (ours, theirs, proc) = supervisor_channel(proc).during(Phase::Emulation)?;
        environment = environment.with_supervisor(theirs.into());
        answers = Some((ours, proc));
    }
    let pid = create(environment, input, terminal, socket, &failure)?;
    if request.announced {
        announce(pid, socket).during(Phase::Report)?;
    }
    if let Some((socket, proc)) = answers {
        let answered = answer(request, &socket, proc, &context.owners, pid).map_err(|e| match e {
            // The first process reports why it has sent none.
            RunnerProblem::NoListener => failure.get().unwrap_or(e),
            e => e,
        });
        answered.during(Phase::Emulation)?;
    }
    let exit = process::wait(pid).during(Phase::Command)?;
    failure.get().map_or(Ok(exit), |why| Err(why.during(Phase::Command)))
}

/// Creates and starts the container. Returns the process ID of its first process.
fn create(
    environment: CommandExecutor,
    input: OwnedFd,
    terminal: Option<UnixListener>,
    socket: &UnixStream,
    failure: &FailureFile,
) -> Result<u32, RunnerError> {
    let library_log = LibraryLog::listen();
    let why = |e: RunnerProblem| {
        let killed = killed();
        first_cause(failure.get(), killed).unwrap_or_else(|| {
            with_logged_error(e, library_log.as_ref().and_then(LibraryLog::first_error)).during(Phase::Container)
        })
    };
    let container = ContainerBuilder::new(NAME.to_string(), SyscallType::default())
        .with_root_path(STATE)
        .map_err(|e| why(library(e)))?
        .with_stdin(input)
        .with_console_socket(terminal.as_ref().map(|_| CONSOLE))
        .with_executor(environment)
        .as_init(BUNDLE)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| why(library(e)))?;
    for warning in library_log.iter().flat_map(LibraryLog::warnings) {
        let sent = Report::Warned(warning).send(socket);
        sent.map_err(RunnerProblem::of_call("send", described("the builder process"))).during(Phase::Report)?;
    }
    if let Some(listener) = terminal {
        let passed = pass_on_terminal(&listener, socket);
        passed.map_err(RunnerProblem::of_call("sendmsg", Path::new(CONSOLE))).during(Phase::Terminal)?;
    }
    let none = || RunnerProblem::Library { message: "the container has no process".into(), errno: None };
    let pid = container.pid().ok_or_else(none).during(Phase::Container)?.as_raw() as u32;
    start().map_err(why)?;
    Ok(pid)
}

/// Lets the container's first process execute the command. Before that, detaches the builder's
/// files from the mounts of this process: the command may have the right to join every mount
/// namespace of its user namespace.
fn start() -> Result<(), RunnerProblem> {
    let path = Path::new(STATE).join(NAME).join(NOTIFY_FILE);
    let mut socket = UnixStream::connect(&path).map_err(RunnerProblem::of_call("connect", &path))?;
    enter_root(&RootDir::open(ROOTFS)?)?;
    socket.write_all(b"start").map_err(RunnerProblem::of_call("write", &path))
}

/// Returns the two ends of the socket that carries the listener for calls about owners, and a /proc
/// that shows the container's processes: `own`, in which process IDs are the same as in this
/// process's PID namespace, or the one that is there.
fn supervisor_channel(
    own: Option<OwnedFd>,
) -> Result<(UnixStream, UnixStream, id_emulation::SharedProc), RunnerProblem> {
    let (ours, theirs) =
        UnixStream::pair().map_err(RunnerProblem::of_call("socketpair", described("a pair of sockets")))?;
    let outer = own.is_none();
    let there =
        || std::fs::File::open("/proc").map(OwnedFd::from).map_err(RunnerProblem::of_call("open", Path::new("/proc")));
    let dir = own.map_or_else(there, Ok)?;
    Ok((ours, theirs, id_emulation::SharedProc { dir, outer }))
}

/// Forwards the terminal, which was sent while the container was built and is queued in the socket.
fn pass_on_terminal(listener: &UnixListener, socket: &UnixStream) -> std::io::Result<()> {
    let (from, _) = listener.accept()?;
    let fds = receive_fds(&from)?;
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    Ok(send_fds(socket, &fds)?)
}

/// Returns an explanation if one of the container's first processes was killed during setup;
/// libcontainer reports only that a peer does not answer.
fn killed() -> Option<RunnerProblem> {
    let end = Instant::now() + process::MAX_EXIT_DELAY;
    loop {
        if let Some((_, Exit::Signal(signal))) =
            descendants::reap().iter().find(|(_, exit)| matches!(exit, Exit::Signal(_)))
        {
            return Some(RunnerProblem::Killed(*signal));
        }
        if descendants::children().is_empty() || Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the first cause of a failed setup. libcontainer kills the container's first process once
/// that has reported a failure, so the kill may be its consequence.
fn first_cause(failure: Option<RunnerProblem>, killed: Option<RunnerProblem>) -> Option<RunnerError> {
    let killed = killed.map(|why| why.during(Phase::Container));
    failure.map(|why| why.during(Phase::Command)).or(killed)
}

/// Answers the container's calls about owners until its first process has ended.
fn answer(
    request: &RunRequest,
    socket: &UnixStream,
    proc: id_emulation::SharedProc,
    owners: &OwnerRecords,
    pid: u32,
) -> Result<(), RunnerProblem> {
    let ended = process::pidfd(pid)?;
    let killed = || {
        process::ends_within(&ended, process::MAX_EXIT_DELAY);
        killed()
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    if !fds[0].revents().contains(PollFlags::IN) {
        return Ok(());
    }
    let listener = receive_fds(socket).ok().and_then(|mut fds| fds.pop());
    let listener = listener.ok_or_else(|| killed().unwrap_or(RunnerProblem::NoListener))?;
    let first =
        Credentials::starting(UidGid::new(request.command.uid, request.command.gid), request.command.groups.clone());
    let first = if request.command.keeps_capabilities() { first.with_all_capabilities() } else { first };
    let leaves_mounts = request.command.is_insecure();
    let lacks_capabilities = request.command.lacks_capabilities();
    let owners = owners.clone();
    let container = SupervisedContainer { pid, credentials: first, proc, owners, leaves_mounts, lacks_capabilities };
    let supervisor = Supervisor::enter(listener, container);
    supervisor.map_err(|why| killed().unwrap_or(why))?.serve(&ended);
    Ok(())
}

/// libcontainer's prefix for failures of its cleanup after an error. They are never the cause.
const CLEANUP: &str = ". error during cleanup: ";

/// libcontainer's prefix for errors of a container's first process.
const FIRST_PROCESS: &str = "error in executing process : ";

/// Puts the cause of libcontainer's failure first. `logged` is the first error in its log.
fn with_logged_error(e: RunnerProblem, logged: Option<String>) -> RunnerProblem {
    match e {
        RunnerProblem::Library { message, errno } => RunnerProblem::Library { message: cause(&message, logged), errno },
        e => e,
    }
}

fn cause(message: &str, logged: Option<String>) -> String {
    let message = message.split_once(CLEANUP).map_or(message, |(message, _)| message);
    let message = message.rsplit_once(FIRST_PROCESS).map_or(message, |(_, sentence)| sentence);
    match logged {
        Some(logged) if logged.starts_with(message) => logged,
        Some(logged) if !logged.contains(message) => format!("{logged} ({message})"),
        _ => message.into(),
    }
}

/// Mounts the root file system and everything in it except the procfs.
fn prepare(request: &RunRequest, context: &RunnerContext, root: &RootDir) -> Result<(), RunnerProblem> {
    let RunnerContext { owners, proc, .. } = context;
    for (name, (major, minor)) in DEVICES {
        if !Path::new("/dev").join(name).exists() {
            return Err(RunnerProblem::NoDevice { name: name.into(), major, minor });
        }
    }
    let scratch = request.files.open_scratch()?.with_owners(owners);
    let dirs = RunnerDirs { root, scratch: &scratch };
    let (mounted, mounts, created) = match &request.files {
        RootFiles::Overlay { lowers, upper, .. } => {
            let mut lowers = lowers.clone();
            lowers.push(MOUNT_POINTS.into());
            let files = scratch.with_fd(overlay(&lowers, upper, &scratch, "work")?, "/");
            let mut points = MountPoints::new(&files, &scratch);
            let mounts = mounts_of(request, *proc, &mut points, dirs)?;
            let created = points.finish()?;
            let mounted = match &created.dir {
                None => files.into_fd(),
                // Mounts it again with the missing mount points.
                Some(points) => {
                    drop(files);
                    lowers.insert(0, points.label().to_path_buf());
                    overlay(&lowers, upper, &scratch, "work-again")?
                }
            };
            (mounted, mounts, created.paths)
        }
        RootFiles::Directory { root: dir, .. } => {
            let files = scratch.open_alike(dir)?.shown_as_root();
            let mut points = MountPoints::new(&files, &scratch);
            let mounts = mounts_of(request, *proc, &mut points, dirs)?;
            let created = points.finish()?;
            if let Some(points) = &created.dir {
                create_mount_points(points, &files)?;
            }
            (bind_clone(dir)?, mounts, created.paths)
        }
    };
    root.sub(BUNDLE).and_then(|b| attach_mount(&mounted, &b, "rootfs"))?;
    let rootfs = scratch.open_alike(ROOTFS)?.shown_as_root();
    working_directory::create(
        &rootfs,
        &request.command.cwd,
        UidGid { uid: request.command.uid, gid: request.command.gid },
    )?;
    mounts::attach(&mounts, &created, request, &rootfs)?;
    // A mount may cover it.
    working_directory::create(&rootfs, &request.command.cwd, UidGid::ROOT)
}

/// Creates `work` in the scratch directory and mounts the overlay. A volatile overlay cannot reuse
/// a work directory.
fn overlay(lowers: &[PathBuf], upper: &Path, scratch: &RootDir, work: &str) -> Result<OwnedFd, RunnerProblem> {
    scratch.create_dir(work.as_ref(), 0o755)?;
    Ok(detached_overlay(lowers, Some((upper, &scratch.label().join(work))), Path::new("/mnt"))?)
}

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Describes the command, its user and its capabilities.
fn process_of(request: &RunRequest) -> Result<oci::Process, RunnerProblem> {
    let command = &request.command;
    let all = granted(command);
    // A command of another user starts without capabilities and may regain them through set-uid
    // programs. An insecure step keeps all of them, and so do the programs that it executes.
    let kept = if command.keeps_capabilities() { all.clone() } else { oci::Capabilities::new() };
    let mut held = if command.uid == 0 || command.is_emulated() { all.clone() } else { kept.clone() };
    let mut bounding = all;
    if !command.keeps_capabilities() {
        // Required to install the seccomp filter; those that are not the command's are dropped
        // right after.
        held.extend(FOR_THE_FILTER);
        bounding.extend(FOR_THE_FILTER);
    }
    let capabilities = oci::LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(held.clone())
        .permitted(held)
        .inheritable(kept.clone())
        .ambient(kept)
        .build()
        .map_err(library)?;
    let user = oci::UserBuilder::default()
        .uid(request.command.kernel_ids().uid)
        .gid(request.command.kernel_ids().gid)
        .additional_gids(if credentials::setgroups_denied() { Vec::new() } else { request.command.groups.clone() })
        .umask(0o022u32)
        .build()
        .map_err(library)?;
    let mut process = oci::ProcessBuilder::default()
        .terminal(request.command.input == Input::Terminal)
        .user(user)
        .args(request.command.args.clone())
        .env(request.command.env.clone())
        .cwd(&request.command.cwd)
        .capabilities(capabilities)
        .build()
        .map_err(library)?;
    // Set-uid programs (su, sudo, ping) work in builds as they do under docker.
    process.set_no_new_privileges(None);
    // See `CommandExecutor::exec`.
    process.set_rlimits(None);
    Ok(process)
}

fn spec(request: &RunRequest, mounts: Vec<oci::Mount>) -> Result<oci::Spec, RunnerProblem> {
    // The other namespaces are the runner's own.
    let kinds = [oci::LinuxNamespaceType::Pid, oci::LinuxNamespaceType::Mount];
    let namespaces = kinds
        .into_iter()
        .map(|kind| oci::LinuxNamespaceBuilder::default().typ(kind).build().map_err(library))
        .collect::<Result<Vec<_>, _>>()?;
    let mut linux = oci::LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(if request.command.is_insecure() { Vec::new() } else { MASKED.map(String::from).to_vec() })
        .readonly_paths(if request.command.is_insecure() { Vec::new() } else { READ_ONLY.map(String::from).to_vec() })
        .build()
        .map_err(library)?;
    linux.set_resources(None);
    // See MiniRoot: the container stays in its current cgroup.
    linux.set_cgroups_path(Some("/".into()));
    let root = oci::RootBuilder::default().path(ROOTFS).readonly(request.read_only).build().map_err(library)?;
    let mut spec = oci::SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .mounts(mounts)
        .process(process_of(request)?)
        .linux(linux)
        .build()
        .map_err(library)?;
    // The runner has already set the host name.
    spec.set_hostname(None);
    spec.set_hooks(None);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_hides_no_failure_that_came_before_it() {
        let no_program = || Some(RunnerProblem::NoProgram { name: "nosuch".into(), path: None });
        let text = |found: Option<RunnerError>| found.map(|why| why.to_string());
        let expected = text(first_cause(no_program(), None));
        assert!(expected.as_ref().is_some_and(|text| text.contains("nosuch")), "{expected:?}");
        assert_eq!(text(first_cause(no_program(), Some(RunnerProblem::Killed(9)))), expected);
        let killed = text(first_cause(None, Some(RunnerProblem::Killed(9))));
        assert!(killed.as_ref().is_some_and(|text| text.contains("signal 9")), "{killed:?}");
        assert_eq!(text(first_cause(None, None)), None);
    }

    #[test]
    fn the_cause_is_reported_and_the_cleanup_is_not() {
        let tail =
            ". error during cleanup: failed to cleanup container: io error: at /sys/fs/cgroup/: could not delete";
        let message = |what: &str| {
            format!("failed to create container: exec process failed with error {FIRST_PROCESS}{what}{tail}")
        };
        let combined = |what: &str, logged: &str| cause(&message(what), Some(logged.to_string()));
        assert_eq!(
            combined("device error", "failed to open bind dev \"/dev/full\": ENOENT"),
            "failed to open bind dev \"/dev/full\": ENOENT (device error)"
        );
        assert_eq!(combined("device error", "device error: EPERM"), "device error: EPERM");
        assert_eq!(cause(&message("device error"), None), "device error");
        assert_eq!(cause("no such thing", None), "no such thing");
    }
}
