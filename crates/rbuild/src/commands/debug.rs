//! The verb `debug`: exposes the Dockerfile parser, word expansion and ignore patterns to tests and
//! editors. The formats are stable.

use std::io::{BufRead, Write};
use std::path::Path;

use rbuild_dockerfile::expand::{ExpandError, Lexer};
use rbuild_dockerfile::{DebugNode, debug_tree, parse};
use rbuild_linux::quoted;
use rbuild_source::{Ignore, IgnoreError};
use serde_json::{Value, json};

use crate::args::DebugVerb;
use crate::exit::{Failure, code};
use crate::input::flags;
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::terminal;

/// The reason why a request has no result.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("{0}")]
    NotJson(serde_json::Error),
    #[error("`{0}` is missing or not a string")]
    NoText(&'static str),
    #[error("`patterns` is missing or not a list of strings")]
    NoPatterns,
    #[error("`escape` must be one character")]
    BadEscape,
    #[error("`{0}` is not an operation")]
    UnknownOperation(String),
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// The number of the pattern is not part of the answer.
    #[error("{}", .0.reason)]
    Pattern(IgnoreError),
}

pub fn debug(verb: DebugVerb) -> Result<u8, Failure> {
    match verb {
        DebugVerb::Parse { file } => parsed(&file, |_| {}),
        DebugVerb::Ast { file } => parsed(&file, |bytes| {
            // The parse succeeded, so this one does.
            terminal::out(&dump(&debug_tree(bytes).unwrap_or_default()));
        }),
        DebugVerb::Expand => lines(expand),
        DebugVerb::Ignore => lines(ignore),
    }
}

fn parsed(file: &Path, then: impl FnOnce(&[u8])) -> Result<u8, Failure> {
    let bytes = std::fs::read(file)
        .map_err(|e| Failure::new(format!("cannot read {}: {}", quoted(file), flags::reason(&e))).because(&e))?;
    match parse(&bytes) {
        Ok(_) => {
            then(&bytes);
            Ok(code::OK)
        }
        Err(errors) => {
            let (name, text) = (file.display().to_string(), rbuild_dockerfile::readable(&bytes).0);
            let source = SourceText::new(&name, &text);
            for d in &errors {
                terminal::err(&diagnostics::diagnostic(d, &source, terminal::colors()));
            }
            Ok(code::USAGE)
        }
    }
}

/// Answers JSON requests, one per line, in order. Errors are answers too (`{"error": …}`) and do
/// not change the exit code.
fn lines(answer: fn(&Value) -> Result<Value, RequestError>) -> Result<u8, Failure> {
    let stdin = std::io::stdin().lock();
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    for line in stdin.lines() {
        let line = line.map_err(|e| Failure::caused("cannot read standard input", &e))?;
        if line.trim().is_empty() {
            continue;
        }
        let result = serde_json::from_str(&line).map_err(RequestError::NotJson).and_then(|request| answer(&request));
        let text = result.unwrap_or_else(|e| json!({ "error": e.to_string() })).to_string();
        if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
            break;
        }
    }
    Ok(code::OK)
}

fn text<'a>(request: &'a Value, key: &'static str) -> Result<&'a str, RequestError> {
    request[key].as_str().ok_or(RequestError::NoText(key))
}

fn expand(request: &Value) -> Result<Value, RequestError> {
    let flag = |key: &str| request[key].as_bool().unwrap_or(false);
    let escape = request["escape"].as_str().unwrap_or("\\");
    let mut chars = escape.chars();
    let (Some(escape), None) = (chars.next(), chars.next()) else {
        return Err(RequestError::BadEscape);
    };
    let lexer = Lexer { escape, raw_quotes: flag("raw_quotes"), skip_unset: flag("skip_unset") };
    let env = |name: &str| request["env"][name].as_str().map(str::to_string);
    let got = lexer.word(text(request, "input")?, &env)?;
    let result = match text(request, "op")? {
        "word" => json!(got.text),
        "words" => json!(got.words),
        other => return Err(RequestError::UnknownOperation(other.to_string())),
    };
    Ok(json!({ "result": result, "matched": got.matched, "unmatched": got.unmatched }))
}

fn ignore(request: &Value) -> Result<Value, RequestError> {
    match text(request, "op")? {
        "read" => Ok(json!({ "result": Ignore::read(text(request, "content")?) })),
        "match" => {
            let patterns: Option<Vec<&str>> =
                request["patterns"].as_array().and_then(|list| list.iter().map(Value::as_str).collect());
            let patterns = patterns.ok_or(RequestError::NoPatterns)?;
            let ignore = Ignore::from_patterns(&patterns).map_err(RequestError::Pattern)?;
            Ok(json!({ "match": ignore.excludes_alone(text(request, "path")?) }))
        }
        other => Err(RequestError::UnknownOperation(other.to_string())),
    }
}

/// Formats one S-expression per instruction, as BuildKit's parser dumps them.
fn dump(nodes: &[DebugNode]) -> String {
    nodes.iter().map(|node| expression(node) + "\n").collect()
}

fn expression(node: &DebugNode) -> String {
    let mut text = format!("({}", node.keyword.to_lowercase());
    if !node.flags.is_empty() {
        let flags: Vec<String> = node.flags.iter().map(|f| rbuild_image::quote(f)).collect();
        text.push_str(&format!(" [{}]", flags.join(" ")));
    }
    for word in &node.words {
        text.push(' ');
        text.push_str(&rbuild_image::quote(word));
    }
    if let Some(inner) = &node.inner {
        text.push(' ');
        text.push_str(&expression(inner));
    }
    text + ")"
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [
            RequestError::NotJson(serde_json::from_str::<Value>("{").unwrap_err()),
            expand(&json!({ "op": "word" })).unwrap_err(),
            expand(&json!({ "op": "word", "escape": "ab" })).unwrap_err(),
            expand(&json!({ "op": "sentence", "input": "a" })).unwrap_err(),
            expand(&json!({ "op": "word", "input": "${a" })).unwrap_err(),
            ignore(&json!({ "op": "match" })).unwrap_err(),
            ignore(&json!({ "op": "match", "patterns": ["["] })).unwrap_err(),
        ];
        let variants =
            variants!(RequestError { NotJson, NoText, NoPatterns, BadEscape, UnknownOperation, Expand, Pattern });
        assert_recorded!("RequestError", variants.table(&errors, |e| e, no_remedy));
    }
}
