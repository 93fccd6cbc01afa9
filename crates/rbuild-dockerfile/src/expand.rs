//! Expands variables, quotes and escapes in words: `$x`, `${x:-word}`, `${x#pattern}`,
//! `${x/pattern/text}`.
//!
//! ```
//! use rbuild_dockerfile::expand::Lexer;
//!
//! let lookup = |name: &str| (name == "TAG").then(|| "3.20".to_string());
//! let word = Lexer::new('\\').word("alpine:${TAG:-latest}", &lookup).unwrap();
//! assert_eq!(word.text, "alpine:3.20");
//! ```

use crate::pattern::{BadEscape, MAX_RESULT, Pattern};

/// Options of an expansion.
#[derive(Debug, Clone, Copy)]
pub struct Lexer {
    /// Escape character of the file: `\` or `` ` ``.
    pub escape: char,
    /// Treat quotes as plain text. Used for here-documents.
    pub raw_quotes: bool,
    /// Keep references to unset variables as written.
    pub skip_unset: bool,
}

/// An expanded word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// Result as a single word.
    pub text: String,
    /// Result split at unquoted whitespace, including whitespace in values.
    pub words: Vec<String>,
    /// Names of the variables that were set, in order of first use.
    pub matched: Vec<String>,
    /// Names of the variables that were not set, in order of first use.
    pub unmatched: Vec<String>,
}

/// An error in a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// An unclosed quote (`single` or `double`).
    #[error("unclosed {0} quote")]
    OpenQuote(&'static str),
    /// `${` without `}`.
    #[error("`${{` without closing `}}`")]
    MissingBrace,
    /// `${}` without a name.
    #[error("`${{…}}` must start with a variable name")]
    BadSubstitution,
    /// An unknown operator.
    #[error("unsupported modifier `{0}` in `${{…}}`")]
    UnsupportedModifier(String),
    /// `${name:?message}` with an unset variable.
    #[error("variable `{name}`: {message}")]
    Mandatory {
        /// Name of the variable.
        name: String,
        /// Message from the Dockerfile, or a default.
        message: String,
    },
    /// An escape that patterns do not support.
    #[error(transparent)]
    BadPatternEscape(#[from] BadEscape),
    /// More than 64 nested expansions.
    #[error("expansions are nested too deeply")]
    TooDeep,
    /// A result of more than 4 MiB.
    #[error("expansion is larger than {} MiB", MAX_RESULT >> 20)]
    TooLarge,
}

const MAX_DEPTH: usize = 64;

/// Returns the value of a variable, if it is set.
pub type VariableLookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

impl Lexer {
    /// Returns the options for arguments of instructions.
    pub fn new(escape: char) -> Lexer {
        Lexer { escape, raw_quotes: false, skip_unset: false }
    }

    /// Expands a word. `lookup` supplies the variables.
    ///
    /// # Errors
    ///
    /// Returns the first error in the word, or an error if a limit on depth or size is exceeded.
    pub fn word(&self, input: &str, lookup: &VariableLookup<'_>) -> Result<Expanded, ExpandError> {
        let chars: Vec<char> = input.chars().collect();
        let mut scan = WordScan {
            chars: &chars,
            at: 0,
            lexer: *self,
            raw_escapes: false,
            depth: 0,
            lookup,
            matched: Vec::new(),
            unmatched: Vec::new(),
        };
        let (text, words) = scan.until(None)?;
        Ok(Expanded { text, words: words.finish(), matched: scan.matched, unmatched: scan.unmatched })
    }
}

struct WordScan<'a> {
    chars: &'a [char],
    at: usize,
    lexer: Lexer,
    raw_escapes: bool,
    depth: usize,
    lookup: &'a VariableLookup<'a>,
    matched: Vec<String>,
    unmatched: Vec<String>,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
    inside: bool,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.push_raw(c);
        } else if self.inside {
            if !self.word.is_empty() {
                self.done.push(std::mem::take(&mut self.word));
            }
            self.inside = false;
        }
    }
    fn push_raw(&mut self, c: char) {
        self.word.push(c);
        self.inside = true;
    }
    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

