//! Instructions as the reference parser's own dump has them: keyword, flags, words; nothing interpreted.

use crate::ast::Node;
use crate::flags;
use crate::text::Text;
use crate::words;

/// The node of one logical line.
pub fn node(text: &Text, escape: char) -> Node {
    let (keyword, rest) = crate::parse::split_keyword(text);
    let (flags, rest) = flags::take(&rest, escape);
    let flags = flags
        .iter()
        .map(|f| match &f.value {
            Some(value) => format!("--{}={}", f.name, value.text),
            None => format!("--{}", f.name),
        })
        .collect();
    let mut node = Node { keyword: keyword.text.to_lowercase(), flags, words: Vec::new(), inner: None };
    let list = |rest: &Text| words::plain(rest).into_iter().map(|w| w.text).collect();
    let whole = |rest: &Text| if rest.text.is_empty() { Vec::new() } else { vec![rest.text.clone()] };
    node.words = match node.keyword.as_str() {
        "from" | "expose" => list(&rest),
        "add" | "copy" | "volume" => words::json_strings(&rest.text).unwrap_or_else(|_| list(&rest)),
        "run" | "cmd" | "entrypoint" | "shell" => words::json_strings(&rest.text).unwrap_or_else(|_| whole(&rest)),
        "arg" => words::quoted(&rest, escape).into_iter().map(|w| w.text).collect(),
        "env" | "label" => pairs(&rest, escape),
        "healthcheck" => {
            let (kind, command) = crate::parse::split_keyword(&rest);
            let command = words::json_strings(&command.text).unwrap_or_else(|_| whole(&command));
            [vec![kind.text.to_uppercase()], command].concat()
        }
        "onbuild" => {
            node.inner = Some(Box::new(self::node(&rest, escape)));
            Vec::new()
        }
        _ => whole(&rest),
    };
    node
}

/// Name, value and `=` for each pair; an empty third word for the old form.
fn pairs(rest: &Text, escape: char) -> Vec<String> {
    let parts = words::quoted(rest, escape);
    if parts.first().is_some_and(|p| !p.text.contains('=')) {
        let (name, value) = crate::parse::split_keyword(rest);
        return vec![name.text, value.text, String::new()];
    }
    let split = |text: String| match text.split_once('=') {
        Some((name, value)) => vec![name.to_string(), value.to_string(), "=".to_string()],
        None => vec![text],
    };
    parts.into_iter().flat_map(|p| split(p.text)).collect()
}
