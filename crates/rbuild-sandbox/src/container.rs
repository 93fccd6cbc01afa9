//! The runner process: one request, one container, one outcome.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime as oci;
use libcontainer::syscall::syscall::SyscallType;
use rbuild_linux::process::{self, Exit};
use rbuild_linux::{Kind, RootDir, bind_clone, detached_overlay, mount_tmpfs, private_mount_namespace};

use rustix::event::{PollFd, PollFlags, poll};

use crate::chroot;
use crate::command::Environment;
use crate::owners::{Credentials, Ids, Supervisor};
use crate::request::{Files, Input, MountRequest, Network, Outcome, RunRequest, Source, Ulimit};
use crate::rights::{CAPABILITIES, FOR_THE_FILTER, process_capabilities};
use crate::stubs::{PointKind, Stubs, plant_points};
use crate::zygote::{receive_fds, send_fds};

/// The runner's own places.
const BUNDLE: &str = "/run/bundle";
const ROOTFS: &str = "/run/bundle/rootfs";
const STATE: &str = "/run/state";
const FILES: &str = "/run/files";
const MOUNTS: &str = "/run/mounts";
const CONSOLE: &str = "/run/console";

/// The whole life of a runner. Standard input is a socket that brings the request and takes the outcome; standard
/// output and error are the command's, and `input` is what it reads.
pub fn runner_main(input: Option<OwnedFd>) -> i32 {
    let Ok(stdin) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 70 };
    let mut socket = UnixStream::from(stdin);
    let mut text = Vec::new();
    let outcome = match socket.read_to_end(&mut text).map(|_| serde_json::from_slice::<RunRequest>(&text)) {
        Ok(Ok(request)) => {
            match if request.bare { chroot::run(&request, input, &socket) } else { container(&request, input, &socket) }
            {
                Ok(Exit::Code(code)) => Outcome::Exited(code),
                Ok(Exit::Signal(signal)) => Outcome::Signaled(signal),
                Err(reason) => Outcome::NotStarted(reason),
            }
        }
        Ok(Err(e)) => Outcome::NotStarted(format!("the request cannot be read: {e}")),
        Err(e) => Outcome::NotStarted(format!("the request cannot be read: {e}")),
    };
    let sent = serde_json::to_vec(&outcome).map(|bytes| socket.write_all(&bytes));
    if matches!(sent, Ok(Ok(()))) { 0 } else { 70 }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn container(request: &RunRequest, input: Option<OwnedFd>, socket: &UnixStream) -> Result<Exit, String> {
    private_mount_namespace().map_err(text)?;
    if request.network == Network::None {
        process::enter_lonely_network().map_err(text)?;
    }
    // Bundle and state are this runner's alone, and go away with its mount namespace.
    mount_tmpfs(Path::new("/run")).map_err(text)?;
    for dir in [BUNDLE, ROOTFS, STATE, FILES] {
        std::fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))?;
    }
    let root = RootDir::open("/").map_err(text)?;
    let prepared = prepare(request, &root)?;
    let spec = prepared.spec(request)?;
    spec.save(Path::new(BUNDLE).join("config.json")).map_err(|e| format!("the container's configuration: {e}"))?;
    let null = || std::fs::File::open("/dev/null").map(OwnedFd::from).map_err(|e| format!("/dev/null: {e}"));
    let input = input.map_or_else(null, Ok)?;
    let terminal = (request.input == Input::Terminal).then(|| UnixListener::bind(CONSOLE)).transpose();
    let terminal = terminal.map_err(|e| format!("a socket for the terminal: {e}"))?;
    let mut environment = Environment::new(request)?;
    let mut answers = None;
    if request.recorded {
        let (ours, theirs) = UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
        // While /proc is still the one that knows this process.
        let proc = std::fs::File::open("/proc").map_err(|e| format!("/proc: {e}"))?;
        environment = environment.answered_through(theirs.into());
        answers = Some((ours, proc));
    }
    let mut container = ContainerBuilder::new("run".to_string(), SyscallType::default())
        .with_root_path(STATE)
        .map_err(chain)?
        .with_stdin(input)
        .with_console_socket(terminal.as_ref().map(|_| CONSOLE))
        .with_executor(environment)
        .as_init(BUNDLE)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(chain)?;
    if let Some(listener) = terminal {
        // It was sent while the container was built, and lies in the socket.
        let (from, _) = listener.accept().map_err(|e| format!("the terminal: {e}"))?;
        let fds = receive_fds(&from).map_err(|e| format!("the terminal: {e}"))?;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        send_fds(socket, &fds).map_err(|e| format!("the terminal: {e}"))?;
    }
    let pid = container.pid().ok_or("the container has no process")?.as_raw() as u32;
    container.start().map_err(chain)?;
    if let Some((socket, proc)) = answers {
        answer(request, &socket, proc.into(), pid)?;
    }
    process::wait(pid).map_err(text)
}

