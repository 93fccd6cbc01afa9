//! Processes: start, signals, end, and the end of a process together with its parent.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Result, described};
use crate::signal_names::REAL_TIME;
use crate::syscalls::close_on_exec;

/// The process in which a fork or clone has returned.
pub enum Cloned {
    /// The parent; `child` is the PID of the child.
    Parent {
        /// Process ID of the child.
        child: u32,
    },
    /// The child.
    Child,
}

/// Forks the calling process into new user, mount, PID and IPC namespaces. The child is their first
/// process.
///
/// # Errors
///
/// Fails if the calling process has several threads, or if the namespaces cannot be created.
pub fn clone_into_namespaces() -> Result<Cloned> {
    clone((libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC) as u64)
}

/// Forks the calling process (fork(2)).
///
/// # Errors
///
/// Fails if the calling process has several threads, or if the child cannot be created.
pub fn fork() -> Result<Cloned> {
    clone(0)
}

/// Forks the calling process into a new PID namespace. The child is its first process: when it
/// ends, the kernel kills all its descendants before the pidfd signals the end (pid_namespaces(7)).
///
/// # Errors
///
/// Fails as [`fork`] does.
pub fn fork_into_pid_namespace() -> Result<Cloned> {
    clone(libc::CLONE_NEWPID as u64)
}

/// Returns a description of the process that [`clone`] creates.
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
    // SAFETY: `args` is a live clone_args of version 0 (64 bytes) with null pointers only.
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

/// Sets close-on-exec on every descriptor except the standard streams, so that programs executed by
/// this process and its children inherit no others.
pub fn close_descriptors_on_exec() -> Result<()> {
    let open = Path::new("/proc/self/fd");
    let fail = |e| Error::new("openat", open, e);
    for entry in std::fs::read_dir(open).map_err(fail)? {
        let number = entry.map_err(fail)?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            close_on_exec(number);
        }
    }
    Ok(())
}

/// Unblocks all signals in the calling thread.
pub fn unblock_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let fail =
        |e: nix::errno::Errno| Error::new("sigprocmask", described("the handling of signals"), std::io::Error::from(e));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(fail)
}

/// Starts a program without blocked signals, whatever this thread blocks. The program receives
/// SIGTERM when this thread ends.
pub fn start_unblocked(command: &mut std::process::Command) -> std::io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let prepare = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        unblock_signals().map_err(std::io::Error::other)
    };
    // SAFETY: the closure calls prctl(2) and sigprocmask(2) alone, and allocates nothing if they
    // succeed. The calls fail for invalid arguments only.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Restores the signal state that programs expect at start: nothing blocked and nothing ignored.
/// This includes SIGPIPE, which Rust's runtime ignores, and signals ignored when rbuild was started
/// (a shell's background jobs ignore SIGINT).
pub fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigHandler, signal};
    unblock_signals()?;
    let fail = |e: nix::errno::Errno| {
        Error::new("rt_sigaction", described("the handling of signals"), std::io::Error::from(e))
    };
    for each in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(each, SigHandler::SigDfl) }.map_err(fail)?;
    }
    Ok(())
}

/// Returns true if the process ignores a signal, for example because nohup(1) started it.
pub(crate) fn ignores(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only writes the current action, for which `action` has room. A structure of
    // zeros, which remains if it fails, is valid.
    let action = unsafe {
        libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Blocks the signals that terminals and supervisors send to whole groups of processes, in the
/// calling thread and those that it starts. For processes that are ended by another process of the
/// group.
pub fn block_ending_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let set: SigSet = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM].into_iter().collect();
    let fail =
        |e: nix::errno::Errno| Error::new("sigprocmask", described("the handling of signals"), std::io::Error::from(e));
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(fail)
}

/// Sends SIGKILL through a pidfd. Does nothing if the process has already ended.
pub fn kill_pidfd(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}

/// Sends the signal with that number through a pidfd.
///
/// # Errors
///
/// Fails if the process has ended, or if the caller may not signal it.
pub fn signal_pidfd(pidfd: &OwnedFd, number: i32) -> Result<()> {
    let fail = |e| Error::new("pidfd_send_signal", described("the process of the container"), e);
    let signal = if REAL_TIME.contains(&number) {
        // SAFETY: the number is that of a signal which the C library does not reserve.
        unsafe { rustix::process::Signal::from_raw_unchecked(number) }
    } else {
        rustix::process::Signal::from_named_raw(number).ok_or_else(|| fail(rustix::io::Errno::INVAL))?
    };
    rustix::process::pidfd_send_signal(pidfd, signal).map_err(fail)
}

/// Starts a session of the calling process's own, without a terminal.
pub fn leave_session() {
    // The leader of a process group already has one.
    let _ = rustix::process::setsid();
}

/// Replaces the standard streams of the calling process.
///
/// # Errors
///
/// Fails if a descriptor cannot be duplicated.
pub fn replace_standard_streams(file: &impl AsFd) -> std::io::Result<()> {
    rustix::stdio::dup2_stdin(file)?;
    rustix::stdio::dup2_stdout(file)?;
    Ok(rustix::stdio::dup2_stderr(file)?)
}

