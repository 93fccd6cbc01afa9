//! Process management: creating namespaces, waiting, and tying lifetimes together.
//!
//! Contains most of the workspace's `unsafe`.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rbuild_container::{Resource, Ulimit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Result, described};
use crate::meta::UidGid;

/// Duplicates the open descriptor with that number in this process.
pub fn duplicate(number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number, and fails with EBADF if it is not open.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just allocated this descriptor; nothing else owns it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Takes ownership of an inherited descriptor that has no owner in this program yet. Executed
/// programs do not inherit it.
pub(crate) fn take_inherited(number: i32) -> std::io::Result<OwnedFd> {
    let taken = duplicate(number)?;
    // SAFETY: close takes any number. No owner in this process relies on this one: it was open when
    // the program started, and the caller takes each number once, before other files are opened.
    unsafe { libc::close(number) };
    Ok(taken)
}

/// Sets close-on-exec on every descriptor except the standard streams, so that programs executed by
/// this process and its children inherit no others.
pub fn keep_descriptors_from_programs() -> Result<()> {
    let open = Path::new("/proc/self/fd");
    let fail = |e| Error::new("openat", open, e);
    for entry in std::fs::read_dir(open).map_err(fail)? {
        let number = entry.map_err(fail)?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            // SAFETY: fcntl takes any number; only the close-on-exec flag of the descriptor
            // changes.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// The side of a clone or fork on which the caller runs.
pub enum Cloned {
    Parent { child: u32 },
    Child,
}

/// Forks the calling process into new user, mount, pid and ipc namespaces, as their first process.
/// Fails unless the calling process has exactly one thread.
pub fn clone_into_namespaces() -> Result<Cloned> {
    clone((libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC) as u64)
}

/// Forks the calling process, as fork(2) does. Fails unless it has exactly one thread.
pub fn fork() -> Result<Cloned> {
    clone(0)
}

/// Like [`fork`], as the first process of a new PID namespace. When that process ends, the kernel
/// kills all its descendants, including those it has not yet reported, before its pidfd signals the
/// end (pid_namespaces(7)).
pub fn fork_into_pid_namespace() -> Result<Cloned> {
    clone(libc::CLONE_NEWPID as u64)
}

/// Describes the process that [`clone`] makes.
fn cloned(flags: u64) -> &'static str {
    match flags {
        0 => "a process",
        _ => "a process in new namespaces",
    }
}

fn clone(flags: u64) -> Result<Cloned> {
    if !is_alone()? {
        return Err(Error::new(
            "clone3",
            described("a process"),
            std::io::Error::other("this one has several threads"),
        ));
    }
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
    }
    let args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    // SAFETY: `args` is a live clone_args of version 0 (64 bytes) whose pointers are all null.
    // Without CLONE_VM the child gets a copy of the address space and returns here on a copy of
    // this stack. The only hazard of such a copy is state that other threads held at that moment
    // (locks, the allocator); there is no other thread, as checked above. libc's fork handlers,
    // which this call does not run, exist to guard against exactly those other threads; glibc keeps
    // no cached pid since 2.25.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    if pid == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        // Seccomp filters of containers deny clone3 so that programs fall back to clone. SAFETY: as
        // above; a null stack means a copy of this one, and no flag uses the other pointers.
        pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD as u64, 0u64, 0u64, 0u64, 0u64) };
    }
    match pid {
        0 => Ok(Cloned::Child),
        n if n > 0 => Ok(Cloned::Parent { child: n as u32 }),
        _ => Err(Error::new("clone3", described(cloned(flags)), std::io::Error::last_os_error())),
    }
}

/// Restores the signal state that programs expect at start: nothing blocked and nothing ignored.
/// This includes SIGPIPE, which Rust's runtime ignores, and signals ignored when rbuild was started
/// (a shell's background jobs ignore SIGINT).
pub fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, signal, sigprocmask};
    let fail =
        |call, e: nix::errno::Errno| Error::new(call, described("the handling of signals"), std::io::Error::from(e));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(|e| fail("sigprocmask", e))?;
    for each in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(each, SigHandler::SigDfl) }.map_err(|e| fail("rt_sigaction", e))?;
    }
    Ok(())
}

/// Blocks the signals that terminals and supervisors send to whole groups of processes, in the
/// calling thread and those that it starts. For a process that another one kills.
pub fn block_ending_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let set: SigSet = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM].into_iter().collect();
    let fail =
        |e: nix::errno::Errno| Error::new("sigprocmask", described("the handling of signals"), std::io::Error::from(e));
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(fail)
}

/// Reaps all children that have ended, and returns them. Does not block.
pub fn reap() -> Vec<(u32, Exit)> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid.as_raw() as u32, Exit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push((pid.as_raw() as u32, Exit::Signal(signal as i32))),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// Sends SIGKILL through a pidfd. Succeeds if the process has already ended.
pub fn kill_pidfd(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}