/// Answers the container's calls about owners until its first process has ended.
fn answer(request: &RunRequest, socket: &UnixStream, proc: OwnedFd, pid: u32) -> Result<(), String> {
    let ended = process::pidfd(pid).map_err(text)?;
    let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    if !fds[0].revents().contains(PollFlags::IN) {
        return Ok(());
    }
    let listener =
        receive_fds(socket).ok().and_then(|mut fds| fds.pop()).ok_or("the command's calls cannot be answered")?;
    let first = Credentials {
        users: Ids::all(request.uid),
        groups: Ids::all(request.gid),
        more_groups: request.groups.clone(),
        ..Credentials::default()
    };
    Supervisor::enter(listener, proc, pid, first)?.serve(&ended);
    Ok(())
}

/// An error with its causes, each once.
fn chain(e: impl std::error::Error) -> String {
    let mut out = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !out.contains(&cause_text) {
            out.push_str(": ");
            out.push_str(&cause_text);
        }
        source = cause.source();
    }
    // What our own executor says is a sentence already; libcontainer's words around it explain nothing.
    match out.rsplit_once(EXECUTOR_SAYS) {
        Some((_, sentence)) => sentence.to_string(),
        None => out,
    }
}

/// What libcontainer puts before the errors of an executor.
const EXECUTOR_SAYS: &str = "error in executing process : ";

/// What stands ready before the container is made.
struct Prepared {
    mounts: Vec<oci::Mount>,
}

fn prepare(request: &RunRequest, root: &RootDir) -> Result<Prepared, String> {
    let scratch = RootDir::open(request.files.scratch()).map_err(text)?;
    for dir in ["work", "stubs", "thrown-away"] {
        scratch.create_dir_all(dir, 0o755, None, |_| ()).map_err(text)?;
    }
    let (below, mut lowers) = match &request.files {
        Files::Overlay { lowers, .. } => (view(lowers, root).map_err(text)?, lowers.clone()),
        Files::Directory { root, .. } => (Some(RootDir::open(root).map_err(text)?), Vec::new()),
    };
    let mut mounts = base_mounts(request)?;
    {
        let empty = scratch.sub("thrown-away").map_err(text)?;
        let mut stubs =
            Stubs::new(below.as_ref().unwrap_or(&empty), scratch.sub("stubs").map_err(text)?).map_err(text)?;
        for dir in ["/proc", "/dev"] {
            ensure(&mut stubs, Path::new(dir), PointKind::Dir)?;
        }
        for (name, content) in [("hosts", &request.hosts), ("resolv.conf", &request.resolv_conf)] {
            let file = Path::new(FILES).join(name);
            std::fs::write(&file, content).map_err(|e| format!("{}: {e}", file.display()))?;
            let at = ensure(&mut stubs, &Path::new("/etc").join(name), PointKind::File)?;
            mounts.push(mount(&at, "bind", Some(&file), &["bind", "rw"])?);
        }
        for (i, wanted) in request.mounts.iter().enumerate() {
            mounts.push(extra_mount(i, wanted, &mut stubs, root, &scratch)?);
        }
        if stubs.used() || lowers.is_empty() {
            lowers.insert(0, request.files.scratch().join("stubs"));
        }
    }
    let mounted = match &request.files {
        Files::Overlay { upper, scratch, .. } => {
            detached_overlay(&lowers, Some((upper, &scratch.join("work"))), Path::new("/mnt")).map_err(text)?
        }
        Files::Directory { root, .. } => {
            let files = RootDir::open(root).map_err(text)?;
            plant_points(&scratch.sub("stubs").map_err(text)?, &files).map_err(text)?;
            bind_clone(root).map_err(text)?
        }
    };
    root.sub(BUNDLE).and_then(|b| b.attach(&mounted, "rootfs")).map_err(text)?;
    let rootfs = RootDir::open(ROOTFS).map_err(text)?;
    match rootfs.stat_follow(&request.cwd) {
        Ok(stat) if stat.kind == Kind::Dir => {}
        Ok(_) => return Err(format!("the working directory {} is not a directory", request.cwd)),
        Err(e) if e.is_not_found() => return Err(format!("the working directory {} does not exist", request.cwd)),
        Err(e) => return Err(text(e)),
    }
    Ok(Prepared { mounts })
}

