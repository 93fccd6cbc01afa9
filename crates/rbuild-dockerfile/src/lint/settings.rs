//! The `check` directive.

use crate::lint::catalog::Rule;

/// Settings of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Rules that are off, by name.
    pub skip: Vec<String>,
    /// All rules are off.
    pub skip_all: bool,
    /// Experimental rules that are on, by name.
    pub experimental: Vec<String>,
    /// All experimental rules are on.
    pub experimental_all: bool,
    /// Warnings fail the build.
    pub error: bool,
}

impl Settings {
    /// Parses `skip=A,B|all;error=true|false;experimental=A,B|all`.
    ///
    /// # Errors
    ///
    /// Returns a sentence about the first part that has another form.
    pub fn parse(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for part in text.split(';') {
            let (key, value) = part.trim().split_once('=').ok_or(format!("`{part}` is not of the form key=value"))?;
            let names = || value.split(',').map(|n| n.trim().to_string()).filter(|n| n != "all").collect();
            let all = value.split(',').any(|n| n.trim() == "all");
            match key.trim() {
                "skip" => (settings.skip, settings.skip_all) = (names(), all),
                "experimental" => (settings.experimental, settings.experimental_all) = (names(), all),
                "error" => {
                    settings.error = match value.trim() {
                        "true" => true,
                        "false" => false,
                        other => return Err(format!("error is true or false, not `{other}`")),
                    }
                }
                other => return Err(format!("`{other}` is none of skip, error and experimental")),
            }
        }
        Ok(settings)
    }

    /// Returns true if warnings of the rule are wanted.
    pub(super) fn wants(&self, rule: &Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case(rule.name));
        if rule.experimental {
            return self.experimental_all || named(&self.experimental);
        }
        !self.skip_all && !named(&self.skip)
    }
}
