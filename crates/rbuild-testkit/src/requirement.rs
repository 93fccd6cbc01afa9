//! Requirements of tests on the machine.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lab::rbuild_path;
use crate::scratch::Scratch;

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// A property of the machine that a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// The tests were started by cargo, or `RBUILD_TEST_BIN` names the program.
    Program,
    /// Commands can run in some isolation mode.
    Commands,
}

impl Requirement {
    /// Returns the reason why the machine does not meet the requirement.
    ///
    /// # Errors
    ///
    /// Fails with the reason.
    pub fn check(self) -> Result<(), String> {
        match self {
            Requirement::Program if rbuild_path().exists() => Ok(()),
            Requirement::Program => Err(format!("there is no {}: build it", rbuild_path().display())),
            Requirement::Commands => {
                let dir = Scratch::new();
                let doctor = Command::new(rbuild_path()).arg("doctor").env("RBUILD_ROOT", dir.join("store")).output();
                let doctor = doctor.map_err(|e| format!("the program does not start: {e}"))?;
                let report = String::from_utf8_lossy(&doctor.stdout);
                if doctor.status.success() { Ok(()) } else { Err(format!("no isolation mode works here:\n{report}")) }
            }
        }
    }
}

/// Ends the calling test with a reason, unless tests must not be skipped.
///
/// `requires!(Requirement::Commands, …)` is the first statement of a test. Where a requirement is
/// not met, the test returns, and the reason and the number of tests skipped so far are printed.
/// With `CI` or `RBUILD_TEST_REQUIRE` in the environment it fails instead.
#[macro_export]
macro_rules! requires {
    ($($requirement:expr),+ $(,)?) => {
        $(if let Err(reason) = $requirement.check() {
            return $crate::skip(&reason);
        })+
    };
}

/// Reports that the current test is skipped.
///
/// # Panics
///
/// Panics if `CI` or `RBUILD_TEST_REQUIRE` is set.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let strict = ["CI", "RBUILD_TEST_REQUIRE"].into_iter().find(|name| std::env::var_os(name).is_some());
    assert!(strict.is_none(), "{test} must not be skipped, since {} is set: {reason}", strict.unwrap_or_default());
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Tests that run the tests collect the reasons of all programs.
    if let Some(notes) = std::env::var_os("RBUILD_TEST_SKIPPED") {
        let notes = std::fs::OpenOptions::new().create(true).append(true).open(notes);
        let _ = notes.and_then(|mut notes| writeln!(notes, "{test}: {}", reason.replace('\n', " ")));
    }
    // The output of tests that pass is not shown, except for what bypasses the macros.
    let _ = writeln!(std::io::stderr(), "skipped ({count}): {test}: {reason}");
}
