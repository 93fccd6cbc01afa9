//! The `check` directive.

use crate::boolean::parse_bool;
use crate::lint::catalog::Rule;

/// Settings of the lint rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LintSettings {
    /// Names of disabled rules.
    pub skip: Vec<String>,
    /// All rules are disabled.
    pub skip_all: bool,
    /// Names of enabled experimental rules.
    pub experimental: Vec<String>,
    /// All experimental rules are enabled.
    pub experimental_all: bool,
    /// Warnings fail the build.
    pub error: bool,
}

/// An invalid part of the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl LintSettings {
    /// Parses `skip=A,B|all;error=true|false;experimental=A,B|all`.
    ///
    /// # Errors
    ///
    /// Describes the first invalid part.
    pub fn parse(text: &str) -> Result<LintSettings, SettingsError> {
        let mut settings = LintSettings::default();
        for part in text.split(';') {
            let (key, value) = part
                .trim()
                .split_once('=')
                .ok_or_else(|| SettingsError(format!("expected key=value instead of `{part}`")))?;
            let names = || value.split(',').map(|n| n.trim().to_string()).filter(|n| n != "all").collect();
            let all = value.split(',').any(|n| n.trim() == "all");
            match key.trim() {
                "skip" => (settings.skip, settings.skip_all) = (names(), all),
                "experimental" => (settings.experimental, settings.experimental_all) = (names(), all),
                "error" => {
                    let bad = |value| SettingsError(format!("`error` must be true or false, not `{value}`"));
                    settings.error = parse_bool(value.trim()).ok_or_else(|| bad(value.trim()))?;
                }
                other => {
                    return Err(SettingsError(format!("unknown key `{other}`: expected skip, error or experimental")));
                }
            }
        }
        Ok(settings)
    }

    /// Returns true if the rule is enabled.
    pub(super) fn enables(&self, rule: &Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case(rule.name));
        if rule.experimental {
            return self.experimental_all || named(&self.experimental);
        }
        !self.skip_all && !named(&self.skip)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = ["skip", "error=yes", "skpi=all"].map(|text| LintSettings::parse(text).unwrap_err());
        assert_recorded!("SettingsError", variants!(SettingsError).table(&errors, |e| e, no_remedy));
    }
}
