//! Glob patterns for paths: `*` and `?` do not match `/`, `[…]` is a character class, `\` escapes,
//! and `**` matches across path components.
//!
//! The matcher simulates an NFA, so its time is bounded by pattern length times path length for any
//! input. Literal paths, prefixes and suffixes are compared directly.

#[derive(Debug, Clone, PartialEq, Eq)]
enum GlobToken {
    Char(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**` at the end: matches anything.
    Deep,
    /// `**/`, or `**` elsewhere: matches nothing, or anything up to and including a slash. Always
    /// followed by `DeepLoop`.
    DeepDirs,
    /// Consumes the characters of `DeepDirs`.
    DeepLoop,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The cheapest test for a match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum QuickTest {
    /// A literal path.
    Exact(String),
    /// `x**`
    Prefix(String),
    /// `**x`; the match may start inside a path component.
    Suffix(String),
    /// Simulate the tokens, if the path starts and ends with these literals.
    Tokens { begin: String, end: String },
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<GlobToken>,
    kind: QuickTest,
}

impl Glob {
    /// Compiles a pattern. With `deep`, `**` matches across components as in moby's patternmatcher
    /// (`**.x` matches any path that ends with `.x`).
    ///
    /// Returns `None` for patterns that Go's `filepath.Match` rejects: a class that is unclosed,
    /// empty, or has a `-` or `]` in place of a character, and an escape at the end. With `deep`, a
    /// descending range is also rejected, because patternmatcher compiles patterns to regular
    /// expressions.
    pub fn new(pattern: &str, deep: bool) -> Option<Glob> {
        let mut tokens = Vec::new();
        let mut escaped = false;
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if deep && chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    // At the end, both `a/**` and `a/**/` match everything below `a`.
                    if chars.peek().is_none() { GlobToken::Deep } else { GlobToken::DeepDirs }
                }
                '*' => GlobToken::Star,
                '?' => GlobToken::One,
                '\\' => {
                    escaped = true;
                    GlobToken::Char(chars.next()?)
                }
                '[' => class(&mut chars).filter(|class| !deep || class.is_ascending())?,
                c => GlobToken::Char(c),
            });
        }
        let kind = QuickTest::of(pattern, &tokens, escaped);
        let with_loops = |t| if t == GlobToken::DeepDirs { vec![t, GlobToken::DeepLoop] } else { vec![t] };
        Some(Glob { tokens: tokens.into_iter().flat_map(with_loops).collect(), kind })
    }

    /// Returns true if the pattern matches the whole path.
    pub fn matches(&self, path: &str) -> bool {
        match &self.kind {
            QuickTest::Exact(whole) => path == whole,
            QuickTest::Prefix(begin) => path.starts_with(begin),
            QuickTest::Suffix(end) => path.ends_with(end) || end.strip_prefix('/') == Some(path),
            QuickTest::Tokens { begin, end } => {
                path.starts_with(begin) && path.ends_with(end) && self.states(path.chars())[self.tokens.len()]
            }
        }
    }

    /// Returns true if a path below the directory `dir` (empty for the root) can match.
    pub fn leads_into(&self, dir: &str) -> bool {
        let slash = (!dir.is_empty()).then_some('/');
        matches!(self.kind, QuickTest::Suffix(_)) || self.states(dir.chars().chain(slash)).contains(&true)
    }

    /// Runs the NFA. Element `i` of the result is true if the first `i` tokens can match the text.
    fn states(&self, text: impl Iterator<Item = char>) -> Vec<bool> {
        let mut states = vec![false; self.tokens.len() + 1];
        let mut next = states.clone();
        states[0] = true;
        self.skip_empty(&mut states);
        for c in text {
            next.fill(false);
            for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| states[*i]) {
                match token {
                    GlobToken::Char(want) => next[i + 1] |= *want == c,
                    GlobToken::One => next[i + 1] |= c != '/',
                    GlobToken::Star => next[i] |= c != '/',
                    GlobToken::Deep => next[i] = true,
                    GlobToken::DeepDirs => {}
                    GlobToken::DeepLoop => {
                        next[i] = true;
                        next[i + 1] |= c == '/';
                    }
                    GlobToken::Class { negated, ranges } => {
                        let inside = ranges.iter().any(|(a, b)| (*a..=*b).contains(&c));
                        next[i + 1] |= c != '/' && inside != *negated;
                    }
                }
            }
            std::mem::swap(&mut states, &mut next);
            if !states.contains(&true) {
                break;
            }
            self.skip_empty(&mut states);
        }
        states
    }

    /// Follows the transitions of tokens that can match the empty string.
    fn skip_empty(&self, states: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            match token {
                GlobToken::Star | GlobToken::Deep if states[i] => states[i + 1] = true,
                // `**/` matches nothing, or enters its loop.
                GlobToken::DeepDirs if states[i] => (states[i + 1], states[i + 2]) = (true, true),
                _ => {}
            }
        }
    }
}

impl QuickTest {
    /// Chooses the test for a pattern. `tokens` do not include loops yet.
    fn of(pattern: &str, tokens: &[GlobToken], escaped: bool) -> QuickTest {
        let literal = |tokens: &[GlobToken]| -> Option<String> {
            tokens.iter().map(|t| if let GlobToken::Char(c) = t { Some(*c) } else { None }).collect()
        };
        let begin: String =
            tokens.iter().map_while(|t| if let GlobToken::Char(c) = t { Some(*c) } else { None }).collect();
        let end = tokens.iter().rev().map_while(|t| if let GlobToken::Char(c) = t { Some(*c) } else { None });
        let end: String = end.collect::<Vec<_>>().into_iter().rev().collect();
        match tokens {
            _ if escaped => QuickTest::Tokens { begin, end },
            [GlobToken::DeepDirs, rest @ ..] if literal(rest).is_some() => QuickTest::Suffix(pattern[2..].to_string()),
            [rest @ .., GlobToken::Deep] => literal(rest).map_or(QuickTest::Tokens { begin, end }, QuickTest::Prefix),
            all => literal(all).map_or(QuickTest::Tokens { begin, end }, QuickTest::Exact),
        }
    }
}

impl GlobToken {
    fn is_ascending(&self) -> bool {
        !matches!(self, GlobToken::Class { ranges, .. } if ranges.iter().any(|(low, high)| low > high))
    }
}

/// Parses a class after its opening bracket.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<GlobToken> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    };
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(GlobToken::Class { negated, ranges });
        }
        let low = one(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { one(chars)? } else { low };
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_rejected_as_in_go() {
        for bad in [
            "[]a]", "[-]", "[a-b-c]", "[a-]", "[-a]", "[]", "[^]", "[^-a]", "[^]a]", "[", "a[", "[a", "[a-", "a\\",
            "[\\",
        ] {
            assert_eq!((Glob::new(bad, false), Glob::new(bad, true)), (None, None), "{bad}");
        }
        for good in [
            "]", "a]", "-", "[a-c]", "[a\\-c]", "[\\]a]", "[\\-]", "[^a]", "[!a]", "[[]", "[*]", "[a^]", "\\[", "[é-ü]",
        ] {
            assert!(Glob::new(good, false).is_some() && Glob::new(good, true).is_some(), "{good}");
        }
        assert!(Glob::new("[b-a]", false).is_some() && Glob::new("[b-a]", true).is_none());
    }

    #[test]
    fn classes_match_their_members() {
        for (pattern, yes, no) in [
            ("[[]0", "[0", "0"),
            ("[!a]", "!", "b"),
            ("[^a]", "b", "a"),
            ("[\\]-a]", "]", "-"),
            ("[a\\-c]", "-", "b"),
            ("[*]", "*", "x"),
        ] {
            let glob = Glob::new(pattern, false).unwrap();
            assert!(glob.matches(yes) && !glob.matches(no), "{pattern}");
        }
    }

    #[test]
    fn double_star_matches_as_in_patternmatcher() {
        for (pattern, path, want) in [
            ("**.txt", "a.txt", true),
            ("**.txt", "sub/b.txt", true),
            ("**.txt", "sub.txt/b", false),
            ("**ab", "xab", true),
            ("**ab", "d/xab", true),
            ("**/ab", "ab", true),
            ("**/ab", "d/ab", true),
            ("**/ab", "d/xab", false),
            ("***.log", "c.log", true),
            ("***.log", "d/e/c.log", true),
            ("**.t?t", "d/.txt", true),
            ("**.t?t", "d/a.txt", false),
            ("**/*.txt", "d/a.txt", true),
            ("**/a*/b", "d/ax/b", true),
            ("****", "d/e", true),
            ("**", "d", true),
            ("a**", "axx/b", true),
            ("a**", "a", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a.**", "a.", true),
            ("a.**", "axb", false),
            ("a*b/**", "axb/c", true),
            ("**/x/**", "x/y", true),
            ("**/x/**", "d/x/y/z", true),
            ("**/x/**", "d/x", false),
            ("a**b", "ab", true),
            ("a**b", "ax/b", true),
            ("a**b", "axb", false),
            ("**\\*", "d/*", true),
            ("**\\*", "d/x", false),
        ] {
            assert_eq!(Glob::new(pattern, true).unwrap().matches(path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn leads_into_only_directories_that_can_contain_a_match() {
        for (pattern, dir, want) in [
            ("a/b/c", "", true),
            ("a/b/c", "a", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "ab", false),
            ("a/b/c", "a/b/c", false),
            ("*/c", "x", true),
            ("*/c", "x/y", false),
            ("**/c", "x/y", true),
            ("a/**/c", "b", false),
            ("x*", "x", false),
            ("**.txt", "x/y", true),
        ] {
            assert_eq!(Glob::new(pattern, true).unwrap().leads_into(dir), want, "{pattern} {dir}");
        }
    }
}
