//! Stage variables (ARG and ENV) and the expansion of words with them.

use rbuild_dockerfile::Diagnostic;
use rbuild_dockerfile::ast::Word;
use rbuild_dockerfile::expand::Lexer;
use rpds::{HashTrieMapSync, VectorSync};

/// Variables in the order in which they were first set.
///
/// The map is persistent: a clone is O(1) and shares unchanged entries, so every step of a stage
/// can keep its own state.
#[derive(Debug, Clone, Default)]
pub struct Vars {
    /// Entries in order; `None` where an entry was moved to the end.
    entries: VectorSync<Option<(String, String)>>,
    /// Index into `entries` of each name.
    positions: HashTrieMapSync<String, usize>,
}

impl Vars {
    pub fn get(&self, name: &str) -> Option<&str> {
        let position = self.positions.get(name)?;
        self.entries.get(*position)?.as_ref().map(|(_, value)| value.as_str())
    }

    /// Sets a variable. An existing one keeps its position; an empty name is ignored.
    pub fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() {
            return;
        }
        let pair = Some((name.to_string(), value.to_string()));
        match self.positions.get(name) {
            Some(position) => {
                self.entries.set_mut(*position, pair);
            }
            None => {
                self.positions.insert_mut(name.to_string(), self.entries.len());
                self.entries.push_back_mut(pair);
            }
        }
    }

    /// Sets a variable and moves it to the end: ENV orders the environment of commands this way.
    pub fn set_last(&mut self, name: &str, value: &str) {
        if let Some(position) = self.positions.get(name) {
            self.entries.set_mut(*position, None);
            self.positions.remove_mut(name);
        }
        self.set(name, value);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.entries.iter().flatten()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.positions.size()
    }
}

/// Expands a word to a single string and removes its quotes. Unset variables are empty: the lint
/// rules warn of them.
pub fn expand(word: &Word, escape: char, vars: &Vars) -> Result<String, Diagnostic> {
    let got = Lexer::new(escape)
        .word(&word.text, &|name| vars.get(name).map(str::to_string))
        .map_err(|e| Diagnostic::new(word.span, e.to_string()))?;
    Ok(got.text)
}

/// Expands a word and splits the result at unquoted whitespace. Unset variables are empty: the lint
/// rules warn of them.
pub fn expand_words(word: &Word, escape: char, vars: &Vars) -> Result<Vec<String>, Diagnostic> {
    let got = Lexer::new(escape)
        .word(&word.text, &|name| vars.get(name).map(str::to_string))
        .map_err(|e| Diagnostic::new(word.span, e.to_string()))?;
    Ok(got.words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_value_keeps_its_position() {
        let mut vars = Vars::default();
        for (k, v) in [("A", "1"), ("B", "2"), ("A", "3"), ("C", "4")] {
            vars.set(k, v);
        }
        let list: Vec<String> = vars.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(list, ["A=3", "B=2", "C=4"]);
        assert_eq!((vars.get("B"), vars.get("D")), (Some("2"), None));
        vars.set_last("A", "4");
        vars.set_last("D", "5");
        let list: Vec<String> = vars.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(list, ["B=2", "C=4", "A=4", "D=5"]);
        assert_eq!((vars.get("A"), vars.len()), (Some("4"), 4));
    }
}
