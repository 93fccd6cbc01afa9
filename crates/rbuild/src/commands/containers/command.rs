//! Commands of containers: their words, variables and input, and failures to start them.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_linux::{Signal, quoted, request_end};
use rbuild_remedy::{CommandRemedy, sentence};
use rbuild_sandbox::{Cancel, Input, RunnerError};
use rbuild_store::RunSettings;

use crate::exit::Failure;
use crate::input::flags;
use crate::ui::hints::{Hint, UsageRemedy, ValueRemedy, VerbRemedy};
use crate::ui::terminal;

/// Time that a command has after a signal, as in `docker stop`.
pub const STOP_TIME: Duration = Duration::from_secs(10);
/// Time after a signal in which most commands end.
const SILENT_TIME: Duration = Duration::from_secs(1);
/// Exit codes of shells for a program that was not found, and for one that cannot be executed.
const NOT_FOUND: u8 = 127;
const CANNOT_RUN: u8 = 126;

/// Returns the action for signals of the builder: each is forwarded to the command, which then has
/// that time to end; without a command that receives it, it cancels at once. After a second, `note`
/// is printed. SIGHUP requests no end of a command that receives it: the launcher ends the builder
/// if its terminal is gone.
pub fn on_signal(
    cancel: &Cancel,
    time: Duration,
    note: Option<&'static str>,
) -> impl FnMut(Signal) -> ControlFlow<()> + Send + 'static {
    let cancel = cancel.clone();
    move |signal| {
        let received = cancel.forward(signal);
        if received && signal == Signal::SIGHUP {
            return ControlFlow::Continue(());
        }
        request_end(signal);
        if received {
            let silent = time.min(SILENT_TIME);
            std::thread::sleep(silent);
            note.iter().for_each(|note| terminal::err(note));
            std::thread::sleep(time - silent);
        }
        cancel.cancel();
        ControlFlow::Break(())
    }
}

/// Returns the words of `--entrypoint`. An empty value removes the entry point.
pub fn entrypoint(program: String) -> Vec<String> {
    if program.is_empty() { Vec::new() } else { vec![program] }
}

/// Returns the input of a command in the foreground.
///
/// # Errors
///
/// Fails if the flags request a terminal for the input of this process, which is not one.
pub fn input(interactive: bool, tty: bool) -> Result<Input, Failure> {
    let has_terminal = tty && std::io::stdin().is_terminal();
    if tty && interactive && !has_terminal {
        return Err(Failure::usage("-it: standard input is not a terminal").help(VerbRemedy::OmitTerminal));
    }
    Ok(match (has_terminal, interactive) {
        (true, _) => Input::Terminal,
        (false, true) => Input::Given,
        (false, false) => Input::Nothing,
    })
}

/// Returns the failure for a command that was not started. `given` are the words after the image or
/// the container, and `flags_first` is the remedy if they begin with a flag.
pub fn not_started(error: &RunnerError, given: &[String], flags_first: UsageRemedy) -> Failure {
    let is_flag = error.is_no_program() && given.first().is_some_and(|word| word.starts_with('-'));
    // A container has no earlier steps that could install the program.
    let remedy = if error.is_no_program() { Some(CommandRemedy::OtherProgram.into()) } else { error.remedy() };
    let help = if is_flag { Some(flags_first.into()) } else { remedy.as_ref().map(Hint::from) };
    let code = if error.is_no_program() { NOT_FOUND } else { CANNOT_RUN };
    Failure { code, message: format!("cannot start the command: {}", sentence(error)), help }
}

/// Returns the failure for the command of a container that was not started.
pub fn container_not_started(error: &RunnerError, run: &RunSettings) -> Failure {
    let failure = not_started(error, &run.args, UsageRemedy::PutFlagsFirst);
    let mut declared = run.mounts.iter().filter(|mount| mount.is_of_image());
    match error.mount_target().and_then(|target| declared.find(|mount| Path::new(mount.target()) == target)) {
        Some(_) => Failure { message: format!("{}; {OF_IMAGE}", failure.message), ..failure },
        None => failure,
    }
}

/// The origin of a mount that no flag requests.
const OF_IMAGE: &str = "a VOLUME instruction of the image requests the mount";

/// Returns the input of a command in the background.
pub fn detached_input(tty: bool, interactive: bool) -> Input {
    match (tty, interactive) {
        (true, _) => Input::Terminal,
        (false, true) => Input::Given,
        (false, false) => Input::Nothing,
    }
}

/// Two flags that set values by name: one with a file of them, and one with a single value.
pub struct VariableSource {
    file_flag: &'static str,
    flag: &'static str,
    /// Returns the value of a name alone; `None` if it is not set.
    default: Default,
}

impl VariableSource {
    pub const ENV: VariableSource =
        VariableSource { file_flag: "--env-file", flag: "--env", default: |name| std::env::var(name).ok() };
    pub const LABEL: VariableSource =
        VariableSource { file_flag: "--label-file", flag: "--label", default: |_| Some(String::new()) };
}

/// Returns the variables of `--env-file`, followed by those of `--env`.
pub fn variables(files: &[PathBuf], flags: &[String]) -> Result<Vec<(String, String)>, Failure> {
    pairs(&VariableSource::ENV, files, flags)
}

