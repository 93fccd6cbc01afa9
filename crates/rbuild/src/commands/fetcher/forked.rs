//! The start of a fetcher.

use rbuild_linux::process::{self, Cloned};

use crate::exit::code;

/// Forks a fetcher, which does `work` and ends with OK or with the exit code that `work` fails
/// with. It is killed at the end of this process, its launcher. Returns its PID and `ours`: the
/// descriptors of the launcher, which the fetcher closes. Those that `work` owns are closed in the
/// launcher. The caller must have one thread.
///
/// # Errors
///
/// Fails if the process cannot be created.
pub fn fork_fetcher<D>(ours: D, work: impl FnOnce() -> Result<(), u8>) -> rbuild_linux::Result<(u32, D)> {
    let launcher = process::own_pidfd()?;
    match process::fork()? {
        Cloned::Child => {
            drop(ours);
            let ended = process::die_with(&launcher).map_err(|_| code::BUG).and_then(|()| work());
            std::process::exit(i32::from(ended.err().unwrap_or(code::OK)))
        }
        Cloned::Parent { child } => Ok((child, ours)),
    }
}
