//! Variables: what is set where, and expanding words with them.

use std::collections::HashMap;
use std::sync::Arc;

use rbuild_dockerfile::ast::Word;
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Diagnostic, closest};

/// Named values in the order of their first setting.
///
/// A copy costs nothing until one of the two is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vars(Arc<Content>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    list: Vec<(String, String)>,
    /// Where in the list a name is.
    places: HashMap<String, usize>,
}

impl Vars {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.places.get(name).map(|i| self.0.list[*i].1.as_str())
    }

    /// A value that is replaced keeps its place. What has no name is not kept.
    pub fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() {
            return;
        }
        let Content { list, places } = Arc::make_mut(&mut self.0);
        match places.get(name) {
            Some(i) => list[*i].1 = value.to_string(),
            None => {
                places.insert(name.to_string(), list.len());
                list.push((name.to_string(), value.to_string()));
            }
        }
    }

    pub fn list(&self) -> &[(String, String)] {
        &self.0.list
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

fn warn_unset(word: &Word, unset: &[String], vars: &Vars, warnings: &mut Vec<Diagnostic>) {
    for name in unset {
        let d = Diagnostic::new(word.span, format!("the variable `{name}` is not set here, so it is empty"));
        warnings.push(match closest(name, vars.list().iter().map(|(k, _)| k.as_str())) {
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
        let list: Vec<String> = vars.list().iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(list, ["A=3", "B=2", "C=4"]);
        assert_eq!((vars.get("B"), vars.get("D")), (Some("2"), None));
    }
}
