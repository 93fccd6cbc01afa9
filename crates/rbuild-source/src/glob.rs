//! Patterns over paths: `*` and `?` stay inside a part, `[…]` is a class, `\` escapes, `**` crosses parts.
//!
//! Matching follows all possibilities at once, so it is linear in pattern times path for any input.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**` at the end: anything at all.
    Deep,
    /// `**/`: nothing, or anything up to and with a slash. Always followed by its loop.
    DeepDirs,
    DeepLoop,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

impl Glob {
    /// `None` for what Go's `filepath.Match` refuses: a class that is not closed, is empty, or has a `-` or `]` where a
    /// character is due; an escape at the end. With `deep`, `**` crosses parts, and a range that runs backwards is
    /// refused, too, as the regular expressions behind ignore files do it.
    pub fn new(pattern: &str, deep: bool) -> Option<Glob> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if deep && chars.peek() == Some(&'*') => {
                    while chars.peek() == Some(&'*') {
                        chars.next();
                    }
                    match chars.peek() {
                        None => Token::Deep,
                        Some('/') => {
                            chars.next();
                            // `a/**` alone at the end matches below a; `a/**/` likewise.
                            if chars.peek().is_none() { Token::Deep } else { Token::DeepDirs }
                        }
                        Some(_) => Token::DeepDirs,
                    }
                }
                '*' => Token::Star,
                '?' => Token::One,
                '\\' => Token::Char(chars.next()?),
                '[' => class(&mut chars).filter(|class| !deep || class.runs_forwards())?,
                c => Token::Char(c),
            });
        }
        let with_loops = |t| if t == Token::DeepDirs { vec![t, Token::DeepLoop] } else { vec![t] };
        Some(Glob(tokens.into_iter().flat_map(with_loops).collect()))
    }

    pub fn matches(&self, path: &str) -> bool {
        self.states(path.chars())[self.0.len()]
    }

    /// Whether something below the directory `dir` (empty for the root) can match.
    pub fn leads_into(&self, dir: &str) -> bool {
        let slash = (!dir.is_empty()).then_some('/');
        self.states(dir.chars().chain(slash)).contains(&true)
    }

    /// At `i`, whether the first `i` tokens can match the text.
    fn states(&self, text: impl Iterator<Item = char>) -> Vec<bool> {
        let mut states = vec![false; self.0.len() + 1];
        states[0] = true;
        self.skip_empty(&mut states);
        for c in text {
            let mut next = vec![false; states.len()];
            for (i, token) in self.0.iter().enumerate().filter(|(i, _)| states[*i]) {
                match token {
                    Token::Char(want) => next[i + 1] |= *want == c,
                    Token::One => next[i + 1] |= c != '/',
                    Token::Star => next[i] |= c != '/',
                    Token::Deep => next[i] = true,
                    Token::DeepDirs => {}
                    Token::DeepLoop => {
                        next[i] = true;
                        next[i + 1] |= c == '/';
                    }
                    Token::Class { negated, ranges } => {
                        let inside = ranges.iter().any(|(a, b)| (*a..=*b).contains(&c));
                        next[i + 1] |= c != '/' && inside != *negated;
                    }
                }
            }
            self.skip_empty(&mut next);
            states = next;
        }
        states
    }

    /// Tokens that may match nothing pass their state on.
    fn skip_empty(&self, states: &mut [bool]) {
        for (i, token) in self.0.iter().enumerate() {
            match token {
                Token::Star | Token::Deep if states[i] => states[i + 1] = true,
                // Either all of `**/` is nothing, or its loop begins.
                Token::DeepDirs if states[i] => (states[i + 1], states[i + 2]) = (true, true),
                _ => {}
            }
        }
    }
}

impl Token {
    fn runs_forwards(&self) -> bool {
        !matches!(self, Token::Class { ranges, .. } if ranges.iter().any(|(low, high)| low > high))
    }
}

/// The rest of a class whose bracket was read.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    };
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, ranges });
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
    fn patterns_are_refused_as_go_refuses_them() {
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
    fn classes_hold_what_they_name() {
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
    fn only_directories_that_can_hold_a_match_are_led_into() {
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
        ] {
            assert_eq!(Glob::new(pattern, true).unwrap().leads_into(dir), want, "{pattern} {dir}");
        }
    }
}
