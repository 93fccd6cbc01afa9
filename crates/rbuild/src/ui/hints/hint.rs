//! The text of a hint.

use std::borrow::Cow;
use std::fmt;

use rbuild_dockerfile::Help;
use rbuild_engine::SecretValues;
use rbuild_remedy::Remedy;
use serde::{Deserialize, Serialize};

use crate::ui::hints::remedies::words;
use crate::ui::plain::plain;

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
        format!("{on}hint{off}: {}\n", plain(&self.0))
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
