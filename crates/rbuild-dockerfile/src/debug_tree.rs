//! The uninterpreted instruction tree, in the form that BuildKit's parser dumps.
//!
//! Used to compare parsers; building an image does not need it.

use crate::diagnostic::Diagnostic;
use crate::flags;
use crate::lines;
use crate::text::{Text, readable};
use crate::words::{self, split_keyword};

/// An uninterpreted instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugNode {
    /// Instruction in lower case.
    pub keyword: String,
    /// Builder flags, each as `--name` or `--name=value`.
    pub flags: Vec<String>,
    /// Arguments, split by the rules of the instruction.
    pub words: Vec<String>,
    /// Deferred instruction of ONBUILD.
    pub inner: Option<Box<DebugNode>>,
}

/// Parses a Dockerfile into one node per instruction.
///
/// Instructions are not validated: unknown keywords and invalid arguments also become nodes.
///
/// # Errors
///
/// Returns the errors that prevent splitting the text into instructions: an overlong line, a
/// repeated directive, an unterminated here-document.
pub fn debug_tree(source: &[u8]) -> Result<Vec<DebugNode>, Vec<Diagnostic>> {
    let (source, _) = readable(source);
    let lines = lines::split(&source)?;
    Ok(lines.logical.iter().map(|line| node(&line.text, lines.escape)).collect())
}

fn node(text: &Text, escape: char) -> DebugNode {
    let (keyword, rest) = split_keyword(text);
    let (flags, rest) = flags::take(&rest, escape);
    let flags = flags
        .iter()
        .map(|f| match &f.value {
            Some(value) => format!("--{}={}", f.name, value.text),
            None => format!("--{}", f.name),
        })
        .collect();
    let keyword = keyword.text.to_lowercase();
    let inner = (keyword == "onbuild").then(|| Box::new(node(&rest, escape)));
    DebugNode { words: arguments(&keyword, &rest, escape), keyword, flags, inner }
}

fn arguments(keyword: &str, rest: &Text, escape: char) -> Vec<String> {
    let list = |rest: &Text| words::plain(rest).into_iter().map(|w| w.text).collect();
    let whole = |rest: &Text| if rest.text.is_empty() { Vec::new() } else { vec![rest.text.clone()] };
    match keyword {
        "from" | "expose" => list(rest),
        "add" | "copy" | "volume" => words::json_strings(&rest.text).unwrap_or_else(|_| list(rest)),
        "run" | "cmd" | "entrypoint" | "shell" => words::json_strings(&rest.text).unwrap_or_else(|_| whole(rest)),
        "arg" => words::quoted(rest, escape).into_iter().map(|w| w.text).collect(),
        "env" | "label" => pairs(rest, escape),
        "healthcheck" => {
            let (kind, command) = split_keyword(rest);
            let command = words::json_strings(&command.text).unwrap_or_else(|_| whole(&command));
            [vec![kind.text.to_uppercase()], command].concat()
        }
        "onbuild" => Vec::new(),
        _ => whole(rest),
    }
}

/// Returns name, value and `=` of each pair. The third word is empty for `ENV name value`.
fn pairs(rest: &Text, escape: char) -> Vec<String> {
    let parts = words::quoted(rest, escape);
    if parts.first().is_some_and(|p| !p.text.contains('=')) {
        let (name, value) = split_keyword(rest);
        return vec![name.text, value.text, String::new()];
    }
    let split = |text: String| match text.split_once('=') {
        Some((name, value)) => vec![name.to_string(), value.to_string(), "=".to_string()],
        None => vec![text],
    };
    parts.into_iter().flat_map(|p| split(p.text)).collect()
}
