//! `.dockerignore`: which paths of the context do not exist for the build.

use crate::glob::Glob;

#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
    negations: bool,
}

#[derive(Debug, Clone)]
struct Rule {
    glob: Glob,
    negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct IgnoreError {
    pub line: usize,
    pub reason: String,
}

impl Ignore {
    /// The patterns of the file: comments (`#` in the first column) and blanks dropped, paths cleaned.
    pub fn read(text: &str) -> Vec<String> {
        text.strip_prefix('\u{feff}').unwrap_or(text).lines().filter_map(clean_line).collect()
    }

    pub fn parse(text: &str) -> Result<Ignore, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Ignore::of(text.lines().enumerate().filter_map(|(i, line)| Some((i + 1, clean_line(line)?))))
    }

    /// Patterns that were read before. Errors count them from 1.
    pub fn from_patterns(patterns: &[&str]) -> Result<Ignore, IgnoreError> {
        Ignore::of(patterns.iter().enumerate().filter_map(|(i, p)| Some((i + 1, clean_pattern(p)?))))
    }

    fn of(patterns: impl Iterator<Item = (usize, String)>) -> Result<Ignore, IgnoreError> {
        let mut ignore = Ignore::default();
        for (line, pattern) in patterns {
            let fail = |reason: &str| IgnoreError { line, reason: reason.to_string() };
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some("") => return Err(fail("a `!` needs a pattern behind it")),
                Some(rest) => (true, rest),
                None => (false, pattern.as_str()),
            };
            let glob = Glob::new(pattern, true).ok_or_else(|| fail(&format!("`{pattern}` is not a pattern")))?;
            ignore.negations |= negated;
            ignore.rules.push(Rule { glob, negated });
        }
        Ok(ignore)
    }

    /// Whether the path (relative, `/` between parts) is left out. The last rule that matches it or a directory
    /// above it decides.
    pub fn excludes(&self, path: &str) -> bool {
        let mut excluded = false;
        for rule in &self.rules {
            // A rule can only change the answer if it says the opposite.
            if rule.negated != excluded {
                continue;
            }
            let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
            if ends.into_iter().any(|end| rule.glob.matches(&path[..end])) {
                excluded = !rule.negated;
            }
        }
        excluded
    }

    /// Whether anything below an excluded directory can come back.
    pub fn has_negations(&self) -> bool {
        self.negations
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

fn clean_line(line: &str) -> Option<String> {
    if line.starts_with('#') { None } else { clean_pattern(line) }
}

fn clean_pattern(line: &str) -> Option<String> {
    let line = line.trim();
    let (mark, pattern) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if line.is_empty() {
        return None;
    }
    Some(format!("{mark}{}", clean_path(pattern)))
}

/// The path without `.`, `..`, doubled slashes and a leading slash.
fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.last().is_some_and(|p| *p != "..") {
                    parts.pop();
                } else if !path.starts_with('/') {
                    parts.push("..");
                }
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() && !path.is_empty() {
        // `/` and `.` name the root of the context, which no rule can exclude.
        return ".".to_string();
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One case a line: patterns separated by `;`, then the path, then yes or no.
    #[test]
    fn rules_of_the_table() {
        for line in include_str!("../tests/ignore.txt").lines().filter(|l| !l.is_empty() && !l.starts_with("# ")) {
            let parts: Vec<&str> = line.split(" | ").collect();
            let [patterns, path, want] = parts[..] else { panic!("bad case {line}") };
            let ignore = Ignore::parse(&patterns.replace(';', "\n")).unwrap();
            assert_eq!(ignore.excludes(path), want == "yes", "{line}");
        }
    }

    #[test]
    fn files_are_read_as_written() {
        let text = "\u{feff}# comment\n  spaced  \n/rooted\n #kept\n!  back/./x/\na//b/../c\n\n";
        assert_eq!(Ignore::read(text), ["spaced", "rooted", "#kept", "!back/x", "a/c"]);
        assert_eq!(Ignore::parse("a\n!\n").unwrap_err().line, 2);
        for bad in ["[a", "[]a]", "[-]", "!x/[a-b-c]", "**/[z-a]"] {
            let told = Ignore::parse(&format!("ok\n{bad}\n")).unwrap_err();
            let pattern = bad.trim_start_matches('!');
            assert_eq!((told.line, told.reason), (2, format!("`{pattern}` is not a pattern")), "{bad}");
        }
    }
}