fn ensure(stubs: &mut Stubs<'_>, target: &Path, kind: PointKind) -> Result<PathBuf, String> {
    stubs.ensure(target, kind).map_err(|e| format!("the mount point {}: {e}", target.display()))
}

/// A stack of trees as one directory; `None` for no trees.
fn view(lowers: &[PathBuf], root: &RootDir) -> rbuild_linux::Result<Option<RootDir>> {
    match lowers {
        [] => Ok(None),
        [one] => root.sub(one).map(Some),
        many => {
            let fd = detached_overlay(many, None, Path::new("/mnt"))?;
            Ok(Some(RootDir::from_fd(fd, "/")))
        }
    }
}

fn extra_mount(
    index: usize,
    wanted: &MountRequest,
    stubs: &mut Stubs<'_>,
    root: &RootDir,
    scratch: &RootDir,
) -> Result<oci::Mount, String> {
    let target = Path::new(&wanted.target);
    let access = if wanted.read_only { "ro" } else { "rw" };
    match &wanted.source {
        Source::Tmpfs { size } => {
            let at = ensure(stubs, target, PointKind::Dir)?;
            let size = size.map(|s| format!("size={s}"));
            let mut options = vec!["nosuid", "nodev", "mode=1777"];
            options.extend(size.as_deref());
            mount(&at, "tmpfs", Some(Path::new("tmpfs")), &options)
        }
        Source::File { content, mode, uid, gid } => {
            let name = format!("mount-{index}");
            let files = RootDir::open(FILES).map_err(text)?;
            let mut file = files.create_file(name.as_ref(), 0o600).map_err(text)?;
            file.write_all(content).map_err(|e| format!("the file for {}: {e}", wanted.target))?;
            files.chown(name.as_ref(), *uid, *gid).map_err(text)?;
            files.chmod(name.as_ref(), *mode).map_err(text)?;
            // Below /dev, which is the container's own, the point is made when the mount is.
            let in_dev = target.starts_with("/dev");
            let at = if in_dev { target.to_path_buf() } else { ensure(stubs, target, PointKind::File)? };
            mount(&at, "bind", Some(&Path::new(FILES).join(name)), &["bind", access])
        }
        Source::Bind(source) | Source::Machine(source) => {
            let is_dir = std::fs::symlink_metadata(source).map_err(|e| format!("{}: {e}", source.display()))?.is_dir();
            let at = ensure(stubs, target, if is_dir { PointKind::Dir } else { PointKind::File })?;
            mount(&at, "bind", Some(source), &["bind", access])
        }
        Source::BindBelow { dir, path } => {
            let below = RootDir::open(dir).and_then(|dir| dir.sub(path)?.detached()).map_err(text)?;
            let at = ensure(stubs, target, PointKind::Dir)?;
            let (place, name) = own_place(index, root)?;
            place.attach(&below, &name).map_err(text)?;
            mount(&at, "bind", Some(&Path::new(MOUNTS).join(name)), &["bind", access])
        }
        Source::Trees { lowers, path } => {
            let source = trees_mount(index, lowers, wanted.read_only, root, scratch)?;
            part_mount(&source, path, target, access, stubs)
        }
        Source::Part { dir, path } => part_mount(dir, path, target, access, stubs),
    }
}