impl WordScan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Expands up to and including `stop`, or to the end of the text.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Words), ExpandError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandError::TooDeep);
        }
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if text.len() > MAX_RESULT {
                return Err(ExpandError::TooLarge);
            }
            match c {
                _ if Some(c) == stop => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok((text, words));
                }
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.lexer.raw_quotes => {
                    let value = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    words.inside = true;
                    words.word.push_str(&value);
                    text.push_str(&value);
                }
                _ => {
                    self.at += 1;
                    if c != self.lexer.escape {
                        words.push(c);
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        words.push_raw(c);
                        text.push(c);
                    }
                    if let Some(c) = self.next() {
                        words.push_raw(c);
                        text.push(c);
                    }
                }
            }
        }
        if stop.is_some() {
            return Err(ExpandError::MissingBrace);
        }
        self.depth -= 1;
        Ok((text, words))
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(ExpandError::OpenQuote("single")),
                Some('\'') => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(ExpandError::OpenQuote("double")),
                Some('"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) => {
                    self.at += 1;
                    if c != self.lexer.escape {
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.peek() {
                        Some(e) if e == '"' || e == '$' || e == self.lexer.escape => {
                            self.at += 1;
                            text.push(e);
                        }
                        _ => text.push(c),
                    }
                }
            }
        }
    }

    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_ascii_digit() => {
                while self.peek().is_some_and(|c| c.is_ascii_digit()) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !seen.iter().any(|n| n == name) {
            seen.push(name.to_string());
        }
        value
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_string());
            }
            return Ok(match self.value(&name) {
                None if self.lexer.skip_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandError::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let result = self.braces(&name)?;
        match result {
            Some(value) => Ok(value),
            None => Ok(self.chars[start..self.at].iter().collect()),
        }
    }

    /// Expands the rest of `${name…}`. Returns `None` if the reference must be kept as written.
    fn braces(&mut self, name: &str) -> Result<Option<String>, ExpandError> {
        let skip = self.lexer.skip_unset;
        let op = self.next().ok_or(ExpandError::MissingBrace)?;
        match op {
            '}' => {
                let value = self.value(name);
                Ok(if value.is_none() && skip { None } else { Some(value.unwrap_or_default()) })
            }
            ':' => {
                let op = self.next().ok_or(ExpandError::MissingBrace)?;
                if matches!(op, '#' | '%') {
                    return Err(ExpandError::UnsupportedModifier(format!(":{op}")));
                }
                self.conditional(name, op, true)
            }
            '+' | '-' | '?' => self.conditional(name, op, false),
            '#' | '%' => {
                let word = self.raw(|s| s.until(Some('}')))?.0;
                // A doubled operator is greedy, even if its second character comes from the value
                // of a variable.
                let (greedy, pattern) = word.strip_prefix(op).map_or((false, &word[..]), |rest| (true, rest));
                let pattern = Pattern::new(pattern)?;
                let Some(value) = self.value(name) else { return Ok(if skip { None } else { Some(String::new()) }) };
                Ok(Some(if op == '#' { pattern.trim_start(&value, greedy) } else { pattern.trim_end(&value, greedy) }))
            }
            '/' => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.raw(|s| s.until(Some('/')))?.0;
                // An escaped character does not end the replacement; the escape is kept.
                let replacement = self.raw(|s| s.until(Some('}')))?.0;
                let pattern = Pattern::new(&pattern)?;
                match self.value(name) {
                    None if skip => Ok(None),
                    value => Ok(Some(pattern.replace(&value.unwrap_or_default(), &replacement, all))),
                }
            }
            other => Err(ExpandError::UnsupportedModifier(other.to_string())),
        }
    }

    fn raw<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, ExpandError>) -> Result<T, ExpandError> {
        let before = std::mem::replace(&mut self.raw_escapes, true);
        let result = read(self);
        self.raw_escapes = before;
        result
    }

    fn conditional(&mut self, name: &str, op: char, empty_is_unset: bool) -> Result<Option<String>, ExpandError> {
        if !matches!(op, '+' | '-' | '?') {
            return Err(ExpandError::UnsupportedModifier(format!(":{op}")));
        }
        let (word, _) = self.until(Some('}'))?;
        let value = self.value(name);
        let is_set = value.is_some();
        let skip = self.lexer.skip_unset && !is_set;
        let usable = value.filter(|v| !(empty_is_unset && v.is_empty()));
        match (op, usable) {
            _ if skip => Ok(None),
            ('-', usable) => Ok(Some(usable.unwrap_or(word))),
            ('+', usable) => Ok(Some(if usable.is_some() { word } else { String::new() })),
            (_, Some(value)) => Ok(Some(value)),
            (_, None) => {
                let default = if is_set { "is not allowed to be empty" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { default.to_string() } else { word };
                Err(ExpandError::Mandatory { name: name.to_string(), message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/root".into()),
            "EMPTY" => Some(String::new()),
            "V" => Some("foo.bar.baz".into()),
            "P" => Some("80 443/udp".into()),
            "S" => Some("a/b/c".into()),
            "B" => Some("a\\b*c?d}e".into()),
            "HASH" => Some("#*.".into()),
            "D" => Some("[$0]".into()),
            "BACK" => Some("x\\".into()),
            "LINES" => Some("1\n2".into()),
            _ => None,
        }
    }

    /// Each line of the table is an input and its result.
    #[test]
    fn words_expand_as_recorded() {
        for line in include_str!("../tests/words.txt").lines().filter(|l| !l.is_empty() && !l.starts_with("# ")) {
            let (input, want) = line.split_once(" | ").unwrap_or_else(|| panic!("bad case {line}"));
            let got = Lexer::new('\\').word(input, &lookup);
            match (got, want) {
                (Err(_), "error") => {}
                (Ok(got), want) => assert_eq!(got.text, want.trim_matches('~'), "{input}"),
                (Err(e), _) => panic!("{input}: {e}"),
            }
        }
    }

    #[test]
    fn values_are_split_into_words_unless_quoted() {
        let lexer = Lexer::new('\\');
        assert_eq!(lexer.word("$P 1", &lookup).unwrap().words, ["80", "443/udp", "1"]);
        assert_eq!(lexer.word("\"$P\" 1", &lookup).unwrap().words, ["80 443/udp", "1"]);
        let got = lexer.word("$HOME $NO ${HOME}", &lookup).unwrap();
        assert_eq!((got.matched, got.unmatched), (vec!["HOME".to_string()], vec!["NO".to_string()]));
    }

    #[test]
    fn patterns_do_not_match_newlines_and_escape_with_backslash() {
        let text = |lexer: Lexer, word: &str| lexer.word(word, &lookup).map(|got| got.text);
        let lexer = Lexer::new('\\');
        assert_eq!(text(lexer, "${LINES#*2}"), Ok("1\n2".into()));
        assert_eq!(text(lexer, "${LINES##*}"), Ok("\n2".into()));
        assert_eq!(text(lexer, "${LINES//?/x}"), Ok("x\nx".into()));
        let lexer = Lexer::new('`');
        assert_eq!(text(lexer, "${B#a\\\\}"), Ok("b*c?d}e".into()));
        assert_eq!(text(lexer, "${S//`//`/}"), Ok("a/b/c".into()));
    }

    #[test]
    fn matching_takes_time_in_proportion_to_the_text() {
        let lookup = |_: &str| Some("a".repeat(60_000));
        for word in ["${X//a*c/}", "${X/a*c/}", "${X##*b}", "${X%%b*}", "${X//*a?b/x}", "${X%a*c}"] {
            let begun = std::time::Instant::now();
            assert_eq!(Lexer::new('\\').word(word, &lookup).unwrap().text.len(), 60_000, "{word}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{word}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn unset_references_can_be_kept() {
        let lexer = Lexer { skip_unset: true, ..Lexer::new('\\') };
        assert_eq!(lexer.word("$NO ${NO:-x} ${NO#a} $HOME", &lookup).unwrap().text, "$NO ${NO:-x} ${NO#a} /root");
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "${A:-".repeat(5000) + &"}".repeat(5000);
        assert_eq!(Lexer::new('\\').word(&deep, &lookup), Err(ExpandError::TooDeep));
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors = [
            ExpandError::OpenQuote("single"),
            ExpandError::MissingBrace,
            ExpandError::BadSubstitution,
            ExpandError::UnsupportedModifier("=".into()),
            ExpandError::Mandatory { name: "VERSION".into(), message: "is required".into() },
            BadEscape("x".into()).into(),
            ExpandError::TooDeep,
            ExpandError::TooLarge,
        ];
        let variants = variants!(ExpandError {
            OpenQuote,
            MissingBrace,
            BadSubstitution,
            UnsupportedModifier,
            Mandatory,
            BadPatternEscape,
            TooDeep,
            TooLarge,
        });
        assert_recorded!("ExpandError", variants.table(&errors, |e| e, no_remedy));
        let errors = [BadEscape("x".into()), BadEscape(String::new())];
        assert_recorded!("BadEscape", variants!(BadEscape).table(&errors, |e| e, no_remedy));
    }
}
