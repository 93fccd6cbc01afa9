//! Input that is not shown on the terminal.

use std::io::stdin;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Turns off the echo of standard input until it is dropped.
pub struct HiddenInput {
    before: Termios,
}

impl HiddenInput {
    /// Stops the echo of the terminal. Returns `None` if standard input is not a terminal.
    pub fn start() -> Option<HiddenInput> {
        let before = tcgetattr(stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(HiddenInput { before })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}
