//! Connection between the caller's terminal and a container's.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbuild_linux::parallel::locked;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::client::{OutputCopy, Stream};

/// Polling interval for the terminal's size: SIGWINCH goes to another process.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Saved terminal settings, restored on drop.
pub struct Restore(Termios);

impl Restore {
    /// Saves the settings of standard input if it is a terminal.
    pub fn of_stdin() -> Option<Restore> {
        tcgetattr(io::stdin()).ok().map(Restore)
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Processes with which a connection ends.
#[derive(Clone, Copy)]
pub(crate) struct ConnectionEnds<'a> {
    /// The runner of the command. Output may arrive after its end.
    pub(crate) runner: &'a OwnedFd,
    pub(crate) zygote: BorrowedFd<'a>,
}

/// Makes standard input pass each key on, unprocessed.
fn make_raw(Restore(settings): &Restore) -> io::Result<()> {
    let mut raw = settings.clone();
    raw.make_raw();
    Ok(tcsetattr(io::stdin(), OptionalActions::Now, &raw)?)
}

/// Gives the terminal the window size of standard input, if that is no longer the rows and columns
/// of `last`.
fn pass_window_size(terminal: &OwnedFd, last: &mut Option<(u16, u16)>) -> io::Result<()> {
    let now = tcgetwinsize(io::stdin()).ok();
    if let (Some(new), true) = (now, now.map(|size| (size.ws_row, size.ws_col)) != *last) {
        tcsetwinsize(terminal, new)?;
        *last = Some((new.ws_row, new.ws_col));
    }
    Ok(())
}

fn write_output(bytes: &[u8], copy: Option<&OutputCopy>) -> io::Result<()> {
    copy.iter().for_each(|copy| locked(copy)(Stream::Stdout, bytes));
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Copies bytes and the window size between standard input and output and the container's terminal,
/// until its last descriptor is closed, or the runner or the zygote has ended. Keys are passed on
/// unprocessed; their interpretation is up to the terminal in the container. `copy` receives the
/// output, too.
pub(crate) fn connect(
    terminal: &OwnedFd,
    ConnectionEnds { runner, zygote }: ConnectionEnds<'_>,
    copy: Option<&OutputCopy>,
) -> io::Result<()> {
    let restore = Restore::of_stdin();
    restore.as_ref().map(make_raw).transpose()?;
    let mut inside = std::fs::File::from(terminal.try_clone()?);
    let (mut listening, mut ended) = (true, false);
    let mut size = None;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        pass_window_size(terminal, &mut size)?;
        let stdin = io::stdin();
        let mut fds = [terminal.as_fd(), zygote].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).to_vec();
        // The kernel may deliver the last output after the runner has ended; no process is left to
        // write more.
        let more = [(!ended, runner.as_fd()), (listening, stdin.as_fd())];
        fds.extend(
            more.iter().filter(|(wanted, _)| *wanted).map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        match poll(&mut fds, Some(&POLL_INTERVAL)) {
            Ok(0) if ended => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut is_ready = |watched: bool| watched && ready.next() == Some(true);
        let (output, alone) = (is_ready(true), is_ready(true));
        let (gone, typed) = (is_ready(!ended), is_ready(listening));
        if alone {
            return Ok(());
        }
        if output {
            match inside.read(&mut buffer) {
                Ok(n) if n > 0 => write_output(&buffer[..n], copy)?,
                // EIO: the last descriptor of the other end was closed.
                _ => return Ok(()),
            }
        }
        ended |= gone;
        if typed {
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(n) if n > 0 => inside.write_all(&buffer[..n])?,
                _ => listening = false,
            }
        }
    }
}