/// What is at `path` inside of `source`, wherever links lead there.
fn part_mount(
    source: &Path,
    path: &Path,
    target: &Path,
    access: &str,
    stubs: &mut Stubs<'_>,
) -> Result<oci::Mount, String> {
    let dir = RootDir::open(source).map_err(text)?;
    let real = dir.resolve(path).map_err(text)?;
    let stat = dir.stat(&real).map_err(|_| format!("the mount source {} does not exist", path.display()))?;
    let kind = if stat.kind == Kind::Dir { PointKind::Dir } else { PointKind::File };
    let at = ensure(stubs, target, kind)?;
    let source = source.join(real.strip_prefix("/").unwrap_or(&real));
    mount(&at, "bind", Some(&source), &["bind", access])
}

/// A directory of the runner's to mount something on: what it lies in, and its name there.
fn own_place(index: usize, root: &RootDir) -> Result<(RootDir, String), String> {
    let name = format!("mount-{index}");
    let place = root.create_dir_all(MOUNTS.trim_start_matches('/'), 0o755, None, |_| ()).map_err(text)?;
    place.create_dir_all(&name, 0o755, None, |_| ()).map_err(text)?;
    Ok((place, name))
}

/// Mounts a stack of trees in the runner's own namespace and gives the place.
fn trees_mount(
    index: usize,
    lowers: &[PathBuf],
    read_only: bool,
    root: &RootDir,
    scratch: &RootDir,
) -> Result<PathBuf, String> {
    let (place, name) = own_place(index, root)?;
    let path = Path::new(MOUNTS).join(&name);
    if let ([one], true) = (lowers, read_only) {
        return Ok(one.clone());
    }
    let mut lowers = lowers.to_vec();
    if lowers.is_empty() {
        lowers.push(scratch.label().join("thrown-away"));
    }
    let overlay = if read_only {
        // An overlay without an upper directory wants two lower ones.
        if lowers.len() == 1 {
            lowers.push(scratch.label().join("thrown-away"));
        }
        detached_overlay(&lowers, None, Path::new("/mnt"))
    } else {
        let (upper, work) = (format!("upper-{index}"), format!("work-{index}"));
        for dir in [&upper, &work] {
            scratch.create_dir_all(dir, 0o755, None, |_| ()).map_err(text)?;
        }
        let (upper, work) = (scratch.label().join(upper), scratch.label().join(work));
        detached_overlay(&lowers, Some((&upper, &work)), Path::new("/mnt"))
    };
    place.attach(&overlay.map_err(text)?, &name).map_err(text)?;
    Ok(path)
}

