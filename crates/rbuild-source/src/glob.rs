//! Patterns over paths: `*` and `?` stay inside a part, `[…]` is a class, `\` escapes, `**` crosses parts.
//!
//! Matching follows all possibilities at once, so it is linear in pattern times path for any input. Most patterns need less:
//! a literal path, beginning or end.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**` at the end: anything at all.
    Deep,
    /// `**/`, or `**` before anything else: nothing, or anything up to and with a slash. Always followed by its loop.
    DeepDirs,
    DeepLoop,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The least that tells a match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// No pattern at all.
    Exact(String),
    /// `x**`
    Prefix(String),
    /// `**x`, which need not begin at a slash.
    Suffix(String),
    /// Everything else begins and ends with these characters.
    Tokens { begin: String, end: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
    kind: Kind,
}

impl Glob {
    /// `None` for what Go's `filepath.Match` refuses: a class that is not closed, is empty, or has a `-` or `]` where a
    /// character is due; an escape at the end. With `deep`, `**` crosses parts as in moby's patternmatcher (which takes
    /// `**.x` for any path that ends so), and a range that runs backwards is refused, too, as the regular expressions behind
    /// ignore files do it.
    pub fn new(pattern: &str, deep: bool) -> Option<Glob> {
        let mut tokens = Vec::new();
        let mut escaped = false;
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if deep && chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    // `a/**` alone at the end matches below a; `a/**/` likewise.
                    if chars.peek().is_none() { Token::Deep } else { Token::DeepDirs }
                }
                '*' => Token::Star,
                '?' => Token::One,
                '\\' => {
                    escaped = true;
                    Token::Char(chars.next()?)
                }
                '[' => class(&mut chars).filter(|class| !deep || class.runs_forwards())?,
                c => Token::Char(c),
            });
        }
        let kind = Kind::of(pattern, &tokens, escaped);
        let with_loops = |t| if t == Token::DeepDirs { vec![t, Token::DeepLoop] } else { vec![t] };
        Some(Glob { tokens: tokens.into_iter().flat_map(with_loops).collect(), kind })
    }

    pub fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact(whole) => path == whole,
            Kind::Prefix(begin) => path.starts_with(begin),
            Kind::Suffix(end) => path.ends_with(end) || end.strip_prefix('/') == Some(path),
            Kind::Tokens { begin, end } => {
                path.starts_with(begin) && path.ends_with(end) && self.states(path.chars())[self.tokens.len()]
            }
        }
    }

    /// Tells whether something below the directory `dir` (empty for the root) can match.
    pub fn leads_into(&self, dir: &str) -> bool {
        let slash = (!dir.is_empty()).then_some('/');
        matches!(self.kind, Kind::Suffix(_)) || self.states(dir.chars().chain(slash)).contains(&true)
    }

    /// At `i`, whether the first `i` tokens can match the text.
    fn states(&self, text: impl Iterator<Item = char>) -> Vec<bool> {
        let mut states = vec![false; self.tokens.len() + 1];
        let mut next = states.clone();
        states[0] = true;
        self.skip_empty(&mut states);
        for c in text {
            next.fill(false);
            for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| states[*i]) {
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
            std::mem::swap(&mut states, &mut next);
            if !states.contains(&true) {
                break;
            }
            self.skip_empty(&mut states);
        }
        states
    }

    /// Tokens that may match nothing pass their state on.
    fn skip_empty(&self, states: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            match token {
                Token::Star | Token::Deep if states[i] => states[i + 1] = true,
                // Either all of `**/` is nothing, or its loop begins.
                Token::DeepDirs if states[i] => (states[i + 1], states[i + 2]) = (true, true),
                _ => {}
            }
        }
    }
}

impl Kind {
    /// The tokens are those before loops were added.
    fn of(pattern: &str, tokens: &[Token], escaped: bool) -> Kind {
        let literal = |tokens: &[Token]| -> Option<String> {
            tokens.iter().map(|t| if let Token::Char(c) = t { Some(*c) } else { None }).collect()
        };
        let begin: String = tokens.iter().map_while(|t| if let Token::Char(c) = t { Some(*c) } else { None }).collect();
        let end = tokens.iter().rev().map_while(|t| if let Token::Char(c) = t { Some(*c) } else { None });
        let end: String = end.collect::<Vec<_>>().into_iter().rev().collect();
        match tokens {
            _ if escaped => Kind::Tokens { begin, end },
            [Token::DeepDirs, rest @ ..] if literal(rest).is_some() => Kind::Suffix(pattern[2..].to_string()),
            [rest @ .., Token::Deep] => literal(rest).map_or(Kind::Tokens { begin, end }, Kind::Prefix),
            all => literal(all).map_or(Kind::Tokens { begin, end }, Kind::Exact),
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
    fn two_stars_cross_parts_as_mobys_patternmatcher_has_it() {
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
            ("**.txt", "x/y", true),
        ] {
            assert_eq!(Glob::new(pattern, true).unwrap().leads_into(dir), want, "{pattern} {dir}");
        }
    }
}
