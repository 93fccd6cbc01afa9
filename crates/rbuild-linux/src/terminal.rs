//! Terminals and pseudoterminals.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Error, Result};

/// Returns the numbers of rows and columns of the terminal at standard error, or `None` if standard
/// error is not a terminal.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((usize::from(size.ws_row), usize::from(size.ws_col)))
}

/// Opens a new pseudoterminal (pty(7)). Returns the descriptors of the controlling side and of the
/// terminal side.
pub fn open_pseudoterminal() -> Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    let fail = |call, e| Error::new(call, Path::new("/dev/ptmx"), e);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = rustix::pty::openpt(flags).map_err(|e| fail("posix_openpt", e))?;
    rustix::pty::unlockpt(&controller).map_err(|e| fail("unlockpt", e))?;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags).map_err(|e| fail("ioctl(TIOCGPTPEER)", e))?;
    Ok((controller, terminal))
}
