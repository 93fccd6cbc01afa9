//! Variables of a scope: the rules of ARG and ENV, and the expansion of words.

use std::cell::RefCell;

use rpds::{HashTrieMapSync, HashTrieSetSync, VectorSync};

use crate::ast::{ArgDecl, Heredoc, Pair, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::expand::{Expanded, Lexer};

/// Options for here-documents: quotes are plain text, and the escape character is always `\`.
const HEREDOC: Lexer = Lexer { escape: '\\', raw_quotes: true, skip_unset: false };

/// Variables in the order in which they were first set.
///
/// The maps are persistent: a clone is O(1) and shares unchanged entries, so every step of a stage
/// can keep its own state.
#[derive(Debug, Clone, Default)]
pub struct Vars {
    /// Entries in order; `None` in place of an entry that was moved to the end.
    entries: VectorSync<Option<(String, String)>>,
    /// Index into `entries` of each name.
    positions: HashTrieMapSync<String, usize>,
    /// Names that were declared without a value. Those that were set later are in `positions` too.
    declared: HashTrieSetSync<String>,
}

impl Vars {
    /// Returns the variables of an environment, whose entries are `NAME=value` or `NAME`.
    pub fn of_environment(environment: &[String]) -> Vars {
        let mut vars = Vars::default();
        for entry in environment {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            vars.set(name, value);
        }
        vars
    }

    /// Returns the value of a variable, if it is set.
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

    /// Declares a variable and sets it if there is a value. Without one, an earlier value is kept.
    pub fn declare(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.set_last(name, value),
            None => self.declared.insert_mut(name.to_string()),
        }
    }

    /// Returns true for a variable that is set or was declared without a value.
    pub fn declares(&self, name: &str) -> bool {
        self.positions.contains_key(name) || self.declared.contains(name)
    }

    /// Returns the names that are set or declared.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let unset = self.declared.iter().filter(|name| !self.positions.contains_key(name.as_str()));
        self.positions.keys().chain(unset).map(String::as_str)
    }

    /// Returns the variables that are set, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.entries.iter().flatten()
    }

    /// Returns true if no variable is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of variables that are set.
    pub fn len(&self) -> usize {
        self.positions.size()
    }
}

/// The rules of ARG and ENV.
impl Vars {
    /// Returns the value of an ARG declaration: the build argument `given`, or else the default
    /// expanded with the variables so far, or else the value `inherited` from the global scope.
    ///
    /// # Errors
    ///
    /// Fails if the default is used and cannot be expanded.
    pub fn argument(
        &self,
        declaration: &ArgDecl,
        escape: char,
        given: Option<String>,
        inherited: Option<&str>,
    ) -> Result<Option<String>, Diagnostic> {
        match (given, &declaration.default) {
            (Some(value), _) => Ok(Some(value)),
            (None, Some(default)) => self.expand(default, escape).map(Some),
            (None, None) => Ok(inherited.map(str::to_string)),
        }
    }

