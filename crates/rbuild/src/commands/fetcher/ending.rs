//! The end of transfers at a signal: open uploads are canceled first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use rbuild_linux::parallel::start;
use rbuild_linux::process::{self, Exit};
use rbuild_linux::{StopRequest, StopSignals};

use crate::exit::{Failure, code};
use crate::input::registry;
use crate::ui::transfer_bar;

/// Time that a fetcher has to cancel its uploads before it is killed. It needs less.
const FETCHER_GRACE: Duration = Duration::from_millis(1750);

/// Maximum time that the end waits until its message is written.
const MESSAGE: Duration = Duration::from_millis(500);

/// Time between two looks of a thread that waits for the end of the process.
const PARKED: Duration = Duration::from_millis(50);

/// True once a signal has requested the end of this process.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Ends this process after a signal. Meanwhile, the open uploads of its clients are canceled.
pub struct EndAtSignal(Arc<StopSignals>);

impl EndAtSignal {
    /// Watches the signals in a command without a fetcher, except for those that it ignores. A
    /// second signal ends it at once. The caller must have one thread.
    pub fn of_command() -> rbuild_linux::Result<EndAtSignal> {
        let signals = Arc::new(StopSignals::block_heeded()?);
        let end = EndAtSignal(signals.clone());
        start(move || {
            let Some(first) = wait(&signals) else { return };
            end_with(move || {
                let (written, is_written) = channel();
                // If no thread can be started, the sender is dropped, which ends the wait.
                let _ = start(move || {
                    transfer_bar::erase();
                    Failure::interrupted().report();
                    let _ = written.send(());
                });
                // A pipe that nobody reads may be full.
                let _ = is_written.recv_timeout(MESSAGE);
                exit_by(first);
            });
            while signals.wait().is_ok_and(|next| first.is_repeated_by(next)) {}
            exit_by(first);
        })?;
        Ok(end)
    }

    /// Watches the signals in a fetcher, which the launcher kills at a second one. The caller must
    /// have one thread.
    pub fn of_fetcher() -> rbuild_linux::Result<EndAtSignal> {
        let signals = Arc::new(StopSignals::block()?);
        let end = EndAtSignal(signals.clone());
        start(move || {
            if wait(&signals).is_some() {
                end_with(|| std::process::exit(i32::from(code::INTERRUPTED)));
            }
        })?;
        Ok(end)
    }
}

/// Waits for a signal. It is pending until [`IS_ENDING`] is set, so that the end of this process is
/// always known. Returns `None` if signals cannot be received.
fn wait(signals: &StopSignals) -> Option<StopRequest> {
    signals.await_pending().ok()?;
    IS_ENDING.store(true, Ordering::SeqCst);
    let request = signals.wait();
    IS_ENDING.store(request.is_ok(), Ordering::SeqCst);
    request.ok()
}

/// Ends this process by the signal that requested it.
fn exit_by(request: StopRequest) -> ! {
    request.end_process();
    std::process::exit(i32::from(crate::exit::interrupted()))
}

/// Cancels the uploads on another thread, and ends the process with `exit`.
fn end_with(exit: impl FnOnce() + Send + 'static) {
    let ended = start(move || {
        registry::uploads().cancel_all();
        exit();
    });
    if ended.is_err() {
        std::process::exit(i32::from(crate::exit::interrupted()));
    }
}

impl Drop for EndAtSignal {
    /// Does not return once a signal has arrived. What fails then, such as a program that received
    /// it, too, may have failed because of it.
    fn drop(&mut self) {
        while self.0.is_pending() || IS_ENDING.load(Ordering::SeqCst) {
            std::thread::park_timeout(PARKED);
        }
    }
}

/// Ends a fetcher, which first cancels its uploads. Kills it if that takes too long, or at a second
/// signal.
pub fn end_fetcher(pid: u32, signals: Option<&StopSignals>) -> rbuild_linux::Result<Exit> {
    process::terminate(pid);
    let ended = match (process::pidfd(pid), signals) {
        (Ok(pidfd), Some(signals)) => signals.wait_for_end(&pidfd, FETCHER_GRACE),
        (Ok(pidfd), None) => process::ends_within(&pidfd, FETCHER_GRACE),
        (Err(_), _) => false,
    };
    if !ended {
        process::kill(pid);
    }
    process::wait(pid)
}
