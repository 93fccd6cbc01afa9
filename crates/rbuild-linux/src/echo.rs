//! Input that is not shown on the terminal.

use std::io::{self, stdin};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{read, retry_on_intr};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::stop_signals::StopSignals;

/// Turns off the echo of standard input until it is dropped. SIGINT, SIGTERM and SIGHUP are blocked
/// meanwhile, so that none of them ends the program without the echo.
pub struct HiddenInput {
    before: Termios,
    /// Dropped after the echo is turned on again: a signal that is pending then takes effect.
    signals: StopSignals,
}

impl HiddenInput {
    /// Stops the echo of the terminal. Returns `None` if standard input is not a terminal, or if
    /// signals cannot be received.
    pub fn start() -> Option<HiddenInput> {
        let before = tcgetattr(stdin()).ok()?;
        let signals = StopSignals::block().ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(HiddenInput { before, signals })
    }

    /// Reads standard input to the end of a line, to its end, or up to `max` bytes. Returns `None`
    /// if a signal arrives first.
    ///
    /// # Errors
    ///
    /// Fails if standard input cannot be read.
    pub fn read_line(&self, max: usize) -> io::Result<Option<Vec<u8>>> {
        let (mut line, stdin) = (Vec::new(), stdin());
        while line.len() < max && !line.ends_with(b"\n") {
            let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            retry_on_intr(|| poll(&mut fds, None))?;
            if self.signals.arrived() {
                return Ok(None);
            }
            if fds[0].revents().is_empty() {
                continue;
            }
            // A terminal returns one line at a time.
            let mut buffer = vec![0; (max - line.len()).min(8192)];
            match retry_on_intr(|| read(&stdin, &mut buffer))? {
                0 => break,
                size => line.extend_from_slice(&buffer[..size]),
            }
        }
        Ok(Some(line))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}
