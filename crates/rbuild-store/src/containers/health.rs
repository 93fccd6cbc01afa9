//! Health of containers: how a check is repeated, and the results that it has had.
//!
//! A process beside the supervisor runs the checks. It has no lock of the store: it writes only a
//! file of its own container.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_image::HealthcheckConfig;
use serde::{Deserialize, Serialize};

use crate::containers::small_file;

const HEALTH: &str = "health.json";

/// The files of health checks.
pub(super) const FILES: [&str; 1] = [HEALTH];

/// Defaults of docker.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// Number of results that are kept, as in docker.
const MAX_RESULTS: usize = 5;

/// Maximum length of the output of a check that is kept, as in docker.
pub const MAX_HEALTH_OUTPUT: usize = 4096;

/// A check of a container, and the times at which it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Time from the start, or from the end of a check, to the next one.
    pub interval: Duration,
    /// Time after which a check has failed.
    pub timeout: Duration,
    /// Time after the start during which failures do not count.
    pub start_period: Duration,
    /// Interval during that time.
    pub start_interval: Duration,
    /// Number of consecutive failures after which the container is unhealthy.
    pub retries: u32,
}

impl HealthCheck {
    /// Returns the check of a configuration; `None` if that specifies none. `shell` runs commands
    /// in shell form; empty for the default.
    pub fn of_config(config: &HealthcheckConfig, shell: &[String]) -> Option<HealthCheck> {
        let command = match (config.test.first()?.as_str(), &config.test[1..]) {
            ("CMD", command) if !command.is_empty() => command.to_vec(),
            ("CMD-SHELL", command) if !command.is_empty() => {
                let default = ["/bin/sh", "-c"].map(String::from);
                let shell = if shell.is_empty() { &default } else { shell };
                [shell, command].concat()
            }
            _ => return None,
        };
        let time = |nanoseconds: i64, default| match u64::try_from(nanoseconds) {
            Ok(0) | Err(_) => default,
            Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
        };
        Some(HealthCheck {
            command,
            interval: time(config.interval, INTERVAL),
            timeout: time(config.timeout, TIMEOUT),
            start_period: time(config.start_period, Duration::ZERO),
            start_interval: time(config.start_interval, START_INTERVAL),
            retries: u32::try_from(config.retries).ok().filter(|retries| *retries > 0).unwrap_or(RETRIES),
        })
    }

    /// Returns the time until the next check of a container that has run for `age`.
    pub fn delay(&self, health: &Health, age: Duration) -> Duration {
        let is_starting = health.status == HealthStatus::Starting && age < self.start_period;
        if is_starting { self.start_interval.min(self.interval) } else { self.interval }
    }
}

/// The state of health of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HealthStatus {
    /// No check has succeeded, and too few have failed.
    #[default]
    Starting,
    /// The last check that counts has succeeded.
    Healthy,
    /// Too many checks have failed one after another.
    Unhealthy,
}

impl HealthStatus {
    /// Returns the name that docker has for it.
    pub fn name(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    /// Start in seconds and nanoseconds since the Unix epoch.
    pub start: (i64, u32),
    /// End, as above.
    pub end: (i64, u32),
    /// Exit code; -1 if the check was ended after its maximum time.
    pub code: i32,
    /// Beginning of the output.
    pub output: String,
}

/// The health of a container since the last start of its command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The state.
    pub status: HealthStatus,
    /// Number of the last failures that count.
    pub failing_streak: u32,
    /// The last results, the newest last.
    pub log: Vec<HealthResult>,
}

impl Health {
    /// Adds a result of a container that has run for `age`.
    pub fn add(&mut self, check: &HealthCheck, result: HealthResult, age: Duration) {
        if result.code == 0 {
            (self.status, self.failing_streak) = (HealthStatus::Healthy, 0);
        } else if self.status != HealthStatus::Starting || age >= check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(result);
        self.log.drain(..self.log.len().saturating_sub(MAX_RESULTS));
    }
}

/// The file with the health of a container.
#[derive(Debug, Clone)]
pub struct HealthFile(PathBuf);

