//! Builder flags: the `--name[=value]` words directly after the keyword.

use rbuild_remedy::Remedy;

use crate::ast::Word;
use crate::diagnostic::{Diagnostic, Span};
use crate::text::Text;

/// A flag as written, before it is checked.
#[derive(Debug, Clone)]
pub struct Flag {
    pub name: String,
    pub value: Option<Word>,
    /// The next word of the line, unless it is a flag.
    next: Option<String>,
    pub span: Span,
}

/// Splits leading flags from the arguments. Returns the flags and the rest.
///
/// As in BuildKit's parser, quotes and escapes are removed from flags, and a bare `--` ends them.
pub fn take(text: &Text, escape: char) -> (Vec<Flag>, Text) {
    let line = &text.text;
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        at += line[at..].len() - line[at..].trim_start().len();
        if !line[at..].starts_with("--") {
            return (flags, text.slice(at, line.len()).trimmed());
        }
        let (value, end) = flag_word(&line[at..], escape);
        let end = at + end;
        if value == "--" {
            return (flags, text.slice(end, line.len()).trimmed());
        }
        let span = text.span(at, end);
        let body = &value[2..];
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => {
                let from = line[at..end].find('=').map_or(at, |i| at + i + 1);
                (name, Some(Word { text: value.to_string(), span: text.span(from, end.max(from)) }))
            }
            None => (body, None),
        };
        let next = line[end..].split_whitespace().next().filter(|word| !word.starts_with("--")).map(str::to_string);
        flags.push(Flag { name: name.to_string(), value, next, span });
        at = end;
    }
}

/// Parses a word. Returns it without quotes and escapes, and the offset of its end.
fn flag_word(line: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = line.char_indices();
    while let Some((i, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, i),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, line.len())
}

/// Number and kind of the values of a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// At most once, with a value.
    One,
    /// At most once; the value is `true` or `false` and defaults to `true`.
    Bool,
    /// Any number of times, with a value.
    Many,
}

/// Flags of an instruction, checked against those that it takes.
pub struct Flags {
    keyword: String,
    known: &'static [(&'static str, Arity)],
    flags: Vec<Flag>,
}

impl Flags {
    /// Checks the flags of an instruction and appends the errors to `errors`.
    pub fn check(
        keyword: &str,
        flags: Vec<Flag>,
        known: &'static [(&'static str, Arity)],
        errors: &mut Vec<Diagnostic>,
    ) -> Flags {
        for (i, flag) in flags.iter().enumerate() {
            let name = &flag.name;
            match known.iter().find(|(n, _)| n == name) {
                None => {
                    let mut d = Diagnostic::new(flag.span, format!("{keyword} has no flag `--{name}`"));
                    d = match crate::closest(name, known.iter().map(|(n, _)| *n)) {
                        Some(close) => d.help(Remedy::did_you_mean(format_args!("--{close}"))),
                        None if known.is_empty() => d.help("remove the flag"),
                        None => {
                            let all: Vec<String> = known.iter().map(|(n, _)| format!("--{n}")).collect();
                            d.help(Remedy::UseOneOf { words: all })
                        }
                    };
                    errors.push(d);
                }
                Some((_, Arity::Many)) if flag.value.is_some() => {}
                Some((_, Arity::One | Arity::Many)) if flag.value.is_none() => {
                    let d = Diagnostic::new(flag.span, format!("`--{name}` needs a value: `--{name}=…`"));
                    errors.push(match &flag.next {
                        Some(next) => d.help(format!("write `=` instead of the blank: `--{name}={next}`")),
                        None => d,
                    });
                }
                Some((_, arity)) => {
                    if flags[..i].iter().any(|f| f.name == *name) {
                        errors.push(Diagnostic::new(flag.span, format!("duplicate flag `--{name}`")));
                    }
                    let value = flag.value.as_ref().map(|v| v.text.to_lowercase());
                    if *arity == Arity::Bool && !matches!(value.as_deref(), None | Some("true") | Some("false")) {
                        let d = Diagnostic::new(flag.span, format!("`--{name}` must be true or false"));
                        errors.push(d.help(format!("use `--{name}` or `--{name}=false`")));
                    }
                }
            }
        }
        Flags { keyword: keyword.to_string(), known, flags }
    }

    fn assert_known(&self, name: &str) {
        debug_assert!(self.known.iter().any(|(n, _)| *n == name), "{} --{name}", self.keyword);
    }

    /// Returns the value of a flag of [`Arity::One`], if it is given.
    pub fn one(&self, name: &str) -> Option<Word> {
        self.assert_known(name);
        self.flags.iter().find(|f| f.name == name).and_then(|f| f.value.clone())
    }

    /// Returns all values of a flag of [`Arity::Many`], in order.
    pub fn many(&self, name: &str) -> Vec<Word> {
        self.assert_known(name);
        self.flags.iter().filter(|f| f.name == name).filter_map(|f| f.value.clone()).collect()
    }

    /// Returns the flag if it is given and not `false`.
    pub fn on(&self, name: &str) -> Option<Word> {
        self.assert_known(name);
        let flag = self.flags.iter().find(|f| f.name == name)?;
        let off = flag.value.as_ref().is_some_and(|v| v.text.eq_ignore_ascii_case("false"));
        (!off).then(|| Word { text: format!("--{name}"), span: flag.span })
    }

    /// Returns the value of a flag of [`Arity::Bool`], in lower case, with the range of the whole
    /// flag.
    pub fn boolean(&self, name: &str) -> Option<Word> {
        self.assert_known(name);
        let flag = self.flags.iter().find(|f| f.name == name)?;
        let text = flag.value.as_ref().map_or("true".into(), |v| v.text.to_lowercase());
        Some(Word { text, span: flag.span })
    }
}