/// Returns the values of files, followed by those of flags.
pub fn pairs(source: &VariableSource, files: &[PathBuf], flags: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let VariableSource { file_flag, flag, default } = *source;
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let failure = Failure::usage(format!("cannot read {file_flag} {}: {}", quoted(path), flags::reason(&e)));
            failure.help(flags::remedy_of_file(e.kind())).because(&e)
        })?;
        // As in docker, one byte order mark is removed, and a CR at the end of the last line, too.
        for (i, line) in text.strip_prefix('\u{feff}').unwrap_or(&text).split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = |e| {
                let failure = Failure::usage(format!("{file_flag} {}, line {}: {e}", quoted(path), i + 1));
                failure.help(ValueRemedy::LineForm)
            };
            all.extend(variable_of_file(line, default).map_err(invalid)?);
        }
    }
    for text in flags {
        let invalid =
            |e| Failure::usage(format!("{flag} {text}: {e}")).help(ValueRemedy::PairForm { flag: flag.into() });
        all.extend(variable(text, default).map_err(invalid)?);
    }
    Ok(all)
}

/// Returns values by name, in the order of the names. Of several values of a name, the last one
/// remains.
pub fn merged(all: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    for (name, value) in all {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => merged.push((name, value)),
        }
    }
    merged
}

/// An invalid variable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum VariableError {
    /// The name before the `=` is empty.
    #[error("the name is missing before `{text}`")]
    NoName { text: String },
    /// The name contains a space or a tab.
    #[error("the name `{name}` contains whitespace")]
    Whitespace { name: String },
}

/// Parses a line of an environment file. Whitespace at the beginning of the line is ignored. As in
/// docker, the value is everything after the `=`, with quotes and whitespace.
///
/// # Errors
///
/// Fails if the name is empty or contains a space or a tab.
fn variable_of_file(line: &str, default: Default) -> Result<Option<(String, String)>, VariableError> {
    let name = line.split_once('=').map_or(line, |(name, _)| name);
    if name.contains([' ', '\t']) {
        Err(VariableError::Whitespace { name: name.to_string() })
    } else {
        variable(line, default)
    }
}

/// Returns the value of a name alone.
type Default = fn(&str) -> Option<String>;

/// Parses `NAME=VALUE`, or a name alone.
///
/// # Errors
///
/// Fails if the name is empty.
fn variable(text: &str, default: Default) -> Result<Option<(String, String)>, VariableError> {
    match text.split_once('=') {
        Some(("", _)) => Err(VariableError::NoName { text: text.to_string() }),
        Some((name, value)) => Ok(Some((name.to_string(), value.to_string()))),
        None => Ok(default(text).map(|value| (text.to_string(), value))),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn the_last_value_of_a_name_remains() {
        let pairs = |all: &[(&str, &str)]| all.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
        let all = pairs(&[("a", "1"), ("b", "2"), ("a", "3")]);
        assert_eq!(merged(all), pairs(&[("a", "3"), ("b", "2")]));
    }

    #[test]
    fn invalid_variables_are_as_recorded() {
        let default = VariableSource::LABEL.default;
        assert_eq!(variable("A=b=c", default), Ok(Some(("A".into(), "b=c".into()))));
        assert_eq!(variable("A=", default), Ok(Some(("A".into(), String::new()))));
        assert_eq!(variable("A", default), Ok(Some(("A".into(), String::new()))));
        let errors = ["=x", "A = 1"].map(|line| variable_of_file(line, default).unwrap_err());
        let variants = variants!(VariableError { NoName, Whitespace });
        assert_recorded!("VariableError", variants.table(&errors, |e| e, no_remedy));
        let f = variables(&[], &["A=1".into(), "=x".into()]).unwrap_err();
        assert_eq!(f.message, "--env =x: the name is missing before `=x`");
    }

    #[test]
    fn files_of_variables_follow_the_rules_of_docker() {
        let dir = Scratch::new();
        let file = dir.join("variables");
        let of = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let all = variables(std::slice::from_ref(&file), &[]).map_err(|f| f.message);
            let lines = |all: Vec<(String, String)>| all.iter().map(|(k, v)| format!("{k}={v}\n")).collect::<String>();
            all.map(lines)
        };
        assert_eq!(
            of("\u{feff}A=1\r\n \tB= 2 \n # C=3\n\nD=\"4\"\nRBUILD_UNSET_VARIABLE\n").unwrap(),
            "A=1\nB= 2 \nD=\"4\"\n"
        );
        for (text, variables) in [("A=1\r", "A=1\n"), ("A=1\r\r\nB=2", "A=1\r\nB=2\n"), ("\r", "")] {
            assert_eq!(of(text).as_deref(), Ok(variables), "{text:?}");
        }
        assert_eq!(of("\u{feff}\u{feff}A=1\n").as_deref(), Ok("\u{feff}A=1\n"));
        for (text, end) in [
            ("A = 1\n", "line 1: the name `A ` contains whitespace"),
            ("#\nA\t=1\n", "line 2: the name `A\t` contains whitespace"),
            ("A \n", "line 1: the name `A ` contains whitespace"),
            ("=1\n", "line 1: the name is missing before `=1`"),
        ] {
            let message = of(text).unwrap_err();
            assert!(message.ends_with(end), "{text}: {message}");
        }
    }
}
