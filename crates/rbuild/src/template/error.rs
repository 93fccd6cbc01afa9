//! Errors of templates.

use rbuild_remedy::{Remedy, counted};

/// A template that cannot be parsed or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("unclosed action: missing }}}}")]
    UnclosedAction,
    #[error("unclosed comment: missing */")]
    UnclosedComment,
    #[error("unclosed string: missing {0}")]
    UnclosedString(char),
    #[error("unclosed parenthesis")]
    UnclosedParenthesis,
    #[error("unclosed `{0}`: missing `end`")]
    UnclosedBlock(String),
    /// `end` or `else` outside a block.
    #[error("`{0}` without a block")]
    NoBlock(String),
    #[error("`else` must be followed by `if` or nothing")]
    AfterElse,
    #[error("empty action")]
    EmptyAction,
    #[error("empty command")]
    EmptyCommand,
    #[error("unexpected `{0}` in an action")]
    UnexpectedCharacter(char),
    #[error("unexpected `{0}`")]
    UnexpectedMark(&'static str),
    #[error("`{0}` is not a number")]
    NotANumber(String),
    #[error("blocks are nested too deeply")]
    DeepBlocks,
    #[error("parentheses are nested too deeply")]
    DeepParentheses,
    #[error("no variable `{0}`")]
    NoVariable(String),
    /// An object has no such field. `closest` is the most similar of its fields.
    #[error("no field `{name}`")]
    NoField { name: String, closest: Option<String> },
    /// A value that is not an object.
    #[error("{value} has no fields, so it has no `{name}`")]
    NoFields { value: String, name: String },
    /// There is no such function. `closest` is the one with the most similar name.
    #[error("no function `{name}`")]
    NoFunction { name: String, closest: Option<&'static str> },
    #[error("a value is not a function and takes no arguments")]
    NotAFunction,
    #[error("`{0}` does not accept these arguments")]
    BadArguments(String),
    #[error("{0}: the arguments have different types")]
    DifferentTypes(String),
    #[error("slice: the index is out of range")]
    BadSlice,
    #[error("index: {index} is out of range for {}", counted(*items as u64, "item"))]
    BadIndex { index: String, items: usize },
    #[error("index: {value} has no {key}")]
    NoElement { value: String, key: String },
    #[error("range cannot iterate over {0}")]
    NotIterable(String),
}

impl TemplateError {
    /// Returns the suggestion of a similar name, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            TemplateError::NoField { closest, .. } => closest.as_ref().map(Remedy::did_you_mean),
            TemplateError::NoFunction { closest, .. } => closest.map(Remedy::did_you_mean),
            _ => None,
        }
    }

    /// Returns true if the template names a field that the value does not have.
    pub fn is_unknown_field(&self) -> bool {
        matches!(self, TemplateError::NoField { .. } | TemplateError::NoFields { .. })
    }
}
