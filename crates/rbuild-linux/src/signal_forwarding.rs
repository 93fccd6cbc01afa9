//! Signals that are forwarded to commands: which of them a command receives.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::descendants::{children_of, shown_id, shown_pid};
use crate::process::{ends_within, has_ended, pidfd, send_signal};
use crate::syscalls::read_memory;

/// Number of times that a process is looked at before a signal counts as not received, and the time
/// between them.
const LOOKS: u32 = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Time within which a process that blocks a signal for a moment, as shells do around a fork,
/// unblocks it.
const MAX_MOMENT: Duration = Duration::from_millis(200);

/// Sends a signal to the children of a process that receive it: by a handler, by sigwait(3), or by
/// signalfd(2). Returns false if none of them does: the first process of a PID namespace ignores a
/// signal with the default action. Also returns false if /proc belongs to another PID namespace.
/// Takes up to a quarter of a second for each child.
pub fn forward_signal(process: &OwnedFd, signal: Signal) -> bool {
    let Some(pid) = shown_pid(process).filter(|_| shown_id() == Some(std::process::id())) else { return false };
    children_of(pid).into_iter().map(|child| forward_to(child, signal)).fold(false, |any, received| any | received)
}

/// Sends a signal to a process unless it has the default action there. Returns true if the process
/// receives it.
fn forward_to(process: u32, signal: Signal) -> bool {
    let Ok(pidfd) = pidfd(process) else { return false };
    // A process that has just been woken from sigwait(3) seems not to wait.
    let mut looks = (0..LOOKS).map(|look| {
        let ended = look > 0 && ends_within(&pidfd, LOOK_INTERVAL);
        if ended { Treatment::Default } else { Treatment::of(process, signal) }
    });
    let Some(treatment) = looks.find(|treatment| *treatment != Treatment::Default) else { return false };
    send_signal(process, signal);
    treatment == Treatment::Received || stays_blocked(process, &pidfd, signal)
}

/// Returns false if a process unblocks a signal within [`MAX_MOMENT`] without receiving it. A
/// pending signal is lost then.
fn stays_blocked(process: u32, pidfd: &OwnedFd, signal: Signal) -> bool {
    let deadline = Instant::now() + MAX_MOMENT;
    while Instant::now() < deadline && !ends_within(pidfd, LOOK_INTERVAL) {
        match Treatment::of(process, signal) {
            Treatment::Received => return true,
            Treatment::Blocked => {}
            Treatment::Default => return has_ended(pidfd),
        }
    }
    true
}

/// The treatment of a signal by a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// The process has a handler for it, or waits for it in sigwait(3).
    Received,
    /// Blocked: the signal stays pending until the process receives it, for example through a
    /// descriptor (signalfd(2)), or unblocks it.
    Blocked,
    /// The default action, or none.
    Default,
}

impl Treatment {
    /// Reads `SigCgt` and `SigBlk` of proc_pid_status(5). `SigBlk` lacks the signals that the
    /// process waits for in sigwait(3).
    fn of(process: u32, signal: Signal) -> Treatment {
        let waits = is_awaiting(process, signal);
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let is_in = |name: &str| {
            let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
            mask.is_some_and(|mask| mask & bit(signal) != 0)
        };
        if waits || is_in("SigCgt:") {
            Treatment::Received
        } else if is_in("SigBlk:") {
            Treatment::Blocked
        } else if is_awaiting(process, signal) {
            // The wait began after the first look.
            Treatment::Received
        } else {
            Treatment::Default
        }
    }
}

/// Returns the bit of a signal in the kernel's masks.
fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// Returns true if the first thread of a process waits for a signal in sigwait(3), sigwaitinfo(2)
/// or sigtimedwait(2). False if the caller may not trace the process.
fn is_awaiting(process: u32, signal: Signal) -> bool {
    // See proc_pid_syscall(5): the number of the call and its arguments.
    let call = std::fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
    let mut words = call.split_whitespace();
    if words.next().and_then(|number| number.parse().ok()) != Some(libc::SYS_rt_sigtimedwait) {
        return false;
    }
    let set = words.next().and_then(|address| u64::from_str_radix(address.trim_start_matches("0x"), 16).ok());
    let mut mask = [0; size_of::<u64>()];
    let read = set.and_then(|set| read_memory(process, set, &mut mask).ok());
    read == Some(mask.len()) && u64::from_ne_bytes(mask) & bit(signal) != 0
}

#[cfg(test)]
mod tests {
    use rustix::event::{Timespec, poll};

    use super::*;
    use crate::process::{Exit, forked, ignore, kill, wait};

    fn sleep_milliseconds(milliseconds: i32) {
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 }));
    }

    /// Exit codes of a child that has received the signal, and of one that has not.
    const RECEIVED: i32 = 3;
    const NOT_RECEIVED: i32 = 4;

    #[test]
    fn signals_are_forwarded_to_processes_that_wait_for_them() {
        use nix::sys::signal::SigSet;
        use nix::sys::signalfd::SignalFd;
        let set: SigSet = [Signal::SIGTERM].into_iter().collect();
        let waits = |ready: &dyn Fn()| {
            set.thread_block().map_or(NOT_RECEIVED, |()| {
                ready();
                set.wait().map_or(NOT_RECEIVED, |_| RECEIVED)
            })
        };
        // Blocks the signal and receives it later.
        let waits_later = |ready: &dyn Fn()| {
            set.thread_block().map_or(NOT_RECEIVED, |()| {
                ready();
                sleep_milliseconds(400);
                set.wait().map_or(NOT_RECEIVED, |_| RECEIVED)
            })
        };
        let reads = |ready: &dyn Fn()| match (set.thread_block(), SignalFd::new(&set)) {
            (Ok(()), Ok(receiver)) => {
                ready();
                receiver.read_signal().map_or(NOT_RECEIVED, |_| RECEIVED)
            }
            _ => NOT_RECEIVED,
        };
        // Receives it and continues, with the signal blocked.
        let stays = |ready: &dyn Fn()| {
            set.thread_block().map_or(NOT_RECEIVED, |()| {
                ready();
                let got = set.wait().map_or(NOT_RECEIVED, |_| RECEIVED);
                sleep_milliseconds(400);
                got
            })
        };
        for child in [&waits as &dyn Fn(&dyn Fn()) -> i32, &waits_later, &reads, &stays] {
            let child = forked(child);
            // The child calls sigwait(3) or read(2) right after it is ready.
            std::thread::sleep(Duration::from_millis(50));
            assert!(forward_to(child, Signal::SIGTERM));
            assert_eq!(wait(child).unwrap(), Exit::Code(RECEIVED));
        }
    }

    /// Shells block all signals while they fork.
    #[test]
    fn signals_that_are_blocked_for_a_moment_do_not_count_as_received() {
        use nix::sys::signal::SigSet;
        let set: SigSet = [Signal::SIGTERM].into_iter().collect();
        for (blocked, unblocked) in [(0, 1), (1, 1), (5, 2), (30, 10)] {
            let child = forked(|ready| {
                ignore(Signal::SIGTERM);
                ready();
                for _ in 0..1000 {
                    let _ = set.thread_block();
                    sleep_milliseconds(blocked);
                    let _ = set.thread_unblock();
                    sleep_milliseconds(unblocked);
                }
                NOT_RECEIVED
            });
            for _ in 0..3 {
                let began = Instant::now();
                assert!(!forward_to(child, Signal::SIGTERM), "{blocked}");
                assert!(began.elapsed() < Duration::from_secs(2), "{blocked}");
            }
            kill(child);
            wait(child).unwrap();
        }
    }
}
