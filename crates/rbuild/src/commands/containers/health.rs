//! Health checks: a process beside the supervisor of a container runs them.
//!
//! It has no part in the container: it enters it for each check as `exec` does, and it ends with
//! the supervisor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_linux::{Timestamp, limited_output};
use rbuild_remedy::sentence;
use rbuild_sandbox::{BuilderConfig, CommandOutcome, Input};
use rbuild_store::{Health, HealthCheck, HealthResult, MAX_HEALTH_OUTPUT, RunSettings, Started, Store};

use crate::commands::containers::command::not_started;
use crate::commands::containers::inside::RunningContainer;
use crate::commands::containers::launch::Launch;
use crate::exit::Failure;
use crate::ui::hints::UsageRemedy;
use crate::ui::terminal;

/// Interval between two checks for a start of the command.
const INTERVAL: Duration = Duration::from_millis(50);

/// Exit code of a check that was ended after its maximum time, as in docker.
const TIMED_OUT: i32 = -1;

/// The process that checks the health of a container.
pub struct Checker(Option<u32>);

impl Checker {
    /// Starts the process, unless the settings of the container specify no check. This process must
    /// be single-threaded.
    pub fn start(store: &Store, launch: &Launch<'_>) -> Checker {
        let settings = &launch.invocation.settings;
        let shell = &launch.image.config.config.shell;
        let check = settings.health.as_ref().and_then(|config| HealthCheck::of_config(config, shell));
        let Some(check) = check else { return Checker(None) };
        let forked = process::own_pidfd().and_then(|supervisor| Ok((process::fork()?, supervisor)));
        match forked {
            Ok((Cloned::Child, supervisor)) => {
                let Ok(()) = leave_supervisor(&supervisor) else { std::process::exit(70) };
                Checks { store, launch, check: &check }.run()
            }
            Ok((Cloned::Parent { child }, _)) => Checker(Some(child)),
            Err(e) => {
                tracing::debug!(target: "engine", error = sentence(&e), "the health is not checked");
                Checker(None)
            }
        }
    }

    /// Returns the configuration of a builder that leaves the process alone.
    pub fn builder_beside(&self, launch: &Launch<'_>) -> BuilderConfig {
        BuilderConfig { kept: self.0.into_iter().collect(), ..launch.builder.clone() }
    }

    /// Ends the process.
    pub fn end(self) {
        if let Some(child) = self.0 {
            process::kill(child);
            let _ = process::wait(child);
        }
    }
}

/// Detaches this process from the streams and the session of its parent, but not from its life.
fn leave_supervisor(supervisor: &OwnedFd) -> std::io::Result<()> {
    process::leave_session();
    process::die_with(supervisor).map_err(std::io::Error::other)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    process::replace_standard_streams(&null)
}

/// The checks of a container.
struct Checks<'a> {
    store: &'a Store,
    launch: &'a Launch<'a>,
    check: &'a HealthCheck,
}

