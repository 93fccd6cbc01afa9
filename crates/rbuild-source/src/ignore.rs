//! Ignore files (`.dockerignore`) and `--exclude`.

use std::path::{Path, PathBuf};

use rbuild_paths::{Glob, as_go};
use rbuild_remedy::ExcludingRule;

/// A list of ignore rules; the last matching one decides.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<IgnoreRule>,
    negations: bool,
    /// Path of the file that the rules are from, as shown in messages.
    file: PathBuf,
}

#[derive(Debug, Clone)]
struct IgnoreRule {
    glob: Glob,
    negated: bool,
    pattern: String,
    line: usize,
}

/// For each rule, true if it matched a directory or one of its parents. Entries of the directory
/// inherit these matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inherited(Vec<bool>);

/// An invalid rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct IgnoreError {
    /// Line of the file, or index of the pattern, counted from 1.
    pub line: usize,
    /// Description of the problem.
    pub reason: String,
}

impl Ignore {
    /// Returns the cleaned patterns of an ignore file, without comments (`#` in the first column)
    /// and blank lines.
    pub fn read(text: &str) -> Vec<String> {
        lines(text).map(|(_, pattern)| pattern).collect()
    }

    /// Parses an ignore file.
    pub fn parse(text: &str) -> Result<Ignore, IgnoreError> {
        Ignore::of(lines(text))
    }

    /// Returns the rules with the path of their file, for messages.
    pub fn from_file(self, file: &Path) -> Ignore {
        Ignore { file: file.to_path_buf(), ..self }
    }

    /// Parses a list of patterns, from `--exclude` or [`Ignore::read`]. `#` does not start a
    /// comment, and a pattern with a leading slash matches nothing.
    pub fn from_patterns<S: AsRef<str>>(patterns: &[S]) -> Result<Ignore, IgnoreError> {
        let clean = |(i, pattern): (usize, &S)| {
            let pattern = pattern.as_ref().trim();
            (!pattern.is_empty()).then(|| (i + 1, as_go(pattern)))
        };
        Ignore::of(patterns.iter().enumerate().filter_map(clean))
    }

    fn of(patterns: impl Iterator<Item = (usize, String)>) -> Result<Ignore, IgnoreError> {
        let mut ignore = Ignore::default();
        for (line, pattern) in patterns {
            let fail = |reason: &str| IgnoreError { line, reason: reason.to_string() };
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some("") => return Err(fail("`!` without a pattern")),
                Some(rest) => (true, rest),
                None => (false, pattern.as_str()),
            };
            let glob = Glob::new(pattern, true).ok_or_else(|| fail(&format!("invalid pattern `{pattern}`")))?;
            ignore.negations |= negated;
            ignore.rules.push(IgnoreRule { glob, negated, pattern: pattern.to_string(), line });
        }
        Ok(ignore)
    }

    /// Returns true if the path (relative, separated by `/`) is excluded in a walk from the root.
    /// The last rule that matches the path or one of its parents decides. A rule that could not
    /// change the verdict for a directory is not inherited by its entries, and is only matched
    /// against their own paths.
    pub fn excludes(&self, path: &str) -> bool {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.excludes_entry(&self.inherited_below(parent), path)
    }

    /// Like [`Ignore::excludes`], with the matches that the entry inherits from its directory.
    pub fn excludes_entry(&self, inherited: &Inherited, path: &str) -> bool {
        self.decide(inherited, path, |_, _| ())
    }

    /// Returns the rule that excludes the path in a walk from the root; `None` if none does.
    pub fn excluding_rule(&self, path: &str) -> Option<ExcludingRule> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mut last = None;
        let excluded = self.decide(&self.inherited_below(parent), path, |i, matches| {
            if matches {
                last = Some(i);
            }
        });
        let rule = &self.rules[last.filter(|_| excluded)?];
        Some(ExcludingRule { file: self.file.clone(), line: rule.line, pattern: rule.pattern.clone() })
    }

    /// Returns the matches that the entries of a directory inherit.
    pub fn inherited_below(&self, dir: &str) -> Inherited {
        let mut inherited = Inherited::default();
        let ends = dir.match_indices('/').map(|(i, _)| i).chain([dir.len()]).filter(|end| *end > 0);
        for end in ends {
            inherited = self.inherited_from(&inherited, &dir[..end]);
        }
        inherited
    }

    /// Like [`Ignore::inherited_below`], for a directory that itself inherits `above`.
    pub fn inherited_from(&self, above: &Inherited, dir: &str) -> Inherited {
        let mut matched = vec![false; self.rules.len()];
        self.decide(above, dir, |i, matches| matched[i] = matches);
        Inherited(matched)
    }

    fn decide(&self, inherited: &Inherited, path: &str, mut note: impl FnMut(usize, bool)) -> bool {
        let mut excluded = false;
        for (i, rule) in self.rules.iter().enumerate() {
            // A rule can only change the verdict if it has the opposite sense.
            let matches =
                inherited.0.get(i).copied().unwrap_or(false) || (rule.negated == excluded && rule.glob.matches(path));
            note(i, matches);
            if matches {
                excluded = !rule.negated;
            }
        }
        excluded
    }

    /// Returns true if the path is excluded when each rule is matched against the path itself and
    /// all of its parents, without the inheritance of a walk.
    pub fn excludes_alone(&self, path: &str) -> bool {
        let mut excluded = false;
        for rule in self.rules.iter() {
            let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
            if rule.negated == excluded && ends.into_iter().any(|end| rule.glob.matches(&path[..end])) {
                excluded = !rule.negated;
            }
        }
        excluded
    }

    /// Returns true if there are negated rules, which can re-include entries of excluded
    /// directories.
    pub fn has_negations(&self) -> bool {
        self.negations
    }

    /// Returns true if there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// Returns the cleaned patterns of an ignore file with their line numbers. A leading slash means
