//! Credential helpers: programs named `docker-credential-NAME`.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rbuild_linux::parallel::{self, locked};
use rbuild_linux::process::start_unblocked;
use serde::{Deserialize, Serialize};

use crate::config_error::ConfigError;
use crate::credential::Credential;
use crate::environment::ProcessEnvironment;
use crate::secret::Secret;

/// Maximum time of one call. A helper may prompt the user, for example to unlock a keychain.
const LIMIT: Duration = Duration::from_secs(30);
/// Time for output that is still in the pipe when the helper has ended.
const GRACE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(5);
/// Maximum size of an answer in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// Answer of a helper that has no login for a registry.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// User name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Returns the login that a helper has for a registry.
pub(super) fn get(
    environment: &ProcessEnvironment,
    helper: &str,
    registry: &str,
) -> Result<Option<Credential>, ConfigError> {
    let program = format!("docker-credential-{helper}");
    let (ok, text) = call(environment, &program, "get", registry)?;
    if !ok {
        return if text.contains(NOT_FOUND) { Ok(None) } else { Err(failed(&program, HelperFault::of(&text))) };
    }
    let answer: HelperAnswer = serde_json::from_str(&text).map_err(|_| failed(&program, HelperFault::InvalidAnswer))?;
    Ok(match (answer.username.as_str(), Secret::new(answer.secret)) {
        (_, secret) if secret.is_empty() => None,
        (TOKEN_USER, secret) => Some(Credential::Identity(secret)),
        (user, password) => Some(Credential::Password { user: user.to_string(), password }),
    })
}

/// Stores a login in a helper.
pub(super) fn store(
    environment: &ProcessEnvironment,
    helper: &str,
    registry: &str,
    credential: &Credential,
) -> Result<(), ConfigError> {
    let (username, secret) = match credential {
        Credential::Password { user, password } => (user.clone(), password),
        Credential::Identity(token) | Credential::Registry(token) => (TOKEN_USER.to_string(), token),
    };
    let answer = HelperAnswer { server_url: registry.to_string(), username, secret: secret.reveal().to_string() };
    let text = serde_json::to_string(&answer).map_err(|_| failed(helper, HelperFault::NotText))?;
    done(environment, helper, "store", &text)
}

/// Removes a login from a helper. Returns true if it had one.
pub(super) fn erase(environment: &ProcessEnvironment, helper: &str, registry: &str) -> Result<bool, ConfigError> {
    let had = get(environment, helper, registry)?.is_some();
    done(environment, helper, "erase", registry)?;
    Ok(had)
}

fn done(environment: &ProcessEnvironment, helper: &str, action: &str, input: &str) -> Result<(), ConfigError> {
    let program = format!("docker-credential-{helper}");
    match call(environment, &program, action, input)? {
        (true, _) => Ok(()),
        (false, text) if text.contains(NOT_FOUND) => Ok(()),
        (false, text) => Err(failed(&program, HelperFault::of(&text))),
    }
}

fn failed(program: &str, fault: HelperFault<'_>) -> ConfigError {
    ConfigError::Helper { program: program.to_string(), reason: fault.to_string() }
}

/// A failure of a helper that was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum HelperFault<'a> {
    /// The message of the helper.
    #[error("{0}")]
    Message(&'a str),
    #[error("the helper printed nothing")]
    NoOutput,
    #[error("the answer is invalid")]
    InvalidAnswer,
    #[error("the output is not UTF-8")]
    NotUtf8,
    #[error("no answer within {0} s")]
    TimedOut(u64),
    #[error("the login cannot be passed to the helper")]
    NotText,
}

impl HelperFault<'_> {
    /// Returns the failure that a helper describes in its first line of output.
    fn of(output: &str) -> HelperFault<'_> {
        let line = output.lines().map(str::trim).find(|line| !line.is_empty());
        line.map_or(HelperFault::NoOutput, |line| {
            HelperFault::Message(line.char_indices().nth(200).map_or(line, |(end, _)| &line[..end]))
        })
    }
}

/// Runs a helper. Returns true with its output if it succeeds.
fn call(
    environment: &ProcessEnvironment,
    program: &str,
    action: &str,
    input: &str,
) -> Result<(bool, String), ConfigError> {
    let mut command = Command::new(program);
    if let Some(path) = environment.variable("PATH") {
        command.env("PATH", path);
    }
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A helper may ask the user, who may interrupt it.
    let started = start_unblocked(&mut command);
    let mut child = started.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ConfigError::NoHelper(program.to_string()),
        _ => ConfigError::Run { program: program.to_string(), source: e },
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may answer without reading its input.
        let _ = stdin.write_all(input.as_bytes());
    }
    let answer = HelperOutput::of(child.stdout.take());
    let ok = end_of(program, &mut child)?;
    let bytes = answer.bytes();
    String::from_utf8(bytes).map(|text| (ok, text)).map_err(|_| failed(program, HelperFault::NotUtf8))
}

/// The output of a helper. It is complete when the helper has ended, not when its pipe is closed: a
/// process that it left running, such as an agent, may keep the pipe open forever.
struct HelperOutput {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: Receiver<()>,
}

impl HelperOutput {
    fn of(stdout: Option<ChildStdout>) -> HelperOutput {
        let (sender, closed) = channel();
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let all = bytes.clone();
        let read = move || {
            let (mut source, mut part) = (stdout.map(|stdout| stdout.take(MAX_ANSWER)), [0; 4 << 10]);
            while let Some(Ok(n @ 1..)) = source.as_mut().map(|source| source.read(&mut part)) {
                locked(&all).extend_from_slice(&part[..n]);
            }
            let _ = sender.send(());
        };
        // If the thread cannot be started, the answer is empty, which is an error.
        let _ = parallel::start(read);
        HelperOutput { bytes, closed }
    }

    /// Returns the output of a helper that has ended.
    fn bytes(self) -> Vec<u8> {
        let _ = self.closed.recv_timeout(GRACE);
        locked(&self.bytes).clone()
    }
}

/// Waits for the end of a helper; returns true if it succeeded.
fn end_of(program: &str, child: &mut Child) -> Result<bool, ConfigError> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if start.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(program, HelperFault::TimedOut(LIMIT.as_secs())));
            }
            Ok(None) => std::thread::sleep(TICK),
            Err(source) => return Err(ConfigError::Run { program: program.to_string(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn failures_of_helpers_are_as_recorded() {
        let long = "x".repeat(201);
        let faults = [
            HelperFault::of("\n  the keychain is locked\nmore\n"),
            HelperFault::of(&long),
            HelperFault::of(" \n"),
            HelperFault::InvalidAnswer,
            HelperFault::NotUtf8,
            HelperFault::TimedOut(30),
            HelperFault::NotText,
        ];
        let variants = variants!(HelperFault { Message, NoOutput, InvalidAnswer, NotUtf8, TimedOut, NotText });
        assert_recorded!("HelperFault", variants.table(&faults, |fault| fault, no_remedy));
    }
}
