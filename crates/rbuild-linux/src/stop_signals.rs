//! Signals that request the end of the program, received as input.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::error::{Error, Result, described};
use crate::process::ignores;

/// Number of the first signal that this process has received as a request for its end; 0 before.
static REQUEST: AtomicI32 = AtomicI32::new(0);

/// Returns the number of the first signal that requested the end of this process. A process ends
/// by one request, which its exit code states.
pub fn end_request() -> Option<i32> {
    Some(REQUEST.load(Ordering::Relaxed)).filter(|number| *number != 0)
}

/// The outcome of the wait for a line of a pipe.
#[derive(Debug, PartialEq, Eq)]
pub enum AwaitedLine {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The pipe ended before a line was complete.
    End,
    /// A signal arrived.
    Signal,
    /// The deadline has passed.
    Late,
}

/// Receives SIGINT, SIGTERM and SIGHUP, which are blocked in the calling thread until the value is
/// dropped. Processes that are forked meanwhile inherit the mask. SIGHUP is excluded if the process
/// ignores it, as nohup(1) requests.
pub struct StopSignals {
    signals: SigSet,
    previous: SigSet,
    receiver: SignalFd,
}

impl StopSignals {
    /// Blocks the signals.
    ///
    /// # Errors
    ///
    /// Fails if no descriptor is free.
    pub fn block() -> Result<StopSignals> {
        let fail = |call, object: &'static str| {
            move |e: nix::errno::Errno| Error::new(call, described(object), io::Error::from(e))
        };
        let mut signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        if !ignores(Signal::SIGHUP) {
            signals.add(Signal::SIGHUP);
        }
        let receiver = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(fail("signalfd4", "a receiver of signals"))?;
        let mut previous = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut previous))
            .map_err(fail("sigprocmask", "the handling of signals"))?;
        Ok(StopSignals { signals, previous, receiver })
    }

    /// Returns the signals.
    pub fn signals(&self) -> SigSet {
        self.signals
    }

    /// Takes all signals that have arrived, as requests for the end of this process, and returns
    /// true if there was one.
    pub fn arrived(&self) -> bool {
        let arrived = self.take_all();
        arrived.first().copied().map(request_end).is_some()
    }

    /// Takes all signals that have arrived, SIGHUP last: service managers may send it after another
    /// one, but of several pending signals, the kernel returns the one with the lowest number
    /// first.
    pub fn take_all(&self) -> Vec<Signal> {
        let mut arrived: Vec<Signal> = std::iter::from_fn(|| self.take()).collect();
        arrived.sort_by_key(|signal| *signal == Signal::SIGHUP);
        arrived
    }

    fn take(&self) -> Option<Signal> {
        let info = self.receiver.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo as i32).ok()
    }

    /// Reads a pipe to its end. Returns `None` if a signal arrives first.
    ///
    /// # Errors
    ///
    /// Fails if the pipe cannot be read.
    pub fn read_to_end(&self, mut pipe: PipeReader) -> io::Result<Option<Vec<u8>>> {
        let (mut text, mut buffer) = (Vec::new(), vec![0; 8192]);
        loop {
            let mut fds = [PollFd::new(&pipe, PollFlags::IN), PollFd::new(self, PollFlags::IN)];
            retry_on_intr(|| poll(&mut fds, None))?;
            if self.arrived() {
                return Ok(None);
            }
            if fds[0].revents().is_empty() {
                continue;
            }
            match pipe.read(&mut buffer)? {
                0 => return Ok(Some(text)),
                size => text.extend_from_slice(&buffer[..size]),
            }
        }
    }

    /// Reads a line of a pipe, which is short and written at once.
    ///
    /// # Errors
    ///
    /// Fails if the pipe cannot be read.
    pub fn read_line(&self, pipe: &mut PipeReader, deadline: Option<Instant>) -> io::Result<AwaitedLine> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut fds = [PollFd::new(&*pipe, PollFlags::IN), PollFd::new(self, PollFlags::IN)];
            retry_on_intr(|| poll(&mut fds, left.as_ref()))?;
            let is_ready = !fds[0].revents().is_empty();
            if self.arrived() {
                return Ok(AwaitedLine::Signal);
            }
            if !is_ready {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Ok(AwaitedLine::Late);
                }
                continue;
            }
            match pipe.read(&mut byte)? {
                0 => return Ok(AwaitedLine::End),
                _ if byte == *b"\n" => return Ok(AwaitedLine::Line(line)),
                _ => line.extend_from_slice(&byte),
            }
        }
    }
}

