//! Workflow commands of GitHub, which the service executes where it finds them in a log: lines that
//! begin with `::`, and `##[…]` anywhere in a line.

/// Prefix of lines that would be executed otherwise. The service ignores leading spaces.
const QUOTE: &str = "| ";

/// Returns the line that annotates a build with a warning.
pub fn warning(text: &str) -> String {
    format!("::warning::{}\n", escaped(text))
}

/// Returns the line that annotates a build with an error, in a line of a file if one is given.
pub fn error(place: Option<(&str, usize)>, text: &str) -> String {
    let place = place.map(|(file, line)| format!(" file={},line={line}", escaped_property(file)));
    format!("::error{}::{}\n", place.unwrap_or_default(), escaped(text))
}

/// Returns the line that begins a group.
pub fn group(title: &str) -> String {
    format!("::group::{}\n", escaped(title))
}

/// Returns a text of which no line begins with a workflow command.
pub fn quoted_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive(['\n', '\r']) {
        if line.trim_start().starts_with("::") {
            out.push_str(QUOTE);
        }
        out.push_str(line);
    }
    out
}

/// Returns a text without commands of the form that can be anywhere in a line.
pub fn without_inner_commands(text: &str) -> String {
    text.replace("##[", "## [")
}

/// Escapes the message of a command, which must be one line.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property, which also must not end the property.
fn escaped_property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_quoted_text_begins_with_a_command() {
        for (text, want) in [
            ("::warning::x\n", "| ::warning::x\n"),
            ("a\n \t::error::x\nb::c\n", "a\n|  \t::error::x\nb::c\n"),
            ("50%\r::add-mask::x", "50%\r| ::add-mask::x"),
            ("a\n\n1 | ::x\n", "a\n\n1 | ::x\n"),
        ] {
            assert_eq!(quoted_lines(text), want);
        }
    }
    #[test]
    fn commands_within_lines_are_broken() {
        for (text, want) in [
            ("x ##[add-mask]true ##[a]", "x ## [add-mask]true ## [a]"),
            ("###[a]##", "### [a]##"),
            ("## [a] #[b]", "## [a] #[b]"),
        ] {
            assert_eq!(without_inner_commands(text), want);
        }
    }
}
