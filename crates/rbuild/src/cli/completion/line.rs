//! Lines of bash, up to the cursor.

use std::path::Path;

/// Returns the words of a line from the name of the program on. The last one is the word at the
/// cursor, which may be empty.
pub fn split(line: &str) -> Vec<String> {
    let mut words = words(line);
    // Variables may precede the program.
    let is_variable = |word: &String| word.split_once('=').is_some_and(|(name, _)| is_name(name));
    let last = words.len() - 1;
    let variables = words[..last].iter().take_while(|word| is_variable(word)).count();
    words.drain(..variables);
    words
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut chars = line.chars();
    // True if the last word has begun, even with an empty pair of quotes.
    let mut begun = false;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), c) if c != '\'' => words.last_mut().into_iter().for_each(|word| word.push(c)),
            (_, '\\') => words.last_mut().into_iter().for_each(|word| word.extend(chars.next())),
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => words.last_mut().into_iter().for_each(|word| word.push(c)),
            (None, '\'' | '"') => quote = Some(c),
            (None, c) if c.is_whitespace() => {
                if begun {
                    words.push(String::new());
                }
                begun = false;
                continue;
            }
            (None, c) => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
        begun = true;
    }
    words
}

/// Escapes characters of a candidate that have a meaning in bash.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if " \t\\'\"$`&|;<>()*?[]{}!#~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Files and directories that a line names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NamedFiles {
    /// The Dockerfile of `--file`.
    pub file: Option<String>,
    /// The store of `--root`.
    pub root: Option<String>,
    /// The last directory that is not the value of a flag.
    pub context: Option<String>,
}

impl NamedFiles {
    /// Finds them in the words of a line, without the one at the cursor.
    pub fn of(words: &[String]) -> NamedFiles {
        let mut named = NamedFiles::default();
        let complete = words.split_last().map_or(&[][..], |(_, words)| words);
        for (at, word) in complete.iter().enumerate().skip(1) {
            let before = complete[at - 1].as_str();
            let attached = |flag: &str| word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('='));
            if ["-f", "--file"].contains(&before) {
                named.file = Some(word.clone());
            } else if before == "--root" {
                named.root = Some(word.clone());
            } else if let Some(file) = attached("--file") {
                named.file = Some(file.to_string());
            } else if let Some(root) = attached("--root") {
                named.root = Some(root.to_string());
            } else if !word.starts_with('-') && !is_flag_with_value(before) && Path::new(word).is_dir() {
                named.context = Some(word.clone());
            }
        }
        named
    }
}

/// Returns true for flags whose value is often a directory.
fn is_flag_with_value(word: &str) -> bool {
    ["-o", "--output", "-t", "--tag", "--target", "-v", "--volume", "--build-context", "--debug-log"].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_divided_as_in_bash() {
        for (line, expected) in [
            ("rbuild", &["rbuild"][..]),
            ("rbuild ", &["rbuild", ""]),
            ("rbuild run demo:la", &["rbuild", "run", "demo:la"]),
            ("A=1 B= rbuild -t x=", &["rbuild", "-t", "x="]),
            ("rbuild 'a b' \"c d\"e f\\ g", &["rbuild", "a b", "c de", "f g"]),
            ("rbuild '' ", &["rbuild", "", ""]),
            ("rbuild 'a\\", &["rbuild", "a\\"]),
            ("rbuild \"a b", &["rbuild", "a b"]),
        ] {
            assert_eq!(split(line), expected, "{line}");
        }
        assert_eq!(escaped("a b$c:d"), "a\\ b\\$c:d");
    }

    #[test]
    fn the_dockerfile_of_a_line_is_found() {
        let of = |line: &str| NamedFiles::of(&split(line));
        let text = |text: &str| Some(text.to_string());
        assert_eq!(
            of("rbuild -f a --root=/s / --target x"),
            NamedFiles { file: text("a"), root: text("/s"), context: text("/") }
        );
        assert_eq!(of("rbuild --file=b -o / "), NamedFiles { file: text("b"), ..NamedFiles::default() });
        assert_eq!(of("rbuild -f "), NamedFiles::default());
    }
}
