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
    /// `None` if a class is not closed or an escape stands at the end.
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
                '[' => class(&mut chars)?,
                c => Token::Char(c),
            });
        }
        let with_loops = |t| if t == Token::DeepDirs { vec![t, Token::DeepLoop] } else { vec![t] };
        Some(Glob(tokens.into_iter().flat_map(with_loops).collect()))
    }

    pub fn matches(&self, path: &str) -> bool {
        // states[i]: the first i tokens can match what was read so far.
        let mut states = vec![false; self.0.len() + 1];
        states[0] = true;
        self.skip_empty(&mut states);
        for c in path.chars() {
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
        states[self.0.len()]
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

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = matches!(chars.peek(), Some('^' | '!'));
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()? {
        '\\' => chars.next(),
        c => Some(c),
    };
    loop {
        if chars.peek() == Some(&']') && !ranges.is_empty() {
            chars.next();
            return Some(Token::Class { negated, ranges });
        }
        let low = one(chars)?;
        let high = if chars.peek() == Some(&'-') {
            chars.next();
            one(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
}