/// Returns true if this is the only thread. A joined thread may still be listed by the kernel for a
/// moment, so this waits up to a second for it to disappear.
fn is_alone() -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while thread_count()? != 1 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(true)
}

fn thread_count() -> Result<usize> {
    let tasks = Path::new("/proc/self/task");
    Ok(std::fs::read_dir(tasks).map_err(|e| Error::new("openat", tasks, e))?.count())
}

/// Requests that the kernel kills the calling process when the thread that started it ends.
/// `parent` is a pidfd of that thread's process, opened before this one was started. A parent that
/// has already ended sends no signal; in that case this process exits here. A change of credentials
/// clears the request (prctl(2), PR_SET_PDEATHSIG), so call this after the last one.
pub fn die_with(parent: &OwnedFd) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| Error::new("prctl", described("the signal at the end of the parent process"), e))?;
    if has_ended(parent) {
        std::process::exit(70);
    }
    Ok(())
}

/// Returns a pidfd of the calling process, for children that call [`die_with`].
pub fn own_pidfd() -> Result<OwnedFd> {
    pidfd(std::process::id())
}

/// Returns true if the process behind a pidfd has ended.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, Some(&now)) {}
    !fds[0].revents().is_empty()
}

/// Waits until there is input, or until the process behind a pidfd (usually the writer) has ended.
/// Fails with EPIPE if that process ended and left nothing to read.
pub fn wait_for_input_or_end(input: impl AsFd, pidfd: &OwnedFd) -> rustix::io::Result<()> {
    let mut fds = [PollFd::new(&input, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, None))?;
    if fds[0].revents().is_empty() {
        // The process may have written and ended between the poll's snapshot of the two
        // descriptors.
        let mut last = [PollFd::new(&input, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        retry_on_intr(|| poll(&mut last, Some(&now)))?;
        if last[0].revents().is_empty() {
            return Err(rustix::io::Errno::PIPE);
        }
    }
    Ok(())
}

/// Returns true if the child behind a pidfd was killed by a signal; false if it was already reaped.
pub fn was_killed(pidfd: &OwnedFd) -> bool {
    end_of_child(pidfd).is_some_and(|status| status.killed() || status.dumped())
}

/// Returns true if the child behind a pidfd exited by itself; false if it was already reaped.
pub fn has_exited(pidfd: &OwnedFd) -> bool {
    end_of_child(pidfd).is_some_and(|status| status.exited())
}

fn end_of_child(pidfd: &OwnedFd) -> Option<rustix::process::WaitIdStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    waitid(WaitId::PidFd(pidfd.as_fd()), options).ok().flatten()
}

/// Waits for the process behind a pidfd, which need not be a child, to end.
pub fn wait_for_end(pidfd: &OwnedFd) {
    while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) {}
}

/// Maximum time for a killed process to become a zombie, after its descriptors are closed.
pub const DYING: Duration = Duration::from_millis(50);

/// Waits at most `most` for that process to end, and returns true if it did.
pub fn ends_within(pidfd: &OwnedFd, most: Duration) -> bool {
    let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let _ = retry_on_intr(|| poll(&mut fds, Some(&most)));
    !fds[0].revents().is_empty()
}

/// Returns the current time of the clock shared by all processes of the machine (CLOCK_MONOTONIC),
/// in nanoseconds.
pub fn moment() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Switches to user and group 0 of the calling process's user namespace, without supplementary
/// groups.
pub fn become_root() -> Result<()> {
    let fail = |call, e: nix::errno::Errno| Error::new(call, described("user and group 0"), std::io::Error::from(e));
    match nix::unistd::setgroups(&[]) {
        // The supplementary groups cannot be changed in this case.
        Err(nix::errno::Errno::EPERM) if setgroups_denied() => {}
        other => other.map_err(|e| fail("setgroups", e))?,
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("setresgid", e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("setresuid", e))
}

/// Switches permanently to that user: groups first, then IDs.
pub fn become_user(user: UidGid, groups: &[u32]) -> Result<()> {
    let UidGid { uid, gid } = user;
    let fail = |call, e: nix::errno::Errno| {
        Error::new(call, described(format!("user {uid} and group {gid}")), std::io::Error::from(e))
    };
    let groups: Vec<nix::unistd::Gid> = groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    match nix::unistd::setgroups(&groups) {
        Err(nix::errno::Errno::EPERM) if setgroups_denied() => {}
        other => other.map_err(|e| fail("setgroups", e))?,
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("setresgid", e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("setresuid", e))
}

/// Makes the calling process the reaper of orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|e| Error::new("prctl", described("the reaper of orphaned processes"), std::io::Error::from(e)))
}

/// Opens a new pseudoterminal, and returns its controlling end and its terminal end (pty(7)).
pub fn new_terminal() -> Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    let fail = |call, e| Error::new(call, Path::new("/dev/ptmx"), e);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags).map_err(|e| fail("posix_openpt", e))?;
    rustix::pty::unlockpt(&ours).map_err(|e| fail("unlockpt", e))?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).map_err(|e| fail("ioctl(TIOCGPTPEER)", e))?;
    Ok((ours, theirs))
}

