//! Signals that request the end of the program, received as input.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::error::{Error, Result, described};
use crate::process::ignores;

/// Time after a signal in which an equal one belongs to the same request: timeout(1) signals its
/// child and then the process group.
const REPETITION: Duration = Duration::from_millis(100);

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
        StopSignals::block_except(|signal| signal == Signal::SIGHUP && ignores(signal))
    }

    /// Blocks the signals, except for all those that this process ignores.
    ///
    /// # Errors
    ///
    /// Fails if no descriptor is free.
    pub fn block_heeded() -> Result<StopSignals> {
        StopSignals::block_except(ignores)
    }

    fn block_except(is_excluded: impl Fn(Signal) -> bool) -> Result<StopSignals> {
        let fail = |call, object: &'static str| {
            move |e: nix::errno::Errno| Error::new(call, described(object), io::Error::from(e))
        };
        let all = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
        let signals: SigSet = all.into_iter().filter(|signal| !is_excluded(*signal)).collect();
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

    /// Returns true if a signal has arrived and was not taken.
    pub fn is_pending(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        retry_on_intr(|| poll(&mut fds, Some(&now))).is_ok_and(|ready| ready > 0)
    }

    /// Waits until a signal arrives, without taking it.
    ///
    /// # Errors
    ///
    /// Fails if the signals cannot be waited for.
    pub fn await_pending(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, None))?;
        Ok(())
    }

    /// Waits for a signal, and records it as a request for the end of this process.
    ///
    /// # Errors
    ///
    /// Fails if the signals cannot be waited for.
    pub fn wait(&self) -> io::Result<StopRequest> {
        loop {
            self.await_pending()?;
            if let Some(signal) = self.take_all().first().copied() {
                request_end(signal);
                return Ok(StopRequest::now(signal));
            }
        }
    }

    /// Waits until a process ends. Returns false if the time is over, or if a signal arrives that
    /// does not belong to the request for the end of this process.
    pub fn wait_for_end(&self, pidfd: &OwnedFd, time: Duration) -> bool {
        let start = Instant::now();
        let first = end_request().and_then(|number| Signal::try_from(number).ok()).map(StopRequest::now);
        loop {
            let Some(left) = time.checked_sub(start.elapsed()) else { return false };
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(self, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut fds, Some(&left))).is_err() {
                return false;
            }
            if !fds[0].revents().is_empty() {
                return true;
            }
            let belongs = |signal| first.is_some_and(|first| first.is_repeated_by(StopRequest::now(signal)));
            let arrived = self.take_all();
            arrived.iter().copied().for_each(request_end);
            if !arrived.into_iter().all(belongs) {
                return false;
            }
        }
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

/// A signal that requests the end of a process, and the time at which it was received.
#[derive(Debug, Clone, Copy)]
pub struct StopRequest {
    /// The signal.
    pub signal: Signal,
    /// The time.
    pub at: Instant,
}

impl StopRequest {
    /// Returns the request by a signal that was received just now.
    pub fn now(signal: Signal) -> StopRequest {
        StopRequest { signal, at: Instant::now() }
    }

    /// Ends this process by the signal, which it has blocked, so that a shell script that has
    /// started it ends, too. Returns only if the signal is ignored.
    pub fn end_process(self) {
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::from(self.signal)), None);
        let _ = raise(self.signal);
    }

    /// Returns true if `next` belongs to this request. Service managers may send SIGHUP after
    /// SIGTERM (`SendSIGHUP=` of systemd.kill(5)).
    pub fn is_repeated_by(self, next: StopRequest) -> bool {
        let is_same = self.signal == next.signal || (self.signal, next.signal) == (Signal::SIGTERM, Signal::SIGHUP);
        is_same && next.at.duration_since(self.at) < REPETITION
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

    #[test]
    fn only_an_equal_signal_right_after_the_first_is_a_repetition() {
        let at = Instant::now();
        let repeats = |signal, milliseconds| {
            let next = StopRequest { signal, at: at + Duration::from_millis(milliseconds) };
            StopRequest { signal: Signal::SIGINT, at }.is_repeated_by(next)
        };
        for (signal, milliseconds, expected) in [
            (Signal::SIGINT, 0, true),
            (Signal::SIGINT, 50, true),
            (Signal::SIGINT, 150, false),
            (Signal::SIGTERM, 0, false),
            (Signal::SIGTERM, 50, false),
            (Signal::SIGHUP, 150, false),
        ] {
            assert_eq!(repeats(signal, milliseconds), expected, "{signal} after {milliseconds} ms");
        }
    }

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
    fn a_second_request_ends_the_wait_for_a_process() {
        let signals = StopSignals::block().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = crate::process::pidfd(child.id()).unwrap();
        let start = Instant::now();
        assert!(!signals.wait_for_end(&pidfd, Duration::from_millis(200)));
        assert!(start.elapsed().as_millis() >= 200);
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.wait().unwrap().signal, Signal::SIGTERM);
        // An equal signal belongs to the request.
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        let start = Instant::now();
        assert!(!signals.wait_for_end(&pidfd, Duration::from_millis(200)));
        assert!(start.elapsed().as_millis() >= 200);
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        let start = Instant::now();
        assert!(!signals.wait_for_end(&pidfd, Duration::from_secs(60)));
        assert!(start.elapsed().as_secs() < 10);
        child.kill().unwrap();
        assert!(signals.wait_for_end(&pidfd, Duration::from_secs(60)));
        child.wait().unwrap();
    }

    #[test]
    fn a_signal_is_pending_until_it_is_taken() {
        let signals = StopSignals::block().unwrap();
        assert!(!signals.is_pending());
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        signals.await_pending().unwrap();
        assert!(signals.is_pending());
        assert_eq!(signals.wait().unwrap().signal, Signal::SIGTERM);
        assert!(!signals.is_pending());
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
