//! A small first process for containers.

use std::io;
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::descendants;
use crate::error::{Error, Result, described};
use crate::process::{self, Cloned, Exit};

/// Continues in a child of the calling process, which has one thread. The calling process forwards
/// signals to the child, reaps all its children, and exits with the exit code of the child, or 128
/// plus the number of the signal that killed it. It closes its descriptors.
///
/// The child has a process group of its own, in the foreground of its terminal.
///
/// # Errors
///
/// Fails if the process cannot be forked.
pub fn continue_below_init() -> Result<()> {
    let fail = |call, object: &'static str| {
        move |e: nix::errno::Errno| Error::new(call, described(object), io::Error::from(e))
    };
    // Signals that arrive before they are received are pending.
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(fail("sigprocmask", "the handling of signals"))?;
    match process::fork()? {
        Cloned::Child => {
            lead_foreground();
            process::unblock_signals()
        }
        Cloned::Parent { child } => {
            close_all();
            let _ = rustix::thread::set_name(c"rbuild-init");
            let code = serve(child).unwrap_or(128 + Signal::SIGKILL as i32);
            std::process::exit(code)
        }
    }
}

/// Makes this process the leader of a process group, in the foreground of the terminal on standard
/// input, if there is one.
fn lead_foreground() {
    let _ = rustix::process::setpgid(None, None);
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
}

/// Closes all descriptors except the standard streams.
fn close_all() {
    let open = std::fs::read_dir(Path::new("/proc/self/fd")).into_iter().flatten().flatten();
    let numbers: Vec<i32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
}

/// Forwards signals and reaps children until that child has ended. Returns its exit code.
fn serve(child: u32) -> Result<i32> {
    let receiver = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)
        .map_err(|e| Error::new("signalfd4", described("a receiver of signals"), io::Error::from(e)))?;
    let pidfd = process::pidfd(child)?;
    loop {
        for (pid, exit) in descendants::reap() {
            match exit {
                _ if pid != child => {}
                Exit::Code(code) => return Ok(code),
                Exit::Signal(signal) => return Ok(128 + signal),
            }
        }
        let Ok(Some(signal)) = receiver.read_signal() else { continue };
        let number = signal.ssi_signo as i32;
        if number != Signal::SIGCHLD as i32 {
            // It may have ended meanwhile.
            let _ = process::signal_pidfd(&pidfd, number);
        }
    }
}