impl HealthFile {
    /// Returns the file in the directory of a container.
    pub(super) fn of(dir: &Path) -> HealthFile {
        HealthFile(dir.join(HEALTH))
    }

    /// Writes the health. The disk may be full.
    pub fn write(&self, health: &Health) {
        if let Err(e) = small_file::write(&self.0, health) {
            tracing::debug!(target: "store", error = rbuild_remedy::sentence(&e), "the health is not recorded");
        }
    }

    /// Returns the health; that of a container without results if it is not recorded.
    pub fn read(&self) -> Health {
        small_file::read(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    fn config(test: &[&str]) -> HealthcheckConfig {
        HealthcheckConfig { test: test.iter().map(ToString::to_string).collect(), ..HealthcheckConfig::default() }
    }

    fn result(code: i32) -> HealthResult {
        HealthResult { start: (1, 0), end: (2, 0), code, output: String::new() }
    }

    #[test]
    fn checks_have_the_forms_and_defaults_of_docker() {
        let bash = ["/bin/bash", "-ec"].map(String::from);
        let command = |test: &[&str], shell: &[String]| HealthCheck::of_config(&config(test), shell).map(|c| c.command);
        for (test, shell, expected) in [
            (&["CMD", "curl", "x"][..], &[][..], Some("curl x")),
            (&["CMD-SHELL", "a || b"], &[], Some("/bin/sh -c a || b")),
            (&["CMD-SHELL", "a"], &bash, Some("/bin/bash -ec a")),
            (&["NONE"], &[], None),
            (&["CMD"], &[], None),
            (&[], &[], None),
        ] {
            assert_eq!(command(test, shell).map(|words| words.join(" ")).as_deref(), expected, "{test:?}");
        }
        let check = HealthCheck::of_config(&config(&["CMD", "x"]), &[]).unwrap();
        assert_eq!((check.interval, check.timeout, check.retries), (INTERVAL, TIMEOUT, 3));
        let given = HealthcheckConfig { interval: 2_000_000_000, retries: 1, ..config(&["CMD", "x"]) };
        let check = HealthCheck::of_config(&given, &[]).unwrap();
        assert_eq!((check.interval, check.timeout, check.retries), (Duration::from_secs(2), TIMEOUT, 1));
    }

    #[test]
    fn failures_count_after_the_start_period_or_the_first_success() {
        let given = HealthcheckConfig { start_period: 10_000_000_000, retries: 2, ..config(&["CMD", "x"]) };
        let check = HealthCheck::of_config(&given, &[]).unwrap();
        let mut health = Health::default();
        let seconds = Duration::from_secs;
        assert_eq!(check.delay(&health, seconds(1)), START_INTERVAL);
        for (code, age, status, streak) in [
            (1, 1, HealthStatus::Starting, 0),
            (1, 2, HealthStatus::Starting, 0),
            (0, 3, HealthStatus::Healthy, 0),
            (1, 4, HealthStatus::Healthy, 1),
            (-1, 5, HealthStatus::Unhealthy, 2),
            (1, 20, HealthStatus::Unhealthy, 3),
            (0, 21, HealthStatus::Healthy, 0),
        ] {
            health.add(&check, result(code), seconds(age));
            assert_eq!((health.status, health.failing_streak), (status, streak), "{code} at {age}");
        }
        assert_eq!(check.delay(&health, seconds(4)), INTERVAL);
        assert_eq!(health.log.iter().map(|result| result.code).collect::<Vec<_>>(), [0, 1, -1, 1, 0]);
        let mut late = Health::default();
        late.add(&check, result(1), seconds(10));
        assert_eq!((late.status, late.failing_streak), (HealthStatus::Starting, 1));
    }

    #[test]
    fn the_health_is_that_of_a_start_until_there_is_a_result() {
        let place = Scratch::new();
        let file = HealthFile::of(&place);
        assert_eq!(file.read(), Health::default());
        let health = Health { status: HealthStatus::Healthy, failing_streak: 0, log: vec![result(0)] };
        file.write(&health);
        assert_eq!(file.read(), health);
    }
}
