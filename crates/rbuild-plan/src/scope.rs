//! Variables: what is set where, and expanding words with them.

use rbuild_dockerfile::ast::Word;
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Diagnostic, closest};
use rpds::{HashTrieMapSync, VectorSync};

/// Named values in the order of their first setting.
///
/// A copy shares what is equal: it costs nothing, and a change to either costs no more than its own size.
#[derive(Debug, Clone, Default)]
pub struct Vars {
    /// Nothing stands where a value was that is further back now.
    list: VectorSync<Option<(String, String)>>,
    /// Where in the list a name is.
    places: HashTrieMapSync<String, usize>,
}

impl Vars {
    pub fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        self.list.get(*place)?.as_ref().map(|(_, value)| value.as_str())
    }

    /// A value that is replaced keeps its place. What has no name is not kept.
    pub fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() {
            return;
        }
        let pair = Some((name.to_string(), value.to_string()));
        match self.places.get(name) {
            Some(place) => drop(self.list.set_mut(*place, pair)),
            None => {
                self.places.insert_mut(name.to_string(), self.list.len());
                self.list.push_back_mut(pair);
            }
        }
    }

    /// Sets a value that goes behind all others, as the environment of commands has it.
    pub fn set_last(&mut self, name: &str, value: &str) {
        if let Some(place) = self.places.get(name) {
            self.list.set_mut(*place, None);
            self.places.remove_mut(name);
        }
        self.set(name, value);
    }

    pub fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.list.iter().flatten()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.places.size()
    }
}

/// Expands one word; quotes go away.
pub fn expand(word: &Word, escape: char, vars: &Vars, warnings: &mut Vec<Diagnostic>) -> Result<String, Diagnostic> {
    let got = Lexer::new(escape)
        .word(&word.text, &|name| vars.get(name).map(str::to_string))
        .map_err(|e| Diagnostic::new(word.span, e.to_string()))?;
    warn_unset(word, &got.unmatched, vars, warnings);
    Ok(got.text)
}

/// Expands and splits at blanks.
pub fn expand_words(
    word: &Word,
    escape: char,
    vars: &Vars,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Vec<String>, Diagnostic> {
    let got = Lexer::new(escape)
        .word(&word.text, &|name| vars.get(name).map(str::to_string))
        .map_err(|e| Diagnostic::new(word.span, e.to_string()))?;
    warn_unset(word, &got.unmatched, vars, warnings);
    Ok(got.words)
}

/// How many warnings say what may have been meant.
const SUGGESTIONS: usize = 100;

fn warn_unset(word: &Word, unset: &[String], vars: &Vars, warnings: &mut Vec<Diagnostic>) {
    for name in unset {
        let d = Diagnostic::new(word.span, format!("the variable `{name}` is not set here, so it is empty"));
        // Nobody reads that many, and looking for likely names takes time.
        let candidates = if warnings.len() < SUGGESTIONS { vars.len() } else { 0 };
        warnings.push(match closest(name, vars.iter().take(candidates).map(|(k, _)| k.as_str())) {
            Some(close) => d.help(format!("did you mean `{close}`?")),
            None => d.help(format!("declare it with `ARG {name}` or `ENV {name}=…`")),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_value_keeps_its_place() {
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
