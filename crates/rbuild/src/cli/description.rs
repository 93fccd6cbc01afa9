//! Answers to `version` and `info` with arguments, as in docker.

use std::ffi::OsString;

use serde_json::{Value, json};

use crate::commands::images::bad_format;
use crate::exit::Failure;
use crate::template;
use crate::ui::hints::UsageRemedy;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the answer to `version`, `info` or `system info` with the arguments `words`: a help
/// page, or the result of `--format`.
///
/// # Errors
///
/// Fails on other arguments, and if the format is invalid.
pub fn answer(command: &str, words: &[OsString]) -> Result<String, Failure> {
    let usage = format!("rbuild {command} [--format FORMAT]");
    let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let format = match words[..] {
        ["-h" | "--help"] => return Ok(format!("Usage: {usage}\n")),
        ["-f" | "--format", format] => format,
        [word] if word.starts_with("--format=") => &word["--format=".len()..],
        ["-f" | "--format"] => {
            return Err(Failure::usage("--format requires a value").help(UsageRemedy::UseForm { form: usage }));
        }
        [first, ..] => {
            let failure = Failure::usage(format!("unexpected argument `{first}`"));
            return Err(failure.help(UsageRemedy::UseForm { form: usage }));
        }
        [] => return Ok(String::new()),
    };
    let fields = if command == "version" { version() } else { info() };
    template::rows(format, &Value::Null, &[fields]).map_err(bad_format)
}

/// Returns the fields of `docker version`. There is no server: this program has its fields, so that
/// scripts do not wait for one.
fn version() -> Value {
    let program = json!({"Version": VERSION, "Os": "linux", "Arch": architecture()});
    json!({"Client": program, "Server": program})
}

/// Returns those fields of `docker info` that do not describe a daemon, and the version, which
/// scripts that wait for a daemon read.
fn info() -> Value {
    json!({
        "ServerVersion": VERSION,
        "ClientInfo": {"Version": VERSION, "Os": "linux", "Arch": architecture()},
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": rbuild_linux::parallel::cores(),
    })
}

fn architecture() -> String {
    rbuild_image::Platform::host().arch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_version_and_info_are_answered() {
        let answered = |line: &str| {
            let mut words = line.split(' ');
            let command = words.next().unwrap_or_default();
            answer(command, &words.map(OsString::from).collect::<Vec<_>>())
        };
        assert_eq!(answered("version --help").unwrap(), "Usage: rbuild version [--format FORMAT]\n");
        let json: Value = serde_json::from_str(&answered("version --format json").unwrap()).unwrap();
        assert_eq!(json["Client"]["Os"], "linux");
        for line in ["version --format {{.Server.Version}}", "info -f {{.ServerVersion}}"] {
            assert_eq!(answered(line).unwrap(), format!("{VERSION}\n"));
        }
        let failures =
            ["version --format {{.Server.Name}}", "info --format {{.Swarm}}", "info --format", "version --client"];
        let failures = failures.map(|line| answered(line).unwrap_err().text());
        rbuild_testkit::assert_recorded!("version-and-info", failures.concat());
    }
}