    /// Sets the variables of an ENV and returns them. All names and values are expanded with the
    /// variables before the instruction.
    ///
    /// # Errors
    ///
    /// Fails, and sets nothing, if words cannot be expanded: returns an error for each of them.
    pub fn env(&mut self, pairs: &[Pair], escape: char) -> Result<Vec<(String, String)>, Vec<Diagnostic>> {
        let (mut set, mut errors) = (Vec::with_capacity(pairs.len()), Vec::new());
        for pair in pairs {
            match (self.expand(&pair.name, escape), self.expand(&pair.value, escape)) {
                (Ok(name), Ok(value)) => set.push((name, value)),
                (name, value) => errors.extend([name.err(), value.err()].into_iter().flatten()),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        for (name, value) in &set {
            self.set_last(name, value);
        }
        Ok(set)
    }
}

/// Expansion. Unset variables are empty: the lint rules warn about them.
impl Vars {
    /// Expands a word to a single string and removes its quotes.
    ///
    /// # Errors
    ///
    /// Returns the first error in the word.
    pub fn expand(&self, word: &Word, escape: char) -> Result<String, Diagnostic> {
        self.expand_text(Lexer::new(escape), &word.text, word.span).map(|got| got.text)
    }

    /// Expands a word and splits the result at unquoted whitespace.
    ///
    /// # Errors
    ///
    /// Returns the first error in the word.
    pub fn expand_words(&self, word: &Word, escape: char) -> Result<Vec<String>, Diagnostic> {
        self.expand_text(Lexer::new(escape), &word.text, word.span).map(|got| got.words)
    }

    /// Expands the body of a here-document, whose quotes are plain text.
    ///
    /// # Errors
    ///
    /// Returns the first error in the text.
    pub fn expand_heredoc(&self, doc: &Heredoc) -> Result<String, Diagnostic> {
        self.expand_text(HEREDOC, &doc.content(), doc.body_span).map(|got| got.text)
    }

    /// Returns the variables of a word that are neither set nor declared. Values do not matter: all
    /// declared variables count as set and empty. The result is empty if the word is malformed.
    pub fn undeclared(&self, word: &Word, escape: char) -> Vec<String> {
        self.undeclared_in_text(Lexer::new(escape), &word.text)
    }

    /// Returns the variables of the body of a here-document that are neither set nor declared.
    pub fn undeclared_in_heredoc(&self, doc: &Heredoc) -> Vec<String> {
        self.undeclared_in_text(HEREDOC, &doc.content())
    }

    /// Returns the variables that the expansion of a word reads, up to its error if it has one.
    pub fn read_by(&self, word: &Word, escape: char) -> Vec<String> {
        let names = RefCell::new(Vec::new());
        let lookup = |name: &str| {
            names.borrow_mut().push(name.to_string());
            self.get(name).map(str::to_string)
        };
        let _ = Lexer::new(escape).word(&word.text, &lookup);
        names.into_inner()
    }

    fn undeclared_in_text(&self, lexer: Lexer, text: &str) -> Vec<String> {
        let lookup = |name: &str| self.declares(name).then(String::new);
        lexer.word(text, &lookup).map(|got| got.unmatched).unwrap_or_default()
    }

    fn expand_text(&self, lexer: Lexer, text: &str, span: Span) -> Result<Expanded, Diagnostic> {
        let lookup = |name: &str| self.get(name).map(str::to_string);
        lexer.word(text, &lookup).map_err(|e| Diagnostic::new(span, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ast::Op;

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

    #[test]
    fn declarations_without_a_value_keep_an_earlier_one() {
        let mut vars = Vars::of_environment(&["A=1".into(), "B".into()]);
        vars.declare("A", None);
        vars.declare("C", None);
        assert_eq!((vars.get("A"), vars.get("B"), vars.get("C")), (Some("1"), Some(""), None));
        assert!(["A", "B", "C"].iter().all(|name| vars.declares(name)) && !vars.declares("D"));
        let mut names: Vec<&str> = vars.names().collect();
        names.sort_unstable();
        assert_eq!((names, vars.len(), vars.iter().count()), (vec!["A", "B", "C"], 2, 2));
        vars.declare("C", Some("3"));
        assert_eq!((vars.get("C"), vars.names().count(), vars.len()), (Some("3"), 3, 3));
    }

    #[test]
    fn a_build_argument_wins_over_the_default_and_that_over_the_global_scope() {
        let file = crate::parse(b"FROM x\nARG A=$B N\nENV A=2 ${B}_Z=$A\nENV E=${N?unset} F=1\n").unwrap();
        let (mut vars, ops) = (Vars::of_environment(&["A=1".into(), "B=b".into()]), &file.stages[0].instructions);
        let Op::Arg(decls) = &ops[0].op else { panic!("{ops:?}") };
        let value = |given: Option<&str>, inherited, decl| {
            vars.argument(&decls[decl], '\\', given.map(String::from), inherited).unwrap()
        };
        assert_eq!(value(Some("given"), Some("global"), 0).as_deref(), Some("given"));
        assert_eq!(value(None, Some("global"), 0).as_deref(), Some("b"));
        assert_eq!((value(None, Some("global"), 1).as_deref(), value(None, None, 1)), (Some("global"), None));
        let (Op::Env(first), Op::Env(second)) = (&ops[1].op, &ops[2].op) else { panic!("{ops:?}") };
        vars.env(first, '\\').unwrap();
        assert_eq!((vars.get("A"), vars.get("b_Z")), (Some("2"), Some("1")));
        assert!(vars.env(second, '\\').is_err() && vars.get("F").is_none());
    }
}