/// Returns the children of the calling process's first thread, in the numbering of /proc.
pub fn children() -> Vec<u32> {
    // If /proc belongs to an outer PID namespace, this process has another ID there.
    let shown = std::fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok());
    let own: u32 = shown.unwrap_or_else(std::process::id);
    let text = std::fs::read_to_string(format!("/proc/self/task/{own}/children"));
    if let Ok(text) = text {
        return text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    // Fallback for kernels without that file (CONFIG_PROC_CHILDREN).
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|pid| parent(*pid) == Some(own)).collect()
}

/// Kills all children, including those that are reparented to the calling process meanwhile, until
/// none are left.
pub fn kill_children() {
    loop {
        let children = children();
        if children.is_empty() {
            return;
        }
        children.iter().for_each(|pid| kill(*pid));
        for pid in children {
            let _ = wait(pid);
        }
    }
}

/// Sets a limit of the calling process.
pub fn set_limit(limit: &Ulimit) -> Result<()> {
    let value = |n: u64| (n != u64::MAX).then_some(n);
    let value = rustix::process::Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    rustix::process::setrlimit(of_kernel(limit.resource), value)
        .map_err(|e| Error::new("setrlimit", described(format!("the limit `{}`", limit.resource.name())), e))
}

/// Lets this process open as many files as its hard limit allows. Errors are ignored.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

/// Returns true if this namespace or one of its ancestors has permanently disabled setgroups(2)
/// (user_namespaces(7)).
pub fn setgroups_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|s| s.trim() == "deny")
}

/// Returns a descriptor that becomes readable when process `pid` ends (Linux 5.3).
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    let fail = |e| Error::new("pidfd_open", described(format!("process {pid}")), e);
    let pid = Pid::from_raw(pid as i32).ok_or_else(|| fail(rustix::io::Errno::INVAL))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(fail)
}

/// Sends SIGKILL to `pid`. Succeeds if it has already ended.
pub fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
}

pub fn send(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// Waits for the child `pid` to end.
pub fn wait(pid: u32) -> Result<Exit> {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid as i32), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Exit::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Exit::Signal(signal as i32)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("wait4", described(format!("process {pid}")), std::io::Error::from(e))),
        }
    }
}

/// Permits no more cgroup namespaces in the calling process's user namespace and those below it
/// (namespaces(7)). Fails if /proc/sys is read-only.
pub fn forbid_cgroup_namespaces() -> Result<()> {
    let setting = Path::new("/proc/sys/user/max_cgroup_namespaces");
    std::fs::write(setting, "0").map_err(|e| Error::new("write", setting, e))
}

/// Moves the calling process into a new network namespace whose loopback interface is up.
pub fn enter_loopback_network() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::new("unshare", described("a network namespace"), std::io::Error::from(e)))?;
    let fail = |call, e: std::io::Error| Error::new(call, described("the loopback interface"), e);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(|e| fail("socket", e))?;
    // SAFETY: all bytes zero is a valid `ifreq` (a C struct of an array and a union of plain data).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is an open socket, and SIOCSIFFLAGS reads one `ifreq`, which lives
    // past the call and whose name ends in a zero byte.
    let set = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS as _, &request) };
    if set == 0 { Ok(()) } else { Err(fail("ioctl(SIOCSIFFLAGS)", std::io::Error::last_os_error())) }
}

/// One instruction of a seccomp filter (struct sock_filter of linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterStep {
    pub code: u16,
    /// Number of instructions to skip if a comparison holds, and if it does not.
    pub yes: u8,
    pub no: u8,
    pub k: u32,
}

/// Converts the instructions to the kernel's form, and returns them with their count.
pub(crate) fn raw_steps(steps: &[FilterStep]) -> Result<(Vec<libc::sock_filter>, u16)> {
    let raw = steps.iter().map(|s| libc::sock_filter { code: s.code, jt: s.yes, jf: s.no, k: s.k }).collect();
    let len = u16::try_from(steps.len())
        .map_err(|_| Error::new("seccomp", described("a seccomp filter"), rustix::io::Errno::INVAL))?;
    Ok((raw, len))
}

