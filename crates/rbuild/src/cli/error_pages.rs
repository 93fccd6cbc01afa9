//! Explanations of errors: the sections of the page `docs/reference/errors.md`.

/// The page. A section has a heading with its names, messages as quoted lines in which `…` stands
/// for any text, and the explanation.
const PAGE: &str = include_str!("../../../../docs/reference/errors.md");

/// The explanation of errors of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorPage {
    /// Names, separated by commas.
    names: &'static str,
    /// The messages and the explanation.
    body: &'static str,
}

/// Returns the explanations, in the order of the page.
pub fn all() -> impl Iterator<Item = ErrorPage> {
    PAGE.split("\n## ").skip(1).filter_map(|section| {
        let (names, body) = section.split_once('\n')?;
        Some(ErrorPage { names, body: body.trim() })
    })
}

/// Finds the explanation with that name, or of that exit code.
pub fn named(name: &str) -> Option<ErrorPage> {
    let is_code = name.parse::<u8>().is_ok_and(|code| code > 0);
    let exit = format!("exit-{name}");
    let found = all().find(|page| page.names().any(|known| known.eq_ignore_ascii_case(name) || known == exit));
    found.or_else(|| if is_code { about(&format!("the command exited with code {name}")) } else { None })
}

/// Finds the explanation for a message, or for the first error of a log. If several fit, one whose
/// message contains a number applies, and else the one with the longest fixed words.
pub fn about(text: &str) -> Option<ErrorPage> {
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("error: ")).collect();
    let of_errors = errors.iter().find_map(|line| best(line));
    of_errors.or_else(|| best(text))
}

fn best(text: &str) -> Option<ErrorPage> {
    let text = plain(text);
    let rated = all().filter_map(|page| {
        let rate = |message: &str| {
            let length = matched(&plain(message), &text)?;
            Some((message.contains(|c: char| c.is_ascii_digit()), length))
        };
        Some((page.messages().filter_map(rate).max()?, page))
    });
    rated.max_by_key(|(rating, _)| *rating).map(|(_, page)| page)
}

/// Returns a text in lower case without backticks, in which single blanks separate the words.
fn plain(text: &str) -> String {
    let text = text.to_lowercase().replace('`', "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the length of the fixed parts of a message if a text contains them in their order.
fn matched(message: &str, text: &str) -> Option<usize> {
    let mut rest = text;
    let mut length = 0;
    for part in message.split('…').map(str::trim).filter(|part| !part.is_empty()) {
        rest = &rest[rest.find(part)? + part.len()..];
        length += part.len();
    }
    Some(length)
}

impl ErrorPage {
    /// Returns its names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.names.split(", ")
    }

    /// Returns its messages.
    fn messages(self) -> impl Iterator<Item = &'static str> {
        self.body.lines().filter_map(|line| line.strip_prefix("> "))
    }

    /// Returns the first message.
    pub fn summary(self) -> &'static str {
        self.messages().next().unwrap_or_default()
    }

    /// Returns the section.
    pub fn text(self) -> String {
        format!("# {}\n\n{}\n", self.names, self.body)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_documented_error_is_found_by_its_names_and_messages() {
        for page in all() {
            assert!(page.messages().count() > 0 && page.body.lines().count() > 2, "{}", page.names);
            for name in page.names() {
                assert_eq!(named(name), Some(page), "{name}");
            }
            for message in page.messages() {
                let shown = format!("error: {}\n --> Dockerfile:1:1", message.replace('…', "`x y`"));
                assert_eq!(about(&shown), Some(page), "{message}");
            }
        }
    }

    /// Returns the lines of all files below a directory.
    fn lines_below(dir: &Path, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match std::fs::read_to_string(&path) {
                Ok(text) => lines.extend(text.lines().map(plain)),
                Err(_) => lines_below(&path, lines),
            }
        }
    }

    /// Checks that the page has the words of today's messages: each is recorded, or in the source.
    /// Numbers stand for any number.
    #[test]
    fn every_documented_message_has_the_words_of_a_message() {
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap() {
            let of_crate = entry.unwrap().path();
            for dir in ["tests/messages", "tests/snapshots/recorded", "src"] {
                lines_below(&of_crate.join(dir), &mut lines);
            }
        }
        let is_known = |message: &&str| {
            let message = plain(message).replace(|c: char| c.is_ascii_digit(), "…");
            lines.iter().any(|line| matched(&message, line).is_some())
        };
        let unknown: Vec<&str> = all().flat_map(|page| page.messages()).filter(|m| !is_known(m)).collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }

    #[test]
    fn pasted_texts_are_explained() {
        for (text, name) in [
            ("127", Some("exit-127")),
            ("42", Some("command-failed")),
            ("the command `/bin/sh -c make` exited with code 127", Some("program-not-found")),
            ("#5 0.1 make: permission denied\nerror: image `x` not found in the local store", Some("image-not-found")),
            ("error: r.io/x: r.io refused\n  to pull: denied (no login)", Some("registry-login")),
            ("#3 sh: No space left on device", Some("disk-full")),
            ("all is well", None),
            ("0", None),
        ] {
            let found = named(text).or_else(|| about(text));
            assert_eq!(
                found.and_then(|page| name.map(|name| page.names().any(|n| n == name))),
                name.map(|_| true),
                "{text}"
            );
        }
    }
}
