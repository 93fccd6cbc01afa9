//! Restarts of containers in the background, by their policies and by requests.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rbuild_linux::Timestamp;
use rbuild_sandbox::{Cancel, CommandOutcome};
use rbuild_store::{ContainerId, EndRequest, LastEnd, RestartFiles, RestartPolicy};

use crate::commands::containers::launch::received_start;
use crate::commands::containers::signals::INTERVAL;
use crate::input::settings::Settings;

/// Time before the first restart, as in docker. It doubles with each restart.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// A command that has run that long is started again after [`FIRST_DELAY`].
const STEADY: Duration = Duration::from_secs(10);

/// Decides in the builder of a container whether its command is started again.
pub struct Restarts<'a> {
    policy: RestartPolicy,
    files: RestartFiles,
    cancel: &'a Cancel,
    restarts: u32,
    /// Restarts by the policy.
    attempts: u32,
    started: Instant,
    delay: Duration,
}

impl<'a> Restarts<'a> {
    pub fn new(policy: RestartPolicy, files: RestartFiles, cancel: &'a Cancel) -> Restarts<'a> {
        Restarts { policy, files, cancel, restarts: 0, attempts: 0, started: Instant::now(), delay: FIRST_DELAY }
    }

    /// Returns true for the first start.
    pub fn begin(&mut self) -> bool {
        self.started = Instant::now();
        self.restarts == 0
    }

    /// Returns true if the command is to be started again now. Before that, it waits for the time
    /// of the policy.
    pub fn again(&mut self, outcome: &CommandOutcome) -> bool {
        let code = match outcome {
            CommandOutcome::Exited(code) => *code,
            CommandOutcome::Signaled(signal) => 128 + signal,
            CommandOutcome::NotStarted(_) => return false,
        };
        if self.cancel.is_canceled() {
            return false;
        }
        match self.files.take_request() {
            Some(EndRequest::Stop) => return false,
            Some(EndRequest::Restart) => {
                self.record(code);
                return true;
            }
            None if !self.policy.restarts(code, self.attempts) => return false,
            None => {}
        }
        self.attempts = self.attempts.saturating_add(1);
        self.record(code);
        if self.started.elapsed() >= STEADY {
            self.delay = FIRST_DELAY;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(MAX_DELAY);
        self.wait(delay)
    }

    fn record(&mut self, code: i32) {
        self.restarts = self.restarts.saturating_add(1);
        self.files.record_end(&LastEnd { code, at: Timestamp::now().sec, restarts: self.restarts });
    }

    /// Waits for that time. Returns false if the container is stopped meanwhile.
    fn wait(&self, delay: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < delay {
            std::thread::sleep(INTERVAL);
            match self.files.take_request() {
                _ if self.cancel.is_canceled() => return false,
                Some(EndRequest::Stop) => return false,
                Some(EndRequest::Restart) => return true,
                None => {}
            }
        }
        true
    }
}

/// Records a repeated start that the builder announces. Returns false if it announces none.
pub fn record_restart(settings: &Settings, id: &ContainerId, socket: &UnixStream) -> bool {
    let Some(started) = received_start(socket) else { return false };
    let recorded = settings.open().map(|store| store.containers().record_start(id, &started.restartable()));
    if !matches!(recorded, Ok(Ok(()))) {
        tracing::debug!(target: "engine", "the restart is not recorded");
    }
    true
}
