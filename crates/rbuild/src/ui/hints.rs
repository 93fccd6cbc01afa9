//! Words of hints: remedies as actions on this command line.

use rbuild_remedy::Remedy;

mod hint;
mod inputs;
mod outputs;
mod remedies;
pub mod unsupported;
mod usage;
mod values;
mod verbs;

pub use hint::{Hint, suggest_docker};
pub use inputs::InputRemedy;
pub use outputs::OutputRemedy;
pub use usage::UsageRemedy;
pub use values::ValueRemedy;
pub use verbs::VerbRemedy;

/// Returns the hint for a misspelled word.
pub fn did_you_mean(word: &str) -> Hint {
    Remedy::did_you_mean(word).into()
}

/// Lists the possible words.
pub fn use_one_of(words: &[&str]) -> Hint {
    Remedy::UseOneOf { words: words.iter().map(|word| word.to_string()).collect() }.into()
}

/// Suggests the most similar of the known words, or else all of them.
pub fn suggestion(word: &str, known: &[&str]) -> Hint {
    match rbuild_dockerfile::closest(word, known.iter().copied()) {
        Some(close) => did_you_mean(close),
        None => use_one_of(known),
    }
}

#[cfg(test)]
mod tests;
