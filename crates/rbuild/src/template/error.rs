//! Errors of templates.

/// A template that cannot be parsed or rendered.
#[derive(Debug, PartialEq, Eq)]
pub struct TemplateError(pub(super) String);

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TemplateError {}