/// Permanently filters the system calls of the calling process and all its descendants
/// (seccomp(2)). Requires CAP_SYS_ADMIN in its user namespace.
pub fn filter_calls(steps: &[FilterStep]) -> Result<()> {
    let fail = || Error::new("seccomp", described("a seccomp filter"), std::io::Error::last_os_error());
    let (mut raw, len) = raw_steps(steps)?;
    let program = libc::sock_fprog { len, filter: raw.as_mut_ptr() };
    // SAFETY: `program` points at `len` steps that live past the call; the kernel copies and checks
    // them. The call changes no memory of this process.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } {
        0 => Ok(()),
        _ => Err(fail()),
    }
}

/// Returns the kernel's ID of this boot. A different ID means that unsynced writes may be lost.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// Returns the user's name from /etc/passwd. Name services are not queried: they would load code at
/// run time, and the helpers that read subuid(5) files accept numbers as well.
pub fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_string())
    })
}

/// The umask that the program was started with, once queried.
static CALLERS_UMASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();

/// Applies the umask that the program was started with to `mode`. For the program's own files,
/// which are also created while the umask is cleared. The first call must happen while the process
/// is single-threaded.
pub fn by_umask(mode: u32) -> u32 {
    let umask = CALLERS_UMASK.get_or_init(|| {
        let umask = rustix::process::umask(rustix::fs::Mode::empty());
        rustix::process::umask(umask);
        umask.as_raw_mode()
    });
    mode & !umask
}

/// Clears the umask permanently: files get exactly the modes that they are created with.
pub fn clear_umask() {
    by_umask(0);
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Runs `work` with a umask of zero: files get exactly the modes that they are created with. The
/// umask is per process, so no other thread may create files at the same time.
pub fn without_umask<T>(work: impl FnOnce() -> T) -> T {
    by_umask(0);
    let old = rustix::process::umask(rustix::fs::Mode::empty());
    let result = work();
    rustix::process::umask(old);
    result
}

/// Gives the calling thread, and those that it starts, the lowest scheduling priority
/// (setpriority(2), which applies to threads on Linux). Errors are ignored.
pub fn yield_to_others() {
    let _ = rustix::process::setpriority_process(None, 19);
}

/// Returns the rows and columns of the terminal at standard error, if it is one.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((usize::from(size.ws_row), usize::from(size.ws_col)))
}

/// Returns the hard limit of the calling process in the resource's own unit; `None` if it is
/// unlimited.
pub fn hard_limit(resource: Resource) -> Option<u64> {
    rustix::process::getrlimit(of_kernel(resource)).maximum
}

fn of_kernel(resource: Resource) -> rustix::process::Resource {
    use rustix::process::Resource as Kernel;
    match resource {
        Resource::Core => Kernel::Core,
        Resource::Cpu => Kernel::Cpu,
        Resource::Data => Kernel::Data,
        Resource::Fsize => Kernel::Fsize,
        Resource::Locks => Kernel::Locks,
        Resource::Memlock => Kernel::Memlock,
        Resource::Msgqueue => Kernel::Msgqueue,
        Resource::Nice => Kernel::Nice,
        Resource::Nofile => Kernel::Nofile,
        Resource::Nproc => Kernel::Nproc,
        Resource::Rss => Kernel::Rss,
        Resource::Rtprio => Kernel::Rtprio,
        Resource::Rttime => Kernel::Rttime,
        Resource::Sigpending => Kernel::Sigpending,
        Resource::Stack => Kernel::Stack,
    }
}

/// Returns the effective IDs of this process.
pub fn own_ids() -> UidGid {
    UidGid { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned_as_recorded() {
        let (wait, ready) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ready.recv());
        let e = clone(0).map(drop).unwrap_err();
        drop(wait);
        assert!(other.join().unwrap().is_err());
        rbuild_testkit::assert_recorded!("threads", rbuild_testkit::message_row("clone", &e, e.remedy()));
    }

    /// A process whose threads have just ended can clone. Runs in a separate process because the
    /// test harness has threads.
    #[test]
    fn joined_threads_do_not_prevent_cloning() {
        const MARK: &str = "RBUILD_TEST_JOINED";
        if std::env::var_os(MARK).is_none() {
            let own = std::env::current_exe().unwrap();
            let name = "process::tests::joined_threads_do_not_prevent_cloning";
            let mut command = std::process::Command::new(own);
            let ended = command.args(["--exact", name, "--test-threads=1"]).env(MARK, "1").output().unwrap();
            let output = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && output.contains("1 passed"), "{output}");
            return;
        }
        // The harness itself waits on another thread, so the present count is the baseline.
        let before = thread_count().unwrap();
        for _ in 0..200 {
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| std::hint::black_box(1)))));
            let deadline = Instant::now() + Duration::from_secs(1);
            while thread_count().unwrap() != before {
                assert!(Instant::now() < deadline, "a joined thread stays");
            }
        }
    }

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test harness runs this on a separate thread.
        let Err(e) = clone_into_namespaces() else { panic!("cloned a threaded process") };
        assert!(e.to_string().contains("several threads"), "{e}");
    }
}
