//! Errors and warnings with their positions.

use rbuild_remedy::Remedy;

/// A range of bytes of the Dockerfile: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

impl Span {
    /// Returns the range `start..end`.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start, end }
    }

    /// Returns the smallest range that covers both.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// An error or warning about a range of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Range of the affected text; the default if no text is the cause. An empty range elsewhere
    /// marks a position, such as an empty line.
    pub span: Span,
    /// Problem, without a full stop.
    pub message: String,
    /// Help, if there is any.
    pub help: Option<Help>,
    /// Error number of the kernel, if a refused operation is the cause.
    pub errno: Option<i32>,
}

impl Diagnostic {
    /// Returns a diagnostic without a remedy.
    pub fn new(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { span, message: message.into(), help: None, errno: None }
    }

    /// Sets the help.
    pub fn help(mut self, help: impl Into<Help>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// Sets the remedy to "did you mean …" if one of `candidates` is close to `word`.
    pub fn suggest<'a>(self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        match crate::closest(word, candidates) {
            Some(close) => self.help(Remedy::did_you_mean(close)),
            None => self,
        }
    }

    /// Sets the remedy to "did you mean …" if one of `words` is close to `word`, or else to a list
    /// of all of them.
    pub fn suggest_one_of(self, word: &str, words: &[&str]) -> Diagnostic {
        let all = words.iter().map(ToString::to_string).collect();
        self.help(Remedy::UseOneOf { words: all }).suggest(word, words.iter().copied())
    }
}

/// The help of a diagnostic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Help {
    /// A rule of the language, as one imperative: it changes with the code that checks it.
    Text(String),
    /// Any other action.
    Remedy(Remedy),
}

impl From<Remedy> for Help {
    fn from(remedy: Remedy) -> Help {
        Help::Remedy(remedy)
    }
}

impl From<String> for Help {
    fn from(text: String) -> Help {
        Help::Text(text)
    }
}

impl From<&str> for Help {
    fn from(text: &str) -> Help {
        Help::Text(text.to_string())
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}
