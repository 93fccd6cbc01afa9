//! Arguments of instructions: commands, lists and pairs. Errors are added to `errors`; a function
//! that cannot continue after one returns `None`.

use crate::ast::*;
use crate::diagnostic::Diagnostic;
use crate::expand::ExpandError;
use crate::text::Text;
use crate::words::{self, NotJson, whole};

/// Parses a command in the JSON form or in that of the shell.
pub fn command(rest: &Text, errors: &mut Vec<Diagnostic>) -> Option<Command> {
    match words::json_strings(&rest.text) {
        Ok(argv) => Some(Command::Exec(argv)),
        Err(NotJson::Other) => Some(Command::Shell(whole(rest))),
        Err(NotJson::NotStrings) => {
            not_strings(rest, errors);
            None
        }
    }
}

/// Parses words, or a JSON array of them.
pub fn list(rest: &Text, errors: &mut Vec<Diagnostic>) -> Option<Vec<Word>> {
    match words::json_strings(&rest.text) {
        Ok(items) => {
            let ranges = words::json_items(&rest.text);
            let span = |i: usize| ranges.get(i).map_or(whole(rest).span, |(start, end)| rest.span(*start, *end));
            Some(items.into_iter().enumerate().map(|(i, text)| Word { text, span: span(i) }).collect())
        }
        Err(NotJson::Other) => Some(words::plain(rest)),
        Err(NotJson::NotStrings) => {
            not_strings(rest, errors);
            None
        }
    }
}

fn not_strings(rest: &Text, errors: &mut Vec<Diagnostic>) {
    let d = Diagnostic::new(whole(rest).span, "the JSON form must be an array of strings");
    errors.push(d.help("put every item in double quotes"));
}

/// Parses the only word of an instruction.
pub fn single(name: &str, rest: &Text, errors: &mut Vec<Diagnostic>) -> Option<Word> {
    let mut parts = words::plain(rest);
    if parts.len() != 1 {
        errors.push(Diagnostic::new(whole(rest).span, format!("{name} takes exactly one argument")));
        return None;
    }
    parts.pop()
}

/// Parses names with values (ENV, LABEL), in any of their forms.
pub fn pairs(name: &str, rest: &Text, escape: char, errors: &mut Vec<Diagnostic>) -> Option<Vec<Pair>> {
    let parts = words::quoted(rest, escape);
    if !parts.first()?.text.contains('=') {
        return legacy_pair(name, rest, escape, errors);
    }
    let mut pairs = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        match words::pair(part) {
            Some((name, _)) if name.text.is_empty() => nameless(part, i, errors),
            Some((name, value)) => pairs.push(Pair { name, value, legacy: false }),
            None if i > 0 && words::pair(&parts[i - 1]).is_some_and(|(_, value)| value.text.is_empty()) => {
                let d = Diagnostic::new(part.span, format!("`{}` has no `=`", part.text));
                errors.push(d.help(format!("remove the space before it: {}{}", parts[i - 1].text, part.text)));
            }
            None => {
                let d = Diagnostic::new(part.span, format!("`{}` has no `=`", part.text));
                errors.push(d.help(format!("use the form `{name} name=value`, and quote values that contain spaces")));
            }
        }
    }
    Some(pairs)
}

/// Parses the form `NAME VALUE`, in which the value may contain blanks.
fn legacy_pair(name: &str, rest: &Text, escape: char, errors: &mut Vec<Diagnostic>) -> Option<Vec<Pair>> {
    let (key, value) = words::split_name(rest);
    if value.text.is_empty() {
        if let Some(quote) = words::unclosed_quote(&key.text, escape) {
            errors.push(Diagnostic::new(key.span, ExpandError::OpenQuote(quote).to_string()));
            return None;
        }
        let d = Diagnostic::new(key.span, format!("{name} requires a name and a value"));
        let help = words::false_blank_help(&key.text, |_| true);
        errors.push(d.help(help.unwrap_or_else(|| format!("use the form `{name} {}=value`", key.text))));
        return None;
    }
    Some(vec![Pair { name: key, value: whole(&value), legacy: true }])
}

/// Parses the names of arguments (ARG), with their defaults.
pub fn declarations(rest: &Text, escape: char, errors: &mut Vec<Diagnostic>) -> Option<Vec<ArgDecl>> {
    let mut decls = Vec::new();
    for (i, part) in words::quoted(rest, escape).iter().enumerate() {
        let (name, default) = match words::pair(part) {
            Some((name, value)) => (name, Some(value)),
            None => (part.clone(), None),
        };
        if name.text.is_empty() {
            nameless(part, i, errors);
            continue;
        }
        decls.push(ArgDecl { name, default });
    }
    Some(decls)
}

/// Reports `=VALUE` without a name, at `position` among the words of its instruction.
fn nameless(word: &Word, position: usize, errors: &mut Vec<Diagnostic>) {
    let d = Diagnostic::new(word.span, "missing name before `=`");
    errors.push(match position {
        0 => d,
        _ => d.help("remove the spaces around `=`"),
    });
}