fn mount(at: &Path, kind: &str, source: Option<&Path>, options: &[&str]) -> Result<oci::Mount, String> {
    let mut builder = oci::MountBuilder::default()
        .destination(at)
        .typ(kind)
        .options(options.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    if let Some(source) = source {
        builder = builder.source(source);
    }
    builder.build().map_err(text)
}

fn base_mounts(request: &RunRequest) -> Result<Vec<oci::Mount>, String> {
    let fs = |at: &str, kind: &str, options: &[&str]| mount(Path::new(at), kind, Some(Path::new(kind)), options);
    let mut mounts = vec![
        fs("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        fs("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        fs("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"])?,
        mount(
            Path::new("/dev/shm"),
            "tmpfs",
            Some(Path::new("shm")),
            &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={}", request.shm_size)],
        )?,
        fs("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    // The order of the request decides; later mounts may lie below earlier ones.
    mounts.reserve(request.mounts.len() + 2);
    Ok(mounts)
}

const MASKED: [&str; 10] = [
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
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Prepared {
    fn spec(&self, request: &RunRequest) -> Result<oci::Spec, String> {
        let all: oci::Capabilities =
            if request.insecure { process_capabilities() } else { CAPABILITIES.into_iter().collect() };
        // A command of another user starts without capabilities and may win them back through set-uid programs.
        let mut held = if request.uid == 0 || request.recorded { all.clone() } else { oci::Capabilities::new() };
        let mut bounding = all;
        if !request.insecure {
            // To install the filter of calls; given up right after that.
            held.extend(FOR_THE_FILTER);
            bounding.extend(FOR_THE_FILTER);
        }
        let capabilities = oci::LinuxCapabilitiesBuilder::default()
            .bounding(bounding)
            .effective(held.clone())
            .permitted(held)
            .inheritable(oci::Capabilities::new())
            .ambient(oci::Capabilities::new())
            .build()
            .map_err(text)?;
        let user = oci::UserBuilder::default()
            .uid(if request.recorded { 0 } else { request.uid })
            .gid(if request.recorded { 0 } else { request.gid })
            .additional_gids(if process::setgroups_denied() { Vec::new() } else { request.groups.clone() })
            .umask(0o022u32)
            .build()
            .map_err(text)?;
        let mut process = oci::ProcessBuilder::default()
            .terminal(request.input == Input::Terminal)
            .user(user)
            .args(request.args.clone())
            .env(request.env.clone())
            .cwd(&request.cwd)
            .capabilities(capabilities)
            .build()
            .map_err(text)?;
        // Set-uid programs (su, sudo, ping) work in builds as they do under docker.
        process.set_no_new_privileges(None);
        process.set_rlimits(rlimits(request)?);
        // The network is the runner's own: the launcher's, or a lonely one that it has just entered.
        let kinds = [
            oci::LinuxNamespaceType::Pid,
            oci::LinuxNamespaceType::Ipc,
            oci::LinuxNamespaceType::Uts,
            oci::LinuxNamespaceType::Mount,
        ];
        let namespaces = kinds
            .into_iter()
            .map(|kind| oci::LinuxNamespaceBuilder::default().typ(kind).build().map_err(text))
            .collect::<Result<Vec<_>, _>>()?;
        let mut linux = oci::LinuxBuilder::default()
            .namespaces(namespaces)
            .masked_paths(if request.insecure { Vec::new() } else { MASKED.map(String::from).to_vec() })
            .readonly_paths(if request.insecure { Vec::new() } else { READ_ONLY.map(String::from).to_vec() })
            .build()
            .map_err(text)?;
        linux.set_resources(None);
        let root = oci::RootBuilder::default().path(ROOTFS).readonly(false).build().map_err(text)?;
        let mut spec = oci::SpecBuilder::default()
            .version("1.0.2")
            .root(root)
            .mounts(self.mounts.clone())
            .process(process)
            .hostname(request.hostname.clone())
            .linux(linux)
            .build()
            .map_err(text)?;
        spec.set_hooks(None);
        Ok(spec)
    }
}

fn rlimits(request: &RunRequest) -> Result<Option<Vec<oci::PosixRlimit>>, String> {
    if request.ulimits.is_empty() {
        return Ok(None);
    }
    let limit = |u: &Ulimit| {
        let kind: oci::PosixRlimitType = serde_json::from_value(u.name.clone().into()).map_err(text)?;
        oci::PosixRlimitBuilder::default().typ(kind).soft(u.soft).hard(u.hard).build().map_err(text)
    };
    request.ulimits.iter().map(limit).collect::<Result<_, _>>().map(Some)
}