impl Checks<'_> {
    /// Checks the health after each start of the command.
    fn run(&self) -> ! {
        let id = self.launch.origin.id();
        let mut last: Option<Started> = None;
        loop {
            let started = self.store.containers().start_of(&id).ok().flatten();
            match started.filter(|started| last.as_ref() != Some(started)) {
                Some(started) => {
                    if let Some(running) = RunningContainer::of(self.store, started.clone()) {
                        self.check_until_end(&running);
                    }
                    last = Some(started);
                }
                None => std::thread::sleep(INTERVAL),
            }
        }
    }

    /// Checks the health until the first process of the container ends.
    fn check_until_end(&self, running: &RunningContainer) {
        let file = self.store.containers().health_file(&self.launch.origin.id());
        let (mut health, began) = (Health::default(), Instant::now());
        file.write(&health);
        while !process::ends_within(running.process(), self.check.delay(&health, began.elapsed())) {
            if self.is_paused(running) {
                continue;
            }
            let Some(result) = self.check_once(running) else { continue };
            // A check that a pause has interrupted has no result.
            if self.is_paused(running) {
                continue;
            }
            // Nor has one that the end of the container has interrupted.
            if process::has_ended(running.process()) {
                return;
            }
            health.add(self.check, result, began.elapsed());
            file.write(&health);
        }
    }

    fn is_paused(&self, running: &RunningContainer) -> bool {
        self.store.containers().is_paused(&self.launch.origin.id(), &running.started)
    }

    /// Runs the check in a process of its own. Returns `None` if that cannot be started.
    fn check_once(&self, running: &RunningContainer) -> Option<HealthResult> {
        let start = Timestamp::now();
        let caller = process::own_pidfd().ok()?;
        let (reader, writer) = std::io::pipe().ok()?;
        let child = match process::fork().ok()? {
            Cloned::Child => {
                let Ok(()) = process::die_with(&caller) else { std::process::exit(70) };
                let Ok(()) = process::replace_standard_streams(&writer) else { std::process::exit(70) };
                drop(writer);
                std::process::exit(self.enter(running))
            }
            Cloned::Parent { child } => child,
        };
        drop(writer);
        let output = process::pidfd(child)
            .ok()
            .and_then(|pidfd| limited_output(&reader, &pidfd, MAX_HEALTH_OUTPUT, self.check.timeout).ok());
        process::kill(child);
        let exit = process::wait(child).ok()?;
        let output = output?;
        let text = String::from_utf8_lossy(&output.bytes).into_owned();
        let (code, output) = match (output.has_ended, exit) {
            (true, Exit::Code(code)) => (code, text),
            (true, Exit::Signal(signal)) => (128 + signal, text),
            (false, _) => (TIMED_OUT, exceeded(self.check.timeout, &text)),
        };
        let end = Timestamp::now();
        Some(HealthResult { start: (start.sec, start.nsec), end: (end.sec, end.nsec), code, output })
    }

    /// Runs the check in the container, and returns its exit code.
    fn enter(&self, running: &RunningContainer) -> i32 {
        if let Err(e) = running.join_group() {
            tracing::debug!(target: "engine", error = sentence(&e), "the limits do not apply to the check");
        }
        let invocation = &self.launch.invocation;
        let settings = RunSettings {
            env: [&invocation.proxies[..], &invocation.settings.env].concat(),
            ..invocation.settings.clone()
        };
        let words = self.check.command.clone();
        let told = |failure: Failure| {
            terminal::out(&format!("{}\n", failure.message));
            i32::from(failure.code)
        };
        match running.run(&self.launch.image.config.config, words.clone(), settings, Input::Nothing, || ()) {
            Ok(CommandOutcome::Exited(code)) => code,
            Ok(CommandOutcome::Signaled(signal)) => 128 + signal,
            Ok(CommandOutcome::NotStarted(e)) => told(not_started(&e, &words, UsageRemedy::PutExecFlagsFirst)),
            Err(failure) => told(failure),
        }
    }
}

/// Returns the output of a check that was ended after its maximum time, with the beginning of what
/// it has written.
fn exceeded(time: Duration, text: &str) -> String {
    let separator = if text.is_empty() { "" } else { ": " };
    format!("Health check exceeded timeout ({}){separator}{text}", shown(time))
}

/// Formats a time in seconds, as Go does for times below a minute.
fn shown(time: Duration) -> String {
    if time < Duration::from_secs(1) { format!("{}ms", time.as_millis()) } else { format!("{}s", time.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_takes_too_long_is_described_as_in_docker() {
        assert_eq!(exceeded(Duration::from_millis(1500), ""), "Health check exceeded timeout (1.5s)");
        assert_eq!(exceeded(Duration::from_millis(300), "x"), "Health check exceeded timeout (300ms): x");
        assert_eq!(exceeded(Duration::from_secs(30), ""), "Health check exceeded timeout (30s)");
    }
}