/// the root of the context and is removed.
fn lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let clean = |line: &str| {
        let pattern = line.trim();
        if line.starts_with('#') || pattern.is_empty() {
            return None;
        }
        let (mark, pattern) = pattern.strip_prefix('!').map_or(("", pattern), |rest| ("!", rest.trim()));
        if pattern.is_empty() {
            return Some(mark.to_string());
        }
        let path = as_go(pattern);
        let inside = path.strip_prefix('/').filter(|path| !path.is_empty()).unwrap_or(&path);
        Some(format!("{mark}{inside}"))
    };
    text.lines().enumerate().filter_map(move |(i, line)| Some((i + 1, clean(line)?)))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = ["a\n!\n", "[a\n", "a\n# comment\n!b[\n"].map(|text| Ignore::parse(text).err().unwrap());
        assert_recorded!("IgnoreError", variants!(IgnoreError).table(&errors, |e| e, no_remedy));
    }

    /// Each line of the table has patterns separated by `;`, a path, and yes or no.
    #[test]
    fn paths_are_excluded_as_recorded() {
        for line in include_str!("../tests/ignore.txt").lines().filter(|l| !l.is_empty() && !l.starts_with("# ")) {
            let parts: Vec<&str> = line.split(" | ").collect();
            let [patterns, path, want] = parts[..] else { panic!("bad case {line}") };
            let ignore = Ignore::parse(&patterns.replace(';', "\n")).unwrap();
            assert_eq!(ignore.excludes(path), want == "yes", "{line}");
            assert_eq!(ignore.excludes_alone(path), want == "yes", "{line}");
        }
    }

    #[test]
    fn the_rule_that_excludes_a_path_is_found() {
        let ignore = Ignore::parse("# secrets\n*.pem\n/d\n!d/keep\nd/keep/x\n").unwrap().from_file(Path::new("i"));
        for (path, want) in [
            ("a.pem", Some((2, "*.pem"))),
            ("d", Some((3, "d"))),
            ("d/e/f", Some((3, "d"))),
            ("d/keep", None),
            ("d/keep/x", Some((5, "d/keep/x"))),
            ("other", None),
        ] {
            let want = want.map(|(line, pattern)| ExcludingRule { file: "i".into(), line, pattern: pattern.into() });
            assert_eq!(ignore.excluding_rule(path), want, "{path}");
        }
    }

    #[test]
    fn a_rule_without_effect_on_a_directory_is_not_inherited() {
        let ignore = Ignore::parse("d/x\n!d\n").unwrap();
        assert!(ignore.excludes("d/x") && !ignore.excludes("d/y") && !ignore.excludes("d"));
        assert!(!ignore.excludes_alone("d/x"));
    }

    #[test]
    fn exclude_patterns_have_no_comments_and_no_rooted_form() {
        for (pattern, path, want) in [
            ("#*#", "#a#", true),
            ("/sub", "sub", false),
            ("  sub ", "sub", true),
            ("./sub/", "sub", true),
            ("**.txt", "d/a.txt", true),
            ("..", "a", false),
        ] {
            assert_eq!(Ignore::from_patterns(&[pattern]).unwrap().excludes(path), want, "{pattern} {path}");
        }
        let ignore = Ignore::from_patterns(&["*", "!keep"]).unwrap();
        assert!(ignore.excludes("other") && !ignore.excludes("keep"));
        assert_eq!(Ignore::from_patterns(&["a", "", "!"]).unwrap_err().line, 3);
    }

    #[test]
    fn ignore_files_are_cleaned() {
        let text = "\u{feff}# comment\n  spaced  \n/rooted\n #kept\n!  back/./x/\na//b/../c\n\n";
        assert_eq!(Ignore::read(text), ["spaced", "rooted", "#kept", "!back/x", "a/c"]);
        assert_eq!(Ignore::parse("a\n!\n").unwrap_err().line, 2);
        for bad in ["[a", "[]a]", "[-]", "!x/[a-b-c]", "**/[z-a]"] {
            let error = Ignore::parse(&format!("ok\n{bad}\n")).unwrap_err();
            let pattern = bad.trim_start_matches('!');
            assert_eq!((error.line, error.reason), (2, format!("invalid pattern `{pattern}`")), "{bad}");
        }
    }
}
