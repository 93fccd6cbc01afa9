//! Tasks of a fetcher that the launcher waits for.

use std::io::Write;

use rbuild_linux::StopSignals;
use rbuild_linux::process::{self, Exit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::commands::fetcher::ending::{EndAtSignal, end_fetcher};
use crate::commands::fetcher::forked::fork_fetcher;
use crate::exit::{Failure, code};
use crate::ui::transfer_bar;

/// Runs `work` in a fetcher and returns its answer. A signal that requests the end of the program
/// ends the fetcher, which first cancels its open uploads, and is a failure. The caller must have
/// one thread.
pub fn in_fetcher<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let failed = not_started;
    let (answer, mut writer) = std::io::pipe().map_err(|e| failed(&e))?;
    // Signals of a terminal are for the launcher, which ends the fetcher.
    let signals = StopSignals::block().map_err(|e| failed(&e))?;
    let fetch = move || {
        // Without it, the launcher kills this process a little later.
        let end = EndAtSignal::of_fetcher();
        let text = serde_json::to_vec(&work()).unwrap_or_default();
        drop(end);
        writer.write_all(&text).map_err(|_| code::FAILED)
    };
    let (child, answer) = fork_fetcher(answer, fetch).map_err(|e| failed(&e))?;
    let read = signals.read_to_end(answer);
    let exit = match read {
        Ok(None) => end_fetcher(child, Some(&signals)),
        _ => process::wait(child),
    };
    let exit = exit.map_err(|e| failed(&e))?;
    match read {
        Ok(None) => Err(interrupted()),
        Ok(Some(text)) => serde_json::from_slice(&text).map_err(|_| no_answer(&exit)),
        Err(_) => Err(no_answer(&exit)),
    }
}

/// Returns the failure for a transfer that a signal interrupted, and erases the bar of the fetcher
/// that was killed.
pub fn interrupted() -> Failure {
    transfer_bar::erase();
    Failure::interrupted()
}

fn not_started(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::caused("cannot start the fetcher", e)
}

fn no_answer(exit: &Exit) -> Failure {
    let ended = match exit {
        Exit::Signal(signal) => format!("it was killed (signal {signal})"),
        Exit::Code(code) => format!("it ended with code {code}"),
    };
    Failure::new(format!("the fetcher ended without an answer: {ended}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_fetchers_are_as_recorded() {
        let not_started = not_started(&std::io::Error::from_raw_os_error(11)).text();
        let no_answer = [Exit::Signal(9), Exit::Code(1)].map(|exit| no_answer(&exit).text());
        rbuild_testkit::assert_recorded!("fetcher", not_started + &no_answer.concat());
    }
}