/// Closes descriptors other than the standard streams that the program which started this process
/// left open for it. For a process that outlives its caller, which may wait for the end of a pipe.
pub fn close_inherited_descriptors() {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2 && is_inherited(*number)) {
        let _ = nix::unistd::close(number);
    }
}

/// Returns true if a descriptor would stay open in an executed program.
fn is_inherited(number: i32) -> bool {
    // Descriptors that this program opens are closed on execution.
    // SAFETY: the descriptor is only borrowed for the call, which fails if it is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
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

/// Requests that the kernel kill the calling process when the thread that started it ends.
/// `parent` is a pidfd of that thread's process, opened before this one was started. If the parent
/// has already ended, no signal is sent, and this function exits the process instead. A change of
/// credentials clears the request (prctl(2), PR_SET_PDEATHSIG), so call this after the last one.
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

/// Returns true if the process of a pidfd has ended.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, Some(&now)) {}
    !fds[0].revents().is_empty()
}

/// Waits until there is input, or until the process of a pidfd (usually the writer) has ended.
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

/// Returns true if the child of a pidfd was killed by a signal; false if it was already reaped.
pub fn was_killed(pidfd: &OwnedFd) -> bool {
    end_of_child(pidfd).is_some_and(|status| status.killed() || status.dumped())
}

/// Returns true if the child of a pidfd exited by itself; false if it was already reaped.
pub fn has_exited(pidfd: &OwnedFd) -> bool {
    end_of_child(pidfd).is_some_and(|status| status.exited())
}

fn end_of_child(pidfd: &OwnedFd) -> Option<rustix::process::WaitIdStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    waitid(WaitId::PidFd(pidfd.as_fd()), options).ok().flatten()
}

/// Waits for the process of a pidfd, which need not be a child, to end.
pub fn wait_for_end(pidfd: &OwnedFd) {
    while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) {}
}

/// Maximum time from the closing of a killed process's descriptors until it is a zombie.
pub const MAX_EXIT_DELAY: Duration = Duration::from_millis(50);

/// Waits at most `timeout` for the process of a pidfd to end, and returns true if it has ended.
pub fn ends_within(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let _ = retry_on_intr(|| poll(&mut fds, Some(&timeout)));
    !fds[0].revents().is_empty()
}

/// Returns a descriptor that becomes readable when process `pid` ends (Linux 5.3).
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    let fail = |e| Error::new("pidfd_open", described(format!("process {pid}")), e);
    let pid = Pid::from_raw(pid as i32).ok_or_else(|| fail(rustix::io::Errno::INVAL))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(fail)
}

/// Sends SIGKILL to a process. Does nothing if it has already ended.
pub fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
}

/// Sends SIGTERM to a process. Does nothing if it has already ended.
pub fn terminate(pid: u32) {
    send_signal(pid, Signal::SIGTERM);
}

/// Sends a signal to a process. Errors are ignored.
pub fn send_signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Exited with this code.
    Code(i32),
    /// A signal with this number killed it.
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

/// `PIDFD_THREAD` (Linux 6.9): also accepts a thread that is not a thread-group leader.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// Translates a thread ID from the PID namespace of the calling process to that of the procfs
/// `proc`. Returns `None` if the thread has ended.
pub fn tid_in(proc: BorrowedFd<'_>, thread: u32) -> Option<u32> {
    let pid = Pid::from_raw(thread as i32)?;
    let open = |flags| rustix::process::pidfd_open(pid, PidfdFlags::from_bits_retain(flags));
    let pidfd = open(PIDFD_THREAD).or_else(|_| open(0)).ok()?;
    // See proc_pid_fdinfo(5): the ID is that of the PID namespace of the procfs mount.
    let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
    let info = rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let text = std::io::read_to_string(std::fs::File::from(info)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// Runs `child` in a process of its own with one thread, and returns its PID once `child` has
/// called its argument. `child` may only make system calls.
#[cfg(test)]
pub(crate) fn forked(child: impl FnOnce(&dyn Fn()) -> i32) -> u32 {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child only makes system calls, which need no lock of another thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => {
            drop(writer);
            let mut byte = [0];
            std::io::Read::read_exact(&mut &reader, &mut byte).unwrap();
            child.as_raw() as u32
        }
        nix::unistd::ForkResult::Child => {
            let code = child(&|| {
                let _ = rustix::io::write(&writer, b"r");
            });
            // SAFETY: ends the process without running code of the test harness.
            unsafe { libc::_exit(code) }
        }
    }
}

/// As the first process of a PID namespace, a process that ignores the signal does not end by
/// it.
#[cfg(test)]
pub(crate) fn ignore(signal: Signal) {
    use nix::sys::signal::SigHandler::SigIgn;
    // SAFETY: no code of this process runs.
    let _ = unsafe { nix::sys::signal::signal(signal, SigIgn) };
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

    #[test]
    fn a_program_starts_without_blocked_signals() {
        let blocked = crate::StopSignals::block().unwrap();
        let mut command = std::process::Command::new("grep");
        command.args(["SigBlk", "/proc/self/status"]).stdout(std::process::Stdio::piped());
        let output = start_unblocked(&mut command).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "SigBlk:\t0000000000000000\n");
        drop(blocked);
    }

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;
        let start = || start_unblocked(std::process::Command::new("sleep").arg("60")).unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
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