/// Records that a signal requests the end of this process.
pub fn request_end(signal: Signal) {
    let _ = REQUEST.compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.previous), None);
    }
}

/// Protects this process from being stopped by its terminal (Ctrl-Z, and access from the
/// background), in the calling thread until the value is dropped. Signals that arrive meanwhile are
/// discarded. Processes that are forked meanwhile inherit the mask.
pub struct StopProtection {
    previous: SigSet,
    receiver: SignalFd,
}

impl StopProtection {
    /// Blocks the signals.
    ///
    /// # Errors
    ///
    /// Fails if no descriptor is free.
    pub fn begin() -> Result<StopProtection> {
        let fail = |call, object: &'static str| {
            move |e: nix::errno::Errno| Error::new(call, described(object), io::Error::from(e))
        };
        let signals: SigSet = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect();
        let receiver = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(fail("signalfd4", "a receiver of signals"))?;
        let mut previous = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut previous))
            .map_err(fail("sigprocmask", "the handling of signals"))?;
        Ok(StopProtection { previous, receiver })
    }
}

impl Drop for StopProtection {
    fn drop(&mut self) {
        while self.receiver.read_signal().is_ok_and(|signal| signal.is_some()) {}
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.previous), None);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn blocked() -> SigSet {
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask)).unwrap();
        mask
    }

    #[test]
    fn a_protected_process_is_not_stopped_by_its_terminal() {
        let before = blocked();
        let protection = StopProtection::begin().unwrap();
        for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
            nix::sys::signal::raise(signal).unwrap();
        }
        // Otherwise, this stops the test.
        drop(protection);
        assert_eq!(blocked(), before);
    }

    #[test]
    fn a_signal_ends_the_wait_for_an_answer() {
        let before = blocked();
        let signals = StopSignals::block().unwrap();
        for (stop, want) in [(false, Some(b"answer".to_vec())), (true, None), (false, Some(b"answer".to_vec()))] {
            let (answer, mut writer) = std::io::pipe().unwrap();
            writer.write_all(b"answer").unwrap();
            // The signal is that of this thread. Without it, the end of the pipe is reached.
            if stop {
                nix::sys::signal::raise(Signal::SIGTERM).unwrap();
            } else {
                drop(writer);
            }
            assert_eq!(signals.read_to_end(answer).unwrap(), want);
        }
        let (mut answer, mut writer) = std::io::pipe().unwrap();
        let soon = || Some(Instant::now() + std::time::Duration::from_millis(20));
        writer.write_all(b"one\n\ntw").unwrap();
        assert_eq!(signals.read_line(&mut answer, None).unwrap(), AwaitedLine::Line(b"one".to_vec()));
        assert_eq!(signals.read_line(&mut answer, soon()).unwrap(), AwaitedLine::Line(Vec::new()));
        assert_eq!(signals.read_line(&mut answer, soon()).unwrap(), AwaitedLine::Late);
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.read_line(&mut answer, None).unwrap(), AwaitedLine::Signal);
        drop(writer);
        assert_eq!(signals.read_line(&mut answer, None).unwrap(), AwaitedLine::End);
        assert_eq!((signals.arrived(), end_request()), (false, Some(15)));
        nix::sys::signal::raise(Signal::SIGHUP).unwrap();
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        // The test may have been started by nohup(1).
        let expected = [Signal::SIGTERM, Signal::SIGHUP];
        assert_eq!(signals.take_all(), expected[..if ignores(Signal::SIGHUP) { 1 } else { 2 }]);
        drop(signals);
        assert_eq!(blocked(), before);
    }
}
