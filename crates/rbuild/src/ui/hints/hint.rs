//! The text of a hint.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use rbuild_dockerfile::Help;
use rbuild_engine::SecretValues;
use rbuild_remedy::Remedy;
use serde::{Deserialize, Serialize};

use crate::ui::hints::remedies::words;
use crate::ui::plain::plain;

/// Returns true if a word is a command of rbuild.
type IsCommand = fn(&str) -> bool;

/// Set if the program was called as `docker`.
static CALLED_AS_DOCKER: OnceLock<IsCommand> = OnceLock::new();

/// Lets hints suggest commands of `docker`, by which name the program was called: there may be no
/// other one. Applies to this process and those that it forks.
pub fn suggest_docker(is_command: IsCommand) {
    let _ = CALLED_AS_DOCKER.set(is_command);
}

/// Replaces the name of the program in commands.
fn with_docker(text: &str, is_command: IsCommand) -> String {
    let mut parts = text.split("rbuild ");
    let mut all = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let word = part.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
        all += if is_command(word) || word.starts_with("--") { "docker " } else { "rbuild " };
        all += part;
    }
    all
}

/// The text of a hint: one imperative, without a full stop. Only remedies can be converted to a
/// hint, so the words of all hints are in the modules next to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hint(pub(super) Cow<'static, str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Hint {
    /// Returns the hint as the line below its message.
    pub fn line(&self, colors: bool) -> String {
        let (on, off) = if colors { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
        let text = match CALLED_AS_DOCKER.get() {
            Some(is_command) => with_docker(&self.0, *is_command).into(),
            None => Cow::Borrowed(&*self.0),
        };
        format!("{on}hint{off}: {}\n", plain(&text))
    }

    /// Masks the values of secrets.
    pub fn masked(self, values: &SecretValues) -> Hint {
        Hint(values.mask(self.0.into_owned()).into())
    }
}

impl From<&Remedy> for Hint {
    fn from(remedy: &Remedy) -> Hint {
        Hint(words(remedy).into())
    }
}

impl From<Remedy> for Hint {
    fn from(remedy: Remedy) -> Hint {
        Hint::from(&remedy)
    }
}

impl From<&Help> for Hint {
    fn from(help: &Help) -> Hint {
        match help {
            Help::Text(text) => Hint(text.clone().into()),
            Help::Remedy(remedy) => Hint::from(remedy),
        }
    }
}

impl From<Hint> for Help {
    fn from(hint: Hint) -> Help {
        Help::Text(hint.0.into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_hints_have_the_name_by_which_the_program_was_called() {
        let is_command: IsCommand = |word| ["images", "pull", "run"].contains(&word);
        for (text, expected) in [
            ("run `rbuild images`, or `rbuild pull x`", "run `docker images`, or `docker pull x`"),
            ("run `rbuild --help` to list the commands", "run `docker --help` to list the commands"),
            ("run rbuild as root: rbuild run -d x", "run rbuild as root: docker run -d x"),
            ("use a number", "use a number"),
        ] {
            assert_eq!(with_docker(text, is_command), expected);
        }
    }
}
